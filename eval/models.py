"""Models by name, on the device of this process, without the bars and warnings of libraries."""

from transformers.utils import logging

import mllm.folders
from mllm import Mllm, Processor
from mllm.fast.quantize import quantize
from tokenizer import ImageTokenizer

from .pieces import device


def load_model(name: str, quantization: str | None = None) -> tuple[Mllm, Processor]:
    """By name or folder; with `quantization`, "int8" or "int4", what is quantized is never held in float32."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    dtype = "bfloat16" if quantization else "auto"
    model, processor = Mllm.from_pretrained(name, dtype=dtype), Processor.from_pretrained(name)
    model = model.to(device()).eval()
    return (quantize(model, quantization) if quantization else model), processor


def load_image_tokenizer(name: str) -> ImageTokenizer:
    """As `mllm.folders.load_image_tokenizer`."""
    return mllm.folders.load_image_tokenizer(name).to(device())
