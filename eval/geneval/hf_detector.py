"""GenEval's detector and colour classifier on transformers alone: Mask2Former (arXiv 2112.01527) and CLIP.

The original runs OpenMMLab's training of the same network, which is calibrated a little differently: scores of this
one are those of the "HF detector". Numerics follow mmdet 2.x, whose post-processing transformers' own does not equal
(that rounds scores, and cuts masks at 384 pixels). Of images that are not square, transformers stretches a side to a
multiple of 32 where mmdet pads it. Shapes: Q queries, C classes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from data_recipes.scenes.world import GENEVAL
from mllm.folders import loading

from ..images.clip import Clip
from ..pieces import device
from .rules import THRESHOLD

DEFAULT = "facebook/mask2former-swin-small-coco-instance"
MAX_THINGS = 100
GREY = "#999"  # stands for what is not the thing when its colour is classified


class Thing(dict):
    """A detection: "cls", "box", "score". Its "color" is classified when it is first asked for: GenEval asks for few,
    and the classifier is the larger network."""

    def __init__(self, image: Image.Image, mask_HW: torch.Tensor, clip: Clip, **known: Any):
        super().__init__(known)
        self._image, self._mask_HW, self._clip = image, mask_HW, clip

    def __missing__(self, key: str) -> str:
        if key != "color":
            raise KeyError(key)
        mask = Image.fromarray(self._mask_HW.numpy())
        crop = Image.composite(self._image, Image.new("RGB", self._image.size, GREY), mask).crop(self["box"])
        self["color"] = self._clip.color(crop, self["cls"])
        return self["color"]


class HfDetector:
    """`classes` are GenEval's names in the order of COCO. The hub's names differ, so a class is known by its place."""

    def __init__(self, model: Any, processor: Any, clip: Clip):
        self.model, self.processor, self.clip = model.eval(), processor, clip
        self.classes = (GENEVAL.parent / "object_names.txt").read_text().splitlines()
        if model.config.num_labels != len(self.classes):
            raise ValueError(f"the detector has {model.config.num_labels} classes, GenEval has {len(self.classes)}")

    @classmethod
    def from_pretrained(cls, weights: str | Path = DEFAULT, clip: Clip | None = None) -> "HfDetector":
        """A folder or a hub id, on the GPU if there is one. Raises ValueError, in one line."""
        from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

        with loading(weights):
            model = Mask2FormerForUniversalSegmentation.from_pretrained(weights)
            processor = AutoImageProcessor.from_pretrained(weights)
        return cls(model.to(device()), processor, clip or Clip.from_pretrained())

    @torch.inference_mode()
    def detect(self, images: Sequence[Image.Image]) -> list[list[dict]]:
        """Per image, surest first, what GenEval could count: scores above 0.3."""
        return [self._detect(image) for image in images]

    def _detect(self, image: Image.Image) -> list[dict]:
        inputs = self.processor(images=image, return_tensors="pt").to(self.model.device)
        output = self.model(**inputs)
        masks = F.interpolate(output.masks_queries_logits.float(), inputs["pixel_values"].shape[-2:], mode="bilinear")
        masks = F.interpolate(masks, (image.height, image.width), mode="bilinear")
        found = instances(output.class_queries_logits[0].float(), masks[0])
        return [
            Thing(image, mask_HW.cpu(), self.clip, cls=self.classes[place], box=box, score=score)
            for place, box, score, mask_HW in found
        ]


def instances(class_logits_QC: torch.Tensor, masks_QHW: torch.Tensor) -> list[tuple[int, list, float, torch.Tensor]]:
    """(class, box, score, mask), highest score first. The last class is "no object".

    A score is the class's probability times the mean probability of the mask within the mask.
    """
    scores_QC = class_logits_QC.softmax(-1)[:, :-1]
    scores, places = scores_QC.flatten().topk(min(MAX_THINGS, scores_QC.numel()))
    found = []
    for score, place in zip(scores.tolist(), places.tolist(), strict=True):
        logits_HW = masks_QHW[place // scores_QC.shape[1]]
        mask_HW = logits_HW > 0
        if score > THRESHOLD and mask_HW.any():  # the mask can only lower the score
            score *= logits_HW[mask_HW].sigmoid().mean().item()
            rows, columns = mask_HW.any(1).nonzero(), mask_HW.any(0).nonzero()
            box = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
            found.append((place % scores_QC.shape[1], box, score, mask_HW))
    return sorted((one for one in found if one[2] > THRESHOLD), key=lambda one: -one[2])
