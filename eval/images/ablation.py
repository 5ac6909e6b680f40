"""Variants of an image tokenizer, trained with equal budgets and seeds, each measured on the same images.

Each run is one process, some of them side by side. Images are scenes that no run has seen, or crops of them (rFID over
EfficientNet-Lite0's features, PSNR, ST-LPIPS, zero-shot class accuracy), and scikit-image's photographs (PSNR). Where
the file names a recipe as `language`, that language model learns to draw with the codes of each: nats an image, of its
last quarter, tell how hard they are to predict.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from data_recipes.files import whole, write_json
from data_recipes.images import Scenes
from data_recipes.scenes.world import CLASSES
from tokenizer import ImageTokenizerConfig
from training.run.recipe import AblationConfig, TokenizerTrainConfig, load_config

from ..threads import choose_threads

PHOTOS = ("astronaut", "chelsea", "coffee", "coins", "ihc", "motorcycle_left", "retina", "rocket", "hubble_deep_field")
PERTURBED = 0.1  # the share of codes that pFID exchanges
UNSEEN = 1_000_003  # a seed of the scenes' order that no run has
SHOWN = {
    "rfid_efficientnet_lite0": "rFID",
    "pfid_efficientnet_lite0": "pFID",
    "psnr": "PSNR",
    "st_lpips": "ST-LPIPS",
    "photo_psnr": "PSNR, photographs",
    "top_1": "zero-shot",
    "nats": "nats an image",
}


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

    def measure(self, data: Path, text_tokenizer: str | None, language: str | None) -> dict[str, float]:
        """On what `prepare` wrote; zero-shot accuracy with a text tokenizer only, nats with a `language` recipe."""
        on_crops = self.score("reconstruction", str(data / "crops"), "--perturbed", str(PERTURBED))
        on_photos = self.score("reconstruction", str(data / "photos"))
        scores = {
            name: on_crops[name]
            for name in ("rfid_efficientnet_lite0", "pfid_efficientnet_lite0", "psnr", "ssim", "st_lpips")
        }
        scores |= {"usage": on_crops["usage"]["mean"], "photo_psnr": on_photos["psnr"], "photo_ssim": on_photos["ssim"]}
        if text_tokenizer:
            options = ["--classes", str(data / "classes.txt"), "--text-tokenizer", text_tokenizer]
            scores |= self.score("zero_shot", str(data / "crops"), *options)
        return scores | ({"nats": self.nats(language)} if language else {})

    def nats(self, recipe: str) -> float:
        """An image's, mean of the last quarter of the updates of a language model that learns to draw. All its samples
        are new to it, so its training loss is one on unseen images."""
        names = [f"run.folder={self.folder}", "run.name=language", f"model.image_tokenizer={self.model}"]
        call(self, "train", recipe, *names)
        rows = (self.folder / "language" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        losses = [json.loads(row)["code_loss"] for row in rows[-max(1, len(rows) // 4) :]]
        sizes = ImageTokenizerConfig(**json.loads((self.model / "config.json").read_text(encoding="utf-8")))
        return mean(losses) * sizes.num_positions * sizes.num_codebooks

    def score(self, kind: str, data: str, *options: str) -> dict[str, Any]:
        out = self.folder / f"{kind}_{Path(data).name}"
        call(self, f"eval_{kind}", data, "--model", str(self.model), "--out", str(out), *options)
        return json.loads((out / "results.json").read_text())["scores"]


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


def complete(run: Run, data: Path, text_tokenizer: str | None, language: str | None) -> dict[str, float]:
    """Scores of one run, from its file where it was done before."""
    file = run.folder / "scores.json"
    if not file.is_file():
        run.train()
        if not run.model.is_dir():
            raise KeyboardInterrupt  # the training was told to stop, and saved
        write_json(file, run.measure(data, text_tokenizer, language))
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
    shown = {name: title for name, title in SHOWN.items() if any(name in scores for scores in table.values())}
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
    view = Table("variant", *SHOWN.values())
    for variant, scores in table.items():
        view.add_row(variant, *(f"{scores[name][0]:.4g}" if name in scores else "" for name in SHOWN))
    Console().print(view)


def ablate(recipe: str, overrides: Sequence[str], out: Path, jobs: int) -> dict[str, Any]:
    """-> what a results file holds. A second call goes on. Raises ValueError where a run fails, and KeyboardInterrupt
    where one was told to stop."""
    ablation = load_config(AblationConfig, recipe)
    runs, configs = [], []
    for seed in ablation.seeds:
        for variant, changes in ablation.variants.items():
            changed = (*changes, *overrides)
            configs.append(load_config(TokenizerTrainConfig, ablation.base, changed))
            runs.append(Run(variant, seed, ablation.base, changed, configs[-1].run.steps, out, jobs))
    prepare(out / "data", ablation.crops, configs[0].data.crop)
    scores: list[dict[str, float]] = []
    with ThreadPoolExecutor(jobs) as pool, Progress() as progress:
        task = progress.add_task("runs", total=len(runs))
        waiting = [
            pool.submit(
                complete,
                run,
                out / "data",
                config.text_tokenizer if config.losses.contrastive else None,
                ablation.language,
            )
            for run, config in zip(runs, configs, strict=True)
        ]
        try:
            for one in waiting:
                scores.append(one.result())
                progress.advance(task)
        finally:
            pool.shutdown(cancel_futures=True)
    each = [{"variant": run.variant, "seed": run.seed, **row} for run, row in zip(runs, scores, strict=True)]
    settings = {"recipe": recipe, "overrides": overrides, "seeds": ablation.seeds, "crops": ablation.crops}
    return {"settings": settings, "variants": averages(runs, scores), "runs": each}
