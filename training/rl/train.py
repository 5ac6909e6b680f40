"""The loop of learning from drawings: prompts, groups of drawings, rewards, and an update by a method, step by step."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from mllm import Mllm, Processor

from ..data.mixture import Mixture, MixtureUpdates
from ..lm.build import build_model
from ..lm.prompted import conversations, show_samples
from ..lm.start_log import parameter_lines
from ..lm.train import batches_of, prepare, read_by, restore, save, talk
from ..lm.update import train_step
from ..run.backends import TorchEngine, loading_in_parts, start_engine, start_engine_ranks
from ..run.checkpoint import latest_checkpoint
from ..run.device import allocator_lines, pick_device
from ..run.distributed import barrier, is_rank_zero, rank_and_world, stop_ranks
from ..run.folder import only_run
from ..run.metrics import Metrics, Problems, StopSignal, due, peak_memory
from ..run.optim import schedule, set_lr
from ..run.recipe import RlConfig
from .drawings import Group, draw_groups, drawing_seed
from .methods import METHODS
from .policy import PolicyMllm
from .prompts import Prompts
from .rewards import REWARDS, Judge, MakeReward
from .watch import LeftOut, Questions, group_means, same_rewards


def train_rl(config: RlConfig, rewards: Mapping[str, MakeReward] = REWARDS) -> Path:
    """Train, or resume, a recipe's run. `rewards` are all known kinds. Returns the last checkpoint's model."""
    disable_progress_bar()
    device = pick_device(config.run)
    _, world = start_engine_ranks(config, device)
    config.run.divide(world)
    with only_run(config) as checkpoint:
        run_steps(config, device, checkpoint, rewards)
        barrier()
    stop_ranks()
    return latest_checkpoint(config.run.path) / "model"


def run_steps(
    config: RlConfig, device: torch.device, checkpoint: Path | None, rewards: Mapping[str, MakeReward]
) -> None:
    """From the checkpoint, or the beginning, to the last step or a stop signal. Raises ValueError when the run should
    not go on: no signal, too many bad prompts, or understanding that falls."""
    run = config.run
    torch.manual_seed(run.seed)
    learner = Learner(config, device, checkpoint, rewards)
    metrics = Metrics(config, learner.done["step"]) if is_rank_zero() else None
    learner.ask_at_start()
    with StopSignal() as stop:
        for step in range(learner.done["step"] + 1, run.steps + 1):
            groups, report = learner.step(step)
            last = stop.anywhere() or step == run.steps
            if learner.questions and due(step, config.questions.every, run.steps):
                report["understanding"] = learner.ask()
            if metrics:
                metrics.log(step, report)
            check(config, groups, learner.done, report)
            if config.prompts and run.sample_every and due(step, run.sample_every, run.steps):
                show_samples(learner.engine, learner.processor, config.prompts, metrics, step)
            if last or step % run.save_every == 0:
                save(learner.engine, learner.processor, step, learner.done)
            if last:
                break
    if metrics:
        metrics.close()


class Learner:
    """What a step needs, and, in `done`, what is known after it: the `step`, how many prompts were `seen`, for how many
    steps no prompt carried a signal (`idle`), and `understanding` at the start."""

    def __init__(
        self, config: RlConfig, device: torch.device, checkpoint: Path | None, rewards: Mapping[str, MakeReward]
    ):
        if config.method not in METHODS:
            raise ValueError(f"recipe, method: unknown {config.method!r}; known: {', '.join(METHODS)}")
        self.config, self.device = config, device
        with loading_in_parts(config, device):
            model, self.processor, loaded = build_model(config.model, checkpoint, PolicyMllm)
        prepare(model, config, device)
        self.method = METHODS[config.method](config)
        self.start = model_at_start(config, device) if self.method.needs_start else None
        self.prompts = Prompts(config.draw, model, self.processor, config.run.seed, config.max_bad)
        self.judge = Judge(config.rewards, rewards, model, self.processor)
        self.ordinary = ordinary_updates(config, model, self.processor) if config.data.sources else None
        conversations(config.prompts)
        talk(parameter_lines(model, loaded), [f"prompts: {self.prompts.source.note}"], allocator_lines(device))
        self.engine = engine = start_engine(model, config, device)
        self.questions = Questions(config.questions, engine, self.processor) if config.questions else None
        begun = {"step": 0, "seen": 0, "idle": 0, "understanding": None}
        self.done = restore(engine, checkpoint) if checkpoint else begun
        self.problems, self.left_out = Problems(config.max_bad), LeftOut(config.run.path, self.done["step"])

    def ask_at_start(self) -> None:
        if self.questions and self.done["understanding"] is None:
            self.done["understanding"] = self.ask()
            talk([f"understanding at the start: {self.done['understanding']:.4g}, by {self.questions.count} questions"])

    def ask(self) -> float:
        with drawing_with(self.engine):
            return self.questions.ask(self.engine)

    def step(self, step: int) -> tuple[list[Group], dict[str, float]]:
        """Draw, judge and learn; `step` counts from 1. -> this rank's groups, and numbers of all ranks."""
        config, run, engine, (rank, world) = self.config, self.config.run, self.engine, rank_and_world()
        started = time.monotonic()
        with drawing_with(engine):
            micro_batches, bad = drawn_groups(engine, self.processor, self.prompts, self.done["seen"], config)
            drawn = time.monotonic()
            groups = [group for of_batch in micro_batches for group in of_batch]
            self.judge(groups)
        self.problems.add([*bad, *(group.problem for group in groups if group.problem)])
        self.left_out.add(step, groups)
        judged = time.monotonic()
        rates = set_lr(engine, schedule(step - 1, run.steps, config.optim))
        torch.manual_seed((run.seed * 1_000_003 + step) * 1009 + rank)  # a resumed run draws the same
        report = self.method.update(engine, self.processor, self.start, micro_batches) | self._ordinary(step)
        means = group_means(groups, config.rewards, engine.model.config.image_tokenizer["num_codebooks"])
        self.done["step"], self.done["seen"] = step, self.done["seen"] + world * run.accumulate * run.batch_size
        self.done["idle"] = self.done["idle"] + 1 if means["no_signal"] == 1 else 0
        seconds = time.monotonic() - started
        speed = {"drawings_per_s": world * len(groups) * config.group / seconds}
        speed |= {"share_of_drawing": (drawn - started) / seconds, "share_of_rewards": (judged - drawn) / seconds}
        return groups, {**means, **report, **rates, **speed, "memory_gb": peak_memory(self.device) / 2**30}

    def _ordinary(self, step: int) -> dict[str, float]:
        """An update with `data`, if there is any."""
        if not self.ordinary:
            return {}
        update = self.ordinary[step - 1]
        self.problems.add(update.problems, update.complete)
        batches = batches_of(update, self.processor, self.engine)
        return {"ordinary_loss": train_step(self.engine, batches, self.config)()["loss"]}


def model_at_start(config: RlConfig, device: torch.device) -> PolicyMllm:
    """The frozen model that the run began with. It reads codes only, so it has no image tokenizer."""
    start = PolicyMllm.from_pretrained(config.model.init_from).requires_grad_(False)
    start.image_tokenizer = torch.nn.Identity()
    start.set_attn_implementation("eager" if device.type == "cpu" else "sdpa")
    return start.eval().to(device)


@contextmanager
def drawing_with(engine: TorchEngine) -> Iterator[None]:
    """The model whole on every rank, to draw and to answer. All ranks must enter."""
    with engine.whole():
        engine.model.eval()
        yield
        engine.model.train()
        engine.image_tokenizer.eval()


def drawn_groups(
    engine: TorchEngine, processor: Processor, prompts: Prompts, seen: int, config: RlConfig
) -> tuple[list[list[Group]], list[str]]:
    """This rank's groups of a step, a list for each micro-batch, and what was wrong with prompts. A group depends on
    the seed and its position in the run alone, which counts over all ranks."""
    run, rank = config.run, rank_and_world()[0]
    first = seen + rank * run.accumulate * run.batch_size
    micro_batches, bad = [], []
    for start in range(first, first + run.accumulate * run.batch_size, run.batch_size):
        positions = range(start, start + run.batch_size)
        asked = [prompts.at(position) for position in positions]
        bad += [problem for *_, problems in asked for problem in problems]
        seeds = [[drawing_seed(run.seed, position, n) for n in range(config.group)] for position in positions]
        pairs = [(prompt, sample) for prompt, sample, _ in asked]
        micro_batches.append(draw_groups(engine.model, processor, pairs, seeds, config.drawing))
    return micro_batches, bad


def ordinary_updates(config: RlConfig, model: Mllm, processor: Processor) -> MixtureUpdates:
    """The updates of `data` that follow the steps, by number."""
    run, (rank, world) = config.run, rank_and_world()
    mixture = Mixture(config.data, processor, model.image_tokenizer, run.seed, **read_by(model))
    return MixtureUpdates(mixture, run.batch_size, run.accumulate, rank, world, run.steps)


def check(config: RlConfig, groups: list[Group], done: dict, report: dict[str, float]) -> None:
    """Raises ValueError, on all ranks, for a run that learns nothing, and for one that forgets."""
    newest = latest_checkpoint(config.run.path)
    kept = f"; {newest} is the last checkpoint" if newest else ""
    if done["idle"] >= config.patience:
        raise ValueError(
            f"no signal in {done['idle']} steps, as {same_rewards(groups)}: take other rewards, harder prompts or a "
            f"larger group{kept}"
        )
    before, now = done["understanding"], report.get("understanding")
    if now is not None and before - now > config.questions.fall:
        raise ValueError(
            f"understanding fell from {before:.4g} to {now:.4g}, by more than questions.fall "
            f"{config.questions.fall}: lower optim.lr, raise grpo.kl, or give data.sources{kept}"
        )
