"""The reference's unified-model layout -> ours (github FoundationVision/UniTok, `unitok_mllm`)."""

import re

import torch

from tokenizer.convert import CODEBOOK, DROPPED

RENAMED = [
    (r"model\.multi_embedder\.(attn_projection|mm_projector)\.(.+)", r"code_embed.\1.\2"),
    (r"model\.(embed_tokens|layers|norm)\.(.+)", r"backbone.\1.\2"),
    (r"lm_head\.weight", r"lm_head.weight"),
    (r"ar_head\.codebooks\.(\d+)\.weight", r"code_head.tables.\1.weight"),
    (r"ar_head\.linear_head\.(weight|bias)", r"code_head.outputs.0.\1"),
    (r"ar_head\.norm\.weight", r"code_head.norm.weight"),
    (r"ar_head\.layers\.(\d+)\.input_layernorm\.weight", r"code_head.layers.\1.norm1.weight"),
    (r"ar_head\.layers\.(\d+)\.post_attention_layernorm\.weight", r"code_head.layers.\1.norm2.weight"),
    (r"ar_head\.layers\.(\d+)\.self_attn\.o_proj\.weight", r"code_head.layers.\1.out.weight"),
    (r"ar_head\.layers\.(\d+)\.mlp\.down_proj\.weight", r"code_head.layers.\1.down.weight"),
]
# Matrices that ours keeps as one, in the order of their rows.
FUSED = {
    "qkv": [f"self_attn.{name}_proj" for name in "qkv"],
    "gate_up": [f"mlp.{name}_proj" for name in ("gate", "up")],
}


def convert_unitok_mllm(reference: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """State dict of the reference's language model -> ours, without the image tokenizer.

    Raises ValueError naming a tensor that has no place.
    """
    reference = dict(reference)
    ours = _fused(reference)
    codebooks = {}
    for name, tensor in reference.items():
        inside = name.removeprefix("model.multi_embedder.")
        codebook = CODEBOOK.fullmatch(inside)
        if codebook:
            codebooks[int(codebook[1])] = tensor
        elif not any(re.fullmatch(pattern, inside) for pattern in DROPPED):
            ours[_rename(name)] = tensor
    ours["code_embed.quantizer.codebooks_KVq"] = torch.stack([codebooks[k] for k in range(len(codebooks))])
    return ours


def _fused(reference: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Takes the fused matrices' parts out of `reference`."""
    layers = sorted({int(match[1]) for name in reference if (match := re.match(r"ar_head\.layers\.(\d+)\.", name))})
    return {
        f"code_head.layers.{layer}.{fused}.weight": torch.cat(
            [reference.pop(f"ar_head.layers.{layer}.{part}.weight") for part in parts]
        )
        for layer in layers
        for fused, parts in FUSED.items()
    }


def _rename(name: str) -> str:
    for pattern, replacement in RENAMED:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    raise ValueError(f"unknown tensor {name!r}: not of a UniTok language model")
