"""Where models lie, the image tokenizer in one, and one clear line when one cannot be loaded."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open

from tokenizer import ImageTokenizer, ImageTokenizerConfig

from .shipped import TRAINED, put_together

SHIPPED = Path(__file__).resolve().parent.parent / "checkpoints"


def find_model(name: str | Path, file: str = "config.json", subfolder: str = "") -> str:
    """A folder that has this file (in `subfolder`) as it is, a shipped model's name as its folder under `checkpoints/`;
    anything else must look like a hub id ("owner/name"). A folder of what was trained beside a backbone is put together
    with it. Raises ValueError naming the models that are shipped."""
    shipped = sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))
    folder = None
    if str(name) and Path(name).is_dir():
        folder = Path(name)
        if not (folder / subfolder / file).is_file():
            raise ValueError(f"{str(name)!r} is no model folder: it has no {Path(subfolder) / file}")
    elif str(name).rstrip("/") in shipped:
        folder = SHIPPED / str(name).rstrip("/")
    if folder:
        if (folder / TRAINED).is_file():
            with loading(folder):
                put_together(folder)
        return str(folder)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(name)):
        raise ValueError(f"unknown model {str(name)!r}: no such folder; shipped models: {', '.join(shipped) or 'none'}")
    return str(name)


@contextmanager
def loading(name: str | Path | None) -> Iterator[None]:
    """Turn what loading raises into one ValueError that names the model (None: nothing is read). Damaged files are
    found before any is read."""
    try:
        for path in sorted(Path(name).glob("*.safetensors")) if name else ():
            with safe_open(path, "pt") as file:
                file.keys()
        yield
    except (OSError, SafetensorError, HFValidationError, json.JSONDecodeError, RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"cannot load model {str(name)!r}: {reason}") from error


def lazy_tensors(files: Sequence[str]) -> dict[str, Any] | None:
    """By name, the tensors of safetensors files (None for others), each read when it is sliced."""
    if not all(file.endswith(".safetensors") for file in files):
        return None
    opened = [safe_open(file, "pt", backend="pread") for file in files]
    return {key: file.get_slice(key) for file in opened for key in file.keys()}  # noqa: SIM118 - no mapping


def load_image_tokenizer(name: str | Path) -> ImageTokenizer:
    """By name, folder or hub id, in float32, for evaluation. It may be a model of its own or part of an Mllm, whose
    other weights are not read. Raises ValueError, in one line, for what holds none."""
    folder = Path(find_model(name))
    with loading(folder):
        if not folder.is_dir():
            folder = Path(snapshot_download(str(folder), allow_patterns=["config.json", "*.safetensors"]))
        config = json.loads((folder / "config.json").read_text())
        prefix = "image_tokenizer." if "image_tokenizer" in config else ""
        sizes = config["image_tokenizer"] if prefix else config
        strange = set(sizes) - {field.name for field in fields(ImageTokenizerConfig)}
        if strange:
            raise ValueError(f"{str(name)!r} holds no image tokenizer: its config.json has {min(strange)!r}")
        with torch.device("meta"):  # nothing is initialised: the weights take their places
            image_tokenizer = ImageTokenizer(ImageTokenizerConfig(**sizes))
        weights = _read_weights(folder, prefix)
        wrong = _shapes(image_tokenizer.state_dict()) ^ _shapes(weights)
        if wrong:
            raise ValueError(
                f"{name}: weights and config disagree on {len(wrong)} tensors of the image tokenizer, "
                f"e.g. {min(wrong)[0]}"
            )
        image_tokenizer.load_state_dict(weights, assign=True)
    return image_tokenizer.eval()


def _read_weights(folder: Path, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `prefix`, which is taken off, in float32."""
    weights = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 - no mapping
                if key.startswith(prefix):
                    tensor = file.get_tensor(key)
                    weights[key.removeprefix(prefix)] = tensor.float() if tensor.is_floating_point() else tensor
    return weights


def _shapes(weights: dict[str, torch.Tensor]) -> set[tuple[str, tuple[int, ...]]]:
    return {(name, tuple(tensor.shape)) for name, tensor in weights.items()}
