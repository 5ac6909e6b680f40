"""The image tokenizer's training loop: scenes with captions in, an ImageTokenizer out."""

import dataclasses
import math
import random
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import AutoTokenizer

from data_recipes.scenes import SIZE, Scene, Thing, World, captions
from mllm.text import contrastive_ids
from tokenizer import SIZES, ImageTokenizer, ImageTokenizerConfig
from tokenizer.quantizer import code_usage
from tokenizer.transform import to_pixels

from .checkpoint import latest_checkpoint, load_state, save_checkpoint
from .config import TokenizerTrainConfig
from .device import autocast, pick_device
from .distributed import barrier, start_ranks, stop_ranks, sum_gradients, world_size
from .metrics import Metrics, Rate, StopSignal, due, ignore_stop_signals
from .optim import make_optimizer, schedule, set_lr
from .tokenizer_losses import tokenizer_losses

MAX_LOGIT_SCALE = math.log(100)  # CLIP's bound on the learned temperature
COLORLESS_SHARE = 0.6  # of the captions; where colours are named they tell images apart, and classes are not learned


class CaptionedScenes(Dataset):
    """Sample i is a function of (seed, i) alone, so a run resumes by counting. -> pixels [3, H, W], ids [T]."""

    def __init__(self, config: TokenizerTrainConfig, model_config: ImageTokenizerConfig, length: int):
        self.config, self.model_config, self.length = config, model_config, length
        self.text_tokenizer = AutoTokenizer.from_pretrained(config.text_tokenizer)
        self.world = World(config.data.artwork)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        seed = self.config.run.seed * 1_000_000_007 + index
        scene, rng = self.world.scene(seed, self.config.data.split), random.Random(seed)
        model = self.model_config
        pixels_3HW = to_pixels(self.world.render(scene), model.image_size)
        if self.config.data.crop:
            thing = rng.choice(scene.things)
            scene = dataclasses.replace(scene, skill="single_object", things=(thing,))  # what the caption is about
            pixels_3HW = crop_around(pixels_3HW, thing, self.config.data.crop, rng)
        caption = rng.choice(captions(colorless(scene) if rng.random() < COLORLESS_SHARE else scene))
        ids_NT = contrastive_ids(self.text_tokenizer, [caption], model.text_context, model.text_vocab_size)
        return pixels_3HW, ids_NT[0]


def colorless(scene: Scene) -> Scene:
    """The same picture, as one whose caption names no colours."""
    skill = {"colors": "single_object", "color_attr": "two_object"}.get(scene.skill, scene.skill)
    things = tuple(dataclasses.replace(thing, color=None) for thing in scene.things)
    return dataclasses.replace(
        scene, skill=skill, things=things, background=dataclasses.replace(scene.background, name=None)
    )


def crop_around(pixels_3HW: torch.Tensor, thing: Thing, size: int, rng: random.Random) -> torch.Tensor:
    """A square of `size` pixels with the centre of the thing in its middle half, as far as the image reaches."""
    scale = pixels_3HW.shape[-1] / SIZE
    x1, y1, x2, y2 = thing.box

    def start(low: float, high: float) -> int:
        middle = scale * (low + high) / 2 - size / 2 + rng.uniform(-size / 4, size / 4)
        return round(min(max(middle, 0), pixels_3HW.shape[-1] - size))

    left, top = start(x1, x2), start(y1, y2)
    return pixels_3HW[:, top : top + size, left : left + size]


def model_config_of(config: TokenizerTrainConfig) -> ImageTokenizerConfig:
    """The named size with the recipe's overrides."""
    if config.size not in SIZES:
        raise ValueError(f"unknown size {config.size!r}; known: {', '.join(SIZES)}")
    try:
        return dataclasses.replace(SIZES[config.size], **config.model)
    except TypeError as error:
        raise ValueError(f"recipe, model: {error}") from error


def build_image_tokenizer(config: TokenizerTrainConfig) -> ImageTokenizer:
    """A new one, or the one at `init_from`. Raises ValueError when that has other sizes than the recipe."""
    model = ImageTokenizer(model_config_of(config))
    if config.init_from:
        before = ImageTokenizer.from_pretrained(config.init_from)
        if before.config != model.config:
            raise ValueError(f"recipe, init_from: {config.init_from} has other sizes than `size` and `model` say")
        model.load_state_dict(before.state_dict())
    return model


def train_tokenizer(config: TokenizerTrainConfig) -> Path:
    """Train, or resume, a recipe's run; `run.batch_size` images on each rank. Returns the last checkpoint's model."""
    run, device = config.run.path, pick_device(config.run)
    rank, world = start_ranks(device)
    torch.manual_seed(config.run.seed)
    model = build_image_tokenizer(config).to(device, memory_format=torch.channels_last).train()
    optimizer = make_optimizer(model.named_parameters(), config.optim)
    checkpoint = latest_checkpoint(run)
    step, seen = _restore(model, optimizer, checkpoint) if checkpoint else (0, 0)
    batches = iter(_loader(config, model.config, rank, world, seen, step))
    metrics = Metrics(config, step) if rank == 0 else None
    stop, clock = StopSignal(), Rate()
    stopping = False
    while step < config.run.steps and not stopping:
        pixels_N3HW, ids_NT = (tensor.to(device) for tensor in next(batches))
        lr = set_lr(optimizer, schedule(step, config.run.steps, config.optim))
        report = train_tokenizer_step(model, optimizer, pixels_N3HW, ids_NT, config)
        step, seen = step + 1, seen + world * config.run.batch_size
        stopping = stop.anywhere()
        if metrics and due(step, config.run.log_every, config.run.steps):
            metrics.log(step, {**report(), "lr": lr, "images_per_s": clock.rate(seen)})
        if rank == 0 and (due(step, config.run.save_every, config.run.steps) or stopping):
            state = {"optimizer": optimizer.state_dict(), "seen": seen}
            checkpoint = save_checkpoint(run, step, model.save_pretrained, state, config.run.keep)
    barrier()
    stop_ranks()
    return (checkpoint or latest_checkpoint(run)) / "model"


def _restore(model: ImageTokenizer, optimizer: torch.optim.Optimizer, checkpoint: Path) -> tuple[int, int]:
    """-> steps done, images seen."""
    model.load_state_dict(ImageTokenizer.from_pretrained(checkpoint / "model").state_dict())
    state = load_state(checkpoint)
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["seen"]


def _loader(
    config: TokenizerTrainConfig, model_config: ImageTokenizerConfig, rank: int, world: int, seen: int, step: int
) -> DataLoader:
    batch = config.run.batch_size
    length = seen + (config.run.steps - step) * batch * world
    mine = [index for index in range(seen, length) if index // batch % world == rank]
    return DataLoader(
        Subset(CaptionedScenes(config, model_config, length), mine),
        batch_size=batch,
        num_workers=config.run.workers,
        worker_init_fn=ignore_stop_signals,
    )


def train_tokenizer_step(model, optimizer, pixels_N3HW, ids_NT, config: TokenizerTrainConfig):
    """One update. Returns a function that computes the numbers of this step, since most steps are not logged."""
    with autocast(config.run, pixels_N3HW.device):
        output = model(pixels_N3HW, ids_NT, config.losses.entropy_every, config.losses.decoded)
        losses = tokenizer_losses(output, pixels_N3HW, ids_NT, model.logit_scale.exp(), config.losses)
    if not losses["loss"].isfinite():
        raise ValueError(f"the loss is {losses['loss'].item()}; stopped before the update: lower optim.lr")
    optimizer.zero_grad()
    (losses["loss"] / world_size()).backward()
    sum_gradients(model.parameters())
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip)
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)

    def report() -> dict[str, float]:
        decoded_N3HW = output.pixels_N3HW.detach().float().clamp(-1, 1)
        error = (decoded_N3HW - pixels_N3HW[: len(decoded_N3HW)]).pow(2).flatten(1).mean(1)
        usage = code_usage(output.quantized.codes_NLK, model.config.codebook_size)
        return {
            **{name: term.item() for name, term in losses.items()},
            "psnr": (10 * torch.log10(4 / error)).mean().item(),
            "batch_usage": usage.mean().item(),
            "grad_norm": grad_norm.item(),
        }

    return report
