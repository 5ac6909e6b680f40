"""Device, threads, allocator and precision of a run."""

import os
import platform
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from mllm.device import best_device

from .recipe import RunConfig

# An allocator that keeps what an update frees for the next one, for some seconds: what is kept for ever adds up, with
# batches of many shapes, to several times the memory in use. docs/speed.md has the figures.
JEMALLOC = {
    "LD_PRELOAD": "libjemalloc.so.2",
    "MALLOC_CONF": "oversize_threshold:0,dirty_decay_ms:10000,muzzy_decay_ms:10000",
}


def pick_device(config: RunConfig) -> torch.device:
    """The device of a run; `auto` is a GPU if there is one that works. Also sets the number of threads (0: unchanged).
    Raises ValueError for a device that is not there."""
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.device == "auto":
        return best_device()
    try:
        device = torch.device(config.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # as torch has it for each kind of device
        reason = str(error).splitlines()[0]
        raise ValueError(f"recipe, run.device: {config.device!r} cannot be used here: {reason}") from error
    return device


def allocator_lines(device: torch.device, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Which allocator makes updates faster: on a CPU, beside glibc's own; none where another is preloaded."""
    if device.type != "cpu" or "malloc" in environment.get("LD_PRELOAD", "") or platform.libc_ver()[0] != "glibc":
        return []
    words = " ".join(f"{name}={value}" for name, value in JEMALLOC.items())
    return [f"jemalloc (Debian: libjemalloc2) can make updates on a CPU faster: {words}"]


def autocast(config: RunConfig, device: torch.device) -> torch.autocast:
    """Mixed precision with float32 weights for `bf16`; nothing for `fp32`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")


def short_attention(device: torch.device) -> AbstractContextManager:
    """For attention over some tens of positions: on a CPU in bf16, the backward of torch's fused kernel takes twice as
    long as plain operations."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
