"""One page about one GPU: drawing, answering and training beside what this GPU's memory and matrix units do in the same
run. What fails in one part, such as for lack of memory, is named and leaves the other parts.

Shapes: B images at once, K sub-codebooks, P positions, D width.
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

from mllm import Mllm, Processor
from mllm.decode.batch import Batch
from mllm.decode.program import Track
from mllm.decode.run import run_tracks, sample_codes
from mllm.device import advice
from mllm.text.templates import IGNORED, Sample
from tokenizer import SIZES, ImageTokenizer
from training.lm.train import PADDED_TO, compile_layers, prepare
from training.lm.update import train_step
from training.run.backends import TorchEngine
from training.run.device import pick_device
from training.run.metrics import peak_memory
from training.run.recipe import OptimConfig, RunConfig, TrainConfig

from .figures import seconds
from .generation import endless
from .models import model_config, question
from .reference import GUIDANCE, SAMPLING, reference_body, reference_draw, reference_pick
from .roofline import bandwidth, step_costs, throughput, update_operations


@dataclass(frozen=True)
class Size:
    """How much is measured: shapes to draw and to train with, an image tokenizer, batches, positions of the slow
    reference, tokens of an answer, samples of an update and length of packed rows, and bytes and side for the peaks."""

    draws: tuple[str, ...] = ("7b", "1b")
    trains: str = "1b"
    image_tokenizer: str = "unitok-large"
    batches: tuple[int, ...] = (1, 8, 32)
    positions: int = 256
    reference_positions: int = 16
    tokens: int = 64
    samples: int = 32
    pack: int = 2048
    memory: int = 2**32
    matrix: int = 8192
    repeats: int = 3


LARGE = Size()
TINY = Size(("tiny",), "tiny", "tiny", (1, 2), 4, 2, 4, 4, 1024, 2**24, 256, 1)  # runs all the code, on a CPU
MINUTES = 20


class Page:
    """Lines of Markdown, printed as they come."""

    def __init__(self, device: torch.device, size: Size):
        self.device, self.size, self.end = device, size, time.monotonic() + 60 * MINUTES
        self.bandwidth = 1e9 * bandwidth(size.memory, device)
        self.peak = 1e9 * throughput(size.matrix, torch.bfloat16, device)

    def head(self) -> None:
        name, about = "CPU", f"{torch.get_num_threads()} threads"
        if self.device.type == "cuda":
            told = torch.cuda.get_device_properties(self.device)
            name, about = told.name, f"{told.total_memory / 2**30:.0f} GB, CUDA {torch.version.cuda}"
        print(
            f"# {name}\n\n{about}, torch {torch.__version__}. In this run, its memory reads {self.bandwidth / 1e9:.0f} "
            f"GB/s, and bfloat16 matrices of {self.size.matrix} reach {self.peak / 1e12:.3g} TFLOP/s.\n",
            flush=True,
        )
        for line in advice(self.device):
            print(f"{line}\n", flush=True)

    def table(self, title: str, *columns: str) -> None:
        print(f"\n## {title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)

    def row(self, name: str, measure: Callable[[], Sequence[str]]) -> None:
        """A line of what is measured, and of the memory that it took; or why there is none."""
        if time.monotonic() > self.end:
            return print(f"| {name} | not measured: {MINUTES} minutes are over |", flush=True)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        try:
            cells = [*measure(), f"{peak_memory(self.device) / 2**30:.1f}"]
        except (RuntimeError, ValueError, NotImplementedError) as error:  # torch's OutOfMemoryError is the first
            cells = [f"not measured: {' '.join(str(error).split())[:160]}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)

    def time(self, run: Callable[[], Any]) -> float:
        """Median seconds of a run, after one to warm up."""
        run()
        return median(seconds(run) for _ in range(self.size.repeats))

    def bound(self, bytes: float, operations: float) -> float:
        """Seconds that this GPU takes at least."""
        return max(bytes / self.bandwidth, operations / self.peak)


def print_page(shape: str | None, device: str) -> None:
    """Raises ValueError for a device that is not there, and for a `shape` other than "tiny" (None: the large ones)."""
    if shape not in (None, "tiny"):
        raise ValueError(f"unknown --shape {shape!r}; known for this command: tiny, or none for 7b and 1b")
    where = pick_device(RunConfig(name="bench", steps=1, device=device))
    if where.type == "cpu" and shape is None:
        raise ValueError("gpu: torch finds no GPU here; --device cpu --shape tiny runs the same code on a CPU")
    page = Page(where, TINY if shape else LARGE)
    page.head()
    for part in (
        *(lambda name=name: generation(page, name) for name in page.size.draws),
        lambda: training(page),
        lambda: image_tokenizer(page),
    ):
        part()
        gc.collect()
        if where.type == "cuda":
            torch.cuda.empty_cache()


def new_model(shape: str, device: torch.device, dtype: torch.dtype) -> tuple[Mllm, Processor]:
    """Random weights, made on the device: 7 billion take minutes on a CPU."""
    config, processor = model_config(shape, vocab_size=32_000 if shape != "tiny" else None)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return Mllm(config).eval(), processor
    finally:
        torch.set_default_dtype(before)


# ---- drawing and answering


@torch.no_grad()
def generation(page: Page, shape: str) -> None:
    page.table(
        f"Drawing, {shape}, bfloat16, random weights",
        "images at once",
        "seconds an image",
        "images/s",
        "multiple of the bound (goal 1.5)",
        "the reference's loop",
        "ratio",
        "GB",
    )
    made: list[tuple[Mllm, Processor]] = []

    def load() -> list[str]:
        made.append(new_model(shape, page.device, torch.bfloat16))
        return [f"{sum(p.numel() for p in made[0][0].parameters()) / 1e9:.2f} billion parameters", "", "", "", ""]

    page.row("loaded", load)
    if not made:
        return
    model, processor = made[0]
    processor.num_positions = page.size.positions
    for scale in (GUIDANCE, 1.0):
        for batch in page.size.batches:
            name = f"{batch}, {'with' if scale != 1 else 'without'} guidance"
            page.row(name, lambda batch=batch, scale=scale: draw(page, model, processor, batch, scale))
    page.table(f"Answering about an image, {shape}", "chats at once", "tokens/s", "multiple of the bound", "GB")
    for batch in page.size.batches:
        page.row(str(batch), lambda batch=batch: answer(page, model, processor, batch))


def draw(page: Page, model: Mllm, processor: Processor, batch: int, scale: float) -> list[str]:
    samples = [processor.encode_drawing(f"a photo of {row + 1} dogs") for row in range(batch)]
    rows, positions = batch * (1 + (scale != 1)), page.size.positions

    def ours() -> None:
        generators = [torch.Generator().manual_seed(row) for row in range(batch)]
        sample_codes(model, processor, samples, generators, cfg_scale=scale, **SAMPLING)

    took = page.time(ours)
    columns = sum(len(sample.ids) for sample in samples) * rows // batch + rows * positions // 2
    least = positions * page.bound(*step_costs(model, rows, columns, model.code_head))
    cells = [f"{took:.3f}", f"{batch / took:.2f}", f"{took / least:.2f}"]
    if scale == 1:  # the reference's loop always has guidance
        return [*cells, "", ""]
    with torch.device(model.device):
        body = reference_body(model.code_head)
    inputs = processor.collate(samples + [processor.encode_drawing(None)] * batch, left=True)
    prompts = inputs.input_ids.to(model.device), inputs.attention_mask.to(model.device)
    few, pick = page.size.reference_positions, reference_pick(**SAMPLING)
    theirs = positions / few * page.time(lambda: reference_draw(model, body, *prompts, few, pick))
    return [*cells, f"{theirs:.3f}", f"{theirs / took:.1f}"]


def answer(page: Page, model: Mllm, processor: Processor, batch: int) -> list[str]:
    samples, tokens = [processor.encode(question(model, row)) for row in range(batch)], page.size.tokens

    def ours() -> None:
        tracks = [Track(one, lambda _: endless(tokens), torch.Generator(), tokens) for one in samples]
        run_tracks(Batch(model, processor), tracks)

    took = page.time(ours)
    columns = sum(len(sample.ids) for sample in samples) + batch * tokens // 2
    least = tokens * page.bound(*step_costs(model, batch, columns, model.lm_head))
    return [f"{batch * tokens / took:.0f}", f"{took / least:.2f}"]


# ---- training


def training(page: Page) -> None:
    size = page.size
    page.table(
        f"An update of {size.trains}, bfloat16 and AdamW, {size.samples} images",
        "way",
        "tokens/s",
        "share of the matrix peak (goal 40 %)",
        "of it the code head",
        "GB",
    )
    made: list[tuple[TorchEngine, Processor]] = []

    def load() -> list[str]:
        model, processor = new_model(size.trains, page.device, torch.float32)
        run = RunConfig(name="bench", steps=1000, precision="bf16", batch_size=size.samples)
        config = TrainConfig(run=run, optim=OptimConfig(lr=1e-5, warmup=1))
        config.model.trainable = ["backbone", "lm_head", "code_embed", "code_head"]
        prepare(model, config, page.device)
        made.append((TorchEngine(model, config, page.device), processor))
        return ["", "", ""]

    page.row("loaded", load)
    if not made:
        return
    engine, processor = made[0]
    for compiled in (False, True):
        if compiled:
            compile_layers(engine.model)
        for pack in (0, size.pack):
            for share in (1.0, 0.25):
                name = f"{'packed' if pack else 'padded'}, code_share {share}{', compiled' * compiled}"
                page.row(name, lambda pack=pack, share=share: update(page, engine, processor, pack, share))


def update(page: Page, engine: TorchEngine, processor: Processor, pack: int, share: float) -> list[str]:
    engine.config.code_share = share
    samples = [training_sample(engine.model, processor, row) for row in range(page.size.samples)]
    batch = processor.collate(samples, pack=pack, multiple=PADDED_TO)
    took = page.time(lambda: train_step(engine, [batch], engine.config)())
    drawn = round(share * int(batch.is_target.sum()) * processor.num_positions)
    head = page.time(lambda: head_update(engine, drawn))
    lengths = [len(sample.ids) for sample in samples]
    done = update_operations(engine.model, lengths, int((batch.labels != IGNORED).sum()), drawn)
    return [f"{sum(lengths) / took:.0f}", f"{done / took / page.peak:.0%}", f"{head / took:.0%}"]


def training_sample(model: Mllm, processor: Processor, row: int) -> Sample:
    """A drawing, or a chat about an image, of different lengths."""
    chat = question(model, row)
    if row % 2:
        return processor.encode([*chat, {"role": "assistant", "content": "there are many. " * (1 + row)}], False)
    return processor.encode_drawing(f"a photo of {row} dogs", chat[0]["content"][0]["image"])


def head_update(engine: TorchEngine, drawn: int) -> None:
    """Forward and backward of the code head alone."""
    model = engine.model
    sizes = model.config.image_tokenizer_config
    h_PD = torch.randn(drawn, model.config.text_config.hidden_size, device=engine.device, requires_grad=True)
    codes_PK = torch.randint(sizes.codebook_size, (drawn, sizes.num_codebooks), device=engine.device)
    with torch.autocast(engine.device.type, torch.bfloat16):
        logits_PKV = model.code_head(h_PD, codes_PK).float()
    F.cross_entropy(logits_PKV.flatten(0, 1), codes_PK.flatten()).backward()
    model.zero_grad()


# ---- the image tokenizer


@torch.no_grad()
def image_tokenizer(page: Page) -> None:
    sizes = SIZES[page.size.image_tokenizer]
    page.table(f"Image tokenizer, {page.size.image_tokenizer}, float32", "images at once", "images/s", "GB")
    with torch.device(page.device):
        model = ImageTokenizer(sizes).eval()
    for batch in page.size.batches:
        pixels_N3HW = torch.rand(batch, 3, sizes.image_size, sizes.image_size, device=page.device) * 2 - 1
        shape_NLK = batch, sizes.num_positions, sizes.num_codebooks
        codes_NLK = torch.randint(sizes.codebook_size, shape_NLK, device=page.device)
        ways = {"encode": lambda x=pixels_N3HW: model.encode(x), "decode": lambda x=codes_NLK: model.decode_pixels(x)}
        for name, way in ways.items():
            page.row(f"{name}, {batch}", lambda way=way, batch=batch: [f"{batch / page.time(way):.1f}"])
