"""Which columns each position of a sequence sees, as a mask of booleans and as what is added to scores.

Shapes: B rows, T new positions, S columns: those of earlier passes, then the new ones.
"""

import torch


def visible(mask: torch.Tensor | None, like_BT: torch.Tensor, past: int = 0) -> torch.Tensor:
    """What each new position sees after `past` columns, [B, T, S]. `mask` is one of transformers: none, of columns
    [B, S], or added to scores [B, 1, T, S]."""
    if mask is not None and mask.dim() == 4:
        return mask[:, 0] == 0
    B, T = like_BT.shape
    causal_BTS = torch.ones(B, T, past + T, dtype=torch.bool, device=like_BT.device).tril(past)
    return causal_BTS if mask is None else causal_BTS & mask.bool()[:, None]


def added(visible_BTS: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is added to scores, [B, 1, T, S], in the precision of the model: some kernels take no other."""
    zeros = torch.zeros(visible_BTS.shape, dtype=dtype, device=visible_BTS.device)
    return zeros.masked_fill(~visible_BTS, torch.finfo(dtype).min)[:, None]
