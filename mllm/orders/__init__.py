"""In which order an image is drawn, and how much of it at once. A new order is one file here and a line in `ORDERS`."""

from tokenizer import ImageTokenizerConfig

from .base import Order, Step
from .groups import Groups
from .locality import Locality
from .raster import Raster
from .scales import Scales
from .wavefront import Wavefront

ORDERS = {"raster": Raster, "wavefront": Wavefront, "groups": Groups, "locality": Locality, "scales": Scales}


def make_order(name: str, sizes: ImageTokenizerConfig, dim: int) -> Order:
    """For a backbone of width `dim`. Raises ValueError for an unknown name, and for an order that does not fit the
    layout of the image's positions."""
    if name not in ORDERS:
        raise ValueError(f"unknown order {name!r}; known: {', '.join(ORDERS)}")
    order = ORDERS[name]
    if order.layout not in (None, sizes.layout):
        raise ValueError(f"order {name!r} draws layout {order.layout!r}, not {sizes.layout!r}: take raster")
    return order(sizes, dim)


__all__ = ["ORDERS", "Order", "Step", "make_order"]
