"""Device, threads and precision of a run."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from .recipe import RunConfig


def pick_device(config: RunConfig) -> torch.device:
    """The device of a run; `auto` is CUDA if there is one. Also sets the number of threads (0: unchanged). Raises
    ValueError for a device that is not there."""
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(config.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # as torch has it for each kind of device
        reason = str(error).splitlines()[0]
        raise ValueError(f"recipe, run.device: {config.device!r} cannot be used here: {reason}") from error
    return device


def autocast(config: RunConfig, device: torch.device) -> torch.autocast:
    """Mixed precision with float32 weights for `bf16`; nothing for `fp32`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")


def short_attention(device: torch.device) -> AbstractContextManager:
    """For attention over some tens of positions: on a CPU in bf16, the backward of torch's fused kernel takes twice as
    long as plain operations."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
