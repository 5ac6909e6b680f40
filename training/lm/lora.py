"""LoRA (arXiv 2106.09685) on the backbone, by peft: low-rank adapters train beside frozen weights, and, if wanted, the
embeddings of new tokens beside those of words.

Shapes: B sequences, T positions, D width, S ids of text.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from mllm import Mllm
from mllm.folders import loading
from mllm.shipped import ADAPTER, ROWS, with_trained
from tokenizer.weights import tensors_hash

from ..run.recipe import LoraConfig, ModelConfig, save_config

WEIGHTS, MODEL_RECIPE = "adapter.safetensors", "model.yaml"  # in the folder of an adapter
BASE = ".base_layer."  # in the names of the weights beside it


class _LastRows(nn.Module):
    """A layer with a row for each id of text. Those from `first` on train, and the others do not."""

    def __init__(self, layer: nn.Module, first: int):
        super().__init__()
        self.base_layer, self.first = layer, first
        self.lora_rows = nn.Parameter(layer.weight[first:].detach().clone())


class EmbeddingRows(_LastRows):
    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        new_BTD = F.embedding((ids_BT - self.first).clamp(min=0), self.lora_rows)
        return torch.where((ids_BT >= self.first)[..., None], new_BTD, self.base_layer(ids_BT))


class OutputRows(_LastRows):
    def forward(self, h_BTD: torch.Tensor) -> torch.Tensor:
        # The frozen part is multiplied alone, so that it gets no gradient, which would cost as much again.
        old_BTS, new_BTS = (F.linear(h_BTD, w) for w in (self.base_layer.weight[: self.first], self.lora_rows))
        return torch.cat([old_BTS, new_BTS], -1)


def add_lora(model: Mllm, config: LoraConfig, first: int) -> None:
    """Add adapters to the backbone's matrices called `targets`, and with `tokens` rows for the ids from `first` on; at
    first they change nothing. Raises ValueError when there are no such matrices or ids."""
    try:
        import peft
    except ImportError as error:
        raise ValueError("model.lora needs peft: pip install peft") from error
    names = {name.rpartition(".")[2] for name, part in model.backbone.named_modules() if hasattr(part, "in_features")}
    strange = sorted(set(config.targets) - names)
    if strange or not (config.targets or config.tokens):
        raise ValueError(f"recipe, model.lora.targets: the backbone has {', '.join(sorted(names))}; not {strange}")
    if config.targets:
        options = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=list(config.targets))
        before = list(model.backbone.parameters())
        peft.inject_adapter_in_model(options, model.backbone)
        for parameter in before:  # peft freezes them, but the recipe says what trains
            parameter.requires_grad_(True)
    if config.tokens:
        if first >= model.lm_head.out_features:
            raise ValueError("recipe, model.lora.tokens: no tokens were added to this text tokenizer")
        model.set_input_embeddings(EmbeddingRows(model.get_input_embeddings(), first))
        model.lm_head = OutputRows(model.lm_head, first)


def train_adapters(model: Mllm) -> None:
    """Let adapters train. Raises ValueError when the weights beside them train, too."""
    for name, parameter in model.named_parameters():
        if BASE in name and parameter.requires_grad:
            raise ValueError(f"recipe, model.trainable has {name.replace(BASE, '.')}, which model.lora keeps as it is")
        if ADAPTER in name:
            parameter.requires_grad_(True)


def merged(state: Mapping[str, torch.Tensor], config: LoraConfig) -> dict[str, torch.Tensor]:
    """The state dict of a model without adapters that computes the same: each W becomes W + alpha / rank * B A, and the
    last rows those that trained."""
    base = {name.replace(BASE, "."): tensor for name, tensor in state.items() if ADAPTER not in name}
    trained = {name: tensor for name, tensor in state.items() if ADAPTER in name}
    for name, tensor in trained.items():
        if name.endswith(ROWS):
            weight = name.removesuffix(ROWS) + ".weight"
            base[weight] = base[weight][: -len(tensor)]
    return with_trained(base, trained, config.alpha / config.rank)


def base_hash(state: Mapping[str, torch.Tensor], trained: Collection[str]) -> str:
    """The hash of the weights that an adapter was trained beside: all except those that `trained` with it."""
    return tensors_hash({name: tensor for name, tensor in state.items() if name not in trained})


def save_adapter(folder: Path, config: ModelConfig, trained: dict[str, torch.Tensor], base: str) -> None:
    """Save all weights that trained, adapters or not, with the recipe's `model` and the hash of the other weights."""
    folder.mkdir()
    tensors = {name: tensor.contiguous() for name, tensor in trained.items()}
    save_file(tensors, folder / WEIGHTS, {"base": base})
    save_config(config, folder / MODEL_RECIPE)


def read_adapter(folder: Path) -> tuple[dict[str, torch.Tensor], str | None]:
    """What `save_adapter` wrote: all that trained, and the hash of what did not."""
    file = folder / WEIGHTS
    if not file.is_file():
        raise ValueError(f"no adapter in {folder}: it has no {file.name}")
    with loading(folder), safe_open(file, "pt") as opened:
        base = (opened.metadata() or {}).get("base")
        return {name: opened.get_tensor(name) for name in opened.keys()}, base  # noqa: SIM118 - no mapping


def load_adapter(model: Mllm, folder: Path) -> None:
    """Load what `save_adapter` wrote. Raises ValueError when the model has no such parameters, or when the weights
    beside them are not those that the adapter was trained with."""
    trained, base = read_adapter(folder)
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
