"""The self-check: healthy models pass, and each kind of damage is found."""

import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from packaging.utils import canonicalize_name

from eval import doctor, model_checks
from eval.doctor import environment, examine, lock, missing, requirements
from eval.model_checks import CHECKS, Patient, caches, draws, forwards, prefills, weights
from mllm import Mllm, Processor
from mllm.codes import CODE_EMBEDDINGS, CODE_HEADS
from mllm.image_inputs import IMAGE_INPUTS
from mllm.orders import ORDERS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("head", CODE_HEADS)
@pytest.mark.parametrize("embedding", CODE_EMBEDDINGS)
def test_every_kind_of_model_is_healthy(make_tiny_model, embedding, head, tmp_path):
    for part in make_tiny_model(embedding, head):
        part.save_pretrained(tmp_path)
    checks = list(
        examine(str(tmp_path), lambda name: (Mllm.from_pretrained(name).eval(), Processor.from_pretrained(name)))
    )
    assert [check.name for check in checks] == ["versions", *CHECKS]
    assert [check for check in checks if not check.healthy] == []


@pytest.mark.parametrize("order", ORDERS)
def test_in_every_order_steps_are_compared_with_one_pass(make_tiny_model, order):
    scales = {"layout": "scales", "layout_args": {"scales": [1, 2, 4]}, "projection": "linear"}
    patient = Patient("tiny", *make_tiny_model(order=order, image_size=64, **(scales if order == "scales" else {})))
    assert f"{42 if order == 'scales' else 32} codes agree" in caches(patient) and "differ by" in prefills(patient)


def test_a_model_that_does_not_load_ends_the_examination():
    def load(name):
        raise ValueError("cannot load\nmodel")

    assert list(examine("nothing", load))[1:] == [("loads", False, "cannot load model")]


def test_a_package_that_cannot_be_imported_is_one_line():
    """As if transformers were of another age."""
    code = "import sys; sys.modules['transformers'] = None; from scripts.doctor import main; sys.exit(main([]))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1 and ended.stderr == ""
    assert "FAIL loads: ModuleNotFoundError: No module named 'transformers" in ended.stdout
    assert "scenes is not healthy" in ended.stdout


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


def test_a_model_that_draws_several_positions_a_step_is_healthy(make_tiny_model):
    patient = Patient("tiny", *make_tiny_model(order="locality", image_size=64))
    assert caches(patient) == "32 codes agree" and prefills(patient)


@pytest.mark.parametrize("image_input", IMAGE_INPUTS)
def test_a_model_that_reads_in_any_way_is_healthy(make_tiny_model, image_input):
    patient = Patient("tiny", *make_tiny_model(image_input=image_input))
    assert forwards(patient) and draws(patient) and caches(patient) == "8 codes agree" and prefills(patient)


def test_a_cache_that_forgets_is_found(tiny_model, monkeypatch):
    patient = Patient("tiny", *tiny_model)
    feed = model_checks.Stream.feed

    def feed_zeros(self, x_BD, *rest):
        feed(self, torch.zeros_like(x_BD), *rest)

    monkeypatch.setattr(model_checks.Stream, "feed", feed_zeros)
    with pytest.raises(ValueError, match="hidden states differ"):
        prefills(patient)
    with pytest.raises(ValueError, match="codes are not the likeliest"):
        caches(patient)


@pytest.mark.parametrize(("check", "method"), [("forward", "forward"), ("generate", "generate")])
def test_a_way_in_of_transformers_that_raises_is_found(make_tiny_model, check, method):
    model, processor = make_tiny_model()

    def renamed(*args, **kwargs):
        raise TypeError("unexpected keyword argument 'cache'")

    setattr(model, method, renamed)
    checks = {one.name: one for one in examine("tiny/model", lambda name: (model, processor))}
    assert not checks[check].healthy and "'cache'" in checks[check].detail


def test_a_generate_that_goes_another_way_is_found(make_tiny_model):
    model, processor = make_tiny_model()
    generate = type(model).generate
    model.generate = lambda ids, **options: (generate(model, ids, **options) + 1) % len(processor.tokenizer)
    checks = {one.name: one for one in examine("tiny/model", lambda name: (model, processor))}
    assert not checks["generate"].healthy and "not the likeliest" in checks["generate"].detail


def test_the_environment_is_told():
    assert set(environment()) == {"versions", "device", "memory"}
    assert f"torch {torch.__version__.split('+')[0]}" in environment()["versions"]


@pytest.fixture
def written(tmp_path, monkeypatch):
    """written(ranges, lock, needed): these lines for those of the project."""

    def write(ranges: str, lock: str = "", needed: tuple[str, ...] = ()) -> None:
        monkeypatch.setattr(doctor, "REQUIREMENTS", tmp_path / "requirements.txt")
        (tmp_path / "pyproject.toml").write_text(f"[project]\ndependencies = {list(needed)}\n")
        (tmp_path / "requirements.txt").write_text(ranges)
        (tmp_path / "requirements.lock").write_text(lock)

    return write


def test_a_package_out_of_its_range_is_named_with_the_reason(written):
    written("torch>=2  # tensors\nfilelock<1  # lmms-eval\nno-such-package>=1  # nothing\n")
    check = next(examine("nothing", None))
    assert check.name == "versions" and not check.healthy
    assert f"filelock {version('filelock')}, which must be <1 (lmms-eval)" in check.detail
    assert "torch" not in check.detail and "no-such-package" not in check.detail
    assert missing() == {"no-such-package>=1": "nothing"}


def test_a_package_without_which_no_model_runs_is_missed(written):
    written("no-such-package>=1  # tensors\nnor-this>=1  # curves\n", needed=("no-such-package>=1",))
    check = next(examine("nothing", None))
    assert not check.healthy and "no-such-package is not installed (tensors)" in check.detail
    assert "nor-this" not in check.detail and len(missing()) == 2


def test_what_is_not_as_in_the_lock_is_told(written):
    here = version("numpy")
    written("", f"# by a tool\nnumpy=={here}  # via us\npillow==0.1\nsix==1 ; sys_platform == 'none'\nno-such==1\n")
    check = next(examine("nothing", None))
    told = f"1 of 2 packages as in requirements.lock, pillow {version('pillow')} instead of 0.1"
    assert check == ("versions", True, told)


def test_our_own_lists_are_read():
    names = {canonicalize_name(requirement.name) for requirement in requirements()}
    assert {"torch", "deepspeed", "lmms-eval", "pytest"} <= names <= {one.name for one in lock()}
