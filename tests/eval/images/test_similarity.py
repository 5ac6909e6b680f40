"""PSNR and SSIM against computations of their own, ST-LPIPS against what it promises, on a photograph."""

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageChops, ImageFilter
from skimage import data

from eval.images.similarity import METRICS, psnr, ssim
from eval.images.st_lpips import st_lpips


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(data.chelsea()).crop((100, 50, 180, 110))


@pytest.fixture(scope="module")
def coarse(photo) -> Image.Image:
    return photo.resize((20, 15)).resize(photo.size)


def values(image: Image.Image) -> torch.Tensor:
    """[channels, 1, height, width]"""
    return torch.tensor(np.array(image), dtype=torch.float64).permute(2, 0, 1)[:, None]


def test_psnr_of_a_known_difference():
    black = Image.new("RGB", (20, 20))
    assert psnr(black, Image.new("RGB", (20, 20), (255, 255, 255))) == 0
    one_channel_by_ten = Image.new("RGB", (20, 20), (0, 10, 0))
    assert psnr(black, one_channel_by_ten) == pytest.approx(10 * np.log10(255**2 / (100 / 3)))


def test_psnr_of_a_photograph(photo, coarse):
    error = F.mse_loss(values(photo), values(coarse))
    assert psnr(photo, coarse) == pytest.approx(20 * np.log10(255) - 10 * error.log10().item())


def test_ssim_is_the_formula_of_the_paper(photo, coarse):
    """Wang et al. 2004, equation 13, at the 70 x 50 places where the window fits."""
    offsets = torch.arange(-5, 6, dtype=torch.float64)
    bell = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = torch.outer(bell, bell)[None, None] / bell.sum() ** 2
    x, y = values(photo), values(coarse)
    mean_x, mean_y = F.conv2d(x, window), F.conv2d(y, window)
    var_x, var_y = F.conv2d(x * x, window) - mean_x**2, F.conv2d(y * y, window) - mean_y**2
    both = F.conv2d(x * y, window) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similar = (2 * mean_x * mean_y + c1) * (2 * both + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    assert similar.shape[-2:] == (50, 70)
    assert ssim(photo, coarse) == pytest.approx(similar.mean().item(), abs=1e-6)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_best_for_equal_images_and_falls_off_as_they_differ(name, photo):
    noise, metric = np.random.default_rng(0).normal(size=(60, 80, 3)), METRICS[name]()
    noisy = [
        Image.fromarray((np.asarray(photo) + deviation * noise).clip(0, 255).astype(np.uint8))
        for deviation in (0, 5, 20, 60)
    ]
    scores = [metric(other, photo) for other in noisy]
    assert all(type(score) is float and np.isfinite(score) for score in scores)
    assert scores in (sorted(scores), sorted(scores, reverse=True)) and len(set(scores)) == 4
    assert scores == [metric(other, photo) for other in noisy], "nothing is kept from call to call"


def test_equal_images(photo):
    assert psnr(photo, photo) > 100 and ssim(photo, photo) == pytest.approx(1)


def test_without_scikit_image(photo, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    with pytest.raises(ValueError, match="pip install scikit-image"):
        ssim(photo, photo)


def test_st_lpips_sees_blur_rather_than_a_shift():
    image, distance = Image.fromarray(data.chelsea()).crop((100, 50, 228, 178)), st_lpips()
    shifted, blurred = ImageChops.offset(image, 1, 0), image.filter(ImageFilter.GaussianBlur(2))
    assert distance(image, image) == 0
    assert distance(shifted, image) < distance(blurred, image) / 3
    assert "IPython" not in sys.modules, "what stands in for a package while ST-LPIPS is imported goes again"


def test_st_lpips_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "stlpips_pytorch.stlpips", None)
    with pytest.raises(ValueError, match="pip install stlpips-pytorch"):
        st_lpips()
