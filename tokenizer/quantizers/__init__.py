"""The kinds of quantizers, by the name that a config gives. A new one is a file beside these and a line here; the
promises in tests/tokenizer/test_quantizers.py hold it to `Quantizer`."""

from typing import Any

from .base import Quantized, Quantizer, QuantizerOptions, code_use, count_codes
from .binary import BinarySphericalQuantizer, LookupFreeQuantizer
from .fsq import FiniteScalarQuantizer
from .hierarchical import HierarchicalQuantizer
from .multi_codebook import MultiCodebookQuantizer
from .quantile import QuantileQuantizer
from .residual import ResidualQuantizer
from .shared_index import SharedIndexQuantizer

QUANTIZERS: dict[str, type[Quantizer]] = {
    "multi_codebook": MultiCodebookQuantizer,
    "residual": ResidualQuantizer,
    "shared_index": SharedIndexQuantizer,
    "hierarchical": HierarchicalQuantizer,
    "lfq": LookupFreeQuantizer,
    "bsq": BinarySphericalQuantizer,
    "fsq": FiniteScalarQuantizer,
    "quantile": QuantileQuantizer,
}


def quantizer_kind(name: str) -> type[Quantizer]:
    """Raises ValueError for an unknown name."""
    if name not in QUANTIZERS:
        raise ValueError(f"unknown quantizer {name!r}; known: {', '.join(QUANTIZERS)}")
    return QUANTIZERS[name]


def make_quantizer(config: Any) -> Quantizer:
    """The one that an `ImageTokenizerConfig` describes. Raises ValueError for one that cannot be."""
    return quantizer_kind(config.quantizer).from_config(config)


__all__ = [
    "QUANTIZERS",
    "Quantized",
    "Quantizer",
    "QuantizerOptions",
    "code_use",
    "count_codes",
    "make_quantizer",
    "quantizer_kind",
]
