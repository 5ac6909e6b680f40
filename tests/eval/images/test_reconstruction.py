"""The evaluation of reconstructions: its numbers against plain ones, a killed run, several processes, damage."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from skimage import data
from skimage.metrics import structural_similarity
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from data_recipes.images import open_images
from eval.images import image_pieces
from eval.images.distribution import Extractor, squeeze
from eval.images.image_pieces import Images
from eval.images.reconstruction import Judges, evaluate_reconstruction, load_judges
from eval.images.similarity import METRICS
from tests.golden_data import lpips_tensors
from tokenizer import SIZES, ImageTokenizer
from tokenizer.perceptual import LPIPS

# Mean colours: three features that need no network.
MEANS = Extractor("mean-colors", 16, "none", lambda pixels_N3HW: pixels_N3HW.mean((2, 3)))
LOADED = load_judges(MEANS, None).metrics


@pytest.fixture(scope="module")
def image_tokenizer() -> ImageTokenizer:
    """Images of 32 pixels, cut from 36; larger weights than fresh ones have, so that they are no plain grey."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ImageTokenizer(replace(SIZES["tiny"], resize_ratio=1.125)).eval()
        with torch.no_grad():
            for weight in model.decoder.parameters():
                weight.mul_(2)
        return model


@pytest.fixture
def folder(tmp_path) -> Path:
    """Nine photographs of all shapes."""
    (tmp_path / "photos").mkdir()
    images = [Image.fromarray(image()) for image in (data.astronaut, data.chelsea, data.coffee)]
    for place in range(9):
        left, top = 30 * place, 20 * place
        crop = images[place % 3].crop((left, top, left + 90 + 5 * place, top + 120))
        crop.save(tmp_path / "photos" / f"{place}.png")
    return tmp_path / "photos"


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(image_pieces, "PIECE", 2)


def images_of(folder: Path, **options) -> Images:
    source = open_images(str(folder))
    return Images(source, range(len(source)), **options)


# ---- numbers


def plainly(image_tokenizer: ImageTokenizer, folder: Path) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Originals, what is decoded, and codes_NLK, one image at a time."""
    transform = [Resize(36, InterpolationMode.BICUBIC, antialias=True), CenterCrop(32)]
    originals, decoded, codes = [], [], []
    for file in sorted(folder.iterdir()):
        image = transform[1](transform[0](Image.open(file)))
        originals.append(np.asarray(image))
        codes.append(image_tokenizer.encode([torch.tensor(originals[-1]).permute(2, 0, 1) / 127.5 - 1]))
        with torch.no_grad():
            values = image_tokenizer.decode_pixels(codes[-1])[0].permute(1, 2, 0).numpy()
        decoded.append(np.clip(np.round((values + 1) * 127.5), 0, 255).astype(np.uint8))
    return originals, decoded, torch.cat(codes).numpy()


def frechet(x_NF: np.ndarray, y_NF: np.ndarray) -> float:
    sigma_x, sigma_y = np.cov(x_NF.T), np.cov(y_NF.T)
    root = sqrtm(sigma_x @ sigma_y).real
    return np.sum((x_NF.mean(0) - y_NF.mean(0)) ** 2) + np.trace(sigma_x + sigma_y - 2 * root)


def test_the_numbers_are_those_of_a_plain_computation(image_tokenizer, folder, tmp_path):
    originals, decoded, codes_NLK = plainly(image_tokenizer, folder)
    assert len(np.unique(decoded)) > 50
    result = evaluate_reconstruction(
        image_tokenizer, images_of(folder, batch_size=3), Judges(MEANS, LOADED), tmp_path / "out"
    )
    assert set(result.scores) == {"rfid_mean_colors", *METRICS, "usage", "perplexity"}
    assert result.images == 9 and result.left_out == [] and len(result.model_hash) == 12
    pairs = list(zip(originals, decoded, strict=True))
    errors = [np.mean((x.astype(float) - y) ** 2) for x, y in pairs]
    assert result.scores["psnr"] == pytest.approx(np.mean([10 * np.log10(255**2 / error) for error in errors]))
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    ssims = [structural_similarity(x, y, channel_axis=2, data_range=255, **window) for x, y in pairs]
    assert result.scores["ssim"] == pytest.approx(np.mean(ssims))
    distances = [LOADED["st_lpips"](Image.fromarray(x), Image.fromarray(y)) for x, y in pairs]
    assert result.scores["st_lpips"] == pytest.approx(np.mean(distances)) and np.min(distances) > 0
    means = [[squeeze(Image.fromarray(x), 16).mean((1, 2)).numpy() for x in side] for side in (decoded, originals)]
    assert result.scores["rfid_mean_colors"] == pytest.approx(frechet(*map(np.array, means)), rel=1e-4)
    for k in range(2):
        frequency = np.array([(codes_NLK[..., k] == code).mean() for code in range(16)])
        frequency = frequency[frequency > 0]
        assert result.scores["usage"][str(k)] == len(frequency) / 16
        assert result.scores["perplexity"][str(k)] == pytest.approx(np.prod(frequency**-frequency))


def test_perturbed_codes_lose_more_whatever_the_batch(image_tokenizer, folder, tmp_path):
    plain, small, large, few = (
        evaluate_reconstruction(
            image_tokenizer, images_of(folder, batch_size=size), Judges(MEANS, LOADED), tmp_path / "out", share
        ).scores
        for share, size in ((0.0, 3), (1.0, 1), (1.0, 4), (0.01, 4))
    )
    assert small == large and {name: large[name] for name in plain} == plain
    assert large["pfid_mean_colors"] != large["rfid_mean_colors"]
    assert few["pfid_mean_colors"] == pytest.approx(few["rfid_mean_colors"], rel=0.05)


def test_lpips_is_of_the_rounded_images(image_tokenizer, folder, tmp_path):
    torch.save(lpips_tensors(), tmp_path / "lpips.pth")
    judges = load_judges(MEANS, tmp_path / "lpips.pth")
    assert len(judges.lpips_hash) == 12 and "lpips_vgg" not in LOADED
    result = evaluate_reconstruction(image_tokenizer, images_of(folder), judges, tmp_path / "out")
    originals, decoded, _ = plainly(image_tokenizer, folder)
    x, y = (torch.tensor(np.stack(side)).permute(0, 3, 1, 2) / 127.5 - 1 for side in (decoded, originals))
    with torch.no_grad():
        expected = LPIPS(tmp_path / "lpips.pth")(x, y).item()
    assert result.scores["lpips_vgg"] == pytest.approx(expected, rel=1e-4) and expected > 0


# ---- in pieces


class Counted:
    """Mean colours, of so many images in all; with `most`, killed before there are more."""

    def __init__(self, most: int = 1000):
        self.count, self.most = 0, most
        self.judges = Judges(MEANS._replace(extract=self.extract), LOADED)

    def extract(self, pixels_N3HW: torch.Tensor) -> torch.Tensor:
        if self.count + len(pixels_N3HW) > self.most:
            raise KeyboardInterrupt
        self.count += len(pixels_N3HW)
        return MEANS.extract(pixels_N3HW)


def test_a_killed_run_goes_on(image_tokenizer, folder, tmp_path):
    killed, second, third = Counted(most=11), Counted(), Counted()
    alone = evaluate_reconstruction(image_tokenizer, images_of(folder), Counted().judges, tmp_path / "alone")
    with pytest.raises(KeyboardInterrupt):
        evaluate_reconstruction(image_tokenizer, images_of(folder), killed.judges, tmp_path / "out")
    assert evaluate_reconstruction(image_tokenizer, images_of(folder), second.judges, tmp_path / "out") == alone
    assert second.count == 2 * (9 - 4)  # of originals and what is decoded; two pieces were done
    assert evaluate_reconstruction(image_tokenizer, images_of(folder), third.judges, tmp_path / "out") == alone
    assert third.count == 0


def test_processes_share_the_work(image_tokenizer, folder, tmp_path, monkeypatch):
    alone = evaluate_reconstruction(image_tokenizer, images_of(folder), Judges(MEANS, LOADED), tmp_path / "alone")
    monkeypatch.setenv("WORLD_SIZE", "2")
    counts = []
    for rank, expected in (("1", None), ("0", alone)):
        monkeypatch.setenv("RANK", rank)
        counted = Counted()
        result = evaluate_reconstruction(image_tokenizer, images_of(folder), counted.judges, tmp_path / "together")
        assert result == expected
        counts.append(counted.count)
    assert counts == [2 * 4, 2 * 5]


def test_another_image_or_model_is_computed_again(image_tokenizer, folder, tmp_path):
    first = evaluate_reconstruction(image_tokenizer, images_of(folder), Judges(MEANS, LOADED), tmp_path / "out")
    Image.new("RGB", (40, 40), "red").save(folder / "3.png")
    second = evaluate_reconstruction(image_tokenizer, images_of(folder), Judges(MEANS, LOADED), tmp_path / "out")
    assert second.scores["psnr"] != first.scores["psnr"]
    other = ImageTokenizer(replace(image_tokenizer.config, resize_ratio=1.0)).eval()
    other.load_state_dict(image_tokenizer.state_dict())
    counted = Counted()
    evaluate_reconstruction(other, images_of(folder), counted.judges, tmp_path / "out")
    assert counted.count == 2 * 9


# ---- damage


def test_damaged_images_are_left_out_up_to_a_limit(image_tokenizer, folder, tmp_path):
    for name in ("8.png", "1.png"):
        (folder / name).unlink()
    expected = evaluate_reconstruction(image_tokenizer, images_of(folder), Judges(MEANS, LOADED), tmp_path / "without")
    for name in ("8.png", "1.png"):
        (folder / name).write_bytes(b"damaged")
    result = evaluate_reconstruction(
        image_tokenizer, images_of(folder, max_bad=2), Judges(MEANS, LOADED), tmp_path / "out"
    )
    assert result.images == 7 and result.scores["usage"] == expected.scores["usage"]
    for name in ("psnr", "ssim", "rfid_mean_colors"):
        assert result.scores[name] == pytest.approx(expected.scores[name], rel=1e-4)
    assert len(result.left_out) == 2 and "1.png" in result.left_out[0] and "8.png" in result.left_out[1]
    for out in ("out", "new"):  # with and without what is kept
        with pytest.raises(ValueError, match="2 images cannot be used, --max-bad allows 1: cannot read .*8.png"):
            evaluate_reconstruction(
                image_tokenizer, images_of(folder, max_bad=1), Judges(MEANS, LOADED), tmp_path / out
            )


def test_without_enough_images_there_are_no_numbers(image_tokenizer, folder, tmp_path):
    for file in sorted(folder.iterdir())[1:]:
        file.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="1 images could be read, 8 are damaged: at least 2 are needed"):
        evaluate_reconstruction(image_tokenizer, images_of(folder), Judges(MEANS, LOADED), tmp_path / "out")
    (folder / "0.png").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="none of 9 images can be used, the first: cannot read .*0.png"):
        evaluate_reconstruction(image_tokenizer, images_of(folder), Judges(MEANS, LOADED), tmp_path / "out")
