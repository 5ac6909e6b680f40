"""Contracts of code embeddings and code heads; a new entry of the dicts is tested by being listed."""

import pytest
import torch
from PIL import Image

from mllm import Mllm, Processor, generate_images, generate_texts
from mllm.codes import CODE_EMBEDDINGS, CODE_HEADS
from mllm.decode.engine import Engine
from mllm.decode.program import Drawing
from mllm.decode.run import edit_images
from tokenizer import SIZES
from tokenizer.quantizers import QUANTIZERS
from tokenizer.weights import codes_hash

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


@pytest.mark.parametrize("name", CODE_EMBEDDINGS)
def test_a_position_is_embedded_without_those_after_it(name):
    torch.manual_seed(0)
    embedding = CODE_EMBEDDINGS[name](SIZES["tiny"], D).eval()
    codes_NLK = torch.randint(0, V, (1, SIZES["tiny"].num_positions, K))
    changed_NLK = codes_NLK.clone()
    changed_NLK[:, 2:] = (changed_NLK[:, 2:] + 1) % V
    before, after = embedding(codes_NLK), embedding(changed_NLK)
    torch.testing.assert_close(before[:, :2], after[:, :2], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(before[:, 2], after[:, 2], atol=1e-3)


@pytest.mark.parametrize("name", CODE_EMBEDDINGS)
def test_every_sub_code_counts_in_an_embedding(name):
    torch.manual_seed(0)
    embedding, codes_NLK = CODE_EMBEDDINGS[name](SIZES["tiny"], D).eval(), torch.zeros(1, 1, K, dtype=torch.long)
    for k in range(K):
        changed_NLK = codes_NLK.clone()
        changed_NLK[..., k] = 5
        assert not torch.allclose(embedding(changed_NLK), embedding(codes_NLK), atol=1e-3)


QUERIES = {"layout": "queries", "layout_args": {"positions": 3, "tail_drop": "uniform"}}
# Of the embeddings, one reads what codes stand for, and one counts positions.
VARIANTS = [
    *((name, {}) for name in CODE_EMBEDDINGS),
    *(("codebook", {"quantizer": kind}) for kind in QUANTIZERS if kind != "multi_codebook"),
    ("placed_tables", QUERIES),
    ("codebook", {"pixel_codebooks": 1, "depth": 2}),
    ("placed_tables", {"layout": "holistic", "layout_args": {"queries": 2}}),
    ("placed_tables", {"layout": "scales", "layout_args": {"scales": [1, 2]}, "projection": "linear"}),
]


@pytest.mark.parametrize(("name", "sizes"), VARIANTS, ids=str)
def test_a_model_with_any_quantizer_or_layout_sees_draws_and_is_loaded(make_tiny_model, tmp_path, name, sizes):
    model, processor = make_tiny_model(name, **sizes)
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    loaded = Mllm.from_pretrained(tmp_path).eval(), Processor.from_pretrained(tmp_path)
    assert codes_hash(loaded[0].image_tokenizer) == codes_hash(model.image_tokenizer)
    drawn, again, eager = (
        generate_images(*pair, "a red dog", kernels=kernels)[0]
        for pair, kernels in (((model, processor), "auto"), (loaded, "auto"), (loaded, "eager"))
    )
    assert drawn.size == (32, 32) and drawn.tobytes() == again.tobytes() == eager.tobytes()
    chat = [{"role": "user", "content": [{"type": "image", "image": drawn}, {"type": "text", "text": "what is it?"}]}]
    answers = [generate_texts(*pair, chat, max_new_tokens=8, temperature=0) for pair in ((model, processor), loaded)]
    assert answers[0] == answers[1]


def test_codes_without_a_place_make_previews_of_the_whole_picture_and_take_no_mask(make_tiny_model):
    model, processor = make_tiny_model(**QUERIES)
    with Engine(model, processor) as engine:
        *previews, drawn = engine.submit(Drawing("a red dog", previews=2)).stream(60)
    assert [len(preview.codes_PK) for preview in previews] == [1, 2]
    assert all(preview.image(model).getchannel("A").getbbox() == (0, 0, *drawn.size) for preview in previews)
    with pytest.raises(ValueError, match="codes have no place in the picture: edit without a mask"):
        edit_images(model, processor, drawn, "make it blue", masks=Image.new("RGBA", (32, 32)))


@pytest.mark.parametrize("name", ["tables", "placed_tables"])
def test_a_feed_forward_network_mixes_the_codes_of_a_position(make_tiny_model, name, tmp_path):
    """It is no longer a sum of what each code says, still embeds positions one by one, and is saved with the model."""
    model, processor = make_tiny_model(name, code_embedding_args={"hidden": 24})
    with torch.no_grad():
        for weight in model.code_embed.parameters():
            weight.mul_(20)
    codes_NLK = torch.randint(0, V, (2, 4, K), generator=torch.Generator().manual_seed(0))
    cache: dict = {}
    whole_NLD = model.code_embed(codes_NLK)
    steps = [model.code_embed(codes_N1K, cache) for codes_N1K in codes_NLK.split(1, 1)]
    torch.testing.assert_close(torch.cat(steps, 1), whole_NLD)

    def change(codes_NLK: torch.Tensor) -> torch.Tensor:
        """What another first code changes."""
        other = codes_NLK.clone()
        other[..., 0] = (other[..., 0] + 1) % V
        return model.code_embed(other) - model.code_embed(codes_NLK)

    second = codes_NLK.clone()
    second[..., 1] = (second[..., 1] + 1) % V
    assert not torch.allclose(change(codes_NLK), change(second), atol=1e-3)
    model.save_pretrained(tmp_path)
    loaded = Mllm.from_pretrained(tmp_path).eval()
    fast, eager = (generate_images(loaded, processor, ["a dog"], 1, kernels=way)[0] for way in ("auto", "eager"))
    assert fast.tobytes() == eager.tobytes()
