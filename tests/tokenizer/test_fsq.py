"""What finite scalar quantization promises beside what every quantizer does."""

from dataclasses import replace

import pytest
import torch

from tokenizer import SIZES, ImageTokenizer
from tokenizer.quantizers import make_quantizer
from tokenizer.quantizers.fsq import FiniteScalarQuantizer
from tokenizer.weights import codes_hash


def test_channels_are_rounded_to_even_levels_of_their_tanh():
    quantizer = FiniteScalarQuantizer(4, num_codebooks=2, codebook_size=15, levels=[3, 5])
    assert quantizer.entries()[1, 7].tolist() == [0.0, 0.0], "7 = 1 + 3 * 2, the middles"
    assert quantizer.entries()[0, :4].tolist() == [[-1.0, -1.0], [0.0, -1.0], [1.0, -1.0], [-1.0, -0.5]]
    features_NLQ = torch.tensor([[[0.0, 0.5, -9.0, 9.0]]])  # tanh(0.5) = 0.46 is near to 0.5
    quantized = quantizer(features_NLQ)
    assert quantized.codes_NLK.tolist() == [[[1 + 3 * 3, 0 + 3 * 4]]]
    assert quantized.features_NLQ.tolist() == [[[0.0, 0.5, -1.0, 1.0]]]
    assert quantized.loss == 0 and quantized.entropy_loss is None


def test_gradient_is_that_of_tanh():
    features_NLQ = torch.randn(2, 3, 8, requires_grad=True)
    FiniteScalarQuantizer(8, 2, 16)(features_NLQ).features_NLQ.sum().backward()
    torch.testing.assert_close(features_NLQ.grad, 1 - features_NLQ.detach().tanh().square())


@pytest.mark.parametrize("levels", [[4, 4], [2, 2, 2, 3], [16, 1, 1, 1], [2.0, 2.0, 2.0, 2.0]], ids=str)
def test_levels_that_do_not_fit_are_named(levels):
    config = replace(SIZES["tiny"], quantizer="fsq", quantizer_args={"levels": levels})
    with pytest.raises(ValueError, match=r"levels \[.*\] of fsq must be 4 whole numbers above 1 .* codebook_size 16"):
        make_quantizer(config)
    with pytest.raises(ValueError, match=r"levels \[2, 2, 2, 2\] of fsq must be 4 .* codebook_size 17"):
        make_quantizer(replace(SIZES["tiny"], quantizer="fsq", codebook_size=17))


def test_the_same_weights_with_other_levels_give_codes_of_another_name():
    config = replace(SIZES["tiny"], quantizer="fsq", code_width=4, codebook_size=8)
    one, other = (ImageTokenizer(replace(config, quantizer_args={"levels": levels})) for levels in ([2, 4], [4, 2]))
    other.load_state_dict({**one.state_dict(), "quantizer.levels_q": torch.tensor([4, 2])})
    assert codes_hash(one) != codes_hash(other)
