"""What a quantizer is: the one interface through which image tokenizer, training and language model use it.

Shapes: N images, L positions, M = N * L, K sub-codebooks of V entries with q channels each, Q channels of a position:
K * q where a position's features are its K entries in a row, q where they are their sum.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import nn

ROWS = 1024  # entries that are compared with all others at a time

Across = Callable[[torch.Tensor], torch.Tensor]
"""A tensor of this process -> one that is equal in all processes of a training."""


@dataclass
class QuantizerOptions:
    """How quantization is done in training. A quantizer with options of its own adds fields to these. Raises ValueError
    for values that make no sense.

    `index_temperature` above 0 sends the gradient to all entries, through their shares in each choice, a softmax over
    them at this temperature (index backpropagation, IBQ, arXiv 2412.02692).

    Of each image, a share of the codes, drawn between 0 and `perturbed`, is exchanged for one of the `nearest` other
    entries, as those that a language model gets wrong would be (RobustTok, arXiv 2503.08354). During a run, `perturbed`
    falls linearly to `perturbed_final` of itself, so that the decoder ends on cleaner codes.
    """

    index_temperature: float = 0.0
    perturbed: float = 0.0
    perturbed_final: float = 0.5
    nearest: int = 8

    def __post_init__(self):
        for name in ("perturbed", "perturbed_final"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"quantizer.{name}: {getattr(self, name)} is outside [0, 1]")
        self.check_from_zero("index_temperature")
        if self.nearest < 1:
            raise ValueError(f"quantizer.nearest: {self.nearest} is below 1; without exchanged codes, perturbed is 0")

    def check_from_zero(self, *names: str) -> None:
        """Raises ValueError where one is negative or infinite."""
        for name in names:
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"quantizer.{name}: {getattr(self, name)} is outside [0, inf); 0 goes without")

    def at(self, step: int, steps: int) -> Self:
        """Those of update `step`, counted from 0, of a run of `steps`."""
        progress = step / max(1, steps - 1)
        return replace(self, perturbed=self.perturbed * (1 - (1 - self.perturbed_final) * progress))


@dataclass
class EntropyOptions(QuantizerOptions):
    """`entropy_every` n takes the entropy loss over each n-th feature (0: not at all): on a CPU the whole of it is a
    fifth of a training step."""

    entropy_every: int = 0

    def __post_init__(self):
        super().__post_init__()
        self.check_from_zero("entropy_every")


class Quantized(NamedTuple):
    """`features_NLQ` are those of the codes, perturbed or not, and carry gradient to what was quantized; `codes_NLK`,
    int64, are never perturbed; `loss` is the quantizer's own; `entropy_loss` as in MAGVIT-v2 (arXiv 2310.05737): small
    when each choice is sure and all entries are used, None for a quantizer that has none; `shares_KMV`, only with
    `index_temperature`, are the entries' shares in each choice, with gradient; `slices_KMq`, what each code was chosen
    for, without gradient, which upkeep reads."""

    features_NLQ: torch.Tensor
    codes_NLK: torch.Tensor
    loss: torch.Tensor
    entropy_loss: torch.Tensor | None = None
    shares_KMV: torch.Tensor | None = None
    slices_KMq: torch.Tensor | None = None

    def reordered(self, order: Callable[[torch.Tensor, int], torch.Tensor], images: int) -> Self:
        """What the language model reads of it, with positions in the order that `order(values, dimension)` gives."""
        shares_KMV = self.shares_KMV
        if shares_KMV is not None:
            shares_KMV = order(shares_KMV.unflatten(1, (images, -1)), 2).flatten(1, 2)
        features_NLQ, codes_NLK = order(self.features_NLQ, 1), order(self.codes_NLK, 1)
        return self._replace(features_NLQ=features_NLQ, codes_NLK=codes_NLK, shares_KMV=shares_KMV)


class Upkeep(ABC):
    """What a quantizer does beside the gradient in training, and what it remembers for that."""

    @abstractmethod
    def add(self, quantized: Quantized) -> None:
        """A micro-batch of the update."""

    @abstractmethod
    def step(self, update: int) -> dict[str, torch.Tensor]:
        """Once after each update, counted from 1, by all processes: -> figures to log, on the device."""

    @abstractmethod
    def state_dict(self) -> dict[str, torch.Tensor]:
        """What a checkpoint must hold for a resumed run to go on as if it had not stopped."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Back to what `state_dict` gave."""


class Quantizer(nn.Module, ABC):
    """Features to K codes below V a position, and back. All is computed in float32, under autocast, too: in bfloat16
    near ties flip, and the codes of an image would depend on the machine.

    A kind says what its entries are and how it bounds features; where the nearest entry is found without comparing all,
    or has a price in training, it says that, too. All that tells which codes an image gets is in its state dict: codes
    are named by a hash of it.
    """

    Options: ClassVar[type[QuantizerOptions]] = QuantizerOptions
    summed: ClassVar[bool] = False  # a position's features: the sum of its entries, or its entries in a row

    def __init__(self, width: int, num_codebooks: int, codebook_size: int):
        super().__init__()
        self.num_codebooks, self.codebook_size = num_codebooks, codebook_size
        self.slice_width = width if self.summed else width // num_codebooks

    @classmethod
    def from_config(cls, config: Any) -> Self:
        """The one that an `ImageTokenizerConfig` describes, whose fields are arguments, too, if they have the same
        name. Raises ValueError for `quantizer_args` that it has not."""
        known = [*signature(cls).parameters][3:]
        if unknown := sorted(config.quantizer_args.keys() - known):
            takes = f"takes {', '.join(known)}" if known else "takes none"
            raise ValueError(f"quantizer_args: {config.quantizer} {takes}, not {', '.join(unknown)}")
        args = {name: getattr(config, name) for name in known if hasattr(config, name)} | config.quantizer_args
        return cls(config.code_width, config.num_codebooks, config.codebook_size, **args)

    # ---- what a kind says

    @abstractmethod
    def entries(self) -> torch.Tensor:
        """What each code stands for, [K, V, q], float32."""

    def bound(self, features_NLQ: torch.Tensor) -> torch.Tensor:
        """Features as they are compared with entries, [N, L, Q], float32."""
        return features_NLQ.float()

    def choose(self, bounded_NLQ: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Bounded features -> z_KMq, what each code is chosen for, and codes_KM."""
        z_KMq = self.split(bounded_NLQ)
        return z_KMq, self.nearest(z_KMq)

    def nearest(self, z_KMq: torch.Tensor) -> torch.Tensor:
        """-> codes_KM, those of the largest scores."""
        with torch.no_grad():
            return self.scores(z_KMq).argmax(-1)

    def scores(self, z_KMq: torch.Tensor) -> torch.Tensor:
        """[K, M, V], half the squared distances to all entries, negative, but for what all have in common."""
        return closeness(z_KMq, self.entries())

    def loss(self, z_KMq: torch.Tensor, q_KMq: torch.Tensor) -> torch.Tensor:
        """What keeps features and their entries close; nothing where entries do not move, and features are bounded."""
        return z_KMq.new_zeros(())

    def entropy_loss(self, z_KMq: torch.Tensor, options: QuantizerOptions) -> torch.Tensor | None:
        """See `Quantized`."""
        return None

    def upkeep(self, options: QuantizerOptions, sum_over: Across, of_first: Across) -> Upkeep | None:
        """For a training with `options`; None where nothing is to be done. `sum_over` adds a tensor over all processes,
        `of_first` gives all of them the first one's."""
        return None

    # ---- what all have in common

    def forward(self, features_NLQ: torch.Tensor, options: QuantizerOptions | None = None) -> Quantized:
        """In training; without `options`, with the defaults. Draws come from torch's global generator."""
        options, grid = options or self.Options(), features_NLQ.shape[:2]
        with torch.autocast(features_NLQ.device.type, enabled=False):
            bounded_NLQ, entries_KVq = self.bound(features_NLQ), self.entries()
            z_KMq, codes_KM = self.choose(bounded_NLQ)
            codes_NLK = codes_KM.T.unflatten(0, grid)
            q_KMq = shown_KMq = _gather(entries_KVq, codes_KM)
            if options.perturbed:
                share_N = options.perturbed * torch.rand(len(features_NLQ), device=features_NLQ.device)
                perturbed_NLK = self.perturb(codes_NLK, share_N, self.neighbours(options.nearest))
                shown_KMq = _gather(entries_KVq, perturbed_NLK.flatten(0, 1).T)
            if options.index_temperature:
                p_KMV = (self.scores(z_KMq) / options.index_temperature).softmax(-1)
                shown_KMq = shown_KMq + torch.bmm(p_KMV - p_KMV.detach(), entries_KVq)
                features_NLQ = self.join(shown_KMq.transpose(0, 1)).unflatten(0, grid)
            else:
                p_KMV, shown_NLQ = None, self.join(shown_KMq.transpose(0, 1)).unflatten(0, grid)
                features_NLQ = bounded_NLQ + (shown_NLQ - bounded_NLQ).detach()
            loss, entropy_loss = self.loss(z_KMq, q_KMq), self.entropy_loss(z_KMq, options)
        return Quantized(features_NLQ, codes_NLK, loss, entropy_loss, p_KMV, z_KMq.detach())

    def encode(self, features_NLQ: torch.Tensor) -> torch.Tensor:
        """-> codes_NLK, int64, each in [0, V). Those of `forward`."""
        with torch.autocast(features_NLQ.device.type, enabled=False):
            _, codes_KM = self.choose(self.bound(features_NLQ))
        return codes_KM.T.unflatten(0, features_NLQ.shape[:2])

    def decode(self, codes_NLK: torch.Tensor) -> torch.Tensor:
        """-> features_NLQ, float32. Raises ValueError for codes outside the codebooks."""
        K, V = self.num_codebooks, self.codebook_size
        if codes_NLK.shape[-1] != K:
            raise ValueError(f"codes have {codes_NLK.shape[-1]} sub-codebooks, the image tokenizer has {K}")
        if codes_NLK.numel() and not 0 <= int(codes_NLK.min()) <= int(codes_NLK.max()) < V:
            raise ValueError(
                f"codes reach from {int(codes_NLK.min())} to {int(codes_NLK.max())}; the codebook has 0..{V - 1}"
            )
        return self.look_up(codes_NLK)

    def look_up(self, codes: torch.Tensor, entries_KVq: torch.Tensor | None = None) -> torch.Tensor:
        """[..., K] -> features [..., Q]. Unlike `decode`, it trusts the codes, and does not wait for the device.
        `entries_KVq`: where `entries` were computed before."""
        entries_KVq = self.entries() if entries_KVq is None else entries_KVq
        return self.join(entries_KVq[torch.arange(len(entries_KVq), device=codes.device), codes])

    def join(self, entries: torch.Tensor) -> torch.Tensor:
        """One of each sub-codebook, [..., K, q] -> features [..., Q]."""
        return entries.sum(-2) if self.summed else entries.flatten(-2)

    def split(self, bounded_NLQ: torch.Tensor) -> torch.Tensor:
        """-> z_KMq, a slice for each sub-codebook."""
        return bounded_NLQ.flatten(0, 1).unflatten(-1, (self.num_codebooks, -1)).transpose(0, 1)

    @torch.no_grad()
    def neighbours(self, count: int) -> torch.Tensor:
        """The `count` other entries of its sub-codebook that are nearest to each entry, [K, V, count]. Raises
        ValueError for a codebook without so many."""
        e, V = self.entries(), self.codebook_size
        if count >= V:
            raise ValueError(f"quantizer.nearest: {count} other entries, but a sub-codebook has {V} in all")
        near = []
        for start in range(0, V, ROWS):  # of large codebooks, not all distances at once
            closeness_KRV = closeness(e[:, start : start + ROWS], e)
            closeness_KRV.diagonal(start, 1, 2).fill_(-torch.inf)  # an entry is not near itself
            near.append(closeness_KRV.topk(count).indices)
        return torch.cat(near, 1)

    def perturb(
        self,
        codes_NLK: torch.Tensor,
        share_N: torch.Tensor,
        near_KVn: torch.Tensor,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """-> codes_NLK, each exchanged with the probability `share_N` of its image for one of its `neighbours`. Draws
        come from torch's global generator if none is given."""
        shape, how = codes_NLK.shape, {"generator": generator, "device": codes_NLK.device}
        choice_NLK = torch.randint(near_KVn.shape[-1], shape, **how)
        other_NLK = near_KVn[torch.arange(len(near_KVn), device=codes_NLK.device), codes_NLK, choice_NLK]
        return torch.where(torch.rand(shape, **how) < share_N[:, None, None], other_NLK, codes_NLK)


def closeness(points_KMq: torch.Tensor, entries_KVq: torch.Tensor) -> torch.Tensor:
    """[K, M, V], half the squared distances, negative, but for the length of the points: the nearest has the most."""
    return torch.baddbmm(-0.5 * entries_KVq.square().sum(-1)[:, None], points_KMq, entries_KVq.mT)


def _gather(entries_KVq: torch.Tensor, codes_KM: torch.Tensor) -> torch.Tensor:
    return torch.gather(entries_KVq, 1, codes_KM[..., None].expand(-1, -1, entries_KVq.shape[-1]))


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
