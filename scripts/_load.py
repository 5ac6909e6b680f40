"""Loading a model for a script: quietly, and stoppable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scripts._errors import stop_at_once

if TYPE_CHECKING:
    from mllm import Mllm, Processor

CFG_SCALE = 3.0  # guidance of drawings, where a script is not told another


def check_sampling(seed: int = 0, **options: Any) -> None:
    """Refuse impossible options before a model is loaded. ValueError names the option and its value."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed {seed} is outside 0 to 2^63 - 1")
    with stop_at_once():
        from mllm import generate
    generate.check_sampling(**options)


def load_model(name: str) -> tuple[Mllm, Processor]:
    """By name or folder, on the GPU if there is one, without the bars and warnings of libraries."""
    with stop_at_once():
        import torch
        from transformers.utils import logging

        from mllm import Mllm, Processor

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        model, processor = Mllm.from_pretrained(name), Processor.from_pretrained(name)
        return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), processor
