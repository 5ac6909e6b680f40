"""What is done about a GPU that is too small, too old, or has no compiler; and sending to a device."""

import pytest
import torch

from mllm.device import advice, best_device, check_room, compiler_problem, room_problem, runs_on, send, slow_because

KERNELS = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]  # of a release of torch


@pytest.mark.parametrize(
    ("capability", "runs"),
    [((6, 1), False), ((7, 0), False), ((7, 5), True), ((8, 0), True), ((8, 9), True), ((9, 0), True)]
    + [((10, 3), True), ((11, 0), False), ((12, 0), True), ((12, 1), True), ((13, 0), True)],
)
def test_which_gpus_a_torch_has_programs_for(capability, runs):
    assert runs_on(capability, KERNELS) == runs
    assert not runs_on(capability, []) and not runs_on(capability, ["compute_140"])
    assert runs_on(capability, ["sm_90a"]) == (capability == (9, 0))


def test_what_makes_a_gpu_slow_is_said_in_a_line_each():
    assert slow_because("H100", (9, 0), "") == []
    old, compiler = slow_because("T4", (7, 5), "no C compiler (cc, gcc or clang) is installed")
    assert old == "T4 has no matrix units for bfloat16 (compute capability 7.5, not 8.0)"
    assert compiler == "layers cannot be compiled: no C compiler (cc, gcc or clang) is installed"
    assert advice(torch.device("cpu")) == []


def test_a_missing_compiler(monkeypatch, tmp_path):
    monkeypatch.setattr("mllm.device.find_spec", lambda name: name)
    monkeypatch.setenv("CC", "no_such_compiler")
    assert compiler_problem() == "no C compiler (no_such_compiler) is installed"
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compiler_problem() == "no C compiler (cc, gcc or clang) is installed"
    (tmp_path / "gcc").touch(mode=0o755)
    assert compiler_problem() == ""


def test_a_gpu_without_room():
    assert room_problem(5 * 2**30, 6 * 2**30, 8 * 2**30) == ""
    assert room_problem(14 * 2**30, 7 * 2**30, 8 * 2**30) == "takes 14.0 GB, the GPU has 7.0 GB free of 8.0 GB"
    check_room(2**60, torch.device("cpu"), "a model")  # the CPU is where it goes


def test_what_is_sent_arrives_whole():
    x = torch.arange(6).view(2, 3)
    assert send(x, torch.device("cpu")) is x and torch.equal(send(x, best_device()).cpu(), x)
    assert send(x, torch.device("meta")).device.type == "meta"
