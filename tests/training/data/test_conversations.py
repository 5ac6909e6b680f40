"""Conversations about scenes as a source of training: pictures encoded once, words that differ in every epoch."""

from dataclasses import replace

import pytest
import torch

from data_recipes.scenes.language import story
from data_recipes.scenes.world import World
from mllm.decode.rerank import ASKED_FOR_PROMPT
from training.data.mixture import Mixture
from training.data.scene_samples import CodedStories, extract_codes, scene_seed
from training.run.recipe import MixConfig, MixtureConfig, ScenesConfig, SourceConfig

SHAPES = ScenesConfig(artwork="shapes")
SCENES = 32


@pytest.fixture(scope="module")
def codes(tiny_model, tmp_path_factory):
    """A folder with codes of the pictures of 32 conversations."""
    folder = tmp_path_factory.mktemp("conversations")
    work = extract_codes(tiny_model[0].image_tokenizer, SHAPES, folder, range(2), chunk=SCENES // 2, language=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.data.scene_samples.ENCODED_TOGETHER", 16)
        assert sum(work) == SCENES
    return folder


def source(tiny_model, config):
    model, processor = tiny_model
    mixture = Mixture(
        MixtureConfig({"scenes": SourceConfig(scenes=config)}, max_length=1024),
        processor,
        model.image_tokenizer,
        seed=1,
    )
    return mixture.sources["scenes"]


def config(codes=None, **options):
    return MixConfig(
        **{"scenes": SHAPES, "codes": codes and str(codes), "language": True, "caption_dropout": 0.0, **options}
    )


def test_each_conversation_has_the_codes_of_its_pictures(tiny_model, codes):
    image_tokenizer, world = tiny_model[0].image_tokenizer, World("shapes")
    stories = CodedStories(SHAPES, codes)
    assert len(stories) == SCENES and {len(stories[index]) for index in range(SCENES)} >= {0, 1, 2}
    for index in range(SCENES):
        images = [world.render(step.scene) for step in story(world, scene_seed("train", index))]
        assert len(stories[index]) == len(images)
        if images:
            assert torch.equal(torch.stack(stories[index]).long(), image_tokenizer.encode(images).long())


def test_codes_and_pixels_become_the_same_samples(tiny_model, codes):
    coded, rendered = source(tiny_model, config(codes)), source(tiny_model, config())
    for index in range(12):
        coded.order = rendered.order = {0: index}
        one, two = coded.sample(0), rendered.sample(0)
        assert (one.ids, one.labels, one.is_target) == (two.ids, two.labels, two.is_target)
        assert [tuple(image.shape) for image in one.images] == [(4, 2)] * len(one.images)
        assert all(image.ndim == 3 for image in two.images)


def test_an_epoch_repeats_pictures_and_not_words(tiny_model, codes):
    """A sample is a function of its number; pictures come again in the next epoch, other words with them."""
    conversations = source(tiny_model, config(codes))
    first, second = (
        {
            conversations.order[number]: conversations.sample(number)
            for number in range(epoch * SCENES, (epoch + 1) * SCENES)
        }
        for epoch in range(2)
    )
    assert set(first) == set(second) == set(range(SCENES))
    changed = 0
    for index in first:
        assert len(first[index].images) == len(second[index].images)
        pairs = zip(first[index].images, second[index].images, strict=True)
        assert all(torch.equal(one, two) for one, two in pairs)
        changed += first[index].ids != second[index].ids
    assert changed > SCENES * 0.9
    again = source(tiny_model, config(codes))
    assert all(again.sample(number).ids == conversations.sample(number).ids for number in range(2 * SCENES))


@pytest.fixture
def planner(make_tiny_model):
    return make_tiny_model(plan_length=40)


def test_layouts_come_before_the_last_drawing_or_at_the_very_end(planner, codes):
    """So no answer is read off a layout, and a chat that sends pictures back looks as in training."""
    processor, conversations, ends = planner[1], source(planner, config(codes, layouts=True)), set()
    without = source(planner, config(codes))
    for number in range(4 * SCENES):
        sample = conversations.sample(number)
        plan = [place for place, id in enumerate(sample.ids) if id in processor.plan_ids]
        drawn = [place for place, flag in enumerate(sample.is_target) if flag]
        assert drawn in ([], [len(sample.images) - 1])
        loss = [id for id, label in zip(sample.ids, sample.labels, strict=True) if label >= 0]
        assert (processor.boi_id in loss) == bool(drawn)
        if drawn:  # plan, begin, positions, end of image, end of answer
            assert plan[-1] - plan[0] == len(plan) - 1 and sample.ids[plan[-1] + 1] == processor.boi_id
            assert sample.ids[plan[-1] + 2 :] == [processor.image_id] * 4 + [processor.eoi_id, processor.eos_id]
            assert set(sample.labels[plan[0] : plan[-1] + 1]) <= processor.plan_ids
        elif plan:
            assert sample.labels[plan[0]] < 0 and sample.ids[plan[-1] + 1 :] == [processor.eos_id]
            assert plan[-1] - plan[0] == len(plan)  # between question and answer, the assistant's mark
        ends.add((bool(drawn), bool(plan), len(sample.images)))
        assert not processor.plan_ids & set(without.sample(number).ids)
    assert {(True, True, 1), (True, True, 2), (False, True, 1), (False, False, 0)} <= ends


def test_layouts_need_words_for_them(tiny_model, codes):
    with pytest.raises(ValueError, match="data.sources.scenes: layouts need a text tokenizer with their words"):
        source(tiny_model, config(codes, layouts=True))


def test_some_drawings_are_turned_round(tiny_model, codes):
    """A picture, and the words that asked for it as the answer: what candidates are chosen by."""
    processor, conversations = tiny_model[1], source(tiny_model, config(codes))
    asked = processor.encode(ASKED_FOR_PROMPT).ids[2:-1]
    turned = 0
    for number in range(8 * SCENES):
        sample = conversations.sample(number)
        text = ",".join(map(str, sample.ids))
        if ",".join(map(str, asked)) in text:
            turned += 1
            assert sample.is_target == [False] and processor.decode([i for i in sample.labels if i >= 0])
    assert 0.01 < turned / (8 * SCENES) < 0.1


def test_prompts_of_drawings_are_dropped_at_the_rate_asked_for(tiny_model, codes):
    conversations = source(tiny_model, config(codes, caption_dropout=1.0))
    unconditional = tiny_model[1].encode_drawing(None, torch.zeros(4, 2).long()).ids
    samples = [conversations.sample(number) for number in range(SCENES)]
    alone = [sample for sample in samples if sample.is_target == [True] and sample.ids == unconditional]
    assert alone and len(alone) < len(samples)


def test_pictures_of_scenes_and_of_conversations_are_not_mixed_up(tiny_model, codes, tmp_path):
    with pytest.raises(
        ValueError, match="holds codes of scenes of conversations: extract them again, without --language"
    ):
        source(tiny_model, config(codes, language=False))
    list(extract_codes(tiny_model[0].image_tokenizer, SHAPES, tmp_path, range(1), chunk=32))
    with pytest.raises(ValueError, match="holds codes of single scenes.*with --language"):
        source(tiny_model, config(tmp_path))
    with pytest.raises(ValueError, match="holds codes of scenes with split train, not held_out"):
        source(tiny_model, config(codes, scenes=replace(SHAPES, split="held_out")))
