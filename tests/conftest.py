"""A tiny random model that every test folder shares: 2 x 2 positions, K = 2, V = 16, D = 32."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mllm import Mllm, MllmConfig, Processor
from tokenizer import SIZES
from training.lm.text_tokenizer import train_text_tokenizer

BACKBONE = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny tensors are slower on several threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def text_tokenizer(tmp_path_factory) -> PreTrainedTokenizerBase:
    """Trained on a few scenes; 256 bytes, the special tokens and some words."""
    folder = tmp_path_factory.mktemp("text_tokenizer")
    train_text_tokenizer(folder, vocab_size=768, scenes=300)
    return AutoTokenizer.from_pretrained(folder)


def new_tiny_model(
    text_tokenizer: PreTrainedTokenizerBase,
    code_embedding: str = "tables",
    code_head: str = "depth",
    quantizer: str = "multi_codebook",
    image_layers: dict | None = None,
    kind: type[Mllm] = Mllm,
) -> tuple[Mllm, Processor]:
    """A fresh (model, processor), always with the same weights."""
    image_tokenizer = replace(SIZES["tiny"], text_vocab_size=len(text_tokenizer) + 1, quantizer=quantizer)
    processor = Processor(text_tokenizer, image_tokenizer.num_positions, image_tokenizer.image_size)
    config = MllmConfig(
        text_config={**BACKBONE, "vocab_size": len(text_tokenizer)},
        image_tokenizer=image_tokenizer.to_dict(),
        code_embedding=code_embedding,
        code_head=code_head,
        code_head_args={"layers": 1, "heads": 2} if code_head == "depth" else {},
        image_layers=image_layers,
        pad_token_id=processor.pad_id,
        image_token_id=processor.image_id,
        boi_token_id=processor.boi_id,
        eoi_token_id=processor.eoi_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(config).eval(), processor


@pytest.fixture(scope="session")
def make_tiny_model(text_tokenizer) -> Callable[..., tuple[Mllm, Processor]]:
    """A function: (code_embedding, code_head, quantizer, image_layers) -> a fresh (model, processor), always with the
    same weights."""
    return partial(new_tiny_model, text_tokenizer)


@pytest.fixture(scope="session")
def tiny_model(make_tiny_model) -> tuple[Mllm, Processor]:
    """(model, processor) to read from; a test that changes weights makes its own with `make_tiny_model`."""
    return make_tiny_model()


@pytest.fixture(scope="session")
def tiny_folder(tiny_model, tmp_path_factory) -> Path:
    """The tiny model as `--model` takes it."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    for part in tiny_model:
        part.save_pretrained(folder)
    return folder
