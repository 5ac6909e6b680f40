"""Parameter groups by name prefix for AdamW and Muon, and the learning-rate schedule."""

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import nn

from .config import OptimConfig


class HasGroups(Protocol):
    """An optimizer, or what stands for one."""

    @property
    def param_groups(self) -> list[dict]: ...


class OptimizerPair:
    """Muon for matrices and AdamW for the rest, behind the calls of one optimizer."""

    def __init__(self, *optimizers: torch.optim.Optimizer):
        self.optimizers = optimizers

    @property
    def param_groups(self) -> list[dict]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> dict:
        return {str(index): optimizer.state_dict() for index, optimizer in enumerate(self.optimizers)}

    def load_state_dict(self, state: dict) -> None:
        for index, optimizer in enumerate(self.optimizers):
            optimizer.load_state_dict(state[str(index)])


def freeze(model: nn.Module, trainable: Sequence[str]) -> None:
    """Only parameters whose name starts with a word of `trainable` keep a gradient, if they had one: what a module
    freezes by itself stays frozen. Raises ValueError for a word that no name starts with."""
    names = [name for name, _ in model.named_parameters()]
    for prefix in trainable:
        if not any(name.startswith(prefix) for name in names):
            parts = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))
            raise ValueError(f"recipe, trainable: no parameter's name starts with {prefix!r}; the parts are {parts}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name.startswith(tuple(trainable)))


def make_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]], config: OptimConfig
) -> torch.optim.Optimizer | OptimizerPair:
    """AdamW, one group per (prefix with its own learning rate, decay); no decay on vectors (norms, biases), as in
    UniTok. Matrices whose name starts with a word of `config.muon` go to Muon (arXiv 2502.16982), scaled so that
    AdamW's rates fit."""
    adam: dict[tuple[str, float], list[nn.Parameter]] = {}
    muon: dict[tuple[str, float], list[nn.Parameter]] = {}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            ndim = len(getattr(parameter, "ds_shape", parameter.shape))  # what ZeRO-3 has divided is flat
            decay = config.weight_decay if ndim >= 2 else 0.0
            is_muon = ndim == 2 and name.startswith(tuple(config.muon))
            (muon if is_muon else adam).setdefault((_part_of(name, config), decay), []).append(parameter)
    if not adam and not muon:
        raise ValueError("nothing to train: `trainable` is empty")
    optimizers = []
    if adam:
        groups = _groups(adam, config)
        optimizers.append(torch.optim.AdamW(groups, betas=tuple(config.betas), eps=config.eps, fused=True))
    if muon:
        optimizers.append(torch.optim.Muon(_groups(muon, config), adjust_lr_fn="match_rms_adamw"))
    return optimizers[0] if len(optimizers) == 1 else OptimizerPair(*optimizers)


def _groups(by_part: dict[tuple[str, float], list[nn.Parameter]], config: OptimConfig) -> list[dict]:
    groups = []
    for (part, decay), parameters in by_part.items():
        lr = config.lr_by_prefix.get(part, config.lr)
        groups.append({"params": parameters, "part": part, "lr": lr, "base_lr": lr, "weight_decay": decay})
    return groups


def _part_of(name: str, config: OptimConfig) -> str:
    """The longest of the prefixes with a rate of their own; "" for none."""
    return max((prefix for prefix in config.lr_by_prefix if name.startswith(prefix)), key=len, default="")


def schedule(step: int, steps: int, config: OptimConfig) -> float:
    """Factor on the learning rate at `step` of `steps`: linear warm-up, then cosine down to `final_lr`."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    progress = min(1.0, (step - config.warmup) / max(1, steps - config.warmup - 1))
    return config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def set_lr(optimizer: HasGroups, factor: float) -> dict[str, float]:
    """Scale every group's base rate. -> the largest as "lr", and "lr/PREFIX" for those of `lr_by_prefix`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    rates = {f"lr/{group['part']}": group["lr"] for group in optimizer.param_groups if group["part"]}
    return {"lr": max(group["lr"] for group in optimizer.param_groups), **rates}
