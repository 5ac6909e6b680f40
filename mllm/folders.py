"""Where models lie, and one clear line when one cannot be loaded."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open

SHIPPED = Path(__file__).resolve().parent.parent / "checkpoints"


def find_model(name: str | Path, file: str = "config.json", subfolder: str = "") -> str:
    """A folder that has this file (in `subfolder`) as it is, a shipped model's name as its folder under `checkpoints/`;
    anything else must look like a hub id ("owner/name"). Raises ValueError naming the models that are shipped."""
    if str(name) and Path(name).is_dir():
        if not (Path(name) / subfolder / file).is_file():
            raise ValueError(f"{str(name)!r} is no model folder: it has no {Path(subfolder) / file}")
        return str(name)
    shipped = sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))
    if str(name).rstrip("/") in shipped:
        return str(SHIPPED / str(name).rstrip("/"))
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


def unread(files: Sequence[str]) -> dict[str, Any] | None:
    """By name, the tensors of safetensors files (None for others), each read when it is sliced."""
    if not all(file.endswith(".safetensors") for file in files):
        return None
    opened = [safe_open(file, "pt", backend="pread") for file in files]
    return {key: file.get_slice(key) for file in opened for key in file.keys()}  # noqa: SIM118 - no mapping
