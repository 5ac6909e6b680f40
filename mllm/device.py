"""Work for a GPU is launched, not waited for: whoever reads a value of it, or copies to it from ordinary memory, waits
until all that was launched before has ended. tests/gpu/waits.py refuses both in training and decoding."""

import os
import shutil
import warnings
from collections.abc import Sequence
from importlib.util import find_spec

import torch

BFLOAT16 = (8, 0)  # the compute capability of the first GPUs with matrix units for it


def sync_is_free(device: torch.device) -> bool:
    """Whether reading a value is free, because it is computed already."""
    return device.type == "cpu"


def send(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on a device, without waiting. From a CPU to a GPU it goes through pinned memory, which stays as it is
    until the copy has ended. The tensor itself if it is there already."""
    if x.device.type == "cpu" and device.type == "cuda":
        x = x.pin_memory()
    return x.to(device, non_blocking=device.type != "cpu")  # a copy to the CPU has to end before it is read


def best_device() -> torch.device:
    """The GPU of this process (LOCAL_RANK), if there is one; the CPU, with a warning, if torch cannot use it."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    problem = gpu_problem(device)
    if problem:
        warnings.warn(f"{problem}; the CPU is used", stacklevel=2)
    return torch.device("cpu") if problem else device


def gpu_problem(device: torch.device) -> str:
    """Why torch cannot use a GPU; "" if it can."""
    capability, kernels = torch.cuda.get_device_capability(device), torch.cuda.get_arch_list()
    if runs_on(capability, kernels):
        return ""
    name = torch.cuda.get_device_name(device)
    return f"{name} has compute capability {_dotted(capability)}, torch {torch.__version__} has {', '.join(kernels)}"


def runs_on(capability: tuple[int, int], kernels: Sequence[str]) -> bool:
    """Whether one of `torch.cuda.get_arch_list()` runs on a GPU: programs ("sm_86") on the same generation from their
    own number on, portable ones ("compute_90") on all that are later."""
    for kernel in kernels:
        kind, _, number = kernel.partition("_")
        digits = "".join(filter(str.isdigit, number))
        built = int(digits[:-1]), int(digits[-1])
        if built <= capability and (kind == "compute" or built[0] == capability[0]):
            return True
    return False


def advice(device: torch.device) -> list[str]:
    """A line about each thing that makes a GPU slower than it could be."""
    if device.type != "cuda":
        return []
    return slow_because(
        torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device), compiler_problem()
    )


def slow_because(name: str, capability: tuple[int, int], compiler: str) -> list[str]:
    lines = []
    if capability < BFLOAT16:
        lines.append(f"{name} has no matrix units for bfloat16 (compute capability {_dotted(capability)}, not 8.0)")
    if compiler:
        lines.append(f"layers cannot be compiled: {compiler}")
    return lines


def compiler_problem() -> str:
    """Why torch.compile has no compiler for GPUs; "" if it has one. Triton's programs need one for C."""
    if not find_spec("triton"):
        return "triton is not installed (pip install triton)"
    named = os.environ.get("CC")
    if not any(map(shutil.which, [named] if named else ["cc", "gcc", "clang"])):
        return f"no C compiler ({named or 'cc, gcc or clang'}) is installed"
    return ""


def check_room(bytes: int, device: torch.device, what: str) -> None:
    """Raises ValueError, in one line, if a GPU has no room for so many bytes."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        if problem := room_problem(bytes, free, total):
            raise ValueError(f"{what} {problem}")


def room_problem(bytes: int, free: int, total: int) -> str:
    if bytes <= free:
        return ""
    sizes = (f"{size / 2**30:.1f} GB" for size in (bytes, free, total))
    return "takes {}, the GPU has {} free of {}".format(*sizes)


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
