"""Variants of an image tokenizer or a language model, trained with equal budgets and seeds, each measured in the same
way.

Each run is one process, some of them side by side. Language models are measured by what they draw (`DrawingRun`), image
tokenizers on images: scenes that no run has seen, or crops of them (rFID over EfficientNet-Lite0's features, PSNR,
ST-LPIPS, zero-shot class accuracy), and scikit-image's photographs (PSNR). Where the file names a recipe as `language`,
that language model learns to draw with the codes of each: nats an image, of its last quarter, tell how hard they are to
predict.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from data_recipes.files import whole, write_json
from data_recipes.images import Scenes
from data_recipes.scenes.world import CLASSES
from mllm import Mllm, Processor, generate_images
from tokenizer import ImageTokenizerConfig
from training.run.recipe import AblationConfig, TokenizerTrainConfig, TrainConfig, load_config

from ..pieces import digest
from ..threads import choose_threads
from .detail import KINDS

PHOTOS = ("astronaut", "chelsea", "coffee", "coins", "ihc", "motorcycle_left", "retina", "rocket", "hubble_deep_field")
PERTURBED = 0.1  # the share of codes that pFID exchanges
UNSEEN = 1_000_003  # a seed of the scenes' order that no run has
SHOWN = {
    "rfid_efficientnet_lite0": "rFID",
    "pfid_efficientnet_lite0": "pFID",
    "psnr": "PSNR",
    "st_lpips": "ST-LPIPS",
    "photo_psnr": "PSNR, photographs",
    "text": "characters read",
    "faces": "faces told apart",
    "top_1": "zero-shot",
    "backbone_steps": "steps an image",
    "seconds_1": "seconds an image",
    "seconds_8": "seconds an image, 8 at once",
    "nats": "nats an image",
    "rules": "GenEval's rules",
}
TIMED = 12  # updates that tell how long one takes
TIMES = 5  # of drawing, for a median


@dataclass(frozen=True)
class Run:
    """One variant with one seed, in a folder of its own."""

    variant: str
    seed: int
    recipe: str
    changes: tuple[str, ...]
    steps: int
    out: Path
    jobs: int

    @property
    def folder(self) -> Path:
        return self.out / re.sub(r"\W+", "_", f"{self.variant} {self.seed}")

    @property
    def model(self) -> Path:
        return self.folder / "run" / f"step_{self.steps:06d}" / "model"

    def train(self) -> None:
        names = [f"run.folder={self.folder}", "run.name=run", f"run.seed={self.seed}"]
        call(self, "train_tokenizer", self.recipe, *self.changes, *names)

    def measure(self, text_tokenizer: str | None, language: str | None) -> dict[str, float]:
        """On what `prepare` wrote; zero-shot accuracy with a text tokenizer only, nats with a `language` recipe."""
        data = self.out / "data"
        on_crops = self.score("reconstruction", str(data / "crops"), "--perturbed", str(PERTURBED), "--detail")
        on_photos = self.score("reconstruction", str(data / "photos"))
        scores = {
            name: on_crops[name]
            for name in ("rfid_efficientnet_lite0", "pfid_efficientnet_lite0", "psnr", "ssim", "st_lpips")
        }
        scores |= {name: on_crops[name]["mean"] for name in ("usage", *KINDS)}
        scores |= {"photo_psnr": on_photos["psnr"], "photo_ssim": on_photos["ssim"]}
        if text_tokenizer:
            options = ["--classes", str(data / "classes.txt"), "--text-tokenizer", text_tokenizer]
            scores |= self.score("zero_shot", str(data / "crops"), *options)
        return scores | ({"nats": self.nats(language)} if language else {})

    def nats(self, recipe: str) -> float:
        """An image's, of a language model that learns to draw."""
        names = [f"run.folder={self.folder}", "run.name=language", f"model.image_tokenizer={self.model}"]
        call(self, "train", recipe, *names)
        sizes = ImageTokenizerConfig(**json.loads((self.model / "config.json").read_text(encoding="utf-8")))
        return nats_an_image(self.folder / "language", sizes)

    def score(self, kind: str, data: str, *options: str) -> dict[str, Any]:
        out = self.folder / f"{kind}_{Path(data).name}"
        call(self, f"eval_{kind}", data, "--model", str(self.model), "--out", str(out), *options)
        return json.loads((out / "results.json").read_text())["scores"]


@dataclass(frozen=True)
class DrawingRun(Run):
    """A language model that learns to draw, for so many `minutes` (0: `steps`)."""

    minutes: float = 0.0

    @property
    def model(self) -> Path:
        return self.folder / "run" / f"step_{self.planned():06d}" / "model"

    def planned(self) -> int:
        """How many updates it does: as many as fit into its minutes, by the time of the first ones."""
        if not self.minutes:
            return self.steps
        return max(1, round(60 * self.minutes / median(b - a for a, b in pairwise(self.ends()))))

    def ends(self) -> list[float]:
        """When each of the first updates ended, in seconds; of as many as have been timed."""
        log = self.folder / "timed" / "metrics.jsonl"
        rows = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
        return [json.loads(row)["seconds"] for row in rows]

    def train(self) -> None:
        """Raises KeyboardInterrupt where the first updates, which are timed, were told to stop."""
        if self.minutes and len(self.ends()) < TIMED:
            names = [f"run.folder={self.folder}", "run.name=timed", f"run.steps={TIMED}", f"run.seed={self.seed}"]
            call(self, "train", self.recipe, *self.changes, *names)
            if len(self.ends()) < TIMED:
                raise KeyboardInterrupt
        names = [f"run.folder={self.folder}", "run.name=run", f"run.seed={self.seed}", f"run.steps={self.planned()}"]
        call(self, "train", self.recipe, *self.changes, *names)

    def measure(self, prompts: int) -> dict[str, float]:
        """Steps of the backbone for an image, seconds for one and for eight at once, nats, and the share of drawings
        that GenEval's rules accept."""
        model, processor = Mllm.from_pretrained(self.model).eval(), Processor.from_pretrained(self.model)
        scores = {"backbone_steps": len(model.order.steps), "updates": self.planned()}
        scores |= {f"seconds_{count}": seconds_to_draw(model, processor, count) for count in (1, 8)}
        scores["nats"] = nats_an_image(self.folder / "run", model.config.image_tokenizer_config)
        out = self.folder / "drawing"
        options = ["--parts", "drawing", "--limit", str(prompts), "--images-per-prompt", "1", "--out", str(out)]
        call(self, "eval_scenes", "--model", str(self.model), *options)
        judged = json.loads((out / "results.json").read_text(encoding="utf-8"))["parts"]["drawing"]["scores"]
        return scores | {"rules": judged["model"]["overall"]}


def seconds_to_draw(model: Mllm, processor: Processor, count: int) -> float:
    """For so many images at once, each; the median of a few."""
    times = []
    for _ in range(1 + TIMES):  # the first makes kernels
        start = time.perf_counter()
        generate_images(model, processor, ["a photo of a dog"] * count)
        times.append((time.perf_counter() - start) / count)
    return median(times[1:])


def nats_an_image(run: Path, sizes: ImageTokenizerConfig) -> float:
    """Mean of the last quarter of a run's updates. Where all its samples are new to it, its training loss is one on
    unseen images."""
    rows = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [json.loads(row)["code_loss"] for row in rows[-max(1, len(rows) // 4) :]]
    return mean(losses) * sizes.num_positions * sizes.num_codebooks


def call(run: Run, script: str, *words: str) -> None:
    """Run a script of ours, its output in `log.txt`. Raises ValueError with its last line when it fails."""
    folder, environment = run.folder, {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    choose_threads(environment, run.jobs)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log.txt", "a", encoding="utf-8") as log:
        command = [sys.executable, "-m", f"scripts.{script}", *words]
        status = subprocess.run(command, stdout=log, stderr=log, env=environment).returncode
    if status:
        last = (folder / "log.txt").read_text(encoding="utf-8").strip().splitlines()[-1:]
        raise ValueError(f"scripts.{script} ended with status {status}, see {folder / 'log.txt'}: {' '.join(last)}")


def prepare(folder: Path, crops: int, size: int) -> None:
    """What every variant is measured on: photographs, and crops of scenes in a folder for each class."""
    import skimage

    (folder / "photos").mkdir(parents=True, exist_ok=True)
    source = Path(skimage.__file__).parent / "data"
    for file in sorted(file for file in source.iterdir() if file.stem in PHOTOS):
        shutil.copy(file, folder / "photos" / file.name)
    images = Scenes(crop=size, skill="single_object")
    order = images.order(UNSEEN)
    for number in range(crops):
        image = images[order[number]]
        (folder / "crops" / image.label).mkdir(parents=True, exist_ok=True)
        image.image.save(folder / "crops" / image.label / f"{number:04d}.png")
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")


def complete(run: Run, measure: partial[dict[str, float]]) -> dict[str, float]:
    """Scores of one run by `measure`, or from its file where it was done before. Scores of other settings, or of fewer
    columns, lie in another file, so that no table mixes them."""
    measured = run.recipe, run.changes, run.steps, measure.keywords, list(SHOWN)
    file = run.folder / f"scores_{digest(measured)}.json"
    if not file.is_file():
        run.train()
        if not run.model.is_dir():
            raise KeyboardInterrupt  # the training was told to stop, and saved
        write_json(file, measure(run))
    return json.loads(file.read_text())


def averages(runs: Sequence[Run], scores: Sequence[dict[str, float]]) -> dict[str, dict[str, list[float]]]:
    """{variant: {score: mean, least, largest over its seeds}}."""
    table: dict[str, dict[str, list[float]]] = {}
    for variant in dict.fromkeys(run.variant for run in runs):
        rows = [row for run, row in zip(runs, scores, strict=True) if run.variant == variant]
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        table[variant] = {name: [mean(column), min(column), max(column)] for name, column in columns.items()}
    return table


def plot(table: dict[str, dict[str, list[float]]], file: Path) -> None:
    """A panel for each score, a point for each variant, with the range over seeds."""
    shown = titles(table)
    figure = Figure(figsize=(3.2 * len(shown), 3.4), layout="constrained")
    for place, (name, title) in enumerate(shown.items(), start=1):
        axes = figure.add_subplot(1, len(shown), place, title=title)
        rows = {variant: scores[name] for variant, scores in table.items() if name in scores}
        means, lows, highs = zip(*rows.values(), strict=True)
        errors = [
            [m - low for m, low in zip(means, lows, strict=True)],
            [h - m for m, h in zip(means, highs, strict=True)],
        ]
        axes.errorbar(range(len(rows)), means, errors, fmt="o", capsize=4)
        axes.set_xticks(range(len(rows)), [variant.replace(", ", "\n") for variant in rows], rotation=60, fontsize=8)
        axes.grid(alpha=0.3)
    with whole(file) as part:
        figure.savefig(part, format="png", dpi=80)


def show(table: dict[str, dict[str, list[float]]]) -> None:
    shown = titles(table)
    view = Table("variant", *shown.values())
    for variant, scores in table.items():
        view.add_row(variant, *(f"{scores[name][0]:.4g}" if name in scores else "" for name in shown))
    Console().print(view)


def titles(table: dict[str, dict[str, list[float]]]) -> dict[str, str]:
    """Of the scores that some variant has."""
    return {name: title for name, title in SHOWN.items() if any(name in scores for scores in table.values())}


def ablate(recipe: str, overrides: Sequence[str], out: Path, jobs: int) -> dict[str, Any]:
    """-> what a results file holds. A second call goes on. Raises ValueError where a run fails, and KeyboardInterrupt
    where one was told to stop."""
    ablation = load_config(AblationConfig, recipe)
    draws = ablation.kind == "language_model"
    runs, configs = [], []
    for seed in ablation.seeds:
        for variant, changes in ablation.variants.items():
            changed = (*changes, *overrides)
            configs.append(load_config(TrainConfig if draws else TokenizerTrainConfig, ablation.base, changed))
            of_run = variant, seed, ablation.base, changed, configs[-1].run.steps, out, jobs
            runs.append(DrawingRun(*of_run, ablation.minutes) if draws else Run(*of_run))
    if draws:
        measures = [partial(DrawingRun.measure, prompts=ablation.prompts)] * len(runs)
    else:
        prepare(out / "data", ablation.crops, configs[0].data.crop)
        texts = [config.text_tokenizer if config.losses.contrastive else None for config in configs]
        measures = [partial(Run.measure, text_tokenizer=text, language=ablation.language) for text in texts]
    scores: list[dict[str, float]] = []
    with ThreadPoolExecutor(jobs) as pool, Progress() as progress:
        task = progress.add_task("runs", total=len(runs))
        waiting = [pool.submit(complete, *pair) for pair in zip(runs, measures, strict=True)]
        try:
            for one in waiting:
                scores.append(one.result())
                progress.advance(task)
        finally:
            pool.shutdown(cancel_futures=True)
    each = [{"variant": run.variant, "seed": run.seed, **row} for run, row in zip(runs, scores, strict=True)]
    settings = {"recipe": recipe, "overrides": overrides, **asdict(ablation)}
    return {"settings": settings, "variants": averages(runs, scores), "runs": each}
