"""The decode step as one C++ function (step.cpp), built once for this machine. It is a fast twin of `step_llama`,
`DepthHead.sample` and `CodebookEmbedding` on a CPU. If it cannot be built, these run operation by operation and give
the same codes.

Weights that bfloat16 represents exactly, as in most checkpoints, are stored in it: half the bytes, and the same results
as float32. Weights of 8 and 4 bits (quantize.py), and those of a backbone in bfloat16, are read where they are. For a
model in bfloat16, inputs, outputs, keys and values are bfloat16; everything between them is float32, so results are
nearer to float32's than those of single bfloat16 operations.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import warnings
from collections.abc import Callable, Sequence
from ctypes import POINTER, c_double, c_float, c_int, c_int64, c_void_p, pointer
from dataclasses import fields
from functools import cache, lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..codes import CodebookEmbedding, DepthHead
from ..image_layers import ImageLayer, ImageLayers
from .quantize import Int4Linear, Int8Linear, int4_block

SOURCE = Path(__file__).with_name("step.cpp")
FLAGS = ["-std=c++17", "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fPIC", "-shared"]
FLOAT32, BFLOAT16, INT8, INT4_BY_32, INT4_BY_64, BFLOAT16_ROWS = range(6)  # kinds of a Matrix
SUPPORTED = {(torch.float32, "cpu"), (torch.bfloat16, "cpu")}  # dtype and device of weights that step.cpp can read
FIXED_ROTARY = ("default", "linear", "llama3", "yarn")  # rotary kinds whose angles do not depend on sequence length


class Matrix(ctypes.Structure):
    _fields_ = [("kind", c_int64), ("weight", c_void_p), ("bias", c_void_p)]
    _fields_ += [("scales", c_void_p), ("out", c_int64), ("inputs", c_int64)]


class Layer(ctypes.Structure):
    _fields_ = [("norm1", c_void_p), ("q", Matrix), ("k", Matrix), ("v", Matrix), ("o", Matrix)]
    _fields_ += [("norm2", c_void_p), ("gate", Matrix), ("up", Matrix), ("down", Matrix)]


class Body(ctypes.Structure):
    _fields_ = [(name, c_int64) for name in ("layers", "dim", "heads", "kv_heads", "width", "hidden")]
    _fields_ += [("eps", c_float), ("scale", c_float), ("layer", POINTER(Layer))]
    _fields_ += [("norm", c_void_p), ("cos", c_void_p), ("sin", c_void_p)]


class Head(ctypes.Structure):
    _fields_ = [("body", Body), ("enter", Matrix), ("codebooks", c_int64), ("entries", c_int64)]
    _fields_ += [("tables", POINTER(c_void_p)), ("outputs", POINTER(Matrix))]


class Norm(ctypes.Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p), ("eps", c_float)]


class Embedding(ctypes.Structure):
    _fields_ = [("heads", c_int64), ("norm1", Norm)] + [(name, Matrix) for name in ("q", "k", "v", "out")]
    _fields_ += [("norm3", Norm), ("across", Matrix), ("norm2", Norm), ("norm", Norm)]
    _fields_ += [(name, Matrix) for name in ("w0", "w1", "w2")]
    _fields_ += [("last", Norm), ("first", Matrix), ("second", Matrix)]


class Sampling(ctypes.Structure):
    _fields_ = [("temperature", c_double), ("top_p", c_double), ("cfg_scales", 2 * c_double)]
    _fields_ += [("num_scales", c_int64), ("top_k", c_int64)]


MIRRORED = (Matrix, Layer, Body, Head, Norm, Embedding, Sampling)  # in the order of step.cpp's `sizes`
building = Lock()  # one thread builds, the others wait


@cache
def library() -> ctypes.CDLL | None:
    """The built step.cpp, from the user's cache folder; None, with a warning, if it cannot be built."""
    try:
        processor = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0]
    except OSError:
        processor = platform.node()
    key = hashlib.sha256("\n".join([SOURCE.read_text(), processor, *FLAGS]).encode()).hexdigest()[:16]
    file = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mllm" / f"step-{key}.so"
    try:
        with building:
            if not file.exists():
                build(file)
        built = ctypes.CDLL(str(file))
        check_structures(built)
        return built
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        reason = " ".join((getattr(error, "stderr", None) or str(error)).split())[:200]
        warnings.warn(f"generation runs uncompiled, which is slower: {reason}", stacklevel=2)
        return None


def check_structures(built: ctypes.CDLL) -> None:
    """Raises RuntimeError when step.cpp and this file disagree on the size of a structure."""
    theirs = (c_int64 * len(MIRRORED))()
    built.sizes(theirs)
    for mine, size in zip(MIRRORED, theirs, strict=True):
        if ctypes.sizeof(mine) != size:
            raise RuntimeError(f"{mine.__name__} has {size} bytes in step.cpp, {ctypes.sizeof(mine)} in cpu.py")


def build(file: Path) -> None:
    """Compile step.cpp into a file. Raises RuntimeError without a compiler, and CalledProcessError when it fails."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise RuntimeError("no C++ compiler (c++ or g++) is installed")
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(part)], check=True, capture_output=True, text=True)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def exact(weight: torch.Tensor) -> bool:
    """Whether bfloat16 represents all numbers of a matrix, and its sides are multiples of 16 and 32."""
    whole = weight.dim() == 2 and weight.shape[0] % 16 == weight.shape[1] % 32 == 0
    return whole and torch.equal(weight.bfloat16().float(), weight.float())


class Packed:
    """Weights of a module as step.cpp takes them. `kept` holds the tensors that the pointers point into. Weights in
    bfloat16 are copied into the layout of the matrix units; with `in_place` they are read where they are."""

    in_place = False

    def __init__(self):
        self.kept: list[Any] = []

    def keep(self, tensor: torch.Tensor) -> int:
        tensor = tensor.detach().contiguous()
        self.kept.append(tensor)
        return tensor.data_ptr()

    def vector(self, tensor: torch.Tensor) -> int:
        return self.keep(tensor.float())

    def matrices(self, linear: nn.Linear, parts: int = 1) -> list[Matrix]:
        """The matrices of a linear layer whose outputs are split into `parts` of equal size."""
        biases = [None] * parts if linear.bias is None else map(self.vector, linear.bias.chunk(parts))
        weights = linear.weight.detach().chunk(parts)
        return [Matrix(*self._weight(w), b, None, *w.shape) for w, b in zip(weights, biases, strict=True)]

    def _weight(self, weight_OI: torch.Tensor) -> tuple[int, int]:
        """The kind of a matrix, and the pointer to its weights."""
        if self.in_place and weight_OI.dtype == torch.bfloat16:
            return BFLOAT16_ROWS, self.keep(weight_OI)
        if not exact(weight_OI):
            return FLOAT32, self.vector(weight_OI)
        tiles = weight_OI.bfloat16().unflatten(1, (-1, 16, 2)).unflatten(0, (-1, 16))
        return BFLOAT16, self.keep(tiles.permute(0, 2, 3, 1, 4))

    def matrix(self, linear: nn.Linear | Int8Linear | Int4Linear) -> Matrix:
        if isinstance(linear, nn.Linear):
            return self.matrices(linear)[0]
        bias = None if linear.bias is None else self.vector(linear.bias)
        if isinstance(linear, Int8Linear):
            scales, sizes = self.vector(linear.scales_O), linear.weight_OI.shape
            return Matrix(INT8, self.keep(linear.weight_OI), bias, scales, *sizes)
        kind = {32: INT4_BY_32, 64: INT4_BY_64}[int4_block()]
        scales = self.keep(linear.scales_zeros_GO2.bfloat16())
        return Matrix(kind, self.keep(linear.packed), bias, scales, linear.outputs, linear.inputs)

    def layer_norm(self, norm: nn.LayerNorm) -> Norm:
        return Norm(self.vector(norm.weight), self.vector(norm.bias), norm.eps)


class CompiledBackbone(Packed):
    """`step_llama` for one backbone, in C++; or for the layers of image positions beside it, between their `enter` and
    `leave`."""

    in_place = True

    def __init__(self, backbone: nn.Module, beside: ImageLayers | None = None):
        super().__init__()
        config, first = backbone.config, backbone.layers[0].self_attn
        self.rotary, self.layers = backbone.rotary_emb, len(backbone.layers)
        self.cos_sin = (torch.empty(0, first.head_dim),) * 2  # each [places, width]
        if beside:
            layers, norm = map(self._image_layer, beside.layers), beside.norm
            dim, hidden = beside.enter.out_features, beside.layers[0].down.in_features
        else:
            layers, norm = map(self._layer, backbone.layers), backbone.norm
            dim, hidden = config.hidden_size, config.intermediate_size
        self.layer = (Layer * self.layers)(*layers)
        self.body = Body(
            self.layers,
            dim,
            config.num_attention_heads,
            config.num_key_value_heads,
            first.head_dim,
            hidden,
            config.rms_norm_eps,
            first.scaling,
            self.layer,
            self.vector(norm.weight),
        )

    def _layer(self, layer: nn.Module) -> Layer:
        attention, mlp = layer.self_attn, layer.mlp
        inside = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
        return Layer(
            self.vector(layer.input_layernorm.weight),
            *map(self.matrix, inside),
            self.vector(layer.post_attention_layernorm.weight),
            *map(self.matrix, (mlp.gate_proj, mlp.up_proj, mlp.down_proj)),
        )

    def _image_layer(self, layer: ImageLayer) -> Layer:
        norm, qkv = layer.project
        kv = (qkv.out_features - layer.out.in_features) // 2
        weights = qkv.weight.detach().split([layer.out.in_features, kv, kv])
        q_k_v = (Matrix(*self._weight(weight), None, None, *weight.shape) for weight in weights)
        norms = [self.vector(norm.weight) for norm in (norm, layer.norm)]
        return Layer(
            norms[0],
            *q_k_v,
            self.matrix(layer.out),
            norms[1],
            *self.matrices(layer.gate_up, 2),
            self.matrix(layer.down),
        )

    def __call__(self, x_ED: torch.Tensor, cache: Any) -> torch.Tensor:
        dtype, half = x_ED.dtype, cache.mask_ST.dtype == torch.bfloat16
        x_ED, h_ED = x_ED.to(torch.float32, copy=True).contiguous(), torch.empty(x_ED.shape)
        columns = cache.mask_ST.shape[1]
        # Other threads may be in a step. So the tables that they read are replaced, not changed, and each call has a
        # `Body` of its own.
        body, (cos_Td, sin_Td) = Body.from_buffer_copy(self.body), self.cos_sin
        if len(cos_Td) < columns:
            cos_Td, sin_Td = (x[0].contiguous() for x in self.rotary(x_ED, torch.arange(columns)[None]))
            self.cos_sin = cos_Td, sin_Td
        body.cos, body.sin = cos_Td.data_ptr(), sin_Td.data_ptr()
        memory = (c_void_p * (2 * self.layers))(*(x.data_ptr() for pair in cache.memory for x in pair))
        sees_E = cache.places_E + 1 if cache.width == 1 else cache.sees_E
        x, h, places, sees = (c_void_p(tensor.data_ptr()) for tensor in (x_ED, h_ED, cache.places_E, sees_E))
        sizes = c_int64(len(x_ED)), c_int64(cache.width), places, sees, c_int64(columns)
        library().feed(pointer(body), x, h, *sizes, memory, c_int(half), threads())
        return h_ED.to(dtype)


class CompiledHead(Packed):
    """`DepthHead.sample` of one head together with guidance and sampling, in C++."""

    def __init__(self, head: nn.Module):
        super().__init__()
        first, self.K = head.layers[0], head.num_codebooks
        self.V, width = head.outputs[0].out_features, first.out.in_features
        rotary = head._rotary(first.norm1.weight)
        self.layer = (Layer * len(head.layers))(*(self._layer(layer) for layer in head.layers))
        cos_Kd, signed_Kd = rotary[:, :, 0, 0]
        sin_Kd = signed_Kd.chunk(2, -1)[1].repeat(1, 2)
        outputs = list(map(self.matrix, head.outputs))
        self.tables = (c_void_p * self.K)(*(self.vector(table.weight) for table in head.tables))
        self.outputs = (Matrix * self.K)(*(outputs[k % len(outputs)] for k in range(self.K)))
        self.body = Body(
            len(head.layers),
            width,
            first.heads,
            first.heads,
            head.head_width,
            first.down.in_features,
            head.norm.eps,
            head.head_width**-0.5,
            self.layer,
            self.vector(head.norm.weight),
            self.vector(cos_Kd),
            self.vector(sin_Kd),
        )
        enter = self.matrix(head.enter) if isinstance(head.enter, nn.Linear) else Matrix()
        self.head = Head(self.body, enter, self.K, self.V, self.tables, self.outputs)

    def _layer(self, layer: nn.Module) -> Layer:
        q_k_v, gate_up = self.matrices(layer.qkv, 3), self.matrices(layer.gate_up, 2)
        norm1, norm2 = (self.vector(norm.weight) for norm in (layer.norm1, layer.norm2))
        return Layer(norm1, *q_k_v, self.matrix(layer.out), norm2, *gate_up, self.matrix(layer.down))

    def __call__(self, h_BD: torch.Tensor, pick: Any) -> torch.Tensor:
        """-> codes_BK, with the options and the noise of a `Picker`, which gets their log-probabilities if it wants."""
        h_BD, codes_BK = h_BD.float().contiguous(), torch.empty(len(h_BD), self.K, dtype=torch.long)
        noise = pick.draw_noise(self.V, h_BD.device)
        scales = (c_double * 2)(*pick.cfg_scales), len(pick.cfg_scales)
        how = Sampling(pick.sampling.temperature, pick.sampling.top_p, *scales, pick.sampling.top_k)
        logps_BK = torch.empty(len(h_BD) // (1 + len(pick.cfg_scales)), self.K) if pick.scored else None
        tensors = h_BD, noise, codes_BK, logps_BK
        h, noise_at, into, logps = (c_void_p(None if x is None else x.data_ptr()) for x in tensors)
        library().draw(pointer(self.head), h, c_int64(len(h_BD)), noise_at, pointer(how), into, logps, threads())
        if pick.scored:
            pick.logps += logps_BK.unbind(1)
        return codes_BK


class CompiledEmbedding(Packed):
    """`CodebookEmbedding` position by position for one embedding, in C++."""

    def __init__(self, embedding: nn.Module):
        super().__init__()
        self.look_up = embedding.quantizer.look_up
        self.entries_KVq = embedding.quantizer.entries()  # normalising them takes longer than the rest of a step
        projection, (last, first, _, second) = embedding.attn_projection, embedding.mm_projector
        attention, mlp = projection.attn, projection.mlp
        q, k, v = self.matrices(attention.qkv, 3)
        q.bias, v.bias = self.vector(attention.q_bias), self.vector(attention.v_bias)
        self.inner, self.dim, self.dtype = q.out, second.out_features, second.weight.dtype
        self.embedding = Embedding(
            attention.heads,
            self.layer_norm(projection.norm1),
            *(q, k, v, self.matrix(attention.proj)),
            self.layer_norm(projection.norm3),
            self.matrix(projection.proj),
            *(self.layer_norm(norm) for norm in (projection.norm2, mlp.norm)),
            *(self.matrix(linear) for linear in (mlp.w0, mlp.w1, mlp.w2)),
            self.layer_norm(last),
            *(self.matrix(linear) for linear in (first, second)),
        )

    def __call__(self, codes_NK: torch.Tensor, cache: dict[str, Any] | None) -> torch.Tensor:
        """codes_NK of the position after those in `cache` -> embeds_ND. `cache` is a dict, empty at first; with None,
        the position is embedded as the first."""
        cache = {} if cache is None else cache
        features_NQ = self.look_up(codes_NK, self.entries_KVq)
        rows, place = len(features_NQ), cache.setdefault("place", 0)
        if place == cache.setdefault("memory", features_NQ.new_empty(2, rows, 0, self.inner)).shape[2]:
            memory = features_NQ.new_empty(2, rows, max(64, 2 * place), self.inner)
            memory[:, :, :place] = cache["memory"]
            cache["memory"] = memory
        (keys, values), embeds_ND = cache["memory"], features_NQ.new_empty(rows, self.dim)
        columns = keys.shape[1]
        x, y, k, v = (c_void_p(tensor.data_ptr()) for tensor in (features_NQ, embeds_ND, keys, values))
        sizes = (c_int64(size) for size in (rows, place, columns))
        library().embed(pointer(self.embedding), x, y, *sizes, k, v, threads())
        cache["place"] += 1
        return embeds_ND.to(self.dtype)


def threads() -> c_int:
    return c_int(torch.get_num_threads())


_made: WeakKeyDictionary[nn.Module, tuple[Any, Packed]] = WeakKeyDictionary()


def forget(model: nn.Module) -> None:
    """Drop what was prepared of a model's parts. To be called where weights are taken away, and not changed in place:
    it would keep their memory, and others that come to the same place would be taken for them."""
    for module in model.modules():
        _made.pop(module, None)


def backbone(module: nn.Module) -> CompiledBackbone | None:
    """The C++ step of a backbone. None if the eager step must run: with adapters, hooks or autocast, other precisions
    or devices, no compiler, or 4-bit weights in a layout of torch that step.cpp does not know."""
    if module.rotary_emb.rope_type not in FIXED_ROTARY or module.config.hidden_act != "silu":
        return None
    kinds = {type(inner) for inner in module.layers.modules()}
    if Int4Linear in kinds and int4_block() is None:
        return None
    return _compiled(module, CompiledBackbone, [module.layers, module.norm])


def image_layers(module: ImageLayers, backbone: nn.Module) -> Callable[[torch.Tensor, Any], torch.Tensor] | None:
    """The C++ step of image positions, for batches without others. None in the cases of `backbone`."""
    if backbone.rotary_emb.rope_type not in FIXED_ROTARY:
        return None
    step = _compiled(module, partial(CompiledBackbone, backbone), [module])
    return step and (lambda x_BD, cache: module.leave(step(module.enter(x_BD), cache)))


def head(module: nn.Module) -> Callable[[torch.Tensor, Any], torch.Tensor] | None:
    """The C++ `sample` of a `DepthHead`, or its own for sampling that step.cpp does not know. None for other heads, and
    in the cases of `backbone`."""
    compiled = _compiled(module, CompiledHead, [module]) if isinstance(module, DepthHead) else None
    if compiled is None:
        return None
    return lambda h_BD, pick: (compiled if is_mirrored(pick.sampling) else module.sample)(h_BD, pick)


@lru_cache
def is_mirrored(sampling: Any) -> bool:
    """Whether step.cpp has all options that are not at their defaults."""
    known = {name for name, _ in Sampling._fields_}
    return all(getattr(sampling, one.name) == one.default for one in fields(sampling) if one.name not in known)


def embedding(module: nn.Module) -> CompiledEmbedding | None:
    """The C++ step of a `CodebookEmbedding`. None for other embeddings, and in the cases of `backbone`."""
    return _compiled(module, CompiledEmbedding, [module]) if isinstance(module, CodebookEmbedding) else None


def _compiled(module: nn.Module, make: Callable[[nn.Module], Packed], parts: Sequence[nn.Module]) -> Any:
    weights = [weight for part in parts for weight in part.parameters()]
    kinds = {(weight.dtype, weight.device.type) for weight in weights}
    if torch.is_autocast_enabled("cpu") or len(kinds) > 1 or not kinds <= SUPPORTED:
        return None
    if any(is_modified(inner) for part in parts for inner in part.modules()) or library() is None:
        return None
    weights += [buffer for part in parts for buffer in part.buffers()]
    version = [(weight.data_ptr(), weight._version) for weight in weights]  # training changes them in place
    found = _made.get(module)
    if found is None or found[0] != version:
        found = _made[module] = version, make(module)
    return found[1]


def is_modified(module: nn.Module) -> bool:
    """Whether a module has hooks, or is a linear layer other than torch's own, such as an adapter's."""
    strange = hasattr(module, "in_features") and type(module) is not nn.Linear
    return bool(strange or module._forward_hooks or module._forward_pre_hooks)
