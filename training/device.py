"""Device, threads and precision of a run."""

import torch

from .config import RunConfig

PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}


def pick_device(config: RunConfig) -> torch.device:
    """`auto` is CUDA where there is one. Also sets the number of threads (0: torch's choice)."""
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.device != "auto":
        return torch.device(config.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(config: RunConfig, device: torch.device) -> torch.autocast:
    """Mixed precision with float32 weights for `bf16`; nothing for `fp32`."""
    if config.precision not in PRECISIONS:
        raise ValueError(f"unknown run.precision {config.precision!r}; known: {', '.join(PRECISIONS)}")
    dtype = PRECISIONS[config.precision]
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype is torch.bfloat16)
