"""scripts.convert: the released files and back, bad words, and what an interruption leaves: nothing."""

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mllm import Mllm
from scripts.convert import main
from tests.reference_files import (
    ARGS,
    VITAMIN_TINY,
    same_bits,
    unitok_checkpoint,
    unitok_mllm_tensors,
    write_unitok_mllm,
)
from tests.scripts.test_errors import ROOT, wait_for
from tokenizer import ImageTokenizer, unitok


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """unitok_tokenizer.pth and unitok_mllm, beside each other."""
    folder = tmp_path_factory.mktemp("reference")
    torch.save(unitok_checkpoint(), folder / "unitok_tokenizer.pth")
    write_unitok_mllm(folder / "unitok_mllm", unitok_mllm_tensors())
    return folder


@pytest.fixture(autouse=True)
def tiny_size(monkeypatch):
    monkeypatch.setitem(unitok.VITAMIN, "vitamin_tiny", VITAMIN_TINY)


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


# ---- there and back


def test_the_image_tokenizer(run, source, tmp_path):
    ended = run(main, "unitok", source / "unitok_tokenizer.pth", tmp_path / "ours")
    assert ended.status == 0, ended.err
    assert ended.out == (
        "dropped: 1 pos_embed (zeros)\ndropped: 2 zero_k_bias (zeros)\n"
        f"dropped: 8 vocab_usage (a running statistic of training)\nwrote {tmp_path / 'ours'}\n"
    )
    state = unitok_checkpoint()["trainer"]["unitok"]
    config = unitok.unitok_config(ARGS)
    direct = ImageTokenizer(config).eval()
    direct.load_state_dict(unitok.to_ours(unitok.unitok_layout(config), state))
    loaded = ImageTokenizer.from_pretrained(tmp_path / "ours").eval()
    pixels_N3HW = torch.rand(1, 3, 64, 64) * 2 - 1
    assert loaded.config == config and torch.equal(loaded.encode(pixels_N3HW), direct.encode(pixels_N3HW))

    assert run(main, "export", tmp_path / "ours", tmp_path / "back").status == 0
    assert names(tmp_path / "back") == ["unitok_tokenizer.pth"]
    checkpoint = unitok.load_torch(tmp_path / "back" / "unitok_tokenizer.pth")
    original = unitok.load_torch(source / "unitok_tokenizer.pth")
    assert checkpoint["args"] == ARGS
    assert same_bits(checkpoint["trainer"]["unitok"], original["trainer"]["unitok"])


def test_the_first_release_needs_to_be_told(run, source, tmp_path):
    for projection in ("full", "causal"):
        out = tmp_path / projection
        run(main, "unitok", source / "unitok_tokenizer.pth", out, "--projection", projection)
        assert ImageTokenizer.from_pretrained(out).config.causal == (projection == "causal")


def test_the_unified_model(run, source, tmp_path):
    """Its image tokenizer lies beside it."""
    ended = run(main, "unitok-mllm", source / "unitok_mllm", tmp_path / "ours", "--projection", "causal")
    assert ended.status == 0 and ended.err == ""
    assert Mllm.from_pretrained(tmp_path / "ours").image_tokenizer.config.causal
    assert run(main, "export", tmp_path / "ours", tmp_path / "back").status == 0
    assert {*names(source / "unitok_mllm")} - {*names(tmp_path / "back")} == {
        "model.safetensors.index.json",
        *(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)),
    }
    assert same_bits(unitok.load_tensors(tmp_path / "back" / "model.safetensors"), unitok_mllm_tensors())


# ---- bad words


@pytest.mark.parametrize(
    "words, told",
    [
        (["unitok"], "out"),
        (["llava", "a", "b"], "invalid choice: 'llava'"),
        (["unitok", "no_such_file.pth", "out"], "no_such_file.pth: No such file or directory"),
        (["unitok-mllm", "no_such_folder", "out"], "no unitok_tokenizer.pth in no_such_folder or beside it"),
        (["export", "no_such_folder", "out"], "no_such_folder/config.json: No such file or directory"),
        (["unitok", "a.pth", "out", "--image-tokenizer", "b.pth"], "--image-tokenizer is not for unitok"),
        (["export", "a", "out", "--projection", "causal"], "--projection is not for export"),
        (["unitok", "a.pth", "out", "--projection", "half"], "invalid choice: 'half'"),
    ],
)
def test_wrong_words(refused, tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    assert told in refused(main, *words)
    assert names(tmp_path) == []


def test_a_folder_of_the_user_is_not_touched(refused, source, tmp_path):
    (tmp_path / "ours").mkdir()
    line = refused(main, "unitok", source / "unitok_tokenizer.pth", tmp_path / "ours")
    assert f"{tmp_path / 'ours'} is there already" in line and names(tmp_path / "ours") == []


# ---- interruptions


def test_a_full_disk_leaves_nothing(refused, source, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        line = refused(main, "unitok", source / "unitok_tokenizer.pth", tmp_path / "ours")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "cannot write model.safetensors" in line and names(tmp_path) == []


# The command, halted after its first shard.
HALTED = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
from rich.progress import Progress
from mllm import unitok_mllm
from scripts._errors import cli
from scripts.convert import main
unitok_mllm.SHARD = "100KB"
Progress.update = lambda bar, task, completed, total: time.sleep(600 if completed else 0)
cli(main, sys.argv[1:])
"""


def test_ctrl_c_leaves_nothing_and_the_next_run_is_whole(run, source, tmp_path):
    tokenizer, ours, part = tmp_path / "image_tokenizer", tmp_path / "ours", tmp_path / ".ours.1.part"
    run(main, "unitok", source / "unitok_tokenizer.pth", tokenizer)
    words = ["unitok-mllm", source / "unitok_mllm", ours, "--image-tokenizer", tokenizer]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HALTED, *map(str, words)], cwd=ROOT, text=True, **pipes) as process:
        wait_for(lambda: any(tmp_path.glob(".ours.*.part/model-00001-of-*")), process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out, err) == (130, "", "stopped\n")
    assert names(tmp_path) == ["image_tokenizer"]

    part.mkdir()  # as a run leaves it that was killed
    (part / "junk").touch()
    assert run(main, *words).status == 0
    assert names(tmp_path) == ["image_tokenizer", "ours"] and "junk" not in names(ours)
