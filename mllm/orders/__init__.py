"""In which order an image is drawn, and how much of it at once. A new order is one file here and a line in `ORDERS`."""

from tokenizer import ImageTokenizerConfig
from tokenizer.layouts import layout_kind

from .base import Order, Step
from .groups import Groups
from .locality import Locality
from .raster import Raster
from .wavefront import Wavefront

ORDERS = {"raster": Raster, "wavefront": Wavefront, "groups": Groups, "locality": Locality}


def make_order(name: str, sizes: ImageTokenizerConfig, dim: int) -> Order:
    """For a backbone of width `dim`. Raises ValueError for an unknown name, and for an order that does not fit the
    layout of the image's positions."""
    if name not in ORDERS:
        raise ValueError(f"unknown order {name!r}; known: {', '.join(ORDERS)}")
    if ORDERS[name].parallel and not layout_kind(sizes.layout).on_grid:
        raise ValueError(f"order {name!r} draws neighbours at once, and layout {sizes.layout!r} has none: take raster")
    return ORDERS[name](sizes.num_positions, dim)


__all__ = ["ORDERS", "Order", "Step", "make_order"]
