"""How an id is chosen, and how an image is drawn: options with their defaults, limits, and words for a command line.

A new sampler option is a line here, and what it does to logits in sampling.py. This module imports nothing but the
standard library: commands read it before they import torch.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Any

CODE_CONTEXTS = ("exact", "published")


def option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How an id is chosen. `temperature` 0 takes the most likely id; `top_k` keeps so many of the most likely ids (0:
    all); `top_p` keeps the fewest ids that hold this probability (nucleus sampling, arXiv 1904.09751). Raises
    ValueError, naming the option, its value and what it may be."""

    temperature: float = option(0.0, "0: the most likely")
    top_k: int = option(0, "draw from the k likeliest; 0: from all")
    top_p: float = option(1.0, "draw from this much probability")

    def __post_init__(self):
        # `not x >= 0` is true of NaN, too.
        if not 0 <= self.temperature < math.inf or 0 < self.temperature < 1e-3:
            raise ValueError(
                f"temperature {self.temperature} is neither 0 (greedy) nor at least 0.001; 1 is the model's own"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k {self.top_k} is negative; 0 keeps all entries")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p} is outside (0, 1]; 1 keeps all entries")

    @property
    def sampling(self) -> "Sampling":
        """These options alone, also when `self` is of a subclass."""
        return Sampling(**{one.name: getattr(self, one.name) for one in fields(Sampling)})


@dataclass(frozen=True, kw_only=True)
class DrawingOptions(Sampling):
    """How an image is drawn. The defaults of guidance and temperature are the best of a search with `scenes`.

    `cfg_scale` is classifier-free guidance (arXiv 2207.12598; 1: none), applied in the part `cfg_interval` of the
    image, from 0 to 1 (arXiv 2404.07724); outside, it costs nothing. Of so many `candidates`, the first of which is the
    image without any others, the model keeps the one that fits the prompt best (`rerank.fit`). `steps` are those of
    the backbone for an image, for an order that can do with more or fewer (`Order.steps_in`; 0: its own choice).
    `code_context` "exact" embeds a position in the context of the earlier ones, as in training; "published" embeds it
    alone, as UniTok's released generation does, which makes a difference where the embedding attends
    (`CodebookEmbedding`).
    """

    temperature: float = option(0.5, "0: the most likely")
    cfg_scale: float = option(2.0, "guidance; 1 is none")
    cfg_interval: tuple[float, float] = option((0.0, 1.0), "part of an image with guidance")
    candidates: int = option(1, "for an image; the model keeps its favourite")
    steps: int = option(0, "of the backbone for an image, where its order can do with more or fewer; 0: as it is best")
    code_context: str = option("exact", "exact, or published: as UniTok's released loop")

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "cfg_interval", tuple(self.cfg_interval))  # a list, from JSON or a command line
        first, end = self.cfg_interval
        if not 1 <= self.cfg_scale < math.inf:
            raise ValueError(f"cfg_scale {self.cfg_scale} is below 1 or no number; 1 is no guidance")
        if not 0 <= first < end <= 1:
            raise ValueError(f"cfg_interval {first} to {end} is no part of an image: 0 to 1 is all")
        if self.candidates < 1:
            raise ValueError(f"candidates {self.candidates} is below 1, the drawing that is kept")
        if self.candidates > 1 and self.temperature == 0:
            raise ValueError(
                f"candidates {self.candidates} at temperature 0 would all be the same: take a temperature above 0"
            )
        if self.steps < 0:
            raise ValueError(f"steps {self.steps} is negative; 0 leaves the choice to the order of drawing")
        if self.code_context not in CODE_CONTEXTS:
            raise ValueError(f"unknown code_context {self.code_context!r}; known: {', '.join(CODE_CONTEXTS)}")
        if self.code_context == "published" and first > 0:
            raise ValueError("code_context 'published' needs guidance from the first position: cfg_interval from 0")

    @property
    def cfg_scales(self) -> tuple[float, ...]:
        """Scales of guidance, one for each more row that it takes: () for none."""
        return (self.cfg_scale,) if self.cfg_scale != 1.0 else ()

    def cfg_scales_at(self, position: int, positions: int) -> tuple[float, ...]:
        """`cfg_scales` at a position (from 0) of an image of `positions`."""
        first, end = (round(positions * part) for part in self.cfg_interval)
        return self.cfg_scales if first <= position < end else ()


@dataclass(frozen=True, kw_only=True)
class EditingOptions(DrawingOptions):
    """How an image is edited. Guidance over both conditions (InstructPix2Pix, arXiv 2211.09800, equation 3), of logits:
    u + image_cfg_scale * (i - u) + cfg_scale * (c - i), where c has read picture and prompt, i the picture alone, and u
    neither.

    `image_cfg_scale` 1 is ordinary guidance over the prompt, i + cfg_scale * (c - i), and equal to `cfg_scale` it is
    ordinary guidance over both at once, u + cfg_scale * (c - u): these take one row less. The larger it is, the more is
    kept of the picture."""

    image_cfg_scale: float = option(1.5, "guidance over the picture; 1: over the prompt alone")

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.image_cfg_scale < math.inf:
            raise ValueError(f"image_cfg_scale {self.image_cfg_scale} is below 1 or no number; 1 is no guidance")
        if self.cfg_interval[0] > 0:
            raise ValueError(f"cfg_interval of an edit begins at 0, not at {self.cfg_interval[0]}")

    @property
    def cfg_scales(self) -> tuple[float, ...]:
        if self.image_cfg_scale in (1.0, self.cfg_scale):
            return super().cfg_scales
        return self.cfg_scale, self.image_cfg_scale
