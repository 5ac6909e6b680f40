"""A folder of images against another, or against saved statistics, and against the prompts it was drawn from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizer.weights import weights_hash

from ..pieces import finish, origin
from . import distribution
from .clip import Clip


@dataclass(frozen=True)
class Wanted:
    """`images` is compared with `reference`, a folder or an .npz file, by EfficientNet-Lite0 or the weights in the file
    `inception`. `save_statistics` names an .npz file to write. `clip`, a folder or hub id, asks for CLIPScore, with the
    file `prompts` where the images do not hold theirs. Pieces of the work lie in `out`."""

    images: Path
    reference: Path | None
    inception: Path | None
    save_statistics: Path | None
    clip: str | None
    prompts: Path | None
    out: Path


def measure_folder(wanted: Wanted) -> dict[str, Any] | None:
    """As `measure`; the process that ends last has the result."""
    return finish(lambda: measure(wanted))


def measure(wanted: Wanted) -> dict[str, Any] | None:
    """Everything asked for, for a results file; None while other processes are still at work. Raises ValueError for
    files and folders that cannot be read."""
    result = origin(wanted.images) or origin(wanted.images.parent) or {"settings": {}}
    result = {**result, "settings": {**result["settings"], "images": str(wanted.images)}, "scores": {}, "damaged": []}
    parts = [add_distances] if wanted.reference or wanted.save_statistics else []
    parts += [add_clip_score] if wanted.clip else []
    done = [part(wanted, wanted.out / "pieces", result) for part in parts]  # this process's share of all, first
    return result if all(done) else None


def add_distances(wanted: Wanted, cache: Path, result: dict[str, Any]) -> bool:
    """Into `result`; False while other processes are still at work."""
    extractor = distribution.inception(wanted.inception) if wanted.inception else distribution.efficientnet()
    images = distribution.folder_features(distribution.image_files(wanted.images), extractor, cache)
    reference = None
    if wanted.reference and wanted.reference.is_file():
        reference = distribution.load_statistics(wanted.reference, extractor)
    elif wanted.reference:
        reference = distribution.folder_features(distribution.image_files(wanted.reference), extractor, cache)
    if images is None or (wanted.reference and reference is None):
        return False
    network = {"features": extractor.name, "weights_hash": extractor.weights_hash, "resized_to": extractor.size}
    result["settings"] |= network
    result["images"], result["damaged"] = images.count, [*images.damaged]
    if wanted.save_statistics:
        distribution.save_statistics(wanted.save_statistics, images, extractor)
    if reference:
        result["settings"]["reference"] = str(wanted.reference)
        result["reference_images"] = reference.count
        result["damaged"] += reference.damaged
        result["scores"][extractor.name] = distribution.compare(images, reference)
    return True


def add_clip_score(wanted: Wanted, cache: Path, result: dict[str, Any]) -> bool:
    """Into `result`; False while other processes are still at work."""
    prompts, clip = distribution.read_prompts(wanted.images, wanted.prompts), Clip.from_pretrained(wanted.clip)
    result["settings"] |= {"clip": wanted.clip, "clip_hash": weights_hash(clip.model)}
    found = distribution.clip_score(prompts, clip, result["settings"]["clip_hash"], cache)
    if found is None:
        return False
    result["scores"]["clip_score"], damaged = found
    result["damaged"] += [file for file in damaged if file not in result["damaged"]]
    return True
