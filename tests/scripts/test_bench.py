"""scripts.bench: both ways must agree before they are timed; what is printed; bad arguments. No time is judged."""

import json
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from eval.bench import BENCHES, Options, generation, image_tokenizer_update, images, kernels, reference, steps, updates
from eval.bench import figures as timing
from eval.bench.figures import NEAR_TIE, check_codes, check_pixels, compare
from eval.bench.models import get_image_tokenizer, new_model
from eval.bench.reference import reference_pick
from eval.bench.roofline import step_costs
from mllm.decode.sampling import filter_logits
from scripts.bench import main

FEW = ("--repeats", 2)
COMMANDS = {"encode": (), "decode": (), "generate": ("--positions", 2)}  # those that work on images
CODES_OF_AN_IMAGE = {"encode": 4 * 2, "decode": 4 * 2, "generate": 256 * 8}  # of --shape tiny
ROOFLINE = [("memory bandwidth", "GB/s"), ("matrix throughput", "GFLOP/s")]


@pytest.fixture
def figures(run):
    """Runs the script with --json; -> the object that it prints."""

    def run_json(*words):
        ended = run(main, *words, *FEW, "--json")
        assert (ended.status, ended.err) == (0, "")
        return json.loads(ended.out)

    return run_json


# ---- what is printed


@pytest.mark.parametrize("command", COMMANDS)
def test_json(figures, command):
    told = figures(command, "--shape", "tiny", "--batch", 2, 1, *COMMANDS[command])
    assert told["settings"].items() >= {"command": command, "shape": "tiny", "batch": [2, 1], "repeats": 2}.items()
    assert told["settings"]["peak_memory_gb"] > 0.1
    expected = []
    for name in (f"{command}, batch 2", f"{command}, batch 1"):
        expected += [(name, "images/s"), (name, "codes/s")]
        expected += [(f"{name}, of {what}", unit) for what, unit in ROOFLINE if command == "generate"]
    assert [(figure["name"], figure["unit"]) for figure in told["figures"]] == expected
    keys = {"name", "value", "unit", "baseline", "ratio", "spread", "baseline_spread"}
    for figure in told["figures"]:
        assert set(figure) == keys and figure["spread"] >= 0 and figure["baseline_spread"] >= 0
        assert figure["ratio"] == pytest.approx(figure["value"] / figure["baseline"])
    images, codes = told["figures"][:2]
    assert codes["value"] / images["value"] == pytest.approx(CODES_OF_AN_IMAGE[command])


def test_the_table(run):
    ended = run(main, "decode", "--shape", "tiny", *FEW)
    assert (ended.status, ended.err) == (0, "")
    assert "decode, batch 1" in ended.out and "images/s" in ended.out and "ratio" in ended.out


@pytest.mark.parametrize("command", COMMANDS)
def test_a_model_in_place_of_a_shape(figures, tiny_folder, command):
    told = figures(command, "--model", tiny_folder, "--batch", 3)
    assert told["settings"]["model"] == str(tiny_folder) and len(told["figures"]) == (4 if command == "generate" else 2)


def test_a_step_of_learning_from_drawings(figures, tiny_folder):
    told = figures("rl", "--model", tiny_folder, "--batch", 2)
    units = ["drawings/s", "drawings/s", "of the step"]
    assert [figure["unit"] for figure in told["figures"]] == units
    shares = told["figures"][2]
    assert 0 < shares["value"] < 1 and 0 < shares["baseline"] < 1


def test_answer(figures, tiny_folder):
    for subject in (("--shape", "tiny"), ("--model", tiny_folder)):
        told = figures("answer", *subject, "--batch", 2, "--tokens", 5)
        names = ["answer, batch 2", *(f"answer, batch 2, of {what}" for what, _ in ROOFLINE)]
        assert [figure["name"] for figure in told["figures"]] == names


def test_steps_of_all_forms_of_the_weights(figures):
    told = figures("step", "--shape", "tiny", "--batch", 2, "--tokens", 3)
    rates = {figure["name"]: figure for figure in told["figures"]}
    names = [f"step, {form}, batch 2" for form in ("float32", "bfloat16", "int8", "int4")]
    assert [name for name in rates if ", of " not in name] == names
    read = [rates[f"{name}, of memory bandwidth"]["value"] / rates[name]["value"] for name in names]
    # Of float32 that is exact in bfloat16, only keys and values are longer.
    assert read[0] > read[1] > read[2] > read[3]


def test_kernels_are_compared_before_they_are_timed(figures, monkeypatch):
    """Small ones, and without inductor, whose compiler takes long."""
    monkeypatch.setattr(torch, "compile", lambda function=None, **_: function or (lambda function: function))
    monkeypatch.setattr(kernels, "SECONDS", 0.0)
    told = figures("kernels", "--shape", "tiny", "--batch", 2)
    forms = {
        "backbone": ["float32", "exact", "bfloat16", "int8", "int4"],
        "code head": ["float32", "exact", "bfloat16"],
    }
    names = [
        f"tiny, {part}, {form}, batch 2, {way}" for part in forms for form in forms[part] for way in ("C++", "inductor")
    ]
    assert [figure["name"] for figure in told["figures"]] == [x for x in names if "exact, batch 2, ind" not in x]
    monkeypatch.setattr(kernels.cpu, "backbone", lambda backbone: lambda x_BD, cache: torch.zeros_like(x_BD))
    with pytest.raises(ValueError, match="float32, batch 1: not timed, as C\\+\\+ and eager give different results"):
        list(kernels.bench_kernels(Options(shape="tiny"), 1))


def test_prefill(figures):
    [rate] = figures("prefill", "--shape", "tiny", "--tokens", 8)["figures"]
    assert (rate["name"], rate["unit"]) == ("prefill, batch 1", "tokens/s") and 0 < rate["ratio"] < 1


def test_the_plot(run, tmp_path):
    ended = run(main, "prefill", "--shape", "tiny", "--tokens", 8, *FEW, "--plot", tmp_path / "new" / "ratios.png")
    assert (ended.status, ended.err) == (0, "")
    with Image.open(tmp_path / "new" / "ratios.png") as image:
        assert image.width > 500


def test_load(figures, tiny_folder):
    seconds, held, peak, libraries = figures("load", "--model", tiny_folder)["figures"]
    size = sum(file.stat().st_size for file in tiny_folder.glob("*.safetensors")) / 2**30
    assert seconds["unit"] == "s" and 0 < seconds["baseline"] < seconds["value"]
    assert libraries["value"] > peak["value"] > 0
    for memory in (held, peak, libraries):
        assert memory["unit"] == "GB" and memory["baseline"] == pytest.approx(size, rel=0.1)


@pytest.mark.slow
def test_load_of_a_shape_in_another_form(run):
    ended = run(main, "load", "--shape", "tiny", "--form", "int8", "--repeats", 1, "--json")
    assert (ended.status, ended.err) == (0, "")
    told = json.loads(ended.out)["figures"]
    assert [figure["name"] for figure in told[:2]] == ["load, int8", "load, int8, memory held"]
    model = steps.in_form(new_model("tiny")[0], "int8")
    size = sum(weight.nbytes for weight in (*model.parameters(), *model.buffers())) / 2**30
    assert told[1]["baseline"] == pytest.approx(size, rel=0.01)


def test_train(figures):
    """An update has the loss of the plain loop, or it would be refused."""
    [rate] = figures("train", "--shape", "tiny", "--batch", 4)["figures"]
    assert (rate["name"], rate["unit"]) == ("train, batch 4", "images/s")


# torch's compiler looks at the gradients of layers' inputs, and hides what torch says of that unless it is an error.
COMPILES = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")


@pytest.mark.slow
@COMPILES
def test_update(figures, monkeypatch):
    monkeypatch.setattr(updates, "RELEASED", "tiny")
    monkeypatch.setattr(updates, "WIDTH", 64)
    layers = "model.backbone.num_hidden_layers=2"
    monkeypatch.setattr(updates, "SMOLLM2", [*updates.SMOLLM2, layers])
    told = {figure["name"]: figure for figure in figures("update", "--shape", "scenes", "--batch", 4)["figures"]}
    assert len(told) == 9
    assert told["logits at labels / everywhere"]["ratio"] > 1 and all(one["ratio"] > 0 for one in told.values())


@pytest.mark.slow
@COMPILES
def test_the_page_about_a_gpu(run, monkeypatch):
    """All of its code, on a CPU; what fails in one part leaves the others."""
    torch.compiler.reset()  # the command has a process of its own, in which nothing was compiled before
    whole = run(main, "gpu", "--shape", "tiny", "--device", "cpu")
    assert (whole.status, whole.err) == (0, "")
    titles = [line for line in whole.out.splitlines() if line.startswith("#")]
    assert [title.split(",")[0] for title in titles] == [
        "# CPU",
        "## Drawing",
        "## Answering about an image",
        "## An update of tiny",
        "## Image tokenizer",
    ]
    rows = [line.strip("| ").split(" | ") for line in whole.out.splitlines() if line.startswith("| ")]
    assert len(rows) == 24 and "not measured" not in whole.out
    monkeypatch.setattr("eval.bench.gpu.answer", lambda *_: torch.ones(2**48))
    parts = run(main, "gpu", "--shape", "tiny", "--device", "cpu")
    assert parts.status == 0 and parts.out.count("not measured: ") == 2 and parts.out.count("\n##") == 4


def test_a_plain_loop_with_another_loss_is_refused(refused, monkeypatch):
    monkeypatch.setattr(
        image_tokenizer_update, "plain_up", lambda layer, x: layer.conv(F.interpolate(x, scale_factor=2.0)) + 1
    )
    assert "not timed, as ours and the plain loop have different losses" in refused(main, "train", "--shape", "tiny")


def test_the_costs_of_a_step(tiny_model):
    model, _ = tiny_model
    layer = 4 * 32 * 32 + 3 * 32 * 64 + 2 * 32
    backbone, vocabulary = 2 * layer + 32, model.lm_head.weight.numel()
    cached = 2 * 2 * 32 * 100  # keys and values of 2 layers, in 100 columns
    assert step_costs(model, 3, 100, model.lm_head) == (
        4 * (backbone + vocabulary + cached),
        2 * 3 * (backbone + vocabulary) + 2 * cached,
    )
    depth_layer, output = 4 * 32 * 32 + 3 * 32 * 96 + 2 * 32, 32 * 16 + 16
    bytes, _ = step_costs(model, 3, 0, model.code_head)
    assert bytes == 4 * (backbone + 2 * (depth_layer + output))


def test_rates_are_amounts_by_median_times(monkeypatch):
    clock = iter([0, 1, 1, 5, 10, 12, 20, 30, 40, 43, 50, 52])  # ours 1, 2, 3 seconds; the baseline 4, 10, 2
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    runs = []
    [figure] = compare("x", lambda: runs.append("ours"), lambda: runs.append("baseline"), {"images/s": 8}, 3)
    assert runs == ["ours", "baseline"] * 3
    assert (figure.value, figure.baseline, figure.ratio) == (4, 2, 2)
    assert (figure.spread, figure.baseline_spread) == (1, 2)


# ---- both ways agree, or nothing is timed


def other_codes(function):
    """The function, with its last code another."""

    def wrong(*words):
        codes = function(*words)
        codes[0, -1] = (codes[0, -1] + 1) % 16
        return codes

    return wrong


@pytest.mark.parametrize(
    ("command", "name", "spoil", "told"),
    [
        ("encode", "reference_encode", other_codes, "different codes, first in image 0, position 3"),
        (
            "generate",
            "reference_position",
            other_codes,
            "different codes, first in image 0, position 0, sub-codebook 1",
        ),
        ("decode", "reference_decode", lambda f: lambda *words: [x + 0.01 for x in f(*words)], "different images: "),
        ("decode", "reference_decode", lambda f: lambda *words: list(f(*words))[::-1], "different images: "),
    ],
)
def test_a_wrong_baseline_is_refused(refused, monkeypatch, tiny_folder, command, name, spoil, told):
    for module in (images, generation, reference):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, spoil(getattr(module, name)))
    for module in (images, generation):
        monkeypatch.setattr(module, "compare", None)
    assert told in refused(main, command, "--model", tiny_folder, "--batch", 2)


def test_a_wrong_answer_is_refused(refused, monkeypatch, tiny_folder):
    model = generation.causal_model

    def other_output(loaded):
        causal = model(loaded)
        causal.lm_head = deepcopy(causal.lm_head)
        torch.nn.init.normal_(causal.lm_head.weight)
        return causal

    monkeypatch.setattr(generation, "causal_model", other_output)
    told = refused(main, "answer", "--model", tiny_folder, "--tokens", 3)
    assert "different codes, first in image 0, position 0" in told


def test_near_ties_may_differ():
    codes, gaps = torch.zeros(2, 3, 2, dtype=torch.long), torch.ones(2, 3, 2)
    other = codes.clone()
    other[1, 0, 1] = 5
    gaps[1, 0, 1] = NEAR_TIE / 2
    check_codes(codes, other, gaps)
    other[1, 2, 0] = 5
    with pytest.raises(ValueError, match="image 1, position 2, sub-codebook 0"):
        check_codes(codes, other, gaps)
    check_codes(codes, other, gaps, in_turn=True)  # after a near tie, an image goes its own way
    gaps[1, 0, 1] = 1
    with pytest.raises(ValueError, match="image 1, position 0, sub-codebook 1"):
        check_codes(codes, other, gaps, in_turn=True)


def test_images_of_no_number_are_refused():
    pixels = torch.rand(1, 3, 4, 4)
    check_pixels(pixels, pixels + 1e-6)
    with pytest.raises(ValueError, match="different images"):
        check_pixels(pixels, pixels * float("nan"))


def test_the_reference_draws_from_what_our_filter_keeps():
    logits_BV = torch.randn(1, 32, generator=torch.Generator().manual_seed(0)).mul(2).repeat(4000, 1)
    kept = filter_logits(logits_BV[:1] / 0.9, top_k=12, top_p=0.8)[0].isfinite().nonzero()[:, 0]
    drawn = reference_pick(0.9, 12, 0.8)(logits_BV, 0)
    assert 3 < len(kept) < 12 and torch.equal(drawn.unique(), kept)


# ---- bad arguments


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["encode"], "encode needs a --model or a --shape"),
        (["encode", "--shape", "tiny", "--model", "scenes"], "not allowed with argument"),
        (["kernels", "--model", "scenes"], "kernels takes no --model"),
        (["threads", "--model", "scenes"], "threads takes no --model"),
        (["threads", "--shape", "tiny"], "--shape tiny: threads is of the model of scenes alone"),
        (["kernels", "--shape", "huge"], "known for this command: scenes, smollm2-135m, unitok-head, tiny"),
        (["fly", "--shape", "tiny"], "invalid choice: 'fly'"),
        (["encode", "--shape", "huge"], "unknown --shape 'huge'; known for this command: unitok-large, unitok-base,"),
        (["generate", "--shape", "unitok-large"], "known for this command: tiny, w320, w576, w2048, 7b-layers, 7b"),
        (["encode", "--model", "no_such_model"], "unknown model 'no_such_model'"),
        (["decode", "--shape", "tiny", "--batch", "2", "0"], "--batch 0 is below 1"),
        (["decode", "--shape", "tiny", "--repeats", "0"], "--repeats 0 is below 1"),
        (["generate", "--shape", "tiny", "--positions", "-1"], "--positions -1 is below 1"),
        (["generate", "--shape", "tiny", "--positions", "257"], "--positions 257: an image of this model has 256"),
        (["answer", "--shape", "tiny", "--tokens", "0"], "--tokens 0 is below 1"),
        (["update", "--shape", "tiny"], "--shape tiny: update is of a new model as large as that of scenes"),
        (["step", "--shape", "tiny", "--form", "int8"], "--form is for load, not for step"),
        (["load", "--model", "no_such_model"], "unknown model 'no_such_model'"),
        (["encode", "--shape", "tiny", "--positions", "3"], "--positions is for generate, not for encode"),
        (["encode", "--shape", "tiny", "--device", "cpu"], "--device is for gpu, not for encode"),
        (
            ["gpu", "--shape", "w320", "--device", "cpu"],
            "unknown --shape 'w320'; known for this command: tiny, or",
        ),
        (["gpu", "--device", "cpu"], "torch finds no GPU here; --device cpu --shape tiny runs the same code"),
    ],
)
def test_bad_arguments(refused, words, told):
    assert told in refused(main, *words)


def test_a_model_without_a_depth_head(refused, make_tiny_model, tmp_path):
    for part in make_tiny_model(code_head="parallel"):
        part.save_pretrained(tmp_path)
    assert "'parallel': generate compares depth heads" in refused(main, "generate", "--model", tmp_path)


def test_every_command_is_tested():
    others = {"answer", "step", "kernels", "prefill", "load", "train", "update", "rl", "threads", "gpu"}
    assert {*COMMANDS, *others} == set(BENCHES)


def test_an_image_tokenizer_that_the_reference_does_not_know_is_refused():
    with pytest.raises(ValueError, match="scenes-conv: the loops of the reference, .* not conv, multi_codebook, grid"):
        get_image_tokenizer(None, "scenes-conv")
