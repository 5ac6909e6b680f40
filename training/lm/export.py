"""A trained model as a small folder to ship: weights in bfloat16, and the recipes and logs of its runs."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from mllm import Mllm, Processor
from tokenizer import ImageTokenizer
from tokenizer.weights import GIVE_CODES

from ..run.plots import plot_run

SHARD = "40MB"  # some hosts of repositories refuse larger files


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
