"""Tests of GPUs have bodies that run on any device: on a GPU they compare it with the CPU (`make test-gpu`), on the CPU
with itself, which shows that they work (`make test-slow`)."""

import pytest
import torch

DEVICES = [pytest.param("cuda", marks=pytest.mark.gpu), pytest.param("cpu", marks=pytest.mark.slow)]


@pytest.fixture(params=DEVICES)
def device(request) -> torch.device:
    return torch.device(request.param)


@pytest.hookimpl(trylast=True)  # after -m has taken its choice
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a GPU, its tests are taken out, and the last line says so."""
    of_gpus = [item for item in items if item.get_closest_marker("gpu")]
    if of_gpus and not torch.cuda.is_available():
        items[:] = [item for item in items if item not in of_gpus]
        config.hook.pytest_deselected(items=of_gpus)
        config.stash[NOT_RUN] = len(of_gpus)


NOT_RUN = pytest.StashKey[int]()


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    if count := config.stash.get(NOT_RUN, 0):
        terminalreporter.write_line(f"NOT RUN: {count} tests of GPUs, as torch {torch.__version__} finds none here")
