"""What we use of other packages that they promise to nobody: when it moves, a test here fails and names the package.

Then mend the one file that uses it, or give the package an upper bound in pyproject.toml.
"""

import ast
import inspect
from collections import defaultdict
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from mllm.fast.quantize import int4_block

ROOT = Path(__file__).parents[1]
PACKAGES = ("tokenizer", "mllm", "training", "eval", "data_recipes", "scripts")
# Package -> "module:name", or "module:class.name" of what is defined in the class, or set by its methods on `self`.
PARTS = {
    "deepspeed": [
        "deepspeed.runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3.parameter_offload",
        "deepspeed.runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3.fp32_partitioned_groups_flat",
        "deepspeed.runtime.zero.parameter_offload:DeepSpeedZeRoOffload.forward_hooks",
        "deepspeed.runtime.zero.parameter_offload:DeepSpeedZeRoOffload.backward_hooks",
        "deepspeed.runtime.zero.parameter_offload:DeepSpeedZeRoOffload._register_deepspeed_module",
        "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer.single_partition_of_fp32_groups",
        "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer._hp_optimizer_states_linked",
        "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer._lazy_init_hp_params_optimizer_state",
        "deepspeed.utils:safe_set_local_optimizer_state",
    ],
    "transformers": [
        "transformers:PreTrainedModel._load_pretrained_model",
        "transformers:PreTrainedModel._init_weights",
        "transformers:ProcessorMixin._merge_kwargs",
        "transformers.integrations.deepspeed:HfDeepSpeedConfig",
        "transformers.integrations.deepspeed:unset_hf_deepspeed_config",
    ],
    "lmms_eval": [
        "lmms_eval.api.instance:GenerationResult",
        "lmms_eval.evaluator:_enable_reentrant_filelocks",
        "lmms_eval.models.registry_v2:ModelManifest",
        "lmms_eval.tasks:TaskManager.task_index",
        "lmms_eval.tasks:TaskManager.all_subtasks",
        "lmms_eval.tasks:TaskManager.match_tasks",
    ],
    "filelock": ["filelock._api:FileLockContext"],  # which lmms-eval 0.7.3 changes
    "datasets": ["datasets.utils._filelock:FileLock"],  # this, too
    "torch": [
        "torch:_convert_weight_to_int4pack_for_cpu",
        "torch:_weight_int4pack_mm_for_cpu",
        "torch:_weight_int8pack_mm",
        "torch.nn:Module._forward_hooks",
        "torch.nn:Module._forward_pre_hooks",
        "torch.nn:Module._parameters",
        "torch:Tensor._version",
        "torch:_assert_async",
    ],
}
STABLE = {"_exit", "_asdict", "_replace", "_fields_"}  # of Python's own library, documented
EVERYWHERE = {"_forward_hooks", "_forward_pre_hooks"}  # of torch's modules since 2016


@pytest.mark.parametrize(("package", "part"), [(package, part) for package, parts in PARTS.items() for part in parts])
def test_it_is_where_it_was(package, part):
    moved = f"{package} {version(package)} has no {part} any more"
    module, _, names = part.partition(":")
    owner, _, attribute = names.partition(".")
    try:
        found = getattr(import_module(module), owner, None)
    except ModuleNotFoundError:
        pytest.fail(moved)
    assert found is not None, moved
    if attribute and not hasattr(found, attribute):
        code = "".join(inspect.getsource(one) for one in found.__mro__ if one is not object)
        assert f"self.{attribute}" in code or f'"{attribute}"' in code, moved


def test_torch_lays_int4_out_as_the_step_in_cpp_reads_it():
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):  # others have an order of their own
        assert int4_block() in (32, 64), f"torch {torch.__version__} has another order of int4 weights"


def foreign_private_names() -> dict[str, set[str]]:
    """{name with one underscore that none of our own code defines: the files that use it}."""
    used, own = defaultdict(set), set()
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                    own.add(name)
                case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                    own.add(name)
                case ast.Attribute(attr=name) if name.startswith("_") and not name.startswith("__"):
                    used[name].add(str(path.relative_to(ROOT)))
                case ast.ImportFrom(level=0, module=module) if module.partition(".")[0] not in PACKAGES:
                    for name in [*module.split("."), *(alias.name for alias in node.names)]:
                        if name.startswith("_") and name != "__future__":
                            used[name].add(str(path.relative_to(ROOT)))
    return {name: used[name] for name in used.keys() - own - STABLE}


def test_all_private_names_of_others_are_listed_and_stand_in_one_file():
    listed = {part.replace(":", ".").rpartition(".")[2] for parts in PARTS.values() for part in parts}
    found = foreign_private_names()
    assert found.keys() <= listed, f"not in PARTS: {sorted(found.keys() - listed)}"
    scattered = {name: files for name, files in found.items() if len(files) > 1 and name not in EVERYWHERE}
    assert not scattered, f"to mend in one place: {scattered}"
