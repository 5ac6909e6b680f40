"""A pretrained CLIP as the start of an image tokenizer: ViTamin weights of timm or open_clip."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from tokenizer import ImageTokenizer
from tokenizer.unitok import compare
from tokenizer.weights import read_weights

TRUNK, TEXT = "visual.trunk.", "text."  # open_clip's prefixes; timm's names have none
ENCODER_PARTS = ("patch_embed.", "blocks.")  # the rest is the head, and a position table that UniTok does without
WHAT = "weights of ViTamin (timm) or of a CLIP with it (open_clip)"


def load_clip(model: ImageTokenizer, file: str | Path) -> None:
    """Fill the encoder and, from open_clip's files, the text tower. Raises ValueError where names or shapes differ."""
    if model.config.architecture != "vitamin":
        raise ValueError(f"recipe, init_clip: ViTamin's weights do not fit architecture {model.config.architecture!r}")
    tensors = _read(file)
    trunk = {name.removeprefix(TRUNK): tensor for name, tensor in tensors.items() if not name.startswith(TEXT)}
    parts = {"encoder": {name: tensor for name, tensor in trunk.items() if name.startswith(ENCODER_PARTS)}}
    if any(name.startswith(TEXT) for name in tensors):
        text = {name.removeprefix(TEXT): tensor for name, tensor in tensors.items() if name.startswith(TEXT)}
        text.pop("attn_mask", None)
        parts["text_encoder"] = text
    for part, found in parts.items():
        ours = model.get_submodule(part).state_dict()
        expected = {
            name: tensor for name, tensor in ours.items() if part != "encoder" or name.startswith(ENCODER_PARTS)
        }
        compare({name: tensor.shape for name, tensor in expected.items()}, found, file)
        model.get_submodule(part).load_state_dict({**ours, **found})


def _read(file: str | Path) -> dict:
    if Path(file).suffix != ".safetensors":
        return read_weights(file, WHAT)
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read {file} as {WHAT}: {error}") from error
