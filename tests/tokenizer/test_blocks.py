"""The layers of ViTamin are timm's: names, initial weights, outputs, and what is dropped in training."""

from functools import partial

import pytest
import torch
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vitamin import GeGluMlp, VitCfg
from timm.models.vitamin import MbConvStages as TimmStages
from torch import nn

from tokenizer.blocks import Block, MbConvStages


class TanhGeGlu(GeGluMlp):
    """As `Block` calls it, with UniTok's form of GELU."""

    def __init__(self, in_features, hidden_features, act_layer, norm_layer, **kwargs):
        super().__init__(in_features, hidden_features, act_layer="gelu_tanh", **kwargs)


def timm_block() -> nn.Module:
    norm = partial(nn.LayerNorm, eps=1e-6)
    return TimmBlock(32, 4, mlp_ratio=2.0, qkv_bias=True, norm_layer=norm, mlp_layer=TanhGeGlu, drop_path=0.4)


def timm_stages() -> nn.Module:
    return TimmStages(VitCfg(embed_dim=(8, 16, 32), depths=(2, 2, 1), stem_width=8))


@pytest.mark.parametrize(
    "ours, theirs, shape",
    [
        (partial(Block, 32, 4, drop_path=0.4), timm_block, (8, 9, 32)),
        (partial(MbConvStages, (8, 16), (2, 2), 32), timm_stages, (2, 3, 32, 48)),
    ],
)
def test_layers_are_timms(ours, theirs, shape):
    made = []
    for make in (ours, theirs):
        torch.manual_seed(0)
        module = make()
        made.append((module.state_dict(), module(torch.randn(shape))))
    (our_weights, our_output), (their_weights, their_output) = made
    assert list(our_weights) == list(their_weights)
    torch.testing.assert_close(our_weights, their_weights, rtol=0, atol=0)
    torch.testing.assert_close(our_output, their_output, rtol=0, atol=0)
