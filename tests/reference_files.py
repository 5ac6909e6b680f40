"""Checkpoints as the reference writes them, every kind of tensor of the released ones, a ten-thousandth of the size.

4 x 4 positions at 64 pixels, K = 8, V = 16; width 32. Stacks of blocks have 2, or all that the released models have.
"""

import json
import re
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.golden_data import filled, llama_tokenizer, reference_shapes

# For `tokenizer.unitok.VITAMIN`.
VITAMIN_TINY = {"conv_widths": (8, 16), "width": 32, "depth": 2, "heads": 2}
ARGS = OrderedDict(
    model="vitamin_tiny",
    img_size=64,
    resize_ratio=1.125,
    vocab_size=128,
    vocab_width=16,
    num_codebooks=8,
    vq_beta=0.25,
    quant_proj="attn",
    embed_dim=16,
    num_query=0,
    drop_path=0.1,
    text_width=16,
    text_heads=2,
    text_layers=2,
    text_vocab_size=40,
    text_context_length=12,
    optim_beta="0.9_0.95",
    seed=None,
    bf16=True,
    dtype=torch.bfloat16,
)
CONFIG = {
    "model_type": "mini_gemini",
    "architectures": ["MiniGeminiLlamaForCausalLM"],
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "torch_dtype": "bfloat16",
    "mm_vision_tower": "somewhere/else",
}
# Sizes of the released models -> ours, by what a tensor's name contains; the first that fits.
SIZES = {
    "text_encoder": {768: 16, 2304: 48, 3072: 64, 49408: 40, 77: 12},
    "codebooks.": {4096: 16, 8: 2},
    "linear_head": {4096: 16},
    "model.layers": {4096: 32, 11008: 64},
    "ar_head.": {4096: 32, 11008: 64},
    "": {
        1024: 32,
        3072: 96,
        2048: 64,
        64: 16,
        128: 32,
        160: 8,
        320: 16,
        640: 32,
        1280: 64,
        768: 16,
        4096: 32,
        32000: 320,
    },
}


def tiny_tensors(released: str, depth: int = 2) -> dict[str, torch.Tensor]:
    """The tensors of a released checkpoint, smaller; running statistics are not zero, as the golden data has them."""
    tensors = {}
    for name, shape in reference_shapes(released).items():
        block = re.match(r"(?!ar_head).*\.(?:blocks|resblocks|layers)\.(\d+)\.", name)
        if block and int(block[1]) >= depth:
            continue
        sizes = next(sizes for part, sizes in SIZES.items() if part in name)
        shape = [sizes.get(size, size) for size in shape]
        if name.startswith(("ar_head.linear_head.weight", "ar_head.codebooks")):
            shape[1] = 32
        tensors[name] = filled(f"{name}.seen" if name.endswith("vocab_usage") else name, shape)
    return tensors


def unitok_checkpoint(**args) -> dict:
    """What is in `unitok_tokenizer.pth`; `args` change the saved arguments."""
    state = OrderedDict(tiny_tensors("state_dict_unitok_large"))
    return {"args": OrderedDict(ARGS, **args), "epoch": 1, "trainer": {"unitok": state, "config": {"lr": 5e-4}}}


def unitok_mllm_tensors(dtype: torch.dtype = torch.bfloat16, depth: int = 2) -> dict[str, torch.Tensor]:
    """What is in the folder `unitok_mllm`, with the codebooks of `unitok_checkpoint`."""
    image_tokenizer = unitok_checkpoint()["trainer"]["unitok"]
    tensors = tiny_tensors("state_dict_unitok_mllm_7b", depth)
    for name in tensors:
        if name.endswith("codebook.weight"):
            tensors[name] = image_tokenizer[name.removeprefix("model.multi_embedder.")]
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def write_unitok_mllm(folder: Path, tensors: dict[str, torch.Tensor], kind: str = "safetensors", **config) -> None:
    """Three shards, neighbours never in the same; kind "safetensors" or "bin". `config` changes config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = {"safetensors": "model", "bin": "pytorch_model"}[kind]
    shards = {f"{stem}-0000{i + 1}-of-00003.{kind}": list(tensors)[i::3] for i in range(3)}
    for file, names in shards.items():
        shard = {name: tensors[name] for name in names}
        save_file(shard, folder / file) if kind == "safetensors" else torch.save(shard, folder / file)
    weight_map = {name: file for file, names in shards.items() for name in names}
    (folder / f"{stem}.{kind}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    llama_tokenizer(folder)
    (folder / "tokenizer.vocab").unlink()
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "model_max_length": 2048}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Names, dtypes and values."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )
