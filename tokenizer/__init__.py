"""Images to codes and back: the UniTok image tokenizer (arXiv 2502.20321)."""

from .config import SIZES, ImageTokenizerConfig
from .image_tokenizer import ImageTokenizer

__all__ = ["SIZES", "ImageTokenizer", "ImageTokenizerConfig"]
