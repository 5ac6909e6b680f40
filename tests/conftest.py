"""A tiny random model that every test folder shares: 2 x 2 positions, K = 2, V = 16, D = 32."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from data_recipes.scenes.world import LAYOUT_WORDS
from mllm import Mllm, MllmConfig, Processor
from mllm.text.ids import plan_token
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
    plan_length: int = 0,
    kind: type[Mllm] = Mllm,
    order: str = "raster",
    code_embedding_args: dict | None = None,
    image_input: str = "codes",
    image_lengths: list[int] | None = None,
    **sizes: Any,
) -> tuple[Mllm, Processor]:
    """A fresh (model, processor), always with the same weights."""
    image_tokenizer = replace(SIZES["tiny"], text_vocab_size=len(text_tokenizer) + 1, quantizer=quantizer, **sizes)
    if plan_length:
        text_tokenizer = deepcopy(text_tokenizer)
        text_tokenizer.add_tokens(list(map(plan_token, LAYOUT_WORDS)), special_tokens=True)
    processor = Processor(text_tokenizer, image_tokenizer.num_positions, image_tokenizer.image_size)
    config = MllmConfig(
        text_config={**BACKBONE, "vocab_size": len(text_tokenizer)},
        image_tokenizer=image_tokenizer.to_dict(),
        code_embedding=code_embedding,
        code_embedding_args=code_embedding_args,
        code_head=code_head,
        code_head_args={"layers": 1, "heads": 2} if code_head == "depth" else {},
        image_layers=image_layers,
        order=order,
        image_input=image_input,
        image_lengths=image_lengths,
        plan_length=plan_length,
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
    """A function: (code_embedding, code_head, quantizer, image_layers, plan_length, kind, order, code_embedding_args,
    image_input, image_lengths, fields of the image tokenizer) -> a fresh (model, processor), always with the same
    weights. With a plan_length, its text tokenizer has the words of layouts."""
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


@pytest.fixture(scope="session")
def pretrained_folder(tmp_path_factory) -> Path:
    """A tiny language model with tied embeddings that has never heard of images, and reads bytes and ChatML."""
    folder = tmp_path_factory.mktemp("pretrained")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE({letter: id for id, letter in enumerate(letters)}, []))
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    own = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<|im_start|>", eos_token="<|im_end|>")
    own.save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(5)
    LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=len(own), tie_word_embeddings=True)).save_pretrained(folder)
    return folder
