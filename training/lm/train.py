"""The language model's training loop: a mixture of sequences in, a model folder out."""

import logging
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.utils.logging import disable_progress_bar

from mllm import Mllm, Processor
from mllm.device import advice, compiler_problem, sync_is_free
from mllm.text.processor import Batch

from ..data.mixture import Mixture, MixtureUpdates, Update
from ..run.backends import TorchEngine, loading_in_parts, start_engine, start_engine_ranks
from ..run.checkpoint import latest_checkpoint, load_state, save_checkpoint
from ..run.device import allocator_lines, pick_device
from ..run.distributed import barrier, is_rank_zero, rank_and_world, stop_ranks, sum_over_ranks
from ..run.folder import only_run
from ..run.metrics import Metrics, Problems, Speed, StopSignal, due, ignore_stop_signals
from ..run.optim import schedule, set_lr
from ..run.recipe import TrainConfig
from .build import build_model, choose_trained, weights_to_save
from .lora import base_hash, save_adapter
from .prompted import conversations, show_samples
from .start_log import first_loss_line, parameter_lines, preview_lines, source_lines
from .update import Report, train_step

# transformers makes masks for the attention that it knows, and waits for the device in each pass to find out whether
# rows need one. For this name it makes none: rows are causal, or come with a mask of their own (`update.inputs_of`).
UNMASKED = "sdpa_unmasked"
AttentionInterface.register(UNMASKED, sdpa_attention_forward)
PADDED_TO = 16  # sequences are padded to a multiple of it: each new shape costs memory, and time to compile


def train(config: TrainConfig) -> Path:
    """Train, or resume, a recipe's run. Returns the last checkpoint's model."""
    disable_progress_bar()  # of transformers, at each checkpoint
    device = pick_device(config.run)
    _, world = start_engine_ranks(config, device)
    config.run.divide(world)
    with only_run(config) as checkpoint:
        run_updates(config, device, checkpoint)
        barrier()
    stop_ranks()
    return latest_checkpoint(config.run.path) / "model"


def run_updates(config: TrainConfig, device: torch.device, checkpoint: Path | None) -> None:
    """From the checkpoint, or the beginning, to the last step or a stop signal."""
    rank, world = rank_and_world()
    torch.manual_seed(config.run.seed)
    in_parts = loading_in_parts(config, device) if checkpoint or config.model.init_from else nullcontext()
    with in_parts:
        model, processor, loaded = build_model(config.model, checkpoint)
    prepare(model, config, device)
    tuned, words = config.model.tune is not None, config.model.words
    mixture = Mixture(config.data, processor, model.image_tokenizer, config.run.seed, tuned, words, **read_by(model))
    conversations(config.prompts)  # an image that is not there stops the run here, not at its first samples
    told = parameter_lines(model, loaded), mixture.notes, source_lines(mixture), preview_lines(mixture)
    talk(*told, allocator_lines(device))
    speed = Speed(model, device, world)
    engine = start_engine(model, config, device)
    done = restore(engine, checkpoint) if checkpoint else {"step": 0, "seen": 0}
    first, seen = done["step"], done["seen"]
    steps, micro = config.run.steps, (config.run.batch_size, config.run.accumulate)
    data = MixtureUpdates(mixture, *micro, rank, world, max(0, steps - first), seen)
    metrics = Metrics(config, first) if rank == 0 else None
    problems = Problems(config.data.max_bad)
    problems.add(mixture.damages if metrics else [])
    late: deque[tuple] = deque()  # of updates that are left to log

    def log(step: int, report: Callable[[], Report], rates: Report, tokens: float) -> None:
        values = {**report(), **rates, **speed.measure(tokens, data.samples)}
        if metrics:
            metrics.log(step, values)
            if step == first + 1:
                talk([first_loss_line(values, metrics.before, model, loaded)])

    with StopSignal() as stop:
        for step, update in enumerate(updates(data, config), start=first + 1):
            problems.add(update.problems, update.complete)
            torch.manual_seed((config.run.seed * 1_000_003 + step) * 1009 + rank)  # a resumed run draws the same
            rates = set_lr(engine, schedule(step - 1, steps, config.optim))
            report = train_step(engine, batches_of(update, processor, engine), config)
            seen += data.samples
            last = stop.anywhere() or step == steps
            saves = last or step % config.run.save_every == 0
            shows = bool(config.prompts and config.run.sample_every) and due(step, config.run.sample_every, steps)
            late.append((step, report, rates, tokens_of(update)))
            # An update on a GPU is read when the next one has been launched, so that the GPU always has work.
            while len(late) > (not sync_is_free(device) and not shows and not saves):
                log(*late.popleft())
            if shows:
                show_samples(engine, processor, config.prompts, metrics, step)
            if saves:
                save(engine, processor, step, {"seen": seen})
            if last:
                break
    if metrics:
        metrics.close()


def read_by(model: Mllm) -> dict[str, Any]:
    """What a mixture must know of how the model reads images."""
    return {"features": model.image_input.reads_features, "image_lengths": model.config.image_lengths or ()}


def talk(*groups: list[str]) -> None:
    """Print lines on rank 0."""
    if is_rank_zero():
        print(*(line for lines in groups for line in lines), sep="\n", flush=True)


def tokens_of(update: Update) -> float:
    """The number of tokens of all ranks, without padding."""
    mine = sum(len(sample.ids) for samples in update.micro_batches for sample in samples)
    return sum_over_ranks(torch.tensor(float(mine))).item()


def prepare(model: Mllm, config: TrainConfig, device: torch.device) -> None:
    """Set which parameters train, and how the model computes."""
    choose_trained(model.train(), config.model)
    if model.config.image_layers and (config.data.pack or config.run.checkpointing):
        what = "data.pack" if config.data.pack else "run.checkpointing"
        raise ValueError(f"recipe, {what}: not with model.image_layers, which read text that precedes images apart")
    model.image_tokenizer.eval()  # codes of training images are those of inference: no drop-path
    attention = "sdpa" if getattr(model.config.text_config, "sliding_window", None) else UNMASKED
    # On a CPU, eager attention is twice as fast at this length.
    model.set_attn_implementation("eager" if device.type == "cpu" else attention)
    if config.run.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    for line in advice(device):
        warnings.warn(line, stacklevel=2)
    if config.run.compile and not (device.type == "cuda" and compiler_problem()):
        compile_layers(model)


def compile_layers(model: Mllm) -> None:
    """Compile layer by layer: one small graph serves all layers, and batches of any length."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # warns of nvcc where there is no GPU
    parts = [*model.backbone.layers, *getattr(model.code_head, "layers", [])]
    if model.image_layers:
        mixed = model.image_layers
        parts += [mixed.attention, *mixed.layers, *(layer.project for layer in mixed.layers)]
        mixed.project_text, mixed.finish_text = (
            torch.compile(part, dynamic=True) for part in (mixed.project_text, mixed.finish_text)
        )
    for part in parts:
        part.compile(dynamic=True)


def updates(data: MixtureUpdates, config: TrainConfig) -> Iterator[Update]:
    """The updates that are left of the run, loaded ahead by workers."""
    workers = config.run.workers
    return iter(
        DataLoader(
            data,
            batch_size=None,
            num_workers=workers,
            worker_init_fn=ignore_stop_signals,
            multiprocessing_context="fork" if workers else None,  # no copy of what is open, whatever Python's default
        )
    )


def batches_of(update: Update, processor: Processor, engine: TorchEngine) -> list[Batch]:
    """This rank's micro-batches, images as codes, or as pixels where the image tokenizer trains."""
    image_tokenizer = None if engine.config.model.tune else engine.image_tokenizer
    return [
        processor.collate(samples, image_tokenizer, pack=engine.config.data.pack, multiple=PADDED_TO)
        for samples in update.micro_batches
    ]


def save(engine: TorchEngine, processor: Processor, step: int, done: dict[str, float]) -> None:
    """Write a checkpoint, with what `restore` gives back as `done`. All ranks take part, since each may hold a part of
    it."""
    run, config, weights = engine.config.run, engine.config.model, engine.weights()
    state = {"optimizer": engine.optimizer_state(), **done}

    def save_model(folder: Path) -> None:
        engine.model.save_pretrained(folder, state_dict=weights_to_save(weights, config))
        processor.save_pretrained(folder)
        if config.lora:
            base = base_hash(weights, engine.trained)
            save_adapter(folder.parent / "adapter", config, {name: weights[name] for name in engine.trained}, base)

    if is_rank_zero():
        save_checkpoint(run.path, step, save_model, state, run.keep)


def restore(engine: TorchEngine, checkpoint: Path) -> dict[str, Any]:
    """Load the optimizer's state of a checkpoint, whose weights the model has already. Returns what else it holds: the
    "step", and what was `done` until then."""
    state = load_state(checkpoint)
    engine.load_optimizer_state(state.pop("optimizer"))
    return state
