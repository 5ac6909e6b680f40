"""The detectors that judge drawings, by name, each with what names it in a results file."""

from typing import Any

from tokenizer.weights import weights_hash

from ..images import clip
from ..scenes.detector import SHIPPED, Detector
from .hf_detector import DEFAULT, HfDetector


def load_detector(kind: str, weights: str | None, clip_name: str | None) -> tuple[Any, dict[str, str]]:
    """`kind` is "scenes" or "mask2former"; what is None is the usual one. -> the detector, which has `detect(images)`
    and `classes`, and its names and hashes. Raises ValueError for what cannot be loaded."""
    if kind == "scenes":
        scenes = Detector.from_pretrained(weights or SHIPPED)
        return scenes, {"detector": "scenes", "detector_hash": weights_hash(scenes)}
    names = {"weights": weights or DEFAULT, "clip": clip_name or clip.DEFAULT}
    colors = clip.Clip.from_pretrained(names["clip"])
    hf = HfDetector.from_pretrained(names["weights"], colors)
    hashes = {"detector_hash": weights_hash(hf.model), "clip_hash": weights_hash(colors.model)}
    return hf, {"detector": "HF detector", **names, **hashes}
