"""One process or many (torchrun): ranks, and sums over them. Everything is a no-op in a single process."""

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn


def start_ranks(device: torch.device, alone: bool = False) -> tuple[int, int]:
    """Join the process group that torchrun describes, if any. With `alone`, a single process makes a group of its own.
    Returns (rank, world size). Raises ValueError for a process without a GPU of its own."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if device.type == "cuda":
        local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= count:
            raise ValueError(f"process {local + 1} of this machine has no GPU, as there are {count}: start {count}")
        torch.cuda.set_device(local)
    if not dist.is_initialized() and (world > 1 or alone):
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"  # counts are summed on the CPU
        if world > 1:
            dist.init_process_group(backend)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return rank, world


def rank_and_world() -> tuple[int, int]:
    """This rank, and their number."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def world_size() -> int:
    """Number of ranks."""
    return rank_and_world()[1]


def is_rank_zero() -> bool:
    """Whether this is the rank that writes files and prints."""
    return rank_and_world()[0] == 0


def stop_ranks() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized():
        dist.barrier()


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over ranks in place, and return it."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def from_rank_zero(values: torch.Tensor) -> torch.Tensor:
    """Send the value of rank 0 to all ranks, and return it."""
    if dist.is_initialized():
        dist.broadcast(values, src=0)
    return values


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum gradients over ranks, as one message. They need no division, as losses are divided by global counts."""
    if not dist.is_initialized():
        return
    parameters = [p for p in parameters if p.requires_grad]
    for p in parameters:
        if p.grad is None:  # this rank had no use for it, another one may have had
            p.grad = torch.zeros_like(p)
    gradients = [p.grad for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def gather_features(x_NE: torch.Tensor) -> torch.Tensor:
    """The rows of all ranks, in the order of ranks: [world * N, E]. Gradients of every rank's loss reach the rank that
    a row is from. N is the same on all ranks; integers (ids) can be gathered as well."""
    return _Gather.apply(x_NE) if dist.is_initialized() else x_NE


class _Gather(torch.autograd.Function):
    """Not torch.distributed.nn's all_gather, which torch 2.14 deprecates in favour of a private module."""

    @staticmethod
    def forward(ctx, x_NE: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(x_NE, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x_NE.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        gradient = sum_over_ranks(gradient.clone(memory_format=torch.contiguous_format))
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]
