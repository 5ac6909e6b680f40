"""An update of the image tokenizer, beside the plainest correct loop that does the same."""

from collections.abc import Callable
from contextlib import contextmanager
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from tokenizer import SIZES
from tokenizer.quantizers import Quantized
from tokenizer.quantizers.multi_codebook import MultiCodebookQuantizer
from tokenizer.vitamin import UpConv
from training.image_tokenizer.data import ImageBatch
from training.image_tokenizer.losses import tokenizer_losses
from training.image_tokenizer.train import Learner
from training.run.recipe import OptimConfig, RunConfig, TokenizerLossConfig, TokenizerTrainConfig

from . import Options
from .figures import TOLERANCE, Figure, compare
from .models import known

LOSSES = TokenizerLossConfig(l1=0.2, l2=1.0, quantizer=1.0, contrastive=1.0)


def bench_train(options: Options, batch: int) -> list[Figure]:
    if options.model:
        raise ValueError("train starts from random weights: give --shape, not --model")
    known(SIZES, options.shape)
    exact, plain = training_steps(options.shape, batch, "fp32")
    losses = [exact(), plain()]
    if abs(losses[0] - losses[1]) > TOLERANCE * losses[1]:
        raise ValueError(f"not timed, as ours and the plain loop have different losses: {losses[0]} and {losses[1]}")
    ours, plain = training_steps(options.shape, batch, "bf16")
    ours(), plain()  # to warm up
    return compare(f"train, batch {batch}", ours, plain, {"images/s": batch}, options.repeats)


def training_steps(size: str, batch: int, precision: str) -> tuple[Callable[[], float], Callable[[], float]]:
    """-> ours and the plain one, each a function that does an update on the same random images and returns its loss."""
    run = RunConfig(name="bench", steps=10_000, batch_size=batch, precision=precision)
    config = TokenizerTrainConfig(run=run, size=size, losses=LOSSES, optim=OptimConfig(warmup=10))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    learner = Learner(config, device)
    torch.manual_seed(0)
    plain = Learner(config, device).model
    sizes = learner.model.config
    pixels_N3HW = torch.rand(batch, 3, sizes.image_size, sizes.image_size) * 2 - 1
    ids_NT = torch.randint(1, sizes.text_vocab_size, (batch, sizes.text_context))
    images, step = ImageBatch(pixels_N3HW, ids_NT, [], True), 0
    optimizer = torch.optim.AdamW(plain.parameters(), 1e-3, foreach=False)

    def ours() -> float:
        nonlocal step
        step += 1
        return learner.update(step - 1, 0, [images])()["loss"]

    def plainly() -> float:
        with plain_layers():
            output = plain(pixels_N3HW.to(device), ids_NT.to(device))
            loss = tokenizer_losses(output, pixels_N3HW.to(device), ids_NT.to(device), plain.logit_scale.exp(), LOSSES)
            optimizer.zero_grad()
            loss["loss"].backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0, foreach=False)
        optimizer.step()
        return loss["loss"].item()

    return ours, plainly


@contextmanager
def plain_layers():
    """Codebooks one after the other, each counting its use over all ranks, and doubling before convolving."""
    with patch.object(MultiCodebookQuantizer, "forward", plain_quantize), patch.object(UpConv, "forward", plain_up):
        yield


def plain_up(layer: UpConv, x: torch.Tensor) -> torch.Tensor:
    return layer.conv(F.interpolate(x, scale_factor=2.0))


def plain_quantize(quantizer: MultiCodebookQuantizer, features_NLQ: torch.Tensor, *_) -> Quantized:
    N, L, _ = features_NLQ.shape
    codebooks_KVq = quantizer.codebooks_KVq
    features, codes, losses = [], [], []
    for z_NLq, codebook_Vq in zip(features_NLQ.chunk(len(codebooks_KVq), -1), codebooks_KVq, strict=True):
        z, e = F.normalize(z_NLq, dim=-1), F.normalize(codebook_Vq, dim=-1)
        codes.append((z @ e.T).argmax(-1))
        used_V = torch.bincount(codes[-1].flatten(), minlength=len(e)).float()
        if dist.is_initialized():
            dist.all_reduce(used_V)
        q = F.embedding(codes[-1], e)
        losses.append(quantizer.commitment * F.mse_loss(z, q.detach()) + F.mse_loss(q, z.detach()))
        features.append(z + (q - z).detach())
    loss = torch.stack(losses).mean()
    return Quantized(torch.cat(features, -1), torch.stack(codes, -1), loss, loss.new_zeros(()))
