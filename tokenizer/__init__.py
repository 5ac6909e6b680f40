"""Images to codes and back: the UniTok image tokenizer (arXiv 2502.20321)."""

from .image_tokenizer import ImageTokenizer
from .sizes import SIZES, ImageTokenizerConfig

__all__ = ["SIZES", "ImageTokenizer", "ImageTokenizerConfig"]
