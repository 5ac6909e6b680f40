"""How positions of codes lie in an image, by the name that a config gives. A new one is a file beside these and a line
here; the promises in tests/tokenizer/test_layouts.py hold it to `Layout`."""

from typing import Any

from .base import Layout
from .holistic import HolisticLayout
from .queries import QueryLayout
from .scales import ScaleLayout

LAYOUTS: dict[str, type[Layout]] = {
    "grid": Layout,
    "queries": QueryLayout,
    "holistic": HolisticLayout,
    "scales": ScaleLayout,
}


def layout_kind(name: str) -> type[Layout]:
    """Raises ValueError for an unknown name."""
    if name not in LAYOUTS:
        raise ValueError(f"unknown layout {name!r}; known: {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def make_layout(config: Any) -> Layout:
    """The one that an `ImageTokenizerConfig` describes."""
    return layout_kind(config.layout)(config.width, config.heads, config.grid, **config.layout_args)


__all__ = ["LAYOUTS", "Layout", "layout_kind", "make_layout"]
