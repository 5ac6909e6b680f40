"""Loading a model for a script: quietly, and stoppable."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scripts._errors import stop_at_once

if TYPE_CHECKING:
    from mllm import Mllm, Processor
    from tokenizer import ImageTokenizer

QUANTIZATIONS = ("int8", "int4")  # as mllm.fast.quantize has them, for --help, which would wait seconds for it


def load_model(name: str, quantization: str | None = None) -> tuple[Mllm, Processor]:
    with stop_at_once():
        from eval import models

        return models.load_model(name, quantization)


def load_image_tokenizer(name: str) -> ImageTokenizer:
    with stop_at_once():
        from eval import models

        return models.load_image_tokenizer(name)
