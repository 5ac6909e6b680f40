"""scripts.merge_adapter: what trained, and what it stands beside, make the checkpoint's model again."""

from pathlib import Path

import pytest
import torch

from mllm import Mllm, Processor
from scripts.merge_adapter import main
from training.lm.train import train
from training.run.recipe import (
    LoraConfig,
    MixConfig,
    MixtureConfig,
    ModelConfig,
    RunConfig,
    ScenesConfig,
    SourceConfig,
    TrainConfig,
)


@pytest.fixture
def checkpoint(tiny_folder, tmp_path, capsys) -> Path:
    """Of a run with adapters."""
    lora = LoraConfig(rank=2, targets=["q_proj"])
    config = TrainConfig(
        run=RunConfig("run", str(tmp_path), steps=2, batch_size=2, precision="fp32", device="cpu", workers=0),
        model=ModelConfig(init_from=str(tiny_folder), trainable=["code_embed", "code_head"], lora=lora),
        data=MixtureConfig({"scenes": SourceConfig(scenes=MixConfig(scenes=ScenesConfig(artwork="shapes")))}),
    )
    folder = train(config).parent
    capsys.readouterr()
    return folder


def test_merging_gives_the_model_of_the_checkpoint(run, checkpoint, tmp_path):
    ended = run(main, checkpoint / "adapter", "--out", tmp_path / "merged")
    assert ended.status == 0, ended.err
    ours, theirs = (Mllm.from_pretrained(folder).state_dict() for folder in (tmp_path / "merged", checkpoint / "model"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert Processor.from_pretrained(tmp_path / "merged").template == "mllm"
    size = {name: sum(f.stat().st_size for f in (checkpoint / name).iterdir()) for name in ("adapter", "model")}
    assert size["adapter"] < size["model"] / 4


def test_what_does_not_fit_is_one_line(refused, checkpoint, tmp_path):
    adapter, out = checkpoint / "adapter", ["--out", tmp_path / "merged"]
    assert "lora.rank was 2 in training, not 3" in refused(main, adapter, "lora.rank=3", *out)
    assert "lora.alpha was 32.0 in training, not 3.0" in refused(main, adapter, "lora.alpha=3", *out)
    assert "no_such_model" in refused(main, adapter, "init_from=no_such_model", *out)
    assert "no_such_key" in refused(main, adapter, "no_such_key=1", *out)


def test_other_weights_than_those_in_training_are_refused(refused, checkpoint, tiny_folder, tmp_path):
    model, processor = Mllm.from_pretrained(tiny_folder), Processor.from_pretrained(tiny_folder)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    for part in (model, processor):
        part.save_pretrained(tmp_path / "other")
    words = [f"init_from={tmp_path / 'other'}", "--out", tmp_path / "merged"]
    assert "was trained beside other weights" in refused(main, checkpoint / "adapter", *words)
    assert not (tmp_path / "merged").exists()


def test_a_damaged_adapter_is_named(refused, checkpoint, tmp_path):
    file = checkpoint / "adapter" / "adapter.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    assert "cannot load" in refused(main, checkpoint / "adapter", "--out", tmp_path / "merged")
