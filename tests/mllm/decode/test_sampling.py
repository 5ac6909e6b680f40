"""Choosing ids: of logits that are no numbers there is nothing to choose, in every path, and that has an end."""

import pytest
import torch

from mllm import generate_images, generate_text
from mllm.codes import CODE_EMBEDDINGS, CODE_HEADS
from mllm.decode.options import Sampling
from mllm.decode.rerank import best
from mllm.decode.run import generate_texts
from mllm.decode.sampling import NONE, NotFinite, Picker, sample_by_sorting
from mllm.fast import cpu

NAN, INF = float("nan"), float("inf")
WAYS = [
    {"temperature": 0},
    {"temperature": 0.7},
    {"top_p": 0.5},
    {"top_k": 3},
    {"top_k": 5, "top_p": 0.9},
    {"top_p": 1e-300},  # below what float32 knows
    {"temperature": 1e-3, "top_p": 0.99},
]
# Logits of an entry or all, and whether there is something to choose from.
ROWS = {
    "whole": ([], False),
    "one NaN": ([(3, NAN)], True),
    "the first NaN": ([(0, NAN)], True),
    "all NaN": ([(slice(None), NAN)], True),
    "inf": ([(5, INF)], True),
    "inf and -inf": ([(5, INF), (6, -INF)], True),
    "one forbidden": ([(5, -INF)], False),
    "all but one forbidden": ([(slice(1, None), -INF)], False),
    "all forbidden": ([(slice(None), -INF)], True),
    "too large once divided": ([(5, 3e38)], False),
}


def _generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(row) for row in range(count)]


def _picker(cfg_scale: float, rows: int, way: dict) -> Picker:
    return Picker(
        () if cfg_scale == 1.0 else (cfg_scale,), _generators(rows), 2, Sampling(**{"temperature": 1.0, **way})
    )


def _logits(entries: int = 16) -> torch.Tensor:
    logits_BV = torch.randn(len(ROWS), entries, generator=torch.Generator().manual_seed(0))
    for row, (values, _) in zip(logits_BV, ROWS.values(), strict=True):
        for place, value in values:
            row[place] = value
    return logits_BV


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_rows_of_no_numbers_have_no_id_and_the_others_theirs(way):
    ids_B = _picker(1.0, len(ROWS), way)(_logits(), 0)
    for row, (name, (_, bad)) in enumerate(ROWS.items()):
        if name == "too large once divided":
            bad = 0 < way.get("temperature", 1.0) < 1
        generators = _generators(len(ROWS))[row : row + 1]
        alone = Picker((), generators, sampling=Sampling(**{"temperature": 1.0, **way}))(_logits()[row : row + 1], 0)
        assert (ids_B[row] == NONE) == bad and ids_B[row] == alone, name
    assert ids_B[list(ROWS).index("all but one forbidden")] == 0


@pytest.mark.parametrize("way", WAYS, ids=str)
@torch.no_grad()
def test_the_compiled_head_finds_the_same(make_tiny_model, way):
    """Its logits are made by its output's bias."""
    head = make_tiny_model()[0].code_head
    for place, (name, (values, _)) in enumerate(ROWS.items()):
        for output in head.outputs:
            output.bias.zero_()
        for entry, value in values:
            head.outputs[place % 2].bias[entry] = value  # of the first sub-code, or the second
        h_BD = torch.randn(6, 32, generator=torch.Generator().manual_seed(1))
        for cfg_scale in (1.0, 3.0):
            pick = [_picker(cfg_scale, 6 if cfg_scale == 1 else 3, way) for _ in range(2)]
            eager = head.sample(h_BD, pick[0])
            assert torch.equal(cpu.head(head)(h_BD, pick[1]), eager), name


def test_a_search_and_a_sort_choose_the_same():
    logits_BV = torch.randn(50, 40, generator=torch.Generator().manual_seed(2))
    noise_BV = torch.randn(50, 40, generator=torch.Generator().manual_seed(3))
    for top_k, top_p in [(0, 0.5), (3, 1.0), (5, 0.9), (0, 1e-300), (0, 1 - 1e-7)]:
        picker = Picker((), [], sampling=Sampling(temperature=1.0, top_k=top_k, top_p=top_p))
        top_p = max(top_p, torch.finfo(torch.float32).tiny)
        assert torch.equal(picker.choose(logits_BV, 0, noise_BV), sample_by_sorting(logits_BV, noise_BV, top_k, top_p))


@pytest.mark.parametrize("kind", [(e, h) for e in CODE_EMBEDDINGS for h in CODE_HEADS], ids="-".join)
@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("part", ["code_head", "lm_head", "backbone"])
@torch.no_grad()
def test_damaged_weights_end_in_one_line(make_tiny_model, kind, value, part):
    model, processor = make_tiny_model(*kind)
    for weight in getattr(model, part).parameters():
        weight.view(-1)[::3] = value
    chat = [{"role": "user", "content": "hello"}]
    told = "the model's logits are not finite"
    if part != "lm_head":
        for options in (
            {"kernels": "auto"},
            {"kernels": "eager"},
            {"top_p": 0.9},
            {"temperature": 0, "cfg_scale": 1.0},
        ):
            with pytest.raises(NotFinite, match=told):
                generate_images(model, processor, ["a dog", "a cat"], **options)
    if part != "code_head":
        for options in ({}, {"temperature": 1.0, "top_p": 0.9}):
            with pytest.raises(NotFinite, match=told):
                list(generate_text(model, processor, chat, **options))
            with pytest.raises(NotFinite, match=told):
                generate_texts(model, processor, [chat], **options)


@torch.no_grad()
def test_candidates_of_no_score_are_not_chosen_from(make_tiny_model):
    model, processor = make_tiny_model()
    model.lm_head.weight.fill_(NAN)
    with pytest.raises(NotFinite, match="likelihoods are not finite"):
        best(model, processor, ["a dog"], torch.zeros(2, 4, 2, dtype=torch.long))
