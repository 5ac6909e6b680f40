"""Contracts of code embeddings and code heads; a new entry of the dicts is tested by being listed."""

import pytest
import torch

from mllm.codes import CODE_EMBEDDINGS, CODE_HEADS
from tokenizer import SIZES

D, K, V = 32, 2, 16


def _head(name: str, **options):
    torch.manual_seed(0)
    return CODE_HEADS[name](D, K, V, **options).eval()


@pytest.mark.parametrize("name", CODE_HEADS)
def test_greedy_samples_are_the_argmax_of_the_teacher_forced_logits(name):
    head, h_BD = _head(name), torch.randn(5, D)
    codes_BK = head.sample(h_BD, lambda logits_BV, k: logits_BV.argmax(-1))
    logits_BKV = head(h_BD, codes_BK)
    assert logits_BKV.shape == (5, K, V)
    assert torch.equal(logits_BKV.argmax(-1), codes_BK)


@pytest.mark.parametrize("name", CODE_HEADS)
def test_sampling_sees_the_teacher_forced_logits(name):
    head, h_BD, codes_BK, seen = _head(name), torch.randn(5, D), torch.randint(0, V, (5, K)), []

    def pick(logits_BV, k):
        seen.append(logits_BV)
        return codes_BK[:, k]

    assert torch.equal(head.sample(h_BD, pick), codes_BK)
    torch.testing.assert_close(torch.stack(seen, 1), head(h_BD, codes_BK), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", CODE_HEADS)
def test_a_code_is_predicted_without_seeing_it_or_later_ones(name):
    head, h_PD = _head(name), torch.randn(3, D)
    codes_PK = torch.zeros(3, K, dtype=torch.long)
    changed = codes_PK.clone()
    changed[:, -1] = 5
    assert torch.equal(head(h_PD, codes_PK), head(h_PD, changed))


def test_the_depth_head_sees_earlier_codes():
    head, h_PD = _head("depth"), torch.randn(3, D)
    zeros, ones = torch.zeros(3, K, dtype=torch.long), torch.ones(3, K, dtype=torch.long)
    assert torch.equal(head(h_PD, zeros)[:, 0], head(h_PD, ones)[:, 0])
    assert not torch.allclose(head(h_PD, zeros)[:, 1], head(h_PD, ones)[:, 1])


def test_the_depth_head_has_its_own_width_and_may_share_its_output():
    head = _head("depth", width=16, layers=1, heads=2, shared_output=True)
    assert len(head.outputs) == 1 and head(torch.randn(3, D), torch.zeros(3, K, dtype=torch.long)).shape == (3, K, V)


@pytest.mark.parametrize("name", CODE_EMBEDDINGS)
def test_codes_fed_step_by_step_embed_as_in_one_pass(name):
    torch.manual_seed(0)
    embedding, cache = CODE_EMBEDDINGS[name](SIZES["tiny"], D).eval(), {}
    L = SIZES["tiny"].num_positions
    codes_NLK = torch.randint(0, V, (3, L, K))
    whole = embedding(codes_NLK)
    steps = torch.cat([embedding(codes_NLK[:, place : place + 1], cache) for place in range(L)], 1)
    assert whole.shape == (3, L, D)
    torch.testing.assert_close(steps, whole, atol=1e-6, rtol=1e-5)
