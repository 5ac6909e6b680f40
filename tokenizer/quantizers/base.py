"""What a quantizer is: the one interface through which image tokenizer, training and language model use it.

Shapes: N images, L positions, M = N * L, Q channels = K sub-codebooks x q channels, V entries per sub-codebook.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import nn

Across = Callable[[torch.Tensor], torch.Tensor]
"""A tensor of this process -> one that is equal in all processes of a training."""


@dataclass
class QuantizerOptions:
    """How quantization is done in training. A quantizer with options of its own adds fields to these. Raises ValueError
    for values that make no sense.

    `index_temperature` above 0 asks for the entries' shares in each choice, a softmax over them at this temperature.
    """

    index_temperature: float = 0.0

    def __post_init__(self):
        if not 0 <= self.index_temperature < float("inf"):
            raise ValueError(
                f"quantizer.index_temperature: {self.index_temperature} is outside [0, inf); 0 goes without"
            )

    def at(self, step: int, steps: int) -> Self:
        """Those of update `step`, counted from 0, of a run of `steps`."""
        return self


class Quantized(NamedTuple):
    """`features_NLQ` are those of the codes, and carry gradient to what was quantized; `codes_NLK` int64; `loss` is the
    quantizer's own; `entropy_loss` as in MAGVIT-v2 (arXiv 2310.05737): small when each choice is sure and all entries
    are used, None for a quantizer that has none; `shares_KMV`, only with `index_temperature`, are the entries' shares
    in each choice, with gradient; `slices_KMq`, what was quantized, without gradient, where upkeep asks for it."""

    features_NLQ: torch.Tensor
    codes_NLK: torch.Tensor
    loss: torch.Tensor
    entropy_loss: torch.Tensor | None = None
    shares_KMV: torch.Tensor | None = None
    slices_KMq: torch.Tensor | None = None


class Upkeep(ABC):
    """What a quantizer does beside the gradient in training, and what it remembers for that."""

    @abstractmethod
    def add(self, quantized: Quantized) -> None:
        """A micro-batch of the update."""

    @abstractmethod
    def step(self) -> dict[str, torch.Tensor]:
        """Once after each update, by all processes: -> figures to log, on the device."""

    @abstractmethod
    def state_dict(self) -> dict[str, torch.Tensor]:
        """What a checkpoint must hold for a resumed run to go on as if it had not stopped."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Back to what `state_dict` gave."""


class Quantizer(nn.Module, ABC):
    """Features to K codes below V a position, and back. All is computed in float32, under autocast, too: in bfloat16
    near ties flip, and the codes of an image would depend on the machine.

    All that tells which codes an image gets is in its state dict: codes are named by a hash of it.
    """

    Options: ClassVar[type[QuantizerOptions]] = QuantizerOptions

    def __init__(self, width: int, num_codebooks: int, codebook_size: int):
        super().__init__()
        self.num_codebooks, self.codebook_size, self.slice_width = num_codebooks, codebook_size, width // num_codebooks

    @classmethod
    def from_config(cls, config: Any, **more: Any) -> Self:
        """The one that an `ImageTokenizerConfig` describes. Raises ValueError for `quantizer_args` that it has not."""
        args = {**more, **config.quantizer_args}
        known = [*signature(cls).parameters][3:]
        if unknown := sorted(args.keys() - known):
            takes = f"takes {', '.join(known)}" if known else "takes none"
            raise ValueError(f"quantizer_args: {config.quantizer} {takes}, not {', '.join(unknown)}")
        return cls(config.code_width, config.num_codebooks, config.codebook_size, **args)

    @abstractmethod
    def forward(self, features_NLQ: torch.Tensor, options: QuantizerOptions | None = None) -> Quantized:
        """In training; without `options`, with the defaults. Draws come from torch's global generator."""

    @abstractmethod
    def encode(self, features_NLQ: torch.Tensor) -> torch.Tensor:
        """-> codes_NLK, int64, each in [0, V). Those of `forward`."""

    @abstractmethod
    def entries(self) -> torch.Tensor:
        """What each code stands for, [K, V, q], float32."""

    def decode(self, codes_NLK: torch.Tensor) -> torch.Tensor:
        """-> features_NLQ, float32. Raises ValueError for codes outside the codebooks."""
        K, V = self.num_codebooks, self.codebook_size
        if codes_NLK.shape[-1] != K:
            raise ValueError(f"codes have {codes_NLK.shape[-1]} sub-codebooks, the image tokenizer has {K}")
        if codes_NLK.numel() and not 0 <= int(codes_NLK.min()) <= int(codes_NLK.max()) < V:
            raise ValueError(
                f"codes reach from {int(codes_NLK.min())} to {int(codes_NLK.max())}; the codebook has 0..{V - 1}"
            )
        return look_up(self.entries(), codes_NLK)

    def upkeep(self, options: QuantizerOptions, sum_over: Across, of_first: Across) -> Upkeep | None:
        """For a training with `options`; None where nothing is to be done. `sum_over` adds a tensor over all processes,
        `of_first` gives all of them the first one's."""
        return None


def look_up(entries_KVq: torch.Tensor, codes_NLK: torch.Tensor) -> torch.Tensor:
    """-> features_NLQ. Unlike `Quantizer.decode`, it trusts the codes, and does not wait for the device."""
    return entries_KVq[torch.arange(len(entries_KVq), device=codes_NLK.device), codes_NLK].flatten(-2)


def count_codes(codes_NLK: torch.Tensor, codebook_size: int) -> torch.Tensor:
    """How often each entry occurs, [K, V], float."""
    codes_KM = codes_NLK.flatten(0, -2).T
    counts_KV = torch.zeros(len(codes_KM), codebook_size, device=codes_NLK.device)
    # Not bincount, which waits for the device to learn the largest code.
    return counts_KV.scatter_add_(1, codes_KM, torch.ones_like(codes_KM, dtype=torch.float32))


def code_use(counts_KV: torch.Tensor) -> dict[str, list[float]]:
    """Of each sub-codebook, from the counts of its entries: `usage`, the share of its entries that occur, and
    `perplexity`, the exponential of the entropy of their frequencies, which is V when all are equally frequent."""
    counts_KV = counts_KV.cpu().double()
    p_KV = counts_KV / counts_KV.sum(1, keepdim=True).clamp(min=1)
    return {
        "usage": (counts_KV > 0).double().mean(1).tolist(),
        "perplexity": torch.special.entr(p_KV).sum(1).exp().tolist(),
    }
