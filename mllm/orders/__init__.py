"""In which order an image is drawn, and how much of it at once. A new order is one file here and a line in `ORDERS`."""

from .base import Order, Step
from .groups import Groups
from .raster import Raster
from .wavefront import Wavefront

ORDERS = {"raster": Raster, "wavefront": Wavefront, "groups": Groups}

__all__ = ["ORDERS", "Order", "Step"]
