"""The C++ step is the eager one: same codes from the same seeds, whatever the options; and it knows when it is not."""

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from mllm import generate_images
from mllm.codes import CODE_EMBEDDINGS
from mllm.decode.options import Sampling
from mllm.decode.run import sample_codes
from mllm.decode.sampling import Picker
from mllm.decode.stream import Stream
from mllm.fast import cpu, pick_kernels
from mllm.fast.cpu import library
from mllm.fast.quantize import KINDS, Int8Linear, int4_block, quantize

PROMPTS = ["a red dog", "two cats and a very long prompt about a bus", "a kite"]
OPTIONS = [
    {"temperature": 0},
    {"cfg_scale": 1.0},
    {"temperature": 0.7},
    {"top_k": 3},
    {"top_p": 0.5},
    {"top_k": 5, "top_p": 0.9, "temperature": 1.3},
    {"cfg_interval": (0.25, 0.75)},
    {"cfg_interval": (0.5, 1.0)},
    {"cfg_interval": (0.0, 0.5)},
]


def _draw(model, processor, images=3, **options):
    samples = [processor.encode_drawing(PROMPTS[row % 3]) for row in range(images)]
    generators = [torch.Generator().manual_seed(row) for row in range(images)]
    return sample_codes(model, processor, samples, generators, **{"cfg_scale": 3.0, "temperature": 1.0, **options})


def _exact_in_bfloat16(make_tiny_model, *kinds):
    model, processor = make_tiny_model(*kinds)
    return model.bfloat16().float(), processor


def test_it_builds_here():
    assert library() is not None


@pytest.mark.parametrize("code_embedding", CODE_EMBEDDINGS)
@pytest.mark.parametrize("make", [lambda make, *kinds: make(*kinds), _exact_in_bfloat16], ids=["float32", "bfloat16"])
def test_codes_are_those_of_the_eager_step(make_tiny_model, make, code_embedding):
    model, processor = make(make_tiny_model, code_embedding)
    for options in OPTIONS:
        assert torch.equal(_draw(model, processor, **options), _draw(model, processor, kernels="eager", **options))


@dataclass(frozen=True, kw_only=True)
class WithMinP(Sampling):
    """An option that step.cpp does not know."""

    min_p: float = 0.0


def test_options_that_it_does_not_know_run_eagerly(tiny_model, monkeypatch):
    model, _ = tiny_model
    h_BD, eager, ran = torch.randn(2, 32), model.code_head.sample, []
    monkeypatch.setattr(model.code_head, "sample", lambda *given: ran.append(given) or eager(*given))
    for min_p in (0.0, 0.2):
        draw = cpu.head(model.code_head)
        codes_BK = draw(h_BD, Picker((), [torch.Generator()] * 2, 2, WithMinP(temperature=1.0, min_p=min_p)))
        assert codes_BK.shape == (2, 2) and len(ran) == (min_p > 0)


def test_structures_that_differ_are_found(monkeypatch):
    class Norm(cpu.ctypes.Structure):
        _fields_ = cpu.Norm._fields_[:2]

    monkeypatch.setattr(cpu, "MIRRORED", tuple(Norm if part is cpu.Norm else part for part in cpu.MIRRORED))
    with pytest.raises(RuntimeError, match="Norm has 24 bytes in step.cpp, 16 in cpu.py"):
        cpu.check_structures(library())


def test_any_number_of_rows(make_tiny_model):
    """More than 16 are several tiles of a matrix unit."""
    model, processor = _exact_in_bfloat16(make_tiny_model)
    eager = _draw(model, processor, images=19, kernels="eager")
    for images in (1, 2, 5, 19):
        assert torch.equal(_draw(model, processor, images), eager[:images])


@pytest.mark.parametrize("make", [lambda make: make(), _exact_in_bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 3, 21])
def test_hidden_states_are_those_of_the_eager_step(make_tiny_model, make, rows):
    model, processor = make(make_tiny_model)
    samples = [processor.encode_drawing(PROMPTS[row % 3]) for row in range(rows)]
    fast, eager = (Stream(model, samples, processor, pick_kernels(model, way)) for way in ("auto", "eager"))
    assert fast.kernels.step is cpu.backbone(model.backbone)
    for x_BD in torch.randn(4, rows, 32, generator=torch.Generator().manual_seed(0)):
        fast.feed(x_BD), eager.feed(x_BD)
        torch.testing.assert_close(fast.h_ED, eager.h_ED, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(int4_block() is None, reason="torch lays out 4 bits in its own way")
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_quantized_hidden_states_are_those_of_the_eager_step(make_tiny_model, kind, dtype, tolerance):
    """In bfloat16 to its rounding. Layers of 96 outputs are no whole number of torch's blocks of 4 bits."""
    model, processor = make_tiny_model()
    for layer in model.backbone.layers:
        layer.mlp.gate_proj, layer.mlp.up_proj = nn.Linear(32, 96), nn.Linear(32, 96)
        layer.mlp.down_proj = nn.Linear(96, 32)
    model.backbone.config.intermediate_size = 96
    for linear in (module for module in model.backbone.modules() if isinstance(module, nn.Linear)):
        nn.init.normal_(linear.weight, std=0.2)  # so that layers count
    quantize(model, kind).to(dtype)
    for rows in (1, 2, 5, 21):
        samples = [processor.encode_drawing(PROMPTS[row % 3]) for row in range(rows)]
        fast, eager = (Stream(model, samples, processor, pick_kernels(model, way)) for way in ("auto", "eager"))
        assert fast.kernels.step is cpu.backbone(model.backbone) is not None
        for x_BD in torch.randn(3, rows, 32, generator=torch.Generator().manual_seed(0)).to(dtype):
            fast.feed(x_BD), eager.feed(x_BD)
            assert fast.h_ED.dtype == dtype
            torch.testing.assert_close(fast.h_ED, eager.h_ED, atol=tolerance, rtol=tolerance)


@torch.no_grad()
def test_hidden_states_in_bfloat16_are_near_those_of_the_same_numbers_in_float32(make_tiny_model):
    """On the whole nearer than operation by operation; and the weights are not held twice."""
    model, processor = make_tiny_model()
    generator = torch.Generator().manual_seed(0)
    for linear in (module for module in model.backbone.modules() if isinstance(module, nn.Linear)):
        nn.init.normal_(linear.weight, std=0.2, generator=generator)  # so that layers count
    model.bfloat16()
    total = torch.zeros(2)
    exact = deepcopy(model).float()
    for rows in (1, 2, 5, 21):
        samples = [processor.encode_drawing(PROMPTS[row % 3]) for row in range(rows)]
        fast, eager = (Stream(model, samples, processor, pick_kernels(model, way)) for way in ("auto", "eager"))
        true = Stream(exact, samples, processor, pick_kernels(exact, "eager"))
        for x_BD in torch.randn(3, rows, 32, generator=torch.Generator().manual_seed(0)).bfloat16():
            fast.feed(x_BD), eager.feed(x_BD), true.feed(x_BD.float())
            errors = torch.stack([(stream.h_ED.float() - true.h_ED).norm() for stream in (fast, eager)])
            assert fast.h_ED.dtype == torch.bfloat16 and errors.max() < 0.1 * true.h_ED.norm()
            total += errors
    assert total[0] < total[1]
    kept = {x.data_ptr() for x in cpu.backbone(model.backbone).kept if isinstance(x, torch.Tensor)}
    assert {weight.data_ptr() for weight in model.backbone.layers.parameters() if weight.dim() > 1} <= kept


def test_changed_quantized_weights_are_noticed(make_tiny_model):
    model, _ = make_tiny_model()
    before = cpu.backbone(quantize(model, "int8").backbone)
    assert cpu.backbone(model.backbone) is before
    next(module for module in model.backbone.modules() if isinstance(module, Int8Linear)).weight_OI.zero_()
    after = cpu.backbone(model.backbone)
    assert after is not before
    cpu.forget(model)
    assert cpu.backbone(model.backbone) is not after


@pytest.mark.parametrize("make", [lambda make, kind: make(kind), _exact_in_bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 5])
@torch.no_grad()
def test_embeddings_are_those_of_the_eager_step(make_tiny_model, make, rows):
    """Over more positions than memory is laid out for at first."""
    embedding = make(make_tiny_model, "codebook")[0].code_embed
    fast, eager = {}, {}
    for codes_NK in torch.randint(16, (70, rows, 2), generator=torch.Generator().manual_seed(0)):
        embeds_ND = cpu.embedding(embedding)(codes_NK, fast)
        torch.testing.assert_close(embeds_ND, embedding(codes_NK[:, None], eager)[:, 0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_heads_and_embeddings_in_bfloat16_are_those_of_the_same_numbers_in_float32(make_tiny_model):
    model, _ = make_tiny_model("codebook")
    head, embedding = (deepcopy(part).bfloat16().float() for part in (model.code_head, model.code_embed))
    h_BD = torch.randn(6, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    for options in ({"temperature": 0.7}, {"top_k": 3, "top_p": 0.9}):

        def pick(options=options):
            return Picker((3.0,), [torch.Generator().manual_seed(row) for row in range(3)], 2, Sampling(**options))

        drawn = cpu.head(model.code_head.bfloat16())(h_BD, pick())
        assert torch.equal(drawn, head.sample(h_BD.float(), pick()))
    fast, eager, model.code_embed = {}, {}, model.code_embed.bfloat16()
    for codes_NK in torch.randint(16, (5, 2, 2), generator=torch.Generator().manual_seed(0)):
        embeds_ND = cpu.embedding(model.code_embed)(codes_NK, fast)
        assert embeds_ND.dtype == torch.bfloat16
        expected_ND = embedding(codes_NK[:, None], eager)[:, 0]
        torch.testing.assert_close(embeds_ND.float(), expected_ND, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("scales", [(), (3.0,)])
@pytest.mark.parametrize("options", [{"temperature": 0.7}, {"temperature": 1.0, "top_k": 3, "top_p": 0.9}, {}], ids=str)
@torch.no_grad()
def test_log_probabilities_of_codes_are_those_of_their_logits(make_tiny_model, scales, options):
    head = make_tiny_model()[0].code_head
    h_BD = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    rows = 3 if scales else 6
    fast, eager = (
        Picker(scales, [torch.Generator().manual_seed(row) for row in range(rows)], 2, Sampling(**options), scored=True)
        for _ in range(2)
    )
    codes_BK = cpu.head(head)(h_BD, fast)
    assert torch.equal(codes_BK, head.sample(h_BD, eager)) and len(fast.logps) == len(eager.logps) == 2
    logits_BKV = head(h_BD, codes_BK)
    if scales:
        logits_BKV = logits_BKV[rows:].lerp(logits_BKV[:rows], *scales)
    logps_BKV = (logits_BKV / options.get("temperature", 1.0)).log_softmax(-1)
    expected_BK = logps_BKV.gather(-1, codes_BK[:rows, :, None])[..., 0]
    for found in (fast, eager):
        torch.testing.assert_close(torch.stack(found.logps, 1), expected_BK, atol=1e-5, rtol=1e-5)


def test_the_head_may_have_a_width_of_its_own_and_one_output(make_tiny_model):
    model, processor = make_tiny_model()
    sizes = {"width": 16, "heads": 2, "layers": 2, "shared_output": True}
    model.code_head = type(model.code_head)(32, 2, 16, **sizes).eval()
    assert torch.equal(_draw(model, processor), _draw(model, processor, kernels="eager"))


def test_changed_weights_are_noticed(make_tiny_model):
    model, processor = make_tiny_model()
    before = _draw(model, processor)
    with torch.no_grad():
        for weight in [*model.code_head.parameters(), *model.backbone.parameters()]:
            weight.add_(torch.randn_like(weight))
    assert not torch.equal(_draw(model, processor), before)
    assert torch.equal(_draw(model, processor), _draw(model, processor, kernels="eager"))


def test_what_is_not_the_models_own_runs_as_it_is(make_tiny_model):
    class Adapted(nn.Linear):
        pass

    model, _ = make_tiny_model()
    backbone, head = model.backbone, model.code_head
    assert cpu.backbone(backbone) and cpu.head(head)
    backbone.layers[1].mlp.up_proj = Adapted(32, 64)
    hook = head.norm.register_forward_hook(lambda *_: None)
    assert cpu.backbone(backbone) is None and cpu.head(head) is None
    hook.remove()
    assert cpu.head(head)
    with torch.autocast("cpu", torch.bfloat16):
        assert cpu.head(head) is None
    assert cpu.head(head.double()) is None


def test_without_a_compiler_it_says_so_and_draws_the_same(make_tiny_model, monkeypatch, tmp_path):
    model, processor = make_tiny_model()
    expected = _draw(model, processor)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cpu.shutil, "which", lambda name: None)
    library.cache_clear()
    with pytest.warns(UserWarning, match="generation runs uncompiled, which is slower: no C\\+\\+ compiler"):
        assert torch.equal(_draw(model, processor), expected)
    library.cache_clear()


def test_threads_that_need_it_at_once_build_it_once(monkeypatch, tmp_path):
    """What one has begun, another would take away, or take for built."""
    (tmp_path / "small.cpp").write_text('extern "C" int answer() { return 42; }')
    monkeypatch.setattr(cpu, "check_structures", lambda built: None)
    monkeypatch.setattr(cpu, "SOURCE", tmp_path / "small.cpp")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.cache_clear()
    try:
        with ThreadPoolExecutor(4) as pool:
            answers = pool.map(lambda _: library().answer(), range(4))
            assert list(answers) == [42] * 4
        assert [file.suffix for file in (tmp_path / "mllm").iterdir()] == [".so"]
    finally:
        library.cache_clear()


@pytest.mark.parametrize("code_embedding", CODE_EMBEDDINGS)
def test_threads_may_share_a_model(make_tiny_model, code_embedding):
    """Rows of many lengths: the tables of angles grow for one thread while another reads them."""
    model, processor = make_tiny_model(code_embedding)
    prompts = [" ".join(["a long yellow bus"] * count) for count in (1, 12, 2, 10, 30, 5, 22, 16)]

    def draw(seed: int) -> bytes:
        options = {"cfg_scale": 3.0, "top_p": 0.9, "candidates": 1 + seed % 2}
        return generate_images(model, processor, [prompts[seed]], seed, **options)[0].tobytes()

    alone = list(map(draw, range(len(prompts))))
    for _ in range(3):
        cpu._made.clear()  # every part is made anew, by several at the same time
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(draw, range(len(prompts)))) == alone


def test_parts_of_an_image_without_guidance_have_half_the_rows(tiny_model):
    model, processor = tiny_model
    rows = []
    hook = model.backbone.norm.register_forward_hook(lambda _, __, h: rows.append(len(h)))
    _draw(model, processor, images=1, cfg_interval=(0.25, 0.75))
    hook.remove()
    # The prompt; its unconditional half; both are fed position 1; the half leaves after position 2.
    assert rows == [1, 1, 2, 2, 1]
    with pytest.raises(ValueError, match="cfg_interval 0.5 to 0.5 is no part of an image"):
        _draw(model, processor, cfg_interval=(0.5, 0.5))
