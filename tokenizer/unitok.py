"""The reference's image tokenizer (github FoundationVision/UniTok, `unitok_tokenizer.pth`) -> our folder, and back.

Tensors keep the reference's names but for the codebooks, which are one tensor [K, V, q] here. What only the reference
has lies beside our weights, in `reference/`, so that the way back gives the same bytes.
"""

import json
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .image_tokenizer import ImageTokenizer
from .sizes import ImageTokenizerConfig

FILE = "unitok_tokenizer.pth"
KEPT = "reference/kept.pt"

# The reference's argument `model`.
VITAMIN = {
    "vitamin_small": {"conv_widths": (64, 128), "width": 384, "depth": 14, "heads": 6},
    "vitamin_base": {"conv_widths": (128, 256), "width": 768, "depth": 14, "heads": 12},
    "vitamin_large": {"conv_widths": (160, 320), "width": 1024, "depth": 31, "heads": 16},
}
# Its other arguments -> our fields. One that is not saved has the released model's value, there as here.
ARGUMENTS = {
    **{
        name: name
        for name in ("num_codebooks", "embed_dim", "text_vocab_size", "text_width", "text_layers", "text_heads")
    },
    "img_size": "image_size",
    "vocab_width": "code_width",
    "vq_beta": "commitment",
    "quant_proj": "projection",
    "text_context_length": "text_context",
}
# Last names of the tensors that only the reference has, and why nothing is lost.
ZEROS = "zeros"
DROPPED = {"pos_embed": ZEROS, "zero_k_bias": ZEROS, "vocab_usage": "a running statistic of training"}

Tensors = dict[str, torch.Tensor]
Progress = Callable[[int, int], None]  # bytes written, bytes in all


class Entry(NamedTuple):
    """One tensor of ours in the reference's layout: its rows are those of `parts`, one part after the other; `dropped`
    are tensors beside it that only the reference has. Both: name -> shape."""

    shape: torch.Size
    parts: dict[str, torch.Size]
    dropped: dict[str, torch.Size]


Layout = dict[str, Entry]


class UniTok(NamedTuple):
    """An image tokenizer under the reference's names, and the arguments saved with it."""

    config: ImageTokenizerConfig
    tensors: Tensors
    args: dict[str, Any]


def convert_unitok(unitok: UniTok, out: Path, progress: Progress) -> list[str]:
    """Fill the folder `out` for `ImageTokenizer.from_pretrained`; -> lines on what was dropped."""
    (out / "config.json").write_text(json.dumps(unitok.config.to_dict(), indent=2) + "\n")
    return write_ours(unitok_layout(unitok.config), Files([], unitok.tensors), unitok.args, out, progress)


def export_unitok(unitok: UniTok, out: Path) -> None:
    """Write the reference's file into the folder `out`."""
    with _writing(out / FILE) as file:
        torch.save({"args": unitok.args, "trainer": {"unitok": unitok.tensors}}, file)


def read_unitok(file: Path, causal: bool = False) -> UniTok:
    """The reference's file. `causal`: it is of the first release, which the file itself does not tell.

    Raises ValueError, in one line, for what is no such file, is cut off, or holds other tensors than its arguments say.
    """
    checkpoint = load_torch(file)
    try:
        args, tensors = dict(checkpoint["args"]), _checked(checkpoint["trainer"]["unitok"], file)
    except (KeyError, TypeError):
        raise ValueError(f"{file} is no checkpoint of UniTok: it has no `args` and `trainer.unitok`") from None
    try:
        config = unitok_config(args, causal)
        layout = unitok_layout(config)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise ValueError(f"{file} was saved with other arguments than such a model has: {error}") from None
    compare(reference_shapes(layout), tensors, file)
    return UniTok(config, tensors, args)


def read_folder(folder: Path) -> UniTok:
    """What `convert_unitok` wrote. Raises ValueError, in one line, for any other folder."""
    kept = load_kept(folder)
    try:
        config = ImageTokenizerConfig(**read_json(folder / "config.json"))
    except TypeError as error:
        raise ValueError(f"{folder} is no image tokenizer: {error}") from None
    layout, files = unitok_layout(config), Files([folder / "model.safetensors"])
    compare({name: entry.shape for name, entry in layout.items()}, files.like, folder)
    return UniTok(config, to_reference(layout, files.select(layout), kept["dropped"]), kept["args"])


def unitok_config(args: dict[str, Any], causal: bool = False) -> ImageTokenizerConfig:
    """Sizes and preprocessing from the arguments that the reference saves."""
    model = args.get("model", "vitamin_large")
    if model not in VITAMIN:
        raise ValueError(f"unknown model {model!r} in the saved arguments; known: {', '.join(VITAMIN)}")
    if args.get("num_query"):
        raise ValueError(f"num_query {args['num_query']} in the saved arguments: register tokens are not supported")
    return ImageTokenizerConfig(
        **VITAMIN[model],
        **{ours: args[theirs] for theirs, ours in ARGUMENTS.items() if theirs in args},
        codebook_size=args.get("vocab_size", 32768) // args.get("num_codebooks", 8),
        causal=causal,
        resize_ratio=args.get("resize_ratio", 1.125),
        interpolation="bilinear",
    )


def unitok_layout(config: ImageTokenizerConfig) -> Layout:
    with torch.device("meta"):
        return make_layout(ImageTokenizer(config).state_dict())


def make_layout(ours: Tensors, rename: Callable[[str], list[str]] = lambda name: [name]) -> Layout:
    """`rename` gives the reference's name of a tensor; several, in order, where ours is several matrices in one."""
    layout = {}
    for name, tensor in ours.items():
        theirs, shape, dropped = rename(name), tensor.shape, {}
        head, _, last = theirs[0].rpartition(".")
        if len(theirs) > 1:
            shape = torch.Size([shape[0] // len(theirs), *shape[1:]])
        if last == "codebooks_KVq":
            theirs, shape = [f"{head}.codebooks.{k}.codebook.weight" for k in range(shape[0])], shape[1:]
            dropped = {f"{head}.codebooks.{k}.vocab_usage": shape[:1] for k in range(len(theirs))}
        elif last == "q_bias":
            dropped = {f"{head}.zero_k_bias": shape}
        elif name.endswith("encoder.norm.weight"):
            dropped = {name.replace("norm.weight", "pos_embed"): torch.Size([1, 1, *shape])}
        layout[name] = Entry(tensor.shape, dict.fromkeys(theirs, shape), dropped)
    return layout


def reference_shapes(layout: Layout) -> dict[str, torch.Size]:
    return {name: shape for entry in layout.values() for name, shape in (entry.parts | entry.dropped).items()}


def to_ours(layout: Layout, reference: Tensors) -> Tensors:
    """The tensors of `layout`; those of one part stay where the reference's are, mapped."""
    ours = {}
    for name, entry in layout.items():
        parts = [reference[part] for part in entry.parts]
        if len({part.dtype for part in parts}) > 1:  # would be lost on the way back
            raise ValueError(f"{', '.join(entry.parts)} have different dtypes")
        ours[name] = (parts[0] if len(parts) == 1 else torch.stack(parts)).reshape(entry.shape)
    return ours


def to_reference(layout: Layout, ours: Tensors, dropped: Tensors) -> Tensors:
    """The way back, bit for bit."""
    needed = {name: shape for entry in layout.values() for name, shape in entry.dropped.items()}
    compare(needed, {name: tensor for name, tensor in dropped.items() if name in needed}, KEPT)
    reference = {}
    for name, entry in layout.items():
        shapes = list(entry.parts.values())
        parts = ours[name].reshape(len(shapes), *shapes[0]).unbind()
        if len(parts) > 1:
            parts = [part.clone() for part in parts]  # tensors of a file may not share memory
        reference |= dict(zip(entry.parts, parts, strict=True)) | {name: dropped[name] for name in entry.dropped}
    return reference


class Files:
    """The tensors of several files, and some that are `given`, as one; `like` has them without bytes (device meta)."""

    def __init__(self, paths: Iterable[Path], given: Tensors | None = None):
        self.given, self.paths = given or {}, {}
        self.like = {name: tensor.to("meta") for name, tensor in self.given.items()}
        for path in paths:
            for name, tensor in load_tensors(path).items():
                self.paths[name], self.like[name] = path, tensor.to("meta")

    def select(self, names: Iterable[str]) -> Tensors:
        """Files are mapped anew by each call, so that memory goes back with the tensors that were read."""
        names = set(names)
        files = [load_tensors(path) for path in {self.paths[name] for name in names & self.paths.keys()}]
        return {name: tensor for file in [self.given, *files] for name, tensor in file.items() if name in names}


def write_ours(
    layout: Layout, files: Files, args: dict[str, Any], out: Path, progress: Progress, shard: str = "100GB"
) -> list[str]:
    """Weights and what is kept for the way back; -> lines on what was dropped. Raises ValueError where that would
    change the model."""
    dropped = {n: t.clone() for n, t in files.select(n for entry in layout.values() for n in entry.dropped).items()}
    for name, tensor in dropped.items():
        if DROPPED[name.rpartition(".")[2]] == ZEROS and tensor.any():
            raise ValueError(f"{name} should be zeros and is not: ours has no place for it")

    def make(names: list[str]) -> Tensors:
        entries = {name: layout[name] for name in names}
        return to_ours(entries, files.select(part for entry in entries.values() for part in entry.parts))

    write_shards(to_ours(layout, files.like), make, out, progress, shard)
    (out / KEPT).parent.mkdir()
    with _writing(out / KEPT) as file:
        torch.save({"args": args, "dropped": dropped}, file)
    counts = Counter(name.rpartition(".")[2] for name in dropped)
    return [f"dropped: {count} {last} ({DROPPED[last]})" for last, count in counts.items()]


def write_shards(
    like: Tensors, make: Callable[[list[str]], Tensors], out: Path, progress: Progress, shard: str
) -> None:
    """Files as `save_pretrained` writes them. `make` gets the names in `like` of one at a time, and may change them."""
    split = split_torch_state_dict_into_shards(like, max_shard_size=shard)
    total, done, weight_map = split.metadata["total_size"], 0, {}
    for file, names in split.filename_to_tensors.items():
        progress(done, total)
        tensors = make(names)
        with _writing(out / file):
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out / file, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        done += sum(like[name].nbytes for name in names)
        del tensors  # before the next are made
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": weight_map}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def compare(expected: dict[str, torch.Size], found: Tensors, where: object) -> None:
    """Raises ValueError, in one line, if names or shapes differ."""
    missing, extra = expected.keys() - found.keys(), found.keys() - expected.keys()
    told = [f"{len(missing)} missing, e.g. {min(missing)}"] if missing else []
    told += [f"{len(extra)} too many, e.g. {min(extra)}"] if extra else []
    for name in sorted(expected.keys() & found.keys()):
        if expected[name] != found[name].shape:
            told.append(f"{name} is {list(found[name].shape)} instead of {list(expected[name])}")
            break
    if told:
        raise ValueError(f"{where} has other tensors than such a model: {'; '.join(told)}")


def read_json(file: Path, *needed: str) -> dict[str, Any]:
    """Raises ValueError for what is no JSON object, or one without a key that is needed."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON object: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} is no JSON object, but a {type(content).__name__}")
    for key in needed:
        if key not in content:
            raise ValueError(f"{file} has no {key!r}")
    return content


def load_kept(folder: Path) -> dict[str, Any]:
    if not (folder / KEPT).is_file():
        raise ValueError(f"{folder} was not converted from the reference: it has no {KEPT}")
    kept = load_torch(folder / KEPT)
    if not isinstance(kept, dict) or not all(isinstance(kept.get(key), dict) for key in ("args", "dropped")):
        raise ValueError(f"{folder / KEPT} is not what a conversion keeps: it has no `args` and `dropped`")
    return kept


def load_torch(file: Path) -> Any:
    """A file of torch.save, mapped. The reference saves no more than `weights_only` lets through by itself: tensors,
    dtypes, OrderedDict and plain values. Raises ValueError for any other, and OSError."""
    with file.open("rb") as opened:
        head = opened.read(64)
    if not zipfile.is_zipfile(file):
        raise ValueError(f"cannot read {file} as a checkpoint: it {_told_of(head)}")
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        if not foreign:
            return torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its bytes lead to
        raise ValueError(f"cannot read {file} as a checkpoint: {str(error).split('. ')[0]}") from error
    raise ValueError(f"{file} holds objects that may run code, such as {foreign[0]}: not loaded")


def _told_of(head: bytes) -> str:
    """What a file is that begins so, and is none that torch.save writes today."""
    if not head:
        return "is empty"
    if head.startswith(b"version https://git-lfs"):
        return "is Git LFS's note of where a file is: fetch the file itself with git lfs pull"
    if head.startswith(b"PK"):
        return "is cut off: copy or download it again"
    if head[:1] == b"\x80" and head[1:2] in b"\1\2\3\4\5":
        told = "is in the format that torch.save had before version 1.6, which is not read, as it is a pickle"
        return f"{told}: where you trust it, load it with torch.load and save it with torch.save again"
    return "is no file of torch.save"


def load_tensors(file: Path) -> Tensors:
    """Mapped, from safetensors or torch.save."""
    if not file.is_file():
        raise ValueError(f"no file {file}")
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except SafetensorError as error:
            raise ValueError(f"cannot read {file} as a checkpoint: {error}") from None
    return _checked(load_torch(file), file)


def _checked(tensors: Any, file: Path) -> Tensors:
    if not isinstance(tensors, dict) or not all(torch.is_tensor(tensor) for tensor in tensors.values()):
        raise ValueError(f"{file} holds something other than tensors by name")
    return tensors


@contextmanager
def _writing(file: Path) -> Iterator[Path]:
    """Turns what a full disk raises into a ValueError."""
    try:
        yield file
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"cannot write {file.name}: {' '.join(str(error).split())}") from error
