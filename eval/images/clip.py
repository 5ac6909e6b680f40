"""CLIP (arXiv 2103.00020) from transformers: unit-length features, CLIPScore, and colours as GenEval names them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from data_recipes.scenes.world import COLORS
from mllm.folders import loading

from ..pieces import device

DEFAULT = "openai/clip-vit-large-patch14"
COLOR_PROMPTS = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")


class Clip:
    """Shapes: N images or texts, E channels."""

    def __init__(self, model: Any, processor: Any):
        self.model, self.processor = model.eval(), processor
        self._colors: dict[str, torch.Tensor] = {}  # of a class: the features of its ten descriptions

    @classmethod
    def from_pretrained(cls, name: str | Path = DEFAULT) -> "Clip":
        """A folder or a hub id, on the GPU if there is one. Raises ValueError, in one line."""
        from transformers import CLIPModel, CLIPProcessor

        with loading(name):
            model, processor = CLIPModel.from_pretrained(name), CLIPProcessor.from_pretrained(name)
        return cls(model.to(device()), processor)

    @torch.inference_mode()
    def image_features(self, images: Sequence[Image.Image]) -> torch.Tensor:
        inputs = self.processor(images=list(images), return_tensors="pt").to(self.model.device)
        return F.normalize(self.model.get_image_features(**inputs).pooler_output, dim=-1)

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        """What is longer than the model reads is cut, what is no Unicode becomes "?"."""
        texts = [text.encode(errors="replace").decode() for text in texts]
        inputs = self.processor(text=texts, return_tensors="pt", padding=True, truncation=True)
        return F.normalize(self.model.get_text_features(**inputs.to(self.model.device)).pooler_output, dim=-1)

    def scores(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[float]:
        """CLIPScore (arXiv 2104.08718) of each pair: 100 times the cosine, 0 where it is negative."""
        cosines_N = (self.image_features(images) * self.text_features(texts)).sum(-1)
        return (100 * cosines_N).clamp(min=0).tolist()

    def color(self, crop: Image.Image, name: str) -> str:
        """The likeliest of GenEval's ten for a thing of class `name`."""
        if name not in self._colors:
            texts = [prompt.format(color=color, name=name) for color in COLORS for prompt in COLOR_PROMPTS]
            features = self.text_features(texts).unflatten(0, (len(COLORS), len(COLOR_PROMPTS)))
            self._colors[name] = F.normalize(features.mean(1), dim=-1)
        best = (self.image_features([crop]) @ self._colors[name].T).argmax()
        return list(COLORS)[best]
