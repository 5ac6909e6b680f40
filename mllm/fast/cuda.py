"""Steps as CUDA graphs. On a GPU, launching a step's hundreds of small kernels takes longer than running them. So they
are recorded once and launched together.

A recording keeps the shapes, the memory addresses and the Python numbers of its moment. So recorded code never reads a
value from the device (`device.sync_is_free`) and has the same shapes at every step (`KeyValues.fixed_shapes`). A new
recording is made when memory moves, or when rows come or go.
Shapes: B sequences, D width, V entries, K sub-codebooks.
"""

import math
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .cpu import FIXED_ROTARY

WARM_UP = 4  # calls before a recording: libraries set themselves up, and short-lived batches are not worth one
TRIES = 3  # recordings with other codes than the step itself: near ties may do that once, but not each time
KEPT = 8  # recordings of a code head, one for each number of rows and kind of sampling


def record(
    function: Callable[..., torch.Tensor], inputs: list[torch.Tensor]
) -> tuple[Callable[[], None], torch.Tensor]:
    """Record the kernels of `function(*inputs)` without running them. Returns a function that runs them on the memory
    of `inputs`, and the tensor that they fill."""
    graph = torch.cuda.CUDAGraph()
    # A thread's current device need not be the model's. Other threads may use the device meanwhile, such as the one of
    # the server that decodes images.
    with torch.cuda.device(inputs[0].device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        output = function(*inputs)
    return graph.replay, output


class Recorded:
    """A function whose kernels and memory are the same at every call. A call overwrites what the last one returned."""

    def __init__(self, function: Callable[..., torch.Tensor]):
        self.function = function
        self.warm_up: float = WARM_UP  # calls that still run unrecorded
        self.tries = TRIES
        self.replay: Callable[[], None] | None = None

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        if self.warm_up:
            self.warm_up -= 1
            return self.function(*inputs)
        if self.replay is None and not self._record(inputs):
            return self.function(*inputs)
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        self.replay()
        return self.output

    def _record(self, inputs: tuple[torch.Tensor, ...]) -> bool:
        """Record, and compare with the function itself. Returns whether they agree. If it cannot be recorded, or has
        not agreed `TRIES` times, it is not tried again."""
        self.inputs = [x.clone() for x in inputs]
        expected = self.function(*inputs).clone()
        try:
            self.replay, self.output = record(self.function, self.inputs)
            self.replay()
            if same(self.output, expected):
                return True
            self.tries -= 1
            reason = "" if self.tries else "it gives other numbers than the step itself"
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
        self.replay = None
        if reason:
            warnings.warn(f"generation runs without a CUDA graph, which is slower: {reason}", stacklevel=2)
            self.warm_up = math.inf
        return False


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether codes are equal, or hidden states equal up to rounding."""
    if not one.is_floating_point():
        return torch.equal(one, other)
    tolerance = 64 * torch.finfo(one.dtype).eps
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance * float(other.abs().max()))


class RecordedBackbone:
    """`step`, recorded. A recording lasts while the rows and the memory of `cache` stay the same."""

    def __init__(self, step: Callable[[torch.Tensor, Any], torch.Tensor]):
        self.step, self.layout = step, None

    def __call__(self, x_BD: torch.Tensor, cache: Any) -> torch.Tensor:
        if cache.layout is not self.layout:
            self.layout, self.recorded = cache.layout, Recorded(lambda x_BD: self.step(x_BD, cache))
        return self.recorded(x_BD)


class RecordedHead:
    """A code head's `sample`, recorded together with guidance and sampling."""

    def __init__(self, head: nn.Module, codebook_size: int):
        self.head, self.codebook_size = head, codebook_size
        self.recorded: OrderedDict[tuple, Recorded] = OrderedDict()

    def __call__(self, h_BD: torch.Tensor, pick: Any) -> torch.Tensor:
        """-> codes_BK, chosen by a `Picker`. One that wants their log-probabilities is not recorded: a recording gives
        codes alone."""
        if pick.scored:
            return self.head.sample(h_BD, pick)
        noise_BN = pick.draw_noise(self.codebook_size, h_BD.device)
        key = len(h_BD), pick.cfg_scales, pick.sampling
        recorded = self.recorded.pop(key, None) or Recorded(self._sampling(pick))
        self.recorded[key] = recorded
        if len(self.recorded) > KEPT:
            self.recorded.popitem(last=False)
        return recorded(*(x for x in (h_BD, noise_BN) if x is not None)).clone()

    def _sampling(self, pick: Any) -> Callable[..., torch.Tensor]:
        def sampling(h_BD: torch.Tensor, noise_BN: torch.Tensor | None = None) -> torch.Tensor:
            return self.head.sample(h_BD, lambda logits_BV, k: pick.choose(logits_BV, k, noise_BN))

        return sampling


def backbone(module: nn.Module, step: Callable[[torch.Tensor, Any], torch.Tensor]) -> RecordedBackbone | None:
    """The recorded step of a backbone. None if it cannot be recorded: not on exactly one GPU, with hooks, or with
    rotary angles that depend on the length of the sequence."""
    fixed = module.rotary_emb.rope_type in FIXED_ROTARY
    return RecordedBackbone(step) if fixed and recordable(module) else None


def head(module: nn.Module, codebook_size: int) -> RecordedHead | None:
    """The recorded `sample` of a code head; None if it is not on exactly one GPU, or has hooks."""
    return RecordedHead(module, codebook_size) if recordable(module) else None


def recordable(module: nn.Module) -> bool:
    """Whether a module is on exactly one GPU and has no hooks, whose Python code a recording would skip."""
    devices = {weight.device for weight in module.parameters()}
    hooked = any(inner._forward_hooks or inner._forward_pre_hooks for inner in module.modules())
    return len(devices) == 1 and devices.pop().type == "cuda" and not hooked
