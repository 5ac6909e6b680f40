"""One update over all ranks, by plain torch or by DeepSpeed's ZeRO (arXiv 1910.02054). The loop uses both alike.

Both keep float32 weights, compute in `run.precision`, and sum gradients over ranks, since losses are divided by global
counts. Both save and load whole tensors by parameter name, so a checkpoint fits any number of ranks, any ZeRO stage,
and plain torch.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import clip_grad_norm_, get_total_norm

from mllm import Mllm
from mllm.device import sync_is_free
from mllm.fast.cpu import forget

from .device import autocast
from .distributed import is_rank_zero, start_ranks, sum_gradients
from .optim import State, check_names, load_optimizer_state, make_optimizer, optimizer_state, trained
from .recipe import TrainConfig

SMALL = 1_000_000  # DeepSpeed's buffers hold at least so many weights, as smaller messages are slow


class TorchEngine:
    """Every rank holds the whole model; gradients are summed over ranks, as one message."""

    def __init__(self, model: Mllm, config: TrainConfig, device: torch.device):
        self.model, self.config, self.device = model.to(device), config, device
        self.image_tokenizer = model.image_tokenizer
        self.trained = trained(model)
        self.optimizer = make_optimizer(model.named_parameters(), config.optim)
        self.exact: dict[str, torch.Tensor] = {}
        if config.run.precision == "bf16" and not config.deepspeed:
            self.exact = {name: self._round(name) for name in frozen_matrices(model)}

    def _round(self, name: str) -> torch.Tensor:
        """Round a weight to bfloat16, as autocast would in every pass. Returns it as it was."""
        weight = self.model.get_parameter(name)
        exact, weight.data = weight.data, weight.data.bfloat16()
        return exact

    @property
    def param_groups(self) -> list[dict]:
        return self.optimizer.param_groups

    def forward(self, **inputs: Any) -> Any:
        """The model's output, computed in `run.precision`."""
        with autocast(self.config.run, self.device):
            return self.model(**inputs)

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Accumulate gradients. `last` marks the last micro-batch of an update."""
        loss.backward()

    def step(self) -> torch.Tensor:
        """Sum gradients over ranks, clip them, and update the weights. Returns the gradient norm before clipping.
        Raises ValueError, before the update, for a norm that is not finite, where reading it does not wait."""
        sum_gradients(self.trained.values())
        norm = clip_grad_norm_(self.trained.values(), self.config.optim.clip)
        if sync_is_free(norm.device):
            check_finite(norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    @contextmanager
    def whole(self) -> Iterator[None]:
        """A context in which the model can be used outside of `forward`; all ranks must enter it."""
        for name, exact in self.exact.items():
            self.model.get_parameter(name).data = exact
        yield
        for name in self.exact:
            self._round(name)

    def weights(self) -> dict[str, torch.Tensor]:
        """The model's state_dict on rank 0, {} on others. All ranks must call it, as well as the next two."""
        return {**self.model.state_dict(), **self.exact} if is_rank_zero() else {}

    def optimizer_state(self) -> State:
        """The optimizer's state by parameter name on rank 0, {} on others."""
        return optimizer_state(self.optimizer, self.trained) if is_rank_zero() else {}

    def load_optimizer_state(self, state: State) -> None:
        """Load what `optimizer_state` of any engine gave. Raises ValueError when other parameters were trained."""
        load_optimizer_state(self.optimizer, self.trained, state)


def frozen_matrices(model: Mllm) -> list[str]:
    """Names of the weights of linear layers in the backbone, and of `lm_head`, that do not train. Not those shared
    with an embedding."""
    kept = {part.weight for part in model.modules() if isinstance(part, nn.Embedding)}
    return [
        f"{name}.weight"
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear) and name.startswith(("backbone.", "lm_head"))
        if not part.weight.requires_grad and part.weight not in kept
    ]


class ZeroEngine(TorchEngine):
    """DeepSpeed: ranks share the optimizer's state (stage 1), gradients (2) and weights (3); 0 shares nothing."""

    def __init__(self, model: Mllm, config: TrainConfig, device: torch.device):
        deepspeed = import_deepspeed(device)
        super().__init__(model, config, device)
        self.stage = config.deepspeed.stage
        if self.stage == 3:  # it encodes outside of `forward`, and not on all ranks at once: each keeps a whole one
            if config.model.tune or config.model.lora:
                what = "tune" if config.model.tune else "lora"
                raise ValueError(f"recipe, deepspeed.stage: 3 does not go with model.{what}; take 2")
            model.image_tokenizer = nn.Identity()
        with _no_numbers(model):
            settings = deepspeed_settings(config, model.config.text_config.hidden_size)
            self.engine, self.optimizer, *_ = deepspeed.initialize(
                model=model, optimizer=self.optimizer, config=settings
            )
        self.world = self.engine.world_size
        self.zero = deepspeed.zero

    def forward(self, **inputs: Any) -> Any:
        return self.engine(**inputs)

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss * self.world, scale_wrt_gas=False)  # DeepSpeed takes the mean over ranks

    def step(self) -> torch.Tensor:  # DeepSpeed asks for values by itself
        if self.stage == 0:
            norm = get_total_norm([p.grad for p in self.trained.values() if p.grad is not None])
            check_finite(norm)
            self.engine.step()
            return norm
        self.engine.step()  # skips the update for a norm that is not finite
        norm = torch.as_tensor(self.engine.get_global_grad_norm())
        check_finite(norm)
        return norm

    @contextmanager
    def whole(self) -> Iterator[None]:
        with self.zero.GatheredParameters(list(self.model.parameters()), enabled=self.stage == 3), self._alone():
            inside, self.model.image_tokenizer = self.model.image_tokenizer, self.image_tokenizer
            yield
            self.model.image_tokenizer = inside
            if self.stage == 3:
                forget(self.model)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Stage 3's hooks taken out of the model: after a module they give its weights back, and before its next use
        wait for ranks that are not there."""
        if self.stage < 3:
            yield
            return
        offload = self.optimizer.parameter_offload
        for hook in [*offload.forward_hooks, *offload.backward_hooks]:
            hook.remove()
        offload.forward_hooks, offload.backward_hooks = [], []
        try:
            yield
        finally:
            offload._register_deepspeed_module(self.model)

    def weights(self) -> dict[str, torch.Tensor]:
        if self.stage < 3:
            return super().weights()
        weights = self.image_tokenizer.state_dict(prefix="image_tokenizer.") if is_rank_zero() else {}
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            with self.zero.GatheredParameters([tensor], enabled=hasattr(tensor, "ds_id")):
                if is_rank_zero():
                    weights[name] = tensor.detach().cpu().clone()
        return weights

    def optimizer_state(self) -> State:
        if self.stage == 0:
            return super().optimizer_state()
        from deepspeed.utils import safe_get_full_optimizer_state

        self._link()
        first = self.optimizer.optimizer.state[self._flat()[0]]
        state = {}
        for name, p in self.trained.items():
            whole = {key: safe_get_full_optimizer_state(p, key) for key in first if key != "step"}
            if is_rank_zero():
                state[name] = {"step": first["step"].clone(), **{key: value.cpu() for key, value in whole.items()}}
        return state

    def load_optimizer_state(self, state: State) -> None:
        if self.stage == 0:
            return super().load_optimizer_state(state)
        check_names(state, self.trained)
        first = max(state.values(), key=len)
        keys = [key for key in first if key != "step"]
        for flat in self._flat():
            self.optimizer.optimizer.state[flat] = {
                "step": first["step"].to(flat.device, copy=True),  # each counts its own
                **{key: torch.zeros_like(flat) for key in keys},
            }
        self._link()
        for name, p in self.trained.items():
            for key in keys:
                if key in state[name]:
                    self._set_state(p, key, state[name][key].to(self.device))

    def _link(self) -> None:
        """DeepSpeed finds the state of each parameter once, when only the first group has any."""
        if self.stage < 3:
            self.optimizer._hp_optimizer_states_linked = False
            self.optimizer._lazy_init_hp_params_optimizer_state()

    def _flat(self) -> list[torch.Tensor]:
        """This rank's parts of the weights, which the optimizer updates."""
        zero = self.optimizer
        return zero.fp32_partitioned_groups_flat if self.stage == 3 else zero.single_partition_of_fp32_groups

    def _set_state(self, p: nn.Parameter, key: str, value: torch.Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if self.stage < 3:
            return safe_set_full_optimizer_state(p, value, key)
        # Parts are equally long, the last one padded, which safe_set_full_optimizer_state does not expect.
        length = p.ds_tensor.numel()
        padded = F.pad(value.flatten(), (0, length * self.world - value.numel()))
        safe_set_local_optimizer_state(p, padded[length * self.engine.global_rank :][:length], key)


def start_engine(model: Mllm, config: TrainConfig, device: torch.device) -> TorchEngine:
    """The engine that the recipe asks for."""
    return (ZeroEngine if config.deepspeed else TorchEngine)(model, config, device)


def start_engine_ranks(config: TrainConfig, device: torch.device) -> tuple[int, int]:
    """As `start_ranks`; also makes DeepSpeed know of them. -> (rank, world size)."""
    rank, world = start_ranks(device, alone=config.deepspeed is not None)
    if config.deepspeed:
        os.environ.setdefault("LOCAL_RANK", "0")  # which it asks for even where no launcher was needed
        import_deepspeed(device).init_distributed(auto_mpi_discovery=False, verbose=False)
    return rank, world


@contextmanager
def loading_in_parts(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Under ZeRO-3, a language model that from_pretrained loads inside is divided among the ranks from the start, so
    that no rank ever holds a whole one; it comes without image tokenizer. Not for new models, whose weights need to be
    whole to be initialised."""
    if not config.deepspeed or config.deepspeed.stage < 3:
        yield
        return
    import_deepspeed(device)
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    kept = HfDeepSpeedConfig(deepspeed_settings(config))  # transformers only holds a weak reference
    try:
        with patch("mllm.model.ImageTokenizer", nn.Identity):  # has a number among its parameters: see `_no_numbers`
            yield
    finally:
        unset_hf_deepspeed_config()
        del kept


@contextmanager
def _no_numbers(model: nn.Module) -> Iterator[None]:
    """Take parameters without dimensions out of the model: DeepSpeed cannot send these from rank to rank. They are
    the same on all ranks anyway."""
    numbers = [(m, name, p) for m in model.modules() for name, p in m.named_parameters(recurse=False) if p.ndim == 0]
    for module, name, _ in numbers:
        del module._parameters[name]
    yield
    for module, name, p in numbers:
        module.register_parameter(name, p)


def deepspeed_settings(config: TrainConfig, width: int = 0) -> dict[str, Any]:
    """DeepSpeed's own dict. Weights and what ranks exchange are float32, as with plain torch: same losses. Its buffers
    hold a layer of a backbone of this `width`, and stage 3 gathers two at a time."""
    run, zero, layer = config.run, config.deepspeed, max(12 * width**2, SMALL)
    offload = {"offload_optimizer": {"device": "cpu"}} if zero.offload else {}
    if zero.offload and zero.stage == 3:
        offload["offload_param"] = {"device": "cpu"}
    sizes = {
        "reduce_bucket_size": layer,
        "sub_group_size": 2 * layer,
        "stage3_prefetch_bucket_size": layer,
        "stage3_max_live_parameters": 2 * layer,
        "stage3_max_reuse_distance": 2 * layer,
    }
    return {
        "train_micro_batch_size_per_gpu": run.batch_size,
        "gradient_accumulation_steps": run.accumulate,
        "gradient_clipping": config.optim.clip,
        "zero_optimization": {"stage": zero.stage, **sizes, **offload},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW needs no compiler
        "torch_autocast": {
            "enabled": run.precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
        "steps_per_print": None,
    }


def import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, told of the device, without its log and without compiling anything. Raises ValueError without it."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    warnings.filterwarnings(
        "ignore", message=".*(all_gather_into_tensor|reduce_scatter_tensor)", category=FutureWarning
    )
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    try:
        import deepspeed
        import deepspeed.ops
    except ImportError as error:
        raise ValueError(f"recipe, deepspeed: {error}; pip install deepspeed, or leave it out") from error
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # A collective in shared memory, which is compiled for a minute at the first start, and fails without ninja.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def read_norm(norm: torch.Tensor) -> float:
    """What `step` returned, as a number. Raises ValueError for one that is not finite, which a GPU was not asked for
    before the update."""
    check_finite(norm, "before it was saved")
    return norm.item()


def check_finite(norm: torch.Tensor, stopped: str = "before the update") -> None:
    """Raises ValueError for a gradient's norm that is infinite or not a number."""
    if not norm < float("inf"):
        raise ValueError(f"the gradient is {norm.item()}; stopped {stopped}: lower optim.lr")
