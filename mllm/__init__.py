"""The unified model: codes and text in, text and codes out."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

from .config import MllmConfig
from .decode.options import DrawingOptions, EditingOptions
from .decode.run import edit_images, generate_images, generate_text, generate_texts
from .model import MllmForConditionalGeneration
from .text.processor import MllmProcessor

AutoConfig.register("mllm", MllmConfig, exist_ok=True)
AutoModel.register(MllmConfig, MllmForConditionalGeneration, exist_ok=True)
AutoModelForImageTextToText.register(MllmConfig, MllmForConditionalGeneration, exist_ok=True)
AutoModelForMultimodalLM.register(MllmConfig, MllmForConditionalGeneration, exist_ok=True)
AutoProcessor.register(MllmConfig, MllmProcessor, exist_ok=True)

Mllm = MllmForConditionalGeneration
Processor = MllmProcessor

__all__ = [
    "DrawingOptions",
    "EditingOptions",
    "Mllm",
    "MllmConfig",
    "MllmForConditionalGeneration",
    "MllmProcessor",
    "Processor",
    "edit_images",
    "generate_images",
    "generate_text",
    "generate_texts",
]
