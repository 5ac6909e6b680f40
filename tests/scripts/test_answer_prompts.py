"""scripts.answer_prompts: a backbone's own answers, as shards that training reads; whole or left out."""

import torch

from data_recipes.messages import from_files
from mllm.text.templates import IGNORED
from scripts.answer_prompts import main
from training.data.mixture import to_sample
from training.data.own_answers import answered
from training.lm.build import build_backbone


def test_answers_are_samples_and_those_without_an_end_are_named(pretrained_folder):
    model, processor = build_backbone(str(pretrained_folder))
    letter = processor.encode("a").ids[-3]

    def write(_, __, logits_BS):
        """The first prompt's answer never ends, the second's is one letter, the third's is nothing."""
        wanted = {3: [letter, letter, processor.eos_id], 2: [letter, processor.eos_id], 1: [letter]}[len(logits_BS)]
        return torch.full_like(logits_BS, -9.0).scatter_(1, torch.tensor(wanted)[:, None], 9.0)

    model.lm_head.register_forward_hook(write)
    endless, said, empty = answered(model, processor, ["one", "two", "three"], 7, max_new_tokens=3)
    assert endless == "prompt 7, 'one': its answer has not ended after 3 tokens"
    assert empty == "prompt 9, 'three': its answer is empty"
    key, files = said
    sample = to_sample(processor, from_files(files).messages)
    assert key == "000000008" and sample.ids[: len(processor.encode("two").ids)] == processor.encode("two").ids
    assert processor.decode([label for label in sample.labels if label != IGNORED]) == processor.decode([letter])


def test_a_backbone_answers_once_and_alike(run, pretrained_folder, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"what is {number}?\n" for number in range(40)))
    options = ["--backbone", pretrained_folder, "--prompts", prompts, "--max-new-tokens", 2]
    for folder in ("one", "two"):
        ended = run(main, *options, "--out", tmp_path / folder)
        assert ended.status == 0 and "2 of 2 shards done" in ended.out, ended.err
    one, two = (sorted((tmp_path / folder).iterdir()) for folder in ("one", "two"))
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in two]
    before = {file: file.stat().st_mtime_ns for file in one}
    (tmp_path / "one" / "000001.tar").unlink()
    assert run(main, *options, "--out", tmp_path / "one").status == 0
    kept = [file for file in one if file.stat().st_mtime_ns == before[file]]
    assert {file.name for file in one} - {file.name for file in kept} <= {"000001.tar", "000001.problems.txt"}
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in two]
    ended = run(main, *options, "--limit", 3, "--out", tmp_path / "one")
    assert ended.status == 2 and "holds another run (prompts was" in ended.err


def test_without_prompts_it_says_so(run, tmp_path):
    (tmp_path / "none.txt").write_text("\n")
    ended = run(main, "--backbone", "x", "--prompts", tmp_path / "none.txt", "--out", tmp_path / "out")
    assert (ended.status, ended.err) == (2, "error: no prompts: see --prompts and --limit\n")
