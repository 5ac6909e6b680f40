"""A GPU gives what the CPU gives, the fast ways what the plain ones give, and memory goes back."""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from weakref import ref

import pytest
import torch
from PIL import Image

from data_recipes.scenes.world import World
from mllm import Mllm, Processor, generate_images, generate_texts
from mllm.decode.engine import Engine
from mllm.decode.program import Chat, Drawing
from mllm.decode.stream import Stream
from mllm.fast import pick_kernels
from mllm.fast.quantize import quantize
from tests.gpu import work
from tests.processes import ROOT
from training.lm.train import UNMASKED

pytestmark = pytest.mark.filterwarnings("error:generation runs without")
CPU = torch.device("cpu")
RECIPE = ROOT / "data_recipes" / "debug.yaml"
PRECISIONS = {"fp32": 1e-3, "bf16": 2e-2}  # of a run, and how far its losses may be from the CPU's in float32


@pytest.fixture(scope="module")
def scenes() -> tuple[Mllm, Processor]:
    """The shipped model, in float32 on the CPU."""
    return Mllm.from_pretrained("scenes", dtype=torch.float32).eval(), Processor.from_pretrained("scenes")


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    world = World()
    return [world.render(world.scene(seed, "held_out")) for seed in range(32)]


@contextmanager
def on(device: torch.device, model: Mllm) -> Iterator[Mllm]:
    yield deepcopy(model).to(device)
    gc.collect()


# ---- the GPU and the CPU


def test_codes_of_images(device, scenes, images):
    expected_NLK = scenes[0].image_tokenizer.encode(images)
    with on(device, scenes[0]) as model:
        codes_NLK = model.image_tokenizer.encode(images).cpu()
    assert (codes_NLK == expected_NLK).float().mean() >= 0.999


def test_pixels_of_codes(device, scenes, images):
    codes_NLK = scenes[0].image_tokenizer.encode(images[:4])
    with on(device, scenes[0]) as model:
        pixels_N3HW = model.image_tokenizer.decode_pixels(codes_NLK.to(device)).cpu()
    torch.testing.assert_close(pixels_N3HW, scenes[0].image_tokenizer.decode_pixels(codes_NLK), atol=1e-3, rtol=1e-3)


def test_greedy_answers(device, scenes, images):
    model, processor = scenes
    codes_NLK = model.image_tokenizer.encode(images[:8])
    chats = []
    for codes_LK, question in zip(codes_NLK, ["what is this?", "describe the picture."] * 4, strict=True):
        asked = [{"type": "image", "image": codes_LK}, {"type": "text", "text": question}]
        chats.append([{"role": "user", "content": asked}])
    expected = generate_texts(model, processor, chats, temperature=0.0)
    with on(device, model) as there:
        assert generate_texts(there, processor, chats, temperature=0.0) == expected


def test_drawings(device, scenes):
    """From the same noise; a near tie may send one of them another way."""
    model, processor = scenes
    codes_NLK = work.codes_drawn(model, processor)
    with on(device, model) as there:
        same = (work.codes_drawn(there, processor).cpu() == codes_NLK).float().mean((1, 2))
    assert (same > 0.99).sum() >= 2


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("ways", [{}, {"pack": 160, "branches": True}], ids=["padded", "packed"])
def test_losses_of_twenty_updates(device, make_tiny_model, precision, ways):
    found = work.read(work.launch(*work.training(*make_tiny_model(), device, precision=precision, **ways), steps=20))
    expected = work.read(work.launch(*work.training(*make_tiny_model(), CPU, **ways), steps=20))
    assert found[::2] == pytest.approx(expected[::2], rel=PRECISIONS[precision])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_losses_of_the_image_tokenizer(device, precision):
    """Less near than those of the language model, as other codes are chosen on the way."""

    def losses(where: torch.device, precision: str) -> list[float]:
        learner = work.image_tokenizer_learner(where, precision, calm=True)
        return [learner.update(step, 0, [work.image_batch(learner)])()["loss"] for step in range(10)]

    assert losses(device, precision) == pytest.approx(losses(CPU, "fp32"), rel=5 * PRECISIONS[precision])


@pytest.mark.parametrize("first", ["here", "there"])
def test_a_checkpoint_goes_on_on_the_other_kind_of_machine(device, tmp_path, first):
    kinds = {"here": ["cpu", device.type], "there": [device.type, "cpu"]}[first]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(whole, 1, "run.steps=4", "run.device=cpu")
    for steps, kind in zip((2, 4), kinds, strict=True):
        train(parts, 1, f"run.steps={steps}", f"run.device={kind}")
    assert losses_of(parts) == pytest.approx(losses_of(whole), rel=1e-3)


# ---- fast ways and plain ones, on the device


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_recorded_steps(device, make_tiny_model, dtype):
    """Rows come and go, memory grows."""
    model, processor = make_tiny_model()
    model.to(device, dtype)
    samples = [processor.encode_drawing(prompt) for prompt in work.PROMPTS]
    fast, eager = (Stream(model, samples[:2], processor, pick_kernels(model, way), room=1) for way in ("auto", "eager"))
    width, generator = model.config.text_config.hidden_size, torch.Generator().manual_seed(1)
    for step, x_BD in enumerate(torch.randn(60, 3, width, generator=generator).to(device, dtype)):
        for stream in (fast, eager):
            if step == 20:
                stream.add(samples[2:])
            if step == 40:
                stream.remove(0)
            stream.feed(x_BD[: len(stream.spans)])
        bound = 1e-4 if dtype == torch.float32 else 6e-2
        torch.testing.assert_close(fast.h_ED, eager.h_ED, atol=bound, rtol=bound)


@pytest.mark.parametrize("parts", [("tables", "depth"), ("codebook", "depth"), ("tables", "parallel")], ids="-".join)
@pytest.mark.parametrize("options", [{"temperature": 0}, {"top_k": 5, "top_p": 0.9}, {"cfg_scale": 1.0}], ids=str)
def test_recorded_drawings(device, make_tiny_model, parts, options):
    model, processor = make_tiny_model(*parts)
    model.to(device)
    fast, eager = (work.codes_drawn(model, processor, way, **options) for way in ("auto", "eager"))
    assert (fast == eager).float().mean() > 0.9  # near ties


@pytest.mark.parametrize("pack", [80, 0])
@pytest.mark.parametrize("branches", [False, True], ids=["plain", "branches"])
@pytest.mark.parametrize("kernel", ["sdpa", UNMASKED])
def test_attention(device, make_tiny_model, kernel, pack, branches):
    """Losses and gradients of an update beside those of plain attention."""

    def one(attention: str) -> list[float]:
        engine, batches = work.training(*make_tiny_model(), device, pack=2 * pack, branches=branches, precision="bf16")
        engine.model.set_attn_implementation(attention)
        return work.read(work.launch(engine, batches, 2))

    assert one(kernel) == pytest.approx(one("eager"), rel=2e-2)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's compiler looks at it
@pytest.mark.parametrize("precision", PRECISIONS)
def test_compiled_layers(device, make_tiny_model, precision):
    one, other = (
        work.read(work.launch(*work.training(*make_tiny_model(), device, precision=precision, compile=way), steps=3))
        for way in (True, False)
    )
    assert one == pytest.approx(other, rel=PRECISIONS[precision])


@pytest.mark.parametrize("ranks", ["one", "all"])
def test_zero_3(device, tmp_path, ranks):
    count = 1 if ranks == "one" else torch.cuda.device_count() if device.type == "cuda" else 2
    plain, zero = tmp_path / "plain", tmp_path / "zero"
    words = ["run.steps=3", "run.batch_size=1", "run.global_batch_size=8", f"run.device={device.type}"]
    train(plain, 1, *words)
    train(zero, count, *words, "deepspeed.stage=3")
    assert losses_of(zero) == pytest.approx(losses_of(plain), rel=1e-3)


def test_served_batches(device, scenes):
    """Requests together get what each gets alone."""
    with on(device, scenes[0]) as model:
        requests = [Drawing(prompt, seed, cfg_scale=2.0) for seed, prompt in enumerate(work.PROMPTS)]
        requests += [Chat([{"role": "user", "content": text}], 12, drawing=None) for text in ("hello", "who are you?")]
        with Engine(model, scenes[1], max_rows=8) as engine:
            alone = [engine.submit(request).result(120) for request in requests]
            together = [handle.result(120) for handle in [engine.submit(request) for request in requests]]
    assert together[3:] == alone[3:]
    for [one], [other] in zip(together[:3], alone[:3], strict=True):
        assert one.size == other.size
    # In a batch of another size a near tie can fall the other way, and the rest of the drawing with it.
    assert sum(one[0].tobytes() == other[0].tobytes() for one, other in zip(together[:3], alone[:3], strict=True)) >= 2


def test_quantized_weights(device, scenes, images):
    """int8 answers as bfloat16 does, in half of the memory."""
    model, processor = deepcopy(scenes[0]).to(torch.bfloat16), scenes[1]
    codes_NLK = scenes[0].image_tokenizer.encode(images[:8])
    asked = [
        [{"type": "image", "image": codes_LK}, {"type": "text", "text": "what is this?"}] for codes_LK in codes_NLK
    ]
    chats = [[{"role": "user", "content": content}] for content in asked]
    answers = generate_texts(quantize(deepcopy(model), "int8").to(device), processor, chats, temperature=0.0)
    expected = generate_texts(model.to(device), processor, chats, temperature=0.0)
    assert sum(one == other for one, other in zip(answers, expected, strict=True)) >= 6


def test_memory_is_given_back(device, make_tiny_model):
    """After a model, its recordings and its engine are gone."""

    def use() -> ref:
        model, processor = make_tiny_model()
        model.to(device)
        generate_images(model, processor, work.PROMPTS)
        with Engine(model, processor) as engine:
            engine.submit(Drawing("a dog")).result(60)
        return ref(model)

    def held() -> int:
        gc.collect()
        return torch.cuda.memory_allocated() if device.type == "cuda" else 0

    use()  # what libraries keep
    before, model = held(), use()
    assert held() <= before + 2**20 and model() is None


# ---- runs in processes of their own


def train(folder: Path, ranks: int, *words: str) -> None:
    """The debug recipe."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    command = command if ranks > 1 else [sys.executable]
    fixed = ["run.sample_every=0", "run.save_every=2", f"run.folder={folder.parent}", f"run.name={folder.name}"]
    run = subprocess.run(
        [*command, "-m", "scripts.train", str(RECIPE), *fixed, *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]


def losses_of(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
