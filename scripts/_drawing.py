"""How images are drawn and edited, on a command line: a flag for each field of `DrawingOptions` or `EditingOptions`."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

# From its file: as a module of its package it would bring torch along, for which --help and mistakes would wait.
_SPEC = spec_from_file_location("drawing_options", Path(__file__).parents[1] / "mllm/decode/options.py")
_OPTIONS = module_from_spec(_SPEC)
_SPEC.loader.exec_module(_OPTIONS)

_FIELDS = {field.name: field for field in fields(_OPTIONS.EditingOptions)}
EDITING, DRAWING = tuple(_FIELDS), tuple(field.name for field in fields(_OPTIONS.DrawingOptions))
OF_IMAGES = tuple(name for name in DRAWING if name not in {field.name for field in fields(_OPTIONS.Sampling)})
"""Those that text has not, too."""


def add_drawing_options(parser: argparse.ArgumentParser, names: Sequence[str] = DRAWING) -> None:
    for name in names:
        default, told = _FIELDS[name].default, _FIELDS[name].metadata["help"]
        flag, told = f"--{name.replace('_', '-')}", f"{told} (default: %(default)s)"
        if isinstance(default, tuple):
            parser.add_argument(flag, type=float, nargs=2, default=[*default], metavar=("A", "B"), help=told)
        else:
            parser.add_argument(flag, type=type(default), default=default, help=told)


def drawing_options(args: argparse.Namespace, names: Sequence[str] = DRAWING) -> dict[str, Any]:
    """Of the command line. Raises ValueError, which names the option and its value, for impossible ones."""
    options = {name: getattr(args, name) for name in names}
    (_OPTIONS.EditingOptions if names == EDITING else _OPTIONS.DrawingOptions)(**options)
    return options


def check_seed(seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed {seed} is outside 0 to 2^63 - 1")


def check_writing(**options: Any) -> None:
    """Of text. Raises ValueError as `drawing_options` does."""
    _OPTIONS.Sampling(**options)
