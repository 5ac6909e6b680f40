"""No step of training or decoding waits for the device: on one that refuses to be waited for, on the CPU."""

import json
from pathlib import Path

import pytest

from tests.processes import CONTEXT

NAMES = [
    "update, padded",
    "update, packed",
    "update, packed, with branches",
    "update, a share of the codes, accumulated",
    "update, Muon",
    "update, other heads",
    "update, with the image tokenizer",
    "update of the image tokenizer",
    "drawing",
    "drawing, filtered, partly guided",
    "drawing, other heads",
    "chats and drawings",
]


@pytest.fixture(scope="module")
def found(text_tokenizer, tmp_path_factory) -> dict[str, str]:
    """Name of a check -> its error, of one process: the device is registered for all of it."""
    folder = tmp_path_factory.mktemp("waits")
    text_tokenizer.save_pretrained(folder)
    process = CONTEXT.Process(target=_check, args=(folder, folder / "found.json"))
    process.start()
    process.join()
    assert process.exitcode == 0
    return json.loads((folder / "found.json").read_text())


def _check(text_tokenizer: Path, out: Path) -> None:
    from tests.gpu.waits import check_all

    check_all(text_tokenizer, out)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_waits_and_results_are_those_of_the_cpu(found, name):
    assert found[name] == "", found[name]


def test_all_checks_are_named(found):
    assert [*found] == [*NAMES, "the device refuses"]


def test_the_device_refuses_what_waits(found):
    assert found["the device refuses"] == ""
