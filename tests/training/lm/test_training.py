"""Both training loops on tiny models: resume is invisible, frozen is frozen, a tiny model overfits."""

import copy
import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from data_recipes.scenes.world import captions, layout, questions
from eval.scenes.language import consistent
from mllm import Mllm, generate_images
from mllm.decode.rerank import ASKED_FOR_PROMPT
from mllm.model import MllmOutput
from mllm.text.ids import plan_token
from mllm.text.templates import IGNORED, join
from tokenizer import SIZES, ImageTokenizer
from training.data.mixture import ScenesSource
from training.data.scene_samples import CodedScenes, answering_sample, drawing_sample, extract_codes
from training.image_tokenizer.train import train_tokenizer
from training.lm.export import export_model
from training.lm.train import train
from training.lm.update import inputs_of, train_step
from training.run.backends import TorchEngine
from training.run.optim import freeze, make_optimizer, schedule, set_lr
from training.run.plots import plot_run
from training.run.recipe import (
    MixConfig,
    MixtureConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    ScenesConfig,
    SourceConfig,
    TokenizerDataConfig,
    TokenizerLossConfig,
    TokenizerTrainConfig,
    TrainConfig,
    save_config,
)

SHAPES = ScenesConfig(artwork="shapes")
BACKBONE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def text_folder(text_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    text_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def image_tokenizer(text_tokenizer):
    torch.manual_seed(0)
    return ImageTokenizer(replace(SIZES["tiny"], text_vocab_size=len(text_tokenizer) + 1, text_context=24)).eval()


@pytest.fixture(scope="module")
def codes_folder(image_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("codes")
    assert sum(extract_codes(image_tokenizer, SHAPES, folder, range(1), chunk=64)) == 64
    return folder


def _run(folder, name, **options) -> RunConfig:
    run = RunConfig(name=name, folder=str(folder), precision="fp32", device="cpu", workers=0, log_every=1)
    return replace(run, **{"steps": 6, "batch_size": 4, "save_every": 3, **options})


def _tokenizer_config(folder, text_folder, name, **options) -> TokenizerTrainConfig:
    return TokenizerTrainConfig(
        run=_run(folder, name, **options),
        size="tiny",
        model={"text_vocab_size": 769, "text_context": 24},
        text_tokenizer=str(text_folder),
        data=TokenizerDataConfig(artwork="shapes"),
        quantizer={"entropy_every": 1},
        losses=TokenizerLossConfig(entropy=0.02, contrastive=0.1),
        optim=OptimConfig(warmup=2, muon=["encoder.blocks"]),
    )


def _scenes(codes_folder) -> MixConfig:
    return MixConfig(scenes=SHAPES, codes=str(codes_folder), draw=0.5, answer=0.5)


def _config(folder, text_folder, codes_folder, image_tokenizer, name, **options) -> TrainConfig:
    image_tokenizer.save_pretrained(folder / "image_tokenizer")
    return TrainConfig(
        run=_run(folder, name, **options),
        model=ModelConfig(
            image_tokenizer=str(folder / "image_tokenizer"),
            text_tokenizer=str(text_folder),
            backbone=BACKBONE,
            code_head_args={"layers": 1, "heads": 2},
            trainable=["backbone", "lm_head", "code_embed", "code_head"],
        ),
        data=MixtureConfig({"scenes": SourceConfig(scenes=_scenes(codes_folder))}),
        optim=OptimConfig(warmup=2, muon=["backbone.layers"]),
        code_weight=0.5,
    )


def _losses(config) -> list[float]:
    rows = (config.run.path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(row)["loss"] for row in rows]


def test_resuming_the_image_tokenizer_is_invisible(tmp_path, text_folder):
    whole = _tokenizer_config(tmp_path, text_folder, "whole")
    train_tokenizer(whole)
    parts = _tokenizer_config(tmp_path, text_folder, "parts")
    _stop_after(parts, 3, train_tokenizer)
    train_tokenizer(parts)
    assert len(_losses(whole)) == 6 and _losses(parts) == _losses(whole)


@pytest.mark.parametrize(("workers", "share"), [(0, 0.5), (2, 1.0)])
def test_resuming_the_language_model_is_invisible(tmp_path, text_folder, codes_folder, image_tokenizer, workers, share):
    whole = _config(tmp_path, text_folder, codes_folder, image_tokenizer, "whole", workers=workers)
    whole.code_share = share
    train(whole)
    parts = _config(tmp_path, text_folder, codes_folder, image_tokenizer, "parts", workers=workers)
    parts.code_share = share
    _stop_after(parts, 3, train)
    folder = train(parts)
    assert len(_losses(whole)) == 6 and _losses(parts) == _losses(whole)
    assert isinstance(Mllm.from_pretrained(folder), Mllm)


def _stop_after(config, step: int, loop) -> None:
    """Send the process SIGTERM while it trains, as a cluster would."""
    from training.run import metrics

    class StopAt(metrics.Metrics):
        def log(self, at, values):
            super().log(at, values)
            if at == step:
                os.kill(os.getpid(), signal.SIGTERM)

    module = sys.modules[loop.__module__]
    original, module.Metrics = module.Metrics, StopAt
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        loop(config)
    finally:
        module.Metrics = original
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert len(_losses(config)) == step + 1 or len(_losses(config)) == step


def test_the_log_begins_with_sequences_and_where_they_carry_loss(
    tmp_path, text_folder, codes_folder, image_tokenizer, capsys
):
    train(_config(tmp_path, text_folder, codes_folder, image_tokenizer, "log", steps=1))
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("sample ")]
    assert len(shown) == 2 and all("<user>" in line and "«" in line and "(4 codes)" in line for line in shown)


def test_frozen_is_frozen(tmp_path, text_folder, codes_folder, image_tokenizer):
    config = _config(tmp_path, text_folder, codes_folder, image_tokenizer, "frozen", steps=2)
    config.model.trainable = ["code_embed", "code_head"]
    torch.manual_seed(config.run.seed)
    from training.lm.train import build_model

    before = build_model(config.model)[0].state_dict()
    after = load_file(train(config) / "model.safetensors")
    moved = {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert moved == {"code_embed", "code_head"}


def test_nothing_to_train_is_named(tmp_path, text_folder, codes_folder, image_tokenizer):
    config = _config(tmp_path, text_folder, codes_folder, image_tokenizer, "none")
    config.model.trainable = ["no_such_part"]
    with pytest.raises(
        ValueError, match="no parameter's name starts with 'no_such_part'; the parts are image_tokenizer, backbone"
    ):
        train(config)


def test_the_update_does_not_depend_on_how_samples_are_split(make_tiny_model, codes_folder, tmp_path):
    gradients = []
    for split in (1, 2, 4):
        model, processor = make_tiny_model()
        source = ScenesSource(_scenes(codes_folder), processor, model.image_tokenizer, seed=0)
        samples = [source.sample(number) for number in range(8)]
        micro_batches = [processor.collate(samples[part::split]) for part in range(split)]
        config = TrainConfig(run=_run(tmp_path, "x"), optim=OptimConfig(clip=1e9), code_weight=0.3)
        freeze(model, ["backbone", "lm_head", "code_embed", "code_head"])
        engine = TorchEngine(model, config, torch.device("cpu"))
        set_lr(engine, 0.0)
        report = train_step(engine, micro_batches, config)()
        gradients.append((report["loss"], report["grad_norm"]))
    assert gradients[1] == pytest.approx(gradients[0], rel=1e-5)
    assert gradients[2] == pytest.approx(gradients[0], rel=1e-5)


@pytest.mark.parametrize("code_weight", [0.5, 1.0])
def test_the_trainer_of_transformers_minimises_the_same_loss(make_tiny_model, tmp_path, code_weight):
    """A Trainer's loss and step are those of our loop, for a batch with text targets and codes."""
    model, processor = make_tiny_model()
    codes_LK = torch.randint(0, 16, (4, 2), generator=torch.Generator().manual_seed(1))
    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "a red dog"}]
    samples = [processor.encode(chat, open_answer=False), processor.encode_drawing("a dog", codes_LK)]
    batch = processor.collate(samples)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}

    options = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        max_steps=1,
        learning_rate=1.0,
        optim="sgd",
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    inputs = {**inputs_of(batch, torch.device("cpu")), "code_weight": code_weight}
    trainer = Trainer(model, options, train_dataset=[0, 1], data_collator=lambda rows: inputs)
    theirs = trainer.train().training_loss

    ours, _ = make_tiny_model()
    ours.load_state_dict(before, strict=False)
    freeze(ours, ["backbone", "lm_head", "code_embed", "code_head"])
    config = TrainConfig(run=_run(tmp_path, "x"), optim=OptimConfig(clip=1e9), code_weight=code_weight)
    engine = TorchEngine(ours.train(), config, torch.device("cpu"))
    gradients = {}
    for name, weight in ours.named_parameters():
        if weight.requires_grad:
            weight.register_post_accumulate_grad_hook(lambda weight, name=name: gradients.update({name: weight.grad}))
    report = train_step(engine, [batch], config)()
    assert report["loss"] == pytest.approx(theirs, rel=1e-5)
    for name in ("lm_head.weight", "code_head.layers.0.qkv.weight"):
        step = before[name] - model.get_parameter(name).detach()
        assert step.abs().max() > 0
        torch.testing.assert_close(gradients[name], step, rtol=1e-3, atol=1e-6)


def test_the_codes_of_a_share_of_the_positions_stand_for_all(make_tiny_model):
    model, processor = make_tiny_model()
    model.config.code_z_loss = 0.1
    codes_NLK = torch.randint(0, 16, (3, 4, 2), generator=torch.Generator().manual_seed(1))
    samples = [processor.encode_drawing("a dog", codes_LK) for codes_LK in codes_NLK]
    inputs = inputs_of(processor.collate(samples), torch.device("cpu"))

    def run(**share: float) -> tuple[MllmOutput, torch.Tensor]:
        model.zero_grad()
        output = model(**inputs, **share)
        output.code_loss.backward()
        return output, model.code_head.layers[0].qkv.weight.grad.clone()

    def one_loss() -> float:
        with torch.no_grad():
            return model.code_loss(h_BTD, inputs["input_ids"], inputs["codes"], inputs["is_target"], 0.25)[0].item()

    (every, gradient), (same, unchanged) = run(), run(code_share=1.0)
    assert torch.equal(every.code_loss, same.code_loss) and torch.equal(gradient, unchanged)
    # A draw and what it leaves out, each scaled to all 12 positions, average to all of them.
    chosen = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    halves = []
    for order in (chosen, chosen.flip(0)):
        with patch("torch.randperm", lambda count, order=order: order):
            halves.append(run(code_share=0.5))
    (one, one_gradient), (other, other_gradient) = halves
    assert one.code_losses.shape == (6, 2) and one.code_count == every.code_count == 24
    whole, parts = every.code_loss.item(), [one.code_loss.item(), other.code_loss.item()]
    assert parts[0] != pytest.approx(whole, rel=1e-4) and sum(parts) / 2 == pytest.approx(whole, rel=1e-5)
    torch.testing.assert_close((one_gradient + other_gradient) / 2, gradient, rtol=1e-4, atol=1e-6)
    # Every position is drawn as often as any other, and the generator alone says which.
    h_BTD = model.backbone(inputs_embeds=model.embed(inputs["input_ids"], inputs["codes"])).last_hidden_state
    torch.manual_seed(0)
    sums = [one_loss() for _ in range(200)]
    assert sum(sums) / 200 == pytest.approx(whole, rel=0.02)
    torch.manual_seed(0)
    assert one_loss() == sums[0] != sums[1]


def test_a_tiny_model_overfits_two_images_and_draws_each_by_its_prompt(make_tiny_model):
    model, processor = make_tiny_model()
    prompts = ["a red dog", "two cats"]
    codes_NLK = torch.randint(0, 16, (2, 4, 2), generator=torch.Generator().manual_seed(1))
    batch = processor.collate([processor.encode_drawing(*pair) for pair in zip(prompts, codes_NLK, strict=True)])
    optimizer = make_optimizer(model.named_parameters(), OptimConfig(lr=5e-3))
    for _ in range(200):
        output = model(**vars(batch))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert output.code_loss / output.code_count < 0.1
    drawn = generate_images(model.eval(), processor, prompts, temperature=0, cfg_scale=1.0)
    expected = [model.decode_image_tokens(codes_LK[None])[0] for codes_LK in codes_NLK]
    assert [image.tobytes() for image in drawn] == [image.tobytes() for image in expected]


def test_training_lowers_the_loss_of_the_image_tokenizer(tmp_path, text_folder):
    config = _tokenizer_config(tmp_path, text_folder, "learn", steps=40, batch_size=8, save_every=40)
    train_tokenizer(config)
    losses = _losses(config)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_codes_are_those_of_the_scenes(codes_folder, image_tokenizer):
    scenes = CodedScenes(SHAPES, codes_folder)
    scene, codes_LK = scenes[7]
    assert torch.equal(image_tokenizer.encode([scenes.world.render(scene)])[0], codes_LK.long())
    assert len(scenes) == 64


def test_missing_codes_are_named(tmp_path):
    with pytest.raises(ValueError, match="no codes in .*: make them with scripts.extract_codes"):
        CodedScenes(SHAPES, tmp_path)


def test_every_question_about_an_image_is_asked_on_its_own(make_tiny_model, codes_folder):
    _, processor = make_tiny_model()
    scene, codes_LK = CodedScenes(SHAPES, codes_folder)[0]
    config = replace(_scenes(codes_folder), chats=0.0)
    sample = answering_sample(processor, scene, codes_LK, config, random.Random(3))
    start = [id for id, branch in zip(sample.ids, sample.branches, strict=True) if branch == 0]
    asked = []
    for number in range(1, max(sample.branches) + 1):
        branch = [id for id, branch in zip(sample.ids, sample.branches, strict=True) if branch == number]
        asked.append(processor.decode([*start, *branch]))
    asked = [text.replace(" ", "") for text in asked]
    prompts = [f"{ASKED_FOR_PROMPT}{caption}".replace(" ", "") for caption in captions(scene)]
    assert sum(text in prompts for text in asked) == 1
    expected = [f"{question.text}{question.answer}".replace(" ", "") for question in questions(scene, random.Random(3))]
    assert sorted(text for text in asked if text not in prompts) == sorted(expected)


def test_worded_questions_are_true_and_follow_the_plain_ones(make_tiny_model, codes_folder):
    _, processor = make_tiny_model()
    scene, codes_LK = CodedScenes(SHAPES, codes_folder)[0]
    config = replace(_scenes(codes_folder), chats=0.0)
    plain = answering_sample(processor, scene, codes_LK, config, random.Random(3))
    sample = answering_sample(processor, scene, codes_LK, replace(config, worded_questions=9), random.Random(3))
    assert sample.ids[: len(plain.ids)] == plain.ids
    added = range(max(plain.branches) + 1, max(sample.branches) + 1)
    assert len(added) == 9
    for branch in added:
        places = [place for place, of in enumerate(sample.branches) if of == branch]
        asked = processor.decode([sample.ids[place] for place in places])
        answer = processor.decode([sample.labels[place] for place in places if sample.labels[place] != IGNORED])
        assert asked.endswith(answer) and len(asked) > len(answer) > 0
        assert consistent(scene, answer.lower()), (asked, answer)


def test_layouts_are_targets_before_drawings_and_in_answers(make_tiny_model, codes_folder):
    _, processor = make_tiny_model(plan_length=32)
    scene, codes_LK = CodedScenes(SHAPES, codes_folder)[0]
    config = replace(_scenes(codes_folder), chats=0.0, caption_dropout=0.0, layouts=True)
    drawn = drawing_sample(processor, scene, codes_LK, config, random.Random(3))
    targets = [id for id in drawn.labels if id != IGNORED]
    plan = processor.tokenizer.convert_tokens_to_ids(list(map(plan_token, layout(scene))))
    assert targets[: targets.index(processor.boi_id)] == plan and processor.decode(plan) == ""
    unconditional = drawing_sample(processor, scene, codes_LK, replace(config, caption_dropout=1.0), random.Random(3))
    assert unconditional.ids == processor.encode_drawing(None, codes_LK).ids
    answered = answering_sample(processor, scene, codes_LK, config, random.Random(3))
    targets = [
        [
            label
            for label, of in zip(answered.labels, answered.branches, strict=True)
            if of == branch and label != IGNORED
        ]
        for branch in range(1, max(answered.branches) + 1)
    ]
    assert targets.count([*plan, processor.eos_id]) == 1
    spoken = "".join(processor.decode(answer) for answer in targets)
    assert spoken and "<plan" not in spoken


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("pack", [0, 200])
def test_joined_chats_lose_what_they_lose_alone(make_tiny_model, pack, attention):
    model, processor = make_tiny_model()
    model.eval().set_attn_implementation(attention)
    codes_NLK = torch.randint(0, 16, (2, 4, 2), generator=torch.Generator().manual_seed(1))
    chats = [
        [
            processor.encode(
                [
                    {"role": "user", "content": [{"type": "image", "image": codes_LK}, {"type": "text", "text": text}]},
                    {"role": "assistant", "content": answer},
                ],
                open_answer=False,
            )
            for text, answer in (("what is it?", "a dog"), ("what colour is it?", "red"), ("is it big?", "yes"))
        ]
        for codes_LK in codes_NLK
    ]
    losses, gradients = [], []
    for samples in ([one for row in chats for one in row], [join(row) for row in chats]):
        model.zero_grad()
        output = model(**vars(processor.collate(samples, pack=pack if len(samples) == 2 else 0, multiple=16)))
        output.text_loss.backward()
        losses.append((output.text_loss.item(), output.text_count.item()))
        gradients.append(model.backbone.layers[0].self_attn.q_proj.weight.grad)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("number", [signal.SIGKILL])
def test_a_killed_run_keeps_its_last_checkpoint(tmp_path, text_folder, number):
    config = _tokenizer_config(tmp_path, text_folder, "killed", steps=10_000, save_every=2)
    save_config(config, tmp_path / "tokenizer.yaml")
    command = [sys.executable, "-m", "scripts.train_tokenizer", str(tmp_path / "tokenizer.yaml")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("step 5/"):
                break
        process.send_signal(number)
    resumed = replace(config, run=replace(config.run, steps=7))
    train_tokenizer(resumed)
    steps = [json.loads(row)["step"] for row in (config.run.path / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 8))


def test_two_processes_train_as_one(tmp_path, text_folder, codes_folder, image_tokenizer):
    """Same samples, split over two ranks: the same losses."""
    one = _config(tmp_path, text_folder, codes_folder, image_tokenizer, "one", batch_size=8, steps=3)
    one.data.draw, one.data.answer = 1.0, 0.0
    train(one)
    two = replace(one, run=replace(one.run, name="two", batch_size=4))
    save_config(two, tmp_path / "two.yaml")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "scripts.train", str(tmp_path / "two.yaml")]
    ended = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "WARNING" not in ended.stdout + ended.stderr  # DeepSpeed's, say, of a machine without a GPU
    assert _losses(two) == pytest.approx(_losses(one), rel=1e-4)


def test_the_schedule_warms_up_and_decays():
    config = OptimConfig(warmup=10, final_lr=0.1)
    factors = [schedule(step, 100, config) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and max(factors) == pytest.approx(1.0)
    assert factors[-1] == pytest.approx(0.1) and factors[10:] == sorted(factors[10:], reverse=True)


def test_rates_follow_the_longest_prefix():
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    config = OptimConfig(lr=1.0, lr_by_prefix={"a": 0.5, "a.bias": 0.25}, muon=["b"])
    optimizer = make_optimizer(model.named_parameters(), config)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert [rates[id(p)] for _, p in model.named_parameters()] == [0.5, 0.25, 1.0, 1.0]


def test_an_exported_model_has_the_codes_it_was_trained_on(tmp_path, text_folder, codes_folder, image_tokenizer):
    config = _config(tmp_path, text_folder, codes_folder, image_tokenizer, "run", steps=2)
    folder = train(config)
    export_model(folder, tmp_path / "shipped", [config.run.path])
    trained, shipped = Mllm.from_pretrained(folder), Mllm.from_pretrained(tmp_path / "shipped")
    assert {tensor.dtype for tensor in shipped.state_dict().values()} == {torch.float32}
    pixels_N3HW = torch.rand(3, 3, 32, 32) * 2 - 1
    assert torch.equal(shipped.image_tokenizer.encode(pixels_N3HW), trained.image_tokenizer.encode(pixels_N3HW))
    torch.testing.assert_close(shipped.lm_head.weight, trained.lm_head.weight, rtol=2**-8, atol=1e-6)
    beside = {path.name for path in (tmp_path / "shipped" / "training" / "run").iterdir()}
    assert beside == {"config.yaml", "metrics.jsonl", "curves.png"}


def test_an_image_tokenizer_of_the_same_codes_can_be_exported_instead(
    tmp_path, text_folder, codes_folder, image_tokenizer
):
    config = _config(tmp_path, text_folder, codes_folder, image_tokenizer, "run", steps=1)
    folder = train(config)
    later = copy.deepcopy(image_tokenizer)
    with torch.no_grad():
        later.decoder.norm.bias += 1
    later.save_pretrained(tmp_path / "later")
    export_model(folder, tmp_path / "shipped", [], tmp_path / "later")
    shipped = Mllm.from_pretrained(tmp_path / "shipped").image_tokenizer
    assert torch.equal(shipped.decoder.norm.bias, later.decoder.norm.bias)
    with torch.no_grad():
        later.quantizer.codebooks_KVq[0, 0] *= -1
    later.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="other gives other codes .*: quantizer.codebooks_KVq differs"):
        export_model(folder, tmp_path / "refused", [], tmp_path / "other")


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(ValueError, match="is no run: it has no metrics.jsonl"):
        plot_run(tmp_path, tmp_path / "curves.png")


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
def test_an_impossible_code_share_is_refused(share):
    with pytest.raises(ValueError, match=rf"code_share: {share} is outside \(0, 1\]"):
        TrainConfig(code_share=share)
