"""How many threads commands have, and how these wait, without anybody setting them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import eval.threads
from eval.bench.openmp import settings
from eval.threads import choose_threads, cores

ROOT = Path(__file__).parents[2]
UNSET = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}


@pytest.mark.parametrize(
    ("share", "cores_allowed"), [("max 100000", 8), ("150000 100000", 1.5), ("6400000 100000", 8), ("", 8)]
)
def test_cores_are_those_of_the_process_and_its_container(monkeypatch, tmp_path, share, cores_allowed):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(eval.threads, "CGROUP", tmp_path / "cpu.max")
    if share:
        (tmp_path / "cpu.max").write_text(f"{share}\n")
    assert cores() == cores_allowed


@pytest.mark.parametrize(
    ("given", "processes", "threads"),
    [
        ({}, 1, "8"),
        ({"LOCAL_WORLD_SIZE": "4"}, 1, "2"),
        ({"LOCAL_WORLD_SIZE": "16"}, 1, "1"),
        ({}, 3, "2"),
        ({"OMP_NUM_THREADS": "5", "LOCAL_WORLD_SIZE": "2"}, 1, "5"),
    ],
)
def test_processes_side_by_side_share_the_cores(monkeypatch, given, processes, threads):
    monkeypatch.setattr(eval.threads, "cores", lambda: 8)
    choose_threads(given, processes)
    assert given["OMP_NUM_THREADS"] == threads and "GOMP_SPINCOUNT" in given


def test_what_somebody_has_set_stays():
    given = {"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "ACTIVE"}
    choose_threads(given)
    assert given == {"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "ACTIVE"}


@pytest.mark.skipif(sys.platform != "linux", reason="torch has another OpenMP")
def test_openmp_hears_of_it_before_torch_starts_it():
    code = "import scripts.train, torch; print(torch.get_num_threads())"
    environment = {**UNSET, "OMP_DISPLAY_ENV": "VERBOSE"}
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert told.stdout == f"{max(1, int(cores()))}\n", told.stderr
    assert f"GOMP_SPINCOUNT = '{eval.threads.PATIENCE}'" in told.stderr


def test_the_benchmark_compares_with_each_number_of_threads_and_way_to_wait():
    own, *others = settings().values()
    assert int(own["OMP_NUM_THREADS"]) <= cores() and own["GOMP_SPINCOUNT"] == eval.threads.PATIENCE
    assert {one["OMP_NUM_THREADS"] for one in others} >= {"1"} and len({str(one) for one in others}) == len(others)
