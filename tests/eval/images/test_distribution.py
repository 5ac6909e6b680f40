"""FID, KID, precision and recall: known values, saved statistics, several processes, damaged images; and CLIPScore."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from eval.drawn_folder import save
from eval.images import distribution
from eval.images.clip import Clip
from eval.images.distribution import (
    Extractor,
    Features,
    clip_score,
    compare,
    coverage,
    efficientnet,
    folder_features,
    image_files,
    inception,
    load_statistics,
    read_prompts,
    save_statistics,
    squeeze,
    summarize,
)
from tests.tiny_networks import save_clip

# Mean colours: three features that need no network.
MEANS = Extractor("means", 16, "none", lambda pixels_N3HW: pixels_N3HW.mean((2, 3)))


def normal(count: int, shift: float = 0.0, seed: int = 0) -> Features:
    return summarize(np.random.default_rng(seed).normal(shift, 1, (count, 4)).astype(np.float32))


@pytest.fixture
def images(tmp_path) -> Path:
    """Seven of random colours, in two folders."""
    folder, rng = tmp_path / "images", np.random.default_rng(0)
    for place, color in enumerate(rng.integers(0, 255, (7, 3))):
        prompt = {"prompt": "a cow" if place % 2 else "a red bus"}
        save(folder / ("ab"[place % 2]) / f"{place}.png", Image.new("RGB", (20, 30), tuple(color.tolist())), prompt)
    return folder


# ---- metrics


def test_fid_of_known_distributions():
    """Of normal distributions with unit covariance it is the squared distance of the means."""
    assert compare(normal(500), normal(500))["fid"] == pytest.approx(0, abs=1e-4)
    assert compare(normal(4000), normal(4000, 3, seed=1))["fid"] == pytest.approx(4 * 3**2, rel=0.05)


def test_numbers_tell_near_from_far():
    near, far = compare(normal(300), normal(300, 0.2, seed=1)), compare(normal(300), normal(300, 2, seed=1))
    assert near["fid"] < far["fid"] and near["kid"] < far["kid"]
    assert near["precision"] > far["precision"] and near["recall"] > far["recall"]
    assert compare(normal(300), normal(300, 2, seed=1)) == far  # KID's subsets are always the same


def test_precision_and_recall_are_of_the_two_sides():
    """Copies of a few real images: all of them look right, but they are not all there is."""
    real = normal(200)
    copies = summarize(np.tile(real.features_NF[:5], (40, 1)))
    scores = compare(copies, real)
    assert scores["precision"] == 1.0 and scores["recall"] < 0.2


def test_coverage_counts_who_is_within_reach_of_the_third_neighbour():
    line = torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0]])  # reaches 3, 2, 2, 2, 3
    assert coverage(torch.tensor([[-3.0], [-3.1], [6.9], [7.1]]), line) == 0.5


# ---- features of folders


def test_features_are_computed_once_and_by_several_processes(images, tmp_path, monkeypatch):
    monkeypatch.setattr(distribution, "PIECE", 2)
    files, calls = image_files(images), []
    counted = MEANS._replace(extract=lambda x: calls.append(len(x)) or MEANS.extract(x))
    alone = folder_features(files, counted, tmp_path / "alone")
    assert sum(calls) == 7 == alone.count
    assert np.array_equal(folder_features(files, counted, tmp_path / "alone").features_NF, alone.features_NF)
    assert sum(calls) == 7
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert folder_features(files, counted, tmp_path / "together") is None
    monkeypatch.setenv("RANK", "0")
    together = folder_features(files, counted, tmp_path / "together")
    assert np.array_equal(together.features_NF, alone.features_NF) and sum(calls) == 14
    expected = [squeeze(Image.open(file), 16).mean((1, 2)).numpy() for file in files]
    np.testing.assert_allclose(alone.features_NF, expected, atol=1e-6)


def test_damaged_images_are_left_out_and_named(images, tmp_path):
    files = image_files(images)
    files[2].write_bytes(b"damaged")
    features = folder_features(files, MEANS, tmp_path / "cache")
    assert features.count == 6 and features.damaged == (str(files[2]),)
    for file in files:
        file.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="0 images could be read, 7 are damaged"):
        folder_features(files, MEANS, tmp_path / "cache")
    with pytest.raises(ValueError, match="holds 0 images"):
        image_files(tmp_path / "cache")


def test_saved_statistics_stand_for_the_folder(tmp_path):
    images, reference = normal(50), normal(60, 1, seed=1)
    save_statistics(tmp_path / "saved.npz", reference, MEANS)
    assert compare(images, load_statistics(tmp_path / "saved.npz", MEANS)) == compare(images, reference)
    np.savez(tmp_path / "plain.npz", mu=reference.mean_F, sigma=reference.covariance_FF)
    plain = compare(images, load_statistics(tmp_path / "plain.npz", MEANS))
    assert plain == {"fid": compare(images, reference)["fid"]}


def test_wrong_statistics_are_one_line(tmp_path):
    save_statistics(tmp_path / "saved.npz", normal(5), MEANS)
    with pytest.raises(ValueError, match="has statistics over means, the images' are over other"):
        load_statistics(tmp_path / "saved.npz", MEANS._replace(name="other"))
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    (tmp_path / "text.npz").write_text("mu")
    for name in ("other.npz", "text.npz", "nowhere.npz"):
        with pytest.raises(ValueError, match="cannot read .* as statistics"):
            load_statistics(tmp_path / name, MEANS)
    with pytest.raises(ValueError, match="features of 3 channels, statistics of 4"):
        compare(summarize(np.zeros((5, 3), np.float32)), normal(5))


def _spoiled(**arrays):
    good = {"mu": np.zeros(4), "sigma": np.eye(4), "features": np.ones((5, 4), np.float32)}
    return {name: array for name, array in (good | arrays).items() if array is not None}


SPOILED = {
    "NaN in mu": (_spoiled(mu=np.full(4, np.nan)), "4 of 4 numbers are NaN, infinite or above 1e\\+100"),
    "NaN in sigma": (_spoiled(sigma=np.diag([1, 1, 1, np.nan])), "1 of 16 numbers"),
    "infinity": (_spoiled(sigma=np.full((4, 4), np.inf)), "16 of 16 numbers"),
    "products that are infinite": (_spoiled(sigma=np.eye(4) * 1e300), "4 of 16 numbers"),
    "NaN in features": (_spoiled(features=np.full((5, 4), np.nan, np.float32)), "20 of 20 numbers"),
    "no square": (_spoiled(sigma=np.ones((4, 3))), r"shapes \[4\] and \[4, 3\]"),
    "a row": (_spoiled(mu=np.zeros((1, 4))), r"mu is \[F\]"),
    "other features": (_spoiled(features=np.ones((5, 3))), r"features \[N, F\]"),
    "words": (_spoiled(mu=np.array(list("abcd"))), "cannot read .* as statistics"),
    "objects": (_spoiled(mu=np.array([{}] * 4, dtype=object)), "cannot read .* as statistics"),
    "no sigma": (_spoiled(sigma=None), "it has no sigma"),
}


@pytest.mark.parametrize(("arrays", "told"), SPOILED.values(), ids=SPOILED)
def test_statistics_that_are_no_numbers_are_refused(tmp_path, arrays, told):
    """Eigenvalues of NaN end the process."""
    np.savez(tmp_path / "spoiled.npz", **arrays)
    with pytest.raises(ValueError, match=told):
        load_statistics(tmp_path / "spoiled.npz", MEANS)


def test_files_that_are_no_statistics_are_refused(tmp_path):
    np.savez_compressed(tmp_path / "whole.npz", **_spoiled())
    whole = (tmp_path / "whole.npz").read_bytes()
    np.save(tmp_path / "array.npy", np.zeros(4))
    (tmp_path / "empty.npz").touch()
    (tmp_path / "cut.npz").write_bytes(whole[:-30])
    (tmp_path / "changed.npz").write_bytes(whole[:60] + bytes(40) + whole[100:])
    for name in ("array.npy", "empty.npz", "cut.npz", "changed.npz"):
        with pytest.raises(ValueError, match="cannot read .* as statistics"):
            load_statistics(tmp_path / name, MEANS)


def test_features_that_are_no_numbers_are_refused(images, tmp_path):
    """As of a network with damaged weights."""
    broken = Extractor("broken", 16, "none", lambda pixels_N3HW: pixels_N3HW.mean((2, 3)) * torch.nan)
    with pytest.raises(ValueError, match="the network's features: 21 of 21 numbers are NaN"):
        folder_features(image_files(images), broken, tmp_path / "cache")


def test_a_folder_without_images_says_what_was_looked_for(tmp_path):
    (tmp_path / "a.tiff").touch()
    with pytest.raises(ValueError, match=r"holds 0 images \(.bmp, .jpeg, .jpg, .png, .webp\)"):
        image_files(tmp_path)


# ---- networks


def test_efficientnet_reads_what_its_classifier_reads():
    extractor = efficientnet()
    with torch.inference_mode():
        features_NF = extractor.extract(squeeze(Image.new("RGB", (50, 40), "red"), extractor.size)[None])
    assert features_NF.shape == (1, 1280) and features_NF.std() > 0


def test_another_file_is_not_inception(tmp_path):
    with pytest.raises(ValueError, match="no weights of FID's Inception"):
        inception(tmp_path / "nowhere.pth")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError) as error:
        inception(tmp_path / "other.pth")
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_inception_pools_as_the_network_of_the_published_numbers(tmp_path):
    from torchvision.models import inception_v3

    torch.manual_seed(0)
    random = inception_v3(num_classes=1008, aux_logits=False, init_weights=False)
    weights = {name: tensor for name, tensor in random.state_dict().items() if "num_batches" not in name}
    torch.save(weights, tmp_path / "inception.pth")
    extractor = inception(tmp_path / "inception.pth")
    network = extractor.extract
    with torch.inference_mode():
        assert network(torch.randn(2, 3, 299, 299)).shape == (2, 2048)
        for block, x in ((network.Mixed_5b, torch.randn(1, 192, 5, 5)), (network.Mixed_7b, torch.randn(1, 1280, 3, 3))):
            pooled = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
            expected = block.branch_pool.forward(pooled)  # without the hook
            torch.testing.assert_close(block(x)[:, -expected.shape[1] :], expected)
        x = torch.randn(1, 2048, 3, 3)
        expected = network.Mixed_7c.branch_pool.forward(F.max_pool2d(x, 3, 1, 1))
        torch.testing.assert_close(network.Mixed_7c(x)[:, -192:], expected)


# ---- CLIPScore


def test_prompts_come_from_the_images_or_from_a_file(images, tmp_path):
    inside = read_prompts(images, None)
    assert inside[images / "a" / "0.png"] == "a red bus" and len(inside) == 7
    by_file = [{"file": f"{'ab'[place % 2]}/{place}.png", "prompt": f"prompt {place}"} for place in range(7)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, by_file)))
    (tmp_path / "meta_data.json").write_text(
        json.dumps({str(place): {"prompt": f"prompt {place}"} for place in range(7)})
    )
    expected = {file: f"prompt {file.stem}" for file in image_files(images)}
    assert read_prompts(images, tmp_path / "metadata.jsonl") == expected
    assert read_prompts(images, tmp_path / "meta_data.json") == expected
    Image.new("RGB", (9, 9)).save(images / "z.png")
    for file in (None, tmp_path / "meta_data.json"):
        with pytest.raises(ValueError, match="no prompt for .*z.png"):
            read_prompts(images, file)
    (tmp_path / "meta_data.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no prompts by file or id"):
        read_prompts(images, tmp_path / "meta_data.json")


def test_clip_score_is_the_mean_over_readable_images(images, tmp_path, monkeypatch):
    clip = Clip.from_pretrained(save_clip(tmp_path / "clip"))
    prompts = read_prompts(images, None)
    damaged = images / "b" / "1.png"
    damaged.write_bytes(b"damaged")
    pairs = [(Image.open(file), prompt) for file, prompt in prompts.items() if file != damaged]
    score, names = clip_score(prompts, clip, "tiny", tmp_path / "cache")
    assert score == pytest.approx(np.mean(clip.scores(*zip(*pairs, strict=True))), abs=1e-3)
    assert names == [str(damaged)]
    monkeypatch.setattr(Clip, "scores", None)  # would fail if anything were computed again
    assert clip_score(prompts, clip, "tiny", tmp_path / "cache") == (score, names)
