"""One update of the language model from the micro-batches of all ranks, and what it reports.

Shapes: B rows, T positions, N images, L positions an image, P positions of target images, K sub-codebooks.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from mllm import Mllm
from mllm.device import send, sync_is_free
from mllm.model import image_starts, mean_loss
from mllm.text.processor import Batch
from mllm.text.templates import IGNORED

from ..run.backends import TorchEngine, read_norm
from ..run.distributed import sum_over_ranks
from ..run.recipe import TrainConfig
from .tune import TunedOutput, guard_means

KINDS = ("drawing", "answering", "text")
"""Of samples: with an image to draw, with images to read only, without images."""

GUARDS = 2  # losses of a TunedOutput
NOT_SEEN = torch.finfo(torch.float32).min

Report = dict[str, float]


def train_step(engine: TorchEngine, micro_batches: Sequence[Batch], config: TrainConfig) -> Callable[[], Report]:
    """One update from all micro-batches of all ranks. The loss is `mean_loss` with global counts, so it does not depend
    on how samples are split. Returns a function that computes what to log. Raises ValueError, before the update, for a
    loss or gradient that is not finite; on a GPU, which is not waited for, the returned function does."""
    model, device = engine.model, engine.device
    kinds = [kinds_of(batch, model) for batch in micro_batches]
    counts = sum_over_ranks(sum(target_counts(*pair, model) for pair in zip(micro_batches, kinds, strict=True)))
    n_images = sum_over_ranks(torch.tensor(float(sum(len(batch.is_target) for batch in micro_batches)))).clamp(min=1)
    n_text, n_code = send(torch.stack([counts[:-1].sum(), counts[-1]]).float(), device)

    size = len(KINDS) + 1 + model.config.image_tokenizer["num_codebooks"] + GUARDS
    sums = torch.zeros(size, dtype=exact(device), device=device)
    for place, batch in enumerate(micro_batches):
        inputs = inputs_of(batch, device, masked=model.config.image_layers is not None)
        output = engine.forward(**inputs, code_share=config.code_share, code_noise=config.code_noise)
        loss = mean_loss(output.text_loss, n_text, output.code_loss, n_code, config.code_weight)
        if isinstance(output, TunedOutput):
            loss = loss + output.guard_loss / n_images.item()
        engine.backward(loss, last=place == len(micro_batches) - 1)
        sums += loss_sums(output, batch, kinds[place])
    sum_over_ranks(sums)
    if sync_is_free(device):
        check_losses(sums, "before the update")
    grad_norm = engine.step()

    def report() -> Report:
        told = torch.cat([sums, grad_norm.detach()[None].to(sums)]).cpu()  # all that is read of the update
        losses, guards, norm = told.split([len(sums) - GUARDS, GUARDS, 1])
        check_losses(told[:-1], "before it was saved")
        guard_report = guard_means(*(guards / n_images)) if config.model.tune else {}
        return {**make_report(losses, counts, config.code_weight, read_norm(norm[0])), **guard_report}

    return report


def check_losses(sums: torch.Tensor, stopped: str) -> None:
    """Raises ValueError unless all are finite."""
    if not sums.isfinite().all():
        raise ValueError(f"the loss is not finite; stopped {stopped}: lower optim.lr")


def inputs_of(batch: Batch, device: torch.device, masked: bool = False) -> dict[str, torch.Tensor | None]:
    """The arguments of the model's forward. Packed and branched rows need positions and a mask. Other rows are padded
    on the right, where causal attention does not see padding; without a mask, attention has faster kernels. `masked`
    keeps it, for `ImageLayers`, which compute nothing at padding. What the model must count stays on the CPU."""
    here = ("labels", "is_target", "image_lengths")
    inputs = {key: value if value is None or key in here else send(value, device) for key, value in vars(batch).items()}
    if batch.position_ids is None and not masked:
        del inputs["attention_mask"]
    elif batch.attention_mask is None:
        inputs["attention_mask"] = packed_mask(inputs["position_ids"])
    return inputs


def packed_mask(positions_BT: torch.Tensor) -> torch.Tensor:
    """What each position of packed rows sees: its sample, up to itself. To add to attention logits, [B, 1, T, T].
    transformers would find out as much, but it waits for the device to see whether rows are packed at all."""
    owners_BT = (positions_BT == 0).cumsum(1)
    seen_BTT = (owners_BT[:, :, None] == owners_BT[:, None]).tril()
    return torch.zeros_like(seen_BTT, dtype=torch.float32).masked_fill_(~seen_BTT, NOT_SEEN)[:, None]


def kinds_of(batch: Batch, model: Mllm) -> torch.Tensor:
    """For each position, the index in `KINDS` of its sample's kind, [B, T]. In packed rows, a sample begins where
    positions begin at 0."""
    starts_BT = torch.zeros_like(batch.input_ids, dtype=torch.bool)
    if batch.position_ids is not None:
        starts_BT |= batch.position_ids == 0
    starts_BT[:, 0] = True
    owners_BT = starts_BT.flatten().cumsum(0).view_as(starts_BT) - 1
    kinds = torch.full((int(owners_BT.max()) + 1,), KINDS.index("text"))
    slots_BT = batch.input_ids == model.config.image_token_id
    owners_N = owners_BT[image_starts(slots_BT)]
    kinds[owners_N] = KINDS.index("answering")
    kinds[owners_N[batch.is_target]] = KINDS.index("drawing")
    return kinds[owners_BT]


def target_counts(batch: Batch, kinds_BT: torch.Tensor, model: Mllm) -> torch.Tensor:
    """Text targets of each kind, and codes to draw: [kinds + 1]."""
    sizes = model.config.image_tokenizer_config
    text = torch.bincount(kinds_BT[:, 1:][batch.labels[:, 1:] != IGNORED], minlength=len(KINDS))
    codes = batch.is_target.sum() * sizes.num_positions * sizes.num_codebooks
    return torch.cat([text, codes[None]]).double()


def loss_sums(output: Any, batch: Batch, kinds_BT: torch.Tensor) -> torch.Tensor:
    """Sums of text losses of each kind, of the code loss, of the losses of each sub-codebook, and of the guard's two
    (0 without one): [kinds + 1 + K + guards], on the model's device."""
    dtype, losses = exact(output.text_losses.device), output.text_losses
    kinds = send(kinds_BT[:, 1:][batch.labels[:, 1:] != IGNORED], losses.device)
    text = losses.new_zeros(len(KINDS), dtype=dtype).index_add_(0, kinds, losses.to(dtype))
    guards = losses.new_zeros(GUARDS)
    if isinstance(output, TunedOutput):
        guards = torch.stack([output.guard_loss.detach(), output.squared_error])
    codes = [output.code_loss.detach()[None], output.code_losses.sum(0)]
    return torch.cat([text, *(part.to(dtype) for part in (*codes, guards))])


def exact(device: torch.device) -> torch.dtype:
    """The most precise type that a device has."""
    return torch.float32 if device.type == "mps" else torch.float64


def make_report(sums: torch.Tensor, counts: torch.Tensor, code_weight: float, grad_norm: float) -> Report:
    """Mean losses, in nats per target. Kinds without a target in this update are left out."""
    text, code, of_codebooks = sums[: len(KINDS)], sums[len(KINDS)], sums[len(KINDS) + 1 :]
    n_text, n_code = counts[:-1].sum(), counts[-1]
    report = {
        "loss": mean_loss(text.sum(), n_text, code, n_code, code_weight),
        "text_loss": text.sum() / n_text.clamp(min=1),
        "code_loss": code / n_code.clamp(min=1),
    }
    report |= {f"text_loss/{kind}": text[place] / counts[place] for place, kind in enumerate(KINDS) if counts[place]}
    if n_code:
        report |= {f"code_loss/{k}": loss * len(of_codebooks) / n_code for k, loss in enumerate(of_codebooks)}
    return {**{name: value.item() for name, value in report.items()}, "grad_norm": grad_norm}
