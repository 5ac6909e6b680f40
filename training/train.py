"""The language model's training loop: a mixture of sequences in, a model folder out."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch.utils.data import DataLoader
from transformers import AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from mllm import Mllm, MllmConfig, Processor
from mllm.folders import find_model
from mllm.processor import Batch
from tokenizer import SIZES, ImageTokenizer

from .checkpoint import latest_checkpoint, load_state, save_checkpoint
from .config import ModelConfig, TrainConfig
from .device import pick_device
from .distributed import barrier, is_rank_zero, stop_ranks, sum_over_ranks
from .engine import TorchEngine, loading_in_parts, start_engine, start_engine_ranks
from .metrics import Metrics, Problems, Speed, StopSignal, due, ignore_stop_signals
from .mixture import Mixture, MixtureUpdates, Update
from .optim import freeze, schedule, set_lr
from .samples import conversations, show_samples
from .start import first_loss_line, parameter_lines, preview_lines, source_lines
from .update import train_step

NEW = "new:"  # before the size of an image tokenizer
PADDED_TO = 32  # columns: a new shape costs the allocator new memory, and a compiler time


class Start(NamedTuple):
    """What a run begins with. `loaded`: prefixes of the parameters that are not new."""

    model: Mllm
    processor: Processor
    loaded: tuple[str, ...]


def build_model(config: ModelConfig, checkpoint: Path | None = None) -> Start:
    """A new model from its parts, or the one at `init_from`, whose image tokenizer `image_tokenizer` replaces, or the
    one of a checkpoint."""
    if checkpoint or config.init_from:
        folder = checkpoint / "model" if checkpoint else config.init_from
        model = Mllm.from_pretrained(folder)
        if config.image_tokenizer and not checkpoint:
            model.image_tokenizer = _image_tokenizer(config.image_tokenizer)
        elif not isinstance(model.image_tokenizer, ImageTokenizer):  # loaded in parts
            model.image_tokenizer = _image_tokenizer_in(folder, model.config)
        return Start(model, Processor.from_pretrained(folder), ("",))
    if not config.image_tokenizer or not config.text_tokenizer:
        raise ValueError("recipe, model: give init_from, or image_tokenizer and text_tokenizer")
    image_tokenizer = _image_tokenizer(config.image_tokenizer)
    text_tokenizer = AutoTokenizer.from_pretrained(config.text_tokenizer)
    sizes = image_tokenizer.config
    processor = Processor(text_tokenizer, num_positions=sizes.num_positions, image_size=sizes.image_size)
    ids = {"bos_token_id": processor.bos_id, "eos_token_id": processor.eos_id, "pad_token_id": processor.pad_id}
    model = Mllm(
        MllmConfig(
            text_config={"model_type": "llama", "vocab_size": len(text_tokenizer), **ids, **config.backbone},
            image_tokenizer=sizes.to_dict(),
            code_embedding=config.code_embedding,
            code_head=config.code_head,
            code_head_args=config.code_head_args,
            pad_token_id=processor.pad_id,
            image_token_id=processor.image_id,
            boi_token_id=processor.boi_id,
            eoi_token_id=processor.eoi_id,
        )
    )
    model.image_tokenizer = image_tokenizer
    return Start(model, processor, () if config.image_tokenizer.startswith(NEW) else ("image_tokenizer",))


def _image_tokenizer(name: str) -> ImageTokenizer:
    """A folder's, or a new one of a named size: "new:tiny"."""
    size = name.removeprefix(NEW)
    if size == name:
        return ImageTokenizer.from_pretrained(name)
    if size not in SIZES:
        raise ValueError(f"recipe, model.image_tokenizer: unknown size {size!r}; known: {', '.join(SIZES)}")
    return ImageTokenizer(SIZES[size]).eval()


def _image_tokenizer_in(name: str | Path, config: MllmConfig) -> ImageTokenizer:
    """The one inside a language model's folder."""
    image_tokenizer, prefix, weights = ImageTokenizer(config.image_tokenizer_config).eval(), "image_tokenizer.", {}
    for path in Path(find_model(name)).glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            weights |= {key: file.get_tensor(key) for key in file.keys() if key.startswith(prefix)}  # noqa: SIM118
    image_tokenizer.load_state_dict({key.removeprefix(prefix): tensor for key, tensor in weights.items()})
    return image_tokenizer


def train(config: TrainConfig) -> Path:
    """Train, or resume, a recipe's run. Returns the last checkpoint's model."""
    disable_progress_bar()  # of transformers, at each checkpoint
    run, device = config.run.path, pick_device(config.run)
    rank, world = start_engine_ranks(config, device)
    config.run.divide(world)
    checkpoint = latest_checkpoint(run)
    torch.manual_seed(config.run.seed)
    in_parts = loading_in_parts(config, device) if checkpoint or config.model.init_from else nullcontext()
    with in_parts:
        model, processor, loaded = build_model(config.model, checkpoint)
    prepare(model, config, device)
    mixture = Mixture(config.data, processor, model.image_tokenizer, config.run.seed)
    conversations(config.prompts)  # an image that is not there stops the run here, not at its first samples
    talk(parameter_lines(model, loaded), source_lines(mixture), preview_lines(mixture))
    speed = Speed(model, device, world)
    engine = start_engine(model, config, device)
    first, seen = restore(engine, checkpoint) if checkpoint else (0, 0)
    steps, micro = config.run.steps, (config.run.batch_size, config.run.accumulate)
    data = MixtureUpdates(mixture, *micro, rank, world, max(0, steps - first), seen)
    metrics = Metrics(config, first) if rank == 0 else None
    problems, stop = Problems(config.data.max_bad), StopSignal()
    problems.add(mixture.damages if metrics else [])
    for step, update in enumerate(updates(data, config), start=first + 1):
        problems.add(update.problems, update.complete)
        torch.manual_seed((config.run.seed * 1_000_003 + step) * 1009 + rank)  # a resumed run draws the same
        rates = set_lr(engine, schedule(step - 1, steps, config.optim))
        report = train_step(engine, batches_of(update, processor, engine), config)
        seen += data.samples
        last, tokens = stop.anywhere() or step == steps, tokens_of(update)
        if metrics:
            metrics.log(step, {**report(), **rates, **speed.measure(tokens, data.samples)})
            if step == first + 1:
                talk([first_loss_line(report(), metrics.before, model, is_new="" not in loaded)])
        if config.prompts and config.run.sample_every and due(step, config.run.sample_every, steps):
            show_samples(engine, processor, config.prompts, metrics, step)
        if last or step % config.run.save_every == 0:
            save(engine, processor, step, seen)
        if last:
            break
    barrier()
    if metrics:
        metrics.close()
    stop_ranks()
    return latest_checkpoint(run) / "model"


def talk(*groups: list[str]) -> None:
    """Print lines, once for all ranks."""
    if is_rank_zero():
        print(*(line for lines in groups for line in lines), sep="\n", flush=True)


def tokens_of(update: Update) -> float:
    """Without padding, on all ranks."""
    mine = sum(len(sample.ids) for samples in update.micro_batches for sample in samples)
    return sum_over_ranks(torch.tensor(float(mine))).item()


def prepare(model: Mllm, config: TrainConfig, device: torch.device) -> None:
    """Set what trains, and how it is computed."""
    freeze(model.train(), config.model.trainable)
    model.image_tokenizer.requires_grad_(False).eval()  # training goes by its codes, through which no gradient comes
    model.set_attn_implementation("eager" if device.type == "cpu" else "sdpa")  # on a CPU twice as fast at this length
    if config.run.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if config.run.compile:
        compile_layers(model)


def compile_layers(model: Mllm) -> None:
    """Compile layer by layer: one small graph serves all layers, and batches of any length."""
    for layer in [*model.backbone.layers, *getattr(model.code_head, "layers", [])]:
        layer.compile(dynamic=True)


def updates(data: MixtureUpdates, config: TrainConfig) -> Iterator[Update]:
    """What is left of the run, loaded ahead by workers."""
    workers = config.run.workers
    return iter(DataLoader(data, batch_size=None, num_workers=workers, worker_init_fn=ignore_stop_signals))


def batches_of(update: Update, processor: Processor, engine: TorchEngine) -> list[Batch]:
    """This rank's micro-batches, images as codes."""
    return [
        processor.collate(samples, engine.image_tokenizer, pack=engine.config.data.pack, multiple=PADDED_TO)
        for samples in update.micro_batches
    ]


def save(engine: TorchEngine, processor: Processor, step: int, seen: int) -> None:
    """Write a checkpoint. All ranks take part, since each may hold a part of it."""
    run, weights = engine.config.run, engine.weights()
    state = {"optimizer": engine.optimizer_state(), "seen": seen}

    def save_model(folder: Path) -> None:
        engine.model.save_pretrained(folder, state_dict=weights)
        processor.save_pretrained(folder)

    if is_rank_zero():
        save_checkpoint(run.path, step, save_model, state, run.keep)


def restore(engine: TorchEngine, checkpoint: Path) -> tuple[int, int]:
    """The optimizer's state; the model was built with its weights. -> steps done, samples seen."""
    state = load_state(checkpoint)
    engine.load_optimizer_state(state["optimizer"])
    return state["step"], state["seen"]
