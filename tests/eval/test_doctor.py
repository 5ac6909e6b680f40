"""The self-check: healthy models pass, and each kind of damage is found."""

import json
import shutil

import pytest
import torch
from packaging.requirements import Requirement

from eval import doctor
from eval.doctor import CHECKS, Patient, caches, environment, examine, installed, missing, prefills, weights
from mllm import Mllm, Processor
from mllm.codes import CODE_EMBEDDINGS, CODE_HEADS


@pytest.mark.parametrize("head", CODE_HEADS)
@pytest.mark.parametrize("embedding", CODE_EMBEDDINGS)
def test_every_kind_of_model_is_healthy(make_tiny_model, embedding, head, tmp_path):
    for part in make_tiny_model(embedding, head):
        part.save_pretrained(tmp_path)
    checks = list(
        examine(str(tmp_path), lambda name: (Mllm.from_pretrained(name).eval(), Processor.from_pretrained(name)))
    )
    assert [check.name for check in checks] == list(CHECKS)
    assert [check for check in checks if not check.healthy] == []


def test_a_model_that_does_not_load_ends_the_examination():
    def load(name):
        raise ValueError("cannot load\nmodel")

    assert list(examine("nothing", load)) == [("loads", False, "cannot load model")]


def test_numbers_that_are_not_finite_are_found(make_tiny_model):
    model, processor = make_tiny_model()
    model.lm_head.weight.data[0, 0] = float("nan")
    checks = {check.name: check for check in examine("tiny/model", lambda name: (model, processor))}
    assert not checks["weights"].healthy and "1 tensors hold numbers that are not finite" in checks["weights"].detail
    assert checks["reconstructs an image"].healthy


def test_weights_other_than_the_measured_ones_are_found(tiny_model, tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    patient = Patient(str(folder), *tiny_model)
    hash = tiny_model[0].weights_hash()
    assert weights(patient) == f"{hash}, no results to compare it with"
    (folder / "results.json").write_text(json.dumps({"model_hash": hash}))
    assert weights(patient).startswith(f"{hash}, as in")
    (folder / "results.json").write_text('{"model_hash": "0123"}')
    with pytest.raises(ValueError, match=f"hash {hash}, but .* was measured with 0123"):
        weights(patient)


def test_a_cache_that_forgets_is_found(tiny_model, monkeypatch):
    patient = Patient("tiny", *tiny_model)
    feed = doctor.Stream.feed

    def feed_zeros(self, x_BD):
        feed(self, torch.zeros_like(x_BD))

    monkeypatch.setattr(doctor.Stream, "feed", feed_zeros)
    with pytest.raises(ValueError, match="hidden states differ"):
        prefills(patient)
    with pytest.raises(ValueError, match="codes are not the likeliest"):
        caches(patient)


def test_the_environment_is_told():
    assert set(environment()) == {"versions", "device", "memory"}
    assert f"torch {torch.__version__.split('+')[0]}" in environment()["versions"]
    assert not {name.split(">")[0] for name in missing()} & {"torch", "transformers", "pillow"}


@pytest.mark.parametrize(("wanted", "there"), [("torch>=2", True), ("torch>=99", False), ("no-such-package>=1", False)])
def test_packages_count_when_they_are_new_enough(wanted, there):
    assert installed(Requirement(wanted)) == there
