"""What a results file says about how its numbers came about."""

import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

PACKAGES = ("torch", "transformers", "numpy", "pillow", "sentencepiece")


def about(script: str, argv: list[str] | None) -> dict[str, Any]:
    """Date, command, versions and threads."""
    import torch

    words = sys.argv[1:] if argv is None else argv
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", f"scripts.{script}", *words]),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "threads": torch.get_num_threads(),
    }
