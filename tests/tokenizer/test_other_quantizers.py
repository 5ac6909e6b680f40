"""What residual, binary, per-channel and shared-index quantization promise beside what every quantizer does."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tokenizer import SIZES
from tokenizer.quantizers import code_use, count_codes, make_quantizer
from tokenizer.quantizers.base import EntropyOptions
from tokenizer.quantizers.binary import BinarySphericalQuantizer, LookupFreeQuantizer
from tokenizer.quantizers.hierarchical import HierarchicalQuantizer
from tokenizer.quantizers.multi_codebook import MultiCodebookOptions
from tokenizer.quantizers.quantile import QuantileOptions, QuantileQuantizer
from tokenizer.quantizers.residual import ResidualQuantizer
from tokenizer.quantizers.shared_index import SharedIndexQuantizer


def test_each_residual_code_takes_from_what_is_left_and_k_means_does_so_best():
    torch.manual_seed(0)
    quantizer, features_NLQ = ResidualQuantizer(8, 3, 16), torch.randn(20, 20, 8)
    quantized = quantizer(features_NLQ)
    left = []
    for codebooks_KVQ in (quantizer.entries(), quantizer.centres(quantized.slices_KMq)):
        with torch.no_grad():
            quantizer.codebooks_KVq.copy_(codebooks_KVQ)
        z_NLQ, codes_NLK = quantizer.bound(features_NLQ), quantizer.encode(features_NLQ)
        parts_NLKQ = codebooks_KVQ[torch.arange(3), codes_NLK]
        left.append([(z_NLQ - parts_NLKQ[:, :, :k].sum(2)).square().mean().item() for k in range(4)])
    assert left[0] == sorted(left[0], reverse=True) and left[1] == sorted(left[1], reverse=True)
    assert left[1][3] < 0.6 * left[0][3]
    torch.testing.assert_close(left[0][0], 1.0, rtol=1e-3, atol=0)


def test_gradient_passes_a_sum_of_entries_once():
    features_NLQ = torch.randn(2, 3, 8, requires_grad=True)
    quantizer, weights_NLQ = ResidualQuantizer(8, 4, 16), torch.randn(2, 3, 8)
    gradients = [
        torch.autograd.grad((made_NLQ * weights_NLQ).sum(), features_NLQ)[0]
        for made_NLQ in (quantizer(features_NLQ).features_NLQ, quantizer.bound(features_NLQ))
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("kind", [LookupFreeQuantizer, BinarySphericalQuantizer])
def test_a_code_is_the_signs_of_its_channels(kind):
    quantizer, features_NLQ = kind(8, 2, 16), torch.tensor([[[0.1, -2.0, 3.0, -0.1, -1.0, -1.0, -1.0, 5.0]]])
    assert quantizer.encode(features_NLQ).tolist() == [[[0b0101, 0b1000]]]
    entries_Vq = quantizer.entries()[1]
    assert torch.equal(entries_Vq[5].sign(), torch.tensor([1.0, -1.0, 1.0, -1.0]))
    assert entries_Vq.abs().unique().tolist() == ([1.0] if kind is LookupFreeQuantizer else [0.5])


def test_spherical_features_keep_unit_length_and_have_no_price():
    quantized = BinarySphericalQuantizer(8, 2, 16)(100 * torch.randn(2, 3, 8))
    torch.testing.assert_close(quantized.features_NLQ.unflatten(-1, (2, 4)).norm(dim=-1), torch.ones(2, 3, 2))
    torch.testing.assert_close(quantized.slices_KMq.norm(dim=-1), torch.ones(2, 6))
    assert quantized.loss == 0 < LookupFreeQuantizer(8, 2, 16)(torch.randn(2, 3, 8)).loss


@pytest.mark.parametrize("kind", [LookupFreeQuantizer, BinarySphericalQuantizer])
def test_the_entropy_loss_of_bits_is_that_of_codes_where_bits_are_independent(kind):
    """Features at all entries: each choice is sure, all are equally frequent; at one entry, only the first is true."""
    quantizer = kind(4, 1, 16, temperature=0.1)
    losses = [
        quantizer(features_NLQ, EntropyOptions(entropy_every=1)).entropy_loss
        for features_NLQ in (quantizer.entries(), quantizer.entries()[:, :1].expand(1, 16, 4))
    ]
    torch.testing.assert_close(losses, [-torch.tensor(16.0).log(), torch.tensor(0.0)], atol=5e-3, rtol=0)


def test_bits_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"codebook_size 17 is not 2\^4: binary codes have a bit for each"):
        make_quantizer(replace(SIZES["tiny"], quantizer="lfq", codebook_size=17))


def test_normal_features_use_all_levels_alike_and_the_error_falls_with_their_number():
    torch.manual_seed(0)
    features_NLQ, errors = torch.randn(50, 100, 2), []
    for levels in (2, 4, 16):
        quantizer = QuantileQuantizer(2, 1, levels**2)
        codes_NLK = quantizer.encode(features_NLQ)
        errors.append(F.mse_loss(quantizer.decode(codes_NLK), features_NLQ).item())
        [perplexity] = code_use(count_codes(codes_NLK, levels**2))["perplexity"]
        assert perplexity > 0.9 * levels**2
    # Of a normal distribution cut at its median, 1 - 2 / pi of the variance is left.
    assert errors == sorted(errors, reverse=True) and errors[0] == pytest.approx(1 - 2 / torch.pi, rel=0.05)
    assert errors[2] < 0.03


def test_with_noise_nothing_is_rounded_in_training():
    torch.manual_seed(0)
    quantizer, features_NLQ = QuantileQuantizer(8, 2, 16), torch.randn(50, 50, 8)
    quantized = quantizer(features_NLQ, QuantileOptions(noise=0.2))
    noise_NLQ = quantized.features_NLQ - features_NLQ
    assert noise_NLQ.std().item() == pytest.approx(0.2, rel=0.05)
    assert torch.equal(quantized.codes_NLK, quantizer.encode(features_NLQ)) and quantized.loss < 0.01
    assert quantizer(3 * features_NLQ + 1).loss > 1
    with pytest.raises(ValueError, match="quantizer.noise trains without codes: leave perturbed"):
        QuantileOptions(noise=0.2, perturbed=0.1)


@pytest.mark.parametrize(("pixel_weight", "half"), [(0.0, 0), (1e6, 1)])
def test_one_index_follows_the_half_with_the_weight(pixel_weight, half):
    torch.manual_seed(0)
    quantizer, features_NLQ = SharedIndexQuantizer(8, 2, 16, pixel_weight=pixel_weight), torch.randn(5, 5, 8)
    z_NLKhc, e_KVhc = quantizer.bound(features_NLQ).unflatten(-1, (2, 2, 2)), quantizer.entries().unflatten(-1, (2, 2))
    cosine_NLKV = torch.einsum("nlkc,kvc->nlkv", z_NLKhc[..., half, :], e_KVhc[:, :, half])
    assert torch.equal(quantizer.encode(features_NLQ), cosine_NLKV.argmax(-1))


def test_pixels_are_told_by_the_codebook_of_the_meaning():
    torch.manual_seed(0)
    quantizer, features_NLQ = HierarchicalQuantizer(8, 2, 12, meanings=3), torch.randn(5, 50, 8)
    meanings_KSPh, pixels_KSPh = quantizer.entries().unflatten(1, (3, 4)).chunk(2, -1)
    assert torch.equal(meanings_KSPh, meanings_KSPh[:, :, :1].expand(-1, -1, 4, -1))
    z_NLKhc = quantizer.bound(features_NLQ).unflatten(-1, (2, 2, 2))
    meaning_NLK = torch.einsum("nlkc,ksc->nlks", z_NLKhc[..., 0, :], meanings_KSPh[:, :, 0]).argmax(-1)
    own_NLKPc = pixels_KSPh[torch.arange(2), meaning_NLK]
    pixels_NLK = torch.einsum("nlkc,nlkpc->nlkp", z_NLKhc[..., 1, :], own_NLKPc).argmax(-1)
    codes_NLK = quantizer.encode(features_NLQ)
    assert torch.equal(codes_NLK, 4 * meaning_NLK + pixels_NLK)
    quantized = quantizer(features_NLQ)
    with torch.no_grad():
        quantizer.codebooks_KVq.copy_(quantizer.centres(quantized.slices_KMq))
    assert quantizer(features_NLQ).loss < 0.8 * quantized.loss, "centres of meanings, and of the pixels of each"
    with pytest.raises(ValueError, match="5 meanings of hierarchical do not divide codebook_size 16"):
        make_quantizer(replace(SIZES["tiny"], quantizer="hierarchical", quantizer_args={"meanings": 5}))


def test_odd_halves_and_weights_that_make_no_sense_are_named():
    with pytest.raises(ValueError, match="shared_index halves a code's 3 channels"):
        make_quantizer(replace(SIZES["tiny"], quantizer="shared_index", code_width=6))
    with pytest.raises(ValueError, match="pixel_weight -1 is outside"):
        make_quantizer(replace(SIZES["tiny"], quantizer="shared_index", quantizer_args={"pixel_weight": -1}))


def test_k_means_and_revival_are_options_of_all_that_learn_entries():
    for kind in (ResidualQuantizer, SharedIndexQuantizer, HierarchicalQuantizer):
        assert kind.Options is MultiCodebookOptions
