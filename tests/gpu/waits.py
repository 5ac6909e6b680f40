"""Steps of training and decoding on a device that refuses to be waited for (see away.py), with the same results as on
the CPU. `check_all` runs in a process of its own."""

import json
import traceback
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mllm.decode.batch import Batch
from mllm.decode.program import Write
from tests.conftest import new_tiny_model
from tests.gpu import work
from tests.gpu.away import Device, Waits
from training.lm.tune import TunedMllm
from training.run.recipe import TuneConfig

PLAIN: Mapping[str, Any] = MappingProxyType({})  # the kind of tiny model
CPU, AWAY = torch.device("cpu"), torch.device("away", 0)


def update(
    text_tokenizer: PreTrainedTokenizerBase, rel: float = 1e-4, kind: Mapping[str, Any] = PLAIN, **options: Any
) -> None:
    """Of the language model."""
    engine, batches = work.training(*new_tiny_model(text_tokenizer, **kind), CPU, **options)
    expected = work.read(work.launch(engine, batches, 2))
    with Device() as device:
        engine, _ = work.training(*new_tiny_model(text_tokenizer, **kind), AWAY, **options)
        with device.launching():
            reports = work.launch(engine, batches, 2)
        assert work.read(reports) == pytest.approx(expected, rel=rel)


def image_tokenizer_update(_: PreTrainedTokenizerBase) -> None:
    def launch(learner) -> dict[str, float]:
        for step in range(3):
            report = learner.update(step, 0, [work.image_batch(learner)] * 2)
        return report

    with Device() as device:
        learner = work.image_tokenizer_learner(AWAY)
        with device.launching():
            report = launch(learner)
        found = report()
    expected = launch(work.image_tokenizer_learner(CPU))()
    names = [name for name in expected if name.startswith(("loss", "l1", "psnr", "discriminator", "contrastive"))]
    assert [found[name] for name in names] == pytest.approx([expected[name] for name in names], rel=1e-3)
    assert found.keys() == expected.keys()


def drawing(text_tokenizer: PreTrainedTokenizerBase, kind: Mapping[str, Any] = PLAIN, **options: Any) -> None:
    """No step of a drawing waits but the last, whose codes become pixels."""
    model, processor = new_tiny_model(text_tokenizer, **kind)
    expected = work.codes_drawn(model, processor, "eager", **options)
    with Device() as device:
        model.to(AWAY)
        made = [program for program, _ in work.programs(model, processor, **options)]
        batch = Batch(model, processor)
        batch.enter(track for program in made for track in program.tracks)
        with device.launching():
            for _ in range(processor.num_positions - 1):
                batch.step()
        ended = batch.step()
        codes_NLK = torch.stack([program.tracks[0].result for program in made])
        assert len(ended) == len(made) and codes_NLK.device == AWAY
        assert torch.equal(codes_NLK.cpu(), expected)


def chats_and_drawings(text_tokenizer: PreTrainedTokenizerBase) -> None:
    """A step of texts reads their ids, once for all; rows that come and go wait for nothing."""
    model, processor = new_tiny_model(text_tokenizer)

    def run(device=None) -> list[str]:
        made = [program for program, _ in work.programs(model, processor, texts=3)]
        waiting = [track for program in made for track in program.tracks]
        batch = Batch(model, processor)
        while batch.tracks or waiting:
            if waiting:
                batch.enter([waiting.pop()])
            writes = sum(isinstance(track.want, Write) for track in batch.tracks)
            before = len(device.asked) if device else 0
            ended = batch.step()
            if device:
                images = sum(track.draws for track in ended)
                assert len(device.asked) - before == (writes > 0) + images, device.asked[before:]
        return [str(track.result) for program in made for track in program.tracks if not track.draws]

    expected = run()
    with Device() as device:
        model.to(AWAY)
        assert run(device) == expected


def refusals(_: PreTrainedTokenizerBase) -> None:
    """So that the others can fail."""
    waiting = {
        "reads values": lambda x: x.sum().item(),
        "a truth": lambda x: bool(x.isfinite().all()),
        "a list": lambda x: x.cpu().tolist(),
        "to the host": lambda x: x.to("cpu", non_blocking=True),
        "from the host": lambda x: torch.ones(2).to(x.device),
        "a new tensor": lambda x: torch.tensor([1.0], device=x.device),
        "indices": lambda x: x[[0, 1]],
        "by truth": lambda x: x[x > 0],
        "places": lambda x: x.nonzero(),
        "counts": lambda x: torch.bincount(x.long()),
    }
    with Device() as device:
        x = torch.ones(3).to(AWAY)
        for name, wait in waiting.items():
            with device.launching(), pytest.raises(Waits):
                pytest.fail(f"{name}: {wait(x)}")
        with pytest.raises(RuntimeError, match="on the device and on the host"):
            x + torch.ones(3)
        with device.launching():
            assert (x + 1)[:2].shape == (2,)


CODEBOOK = {"code_embedding": "codebook", "code_head": "parallel"}
CHECKS = {
    "update, padded": update,
    "update, packed": partial(update, pack=80),
    "update, packed, with branches": partial(update, pack=160, branches=True),
    "update, a share of the codes, accumulated": partial(update, share=0.5, accumulate=2),
    "update, Muon": partial(update, muon=True),
    "update, other heads": partial(update, kind=CODEBOOK),
    "update, with the image tokenizer": partial(update, kind={"kind": TunedMllm}, tune=TuneConfig()),
    "update of the image tokenizer": image_tokenizer_update,
    "drawing": drawing,
    "drawing, filtered, partly guided": partial(drawing, top_k=5, top_p=0.9, cfg_interval=(0.0, 0.5)),
    "drawing, other heads": partial(drawing, kind=CODEBOOK),
    "chats and drawings": chats_and_drawings,
    "the device refuses": refusals,
}


def check_all(text_tokenizer: str, out: Path) -> None:
    """Writes an object, name of a check -> where it failed; "" if it did not."""
    torch.set_num_threads(1)
    tokenizer, found = AutoTokenizer.from_pretrained(text_tokenizer), {}
    for name, check in CHECKS.items():
        try:
            check(tokenizer)
            found[name] = ""
        except (Exception, pytest.fail.Exception):
            found[name] = traceback.format_exc()
    out.write_text(json.dumps(found))
