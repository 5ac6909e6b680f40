"""Numbers of the reference implementation, and the inputs and weights they were computed with.

`golden/golden.safetensors` was made on a CPU in float32 by UniTok at commit bb8012e. Every tensor of its models was
filled by a rule that depends on the tensor's name in the reference and its shape alone, so no weights are stored.
"""

import json
import math
import zlib
from collections.abc import Iterable
from functools import cache, partial
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import load_file
from transformers import LlamaTokenizer

FOLDER = Path(__file__).parent / "golden"
SENTENCES = ["USER USER USER ASSISTANT", "generate an image: this is a dog, the dog is in an image"]


@cache
def golden(prefix: str = "") -> dict[str, torch.Tensor]:
    """The stored tensors whose names begin with `prefix`, under the rest of their names."""
    stored = golden() if prefix else load_file(FOLDER / "golden.safetensors")
    return {name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith(prefix)}


def assert_reproduced(ours: dict[str, torch.Tensor], stored: dict[str, torch.Tensor]) -> None:
    """All of `stored` and nothing else, within 1e-4, or that share of the largest element where it is below one;
    gradients within 1e-3 of it."""
    assert sorted(ours) == sorted(stored)
    for name, expected in stored.items():
        largest = float(expected.abs().max())
        atol = 1e-3 * largest if name.startswith("grad_") else 1e-4 * min(largest, 1.0)
        found = ours[name].detach().reshape(expected.shape if expected.numel() == 1 else ours[name].shape)
        message = partial("{}: {}".format, name)
        torch.testing.assert_close(found, expected, atol=atol, rtol=0, check_dtype=False, msg=message)


def gradients(of: dict[str, torch.Tensor], names: Iterable[str], rows: int) -> dict[str, torch.Tensor]:
    """Norms and slices as they are stored, of gradients by the reference's names."""
    kept = {}
    for name in names:
        rows_of = torch.atleast_1d(of[name])
        kept[f"grad_norm/{name}"] = rows_of.norm()
        kept[f"grad_slice/{name}"] = rows_of.reshape(len(rows_of), -1)[:rows, :16]
    return kept


def reference_shapes(name: str) -> dict[str, list[int]]:
    """Tensor name -> shape, of a released checkpoint."""
    return {key: value["shape"] for key, value in json.loads((FOLDER / f"{name}.json").read_text()).items()}


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def filled(name: str, shape) -> torch.Tensor:
    """The value of the reference's tensor `name`; the first rule that fits."""
    shape = tuple(shape)
    last = name.rpartition(".")[2]
    if last in ("vocab_usage", "zero_k_bias", "pos_embed"):
        return torch.zeros(shape)
    if last == "logit_scale":
        return torch.full(shape, math.log(1 / 0.07))
    noise = torch.randn(shape, generator=_generator(zlib.crc32(name.encode())))
    if last == "weight" and (".codebook." in name or ".embed_tokens." in name):
        return noise
    if len(shape) >= 2:
        return noise * (1 / math.sqrt(math.prod(shape[1:])))
    if last in ("weight", "gamma"):
        return 1 + 0.1 * noise
    return 0.05 * noise


def make_images(seed: int, batch: int = 2) -> torch.Tensor:
    """pixels_N3HW, 256 px: coarse blocks plus fine noise."""
    generator = _generator(seed)
    coarse = torch.rand(batch, 3, 32, 32, generator=generator) * 2 - 1
    fine = torch.rand(batch, 3, 256, 256, generator=generator) * 2 - 1
    return 0.75 * coarse.repeat_interleave(8, 2).repeat_interleave(8, 3) + 0.25 * fine


def make_texts(seed: int, batch: int = 2, length: int = 77, vocab_size: int = 49408) -> torch.Tensor:
    """ids_NT as CLIP has them: start, words, end, zeros."""
    generator = _generator(seed)
    ids_NT = torch.zeros(batch, length, dtype=torch.long)
    for row in ids_NT:
        count = int(torch.randint(3, 20, (1,), generator=generator))
        row[0], row[count + 1] = vocab_size - 2, vocab_size - 1
        row[1 : count + 1] = torch.randint(1, vocab_size - 2, (count,), generator=generator)
    return ids_NT


def make_codes(seed: int, batch: int = 1) -> torch.Tensor:
    """codes_NLK of 256 positions, 8 sub-codebooks, 4096 entries."""
    return torch.randint(0, 4096, (batch, 8, 256), generator=_generator(seed)).transpose(1, 2)


def llama_tokenizer(folder: Path, **options) -> LlamaTokenizer:
    """A small stand-in for Llama's sentencepiece tokenizer, with the golden model's 320 pieces: unk 0, bos 1, eos 2,
    bytes 3 to 258. The sentencepiece model is at `folder`/tokenizer.model."""
    if not (folder / "tokenizer.model").exists():
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES),
            model_prefix=str(folder / "tokenizer"),
            vocab_size=320,
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            minloglevel=2,
        )
    return LlamaTokenizer.from_pretrained(folder, **options)


def lpips_tensors() -> dict[str, torch.Tensor]:
    """The reference's `lpips_with_vgg.pth`, filled. Places are counted from each slice's own start."""
    slices = {1: (0, 2), 2: (1, 3), 3: (1, 3, 5), 4: (1, 3, 5), 5: (1, 3, 5)}
    widths, channels = {1: 64, 2: 128, 3: 256, 4: 512, 5: 512}, 3
    shapes = {}
    for number, places in slices.items():
        for place in places:
            shapes[f"net.slice{number}.{place}.weight"] = (widths[number], channels, 3, 3)
            shapes[f"net.slice{number}.{place}.bias"] = (widths[number],)
            channels = widths[number]
    tensors = {name: filled(f"lpips.{name}", shape) for name, shape in shapes.items()}
    lins = {f"lins.{number - 1}.model.1.weight": (1, width, 1, 1) for number, width in widths.items()}
    return tensors | {name: filled(f"lpips.{name}", shape).abs() for name, shape in lins.items()}


def dinov2_tensors() -> dict[str, torch.Tensor]:
    """`dinov2_vits14_pretrain.pth`, filled."""
    vector, block = (384,), {}
    for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
        block[name] = vector
    for name, out, width in (("attn.qkv", 1152, 384), ("attn.proj", 384, 384), ("mlp.fc1", 1536, 384)):
        block |= {f"{name}.weight": (out, width), f"{name}.bias": (out,)}
    block |= {"mlp.fc2.weight": (384, 1536), "mlp.fc2.bias": vector}
    shapes = {"cls_token": (1, 1, 384), "mask_token": (1, 384), "norm.weight": vector, "norm.bias": vector}
    shapes |= {"patch_embed.proj.weight": (384, 3, 14, 14), "patch_embed.proj.bias": vector}
    shapes |= {f"blocks.{number}.{name}": shape for number in range(12) for name, shape in block.items()}
    tensors = {name: filled(f"dino.{name}", shape) for name, shape in shapes.items()}
    return tensors | {"pos_embed": filled("dino.pos_embedding", (1, 1370, 384))}
