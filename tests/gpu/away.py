"""A CPU dressed as a GPU: tensors on the device "away" compute what they would on the CPU, and the host may not touch
them. What would wait for a GPU is refused, and so is what a GPU would refuse, such as tensors of two devices.

Importing this registers it for the whole process, so it is done in one of its own (see waits.py).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

aten = torch.ops.aten
# Their results, or the sizes of these, depend on values: the host waits to learn them.
VALUES = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "bincount",
    "equal",
    "is_nonzero",
    "_unique2",
    "unique_dim",
}
VALUES |= {"unique_consecutive", "repeat_interleave", "argwhere", "nonzero_numpy", "histc"}


class Waits(RuntimeError):
    """The host would wait for the device."""


class Away(torch.Tensor):
    """`x`, a tensor of the CPU, as one of the device."""

    @staticmethod
    def __new__(cls, x: torch.Tensor):
        layout = {"strides": x.stride(), "storage_offset": x.storage_offset(), "dtype": x.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, x.shape, device=torch.device("away", 0), **layout)
        made.x = x
        return made

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})

    def __repr__(self) -> str:
        return f"Away({tuple(self.shape)})"

    __str__ = __repr__


class Device(TorchDispatchMode):
    """Within it, all operations go by the rules of the device. `asked` lists what waited; with `strict`, that raises
    Waits."""

    def __init__(self):
        super().__init__()
        self.asked, self.strict = [], False

    @contextmanager
    def launching(self) -> Iterator[None]:
        """Inside, nothing may wait."""
        self.strict = True
        try:
            yield
        finally:
            self.strict = False

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if reason := _waits(operation, args, kwargs):
            self.asked.append(f"{operation.overloadpacket.__name__} {reason}")
            if self.strict:
                raise Waits(self.asked[-1])
        return _run(operation, args, kwargs)


def _waits(operation, args, kwargs) -> str:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    far = [isinstance(tensor, Away) for tensor in tensors]
    name = operation.overloadpacket.__name__
    if name in ("_to_copy", "copy_", "_copy_from"):
        goal = (name == "_to_copy" and kwargs.get("device")) or tensors[0].device
        goal, source = torch.device(goal).type, tensors[-1].device.type
        if source == "away" and goal == "cpu":
            return "copies to the host"
        blocks = not kwargs.get("non_blocking", args[2] if name == "copy_" and len(args) > 2 else False)
        return "copies from the host and waits" if source == "cpu" and goal == "away" and blocks else ""
    if not any(far):
        return ""
    if name in VALUES:
        return "reads values"
    if name.startswith("index") and any(isinstance(x, Away) and x.dtype == torch.bool for x in tree_leaves(args[1])):
        return "selects by truth"
    if any(tensor.dim() and not is_far for tensor, is_far in zip(tensors, far, strict=True)):
        raise RuntimeError(f"{name}: tensors on the device and on the host")
    return ""


def _run(operation, args, kwargs):
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    goal = kwargs.get("device")
    goal = torch.device(goal).type if goal is not None else None
    if operation is aten.copy_.default:
        goal = args[0].device.type
    elif goal is None and any(isinstance(tensor, Away) for tensor in tensors):
        goal = "away"
    if operation is aten._local_scalar_dense.default:
        goal = None
    kwargs = {**kwargs, "device": torch.device("cpu")} if "device" in kwargs and goal == "away" else kwargs
    output = operation(*tree_map(_near, args), **tree_map(_near, kwargs))
    known = {id(tensor.x): tensor for tensor in tensors if isinstance(tensor, Away)}  # of operations in place

    def far(x):
        if not isinstance(x, torch.Tensor) or id(x) in known:
            return known.get(id(x), x)
        return Away(x) if goal == "away" else x

    return tree_map(far, output)


def _near(x):
    return x.x if isinstance(x, Away) else x


def _new_strided(size, stride, **options):
    """Of factories, only torch.tensor(..., device=...) comes here: the rest goes by the mode."""
    if 0 in size:  # nothing to copy
        return Away(torch.empty_strided(size, stride, dtype=options.get("dtype")))
    raise Waits("torch.tensor(..., device=...) waits; send(torch.tensor(...), device) does not")


DEVICE_MODULE = SimpleNamespace(
    is_available=lambda: True,
    is_initialized=lambda: True,
    device_count=lambda: 1,
    current_device=lambda: 0,
    manual_seed_all=lambda seed: None,
    get_rng_state=lambda device: torch.zeros(0),
    set_rng_state=lambda state, device: None,
    _is_in_bad_fork=lambda: False,
    get_amp_supported_dtype=lambda: [torch.bfloat16],
)
_setup_privateuseone_for_python_backend("away", DEVICE_MODULE)
LIBRARY = torch.library.Library("aten", "IMPL")
LIBRARY.impl("empty_strided", _new_strided, "PrivateUse1")
LIBRARY.impl("_copy_from", lambda source, goal, non_blocking=False: goal, "PrivateUse1")  # of nothing
