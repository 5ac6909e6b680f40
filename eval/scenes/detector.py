"""A small detector for the scenes world: which things an image shows, where, how surely, and in which colour.

Shapes: N images, G x G cells (G = image side / 4), C classes, 10 colours. The class logits have one more, the
background. Every cell near the middle of a thing names its class, its four sides and its colour. A score is a
softmax probability, trained with plain cross entropy, so GenEval's thresholds 0.3 and 0.9 mean what they say.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.ops import batched_nms

STRIDE = 4
MIN_SCORE = 0.1  # below GenEval's lower threshold: nothing it would keep is lost
MAX_PEAKS = 100
SAME_THING = 0.5  # overlap (IoU) from which two boxes of a class are the same thing
BATCH = 64
SHIPPED = Path(__file__).resolve().parents[2] / "checkpoints/scenes/detector"


@dataclass
class DetectorConfig:
    """`widths`: channels at strides 2, 4, 8, 16; `depths`: residual blocks at strides 4, 8, 16."""

    classes: tuple[str, ...]
    colors: tuple[str, ...]
    image_size: int = 128
    widths: tuple[int, int, int, int] = (24, 32, 96, 192)
    depths: tuple[int, int, int] = (1, 2, 2)
    neck_width: int = 96

    def __post_init__(self):
        for name in ("classes", "colors", "widths", "depths"):
            setattr(self, name, tuple(getattr(self, name)))

    @property
    def grid(self) -> int:
        return self.image_size // STRIDE


class Prediction(NamedTuple):
    """`sides`: from the middle of the cell to the left, top, right and bottom side of the thing, in cells."""

    class_logits: torch.Tensor  # [N, C + 1, G, G]
    sides: torch.Tensor  # [N, 4, G, G]
    color_logits: torch.Tensor  # [N, 10, G, G]


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.first = conv(width, width)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.norm(self.second(self.first(x))))


class Detector(nn.Module):
    """`detect(images)` is the public call; `forward` gives the maps that training needs."""

    def __init__(self, config: DetectorConfig):
        super().__init__()
        self.config = config
        widths, neck = config.widths, config.neck_width
        self.stem = conv(3, widths[0], 2)
        self.stages = nn.ModuleList(
            nn.Sequential(conv(before, width, 2), *(Block(width) for _ in range(depth)))
            for before, width, depth in zip(widths, widths[1:], config.depths, strict=False)
        )
        self.laterals = nn.ModuleList(nn.Conv2d(width, neck, 1) for width in widths[1:])
        self.neck = conv(neck, neck)
        self.class_head = nn.Conv2d(neck, len(config.classes) + 1, 1)
        self.sides_head = nn.Conv2d(neck, 4, 1)
        self.color_head = nn.Conv2d(neck, len(config.colors), 1)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.config.classes

    def forward(self, pixels_N3HW: torch.Tensor) -> Prediction:
        """pixels in [-1, 1]."""
        x = self.stem(pixels_N3HW)
        maps = []
        for stage, lateral in zip(self.stages, self.laterals, strict=True):
            x = stage(x)
            maps.append(lateral(x))
        y = maps.pop()
        while maps:
            y = F.interpolate(y, scale_factor=2.0) + maps.pop()
        y = self.neck(y)
        return Prediction(self.class_head(y), F.softplus(self.sides_head(y).float()), self.color_head(y))

    @torch.inference_mode()
    def detect(self, images: Sequence[Image.Image]) -> list[list[dict]]:
        """Per image, surest first: {"cls", "box": [x1, y1, x2, y2] in its pixels, "score", "color"}.

        `color` is always one of the ten: the likeliest, also for a thing in its natural colours.
        """
        found = []
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            prediction = self(to_pixels(batch, self.config.image_size).to(self.class_head.weight.device))
            found += [self._things(*maps, image.size) for *maps, image in zip(*prediction, batch, strict=True)]
        return found

    def _things(self, class_logits, sides, color_logits, size: tuple[int, int]) -> list[dict]:
        """One image's maps -> its things."""
        scores, classes = class_logits.softmax(0)[:-1].max(0)
        peaks = (scores == F.max_pool2d(scores[None], 3, 1, 1)[0]) & (scores > MIN_SCORE)
        rows, columns = peaks.nonzero(as_tuple=True)
        order = scores[rows, columns].argsort(descending=True)[:MAX_PEAKS]
        rows, columns = rows[order], columns[order]
        left, top, right, bottom = sides[:, rows, columns]
        x, y = columns + 0.5, rows + 0.5
        scale_x, scale_y = (side / self.config.grid for side in size)
        boxes = torch.stack(
            ((x - left) * scale_x, (y - top) * scale_y, (x + right) * scale_x, (y + bottom) * scale_y), 1
        )
        kept = batched_nms(boxes, scores[rows, columns], classes[rows, columns], SAME_THING)
        colors = color_logits[:, rows, columns].argmax(0)
        return [
            {
                "cls": self.config.classes[classes[rows[i], columns[i]]],
                "box": [round(v, 2) for v in boxes[i].tolist()],
                "score": scores[rows[i], columns[i]].item(),
                "color": self.config.colors[colors[i]],
            }
            for i in kept.tolist()
        ]

    def save_pretrained(self, folder: str | Path, training: dict | None = None) -> None:
        """config.json (with how it was trained, if told) and model.safetensors."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            name: value.half() if value.is_floating_point() else value for name, value in self.state_dict().items()
        }
        save_file({name: value.contiguous() for name, value in state.items()}, folder / "model.safetensors")
        config = {**asdict(self.config), "training": training or {}}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Detector":
        """Ready to detect, in float32. A folder that holds no detector: ValueError."""
        folder = Path(folder)
        missing = [name for name in ("config.json", "model.safetensors") if not (folder / name).is_file()]
        if missing:
            raise ValueError(
                f"no detector in {folder} ({' and '.join(missing)} missing): "
                f"train one with python -m scripts.train_detector --out {folder}"
            )
        try:
            config = json.loads((folder / "config.json").read_text())
            config.pop("training", None)
            model = cls(DetectorConfig(**config))
            model.load_state_dict(load_file(folder / "model.safetensors"))
        except (TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"{folder} holds no detector of this kind: {str(error).splitlines()[0]}") from error
        return model.eval()


def to_pixels(images: Sequence[Image.Image], size: int) -> torch.Tensor:
    """PIL images of any size, squeezed to size x size -> pixels_N3HW in [-1, 1]."""
    squares = [image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC) for image in images]
    values = torch.stack([torch.frombuffer(bytearray(s.tobytes()), dtype=torch.uint8) for s in squares])
    return values.view(-1, size, size, 3).permute(0, 3, 1, 2).float().div(127.5).sub(1.0)
