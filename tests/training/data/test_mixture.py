"""The mixture: exact shares, bad samples named and replaced, and an order that hangs on nothing but the position."""

import copy
import dataclasses
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from data_recipes.scenes.world import World
from tests.shard_files import IMAGE, png, talk, text, write_shard
from tokenizer import SIZES, ImageTokenizer
from tokenizer.weights import codes_hash
from training.data.mixture import Cycle, Mixture, MixtureUpdates
from training.data.scene_samples import CodedScenes, extract_codes, scene_seed
from training.run.metrics import Problems
from training.run.recipe import MixConfig, MixtureConfig, ScenesConfig, SourceConfig, load_config

SHAPES = ScenesConfig(artwork="shapes")


def codes(seed: int) -> tuple[str, bytes]:
    data = io.BytesIO()
    np.save(data, np.random.default_rng(seed).integers(0, 16, (4, 2), dtype=np.uint16))
    return "codes.npy", data.getvalue()


@pytest.fixture
def shards(tmp_path) -> str:
    """Three shards of eight chats."""
    for shard in range(3):
        samples = {f"{number:03d}": talk("?", f"answer {shard}{number}") for number in range(8)}
        write_shard(tmp_path / "chats" / f"{shard}.tar", samples)
    return f"{tmp_path}/chats/*.tar"


def mixture(tiny_model, max_bad: int = 5, pack: int = 0, max_length: int = 80, **sources: SourceConfig) -> Mixture:
    model, processor = tiny_model
    return Mixture(MixtureConfig(sources, max_length, max_bad, pack), processor, model.image_tokenizer, seed=1)


def ids(updates: list) -> list[tuple]:
    return [tuple(sample.ids) for update in updates for part in update.micro_batches for sample in part]


# ---- shares


def test_shares_are_exact_in_every_cycle():
    cycle = Cycle({"a": 0.7, "b": 0.2, "never": 0, "c": 0.1}, seed=3)
    for first in (0, 10, 990):
        assert Counter(cycle[position][0] for position in range(first, first + 10)) == {"a": 7, "b": 2, "c": 1}
    numbers = [number for name, number in map(cycle.__getitem__, range(50)) if name == "a"]
    assert numbers == list(range(35))  # none twice, none left out
    assert sum(Cycle({"a": 118_287, "b": 39_429}, seed=0).counts.values()) == 4


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ({"a": 1, "b": -1}, "not b: -1"),
        ({"a": float("nan")}, "not a: nan"),
        ({"a": 0.0}, "not all 0"),
        ({"a": 1, "b": 0.123456789}, "round them"),
    ],
)
def test_weights_without_shares_are_refused(weights, reason):
    with pytest.raises(ValueError, match=reason):
        Cycle(weights, seed=0)


# ---- samples of all kinds


def test_images_and_codes_become_the_same_sample(tiny_model, tmp_path):
    model, processor = tiny_model
    pixels = write_shard(tmp_path / "pixels.tar", {"a": talk([IMAGE, text("what is this?")], "a dog", png("red"))})
    codes_LK = model.image_tokenizer.encode([Image.new("RGB", (48, 40), "red")])[0]
    data = io.BytesIO()
    np.save(data, codes_LK.numpy().astype(np.uint16))
    of_model = {"image_tokenizer": codes_hash(model.image_tokenizer), "template": "mllm"}
    coded = talk([IMAGE, text("what is this?")], "a dog", ("codes.npy", data.getvalue()), **of_model)
    extracted = write_shard(tmp_path / "codes.tar", {"a": coded})
    samples = [mixture(tiny_model, x=SourceConfig(shards=[shards])).sample(0)[0] for shards in (pixels, extracted)]
    batches = [processor.collate([sample], model.image_tokenizer) for sample in samples]
    for name, tensor in vars(batches[0]).items():
        assert name == "features" or tensor is None or torch.equal(tensor, getattr(batches[1], name)), name


def test_requests_to_draw_lose_their_prompts_at_the_rate_asked_for(tiny_model, tmp_path):
    file = write_shard(tmp_path / "draw.tar", {"a": talk("a red dog", [IMAGE], png("red"))})
    for rate, counts in ((0.0, range(1)), (0.3, range(15, 50)), (1.0, range(100, 101))):
        mixed = mixture(tiny_model, draw=SourceConfig(shards=[file], caption_dropout=rate))
        samples = [mixed.sample(position)[0] for position in range(100)]
        prompts = Counter(tuple(sample.ids) for sample in samples)
        unconditional = tuple(tiny_model[1].encode_drawing(None, torch.zeros(4, 2).long()).ids)
        assert prompts[unconditional] in counts and len(prompts) <= 2
        assert all(sample.is_target == [True] for sample in samples)


def test_requests_to_edit_lose_their_words_and_half_of_these_their_picture(tiny_model, tmp_path):
    processor, codes_LK = tiny_model[1], torch.zeros(4, 2).long()
    asked = talk([IMAGE, text("make it blue")], [IMAGE], png("red"), png("blue"))
    file = write_shard(tmp_path / "edit.tar", {"a": asked})
    rows = [processor.encode_drawing(None, codes_LK, sources=sources).ids for sources in ((), [codes_LK])]
    for rate, counts in ((0.0, (0, 0)), (1.0, (50, 50))):
        mixed = mixture(tiny_model, edit=SourceConfig(shards=[file], caption_dropout=rate))
        samples = [mixed.sample(position)[0] for position in range(100)]
        for row, targets, count in zip(rows, ([True], [False, True]), counts, strict=True):
            found = [sample for sample in samples if sample.ids == row]
            assert abs(len(found) - count) <= 20 * (count > 0) and all(one.is_target == targets for one in found)
        chats = [sample for sample in samples if sample.ids not in rows]
        assert len(chats) == 100 * (rate == 0.0) and all(one.is_target == [False, True] for one in chats)


def test_scenes_are_a_source_with_their_own_shares(tiny_model, shards, tmp_path):
    assert sum(extract_codes(tiny_model[0].image_tokenizer, SHAPES, tmp_path / "codes", range(1), chunk=32)) == 32
    scenes = MixConfig(scenes=SHAPES, codes=str(tmp_path / "codes"), draw=0.75, answer=0.25)
    sources = {"chats": SourceConfig(weight=1, shards=[shards]), "scenes": SourceConfig(weight=2, scenes=scenes)}
    samples = [mixture(tiny_model, max_length=200, **sources).sample(position)[0] for position in range(12)]
    kinds = Counter(str(sample.is_target) for sample in samples)
    assert kinds == {"[]": 4, "[True]": 6, "[False]": 2}


def test_codes_of_scenes_say_whose_they_are(tiny_model, tmp_path):
    image_tokenizer = copy.deepcopy(tiny_model[0].image_tokenizer)
    with torch.no_grad():
        image_tokenizer.decoder.norm.bias += 1  # comes after the codes
    list(extract_codes(image_tokenizer, SHAPES, tmp_path / "same", range(1), chunk=32))
    with torch.no_grad():
        image_tokenizer.quantizer.codebooks_KVq[0, 0] *= -1
    list(extract_codes(image_tokenizer, SHAPES, tmp_path / "other", range(1), chunk=32))
    (tmp_path / "silent").mkdir()
    save_file({"codes_NLK": torch.zeros(32, 4, 2).short()}, tmp_path / "silent" / "codes_00000.safetensors")
    ours, theirs = codes_hash(tiny_model[0].image_tokenizer), codes_hash(image_tokenizer)
    sources = {
        name: SourceConfig(scenes=MixConfig(scenes=SHAPES, codes=str(tmp_path / name)))
        for name in ("same", "other", "silent")
    }
    assert mixture(tiny_model, max_length=200, same=sources["same"]).sample(0)[0]
    with pytest.raises(ValueError, match=f"other: codes of image_tokenizer {theirs}, the model's is {ours}: extract"):
        mixture(tiny_model, other=sources["other"])
    with pytest.raises(ValueError, match=f"silent: codes of image_tokenizer None, the model's is {ours}: extract"):
        mixture(tiny_model, silent=sources["silent"])
    with pytest.raises(ValueError, match="codes_00000.safetensors holds codes of another image tokenizer"):
        list(extract_codes(image_tokenizer, SHAPES, tmp_path / "same", range(1), chunk=32))


def test_codes_of_large_codebooks_keep_their_numbers(tmp_path):
    """More entries than 16 bits with a sign count."""
    torch.manual_seed(0)
    sizes = dataclasses.replace(SIZES["tiny"], codebook_size=40_000)
    image_tokenizer = ImageTokenizer(sizes).eval()
    list(extract_codes(image_tokenizer, SHAPES, tmp_path, range(1), chunk=32))
    scenes, world = CodedScenes(SHAPES, tmp_path), World("shapes")
    images = [world.render(world.scene(scene_seed("train", index))) for index in range(32)]
    expected = image_tokenizer.encode(images)
    assert expected.max() > 2**15 and torch.equal(scenes.codes_NLK.long(), expected)


def test_files_of_codes_that_are_missing_damaged_or_of_other_scenes_are_named(tiny_model, tmp_path):
    image_tokenizer = tiny_model[0].image_tokenizer
    list(extract_codes(image_tokenizer, SHAPES, tmp_path, range(3), chunk=32))
    with pytest.raises(ValueError, match="holds codes of scenes with split train, not held_out"):
        CodedScenes(ScenesConfig("shapes", "held_out"), tmp_path)
    with pytest.raises(
        ValueError, match="codes_00000.safetensors holds codes of scenes with artwork shapes, not emoji"
    ):
        list(extract_codes(image_tokenizer, ScenesConfig("emoji"), tmp_path, range(1), chunk=32))
    short = {"codes_NLK": torch.zeros(5, 4, 2, dtype=torch.int16)}
    save_file(short, tmp_path / "codes_00003.safetensors", metadata=CodedScenes(SHAPES, tmp_path).codes_of)
    with pytest.raises(ValueError, match="codes_00003.safetensors holds 5 scenes, codes_00000.safetensors holds 32"):
        CodedScenes(SHAPES, tmp_path)
    (tmp_path / "codes_00003.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="cannot read .*codes_00003.safetensors as codes"):
        CodedScenes(SHAPES, tmp_path)
    (tmp_path / "codes_00001.safetensors").unlink()
    with pytest.raises(ValueError, match="lacks codes_00001.safetensors: run scripts.extract_codes again"):
        CodedScenes(SHAPES, tmp_path)


# ---- order


def test_the_order_does_not_hang_on_ranks_workers_or_a_stop(tiny_model, shards):
    mixed = mixture(tiny_model, one=SourceConfig(shards=[shards]), two=SourceConfig(weight=0.5, shards=[shards]))

    def updates(batch_size, rank, world, count, seen=0, workers=0):
        data = MixtureUpdates(mixed, batch_size, 1, rank, world, count, seen)
        return list(DataLoader(data, batch_size=None, num_workers=workers))

    whole = updates(4, 0, 1, 10)
    assert ids(updates(4, 0, 1, 10, workers=2)) == ids(whole)
    assert ids(updates(4, 0, 1, 7, seen=12)) == ids(whole)[12:]
    two_ranks = [
        ids([update]) for pair in zip(updates(2, 0, 2, 10), updates(2, 1, 2, 10), strict=True) for update in pair
    ]
    assert [sorted(a + b) for a, b in zip(two_ranks[::2], two_ranks[1::2], strict=True)] == [
        sorted(ids([update])) for update in whole
    ]
    changed = ids(updates(4, 0, 1, 5)) + ids(updates(2, 0, 1, 10, seen=20))
    assert sorted(changed) == sorted(ids(whole))


def test_an_epoch_holds_every_sample_once_each_in_another_order(tiny_model, shards):
    mixed = mixture(tiny_model, one=SourceConfig(shards=[shards]))
    epochs = [[tuple(mixed.sample(24 * epoch + place)[0].ids) for place in range(24)] for epoch in range(2)]
    assert len(set(epochs[0])) == 24 and sorted(epochs[0]) == sorted(epochs[1]) and epochs[0] != epochs[1]


@pytest.mark.parametrize("pack", [0, 200])
def test_all_ranks_run_the_model_equally_often(tiny_model, shards, pack):
    mixed = mixture(tiny_model, pack=pack, one=SourceConfig(shards=[shards]))
    for rank in range(2):
        parts = MixtureUpdates(mixed, 3, 2, rank, 2, 1)[0].micro_batches
        assert [len(part) for part in parts] == [3, 3]


# ---- bad samples


@pytest.fixture
def bad_shard(tmp_path) -> str:
    """One good sample in two, and a broken-off end."""
    kind, content = png("red")
    long = talk("why? " * 100, "a")
    samples = {
        "cut": talk([IMAGE], "a", (kind, content[:-30])),
        "empty": {"json": b"{}"},
        "gone": {"json": talk([IMAGE], "a", (kind, content))["json"]},
        "long": long,
        "other": talk([IMAGE], "a", codes(0), image_tokenizer="0" * 12, template="mllm"),
    }
    good = {f"good{number}": talk("?", f"answer {number}") for number in range(6)}
    file = Path(write_shard(tmp_path / "bad.tar", {**good, **samples, "last": talk([IMAGE], "a", (kind, bytes(9000)))}))
    file.write_bytes(file.read_bytes()[:-8000])
    return str(file)


def test_a_mixture_says_how_much_its_sources_have(tiny_model, shards):
    [note] = mixture(tiny_model, chats=SourceConfig(shards=[shards])).notes
    assert note.startswith("source chats: 24 samples in 3 shards, the first file://")


def test_bad_samples_are_named_and_others_take_their_places(tiny_model, bad_shard):
    mixed = mixture(tiny_model, max_bad=6, one=SourceConfig(shards=[bad_shard]))
    found = [mixed.sample(position) for position in range(22)]
    assert all(sample is not None for sample, _ in found)
    problems = sorted({problem for _, problems in found for problem in problems})
    reasons = {
        "cut": "cannot read 0.png as an image",
        "empty": "no messages",
        "gone": "no 0.png, which its messages show",
        "long": "tokens, more than max_length 80",
        "other": f"codes of image_tokenizer 000000000000, the model's is {codes_hash(tiny_model[0].image_tokenizer)}",
    }
    assert len(problems) == len(reasons)
    for problem, (key, reason) in zip(problems, sorted(reasons.items()), strict=True):
        assert f"bad.tar, {key}: " in problem and reason in problem
    assert [(sample.ids, bad) for sample, bad in found] == [
        (sample.ids, bad) for sample, bad in map(mixed.sample, range(22))
    ]
    damage, *others = mixed.damages
    assert not others and "bad.tar" in damage and "it breaks off" in damage and "after 11 samples" in damage


def test_too_many_bad_samples_end_the_run(tiny_model, bad_shard, capsys):
    mixed = mixture(tiny_model, max_bad=3, one=SourceConfig(shards=[bad_shard]))
    problems = Problems(3)
    problems.add(mixed.damages)
    with pytest.raises(ValueError, match="4 bad samples, data.max_bad is 3; the last: .*bad.tar"):
        for update in DataLoader(MixtureUpdates(mixed, 4, 1, 0, 1, 20), batch_size=None, num_workers=1):
            problems.add(update.problems)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 4 and len(set(told)) == 4 and told[0].startswith("left out (1 of at most 3): ")


def test_nothing_but_bad_samples_ends_too(tiny_model, tmp_path):
    file = write_shard(tmp_path / "bad.tar", {str(number): {"json": b"{"} for number in range(3)})
    update = MixtureUpdates(mixture(tiny_model, max_bad=1, one=SourceConfig(shards=[file])), 2, 1, 0, 1, 1)[0]
    with pytest.raises(ValueError, match="2 bad samples"):
        Problems(1).add(update.problems)


@pytest.mark.parametrize(
    ("image_tokenizer", "template", "reason"),
    [
        ("0" * 12, "mllm", "codes of image_tokenizer 000000000000, the model's is {hash}: extract them again"),
        ("", "unitok", "codes of template unitok, the model's is mllm"),
    ],
)
def test_codes_of_another_model_are_refused_at_the_start(tiny_model, tmp_path, image_tokenizer, template, reason):
    ours = codes_hash(tiny_model[0].image_tokenizer)
    coded = talk([IMAGE], "a", codes(0), image_tokenizer=image_tokenizer or ours, template=template)
    file = write_shard(tmp_path / "codes.tar", {"a": coded})
    with pytest.raises(ValueError, match=reason.format(hash=ours)):
        mixture(tiny_model, one=SourceConfig(shards=[file]))


@pytest.mark.parametrize("content", [b"no array", codes(0)[1][:-3]], ids=["other", "cut"])
def test_damaged_codes_are_bad_samples(tiny_model, tmp_path, content):
    of_model = {"image_tokenizer": codes_hash(tiny_model[0].image_tokenizer), "template": "mllm"}
    file = write_shard(tmp_path / "codes.tar", {"a": talk([IMAGE], "a", ("codes.npy", content), **of_model)})
    problem = mixture(tiny_model, max_bad=0, one=SourceConfig(shards=[file])).sample(0)[1][0]
    assert "codes.tar, a: cannot read 0.codes.npy as codes" in problem


# ---- configuration


def test_impossible_mixtures_are_refused(tiny_model, shards):
    with pytest.raises(ValueError, match="data.sources is empty"):
        mixture(tiny_model)
    with pytest.raises(ValueError, match="data.sources.one: give shards or scenes, and not both"):
        mixture(tiny_model, one=SourceConfig())
    with pytest.raises(ValueError, match="no shard at .*nowhere"):
        mixture(tiny_model, one=SourceConfig(shards=["/nowhere/*.tar"]))
    with pytest.raises(ValueError, match="data.pack 64 is below data.max_length 80"):
        mixture(tiny_model, pack=64, one=SourceConfig(shards=[shards]))


def test_a_mixture_is_a_few_lines_of_yaml(tmp_path):
    recipe = tmp_path / "mixture.yaml"
    sources = {"chats": {"shards": ["a/*.tar"], "weight": 2}, "scenes": {"scenes": {"codes": "codes/train"}}}
    recipe.write_text(json.dumps({"sources": sources, "pack": 1024}))
    config = load_config(MixtureConfig, recipe, ["sources.chats.weight=0.5"])
    assert config.sources["chats"] == SourceConfig(weight=0.5, shards=["a/*.tar"])
    assert config.sources["scenes"].scenes == MixConfig(codes="codes/train")
    with pytest.raises(ValueError, match="wait"):
        load_config(MixtureConfig, recipe, ["sources.chats.wait=1"])
