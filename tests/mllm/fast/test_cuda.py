"""Recorded steps draw and write as those that are not. Here, a recorder for CPUs takes the place of CUDA graphs: like
them, it knows operations on fixed memory, none of the Python between them, and refuses to ask for a value."""

import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mllm.codes import CODE_EMBEDDINGS, CODE_HEADS
from mllm.decode import sampling
from mllm.decode.engine import Engine
from mllm.decode.program import Chat, Drawing
from mllm.decode.run import sample_codes
from mllm.decode.sampling import gumbel, sample, sample_by_sorting
from mllm.decode.stream import Stream
from mllm.fast import cpu, cuda, pick_kernels
from mllm.fast.cuda import Recorded

pytestmark = pytest.mark.filterwarnings("error:generation runs without")
PROMPTS = ["a red dog", "two cats and a very long prompt about a bus", "a kite"]
OPTIONS = [
    {"temperature": 0},
    {"cfg_scale": 1.0},
    {"top_k": 5, "top_p": 0.9, "temperature": 1.3},
    {"cfg_interval": (0.25, 0.75)},
    {"cfg_interval": (0.0, 0.5)},
]
ASKING = ("_local_scalar_dense", "nonzero", "is_nonzero", "lift_fresh")  # of values, by the host, or from it


class Recorder(TorchDispatchMode):
    """What a CUDA graph keeps: operations with their tensors, as memory, and all other arguments, as numbers."""

    def __init__(self):
        super().__init__()
        self.operations, self.given = [], set()  # memory that was there before

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        by_truth = any(tensor.dtype == torch.bool for tensor in tensors(args[1:]))
        name = operation.overloadpacket.__name__
        if name in ASKING or (name.startswith("index") and by_truth):
            raise RuntimeError(f"{operation} while recording")
        made = {memory(tensor) for *_, output in self.operations for tensor in tensors(output)}
        self.given |= {memory(tensor) for tensor in tensors((args, kwargs))} - made
        output = operation(*args, **(kwargs or {}))
        self.operations.append((operation, args, kwargs or {}, output))
        return output

    def spoil(self) -> None:
        """A recording computes nothing: who reads its result before the first replay reads nonsense."""
        for *_, output in self.operations:
            for tensor in tensors(output):
                if memory(tensor) not in self.given:
                    tensor.fill_(1 if tensor.dtype == torch.bool else 77)

    def replay(self) -> None:
        for operation, args, kwargs, output in self.operations:
            for mine, new in zip(tensors(output), tensors(operation(*args, **kwargs)), strict=True):
                if mine.data_ptr() != new.data_ptr():
                    mine.copy_(new)


def tensors(tree) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _record(function, inputs):
    with Recorder() as recorder:
        output = function(*inputs)
    recorder.spoil()
    return recorder.replay, output


@pytest.fixture
def recordings(monkeypatch) -> list:
    """Those made since; all that a model computes step by step is to be recorded."""
    made = []

    def record(function, inputs):
        made.append(function)
        return _record(function, inputs)

    monkeypatch.setattr(cpu, "library", lambda: None)
    monkeypatch.setattr(cuda, "recordable", lambda module: True)
    monkeypatch.setattr(cuda, "record", record)
    monkeypatch.setattr(cuda, "WARM_UP", 0)
    monkeypatch.setattr(sampling, "sync_is_free", lambda device: False)
    return made


def _draw(model, processor, **options):
    samples = [processor.encode_drawing(prompt) for prompt in PROMPTS]
    generators = [torch.Generator().manual_seed(row) for row in range(len(PROMPTS))]
    return sample_codes(model, processor, samples, generators, **{"cfg_scale": 3.0, "temperature": 1.0, **options})


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_recorded_steps_draw_the_same(tiny_model, recordings, options):
    drawn = _draw(*tiny_model, **options)
    assert len(recordings) >= 2 and torch.equal(drawn, _draw(*tiny_model, kernels="eager", **options))


@pytest.mark.parametrize("embedding", CODE_EMBEDDINGS)
@pytest.mark.parametrize("head", CODE_HEADS)
def test_of_any_kind(make_tiny_model, recordings, embedding, head):
    model, processor = make_tiny_model(embedding, head)
    assert torch.equal(_draw(model, processor), _draw(model, processor, kernels="eager"))
    assert recordings


def test_rows_come_and_go_and_memory_grows(tiny_model, recordings):
    model, processor = tiny_model
    samples = [processor.encode_drawing(prompt) for prompt in PROMPTS]
    recorded, eager = (
        Stream(model, samples[:2], processor, pick_kernels(model, way), room=1) for way in ("auto", "eager")
    )
    inputs = torch.randn(60, 3, model.config.text_config.hidden_size, generator=torch.Generator().manual_seed(1))
    for step, x_BD in enumerate(inputs):
        for stream in (recorded, eager):
            if step == 10:
                stream.add(samples[2:])
            if step == 20:
                stream.remove(0)
            stream.feed(x_BD[: len(stream.spans)])
        torch.testing.assert_close(recorded.h_ED, eager.h_ED, atol=1e-5, rtol=1e-4)
    assert len(recordings) > 3  # memory has grown between, too


def test_a_row_alone_does_not_see_the_columns_to_come(tiny_model, recordings):
    model, processor = tiny_model
    samples = [processor.encode_drawing(PROMPTS[0])]
    recorded, eager = (Stream(model, samples, processor, pick_kernels(model, way)) for way in ("auto", "eager"))
    for x_BD in torch.randn(5, 1, model.config.text_config.hidden_size, generator=torch.Generator().manual_seed(1)):
        recorded.feed(x_BD)
        eager.feed(x_BD)
        torch.testing.assert_close(recorded.h_ED, eager.h_ED, atol=1e-5, rtol=1e-4)
    assert recordings


def test_requests_of_all_kinds_together(tiny_model, recordings):
    model, processor = tiny_model
    texts = [[{"role": "user", "content": text}] for text in ("hello", "where is the long yellow bus?")]
    requests = [Chat(text, 40, drawing=None) for text in texts]
    ways = [{"cfg_scale": 1.0}, {"cfg_scale": 2.0, "top_k": 2}, {"cfg_scale": 2.0, "temperature": 5.0}]
    requests += [Drawing(prompt, seed=1, **way) for prompt, way in zip(PROMPTS, ways, strict=True)]

    def answers():
        with Engine(model, processor, max_rows=6) as engine:
            return [handle.result(60) for handle in [engine.submit(request) for request in requests]]

    together = answers()
    assert recordings
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "recordable", lambda module: False)
        for one, other in zip(together, answers(), strict=True):
            assert [x if isinstance(x, str) else x.tobytes() for x in one] == [
                x if isinstance(x, str) else x.tobytes() for x in other
            ]


def test_without_a_recording_it_says_so_and_goes_on(tiny_model, recordings, monkeypatch):
    def fails(function, inputs):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(cuda, "record", fails)
    with pytest.warns(UserWarning, match="without a CUDA graph, which is slower: operation not permitted when stream"):
        drawn = _draw(*tiny_model)
    assert torch.equal(drawn, _draw(*tiny_model, kernels="eager"))


@pytest.mark.parametrize("wrong", [1, 2, 3])
def test_a_near_tie_does_not_end_recording(wrong):
    """The first recordings give other codes than the function; after three of them, no more are made."""
    made = []

    def record(function, inputs):
        made.append(function)
        output = function(*inputs) + (len(made) <= wrong)
        return (lambda: None), output

    recorded, x = Recorded(lambda x: x + 1), torch.zeros(3, dtype=torch.long)
    recorded.warm_up = 0
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        patch.setattr(cuda, "record", record)
        assert all(torch.equal(recorded(x), x + 1) for _ in range(5))
    assert len(made) == min(wrong + 1, 3) and len(told) == (wrong == 3)


def test_the_recorder_refuses_what_a_gpu_would():
    for asks in (lambda x: x.sum().item() * x, lambda x: x[x > 0], lambda x: x + torch.tensor([1.0, 2.0])):
        with pytest.raises(RuntimeError, match="while recording"):
            _record(asks, [torch.ones(2)])


def test_a_cpu_is_not_recorded(tiny_model):
    model, _ = tiny_model
    assert not cuda.recordable(model.backbone)


@pytest.mark.parametrize("top_k", [0, 1, 5, 64])
@pytest.mark.parametrize("top_p", [0.1, 0.7, 1.0])
def test_sampling_that_asks_for_nothing_is_the_same(top_k, top_p):
    generator = torch.Generator().manual_seed(0)
    logits_BV = 3 * torch.randn(500, 64, generator=generator)
    noise_BV = gumbel([generator] * 500, 64, torch.device("cpu"))
    unasked = sample_by_sorting(logits_BV / 0.8, noise_BV, top_k, top_p)
    assert torch.equal(unasked, sample(logits_BV, noise_BV, 0.8, top_k, top_p))
