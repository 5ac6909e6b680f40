"""Numbers of the reference implementation, and the inputs and weights they were computed with.

`golden/golden.safetensors` was made on a CPU in float32 by UniTok at commit bb8012e. Every tensor of its models was
filled by a rule that depends on the tensor's name in the reference and its shape alone, so no weights are stored.
"""

import json
import math
import zlib
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file

FOLDER = Path(__file__).parent / "golden"


@cache
def golden() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "golden.safetensors")


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
