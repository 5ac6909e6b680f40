"""Training of the detector that judges drawn scenes.

The detector is a measuring instrument, so unlike the models it measures it learns every combination: half of
its scenes come from split "train", half from "held_out". Its images are spoiled at random (blur, noise, JPEG,
light), because it has to read images that come out of a small image tokenizer.
"""

import json
import math
import random
import time
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageFilter
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, Dataset

from data_recipes.files import whole
from data_recipes.scenes.world import CLASSES, COLORS, GENEVAL, SPLITS, Scene, World, expressible
from training.run.folder import locked
from training.run.metrics import StopSignal, ignore_stop_signals

from ..geneval.rules import judge_images, load_records, summary
from .detector import Detector, DetectorConfig, Prediction

BATCH = 32
LEARNING_RATE, WARMUP, WEIGHT_DECAY = 2e-3, 100, 0.02
CLASS_RADIUS = 1.0  # cells; this near to its middle a cell names the thing
SHAPE_RADIUS = 2.0  # cells; up to here it knows sides and colour, and is neither thing nor background
SKIP = -1  # a cell that a loss leaves out
SIDES_WEIGHT, COLOR_WEIGHT = 0.5, 0.5
LOG_EVERY, SAVE_EVERY = 50, 250
CHECKPOINT = "training.pt"


# ---- data


class Targets(NamedTuple):
    """What every cell should say; the layouts follow `Prediction`."""

    classes: torch.Tensor  # [G, G], C for background, SKIP
    sides: torch.Tensor  # [4, G, G]
    colors: torch.Tensor  # [G, G], SKIP for natural colours
    near: torch.Tensor  # [G, G], whether the cell is within SHAPE_RADIUS of a thing


def targets(scene: Scene, grid: int) -> Targets:
    """Cells belong to the thing whose middle is nearest."""
    boxes = np.array([thing.box for thing in scene.things], dtype=np.float32) * (grid / scene.size)
    names = np.array([CLASSES.index(thing.name) for thing in scene.things])
    colors = np.array([list(COLORS).index(thing.color) if thing.color else SKIP for thing in scene.things])
    y, x = np.mgrid[:grid, :grid].astype(np.float32) + 0.5
    x_middles, y_middles = ((boxes[:, i] + boxes[:, i + 2])[:, None, None] / 2 for i in (0, 1))
    distances = np.hypot(x - x_middles, y - y_middles)
    owner, distance = distances.argmin(0), distances.min(0)
    near = distance <= SHAPE_RADIUS
    classes = np.where(distance <= CLASS_RADIUS, names[owner], np.where(near, SKIP, len(CLASSES)))
    left, top, right, bottom = boxes[owner].transpose(2, 0, 1)
    sides = np.stack((x - left, y - top, right - x, bottom - y))
    return Targets(*map(torch.from_numpy, (classes, sides, np.where(near, colors[owner], SKIP), near)))


def spoil(image: Image.Image, rng: random.Random) -> Image.Image:
    """Each fault now and then, so that about one image in ten stays clean."""
    size = image.size
    if rng.random() < 0.4:
        side = rng.randint(48, 112)
        image = image.resize((side, side), rng.choice((Image.Resampling.BILINEAR, Image.Resampling.LANCZOS)))
        image = image.resize(size, Image.Resampling.BICUBIC)
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.3)))
    if rng.random() < 0.4:
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = enhance(image).enhance(rng.uniform(0.9, 1.1))
    if rng.random() < 0.5:
        image = add_noise(image, rng)
    if rng.random() < 0.4:
        stream = BytesIO()
        image.save(stream, "JPEG", quality=rng.randint(15, 80))
        image = Image.open(stream).convert("RGB")
    return image


def add_noise(image: Image.Image, rng: random.Random) -> Image.Image:
    """Noise in blotches of 1 to 8 pixels, like a tokenizer's mistakes."""
    blotch = rng.choice((1, 2, 4, 8))
    width, height = image.size[0] // blotch, image.size[1] // blotch
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(2, 14), (height, width, 3))
    noise = Image.fromarray((noise + 128).clip(0, 255).astype(np.uint8)).resize(image.size, Image.Resampling.BICUBIC)
    values = np.asarray(image).astype(np.int16) + np.asarray(noise) - 128
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


class SpoiledScenes(Dataset):
    """Scene `index` of this seed, spoiled, with its targets."""

    def __init__(self, seed: int, length: int, grid: int):
        self.world, self.seed, self.length, self.grid = World(), seed, length, grid

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Targets]:
        number = self.seed * 1_000_000_000 + index
        scene = self.world.scene(number, SPLITS[index % 2])
        image = spoil(self.world.render(scene), random.Random(number))
        return torch.from_numpy(np.array(image)), targets(scene, self.grid)


def batches(seed: int, first_step: int, steps: int, grid: int) -> DataLoader:
    """The batches from `first_step` on; a resumed run sees the ones it would have seen."""
    data = SpoiledScenes(seed, steps * BATCH, grid)
    ahead = range(first_step * BATCH, steps * BATCH)
    return DataLoader(data, BATCH, sampler=ahead, num_workers=1, prefetch_factor=4, worker_init_fn=prepare_worker)


def prepare_worker(worker: int) -> None:
    ignore_stop_signals(worker)
    torch.set_num_threads(1)


# ---- training


def losses(prediction: Prediction, goal: Targets) -> dict[str, torch.Tensor]:
    """Summed over cells, divided by the cells that name a thing, so that crowded images count more."""
    things = ((goal.classes != SKIP) & (goal.classes < len(CLASSES))).sum()
    near = goal.near.sum()
    named = F.cross_entropy(prediction.class_logits.float(), goal.classes, ignore_index=SKIP, reduction="sum")
    off = F.smooth_l1_loss(prediction.sides, goal.sides, reduction="none", beta=0.5).mean(1)
    color = F.cross_entropy(prediction.color_logits.float(), goal.colors, ignore_index=SKIP, reduction="sum")
    return {
        "class": named / things,
        "sides": SIDES_WEIGHT * (off * goal.near).sum() / near,
        "color": COLOR_WEIGHT * color / (goal.colors != SKIP).sum().clamp(min=1),
    }


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine to zero."""
    warmup = min(1.0, (step + 1) / WARMUP)
    return LEARNING_RATE * warmup * 0.5 * (1 + math.cos(math.pi * step / steps))


def train_step(
    model: Detector, optimizer: torch.optim.Optimizer, images: torch.Tensor, goal: Targets
) -> dict[str, float]:
    """One update from images [N, H, W, 3] uint8."""
    pixels = images.permute(0, 3, 1, 2).float().div(127.5).sub(1.0)  # a permuted view is channels_last already
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prediction = model(pixels)
    parts = losses(prediction, goal)
    optimizer.zero_grad()
    sum(parts.values()).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
    optimizer.step()
    return {name: value.item() for name, value in parts.items()}


def new_detector(seed: int) -> tuple[Detector, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = Detector(DetectorConfig(CLASSES, tuple(COLORS))).to(memory_format=torch.channels_last)
    with torch.no_grad():
        model.class_head.bias[-1] = 9.0  # nearly every cell is background: start from there
    return model, torch.optim.AdamW(model.parameters(), weight_decay=WEIGHT_DECAY)


def resume(path: Path, recipe: dict, model: Detector, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """-> steps done and the seconds they took; (0, 0) when there is no checkpoint."""
    if not path.is_file():
        return 0, 0.0
    try:
        state = torch.load(path, weights_only=True)
    except Exception as error:  # damaged bytes raise whatever they lead to
        raise ValueError(f"cannot read {path}: it is damaged; remove it to begin anew") from error
    if state["recipe"] != recipe:
        raise ValueError(
            f"{path} belongs to another run ({state['recipe']}, not {recipe}): finish that one or remove the file"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["seconds"]


def train(out: Path, recipe: dict) -> tuple[Detector, float]:
    """The trained detector and the seconds that all its steps took."""
    steps, seed = recipe["steps"], recipe["seed"]
    model, optimizer = new_detector(seed)
    first, spent = resume(out / CHECKPOINT, recipe, model, optimizer)
    start = time.monotonic() - spent
    model.train()
    columns = (
        TextColumn("detector"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[losses]}"),
    )
    with (
        open(out / "log.jsonl", "a" if first else "w", encoding="utf-8") as log,
        Progress(*columns) as progress,
        StopSignal() as stop,
    ):
        task = progress.add_task("", total=steps, completed=first, losses="")
        for step, (images, goal) in enumerate(batches(seed, first, steps, model.config.grid), first + 1):
            rate = learning_rate(step - 1, steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            parts = train_step(model, optimizer, images, goal)
            progress.update(task, completed=step, losses=" ".join(f"{n} {v:.3f}" for n, v in parts.items()))
            if step % LOG_EVERY == 0:
                row = {"step": step, "learning_rate": rate, **parts, "seconds": time.monotonic() - start}
                print(json.dumps(row), file=log, flush=True)
            if stop or step % SAVE_EVERY == 0:
                state = {"recipe": recipe, "step": step, "seconds": time.monotonic() - start}
                state |= {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                with whole(out / CHECKPOINT) as part:
                    torch.save(state, part)
            if stop:
                raise KeyboardInterrupt
    return model.eval(), time.monotonic() - start


# ---- score


def soften(image: Image.Image) -> Image.Image:
    """A fixed fault of about the size of a small tokenizer's: 30 dB."""
    stream = BytesIO()
    image.resize((80, 80), Image.Resampling.LANCZOS).resize(image.size, Image.Resampling.BICUBIC).save(
        stream, "JPEG", quality=40
    )
    return Image.open(stream).convert("RGB")


def score(detector: Detector, samples: int = 2) -> dict[str, dict[str, float]]:
    """GenEval's score on true renders of every record the world can show, as they are and softened."""
    world = World()
    records = [record for record in load_records(GENEVAL) if expressible(record)]
    pairs = [(record, world.render(world.scene_of(record, seed))) for record in records for seed in range(samples)]
    records, images = map(list, zip(*pairs, strict=True))
    return {
        "clean": summary(judge_images(detector, records, images)),
        "softened": summary(judge_images(detector, records, [soften(image) for image in images])),
    }


def train_detector(out: Path, steps: int, seed: int) -> dict[str, dict[str, float]]:
    """Weights, config.json and log.jsonl into `out`, going on from the checkpoint that is there. -> GenEval's scores on
    true scenes. Raises ValueError for a checkpoint of another run."""
    recipe = {"steps": steps, "seed": seed, "batch": BATCH, "learning_rate": LEARNING_RATE}
    with locked(out):
        model, seconds = train(out, recipe)
    model.save_pretrained(out)
    scores = score(Detector.from_pretrained(out))  # of the weights as they were saved
    model.save_pretrained(out, {**recipe, "seconds": round(seconds), "geneval_on_true_scenes": scores})
    (out / CHECKPOINT).unlink(missing_ok=True)
    return scores
