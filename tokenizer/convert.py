"""The reference's checkpoint layout -> ours (github FoundationVision/UniTok, `trainer.unitok` of a checkpoint).

Parameter names are the reference's own but for the codebooks, which we keep as one tensor [K, V, q].
"""

import re

import torch

# Reference tensors that ours does not have, and why nothing is lost.
DROPPED = {
    r"encoder\.pos_embed": "frozen zeros, added to nothing",
    r"(quant_proj|post_quant_proj|attn_projection)\.attn\.zero_k_bias": "a buffer of zeros",
    r"quantizer\.codebooks\.\d+\.vocab_usage": "a running statistic of training",
}
CODEBOOK = re.compile(r"quantizer\.codebooks\.(\d+)\.codebook\.weight")


def convert_unitok(reference: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """State dict of the reference's image tokenizer -> state dict of `ImageTokenizer`."""
    ours, codebooks = {}, {}
    for name, tensor in reference.items():
        if any(re.fullmatch(pattern, name) for pattern in DROPPED):
            continue
        codebook = CODEBOOK.fullmatch(name)
        if codebook:
            codebooks[int(codebook[1])] = tensor
        else:
            ours[name] = tensor
    ours["quantizer.codebooks_KVq"] = torch.stack([codebooks[k] for k in range(len(codebooks))])
    return ours
