"""Codes are embedded near the words of what they show, and nothing else of the model learns."""

import random

import pytest
import torch

from data_recipes.scenes.world import World
from mllm import Mllm
from mllm.text.templates import IGNORED
from training.data.mixture import Mixture
from training.data.scene_samples import words_sample
from training.lm.build import build_model
from training.lm.sequences import preview_line
from training.lm.train import train
from training.lm.words import WordsMllm
from training.run.recipe import (
    MixConfig,
    MixtureConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    ScenesConfig,
    SourceConfig,
    TrainConfig,
)

SHAPES = ScenesConfig(artwork="shapes")


@pytest.fixture
def folder(make_tiny_model, tmp_path):
    model, processor = make_tiny_model("codebook")
    model.save_pretrained(tmp_path / "start")
    processor.save_pretrained(tmp_path / "start")
    return tmp_path / "start"


def recipe(folder, **model) -> TrainConfig:
    return TrainConfig(
        RunConfig(name="run", folder=str(folder.parent / "runs"), steps=2, batch_size=2, precision="fp32"),
        ModelConfig(**{"init_from": str(folder), "words": True, "trainable": ["code_embed"], **model}),
        MixtureConfig({"scenes": SourceConfig(scenes=MixConfig(scenes=SHAPES))}),
        OptimConfig(lr=1e-2, warmup=1),
    )


def test_positions_are_labelled_with_words_of_what_is_there(make_tiny_model):
    _, processor = make_tiny_model("tables")
    scene = World("shapes").scene(4, skill="colors")
    thing = scene.things[0]
    sample = words_sample(processor, scene, torch.zeros(4, 2), MixConfig(), random.Random(0))
    labels = torch.tensor(sample.labels[1:-1]).view(2, 2)
    assert sample.labels[0] == sample.labels[-1] == IGNORED
    of_thing = {id for word in (thing.name, thing.color) for id in processor.word_ids(word)}
    background = {IGNORED, *processor.word_ids("background")}
    for y in (0, 1):
        for x in (0, 1):
            left, top, right, bottom = (side / 64 - 0.5 for side in thing.box)
            inside = left <= x < right and top <= y < bottom
            assert labels[y, x].item() in (of_thing if inside else background)
    words = processor.tokenizer.decode([label for label in sample.labels if label != IGNORED])
    assert preview_line(processor, sample) == f"<boi> (4 codes) «{words}» <eoi>"


def test_embeddings_come_to_lie_at_their_words(folder):
    torch.manual_seed(0)
    model, processor, _ = build_model(ModelConfig(init_from=str(folder), words=True))
    assert isinstance(model, WordsMllm)
    codes_NLK = torch.tensor([[[1, 2], [3, 4], [5, 6], [7, 8]]])
    words = torch.tensor([11, 12, 13, IGNORED])
    optimizer = torch.optim.Adam([p for p in model.code_embed.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(100):
        losses, lengths = model.word_losses(model.code_embed(codes_NLK), words)
        assert losses.shape == lengths.shape == (3,)
        optimizer.zero_grad()
        (losses + 0.1 * lengths).sum().backward()
        optimizer.step()
    rows = model.get_input_embeddings()(words[:3])
    embeds = model.code_embed(codes_NLK)[0, :3]
    assert torch.cdist(embeds, rows).argmin(1).tolist() == [0, 1, 2]
    length = (rows - rows.mean(0)).norm(dim=1).mean()
    torch.testing.assert_close((embeds - rows.mean(0)).norm(dim=1), length.expand(3), rtol=0.1, atol=0)


def test_only_the_embedding_of_codes_trains_and_any_model_is_saved(folder):
    before = Mllm.from_pretrained(folder).state_dict()
    config = recipe(folder)
    after = Mllm.from_pretrained(train(config)).state_dict()
    moved = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"code_embed"}
    row = (config.run.path / "metrics.jsonl").read_text()
    assert '"text_loss/answering"' in row


def test_a_batch_of_one_word_is_named(folder):
    model, _, _ = build_model(ModelConfig(init_from=str(folder), words=True))
    with pytest.raises(ValueError, match="fewer than two words to tell apart: raise run.batch_size"):
        model.word_losses(torch.zeros(1, 4, 32), torch.tensor([IGNORED, 11, 11, IGNORED]))


def test_recipes_that_do_not_fit_are_refused(folder):
    with pytest.raises(ValueError, match="model.words: give model.trainable"):
        recipe(folder, trainable=["code_embed", "backbone"])
    model, processor, _ = build_model(ModelConfig(init_from=str(folder)))
    with pytest.raises(ValueError, match="data.sources.mine: model.words needs scenes"):
        Mixture(
            MixtureConfig({"mine": SourceConfig(shards=["a.tar"])}), processor, model.image_tokenizer, 0, words=True
        )
