"""Loading a model for a script: quietly, and stoppable."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts._errors import stop_at_once

if TYPE_CHECKING:
    import torch

    from mllm import Mllm, Processor
    from tokenizer import ImageTokenizer

# Of drawings, where a script is not told others: `DrawingOptions`, without its import, for which --help would wait
# seconds. A test compares them.
CFG_SCALE = 2.0
DRAWING_TEMPERATURE = 0.5


QUANTIZATIONS = ("int8", "int4")  # as mllm.fast.quantize has them, for --help


def check_sampling(seed: int = 0, **options: Any) -> None:
    """Refuse impossible options before a model is loaded. ValueError names the option and its value."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed {seed} is outside 0 to 2^63 - 1")
    with stop_at_once():
        from mllm.decode.sampling import DrawingOptions
    DrawingOptions(**options)


def load_model(name: str, quantization: str | None = None) -> tuple[Mllm, Processor]:
    """By name or folder, on this process's GPU if there is one, without the bars and warnings of libraries."""
    with stop_at_once():
        from transformers.utils import logging

        from eval.pieces import device
        from mllm import Mllm, Processor

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        dtype = "bfloat16" if quantization else "auto"  # what is quantized is never held in float32
        model, processor = Mllm.from_pretrained(name, dtype=dtype), Processor.from_pretrained(name)
        model = model.to(device()).eval()
        if quantization:
            from mllm.fast.quantize import quantize

            quantize(model, quantization)
        return model, processor


def load_image_tokenizer(name: str) -> ImageTokenizer:
    """By name, folder or hub id, in float32, on this process's GPU if there is one. It may be a model of its own or
    part of an Mllm, whose other weights are not read. Raises ValueError, in one line, for what holds none."""
    with stop_at_once():
        import torch
        from huggingface_hub import snapshot_download

        from eval.pieces import device
        from mllm.folders import find_model, loading
        from tokenizer import ImageTokenizer, ImageTokenizerConfig

        folder = Path(find_model(name))
        with loading(folder):
            if not folder.is_dir():
                folder = Path(snapshot_download(str(folder), allow_patterns=["config.json", "*.safetensors"]))
            config = json.loads((folder / "config.json").read_text())
            prefix = "image_tokenizer." if "image_tokenizer" in config else ""
            sizes = config["image_tokenizer"] if prefix else config
            strange = set(sizes) - {field.name for field in fields(ImageTokenizerConfig)}
            if strange:
                raise ValueError(f"{name!r} holds no image tokenizer: its config.json has {min(strange)!r}")
            with torch.device("meta"):  # nothing is initialised: the weights take their places
                image_tokenizer = ImageTokenizer(ImageTokenizerConfig(**sizes))
            weights = read_weights(folder, prefix)
            wrong = shapes(image_tokenizer.state_dict()) ^ shapes(weights)
            if wrong:
                raise ValueError(
                    f"{name}: weights and config disagree on {len(wrong)} tensors of the image tokenizer, "
                    f"e.g. {min(wrong)[0]}"
                )
            image_tokenizer.load_state_dict(weights, assign=True)
        return image_tokenizer.to(device()).eval()


def read_weights(folder: Path, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `prefix`, which is taken off, in float32."""
    from safetensors import safe_open

    weights = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 - no mapping
                if key.startswith(prefix):
                    weights[key.removeprefix(prefix)] = file.get_tensor(key).float()
    return weights


def shapes(weights: dict[str, torch.Tensor]) -> set[tuple[str, tuple[int, ...]]]:
    return {(name, tuple(tensor.shape)) for name, tensor in weights.items()}
