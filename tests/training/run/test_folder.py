"""A run's folder: one process at a time, one model, the newest whole checkpoint; and a run ends, whatever happens."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.processes import HANGS, ROOT, run_training, start_training
from tests.training.lm.test_training import _losses, _tokenizer_config, text_folder  # noqa: F401
from training.image_tokenizer.train import train_tokenizer
from training.lm.train import train
from training.run.checkpoint import check_checkpoint, checkpoints, latest_checkpoint, save_checkpoint
from training.run.folder import LOCK, changes, locked
from training.run.recipe import AdversarialConfig, TokenizerTrainConfig, TrainConfig, load_config, save_config

RECIPE = ROOT / "data_recipes" / "debug.yaml"
WORDS = ["run.steps=2", "run.save_every=1", "run.sample_every=0", "run.keep=9"]


def debug(folder: Path, *words: str) -> TrainConfig:
    text = f"model.text_tokenizer={ROOT}/checkpoints/scenes/text_tokenizer"
    config = load_config(TrainConfig, RECIPE, [f"run.folder={folder}", text, *WORDS, *words])
    config.run.divide(1)
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder of runs with one of two steps, called debug."""
    folder = tmp_path_factory.mktemp("runs")
    train(debug(folder))
    return folder


@pytest.fixture(scope="module")
def trained_tokenizer(tmp_path_factory, text_folder) -> TokenizerTrainConfig:  # noqa: F811
    """The recipe of a run of one step that is there."""
    config = _tokenizer_config(tmp_path_factory.mktemp("tokenizers"), text_folder, "run", steps=1, save_every=1)
    train_tokenizer(config)
    return config


def wait_for(condition, process) -> None:
    end = time.monotonic() + HANGS
    while not condition():
        assert process.is_alive() and time.monotonic() < end
        time.sleep(0.01)


# ---- checkpoints


def test_checkpoints_are_ordered_by_number(tmp_path):
    def save(step: int) -> None:
        save_checkpoint(tmp_path, step, lambda folder: folder.mkdir(), {}, keep=2)

    for step in (999_998, 999_999, 1_000_000):
        save(step)
    assert [path.name for path in checkpoints(tmp_path)] == ["step_999999", "step_1000000"]
    for stranger in ("step_2000000.bak", "step_best"):
        (tmp_path / stranger).mkdir()
        (tmp_path / stranger / "state.pt").touch()
    save(10_000_000)
    assert [path.name for path in checkpoints(tmp_path)] == ["step_1000000", "step_10000000"]
    assert latest_checkpoint(tmp_path).name == "step_10000000" and (tmp_path / "step_best").is_dir()


@pytest.mark.parametrize("name", ["state.pt", "model/model.safetensors", "model/config.json", "model/tokenizer.json"])
@pytest.mark.parametrize("left", [0, 1000])
def test_a_damaged_checkpoint_is_named_with_the_one_before(trained, tmp_path, name, left):
    subprocess.run(["cp", "-r", trained / "debug", tmp_path], check=True)
    file = tmp_path / "debug" / "step_000002" / name
    file.write_bytes(file.read_bytes()[: min(left, file.stat().st_size // 2)])
    with pytest.raises(ValueError) as error:
        train(debug(tmp_path, "run.steps=3"))
    assert f"cannot read {file}: it is damaged; remove {file.parents[name.count('/')]}, and" in str(error.value)
    assert str(error.value).endswith("the run goes on from step_000001")


def test_without_its_damaged_checkpoint_a_run_goes_on_from_the_one_before(trained, tmp_path):
    subprocess.run(["cp", "-r", trained / "debug", tmp_path], check=True)
    subprocess.run(["rm", "-r", tmp_path / "debug" / "step_000002"], check=True)
    assert train(debug(tmp_path, "run.steps=3")).parent.name == "step_000003"
    steps = [json.loads(row)["step"] for row in (tmp_path / "debug" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]


def test_without_one_before_the_run_begins_anew(tmp_path):
    checkpoint = save_checkpoint(tmp_path, 5, lambda folder: folder.mkdir(), {"seen": 1}, keep=2)
    check_checkpoint(checkpoint)
    (checkpoint / "state.pt").write_bytes(b"no state")
    with pytest.raises(ValueError, match="the run begins anew"):
        check_checkpoint(checkpoint)


# ---- one process at a time


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_second_run_in_a_folder_is_refused_at_once(tmp_path, ranks):
    argv = [RECIPE, f"run.folder={tmp_path}", "run.name=one", *WORDS[1:], "run.steps=100000", "run.workers=1"]
    [first] = start_training(argv, tmp_path / "first")
    wait_for(lambda: latest_checkpoint(tmp_path / "one"), first)
    assert set(run_training(argv, tmp_path / "second", ranks=ranks)) == {2}
    told = [line for line in (tmp_path / "second").read_text().splitlines() if line.startswith("error: ")]
    holder = f"{tmp_path / 'one'} is in use by process {first.pid} on {socket.gethostname()}"
    assert len(told) == ranks and sum(holder in line for line in told) == 1
    first.kill()  # its data worker lives on for a while, and does not hold the folder
    first.join()
    with locked(tmp_path / "one"):
        assert (tmp_path / "one" / LOCK).read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"


# ---- one model


@pytest.mark.parametrize(
    "word",
    [
        "model.backbone.hidden_size=64",
        "model.backbone.rope_theta=500.0",
        "model.code_embedding=codebook",
        "model.code_head_args.layers=2",
        "model.trainable=[code_head]",
        "model.image_tokenizer=new:scenes",
        "model.init_from=scenes",
        "model.lora={rank: 2}",
        "model.tune={l1: 1}",
        "optim.muon=[backbone.layers]",
    ],
)
def test_another_model_does_not_go_on(trained, word):
    before = (trained / "debug" / "config.yaml").read_text()
    with pytest.raises(ValueError, match="goes on with the model it began with") as error:
        train(debug(trained, "run.steps=3", word))
    key = word.partition("=")[0]
    assert re.search(rf"recipe, .*{re.escape(key)}\S* was .*, is ", str(error.value))
    assert (trained / "debug" / "config.yaml").read_text() == before


def test_what_may_change_is_told(trained):
    words = ["run.seed=7", "optim.lr=1e-4", "data.sources.scenes.scenes.draw=0.5", "model.plan_length=8"]
    words += ["optim.lr_by_prefix={lm_head: 1e-5}", "run.name=debug"]
    checkpoint = trained / "debug" / "step_000002"
    assert changes(debug(trained), checkpoint) == []
    told = [line.removeprefix("changed since step_000002: ") for line in changes(debug(trained, *words), checkpoint)]
    assert sorted(told) == [
        "data.sources.scenes.scenes.draw was 0.6, is 0.5",
        "model.plan_length was None, is 8",
        "optim.lr was 0.003, is 0.0001",
        "optim.lr_by_prefix.lm_head was None, is 1e-05",
        "run.seed was 0, is 7",
    ]


def test_checkpoints_of_another_kind_of_run_are_refused(trained, text_folder):  # noqa: F811
    config = _tokenizer_config(trained, text_folder, "debug")
    with pytest.raises(ValueError, match="debug is another kind of run, give another run.name"):
        train_tokenizer(config)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"size": "scenes"}, "size was tiny, is scenes"),
        ({"model": {"text_vocab_size": 769, "text_context": 24, "heads": 1}}, "model.heads was None, is 1"),
        ({"ema": 0.9}, "ema was 0.0, is 0.9"),
        ({"quantizer": {"revive_after": 3}}, "quantizer.revive_after was 0, is 3"),
        ({"adversarial": AdversarialConfig(weight=0.1)}, "adversarial.weight was 0.0, is 0.1"),
    ],
)
def test_another_image_tokenizer_does_not_go_on(trained_tokenizer, change, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        train_tokenizer(replace(trained_tokenizer, **change))


def test_a_changed_rate_is_used_from_there_on(tmp_path, text_folder):  # noqa: F811
    config = _tokenizer_config(tmp_path, text_folder, "run", steps=2, save_every=2)
    train_tokenizer(config)
    slower = replace(config.optim, lr=1e-6, lr_by_prefix={"encoder": 1e-7}, final_lr=1.0)
    before = latest_checkpoint(config.run.path) / "model"
    after = train_tokenizer(replace(config, optim=slower, run=replace(config.run, steps=3)))
    one, two = (torch.load(folder.parent / "state.pt", weights_only=True) for folder in (before, after))
    assert one["optimizer"].keys() == two["optimizer"].keys()
    rates = (config.run.path / "metrics.jsonl").read_text().splitlines()[-1]
    assert '"lr": 1e-06' in rates and '"lr/encoder": 1e-07' in rates


# ---- a run ends

FAILING = """
import sys
from training.run import recipe as config
from training.image_tokenizer import train as tokenizer_train
update = tokenizer_train.Learner.update
def failing(self, step, *args):
    if step == 2:
        raise RuntimeError("something that nobody thought of")
    return update(self, step, *args)
tokenizer_train.Learner.update = failing
from scripts._errors import cli
from scripts.train_tokenizer import main
cli(main, sys.argv[1:])
"""


def test_an_unexpected_error_ends_the_process_and_its_workers(tmp_path, text_folder):  # noqa: F811
    config = _tokenizer_config(tmp_path, text_folder, "run", workers=2, steps=1000)
    save_config(config, tmp_path / "recipe.yaml")
    command = [sys.executable, "-c", FAILING, str(tmp_path / "recipe.yaml")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANGS)
    assert ended.returncode == 1 and "something that nobody thought of" in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_ends_with_a_checkpoint(tmp_path, text_folder, number):  # noqa: F811
    """As a terminal and most schedulers send it: to the data workers, too."""
    config = _tokenizer_config(tmp_path, text_folder, "run", workers=2, steps=100_000, save_every=100_000)
    save_config(config, tmp_path / "recipe.yaml")
    command = [sys.executable, "-m", "scripts.train_tokenizer", str(tmp_path / "recipe.yaml")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)
    for line in process.stdout:
        if line.startswith("step 2/"):
            break
    os.killpg(process.pid, number)
    _, told = process.communicate(timeout=HANGS)
    assert process.returncode == 0 and "Traceback" not in told, told
    steps = len(_losses(config))
    assert latest_checkpoint(config.run.path).name == f"step_{steps:06d}"
