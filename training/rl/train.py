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
from ..lm.train import batches_of, prepare, restore, save, talk
from ..lm.update import train_step
from ..run.backends import TorchEngine, loading_in_parts, start_engine, start_engine_ranks
from ..run.checkpoint import latest_checkpoint
from ..run.device import allocator_lines, pick_device
from ..run.distributed import barrier, rank_and_world, stop_ranks
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
    if config.method not in METHODS:
        raise ValueError(f"recipe, method: unknown {config.method!r}; known: {', '.join(METHODS)}")
    run, (rank, world) = config.run, rank_and_world()
    torch.manual_seed(run.seed)
    with loading_in_parts(config, device):
        model, processor, loaded = build_model(config.model, checkpoint, PolicyMllm)
    prepare(model, config, device)
    method = METHODS[config.method](config)
    start = model_at_start(config, device) if method.needs_start else None
    prompts = Prompts(config.draw, model, processor, run.seed, config.max_bad)
    judge = Judge(config.rewards, rewards, model, processor)
    ordinary = ordinary_updates(config, model, processor) if config.data.sources else None
    conversations(config.prompts)
    talk(parameter_lines(model, loaded), [f"prompts: {prompts.source.note}"], allocator_lines(device))
    engine = start_engine(model, config, device)
    questions = Questions(config.questions, engine, processor) if config.questions else None
    done = restore(engine, checkpoint) if checkpoint else {"step": 0, "seen": 0, "idle": 0, "understanding": None}
    metrics = Metrics(config, done["step"]) if rank == 0 else None
    problems, left_out = Problems(config.max_bad), LeftOut(run.path, done["step"])
    if questions and done["understanding"] is None:
        with drawing_with(engine):
            done["understanding"] = questions.ask(engine)
        talk([f"understanding at the start: {done['understanding']:.4g}, by {questions.count} questions"])
    with StopSignal() as stop:
        for step in range(done["step"] + 1, run.steps + 1):
            started = time.monotonic()
            with drawing_with(engine):
                micro_batches, bad = drawn_groups(engine, processor, prompts, done["seen"], config)
                drawn = time.monotonic()
                groups = [group for of_batch in micro_batches for group in of_batch]
                judge(groups)
            problems.add([*bad, *(group.problem for group in groups if group.problem)])
            left_out.add(step, groups)
            judged = time.monotonic()
            rates = set_lr(engine, schedule(step - 1, run.steps, config.optim))
            torch.manual_seed((run.seed * 1_000_003 + step) * 1009 + rank)  # a resumed run draws the same
            report = method.update(engine, processor, start, micro_batches)
            done["seen"] += world * run.accumulate * run.batch_size
            if ordinary:
                update = ordinary[step - 1]
                problems.add(update.problems, update.complete)
                loss = train_step(engine, batches_of(update, processor, engine), config)()["loss"]
                report |= {"ordinary_loss": loss}
            means = group_means(groups, config.rewards, model.config.image_tokenizer["num_codebooks"])
            seconds = time.monotonic() - started
            speed = {"drawings_per_s": world * len(groups) * config.group / seconds}
            speed |= {"share_of_drawing": (drawn - started) / seconds, "share_of_rewards": (judged - drawn) / seconds}
            report = {**means, **report, **rates, **speed, "memory_gb": peak_memory(device) / 2**30}
            last = stop.anywhere() or step == run.steps
            if questions and due(step, config.questions.every, run.steps):
                with drawing_with(engine):
                    report["understanding"] = questions.ask(engine)
            if metrics:
                metrics.log(step, report)
            done["idle"] = done["idle"] + 1 if means["no_signal"] == 1 else 0
            check(config, groups, done, report)
            if config.prompts and run.sample_every and due(step, run.sample_every, run.steps):
                show_samples(engine, processor, config.prompts, metrics, step)
            if last or step % run.save_every == 0:
                save(engine, processor, step, {name: done[name] for name in ("seen", "idle", "understanding")})
            if last:
                break
    if metrics:
        metrics.close()


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
    mixture = Mixture(config.data, processor, model.image_tokenizer, run.seed)
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
