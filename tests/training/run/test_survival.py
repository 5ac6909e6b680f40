"""A run that is killed, whenever and however often, ends as one that is not."""

import json
import random
import shutil
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.processes import HANGS, ROOT, run_training, start_training
from training.run.checkpoint import latest_checkpoint

RECIPE = ROOT / "data_recipes" / "debug.yaml"
CLOCK = {"seconds", "tokens_per_s", "samples_per_s", "memory_gb"}


def command(folder: Path, name: str, *words: str) -> list[str]:
    return [str(RECIPE), f"run.folder={folder}", f"run.name={name}", "run.sample_every=0", *words]


def rows(run: Path) -> list[dict[str, float]]:
    """What was logged, but for how long it took."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in lines]


def same(run: Path, other: Path) -> None:
    """Step by step, and in every weight."""
    assert rows(run) == rows(other)
    weights, others = (load_file(latest_checkpoint(one) / "model" / "model.safetensors") for one in (run, other))
    assert weights.keys() == others.keys()
    assert all(weights[name].equal(others[name]) for name in weights)


def stamps(run: Path, pattern: str) -> set[tuple[str, int]]:
    """Files or folders, each as it now is, and not one of that name before or after."""
    found = set()
    for path in run.glob(pattern):
        try:
            found.add((path.name, path.stat().st_ctime_ns if path.is_dir() else path.stat().st_ino))
        except FileNotFoundError:
            continue
    return found


def kill_once(argv: list[str], run: Path, rng: random.Random) -> None:
    """In the middle of a checkpoint, or some steps after the start."""
    in_checkpoint, steps = rng.random() < 0.5, rng.randint(1, 3)
    pattern = ".step_*.part" if in_checkpoint else "metrics.jsonl"
    before, newest = stamps(run, pattern), latest_checkpoint(run)
    wanted = steps + (int(newest.name.removeprefix("step_")) if newest else 0)
    [process] = start_training(argv, run.parent / "log")
    deadline = time.monotonic() + HANGS
    while process.is_alive() and time.monotonic() < deadline:
        if stamps(run, pattern) - before and (in_checkpoint or f'"step": {wanted},' in (run / pattern).read_text()):
            time.sleep(rng.random() * 0.05)
            break
        time.sleep(0.001)
    process.kill()
    process.join()


@pytest.mark.parametrize(
    ("kills", "steps"), [(2, 12), pytest.param(20, 40, marks=pytest.mark.slow)], ids=["twice", "often"]
)
def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path, kills, steps):
    words = [f"run.steps={steps}", "run.save_every=2"]
    assert run_training(command(tmp_path, "whole", *words), tmp_path / "log") == [0]
    argv, run, rng = command(tmp_path, "killed", *words), tmp_path / "killed", random.Random(kills)
    for _ in range(kills):
        kill_once(argv, run, rng)
    assert run_training(argv, tmp_path / "log") == [0], (tmp_path / "log").read_text()
    same(run, tmp_path / "whole")
    assert sorted(path.name for path in run.glob("*step_*")) == [f"step_{steps - 2:06d}", f"step_{steps:06d}"]


FOUR = ["run.steps=4", "run.save_every=2", "optim.final_lr=1"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run of four steps that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    assert run_training(command(folder, "whole", *FOUR), folder / "log") == [0]
    return folder / "whole"


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, whole):
    argv = command(tmp_path, "full", *FOUR)
    assert run_training([*argv, "run.steps=2"], tmp_path / "log") == [0]
    assert run_training(argv, tmp_path / "full_log", largest_file=100_000) == [2]
    run, told = tmp_path / "full", (tmp_path / "full_log").read_text().splitlines()
    errors = [line for line in told if line.startswith("error: ")]
    assert len(errors) == 1 and told[-1] == errors[0], told
    assert f"cannot write checkpoint {run / 'step_000004'}" in errors[0] and "step_000002 stays" in errors[0]
    assert [path.name for path in run.glob("*step_*")] == ["step_000002"]
    assert run_training(argv, tmp_path / "log") == [0]
    same(run, whole)


def test_a_row_that_was_cut_off_is_written_again(tmp_path, whole):
    argv, run = command(tmp_path, "cut", *FOUR), tmp_path / "cut"
    shutil.copytree(whole, run)
    expected, metrics = rows(run), run / "metrics.jsonl"
    for path in run.glob("step_000004/*.pt"):
        path.unlink()  # as if the last checkpoint had not been reached
    metrics.write_text(metrics.read_text()[:-40])
    assert run_training(argv, tmp_path / "log") == [0]
    assert rows(run) == expected
