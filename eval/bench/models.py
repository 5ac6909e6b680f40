"""The models that are timed: one by name, or of a shape with random weights."""

from functools import cache
from typing import Any

import torch

from mllm import Mllm, MllmConfig, Processor
from tokenizer import SIZES, ImageTokenizer, ImageTokenizerConfig

from ..models import load_image_tokenizer, load_model
from ..pieces import device
from . import BACKBONES


@cache
def get_image_tokenizer(model: str | None, shape: str | None) -> ImageTokenizer:
    """Raises ValueError for one that the loops of the reference cannot be compared with."""
    if model:
        image_tokenizer = load_image_tokenizer(model)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            image_tokenizer = ImageTokenizer(known(SIZES, shape)).to(device()).eval()
    config = image_tokenizer.config
    kinds = config.architecture, config.quantizer, config.layout
    if kinds != ("vitamin", "multi_codebook", "grid"):
        raise ValueError(
            f"{model or shape}: the loops of the reference, which this is compared with, know architecture vitamin,"
            f" quantizer multi_codebook and layout grid, not {', '.join(kinds)}"
        )
    return image_tokenizer


@cache
def get_model(model: str | None, shape: str | None) -> tuple[Mllm, Processor]:
    return load_model(model) if model else new_model(shape)


def model_config(shape: str, vocab_size: int | None = None) -> tuple[MllmConfig, Processor]:
    """A Llama of that width, the reference's code embedding (all of it) and code head (three more layers
    of the same Llama, one output of 4096 for eight sub-codebooks). The image tokenizer, which plays no part, is small.
    """
    width, layers = known(BACKBONES, shape)
    text = {"text_width": 16, "text_heads": 1, "text_layers": 1, "text_vocab_size": 8}
    sizes = ImageTokenizerConfig(depth=1, conv_widths=(16, 16), conv_depths=(1, 1), **text)
    processor = Processor(Processor.from_pretrained("scenes").tokenizer, sizes.num_positions, sizes.image_size)
    hidden = -(-8 * width // 3 // 256) * 256  # as in Llama: 8/3 of the width, rounded up
    heads = width // (128 if width >= 2048 else 64)
    backbone = {
        "vocab_size": vocab_size or len(processor.tokenizer),
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
    }
    config = MllmConfig(
        text_config=backbone,
        image_tokenizer=sizes.to_dict(),
        code_embedding="codebook",
        code_head_args={"layers": 3, "heads": heads, "hidden": hidden, "shared_output": True},
    )
    return config, processor


def new_model(shape: str) -> tuple[Mllm, Processor]:
    """Random weights in float32 that bfloat16 represents."""
    config, processor = model_config(shape)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Mllm(config).eval()
    for part in (model.backbone, model.code_embed, model.code_head, model.lm_head):
        part.bfloat16().float()
    return model.to(device()), processor


def known(shapes: dict[str, Any], name: str) -> Any:
    if name not in shapes:
        raise ValueError(f"unknown --shape {name!r}; known for this command: {', '.join(shapes)}")
    return shapes[name]


def question(model: Mllm, row: int) -> list[dict[str, Any]]:
    """A chat about an image of random codes."""
    sizes, generator = model.config.image_tokenizer_config, torch.Generator().manual_seed(row)
    codes_LK = torch.randint(sizes.codebook_size, (sizes.num_positions, sizes.num_codebooks), generator=generator)
    content = [{"type": "image", "image": codes_LK}, {"type": "text", "text": f"are there {row + 1} dogs?"}]
    return [{"role": "user", "content": content}]


def random_inputs(model: Mllm, *shape: int) -> torch.Tensor:
    """[*shape, D], on the model's device."""
    generator = torch.Generator().manual_seed(0)
    return 0.1 * torch.randn(*shape, model.config.text_config.hidden_size, generator=generator).to(model.device)
