"""An update of the language model in two ways each: ours, and what it replaces. The losses of both are the same."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from unittest.mock import patch

import torch
import torch.nn.functional as F

from data_recipes.scenes import World
from mllm import Mllm
from mllm.templates import Sample
from scripts._bench_load import peak_gb
from tokenizer.transform import to_pixels
from training.config import MixConfig, TrainConfig, load_config
from training.data import answering_sample, drawing_sample, scene_seed
from training.device import pick_device
from training.engine import TorchEngine
from training.train import PADDED_TO, build_model, prepare
from training.update import train_step

ROOT = Path(__file__).resolve().parents[1]
RECIPE, RANKS_RECIPE = ROOT / "training" / "stages" / "mixed.yaml", ROOT / "data_recipes" / "debug.yaml"
PACK = 256  # positions of a row
RELEASED = "unitok-base"  # image tokenizers for photographs; that of `scenes` is too small to matter here
LARGE_VOCABULARY = 32_000  # of most pretrained backbones
TEXT_TOKENIZER = f"model.text_tokenizer={ROOT}/checkpoints/scenes/text_tokenizer"
PLAIN = [
    "run.name=bench",
    "run.precision=fp32",
    "run.compile=false",
    "optim.muon=[]",
    "optim.lr=1e-4",
    "optim.warmup=1",
]


@dataclass
class Pair:
    """Two functions that each do an update and return its loss, and what both yield, by unit."""

    name: str
    ours: Callable[[], float]
    plain: Callable[[], float]
    amounts: dict[str, float]
    tolerance: float = 1e-4


class Updates:
    """The model of `scenes` from the same random weights, with an image tokenizer of some `size`, trained on the same
    scenes, in batches of one form."""

    def __init__(self, batch: int, *words: str, images: str = "codes", size: str = "scenes"):
        fixed = [TEXT_TOKENIZER, *PLAIN, f"run.batch_size={batch}", f"model.image_tokenizer=new:{size}"]
        config = load_config(TrainConfig, RECIPE, [*fixed, *words])
        device = pick_device(config.run)
        torch.manual_seed(0)
        model, self.processor, _ = build_model(config.model)
        prepare(model, config, device)
        self.engine, self.config = TorchEngine(model, config, device), config
        self.samples = sequences(self.processor, model, batch, images)

    def tokens(self) -> int:
        return sum(len(sample.ids) for sample in self.samples)

    def update(self) -> float:
        batch = self.processor.collate(
            self.samples, self.engine.image_tokenizer, pack=self.config.data.pack, multiple=PADDED_TO
        )
        return train_step(self.engine, [batch], self.config)()["loss"]


def sequences(processor, model: Mllm, count: int, images: str) -> list[Sample]:
    """Drawings and answers as the recipe mixes them, with images as `codes` or `pixels`."""
    world, mix, rng, made = World("shapes"), MixConfig(draw=0.7, answer=0.3), Random(0), []
    sizes = model.image_tokenizer.config
    for number in range(count):
        scene = world.scene(scene_seed("train", number), "train")
        pixels_3HW = to_pixels(world.render(scene), sizes.image_size, sizes.resize_ratio, sizes.interpolation)
        image = pixels_3HW if images == "pixels" else model.image_tokenizer.encode([pixels_3HW])[0]
        make = drawing_sample if number % 10 < 10 * mix.draw else answering_sample
        made.append(make(processor, scene, image, mix, rng))
    return made


def pairs(batch: int) -> list[Callable[[], Pair]]:
    """What makes each comparison: one at a time, as models take memory. Raises ValueError, when made, for a pair with
    different losses."""
    return [lambda make=make: checked(make(batch)) for make in (packed, codes, labelled, compiled)]


def packed(batch: int) -> Pair:
    ours, plain = Updates(batch, f"data.pack={PACK}", f"data.max_length={PACK}"), Updates(batch)
    return Pair(f"packed / padded, batch {batch}", ours.update, plain.update, {"real tokens/s": ours.tokens()})


def codes(batch: int) -> Pair:
    ours, plain = (Updates(batch, images=images, size=RELEASED) for images in ("codes", "pixels"))
    return Pair(f"codes / pixels of {RELEASED}, batch {batch}", ours.update, plain.update, {"samples/s": batch})


def labelled(batch: int) -> Pair:
    words = [f"model.backbone.vocab_size={LARGE_VOCABULARY}"]
    ours, plain = Updates(batch, *words), Updates(batch, *words)

    def everywhere() -> float:
        with logits_everywhere():
            return plain.update()

    return Pair(f"logits at labels / everywhere, batch {batch}", ours.update, everywhere, {"samples/s": batch})


def compiled(batch: int) -> Pair:
    ours, plain = Updates(batch, "run.compile=true", "run.precision=bf16"), Updates(batch)
    return Pair(f"compiled bf16 / eager fp32, batch {batch}", ours.update, plain.update, {"samples/s": batch}, 2e-2)


def checked(pair: Pair, steps: int = 3) -> Pair:
    """Warm both up, and compare the first losses."""
    for step in range(steps):
        ours, plain = pair.ours(), pair.plain()
        if abs(ours - plain) > pair.tolerance * plain:
            raise ValueError(f"{pair.name}: different losses at step {step + 1}: {ours} and {plain}")
    return pair


@contextmanager
def logits_everywhere():
    """The output layer at all positions, as in most models' losses."""

    def text_losses(model: Mllm, h_BTD: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
        logits_BTS, labels = model.lm_head(h_BTD[:, :-1]).float(), labels_BT[:, 1:]
        losses_BT = F.cross_entropy(logits_BTS.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
        return losses_BT[labels != -100]

    with patch.object(Mllm, "text_losses", text_losses):
        yield


# ---- in processes of their own


def measure_logits(batch: int) -> dict[str, float]:
    """GB that three updates need at most with logits `at_labels` and `everywhere`."""
    return {how: float(told([sys.executable, "-m", __name__, how, str(batch)])) for how in ("at_labels", "everywhere")}


def measure_ranks(steps: int = 6) -> dict[str, dict[str, float]]:
    """Of `one` process, `two` with plain torch, and two with ZeRO's stages 0 and 3 (`zero0`, `zero3`), on the same
    updates: median tokens/s after the first update, and rank 0's peak memory in GB. Raises ValueError for other losses.
    """
    ways = {"one": (1, []), "two": (2, []), "zero0": (2, ["deepspeed.stage=0"]), "zero3": (2, ["deepspeed.stage=3"])}
    with tempfile.TemporaryDirectory() as folder:
        runs = {way: ranks_run(Path(folder), way, steps, *options) for way, options in ways.items()}
    expected = [row["loss"] for row in runs["one"]]
    for way, rows in runs.items():
        wrong = [row["step"] for row, loss in zip(rows, expected, strict=True) if abs(row["loss"] - loss) > 1e-4 * loss]
        if wrong:
            raise ValueError(f"{way}: another loss than one process at step {wrong[0]}")
    return {
        way: {
            "tokens_per_s": sorted(row["tokens_per_s"] for row in rows[1:])[len(rows) // 2],
            "memory_gb": rows[-1]["memory_gb"],
        }
        for way, rows in runs.items()
    }


def ranks_run(folder: Path, name: str, steps: int, ranks: int, words: Sequence[str]) -> list[dict[str, float]]:
    """The rows that the debug recipe logs with a backbone that is large enough to measure."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks), "-m"]
    backbone = "{hidden_size: 768, intermediate_size: 2048, num_hidden_layers: 6, num_attention_heads: 12}"
    size = [f"model.backbone={backbone}", "run.global_batch_size=8", f"run.batch_size={8 // ranks}"]
    where = [f"run.folder={folder}", f"run.name={name}", f"run.steps={steps}", f"run.save_every={steps}"]
    told([*command, "scripts.train", str(RANKS_RECIPE), *where, *size, "run.sample_every=0", *words])
    return [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]


def told(command: list[str]) -> str:
    """The last line of a command's output. Raises ValueError with its last line of errors."""
    exact = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed is given back: peaks are of use
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, env=exact)
    if run.returncode:
        lines = run.stderr.strip().splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        raise ValueError((errors or lines or [f"{command[-1]} ended with status {run.returncode}"])[-1])
    return run.stdout.strip().splitlines()[-1]


if __name__ == "__main__":
    updates = Updates(int(sys.argv[2]), f"model.backbone.vocab_size={LARGE_VOCABULARY}")
    before = peak_gb()
    if sys.argv[1] == "everywhere":
        with logits_everywhere():
            [updates.update() for _ in range(3)]
    else:
        [updates.update() for _ in range(3)]
    print(peak_gb() - before)
