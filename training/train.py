"""The language model's training loop: a mixture of sequences in, a model folder out."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from mllm import Mllm, MllmConfig, Processor
from mllm.processor import Batch
from tokenizer import ImageTokenizer

from .checkpoint import latest_checkpoint, load_state, save_checkpoint
from .config import ModelConfig, TrainConfig
from .device import autocast, pick_device
from .distributed import barrier, start_ranks, stop_ranks, sum_gradients, sum_over_ranks
from .metrics import Metrics, Problems, Rate, StopSignal, due, ignore_stop_signals
from .mixture import Mixture, MixtureUpdates
from .optim import freeze, make_optimizer, schedule, set_lr
from .preview import preview_line

PREVIEWED = 2  # sequences at the start of the log
PADDED_TO = 32  # columns: a new shape costs the allocator new memory, and a compiler time


class StepReport(NamedTuple):
    """Means over all ranks and micro-batches of one update; codes and text are in nats per target."""

    loss: float
    text_loss: float
    code_loss: float
    grad_norm: float


def build_model(config: ModelConfig) -> tuple[Mllm, Processor]:
    """A new model from its parts, or the one at `init_from`, whose image tokenizer `image_tokenizer` replaces."""
    if config.init_from:
        model = Mllm.from_pretrained(config.init_from)
        if config.image_tokenizer:
            model.image_tokenizer = ImageTokenizer.from_pretrained(config.image_tokenizer)
        return model, Processor.from_pretrained(config.init_from)
    if not config.image_tokenizer or not config.text_tokenizer:
        raise ValueError("recipe, model: give init_from, or image_tokenizer and text_tokenizer")
    image_tokenizer = ImageTokenizer.from_pretrained(config.image_tokenizer)
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
    model.image_tokenizer.load_state_dict(image_tokenizer.state_dict())
    return model, processor


def train(config: TrainConfig) -> Path:
    """Train, or resume, a recipe's run; `run.batch_size` samples on each rank. Returns the last checkpoint's model."""
    run, device = config.run.path, pick_device(config.run)
    rank, world = start_ranks(device)
    torch.manual_seed(config.run.seed)
    model, processor = build_model(config.model)
    freeze(model.to(device).train(), config.model.trainable)
    model.image_tokenizer.eval()  # codes of training images are those of inference: no drop-path
    model.set_attn_implementation("eager" if device.type == "cpu" else "sdpa")  # on a CPU twice as fast at this length
    mixture = Mixture(config.data, processor, model.image_tokenizer, config.run.seed)
    optimizer = make_optimizer(model.named_parameters(), config.optim)
    checkpoint = latest_checkpoint(run)
    step, seen = _restore(model, optimizer, checkpoint) if checkpoint else (0, 0)
    if config.run.checkpointing:
        model.gradient_checkpointing_enable()
    if config.run.compile:
        compile_layers(model)
    data = MixtureUpdates(
        mixture, config.run.batch_size, config.run.accumulate, rank, world, config.run.steps - step, seen
    )
    batches = iter(
        DataLoader(data, batch_size=None, num_workers=config.run.workers, worker_init_fn=ignore_stop_signals)
    )
    metrics = Metrics(config, step) if rank == 0 else None
    problems, stop, clock, stopping = Problems(config.data.max_bad), StopSignal(), Rate(), False
    if rank == 0:
        problems.add(mixture.damages)
        print_preview(mixture)
    while step < config.run.steps and not stopping:
        update = next(batches)
        problems.add(update.problems, update.complete)
        micro_batches = [
            processor.collate(samples, model.image_tokenizer, pack=config.data.pack, multiple=PADDED_TO)
            for samples in update.micro_batches
        ]
        lr = set_lr(optimizer, schedule(step, config.run.steps, config.optim))
        report = train_step(model, optimizer, micro_batches, config, device)
        step, seen = step + 1, seen + data.samples
        stopping = stop.anywhere()
        if metrics and due(step, config.run.log_every, config.run.steps):
            metrics.log(step, {**report()._asdict(), "lr": lr, "samples_per_s": clock.rate(seen)})
        if rank == 0 and (due(step, config.run.save_every, config.run.steps) or stopping):
            state = {"optimizer": optimizer.state_dict(), "seen": seen}
            save_checkpoint(run, step, _saver(model, processor), state, config.run.keep)
    barrier()
    if metrics:
        metrics.close()
    stop_ranks()
    return latest_checkpoint(run) / "model"


def print_preview(mixture: Mixture) -> None:
    """The first sequences of the run, what carries loss between « and »."""
    for position in range(PREVIEWED):
        sample, _ = mixture.sample(position)
        if sample:
            print(f"sample {position}: {preview_line(mixture.processor, sample)}", flush=True)


def compile_layers(model: Mllm) -> None:
    """Compile layer by layer: one small graph serves all layers, and batches of any length."""
    for layer in [*model.backbone.layers, *getattr(model.code_head, "layers", [])]:
        layer.compile(dynamic=True)


def _restore(model: Mllm, optimizer: torch.optim.Optimizer, checkpoint: Path) -> tuple[int, int]:
    """-> steps done, samples seen."""
    model.load_state_dict(Mllm.from_pretrained(checkpoint / "model").state_dict())
    state = load_state(checkpoint)
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["seen"]


def _saver(model: Mllm, processor: Processor) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)

    return save


def _attention(batch: Batch, device: torch.device) -> dict[str, torch.Tensor | None]:
    """Positions and mask of packed and branched rows. Others are padded on the right, where causal attention sees no
    padding, and without a mask it takes faster kernels."""
    if batch.position_ids is None:
        return {}
    mask = None if batch.attention_mask is None else batch.attention_mask.to(device)
    return {"position_ids": batch.position_ids.to(device), "attention_mask": mask}


def train_step(
    model: Mllm,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[Batch],
    config: TrainConfig,
    device: torch.device,
) -> Callable[[], StepReport]:
    """One update from all micro-batches of all ranks. Text targets and codes count alike, codes times `code_weight`;
    the counts are global, so the loss does not depend on how samples are split. Raises ValueError for a loss that is
    not finite, before the update."""
    codes_per_image = model.config.image_tokenizer["num_codebooks"]
    counts = torch.zeros(2)
    for batch in micro_batches:
        counts[0] += (batch.labels[:, 1:] != -100).sum()
        if batch.codes is not None:
            counts[1] += batch.is_target.sum() * batch.codes.shape[1] * codes_per_image
    n_text, n_code = sum_over_ranks(counts).clamp(min=1).tolist()
    weight = config.code_weight / (n_text + config.code_weight * n_code)

    optimizer.zero_grad()
    sums = torch.zeros(2)
    for batch in micro_batches:
        with autocast(config.run, device):
            output = model(
                input_ids=batch.input_ids.to(device),
                codes=None if batch.codes is None else batch.codes.to(device),
                is_target=batch.is_target.to(device),
                labels=batch.labels.to(device),
                **_attention(batch, device),
            )
            loss = weight / config.code_weight * output.text_loss + weight * output.code_loss
        loss.backward()
        sums += torch.stack([output.text_loss.detach(), output.code_loss.detach()]).float().cpu()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    sum_gradients(trained)
    grad_norm = torch.nn.utils.clip_grad_norm_(trained, config.optim.clip)
    text_sum, code_sum = sum_over_ranks(sums).tolist()
    if not torch.isfinite(grad_norm):
        raise ValueError(f"the gradient is {grad_norm.item()}; stopped before the update: lower optim.lr")
    optimizer.step()

    def report() -> StepReport:
        total = (text_sum + config.code_weight * code_sum) / (n_text + config.code_weight * n_code)
        return StepReport(total, text_sum / n_text, code_sum / n_code, grad_norm.item())

    return report
