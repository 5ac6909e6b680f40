"""Evaluation by lmms-eval: the plugin that gives it our models, and a run of its tasks as one call.

lmms-eval is an extra (pip install -e ".[eval]") and takes seconds to import, so it is imported inside functions.
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_recipes.files import write_json
from mllm.folders import find_model

from ..pieces import device

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest
    from lmms_eval.tasks import TaskManager

TASKS = Path(__file__).parent / "tasks"


def manifest() -> ModelManifest:
    """The entry point `mllm` of group `lmms_eval.models`. lmms-eval calls it at every start; an error here would take
    the models of other packages away, too."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("mllm", "eval.lmms.lmms_model.SimpleModel", "eval.lmms.lmms_model.ChatModel")


def evaluate_lmms(
    model: str,
    tasks: Sequence[str],
    out: Path,
    batch_size: int = 8,
    limit: int | None = None,
    simple: bool = False,
    data: Path | None = None,
    include: Sequence[Path] = (),
    **model_args: Any,
) -> dict | None:
    """lmms-eval's results, and {"model_hash", "unreadable": documents that could not be read}; None in processes other
    than the first. Answers and drawings are kept in `out`, where a second run goes on.

    `simple` takes the interface that multiple choice needs. `data` holds saved copies of tasks' data sets (a folder
    TASK made by save_to_disk), `include` folders with further tasks. Raises ValueError for what a user can cause.
    """
    find_model(model)
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; it must be at least 1")
    with one_clear_line(), connected():
        from lmms_eval.evaluator import simple_evaluate

        from .lmms_model import ChatModel, SimpleModel

        manager, names = find_tasks(tasks, include)
        if data:
            use_saved_copies(manager, data, out / "tasks")
        interface = SimpleModel if simple else ChatModel
        subject = interface(model, batch_size, output_dir=str(out), **model_args)
        results = simple_evaluate(
            model=subject,
            tasks=names,
            task_manager=manager,
            limit=limit,
            bootstrap_iters=0,
            distributed_executor_backend="torchrun",
            # Scores are computed without the images, which would all be decoded a second time.
            cli_args=Namespace(process_with_media=False, output_path=str(out)),
        )
        unreadable = gather(subject.unreadable)
    return results and {**results, "model_hash": subject.weights_hash, "unreadable": unreadable}


def find_tasks(tasks: Sequence[str], include: Sequence[Path] = ()) -> tuple[TaskManager, list[str]]:
    """The index that knows them all, and their names ("mmmu*" stands for several). lmms-eval's own two thousand files
    are read only if a name is not found without them."""
    from lmms_eval.tasks import TaskManager

    folders = [str(folder) for folder in (TASKS, *include)]
    for folder in folders:
        if not Path(folder).is_dir():
            raise ValueError(f"no folder {folder} with tasks")
    for include_defaults in (False, True):
        manager = TaskManager(include_path=folders, include_defaults=include_defaults, model_name="mllm")
        unknown = [task for task in tasks if not manager.match_tasks([task])]
        if tasks and not unknown:
            return manager, manager.match_tasks(list(tasks))
    close = get_close_matches(unknown[0], manager.all_tasks) if unknown else []
    hint = f"did you mean {', '.join(close)}?" if close else "see `lmms-eval tasks list` and eval/lmms/tasks"
    raise ValueError(f"unknown task {', '.join(unknown) or '(none was given)'}: {hint}")


def use_saved_copies(manager: TaskManager, data: Path, folder: Path) -> None:
    """Tasks of which `data` has a folder read that one; what is changed about them is written to `folder`."""
    for task in {path.name for path in data.iterdir()} & set(manager.all_subtasks):
        entry, file = manager.task_index[task], folder / f"{task}.yaml"
        change = {"task": task, "include": entry["yaml_path"], "dataset_path": str((data / task).absolute())}
        write_json(file, {**change, "dataset_kwargs": {"load_from_disk": True}})  # JSON is YAML, too
        entry["yaml_path"] = str(file)


@contextmanager
def connected() -> Iterator[None]:
    """Processes of torchrun or `accelerate launch`: lmms-eval shares the documents, and collects the answers."""
    import torch
    import torch.distributed as dist

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def gather(rows: list[dict]) -> list[dict]:
    """Of all processes."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return rows
    parts: list[list[dict]] = [[]] * dist.get_world_size()
    dist.all_gather_object(parts, rows)
    return [row for part in parts for row in part]


def what_lacks(error: ImportError) -> str:
    """Is a package not there, or there in a version that does not fit?"""
    module = (error.name or "lmms_eval").partition(".")[0]
    if find_spec(module) is None:
        return f"lmms-eval or a task of it lacks a package ({error}): pip install -e '.[eval]'"
    packages = packages_distributions().get(module, [module])
    found = " and ".join(f"{name} {version(name)}" for name in sorted({"lmms_eval", *packages}))
    remedy = f"pip install -c requirements.lock {' '.join(packages)}"
    return f"{found} do not fit together ({error}); for the tested versions: {remedy}"


@contextmanager
def one_clear_line() -> Iterator[None]:
    """ValueError for what is no mistake of ours: missing packages and data, tasks of another kind."""
    try:
        yield
    except ImportError as error:
        raise ValueError(what_lacks(error)) from error
    except NotImplementedError as error:
        raise ValueError(f"a task asks for what the model cannot do: {error}") from error
    except AssertionError as error:
        hint = "; multiple choice and log-likelihood need --simple" if "generation only" in str(error) else ""
        raise ValueError(f"lmms-eval refuses: {error}{hint}") from error
    except Exception as error:
        if not hasattr(error, "last_attempt"):
            raise
        # lmms-eval tries five times and then says RetryError.
        cause = error.last_attempt.exception()
        raise ValueError(f"lmms-eval gave up: {cause} (without a network, see --data)") from error
