"""How close one image is to another: metrics of two PIL images, RGB, 8 bits. A new one is a line in METRICS."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

import tokenizer.psnr

from .st_lpips import Distance, st_lpips


def psnr(image: Image.Image, other: Image.Image) -> float:
    """Peak signal-to-noise ratio over all values, in dB; 148 for equal images, as JSON has no word for infinity."""
    difference = np.asarray(image, dtype=np.float64) - np.asarray(other, dtype=np.float64)
    return tokenizer.psnr.psnr(torch.tensor(np.mean(difference**2)), 255).item()


def ssim(image: Image.Image, other: Image.Image) -> float:
    """Structural similarity (Wang et al. 2004) with its Gaussian window of 11 x 11, mean of the three channels.

    Raises ValueError without scikit-image, and for sides below 11 pixels.
    """
    try:
        from skimage.metrics import structural_similarity
    except ImportError as error:
        raise ValueError("SSIM needs scikit-image: pip install scikit-image") from error
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(structural_similarity(np.asarray(image), np.asarray(other), channel_axis=2, data_range=255, **window))


METRICS: dict[str, Callable[[], Distance]] = {"psnr": lambda: psnr, "ssim": lambda: ssim, "st_lpips": st_lpips}
"""What an evaluation of reconstructions measures: name -> what loads the metric, with its weights if it has any."""
