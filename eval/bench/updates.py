"""An update of the language model: what makes it fast or small, each beside doing without. The losses are equal."""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median
from unittest.mock import patch

import torch
import torch.nn.functional as F

from data_recipes.scenes.world import World
from mllm import Mllm
from mllm.text.templates import IGNORED, Sample
from tokenizer.transform import to_pixels
from training.data.mixture import divide
from training.data.scene_samples import answering_sample, drawing_sample, scene_seed
from training.lm.train import PADDED_TO, build_model, prepare
from training.lm.update import train_step
from training.run.backends import TorchEngine
from training.run.device import pick_device
from training.run.metrics import peak_memory
from training.run.recipe import MixConfig, TrainConfig, load_config

from . import Options
from .figures import Figure, compare, last_line, seconds, spread
from .roofline import throughput, update_operations

ROOT = Path(__file__).resolve().parents[2]
RECIPE, RANKS_RECIPE = ROOT / "training" / "stages" / "mixed.yaml", ROOT / "data_recipes" / "debug.yaml"
PACK = 384  # positions of a row: several samples, the longest of them with one or two more
RELEASED = "unitok-base"  # image tokenizers for photographs; that of `scenes` is too small to matter here
LARGE_VOCABULARY = 32_000  # of most pretrained backbones
WIDTH = 768  # of the backbone that several processes train
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**22)}  # what is freed is given back, so that peaks are of what is used
TEXT_TOKENIZER = f"model.text_tokenizer={ROOT}/checkpoints/scenes/text_tokenizer"
TARGETS = "[q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]"
SMOLLM2 = [  # as large as SmolLM2-135M, as `instruct.yaml` trains it
    "model.backbone={hidden_size: 576, intermediate_size: 1536, num_hidden_layers: 30, num_attention_heads: 9, "
    "num_key_value_heads: 3, vocab_size: 49156}",
    f"model.lora={{rank: 32, alpha: 64, targets: {TARGETS}}}",
    "model.trainable=[code_embed, code_head]",
    "run.accumulate=1",
]
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
    scenes in one form: an update is the recipe's, of `accumulate` batches."""

    def __init__(self, batch: int, *words: str, images: str = "codes", size: str = "scenes"):
        fixed = [TEXT_TOKENIZER, *PLAIN, f"run.batch_size={batch}", f"model.image_tokenizer=new:{size}"]
        config = load_config(TrainConfig, RECIPE, [*fixed, *words])
        device = pick_device(config.run)
        torch.manual_seed(0)
        model, self.processor, _ = build_model(config.model)
        prepare(model, config, device)
        self.engine, self.config = TorchEngine(model, config, device), config
        mix = config.data.sources["scenes"].scenes
        self.samples = sequences(self.processor, model, mix, batch * config.run.accumulate, images)

    def tokens(self) -> int:
        return sum(len(sample.ids) for sample in self.samples)

    def update(self) -> float:
        run, pack = self.config.run, self.config.data.pack
        batches = [
            self.processor.collate(part, self.engine.image_tokenizer, pack=pack, multiple=PADDED_TO)
            for part in divide(self.samples, run.batch_size, run.accumulate, pack)
        ]
        return train_step(self.engine, batches, self.config)()["loss"]


def sequences(processor, model: Mllm, mix: MixConfig, count: int, images: str) -> list[Sample]:
    """Drawings and answers as a recipe mixes them, with images as `codes` or `pixels`."""
    world, rng, made = World("shapes"), Random(0), []
    sizes = model.image_tokenizer.config
    for number in range(count):
        scene = world.scene(scene_seed("train", number), "train")
        pixels_3HW = to_pixels(world.render(scene), sizes.image_size, sizes.resize_ratio, sizes.interpolation)
        image = pixels_3HW if images == "pixels" else model.image_tokenizer.encode([pixels_3HW])[0]
        make = drawing_sample if number % 10 < 10 * mix.draw else answering_sample
        made.append(make(processor, scene, image, mix, rng))
    return made


def bench_update(options: Options, batch: int) -> list[Figure]:
    if options.shape not in (None, "scenes"):
        raise ValueError(f"--shape {options.shape}: update is of a new model as large as that of scenes alone")
    figures: list[Figure] = []
    for make in pairs(batch):
        pair = make()
        figures += compare(pair.name, pair.ours, pair.plain, pair.amounts, options.repeats)
    figures.append(adapted(batch, options.repeats))
    logits, speed, memory = measure_logits(batch), measure_ranks(), measure_zero()
    for name, unit, ours, baseline, ratio in [
        ("logits at labels / everywhere", "GB", (o := logits["at_labels"]), (b := logits["everywhere"]), b / o),
        ("two processes / one", "tokens/s", (o := speed["two"]), (b := speed["one"]), o / b),
        ("ZeRO-3 / ZeRO-0, each of two processes", "GB", (o := memory["zero3"]), (b := memory["zero0"]), b / o),
    ]:
        figures.append(Figure(name, ours, unit, baseline, ratio, 0.0, 0.0))
    return figures


def pairs(batch: int) -> list[Callable[[], Pair]]:
    """What makes each comparison: one at a time, as models take memory. Raises ValueError, when made, for a pair with
    different losses."""
    return [lambda make=make: checked(make(batch)) for make in (packed, unsorted, codes, labelled, compiled)]


def packed(batch: int, *words: str, name: str = "packed / padded") -> Pair:
    """Micro-batches as in training: the padded ones hold samples of about the same length."""
    ours, plain = Updates(batch, f"data.pack={PACK}", f"data.max_length={PACK}", *words), Updates(batch, *words)
    return Pair(f"{name}, batch {batch}", ours.update, plain.update, {"real tokens/s": ours.tokens()})


def unsorted(batch: int) -> Pair:
    """One micro-batch has all lengths, as any has without `accumulate`."""
    return packed(batch, "run.accumulate=1", name="packed / padded, all lengths")


def codes(batch: int) -> Pair:
    ours, plain = (Updates(batch, images=images, size=RELEASED) for images in ("codes", "pixels"))
    name = f"codes / pixels of {RELEASED}, batch {batch}"
    return Pair(name, ours.update, plain.update, {"samples/s": len(ours.samples)})


def labelled(batch: int) -> Pair:
    words = [f"model.backbone.vocab_size={LARGE_VOCABULARY}"]
    ours, plain = Updates(batch, *words), Updates(batch, *words)

    def everywhere() -> float:
        with logits_everywhere():
            return plain.update()

    name = f"logits at labels / everywhere, batch {batch}"
    return Pair(name, ours.update, everywhere, {"samples/s": len(ours.samples)})


def compiled(batch: int) -> Pair:
    ours, plain = Updates(batch, "run.compile=true", "run.precision=bf16"), Updates(batch)
    name = f"compiled bf16 / eager fp32, batch {batch}"
    return Pair(name, ours.update, plain.update, {"samples/s": len(ours.samples)}, 2e-2)


def adapted(batch: int, repeats: int) -> Figure:
    """The share of the machine's bfloat16 matrix throughput that an update with adapters reaches."""
    ours = Updates(batch, *SMOLLM2, "run.compile=true", "run.precision=bf16")
    for _ in range(2):
        ours.update()
    times = [seconds(ours.update) for _ in range(repeats)]
    model, positions = ours.engine.model, ours.engine.image_tokenizer.config.num_positions
    words_to_write = sum(label != IGNORED for sample in ours.samples for label in sample.labels)
    codes = positions * sum(flag for sample in ours.samples for flag in sample.is_target)
    operations = update_operations(model, [len(sample.ids) for sample in ours.samples], words_to_write, codes)
    reached, peak = operations / 1e9 / median(times), throughput(dtype=torch.bfloat16)
    name = f"update with adapters, {len(ours.samples) / median(times):.2g} samples/s, of bfloat16 matrix throughput"
    return Figure(f"{name}, batch {batch}", reached, "GFLOP/s", peak, reached / peak, spread(times), 0.0)


def checked(pair: Pair, steps: int = 2) -> Pair:
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
    """GB that an update needs at most with logits `at_labels` and `everywhere`."""
    return {
        how: float(last_line([sys.executable, "-m", __name__, how, str(batch)], {**os.environ, **GIVES_BACK}))
        for how in ("at_labels", "everywhere")
    }


def measure_ranks() -> dict[str, float]:
    """Median tokens/s after the first update, of `one` process and of `two` with plain torch. Raises ValueError for
    other losses."""
    runs = {way: logged(ranks, layers=4, samples=8, steps=4) for way, ranks in (("one", 1), ("two", 2))}
    check_losses(runs)
    return {way: median(row["tokens_per_s"] for row in rows[1:]) for way, rows in runs.items()}


def measure_zero() -> dict[str, float]:
    """Peak GB of rank 0 of two, programs included, with ZeRO's stages 0 and 3 (`zero0`, `zero3`). Raises ValueError for
    other losses."""
    ways = {f"zero{stage}": [f"deepspeed.stage={stage}"] for stage in (0, 3)}
    runs = {way: logged(2, 12, 2, 2, words, GIVES_BACK) for way, words in ways.items()}
    check_losses(runs)
    return {way: rows[-1]["memory_gb"] for way, rows in runs.items()}


def logged(
    ranks: int, layers: int, samples: int, steps: int, words: Sequence[str] = (), environment: Mapping[str, str] = {}
) -> list[dict[str, float]]:
    """The rows that the debug recipe logs with so many ranks, and with a backbone that is large enough to measure."""
    sizes = f"hidden_size: {WIDTH}, intermediate_size: {8 * WIDTH // 3}, num_attention_heads: {WIDTH // 64}"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    with tempfile.TemporaryDirectory() as folder:
        fixed = [f"run.folder={folder}", f"run.steps={steps}", f"run.save_every={steps}", "run.sample_every=0"]
        batch = [f"run.global_batch_size={samples}", f"run.batch_size={samples // ranks}"]
        model = f"model.backbone={{{sizes}, num_hidden_layers: {layers}}}"
        command += ["-m", "scripts.train", str(RANKS_RECIPE), *fixed, *batch, model, *words]
        last_line(command, {**os.environ, **environment})
        return [json.loads(line) for line in (Path(folder) / "debug" / "metrics.jsonl").read_text().splitlines()]


def check_losses(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Raises ValueError where they are not those of the first run."""
    first, *others = runs
    for way in others:
        for ours, expected in zip(runs[way], runs[first], strict=True):
            if abs(ours["loss"] - expected["loss"]) > 1e-4 * expected["loss"]:
                raise ValueError(f"{way}: not the loss of {first} at step {ours['step']}")


if __name__ == "__main__":
    updates = Updates(int(sys.argv[2]), f"model.backbone.vocab_size={LARGE_VOCABULARY}")
    before = peak_memory(torch.device("cpu"))
    with logits_everywhere() if sys.argv[1] == "everywhere" else nullcontext():
        for _ in range(2):  # the first makes the optimizer's state
            updates.update()
    print((peak_memory(torch.device("cpu")) - before) / 2**30)
