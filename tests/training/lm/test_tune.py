"""Image tokenizer and language model in one gradient: values of frozen codes, gradient to the encoder, images kept."""

import copy
import json
import shutil
from dataclasses import replace

import pytest
import torch

from mllm import Mllm
from mllm.codes import CODE_EMBEDDINGS
from tests.shard_files import IMAGE, png, talk, text, write_shard
from tokenizer.quantizers import QUANTIZERS
from training.data.mixture import Mixture
from training.data.scene_samples import extract_codes
from training.lm.build import build_model, choose_trained
from training.lm.train import train as run
from training.lm.tune import TunedMllm, copy_codebooks
from training.run.optim import make_optimizer
from training.run.recipe import (
    MixConfig,
    MixtureConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    ScenesConfig,
    SourceConfig,
    TrainConfig,
    TuneConfig,
)

GUARD = TuneConfig(l1=1.0, l2=5.0)
SHAPES = ScenesConfig(artwork="shapes")


@pytest.fixture
def tuned(make_tiny_model, tmp_path):
    """A function: kind of embedding, of quantizer -> (model to tune, processor, the folder of the same model)."""

    def make(kind: str, quantizer: str = "multi_codebook", **guard):
        model, processor = make_tiny_model(kind, quantizer=quantizer)
        model.save_pretrained(tmp_path / kind)
        processor.save_pretrained(tmp_path / kind)
        tune = replace(GUARD, **guard)
        config = ModelConfig(init_from=str(tmp_path / kind), image_tokenizer=str(tmp_path / kind), tune=tune)
        model, processor, _ = build_model(config)
        return model, processor, tmp_path / kind

    return make


def samples(processor, count: int = 2):
    """One to draw, the others to answer about."""
    pixels_N3HW = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1
    question = {"type": "text", "text": "what is it?"}
    chats = [
        [
            {"role": "user", "content": [{"type": "image", "image": pixels}, question]},
            {"role": "assistant", "content": "a dog"},
        ]
        for pixels in pixels_N3HW[1:]
    ]
    drawn = processor.encode_drawing("a red dog", pixels_N3HW[0])
    return [drawn, *(processor.encode(chat, open_answer=False) for chat in chats)]


OTHERS = [quantizer for quantizer in QUANTIZERS if quantizer != "multi_codebook"]
# Tables take gradient from the shares of entries, codebook vectors from features: each quantizer must give both.
PAIRS = [
    *((kind, "multi_codebook") for kind in CODE_EMBEDDINGS),
    *((kind, quantizer) for quantizer in OTHERS for kind in ("tables", "codebook")),
]
LOSSES = [
    *((kind, "multi_codebook", loss) for kind in CODE_EMBEDDINGS for loss in ("text_loss", "code_loss")),
    *(("tables", quantizer, "text_loss") for quantizer in OTHERS),
    *(("codebook", quantizer, "code_loss") for quantizer in OTHERS),
]


@pytest.mark.parametrize(("kind", "quantizer"), PAIRS)
def test_losses_are_those_of_frozen_codes(tuned, kind, quantizer):
    model, processor, _ = tuned(kind, quantizer)
    both = samples(processor)
    frozen = Mllm.forward(model, **vars(processor.collate(both, model.image_tokenizer)))
    from_pixels = Mllm.forward(model, **vars(processor.collate(both)))
    output = model(**vars(processor.collate(both)))
    assert isinstance(model, TunedMllm) and output.code_count == 8
    for name in ("text_loss", "code_loss"):
        torch.testing.assert_close(output[name], frozen[name], rtol=1e-5, atol=1e-5)
        assert torch.equal(from_pixels[name], frozen[name])


@pytest.mark.parametrize(("kind", "quantizer", "loss"), LOSSES)
def test_answers_and_drawings_reach_the_encoder(tuned, kind, quantizer, loss):
    model, processor, _ = tuned(kind, quantizer)
    output = model(**vars(processor.collate(samples(processor)[:: 1 if loss == "text_loss" else 2])))
    output[loss].backward()
    for part in (model.image_tokenizer.encoder, model.image_tokenizer.quant_proj, model.backbone):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters() if p.ndim > 1)
    assert all(p.grad is None for p in model.image_tokenizer.decoder.parameters())


def test_the_direction_is_that_of_the_loss(tuned):
    """Half-way between two entries, gradient says which of them to become."""
    model, processor, _ = tuned("tables", temperature=0.5)
    quantizer, table = model.image_tokenizer.quantizer, model.code_embed.tables.weight
    features_NLQ = torch.randn(1, 4, quantizer.codebooks_KVq.shape[2] * 2, requires_grad=True)
    quantized = quantizer(features_NLQ, model.options)
    embeds_NLD = model.code_embed(quantized.codes_NLK, quantized=quantized)
    direction = torch.randn_like(embeds_NLD)
    (embeds_NLD * direction).sum().backward()
    moved = quantizer(features_NLQ.detach() + 1e-3 * features_NLQ.grad, model.options).shares_KMV
    shares = quantizer(features_NLQ.detach(), model.options).shares_KMV
    worth_KVM = torch.einsum("kvd,nld->kvnl", table.unflatten(0, (2, 16)), direction).flatten(2)
    assert ((moved - shares) * worth_KVM.mT).sum() > 0
    assert torch.equal(quantizer.encode(features_NLQ), quantized.codes_NLK)


def train(model, processor, steps: int, lm_weight: float, guarded: bool) -> float:
    """-> mean squared error of the reconstructions at the end."""
    optimizer = make_optimizer(model.named_parameters(), OptimConfig(lr=3e-3, weight_decay=0.0))
    batch = processor.collate(samples(processor, 4))
    for _ in range(steps):
        output = model(**vars(batch))
        guard = output.guard_loss / 4 if guarded else 0.0
        optimizer.zero_grad()
        (lm_weight * (output.text_loss + output.code_loss) + guard).backward()
        optimizer.step()
    return (model(**vars(batch)).squared_error / 4).item()


def test_the_guard_pulls_reconstructions_to_the_images(tuned):
    errors = {}
    for guarded in (False, True):
        model, processor, _ = tuned("tables")
        errors[guarded] = train(model, processor, 20, 0.05, guarded)
    assert errors[True] < 0.9 * errors[False]


def test_frozen_stays_frozen_and_the_checkpoint_loads_everywhere(tuned, tmp_path):
    model, processor, folder = tuned("codebook")
    trainable = ["image_tokenizer.encoder", "image_tokenizer.quantizer", "code_head"]
    choose_trained(model, ModelConfig(tune=GUARD, trainable=trainable))
    before = copy.deepcopy(model.state_dict())
    train(model, processor, 2, 1.0, True)
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(name.startswith(tuple(trainable)) for name in moved)
    model.save_pretrained(tmp_path / "saved", state_dict=copy_codebooks(after))
    processor.save_pretrained(tmp_path / "saved")
    loaded = Mllm.from_pretrained(tmp_path / "saved")
    assert type(loaded) is Mllm
    assert torch.equal(loaded.code_embed.quantizer.codebooks_KVq, after["image_tokenizer.quantizer.codebooks_KVq"])
    both = samples(processor)
    losses = [
        m(**vars(processor.collate(both, m.image_tokenizer))).text_loss for m in (loaded, Mllm.from_pretrained(folder))
    ]
    torch.testing.assert_close(losses[0], model(**vars(processor.collate(both))).text_loss, rtol=1e-5, atol=1e-5)
    assert losses[0] != losses[1]


def test_a_run_tunes_and_resumes_exactly(tuned, tmp_path):
    _, _, folder = tuned("tables")
    trainable = ["code_embed", "code_head", "image_tokenizer.encoder", "image_tokenizer.decoder"]
    config = TrainConfig(
        run=RunConfig(
            "whole", str(tmp_path), steps=4, batch_size=2, save_every=2, log_every=1, precision="fp32", workers=0
        ),
        model=ModelConfig(init_from=str(folder), tune=GUARD, trainable=trainable),
        data=MixtureConfig({"scenes": SourceConfig(scenes=MixConfig(scenes=SHAPES))}),
        optim=OptimConfig(lr=1e-3, warmup=1),
    )
    whole = Mllm.from_pretrained(run(config)).state_dict()
    rows = [json.loads(row) for row in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["psnr"] > 0 and row["guard"] > 0 for row in rows) and len(rows) == 4
    shutil.rmtree(tmp_path / "whole" / "step_000004")
    resumed = Mllm.from_pretrained(run(config)).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    before = Mllm.from_pretrained(folder).state_dict()
    moved = {name for name in whole if not torch.equal(whole[name], before[name])}
    assert any(name.startswith("image_tokenizer.encoder") for name in moved)
    assert all(name.startswith(tuple(trainable)) for name in moved)


def test_text_alone_runs_every_module(tuned):
    model, processor, _ = tuned("tables")
    chat = processor.encode([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}], False)
    output = model.train()(**vars(processor.collate([chat])))
    assert output.guard_loss == 0 and output.squared_error == 0
    (output.text_loss + output.code_loss + output.guard_loss).backward()
    assert all(p.grad is not None for p in model.image_tokenizer.encoder.parameters())


def test_extracted_codes_are_refused_in_one_line(tuned, tmp_path):
    model, processor, _ = tuned("tables")
    list(extract_codes(model.image_tokenizer, SHAPES, tmp_path / "codes", range(1), chunk=32))
    scenes = SourceConfig(scenes=MixConfig(scenes=SHAPES, codes=str(tmp_path / "codes")))
    with pytest.raises(ValueError, match="codes: extracted codes, which go stale while model.tune .*: give the images"):
        Mixture(MixtureConfig({"scenes": scenes}), processor, model.image_tokenizer, 0, tuned=True)
    file = write_shard(tmp_path / "a.tar", {"a": talk([IMAGE, text("?")], "a dog", png("red"))})
    sources = {
        "scenes": SourceConfig(scenes=MixConfig(scenes=SHAPES, chats=1.0)),
        "chats": SourceConfig(shards=[file]),
    }
    mixture = Mixture(MixtureConfig(sources), processor, model.image_tokenizer, 0, tuned=True)
    found = [mixture.sample(position)[0] for position in range(4)]
    assert processor.collate(found).pixel_values.shape == (4, 3, 32, 32)


def test_what_does_not_fit_together_is_refused(tuned):
    model, _, _ = tuned("tables")
    with pytest.raises(ValueError, match="image_tokenizer.encoder trains with model.tune only"):
        choose_trained(model, ModelConfig(trainable=["image_tokenizer.encoder"]))
    with pytest.raises(ValueError, match="nothing of image_tokenizer.encoder is in model.trainable"):
        choose_trained(model, ModelConfig(trainable=["backbone"], tune=GUARD))
    with pytest.raises(ValueError, match="temperature: 0 is not above 0"):
        TuneConfig(temperature=0)
