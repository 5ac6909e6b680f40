"""A trained model as a small folder to ship: weights in bfloat16, and the recipes and logs of its runs. Beside a
pretrained backbone that stayed, only what trained is shipped.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from data_recipes.files import whole
from mllm import Mllm, Processor
from mllm.shipped import ROWS, TRAINED, backbone_hash, backbone_weights, pack, unpack, with_trained
from tokenizer import ImageTokenizer
from tokenizer.weights import GIVE_CODES, tensors_hash

from ..run.plots import plot_run
from ..run.recipe import ModelConfig, load_config
from .lora import MODEL_RECIPE, read_adapter

SHARD = "40MB"  # some hosts of repositories refuse larger files
INT8 = ("image_layers.",)  # the largest part of what trains beside a backbone


def export_model(model_folder: Path, out: Path, runs: Sequence[Path], image_tokenizer: Path | None = None) -> None:
    """Write weights, processor, and of each run its recipe, log and curves (`out/training/NAME`).

    The language model is stored in bfloat16, which it was computed in. The image tokenizer keeps float32: rounding it
    would change the codes that the language model was trained on. `image_tokenizer`, whose decoder was trained further,
    replaces the model's own. Raises ValueError when it would give other codes.
    """
    model, processor = Mllm.from_pretrained(model_folder), Processor.from_pretrained(model_folder)
    if image_tokenizer:
        replace_decoder(model, image_tokenizer)
    weights = {
        name: tensor if name.startswith("image_tokenizer.") else tensor.to(torch.bfloat16)
        for name, tensor in model.state_dict().items()
    }
    model.save_pretrained(out, state_dict=weights, max_shard_size=SHARD)
    processor.save_pretrained(out)
    _tell(out, runs)


def export_trained(
    model_folder: Path, backbone: str, out: Path, runs: Sequence[Path], image_tokenizer: Path | None = None
) -> None:
    """The same of a run with adapters, without the weights of its pretrained `backbone`: `mllm.shipped` puts both
    together. Weights of image positions are stored in int8, others in bfloat16, except for what gives codes. Raises
    ValueError, besides, when more than what is shipped differs from the backbone; then nothing is written."""
    adapter = model_folder.parent / "adapter"
    trained, _ = read_adapter(adapter)
    lora = load_config(ModelConfig, adapter / MODEL_RECIPE).lora
    model, processor = Mllm.from_pretrained(model_folder), Processor.from_pretrained(model_folder)
    if image_tokenizer:
        replace_decoder(model, image_tokenizer)
    state, base, scale = model.state_dict(), backbone_weights(backbone), lora.alpha / lora.rank
    for name in [name for name in trained if name.endswith(ROWS)]:  # all that the backbone lacks, trained or not
        weight = name.removesuffix(ROWS) + ".weight"
        trained[name] = state[weight][len(base[weight]) :]
    tensors = pack(trained, INT8)
    for name, tensor in model.image_tokenizer.state_dict().items():
        half = tensor.bfloat16() if tensor.is_floating_point() else tensor
        changes_codes = name.startswith(GIVE_CODES) and not torch.equal(half.to(tensor.dtype), tensor)
        tensors[f"image_tokenizer.{name}"] = tensor if changes_codes else half
    made = with_trained(base, unpack(tensors), scale)
    for name, tensor in state.items():
        if name not in made or (tensor.numel() and (made[name] - tensor).abs().max() > 0.02 * tensor.abs().max()):
            raise ValueError(f"{name} is not what {backbone} and the adapter make: the run began with other weights")
    about = {
        "backbone": backbone,
        "sha256": backbone_hash(backbone),
        "scale": str(scale),
        "hash": tensors_hash(tensors),
    }
    out.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(out)
    model.generation_config.save_pretrained(out)
    processor.save_pretrained(out)
    with whole(out / TRAINED) as part:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, about)
    _tell(out, runs)


def _tell(out: Path, runs: Sequence[Path]) -> None:
    """Beside the weights: the precision to compute in, and of each run its recipe, log and curves."""
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n")
    for run in runs:
        folder = out / "training" / run.name
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("config.yaml", "metrics.jsonl"):
            shutil.copy(run / name, folder / name)
        plot_run(run, folder / "curves.png")


def replace_decoder(model: Mllm, folder: Path) -> None:
    """Take over what comes after the codes in the image tokenizer at `folder`."""
    before, after = model.image_tokenizer.state_dict(), ImageTokenizer.from_pretrained(folder).state_dict()
    for name in before:
        if name.startswith(GIVE_CODES) and not torch.equal(before[name], after[name]):
            raise ValueError(f"{folder} gives other codes than the model was trained on: {name} differs")
    model.image_tokenizer.load_state_dict(after)
