"""The peak signal-to-noise ratio, for training and evaluation alike."""

import torch

LEAST = 1.5e-15  # of an error: 148 dB for equal images, as JSON has no word for infinity


def psnr(squared_error: torch.Tensor, peak: float) -> torch.Tensor:
    """In dB, of mean squared errors of values whose range is `peak`: 2 for pixels in [-1, 1], 255 for bytes."""
    return -10 * torch.log10((squared_error / peak**2).clamp(min=LEAST))
