"""Models by name, on the device of this process, without the bars and warnings of libraries."""

import warnings

from transformers.utils import logging

import mllm.folders
from mllm import Mllm, Processor
from mllm.device import check_room
from mllm.fast.quantize import quantize
from tokenizer import ImageTokenizer

from .pieces import device


def load_model(name: str, quantization: str | None = None) -> tuple[Mllm, Processor]:
    """By name or folder; with `quantization`, "int8" or "int4", what is quantized is never held in float32."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    dtype = "bfloat16" if quantization else "auto"
    model, processor = Mllm.from_pretrained(name, dtype=dtype), Processor.from_pretrained(name)
    model = model.eval()
    if quantization:
        quantize(model, quantization)
    if quantization == "int4":
        if device().type != "cpu":
            warnings.warn("int4 runs on the CPU alone; int8 runs on a GPU", stacklevel=2)
        return model, processor
    return move(model, name), processor


def move(model: Mllm, name: str) -> Mllm:
    """To this process's device; where a GPU has no room for it, it stays on the CPU, with a warning."""
    try:
        check_room(sum(weight.nbytes for weight in model.state_dict().values()), device(), name)
    except ValueError as problem:
        warnings.warn(f"{problem}; the CPU is used", stacklevel=2)
        return model
    return model.to(device())


def load_image_tokenizer(name: str) -> ImageTokenizer:
    """As `mllm.folders.load_image_tokenizer`."""
    return mllm.folders.load_image_tokenizer(name).to(device())
