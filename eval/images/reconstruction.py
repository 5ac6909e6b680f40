"""What an image tokenizer keeps of images: rFID, PSNR, SSIM, ST-LPIPS, LPIPS, and how much of its codebooks it uses;
and how well it stands codes that are not all right: pFID, the rFID of what perturbed codes become (RobustTok, arXiv
2503.08354).

Shapes: N images, L positions, K sub-codebooks. Both sides of a comparison are 8-bit images, as a viewer sees them.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from data_recipes.images import ImageSource
from tokenizer import ImageTokenizer
from tokenizer.perceptual import LPIPS
from tokenizer.quantizers import code_use, count_codes
from tokenizer.transform import to_images, to_pixels
from tokenizer.weights import weights_hash

from ..pieces import device, work
from .distribution import Extractor, fid, squeeze, summarize
from .image_pieces import Arrays, Images, Result, Task, gather, image_jobs
from .similarity import METRICS
from .st_lpips import Distance

FEATURES = ("original", "decoded", "perturbed")  # arrays of an image, the last one only for pFID
NEAREST = 8  # entries, one of which takes the place of a perturbed code


class Judges(NamedTuple):
    """The features of rFID, and metrics of an original and what is decoded, by name; the hash of LPIPS's file, if it is
    one of them."""

    extractor: Extractor
    metrics: Mapping[str, Distance]
    lpips_hash: str = ""


def load_judges(extractor: Extractor, lpips_file: Path | None) -> Judges:
    """All of METRICS, and LPIPS where its file is given. Raises ValueError for a file that is no LPIPS, and without the
    package that a metric needs."""
    metrics = {name: load() for name, load in METRICS.items()}
    if lpips_file is None:
        return Judges(extractor, metrics)
    metrics["lpips_vgg"] = partial(_lpips, LPIPS(lpips_file).to(device()))
    return Judges(extractor, metrics, hashlib.sha256(lpips_file.read_bytes()).hexdigest()[:12])


def evaluate_reconstruction(
    image_tokenizer: ImageTokenizer, images: Images, judges: Judges, folder: Path, perturbed: float = 0.0
) -> Result | None:
    """With pFID, where a share of the codes is to be `perturbed`. Files in `folder` let a second run go on, and
    processes share the work. None while other processes are at theirs. Raises ValueError when too many images are
    damaged."""
    model_hash = weights_hash(image_tokenizer)
    jobs = image_jobs(_task(image_tokenizer, model_hash, images.source, judges, perturbed), images)
    files = work(folder, list(jobs), lambda name: jobs[name](), "reconstructing")
    if files is None:
        return None
    rows, left_out = gather(files, images.max_bad)
    original, *others = (summarize(rows.pop(name), tuple(left_out)) for name in FEATURES if name in rows)
    codes_NLK = torch.from_numpy(rows.pop("codes"))
    each = code_use(count_codes(codes_NLK, image_tokenizer.config.codebook_size))
    use = {name: {"mean": fmean(of), **{str(k): value for k, value in enumerate(of)}} for name, of in each.items()}
    names = [f"{name}_{judges.extractor.name.replace('-', '_')}" for name in ("rfid", "pfid")]
    fids = {name: fid(other, original) for name, other in zip(names, others, strict=False)}
    means = {name: float(values_N.mean(dtype=np.float64)) for name, values_N in rows.items()}
    return Result({**fids, **means, **use}, original.count, left_out, model_hash)


def _task(
    image_tokenizer: ImageTokenizer, model_hash: str, source: ImageSource, judges: Judges, perturbed: float
) -> Task:
    config, extractor = image_tokenizer.config, judges.extractor
    networks = [model_hash, extractor.name, extractor.weights_hash, judges.lpips_hash, *judges.metrics]

    def read(number: int) -> torch.Tensor:
        return to_pixels(source[number].image, config.image_size, config.resize_ratio, config.interpolation)

    def compute(pixels: list[torch.Tensor]) -> Arrays:
        return reconstruct_and_compare(image_tokenizer, torch.stack(pixels), judges, perturb)

    perturb = Perturbation(image_tokenizer, perturbed) if perturbed else None
    return Task(["reconstruction", networks, config.to_dict(), perturbed], read, compute)


class Perturbation:
    """codes_NLK -> codes_NLK, each exchanged with the probability `share` for one of the nearest other entries. Draws
    depend on the codes of an image alone, not on the batch around it."""

    def __init__(self, image_tokenizer: ImageTokenizer, share: float):
        self.quantizer, self.share = image_tokenizer.quantizer, torch.tensor([share], device=image_tokenizer.device)
        self.near_KVn = self.quantizer.neighbours(min(NEAREST, self.quantizer.codebook_size - 1))
        self.generator = torch.Generator(image_tokenizer.device)

    def __call__(self, codes_NLK: torch.Tensor) -> torch.Tensor:
        return torch.cat([self._one(codes_1LK) for codes_1LK in codes_NLK.split(1)])

    def _one(self, codes_1LK: torch.Tensor) -> torch.Tensor:
        self.generator.manual_seed(int(codes_1LK.sum()))
        return self.quantizer.perturb(codes_1LK, self.share, self.near_KVn, self.generator)


@torch.inference_mode()
def reconstruct_and_compare(
    image_tokenizer: ImageTokenizer, pixels_N3HW: torch.Tensor, judges: Judges, perturb: Perturbation | None = None
) -> Arrays:
    """-> for each image its codes, the features of the original, of what is decoded and of what perturbed codes become,
    and the metrics of the first two."""
    codes_NLK = image_tokenizer.encode(pixels_N3HW)
    originals, decoded = to_images(pixels_N3HW), image_tokenizer.decode(codes_NLK)
    pairs = list(zip(originals, decoded, strict=True))
    more = {}
    if perturb:
        more["perturbed"] = _features(judges.extractor, image_tokenizer.decode(perturb(codes_NLK)))
    return {
        **more,
        "codes": codes_NLK.to("cpu", torch.int32).numpy(),
        "original": _features(judges.extractor, originals),
        "decoded": _features(judges.extractor, decoded),
        **{name: np.array([metric(*pair) for pair in pairs]) for name, metric in judges.metrics.items()},
    }


def _features(extractor: Extractor, images: Sequence[Image.Image]) -> np.ndarray:
    pixels_N3HW = torch.stack([squeeze(image, extractor.size) for image in images])
    return extractor.extract(pixels_N3HW.to(device())).cpu().numpy()


def _lpips(lpips: LPIPS, original: Image.Image, decoded: Image.Image) -> float:
    target_3HW, pixels_3HW = (to_pixels(image, image.width).to(device()) for image in (original, decoded))
    return lpips(pixels_3HW[None], target_3HW[None]).item()
