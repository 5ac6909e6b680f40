"""ST-LPIPS (arXiv 2207.13686): a learned perceptual distance that hardly sees small shifts. Weights come with pip."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from PIL import Image

from tokenizer.transform import to_pixels

Distance = Callable[[Image.Image, Image.Image], float]
UNUSED = {"IPython": "embed", "torchsummary": "summary"}


def st_lpips() -> Distance:
    """-> image, other -> distance, 0 for equal ones; with AlexNet's features. Raises ValueError without the package."""
    with _unused_imports():
        try:
            from stlpips_pytorch.stlpips import LPIPS
        except ImportError as error:
            raise ValueError("ST-LPIPS needs its weights: pip install stlpips-pytorch") from error
    network = LPIPS(net="alex", variant="shift_tolerant", verbose=False)

    @torch.inference_mode()
    def distance(image: Image.Image, other: Image.Image) -> float:
        return network(*(to_pixels(each, each.width)[None] for each in (image, other))).item()

    return distance


@contextmanager
def _unused_imports() -> Iterator[None]:
    """The package imports tools of its authors that it neither declares nor calls: empty ones do in their place."""
    empty = {name: ModuleType(name) for name in UNUSED if name not in sys.modules}
    for name, module in empty.items():
        setattr(module, UNUSED[name], None)
    sys.modules.update(empty)
    try:
        yield
    finally:
        for name in empty:
            del sys.modules[name]
