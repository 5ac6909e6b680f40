"""The network of dense convolutions: its layers against torch's own, and sizes of encoder and decoder apart."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tokenizer import SIZES, ImageTokenizer
from tokenizer.conv import Conv, ConvBlock, Down, Up

CONV = replace(SIZES["tiny"], architecture="conv")


@pytest.mark.parametrize("side", [1, 3])
def test_a_convolution_is_torchs_with_its_kernel_as_a_matrix(side):
    torch.manual_seed(0)
    conv, x_NHWC = Conv(5, 7, side), torch.randn(2, 4, 6, 5)
    kernel_OIHW = conv.weight.reshape(7, side, side, 5).permute(0, 3, 1, 2)
    expected = F.conv2d(x_NHWC.permute(0, 3, 1, 2), kernel_OIHW, conv.bias, padding="same").permute(0, 2, 3, 1)
    assert conv.weight.ndim == 2
    torch.testing.assert_close(conv(x_NHWC), expected)


def test_doubling_undoes_halving():
    x_NHWC, down, up = torch.randn(2, 4, 6, 3), Down(3, 12), Up(12, 3)
    with torch.no_grad():
        down.proj.weight.copy_(torch.eye(12))
        up.proj.weight.copy_(torch.eye(12))
    assert down(x_NHWC).shape == (2, 2, 3, 12)
    assert torch.equal(up(down(x_NHWC)), x_NHWC)


def test_a_new_block_changes_nothing_and_learns():
    block, x_NHWC = ConvBlock(4), torch.randn(2, 3, 3, 4)
    assert torch.equal(block(x_NHWC), x_NHWC)
    block(x_NHWC).pow(2).sum().backward()
    assert block.conv2.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_any_number_of_stages_gives_positions_of_16_pixels_and_back(stages):
    model = ImageTokenizer(replace(CONV, conv_widths=(8,) * stages, conv_depths=(1,) * stages)).eval()
    codes_NLK = model.encode(torch.zeros(1, 3, 48, 32))
    assert codes_NLK.shape == (1, 6, 2)
    assert model.decode_pixels(codes_NLK, grid=(3, 2)).shape == (1, 3, 48, 32)


def test_the_decoder_may_be_deeper_than_the_encoder():
    model = ImageTokenizer(replace(CONV, conv_depths=(0, 1), decoder_conv_depths=(2, 3), decoder_depth=4))
    assert [len(blocks) for blocks, _ in model.encoder.stages] == [0, 1]
    assert [len(blocks) for _, blocks in model.decoder.stages] == [3, 2]
    assert (len(model.encoder.blocks), len(model.decoder.blocks)) == (1, 4)
