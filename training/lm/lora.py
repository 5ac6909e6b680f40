"""LoRA (arXiv 2106.09685) on the backbone, by peft: low-rank adapters train beside frozen weights."""

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mllm import Mllm
from mllm.folders import loading
from tokenizer.weights import tensors_hash

from ..run.recipe import LoraConfig, ModelConfig, save_config

ADAPTER = ".lora_"  # in the name of every tensor of an adapter
BASE = ".base_layer."  # in the names of the weights beside it


def add_lora(model: Mllm, config: LoraConfig) -> None:
    """Add adapters to the backbone's matrices called `targets`; at first they change nothing. Raises ValueError when
    there are no such matrices."""
    try:
        import peft
    except ImportError as error:
        raise ValueError("model.lora needs peft: pip install peft") from error
    names = {name.rpartition(".")[2] for name, part in model.backbone.named_modules() if hasattr(part, "in_features")}
    strange = sorted(set(config.targets) - names)
    if strange or not config.targets:
        raise ValueError(f"recipe, model.lora.targets: the backbone has {', '.join(sorted(names))}; not {strange}")
    options = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=list(config.targets))
    before = list(model.backbone.parameters())
    peft.inject_adapter_in_model(options, model.backbone)
    for parameter in before:  # peft freezes them, but the recipe says what trains
        parameter.requires_grad_(True)


def train_adapters(model: Mllm) -> None:
    """Let adapters train. Raises ValueError when the weights beside them train, too."""
    for name, parameter in model.named_parameters():
        if BASE in name and parameter.requires_grad:
            raise ValueError(f"recipe, model.trainable has {name.replace(BASE, '.')}, which model.lora keeps as it is")
        if ADAPTER in name:
            parameter.requires_grad_(True)


def merged(state: Mapping[str, torch.Tensor], config: LoraConfig) -> dict[str, torch.Tensor]:
    """The state dict of a model without adapters that computes the same: each W becomes W + alpha / rank * B A."""
    plain = {name.replace(BASE, "."): tensor for name, tensor in state.items() if ADAPTER not in name}
    for name, down in state.items():
        if name.endswith(f"{ADAPTER}A.default.weight"):
            up = state[name.replace(f"{ADAPTER}A.", f"{ADAPTER}B.")]
            weight = name.partition(ADAPTER)[0] + ".weight"
            plain[weight] = plain[weight] + config.alpha / config.rank * up @ down
    return plain


def base_hash(state: Mapping[str, torch.Tensor], trained: Collection[str]) -> str:
    """The hash of the weights that an adapter was trained beside: all except those that `trained` with it."""
    return tensors_hash({name: tensor for name, tensor in state.items() if name not in trained})


def save_adapter(folder: Path, config: ModelConfig, trained: dict[str, torch.Tensor], base: str) -> None:
    """Save all weights that trained, adapters or not, with the recipe's `model` and the hash of the other weights."""
    folder.mkdir()
    tensors = {name: tensor.contiguous() for name, tensor in trained.items()}
    save_file(tensors, folder / "adapter.safetensors", {"base": base})
    save_config(config, folder / "model.yaml")


def load_adapter(model: Mllm, folder: Path) -> None:
    """Load what `save_adapter` wrote. Raises ValueError when the model has no such parameters, or when the weights
    beside them are not those that the adapter was trained with."""
    file = folder / "adapter.safetensors"
    if not file.is_file():
        raise ValueError(f"no adapter in {folder}: it has no {file.name}")
    with loading(folder), safe_open(file, "pt") as opened:
        base = (opened.metadata() or {}).get("base")
        trained = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
    own = model.state_dict()
    wrong = sorted(name for name in trained if name not in own or own[name].shape != trained[name].shape)
    if wrong:
        raise ValueError(f"{folder} does not fit the model: {len(wrong)} parameters differ, e.g. {wrong[0]}")
    ours = base_hash(own, trained)
    if base != ours:
        raise ValueError(
            f"{folder} was trained beside other weights ({base}) than these ({ours}): "
            "give those that it began with as init_from"
        )
    model.load_state_dict(trained, strict=False)
