"""Device, threads and precision of a run."""

import torch

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
