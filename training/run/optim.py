"""Parameter groups by name prefix for AdamW and Muon, and the learning-rate schedule."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import nn

from .recipe import OptimConfig

State = dict[str, dict[str, torch.Tensor]]
"""Of an optimizer: a parameter's name -> what is kept for it. It fits any groups, rates and order of parameters."""


class HasGroups(Protocol):
    """An optimizer, or an object with the same parameter groups."""

    @property
    def param_groups(self) -> list[dict]: ...


class OptimizerPair:
    """Muon for matrices and AdamW for other parameters, used like one optimizer."""

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


def freeze(model: nn.Module, trainable: Sequence[str]) -> None:
    """Only parameters whose name starts with a word of `trainable` keep a gradient, if they had one: what a module
    freezes by itself stays frozen. Raises ValueError for a word that no name starts with."""
    check_prefixes("trainable", trainable, [name for name, _ in model.named_parameters()])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name.startswith(tuple(trainable)))


def check_prefixes(key: str, prefixes: Iterable[str], names: Sequence[str]) -> None:
    """Raises ValueError for a prefix that no name starts with."""
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in names):
            parts = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names)) or "none"
            raise ValueError(f"recipe, {key}: no parameter's name starts with {prefix!r}; the parts are {parts}")


def trained(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


def make_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]], config: OptimConfig, key: str = "optim"
) -> torch.optim.Optimizer | OptimizerPair:
    """AdamW, one group per (prefix with its own learning rate, decay); no decay on vectors (norms, biases), as in
    UniTok. Matrices whose name starts with a word of `config.muon` go to Muon (arXiv 2502.16982), scaled so that
    AdamW's rates fit. What has no gradient is left out. Raises ValueError, naming `key`, for a prefix of nothing."""
    named = list(named_parameters)
    matrices = [name for name, parameter in named if _ndim(parameter) == 2]
    check_prefixes(f"{key}.lr_by_prefix", config.lr_by_prefix, [name for name, _ in named])
    check_prefixes(f"{key}.muon (of matrices)", config.muon, matrices)
    adam: dict[tuple[str, float], list[nn.Parameter]] = {}
    muon: dict[tuple[str, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        if parameter.requires_grad:
            decay = config.weight_decay if _ndim(parameter) >= 2 else 0.0
            is_muon = _ndim(parameter) == 2 and name.startswith(tuple(config.muon))
            (muon if is_muon else adam).setdefault((_part_of(name, config), decay), []).append(parameter)
    if not adam and not muon:
        raise ValueError("recipe, trainable: it is empty, so there is nothing to train")
    optimizers = []
    if adam:
        groups = _groups(adam, config)
        optimizers.append(torch.optim.AdamW(groups, betas=tuple(config.betas), eps=config.eps, fused=True))
    if muon:
        optimizers.append(torch.optim.Muon(_groups(muon, config), adjust_lr_fn="match_rms_adamw"))
    return optimizers[0] if len(optimizers) == 1 else OptimizerPair(*optimizers)


def optimizer_state(optimizer: torch.optim.Optimizer | OptimizerPair, parameters: Mapping[str, nn.Parameter]) -> State:
    """The optimizer's state of these parameters, by name."""
    states = {p: state for one in _parts(optimizer) for p, state in one.state.items()}
    # One that had no gradient yet, as nothing used it, has no state.
    return {name: dict(states.get(p, {})) for name, p in parameters.items()}


def load_optimizer_state(
    optimizer: torch.optim.Optimizer | OptimizerPair, parameters: Mapping[str, nn.Parameter], state: State
) -> None:
    """Load what `optimizer_state` gave, except learning rates. Raises ValueError when other parameters were trained."""
    check_names(state, parameters)
    for one in _parts(optimizer):
        own = {p for group in one.param_groups for p in group["params"]}
        for name, p in parameters.items():
            if p in own:
                one.state[p] = {key: value.to(p.device, copy=True) for key, value in state[name].items()}


def check_names(state: State, parameters: Mapping[str, nn.Parameter]) -> None:
    """Raises ValueError when a checkpoint's optimizer trained other parameters than this run does."""
    wrong = sorted(state.keys() ^ parameters.keys())
    if wrong:
        raise ValueError(
            f"the checkpoint and `trainable` disagree on {len(wrong)} parameters, e.g. {wrong[0]}: a run goes on with "
            "what it began with; for something else, give a new run.name"
        )


def _parts(optimizer: torch.optim.Optimizer | OptimizerPair) -> list[torch.optim.Optimizer]:
    return getattr(optimizer, "optimizers", [optimizer])


def _ndim(parameter: nn.Parameter) -> int:
    return len(getattr(parameter, "ds_shape", parameter.shape))  # what ZeRO-3 has divided is flat


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
