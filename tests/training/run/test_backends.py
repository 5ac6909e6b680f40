"""DeepSpeed's stages, and any number of ranks, train as plain torch does in one process."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mllm import Mllm
from mllm.codes import CODE_EMBEDDINGS, CODE_HEADS
from tests.processes import ROOT, run_training
from tests.shard_files import talk, write_shard
from training.lm.update import KINDS, train_step
from training.run.backends import TorchEngine
from training.run.recipe import TrainConfig, load_config

RECIPE = ROOT / "data_recipes" / "debug.yaml"
LOGGED = ("text_loss", "code_loss", "grad_norm")
STAGES = [pytest.param([f"deepspeed.stage={stage}"], marks=pytest.mark.slow, id=str(stage)) for stage in range(4)]


class Run:
    """The debug recipe in a folder of its own, on a number of ranks that may change."""

    def __init__(self, folder: Path, name: str, *words: str):
        self.path, self.log = folder / name, folder / f"{name}.log"
        fixed = ["run.sample_every=0", "run.save_every=100", "optim.final_lr=1", "optim.weight_decay=1"]
        self.argv = [RECIPE, *fixed, f"run.folder={folder}", f"run.name={name}", *words]

    def to(self, step: int, ranks: int, *words: str) -> "Run":
        statuses = run_training([*self.argv, f"run.steps={step}", *words], self.log, ranks)
        assert statuses == [0] * ranks, self.log.read_text()
        return self

    @property
    def losses(self) -> list[float]:
        rows = [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]
        return [row[name] for row in rows for name in LOGGED]

    def weights(self, step: int) -> dict[str, torch.Tensor]:
        folder = self.path / f"step_{step:06d}" / "model"
        assert isinstance(Mllm.from_pretrained(folder), Mllm)
        return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Run:
    """Four steps on one rank at once. All steps have the same rate, so a shorter run begins alike."""
    return Run(tmp_path_factory.mktemp("whole"), "whole").to(4, 1)


@pytest.mark.parametrize("stage", [pytest.param([], id="torch"), *STAGES])
def test_checkpoints_go_from_two_ranks_to_one_and_back(tmp_path, whole, stage):
    parts = Run(tmp_path, "parts", *stage).to(1, 2).to(3, 1).to(4, 2)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-4)
    expected, weights = whole.weights(4), parts.weights(4)
    assert weights.keys() == expected.keys()
    assert all(torch.allclose(weights[name], expected[name], atol=1e-4) for name in expected)


def test_a_checkpoint_goes_from_plain_torch_to_deepspeed_and_back(tmp_path, whole):
    parts = Run(tmp_path, "parts").to(1, 1).to(2, 1, "deepspeed.stage=2").to(3, 1)
    assert parts.losses == pytest.approx(whole.losses[: 3 * len(LOGGED)], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("words", [["deepspeed.offload=true"], ["run.precision=bf16"], ["run.checkpointing=true"]])
@pytest.mark.parametrize("stage", [2, 3])
def test_options_change_no_loss(tmp_path, stage, words):
    plain = [word for word in words if not word.startswith("deepspeed")]
    whole = Run(tmp_path, "whole", *plain).to(3, 1)
    zero = Run(tmp_path, "zero", f"deepspeed.stage={stage}", *words).to(2, 2).to(3, 1)
    assert zero.losses == pytest.approx(whole.losses, rel=2e-3 if "run.precision=bf16" in words else 1e-4)


@pytest.fixture(scope="module")
def text_and_drawings(tmp_path_factory) -> tuple[Run, list[str]]:
    """Three steps on one rank, and the words of the recipe: of the two samples of an update, the first is text, the
    other one a drawing. Most of the backbone is frozen."""
    folder = tmp_path_factory.mktemp("two_kinds")
    write_shard(folder / "text" / "0.tar", {f"{number}": talk("who?", f"number {number}") for number in range(8)})
    sources = f"{{text: {{shards: ['{folder}/text/*.tar']}}, scenes: {{scenes: {{draw: 1, answer: 0}}}}}}"
    trainable = "model.trainable=[backbone.layers.1, lm_head, code_embed, code_head]"
    words = [f"data.sources={sources}", trainable, "run.global_batch_size=2", "run.batch_size=1", "run.save_every=1"]
    return Run(folder, "one", *words).to(3, 1), words


@pytest.mark.parametrize(
    "stage", [pytest.param([], id="torch"), *STAGES[1:3], pytest.param(["deepspeed.stage=3"], id="3")]
)
def test_ranks_without_images_keep_up(tmp_path, text_and_drawings, stage):
    """One rank has text alone, the other one drawings alone, in every update. After each update, rank 0 draws and
    answers alone."""
    one, words = text_and_drawings
    two = Run(tmp_path, "two", *words, *stage, "run.sample_every=1").to(3, 2)
    assert len(list((two.path / "pictures").iterdir())) == len(list((two.path / "texts").iterdir())) == 3
    assert two.losses == pytest.approx(one.losses, rel=1e-4)
    before, after = two.weights(2), two.weights(3)
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved == {name for name in after if name.startswith(("backbone.layers.1.", "lm_head", "code_"))}


@pytest.mark.parametrize("code_embedding", CODE_EMBEDDINGS)
@pytest.mark.parametrize("code_head", CODE_HEADS)
@pytest.mark.parametrize("pack", [0, 64])
def test_every_parameter_has_a_gradient_whatever_is_in_a_batch(make_tiny_model, code_embedding, code_head, pack):
    """Else ranks would wait for each other."""
    model, processor = make_tiny_model(code_embedding, code_head)
    model.train().image_tokenizer.requires_grad_(False)
    codes_LK = torch.ones(4, 2, dtype=torch.long)
    drawing = processor.encode_drawing("a dog", codes_LK)
    image, text = {"type": "image", "image": codes_LK}, {"type": "text", "text": "what?"}
    read = processor.encode([{"role": "user", "content": [image, text]}])
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    plain = processor.encode(chat, open_answer=False)
    for samples in ([drawing], [read], [plain], [processor.encode(chat[:1])], [drawing, read, plain]):
        model.zero_grad()
        output = model(**vars(processor.collate(samples, pack=pack)))
        (output.text_loss + output.code_loss).backward()
        without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not without


@pytest.mark.parametrize("pack", [0, 64])
def test_losses_of_kinds_and_codebooks_add_up(make_tiny_model, tmp_path, pack):
    model, processor = make_tiny_model()
    codes_LK = torch.ones(4, 2, dtype=torch.long)
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    image = {"type": "image", "image": codes_LK}
    about = [{"role": "user", "content": [image, {"type": "text", "text": "what?"}]}, chat[1]]
    samples = [processor.encode(messages, open_answer=False) for messages in (chat, about)]
    samples.append(processor.encode_drawing("a dog", codes_LK))
    batch = processor.collate(samples, pack=pack)
    config = load_config(TrainConfig, RECIPE, [f"run.folder={tmp_path}"])
    model.image_tokenizer.requires_grad_(False)
    report = train_step(TorchEngine(model, config, torch.device("cpu")), [batch], config)()
    alone = {}
    for kind, sample in zip(("text", "answering", "drawing"), samples, strict=True):
        model, processor = make_tiny_model()
        output = model(**vars(processor.collate([sample])))
        alone[kind] = (output.text_loss / output.text_count).item()
    assert {kind: report[f"text_loss/{kind}"] for kind in KINDS} == pytest.approx(alone, rel=1e-4)
    assert report["code_loss"] == pytest.approx((report["code_loss/0"] + report["code_loss/1"]) / 2)


def test_a_gradient_that_is_not_finite_stops_before_the_update(make_tiny_model, tmp_path):
    model, processor = make_tiny_model()
    config = load_config(TrainConfig, RECIPE, [f"run.folder={tmp_path}"])
    model.image_tokenizer.requires_grad_(False)
    engine = TorchEngine(model, config, torch.device("cpu"))
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    before = model.lm_head.weight[1].clone()
    batch = processor.collate([processor.encode_drawing("a dog", torch.ones(4, 2, dtype=torch.long))])
    with pytest.raises(ValueError, match="the loss is not finite; stopped before the update"):
        train_step(engine, [batch], config)
    assert torch.equal(before, model.lm_head.weight[1])
    assert not engine.optimizer.state


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["deepspeed.stage=4"], "deepspeed.stage: 4"),
        (["deepspeed={stage: 0, offload: true}"], "deepspeed.offload needs"),
        (["deepspeed.stage=1", "optim.muon=[backbone.layers]"], "optim.muon: Muon needs whole matrices"),
        (["deepspeed.stage=3", "run.compile=true"], "run.compile: not with deepspeed.stage 3"),
        (["prompts=[]"], "run.sample_every: there are no `prompts`"),
        (["prompts=[{draw: a, ask: b}]"], "prompts: each is"),
    ],
)
def test_what_does_not_go_together_is_refused(words, named):
    with pytest.raises(ValueError, match=named):
        load_config(TrainConfig, RECIPE, words)


def test_a_batch_that_cannot_be_divided_is_refused():
    run = load_config(TrainConfig, RECIPE, ["run.global_batch_size=10"]).run
    with pytest.raises(
        ValueError, match=r"run.global_batch_size: 10 is no multiple of 4 \(2 ranks x run.batch_size 2\)"
    ):
        run.divide(2)
    run.divide(1)
    assert run.accumulate == 5
