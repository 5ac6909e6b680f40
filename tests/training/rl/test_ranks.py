"""Several ranks, and DeepSpeed's stages, learn from the drawings of one process."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.processes import run_training

RECIPE = """# Learning from drawings of shapes, by tests
run: {steps: 2, batch_size: 2, global_batch_size: 4, precision: fp32, threads: 1, save_every: 1, log_every: 1}
model: {trainable: [backbone, lm_head, code_embed, code_head]}
draw: {scenes: {artwork: shapes}}
rewards: {likeness: {}}
group: 3
grpo: {kl: 0.1}
questions: {scenes: {artwork: shapes}, count: 4, every: 2, fall: 1.0}
optim: {lr: 1.0e-3, warmup: 0, final_lr: 1}
"""
STAGES = [pytest.param([f"deepspeed.stage={stage}"], id=str(stage)) for stage in range(4)]


class Run:
    """The recipe in a folder of its own, on a number of ranks that may change."""

    def __init__(self, folder: Path, start: Path, name: str, *words: str):
        (folder / "recipe.yaml").write_text(RECIPE)
        self.path, self.log = folder / name, folder / f"{name}.log"
        run = [f"run.folder={folder}", f"run.name={name}", f"model.init_from={start}"]
        self.argv = [folder / "recipe.yaml", *run, *words]

    def to(self, step: int, ranks: int) -> "Run":
        statuses = run_training([*self.argv, f"run.steps={step}"], self.log, ranks, script="train_rl")
        assert statuses == [0] * ranks, self.log.read_text()
        return self

    def rows(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]


def compare(whole: Run, parts: Run) -> None:
    names = ("reward", "entropy", "grad_norm")
    for one, other in zip(parts.rows(), whole.rows(), strict=True):
        assert [one[name] for name in names] == pytest.approx([other[name] for name in names], rel=2e-3)
    one, other = (load_file(run.path / "step_000002/model/model.safetensors") for run in (parts, whole))
    assert one.keys() == other.keys() and all(torch.allclose(one[name], other[name], atol=2e-4) for name in one)


def test_two_ranks_are_one_process(tmp_path, tiny_folder):
    compare(Run(tmp_path, tiny_folder, "whole").to(2, 1), Run(tmp_path, tiny_folder, "parts").to(2, 2))


@pytest.mark.slow
@pytest.mark.parametrize("words", STAGES)
@pytest.mark.parametrize("method", ["grpo", "rejection", "dpo"])
def test_every_stage_is_one_process(tmp_path, tiny_folder, words, method):
    """With a checkpoint on the way."""
    whole = Run(tmp_path, tiny_folder, "whole", f"method={method}")
    parts = Run(tmp_path, tiny_folder, "parts", f"method={method}", *words)
    compare(whole.to(2, 1), parts.to(1, 2).to(2, 2))
