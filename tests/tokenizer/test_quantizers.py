"""What every quantizer promises; a new one is tested by being listed in QUANTIZERS.

Two sub-codebooks of 16 entries on 8 channels, as in the size `tiny`.
"""

from dataclasses import asdict, replace

import pytest
import torch

from tokenizer import SIZES, ImageTokenizer
from tokenizer.quantizers import QUANTIZERS, Quantizer, code_use, count_codes, make_quantizer
from tokenizer.weights import codes_hash

Q, K, V = 8, 2, 16


@pytest.fixture(params=QUANTIZERS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def quantizer(kind) -> Quantizer:
    torch.manual_seed(0)
    return make_quantizer(replace(SIZES["tiny"], quantizer=kind))


@pytest.fixture
def features_NLQ(quantizer) -> torch.Tensor:
    return torch.randn(20, 50, Q)


def test_each_code_is_one_entry_and_features_of_all_codes_are_encoded(quantizer, features_NLQ):
    codes_NLK = quantizer.encode(features_NLQ)
    assert codes_NLK.shape == (20, 50, K) and codes_NLK.dtype == torch.int64
    assert [sorted(codes_NLK[..., k].unique().tolist()) for k in range(K)] == [[*range(V)]] * K
    entries_KVq = quantizer.entries()
    assert entries_KVq.shape == (K, V, Q if quantizer.summed else Q // K) and entries_KVq.dtype == torch.float32
    assert all(len(entries_Vq.unique(dim=0)) == V for entries_Vq in entries_KVq)


def test_decoding_looks_up_the_entries(quantizer, features_NLQ):
    codes_NLK = quantizer.encode(features_NLQ)
    slices = [quantizer.entries()[k, codes_NLK[..., k]] for k in range(K)]
    features_NLQ = sum(slices) if quantizer.summed else torch.cat(slices, -1)
    assert torch.equal(quantizer.decode(codes_NLK), features_NLQ)
    assert torch.equal(quantizer.look_up(codes_NLK[0, 3], quantizer.entries()), features_NLQ[0, 3])


def test_a_code_depends_on_its_own_position_alone_and_on_its_slice_if_it_has_one(quantizer, features_NLQ):
    changed_NLQ = features_NLQ.clone()
    changed_NLQ[0, 0, Q // K :] *= -1
    before, after = quantizer.encode(features_NLQ), quantizer.encode(changed_NLQ)
    assert after[0, 0, 1] != before[0, 0, 1]
    first = 0 if quantizer.summed else 1
    after[0, 0, first:] = before[0, 0, first:]
    assert torch.equal(after, before)


def test_codes_outside_the_codebooks_are_refused(quantizer):
    for code in (-1, V):
        with pytest.raises(ValueError, match=rf"reach from {code} to {code}; the codebook has 0..15"):
            quantizer.decode(torch.full((1, 1, K), code))
    with pytest.raises(ValueError, match="3 sub-codebooks"):
        quantizer.decode(torch.zeros(1, 1, 3, dtype=torch.long))


@pytest.mark.parametrize("temperature", [0.0, 0.1])
def test_training_sees_the_codes_and_their_features_and_reaches_what_was_quantized(
    quantizer, features_NLQ, temperature
):
    features_NLQ.requires_grad_()
    quantized = quantizer(features_NLQ, quantizer.Options(index_temperature=temperature))
    assert torch.equal(quantized.codes_NLK, quantizer.encode(features_NLQ))
    torch.testing.assert_close(quantized.features_NLQ, quantizer.decode(quantized.codes_NLK))
    assert quantized.loss.shape == () and quantized.loss.isfinite()
    (gradient_NLQ,) = torch.autograd.grad(quantized.features_NLQ.pow(3).sum(), features_NLQ)
    assert gradient_NLQ.isfinite().all() and (gradient_NLQ != 0).any(0).any(0).all()


def test_shares_are_largest_for_the_code_and_reach_what_was_quantized(quantizer, features_NLQ):
    features_NLQ.requires_grad_()
    assert quantizer(features_NLQ).shares_KMV is None
    quantized = quantizer(features_NLQ, quantizer.Options(index_temperature=0.1))
    shares_KMV = quantized.shares_KMV
    torch.testing.assert_close(shares_KMV.sum(-1), torch.ones(K, 1000))
    assert torch.equal(shares_KMV.argmax(-1).T.reshape(20, 50, K), quantized.codes_NLK)
    (gradient_NLQ,) = torch.autograd.grad(shares_KMV[..., 0].sum(), features_NLQ)
    assert gradient_NLQ.isfinite().all() and (gradient_NLQ != 0).any()


def test_codes_are_those_of_float32_under_autocast(quantizer, features_NLQ):
    with torch.autocast("cpu", torch.bfloat16):
        codes_NLK, quantized = quantizer.encode(features_NLQ), quantizer(features_NLQ)
    assert torch.equal(codes_NLK, quantizer.encode(features_NLQ)) and torch.equal(codes_NLK, quantized.codes_NLK)
    assert quantized.features_NLQ.dtype == torch.float32


def test_the_state_dict_tells_the_codes(quantizer, kind, features_NLQ):
    other = make_quantizer(replace(SIZES["tiny"], quantizer=kind))
    other.load_state_dict(quantizer.state_dict())
    assert torch.equal(other.encode(features_NLQ), quantizer.encode(features_NLQ))
    assert quantizer.state_dict(), "codes are named by a hash of it"


def test_options_have_defaults_and_schedules(quantizer):
    options = quantizer.Options()
    assert asdict(options.at(0, 10)) == asdict(options), "a run begins with what the recipe says"
    fading = replace(options, perturbed=0.4, perturbed_final=0.5)
    assert [fading.at(step, 5).perturbed for step in range(5)] == pytest.approx([0.4, 0.35, 0.3, 0.25, 0.2])
    with pytest.raises(ValueError, match="quantizer.index_temperature: -1 is outside"):
        quantizer.Options(index_temperature=-1)


def test_perturbed_codes_are_near_ones(quantizer, features_NLQ):
    """As many as wanted, by the distances of entries, which large codebooks compare in several parts."""
    codes_NLK, share_N = quantizer.encode(features_NLQ), torch.arange(20) / 20
    moved_NLK = quantizer.perturb(codes_NLK, share_N, quantizer.neighbours(3))
    changed_NLK = moved_NLK != codes_NLK
    torch.testing.assert_close(changed_NLK.float().mean((1, 2)), share_N, atol=0.2, rtol=0)
    entries_KVq = quantizer.entries().detach()
    for k, entries_Vq in enumerate(entries_KVq):
        distances_VV = torch.cdist(entries_Vq, entries_Vq).fill_diagonal_(torch.inf)
        third_V = distances_VV.topk(3, largest=False).values[:, -1]
        pairs = codes_NLK[..., k][changed_NLK[..., k]], moved_NLK[..., k][changed_NLK[..., k]]
        assert (distances_VV[pairs] <= third_V[pairs[0]] + 1e-5).all()
    exact, moved = quantizer(features_NLQ), quantizer(features_NLQ, quantizer.Options(perturbed=0.8, nearest=3))
    assert torch.equal(moved.codes_NLK, exact.codes_NLK) and not torch.equal(moved.features_NLQ, exact.features_NLQ)


def test_arguments_that_it_does_not_take_are_named(kind):
    with pytest.raises(ValueError, match=rf"quantizer_args: {kind} takes .*, not levvels"):
        make_quantizer(replace(SIZES["tiny"], quantizer=kind, quantizer_args={"levvels": 3}))


def test_images_become_codes_and_pixels_and_weights_are_saved(kind, tmp_path):
    torch.manual_seed(0)
    image_tokenizer = ImageTokenizer(replace(SIZES["tiny"], quantizer=kind)).eval()
    pixels_N3HW = torch.rand(2, 3, 32, 32) * 2 - 1
    codes_NLK = image_tokenizer.encode(pixels_N3HW)
    image_tokenizer.bfloat16().save_pretrained(tmp_path)
    loaded = ImageTokenizer.from_pretrained(tmp_path).eval()
    assert loaded.config == image_tokenizer.config and codes_hash(loaded) == codes_hash(image_tokenizer)
    assert torch.equal(loaded.encode(pixels_N3HW), codes_NLK)
    assert torch.equal(loaded.decode_pixels(codes_NLK), image_tokenizer.decode_pixels(codes_NLK))


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="unknown quantizer 'rvq'; known: multi_codebook, residual"):
        ImageTokenizer(replace(SIZES["tiny"], quantizer="rvq"))


def test_code_use_by_hand():
    """The first sub-codebook has one entry of four, the second two, one of them three times as often."""
    use = code_use(count_codes(torch.tensor([[[3, 0], [3, 0]], [[3, 0], [3, 1]]]), 4))
    assert use["usage"] == [0.25, 0.5]
    assert use["perplexity"] == [1, pytest.approx(0.75**-0.75 * 0.25**-0.25)]
    uniform = code_use(count_codes(torch.arange(16).view(4, 4, 1) % 8, 8))
    assert uniform == {"usage": [1], "perplexity": [pytest.approx(8)]}
    assert code_use(torch.zeros(1, 4))["usage"] == [0]
