"""Learning from drawings: what is drawn and what is trained agree, methods against formulas written out, rewards."""

import json
import math
import os
import signal
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from data_recipes.scenes.world import combinations, is_held_out
from mllm.decode.options import DrawingOptions
from mllm.decode.rerank import fit, reread
from mllm.decode.run import generate_texts
from mllm.text.templates import IGNORED
from training.rl.drawings import Group, draw_groups, drawing_seed, finished
from training.rl.methods import METHODS
from training.rl.methods.grpo import advantages_of
from training.rl.policy import PolicyMllm, Scored
from training.rl.prompts import Prompt, Prompts
from training.rl.rewards import REWARDS, Judge
from training.rl.train import check, train_rl
from training.rl.watch import Questions, same_rewards
from training.rl.weights import code_weights
from training.run.backends import TorchEngine
from training.run.optim import freeze, set_lr
from training.run.recipe import (
    GrpoConfig,
    ModelConfig,
    OptimConfig,
    PromptSourceConfig,
    QuestionsConfig,
    RewardConfig,
    RlConfig,
    RunConfig,
    ScenesConfig,
)

TRAINED = ["backbone", "lm_head", "code_embed", "code_head"]
SHAPES = ScenesConfig(artwork="shapes")
AS_THE_MODEL = DrawingOptions(temperature=1.0, cfg_scale=1.0)


@pytest.fixture
def make_policy(make_tiny_model):
    """-> a fresh tiny (model, processor) that writes plans of at most 6 ids, of any or, with `plan_length`, of their
    own."""

    def make(plan_length: int = 0, **more) -> tuple[PolicyMllm, object]:
        model, processor = make_tiny_model(plan_length=plan_length, **more)
        policy = PolicyMllm(model.config).eval()
        policy.load_state_dict(model.state_dict())
        policy.config.plan_length = 6
        freeze(policy, TRAINED)
        return policy, processor

    return make


@pytest.fixture
def folder(make_policy, tmp_path) -> Path:
    """The same as `model.init_from` takes it."""
    for part in make_policy():
        part.save_pretrained(tmp_path / "start")
    return tmp_path / "start"


def make_config(start: Path | str = "start", **options) -> RlConfig:
    run = {"steps": 4, "batch_size": 2, "save_every": 100, "precision": "fp32", "device": "cpu", "log_every": 100}
    run |= {"folder": str(Path(start).parent), "name": "run", **options.pop("run", {})}
    return RlConfig(
        run=RunConfig(**run),
        model=ModelConfig(init_from=str(start), trainable=TRAINED),
        optim=options.pop("optim", OptimConfig(lr=3e-3, warmup=0, clip=1e9, weight_decay=0.0)),
        draw=options.pop("draw", PromptSourceConfig(scenes=SHAPES)),
        rewards=options.pop("rewards", {"share": RewardConfig()}),
        **{"group": 3, "code_weight": 0.3, **options},
    )


def share(config, model, processor):
    """A reward: the share of even codes in the first sub-codebook."""
    return lambda group: (group.codes[..., 0] % 2 == 0).double().mean(1)


def drawn(model, processor, options=AS_THE_MODEL, n=3) -> list[Group]:
    asked = [(Prompt(text, {}), processor.encode_planning(text)) for text in ("a red dog", "two cats on a mat")]
    groups = draw_groups(
        model.eval(), processor, asked, [[drawing_seed(0, p, j) for j in range(n)] for p in (0, 1)], options
    )
    for group in groups:
        group.rewards = torch.tensor([1.0, 0.0, 3.0, 2.0][:n], dtype=torch.double)
    return groups


class Kept(TorchEngine):
    """An engine that keeps the gradients of its last update."""

    def step(self) -> float:
        self.gradients = {name: p.grad.clone() for name, p in self.trained.items() if p.grad is not None}
        return super().step()


def make_engine(model, config) -> Kept:
    engine = Kept(model.train(), config, torch.device("cpu"))
    set_lr(engine, 0.0)
    return engine


# ---- drawing and training


@pytest.mark.parametrize(
    ("cfg_scale", "plan_length", "order"),
    [(1.0, 0, "raster"), (2.5, 0, "raster"), (2.5, 6, "wavefront"), (2.5, 6, "locality")],
)
def test_training_gives_the_log_probabilities_of_generation(make_policy, cfg_scale, plan_length, order):
    model, processor = make_policy(plan_length, order=order, image_size=64 if order != "raster" else 32)
    options = DrawingOptions(temperature=0.7, cfg_scale=cfg_scale, cfg_interval=(0.0, 0.5))
    groups = drawn(model, processor, options)
    drawings = [drawing for group in groups for drawing in group.drawings]
    batch = Scored(drawings, processor, options, torch.device("cpu"))
    output = model(**batch.inputs)
    lengths = [sum(label != IGNORED for label in drawing.sample.labels) for drawing in drawings]
    assert batch.owners.bincount(minlength=6).tolist() == lengths and max(lengths) > 1
    assert batch.code_logps.std() > 0.1
    torch.testing.assert_close(output.text_logps, batch.text_logps, rtol=0, atol=1e-4)
    torch.testing.assert_close(output.code_logps.view_as(batch.code_logps), batch.code_logps, rtol=0, atol=1e-4)


def test_a_plan_that_ended_by_itself_has_its_end_as_a_target(make_policy):
    model, processor = make_policy()
    with torch.no_grad():
        model.lm_head.weight[processor.boi_id] = 0.3 * model.lm_head.weight.abs().max()
    drawings = [drawing for group in drawn(model, processor, n=4) for drawing in group.drawings]
    for drawing in drawings:
        place = drawing.sample.ids.index(processor.boi_id)
        targets = [label for label in drawing.sample.labels if label != IGNORED]
        plan = drawing.sample.ids[:place][-len(targets) :]
        assert len(targets) == drawing.plan_length
        assert (targets[-1] == processor.boi_id) == (drawing.sample.labels[place] == processor.boi_id)
        assert targets == plan or targets == [*plan[1:], processor.boi_id]


def test_a_drawing_does_not_depend_on_the_others(make_policy):
    model, processor = make_policy()
    together = drawn(model, processor)[1]
    asked = [(together.prompt, processor.encode_planning(together.prompt.text))]
    [alone] = draw_groups(model, processor, asked, [[drawing_seed(0, 1, 2)]], AS_THE_MODEL)
    assert torch.equal(alone.drawings[0].codes, together.drawings[2].codes)
    assert alone.drawings[0].sample.ids == together.drawings[2].sample.ids


def test_a_finished_drawing_is_a_sample_of_ordinary_training(make_policy):
    model, processor = make_policy()
    drawing = drawn(model, processor)[0].drawings[0]
    sample = finished(processor, drawing, plans=True)
    assert sample.ids[-2:] == sample.labels[-2:] == [processor.eoi_id, processor.eos_id] and sample.is_target == [True]
    ordinary = processor.encode_drawing("a red dog", drawing.codes)
    image, whole = (ids[ids.index(processor.boi_id) :] for ids in (sample.ids, ordinary.ids))
    assert image == whole and sample.ids[: sample.ids.index(processor.boi_id)] == drawing.sample.ids[: -len(image) + 2]
    left_alone = finished(processor, drawing, plans=False)
    assert [label for label in left_alone.labels if label != IGNORED] == [processor.eoi_id, processor.eos_id]


# ---- methods


def log_probabilities(model, drawing) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the ids that were chosen and of the codes, [A] and [L, K]: one id and one code after the other."""
    sample, codes_1LK = drawing.sample, drawing.codes[None]
    h_TD = model.backbone(inputs_embeds=model.embed(torch.tensor([sample.ids]), codes_1LK)).last_hidden_state[0]
    text, codes = [], []
    for place, (id, label) in enumerate(zip(sample.ids, sample.labels, strict=True)):
        if label != IGNORED:
            logits = model.lm_head(h_TD[place - 1]).index_fill(0, torch.tensor(model.config.image_token_id), -math.inf)
            text.append(logits.log_softmax(-1)[label])
        if id == model.config.image_token_id:
            codes_K = drawing.codes[len(codes)]
            logits_KV = model.code_head(h_TD[place - 1][None], codes_K[None])[0]
            codes.append(torch.stack([row.log_softmax(-1)[code] for row, code in zip(logits_KV, codes_K, strict=True)]))
    return torch.stack(text) if text else torch.zeros(0), torch.stack(codes)


def moved(model, amount: float):
    """The same model with other weights."""
    other, generator = deepcopy(model), torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in other.parameters():
            if p.requires_grad:
                p.add_(amount * torch.randn(p.shape, generator=generator))
    return other


@pytest.mark.parametrize("plans", [True, False])
def test_grpo_has_the_gradient_of_the_formula(make_policy, plans):
    drawer, processor = make_policy()
    groups, start = drawn(drawer, processor), moved(drawer, 0.005)
    config = make_config(plans=plans, grpo=GrpoConfig(kl=0.3, clip=0.05, mismatch=math.inf))
    model = moved(drawer, 0.02)
    expected, loss, clipped = deepcopy(model), 0.0, 0
    for group in groups:
        advantages = (group.rewards - group.rewards.mean()) / (group.rewards.std() + 1e-6)
        for drawing, advantage in zip(group.drawings, advantages.tolist(), strict=True):
            total, weight = 0.0, 0.0
            now, before = log_probabilities(expected, drawing), (drawing.text_logps, drawing.code_logps)
            with torch.no_grad():
                at_start = log_probabilities(start, drawing)
            for value, old, first, one in zip(now, before, at_start, (float(plans), 0.3), strict=True):
                for p, q, s in zip(value.flatten(), old.flatten(), first.flatten(), strict=True):
                    ratio = (p - q).exp()
                    gain = torch.min(ratio * advantage, ratio.clamp(0.95, 1.05) * advantage)
                    clipped += bool(gain < ratio * advantage)
                    total = total + one * (gain - 0.3 * ((s - p).exp() - (s - p) - 1))
                    weight += one
            loss = loss - total / weight / 6
    loss.backward()
    assert clipped > 5  # the case is one in which clipping matters
    engine = make_engine(model, config)
    report = METHODS["grpo"](config).update(engine, processor, start, [groups[:1], groups[1:]])
    assert report["loss"] == pytest.approx(loss.item(), rel=1e-4)
    wanted = {name: p.grad for name, p in expected.named_parameters() if p.grad is not None}
    for name, gradient in engine.gradients.items():
        torch.testing.assert_close(gradient, wanted.get(name, torch.zeros_like(gradient)), rtol=2e-3, atol=2e-6)


def test_at_the_first_step_the_ratio_is_1_and_the_divergence_0(make_policy):
    model, processor = make_policy()
    config, start = make_config(temperature=0.8, cfg_scale=2.0), deepcopy(model)
    groups = drawn(model, processor, config.drawing)
    report = METHODS["grpo"](config).update(make_engine(model, config), processor, start, [groups])
    assert report["ratio"] == pytest.approx(1, abs=1e-4)
    assert report["kl"] == pytest.approx(0, abs=1e-6) and report["mismatch"] < 1e-4
    assert report["clipped"] == report["masked"] == 0 and report["grad_norm"] > 1e-3


def test_what_generation_and_training_disagree_on_is_left_out(make_policy):
    model, processor = make_policy()
    config = make_config(grpo=GrpoConfig(kl=0.0, mismatch=0.5))
    groups = drawn(model, processor)
    wrong, [clean] = deepcopy(groups), groups[:1]
    wrong[0].drawings[0].code_logps[1, 0] -= 30.0  # as a damaged kernel would have it: a ratio of e^30
    reports = {}
    for name, group in (("clean", clean), ("wrong", wrong[0])):
        engine = make_engine(deepcopy(model), config)
        reports[name] = METHODS["grpo"](config).update(engine, processor, None, [[group]])
        reports[name]["gradients"] = engine.gradients
    counted = 3 * clean.drawings[0].codes.numel() + sum(drawing.plan_length for drawing in clean.drawings)
    assert reports["wrong"]["masked"] == pytest.approx(1 / counted) and reports["clean"]["masked"] == 0
    assert reports["wrong"]["grad_norm"] < 2 * reports["clean"]["grad_norm"] and "kl" not in reports["wrong"]


def test_dpo_begins_at_log_2_and_prefers_the_best(make_policy):
    model, processor = make_policy()
    config, start = make_config(), deepcopy(model)
    groups = drawn(model, processor)
    engine = TorchEngine(model.train(), config, torch.device("cpu"))
    reports = [METHODS["dpo"](config).update(engine, processor, start, [groups]) for _ in range(4)]
    assert reports[0]["loss"] == pytest.approx(math.log(2), rel=1e-4) and reports[0]["margin"] == pytest.approx(
        0, abs=1e-3
    )
    best, worst = (groups[0].drawings[place] for place in (2, 1))
    now, before = ([sum(x.sum() for x in log_probabilities(m, d)) for d in (best, worst)] for m in (model, start))
    margin = now[0] - before[0] - now[1] + before[1]
    assert margin > 0.1 and reports[3]["loss"] < reports[0]["loss"] and reports[3]["preferred"] == 1
    last = METHODS["dpo"](config).update(make_engine(model, config), processor, start, [groups[:1]])
    assert last["loss"] == pytest.approx(-F.logsigmoid(config.dpo.beta * margin).item(), rel=1e-4)


def test_prompts_without_a_signal_count_nothing(make_policy):
    model, processor = make_policy()
    groups = drawn(model, processor)
    for method in METHODS:
        config, gradients = make_config(), []
        for counted in (groups[:1], groups):
            counted = deepcopy(counted)
            for group in counted[1:]:
                group.rewards, group.problem = None, "the reward failed"
            engine = make_engine(deepcopy(model), config)
            METHODS[method](config).update(engine, processor, deepcopy(model), [counted])
            gradients.append(engine.gradients)
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-6)
        for group in (nothing := deepcopy(groups)):
            group.rewards = torch.ones(3)
        assert METHODS[method](config).update(make_engine(model, config), processor, model, [nothing]) == {}
    assert advantages_of(nothing[0]).tolist() == [0, 0, 0]


def test_weights_of_codes(make_policy):
    model, processor = make_policy()
    codes_NLK = torch.randint(0, 16, (4, 4, 2), generator=torch.Generator().manual_seed(0))
    codes_NLK[:2, 1] = codes_NLK[0, 1]  # the first group of two agrees on its second position
    entropies_NLK = torch.rand(4, 4, 2, generator=torch.Generator().manual_seed(1))
    weights = code_weights(["similarity"], codes_NLK, entropies_NLK, 2, model.image_tokenizer)
    assert weights[:2, 1].abs().max() < 1e-5 and (weights[2:, 1] > 0).all()
    torch.testing.assert_close(weights.mean((1, 2)), torch.ones(4))
    by_entropy = code_weights(["entropy"], codes_NLK, entropies_NLK, 2, model.image_tokenizer)
    torch.testing.assert_close(by_entropy, entropies_NLK / entropies_NLK.mean((1, 2), keepdim=True))
    both = code_weights(["similarity", "entropy"], codes_NLK, entropies_NLK, 2, model.image_tokenizer)
    torch.testing.assert_close(both.mean((1, 2)), torch.ones(4))
    assert torch.equal(code_weights([], codes_NLK, entropies_NLK, 2, model.image_tokenizer), torch.ones(4, 4, 2))
    with pytest.raises(ValueError, match="grpo.weights: unknown 'similar'; known: similarity, entropy"):
        METHODS["grpo"](make_config(grpo=GrpoConfig(weights=["similar"])))


# ---- runs


def rows(config) -> list[dict]:
    return [json.loads(line) for line in (config.run.path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("grpo", {"grpo": GrpoConfig(kl=0.01, passes=2, weights=["similarity", "entropy"])}),
        ("rejection", {}),
        ("dpo", {}),
    ],
)
def test_a_toy_reward_rises(folder, method, options):
    config = make_config(folder, method=method, group=8, run={"steps": 8}, code_weight=1.0, **options)
    train_rl(config, {"share": share})
    rewards = [row["reward/share"] for row in rows(config)]
    assert sum(rewards[-2:]) / 2 > sum(rewards[:2]) / 2 + 0.1
    last = rows(config)[-1]
    assert {"entropy/0", "entropy/1", "no_signal", "plan_length", "drawings_per_s", "share_of_drawing"} <= last.keys()
    assert 0 < last["entropy/0"] < math.log(16) and last["reward"] == last["reward/share"] < last["reward_of_best"]


@pytest.mark.parametrize("method", ["grpo", "rejection"])
def test_resuming_is_invisible(folder, method):
    """SIGTERM comes in the middle of the second of four steps."""
    weights = {}
    for name in ("whole", "parts"):
        calls = []

        def stopping(group, calls=calls, name=name):
            calls.append(group)
            if name == "parts" and len(calls) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return share(None, None, None)(group)

        config = make_config(folder, method=method, run={"name": name})
        last = train_rl(config, {"share": lambda *_, stopping=stopping: stopping})
        if name == "parts":
            assert last.parent.name == "step_000002"
            last = train_rl(config, {"share": lambda *_, stopping=stopping: stopping})
        assert last.parent.name == "step_000004"
        weights[name] = load_file(last / "model.safetensors"), [(row["loss"], row["reward"]) for row in rows(config)]
    assert weights["whole"][1] == weights["parts"][1] and len(weights["whole"][1]) == 4
    start = load_file(folder / "model.safetensors")
    for name, weight in weights["whole"][0].items():
        assert torch.equal(weight, weights["parts"][0][name])
        assert name.startswith("image_tokenizer") == torch.equal(weight, start[name])


def test_an_unknown_method_is_named(folder):
    with pytest.raises(ValueError, match="recipe, method: unknown 'ppo'; known: grpo, rejection, dpo"):
        train_rl(make_config(folder, method="ppo"), {"share": share})


def test_a_run_without_a_signal_stops_with_one_line(folder):
    config = make_config(folder, patience=2)
    with pytest.raises(ValueError, match="no signal in 2 steps, as every drawing of '.*' got share 0.25: take other"):
        train_rl(config, {"share": lambda *_: lambda group: [0.25] * 3})
    told = [json.loads(line) for line in (config.run.path / "left_out.jsonl").read_text().splitlines()]
    assert [row["step"] for row in told] == [1, 1, 2, 2] and told[0]["why"] == "all drawings have the same reward"


def test_prompts_whose_reward_fails_are_left_out_counted_and_named(folder, capsys):
    failures = [ZeroDivisionError("no\nluck"), [math.nan] * 3, [1.0], None]
    order = iter(failures + failures)

    def sometimes(group):
        failure = next(order)
        if isinstance(failure, Exception):
            raise failure
        return failure or share(None, None, None)(group)

    config = make_config(folder, run={"steps": 2, "batch_size": 4})
    train_rl(config, {"share": lambda *_: sometimes})
    assert [row["left_out"] for row in rows(config)] == [0.75, 0.75]
    told = capsys.readouterr().err
    for why in ("ZeroDivisionError: no luck", "a value is nan", "1 values for 3 drawings"):
        assert told.count(f"reward share: {why}") == 2
    with pytest.raises(ValueError, match="3 bad samples"):
        order = iter(failures)
        train_rl(make_config(folder, run={"name": "few", "batch_size": 4}, max_bad=2), {"share": lambda *_: sometimes})


def test_understanding_that_falls_stops_the_run(folder):
    config = make_config(folder, questions=QuestionsConfig(scenes=SHAPES, fall=0.1))
    check(config, [], {"idle": 0, "understanding": 0.9}, {"understanding": 0.81})
    check(config, [], {"idle": 0, "understanding": 0.9}, {})
    with pytest.raises(ValueError, match="understanding fell from 0.9 to 0.79, by more than questions.fall 0.1"):
        check(config, [], {"idle": 0, "understanding": 0.9}, {"understanding": 0.79})


def test_questions_are_of_held_out_scenes_and_exact(make_policy):
    model, processor = make_policy()
    engine = TorchEngine(model, make_config(), torch.device("cpu"))
    asked = Questions(QuestionsConfig(scenes=SHAPES, count=3), engine, processor)
    assert len(asked.mine) == 3 and asked.mine[0][0][0]["content"][0]["image"].shape == (4, 2)
    said = generate_texts(model, processor, [chat for chat, _ in asked.mine], max_new_tokens=48)
    asked.mine = [(chat, text.strip()) for (chat, _), text in zip(asked.mine, said, strict=True)]
    assert asked.ask(engine) == 1.0
    asked.mine[0] = (asked.mine[0][0], "something else")
    assert asked.ask(engine) == pytest.approx(2 / 3)


# ---- prompts and rewards


def test_prompts_of_scenes_name_no_held_out_combination(make_policy):
    model, processor = make_policy()
    prompts = Prompts(PromptSourceConfig(scenes=SHAPES), model, processor, 0, 0)
    for number in range(100):
        prompt = prompts.source.prompt(number)
        scene = prompts.source.world.scene(2 * prompts.source.order[number], "train")
        assert not any(map(is_held_out, combinations(scene.things)))
        assert {item["class"] for item in prompt.record["include"]} == {thing.name for thing in scene.things}
        assert prompts.at(number)[0] == prompt


def test_prompts_of_a_file(make_policy, tmp_path):
    model, processor = make_policy()
    (tmp_path / "lines.txt").write_text("a dog\n\na cat\n")
    source = Prompts(PromptSourceConfig(file=str(tmp_path / "lines.txt")), model, processor, 0, 0)
    assert {source.at(position)[0].text for position in (0, 1)} == {"a dog", "a cat"} and "2 of" in source.source.note
    (tmp_path / "objects.jsonl").write_text('{"prompt": "a dog", "tag": "colors"}\n{"text": "a cat"}\n')
    source = Prompts(PromptSourceConfig(file=str(tmp_path / "objects.jsonl")), model, processor, 0, 1)
    found = [source.at(position) for position in (0, 1)]
    assert all(prompt.text == "a dog" and prompt.record["tag"] == "colors" for prompt, *_ in found)
    assert [problem for *_, problems in found for problem in problems] == [
        f'{tmp_path}/objects.jsonl, line 2: no object with "prompt"'
    ]
    (tmp_path / "long.txt").write_text("dog " * 300)
    with pytest.raises(ValueError, match="1 bad prompts in a row, max_bad is 0; the last: .* positions of text"):
        Prompts(PromptSourceConfig(file=str(tmp_path / "long.txt")), model, processor, 0, 0).at(0)
    with pytest.raises(ValueError, match="recipe, draw.file: cannot read"):
        Prompts(PromptSourceConfig(file=str(tmp_path / "none.txt")), model, processor, 0, 0)


def test_the_models_own_rewards(make_policy):
    model, processor = make_policy()
    group = drawn(model, processor)[0]
    names = {"likelihood": RewardConfig(weight=2.0), "likeness": RewardConfig(weight=0.0)}
    Judge(names, REWARDS, model, processor)([group])
    ids = processor.tokenizer("a red dog", add_special_tokens=False).input_ids
    fits = fit(model, processor, "a red dog", reread(model, group.codes)).double() / len(ids)
    torch.testing.assert_close(group.parts["likelihood"], fits)
    torch.testing.assert_close(group.rewards, 2 * fits)
    assert group.parts["likeness"].abs().max() <= 1 and group.parts["likeness"].std() > 0
    model.config.image_tokenizer["text_vocab_size"] = 500
    with pytest.raises(ValueError, match="recipe, rewards.likeness: the image tokenizer's text tower reads 499"):
        Judge(names, REWARDS, model, processor)


def test_a_function_of_the_users_own(make_policy, tmp_path, monkeypatch):
    model, processor = make_policy()
    (tmp_path / "my_taste.py").write_text(
        "x = 1\ndef bright(prompt, images):\n    return [sum(one.resize((1, 1)).getpixel((0, 0))) for one in images]\n"
    )
    monkeypatch.chdir(tmp_path)
    group = drawn(model, processor)[0]
    Judge({"bright": RewardConfig(kind="function", at="my_taste:bright")}, REWARDS, model, processor)([group])
    assert group.rewards.tolist() == [sum(image.resize((1, 1)).getpixel((0, 0))) for image in group.images]
    for at, why in [
        (None, "say where the function is"),
        ("my_taste", "as module:function"),
        ("my_taste:dark", "AttributeError"),
        ("no_such_module:f", "ModuleNotFoundError"),
        ("my_taste:x", "is no function"),
    ]:
        with pytest.raises(ValueError, match=f"recipe, rewards.bright: .*{why}"):
            Judge({"bright": RewardConfig(kind="function", at=at)}, REWARDS, model, processor)
    with pytest.raises(ValueError, match="rewards.taste: unknown kind 'taste'; known: likelihood"):
        Judge({"taste": RewardConfig()}, REWARDS, model, processor)


def test_same_rewards_names_what_was_given(make_policy):
    model, processor = make_policy()
    groups = drawn(model, processor)
    groups[0].problem, groups[1].parts = "broken", {"share": torch.tensor([0.5])}
    assert same_rewards(groups) == "every drawing of 'two cats on a mat' got share 0.5"
    assert same_rewards(groups[:1]) == "broken"
