"""Converts UniTok's unified model (github FoundationVision/UniTok, the folder `unitok_mllm`) to our folder, and back.

Its 7.5 B parameters need a few GB of memory: files are mapped into memory, and written shard by shard.
"""

import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaTokenizer

from tokenizer import ImageTokenizerConfig, unitok
from tokenizer.unitok import Files, Layout, Progress, Tensors, UniTok

from .config import MllmConfig
from .model import MllmForConditionalGeneration
from .text.processor import MllmProcessor

SHARD = "1GB"
TEXT_TOKENIZER = ("tokenizer.model", "tokenizer.json")
INSIDE = "image_tokenizer."  # prefix of the image tokenizer's tensors

# What config.json says of the backbone; the second line may be missing.
LLAMA = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
LLAMA_MORE = ["num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_theta"]
# Fixed in the reference's code.
CODE_HEAD_LAYERS, Z_LOSS = 3, 5e-5

# Our names -> the reference's. Several: the rows of our matrix are theirs, one after the other.
PREFIXES = {
    "backbone.": "model.",
    "code_embed.": "model.multi_embedder.",
    "code_head.tables.": "ar_head.codebooks.",
    "code_head.outputs.0.": "ar_head.linear_head.",
    "code_head.": "ar_head.",
}
CODE_HEAD_LAYER = {
    "norm1": ["input_layernorm"],
    "qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "out": ["self_attn.o_proj"],
    "norm2": ["post_attention_layernorm"],
    "gate_up": ["mlp.gate_proj", "mlp.up_proj"],
    "down": ["mlp.down_proj"],
}


def convert_unitok_mllm(folder: Path, image_tokenizer: UniTok, out: Path, progress: Progress) -> list[str]:
    """Fill the folder `out` for `from_pretrained` of model and processor; -> lines on what was dropped or odd.

    Raises ValueError, in one line, for what is missing in `folder`, unreadable, or not of such a model.
    """
    processor = _processor(folder, image_tokenizer.config)
    try:
        config = unitok_mllm_config(folder / "config.json", image_tokenizer.config, processor)
        layout = unitok_mllm_layout(config)
    except (OSError, ValueError):
        raise
    except Exception as error:  # transformers and torch raise whatever a wrong size leads to
        raise ValueError(f"{folder / 'config.json'} describes no such model: {' '.join(str(error).split())}") from error
    files = Files(_weights(folder), {INSIDE + name: tensor for name, tensor in image_tokenizer.tensors.items()})
    unitok.compare(unitok.reference_shapes(layout), files.like, folder)
    lines = unitok.write_ours(layout, files, image_tokenizer.args, out, progress, SHARD)
    config.dtype = files.like["lm_head.weight"].dtype
    config.save_pretrained(out)
    processor.save_pretrained(out)
    for file in folder.iterdir():
        if file.suffix in (".json", ".model") and not file.name.endswith(".index.json"):
            shutil.copy(file, (out / unitok.KEPT).parent)
    return lines + _compare_codebooks(layout, files)


def export_unitok_mllm(folder: Path, out: Path, progress: Progress) -> None:
    """Fill the folder `out` with the files that `folder` was made from, tensors bit for bit."""
    kept, config = unitok.load_kept(folder), MllmConfig.from_pretrained(folder)
    files, layout = Files(_weights(folder)), unitok_mllm_layout(config)
    unitok.compare({name: entry.shape for name, entry in layout.items()}, files.like, folder)

    def make(names: list[str]) -> Tensors:
        return unitok.to_reference({name: layout[name] for name in names}, files.select(names), kept["dropped"])

    inside = make([name for name in layout if name.startswith(INSIDE)])
    inside = {name.removeprefix(INSIDE): tensor for name, tensor in inside.items()}
    unitok.export_unitok(UniTok(config.image_tokenizer_config, inside, kept["args"]), out)
    language = {name: tensor for name, tensor in files.like.items() if not name.startswith(INSIDE)}
    unitok.write_shards(language, make, out, progress, SHARD)
    for file in (folder / unitok.KEPT).parent.iterdir():
        if file.suffix != ".pt":
            shutil.copy(file, out)


def find_image_tokenizer(folder: Path, given: Path | None = None, causal: bool = False) -> UniTok:
    """The one `given`, the reference's file or a folder converted from it; or the file in `folder` or beside it."""
    for place in [given, given / unitok.FILE] if given else [folder / unitok.FILE, folder.parent / unitok.FILE]:
        if place.is_file():
            return unitok.read_unitok(place, causal)
        if (place / "config.json").is_file():
            found = unitok.read_folder(place)
            if causal and not found.config.causal:
                raise ValueError(f"{place} has full projections: convert it again with --projection causal")
            return found
    what = f"no image tokenizer at {given}" if given else f"no {unitok.FILE} in {folder} or beside it"
    raise ValueError(f"{what}: give one with --image-tokenizer")


def unitok_mllm_config(file: Path, image_tokenizer: ImageTokenizerConfig, processor: MllmProcessor) -> MllmConfig:
    """From the reference's config.json. Raises ValueError if it is not one of such a model."""
    given = unitok.read_json(file, "model_type", *LLAMA)
    if given["model_type"] != "mini_gemini":
        raise ValueError(f"{file}: model_type is {given['model_type']!r}, UniTok's is 'mini_gemini'")
    if given.get("rope_scaling"):
        raise ValueError(f"{file}: rope_scaling {given['rope_scaling']} is not supported")
    llama = LlamaConfig(**{name: given[name] for name in LLAMA + LLAMA_MORE if name in given})
    return MllmConfig(
        text_config=llama,
        image_tokenizer=image_tokenizer.to_dict(),
        code_embedding="codebook",
        code_head="depth",
        code_head_args={  # layers like the backbone's
            "layers": CODE_HEAD_LAYERS,
            "heads": llama.num_attention_heads,
            "hidden": llama.intermediate_size,
            "shared_output": True,
            "rope_theta": llama.rope_parameters["rope_theta"],
            "eps": llama.rms_norm_eps,
        },
        code_z_loss=Z_LOSS,
        pad_token_id=processor.pad_id,
        image_token_id=processor.image_id,
        boi_token_id=processor.boi_id,
        eoi_token_id=processor.eoi_id,
        architectures=[MllmForConditionalGeneration.__name__],
    )


def unitok_mllm_layout(config: MllmConfig) -> Layout:
    with torch.device("meta"):
        return unitok.make_layout(MllmForConditionalGeneration(config).state_dict(), _rename)


def _rename(name: str) -> list[str]:
    if name.startswith("code_head.layers."):
        _, _, layer, part, last = name.split(".")
        return [f"ar_head.layers.{layer}.{their}.{last}" for their in CODE_HEAD_LAYER[part]]
    ours = next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")
    return [PREFIXES.get(ours, "") + name.removeprefix(ours)]


def _processor(folder: Path, sizes: ImageTokenizerConfig) -> MllmProcessor:
    # Without either, transformers would make one that knows no words.
    if not any((folder / name).is_file() for name in TEXT_TOKENIZER):
        raise ValueError(f"{folder} has no text tokenizer: {' or '.join(TEXT_TOKENIZER)} is missing")
    try:
        text_tokenizer = LlamaTokenizer.from_pretrained(folder)
    except Exception as error:  # sentencepiece, protobuf and tokenizers raise what they like
        raise ValueError(f"cannot read the text tokenizer in {folder}: {' '.join(str(error).split())}") from error
    return MllmProcessor(text_tokenizer, sizes.num_positions, sizes.image_size, template="unitok")


def _weights(folder: Path) -> list[Path]:
    """The files, after a look at their index. Raises ValueError for files and tensors that are not where it says."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _shards(index, unitok.read_json(index, "weight_map")["weight_map"])
        if (folder / name).is_file():
            return [folder / name]
    raise ValueError(f"{folder} has no model.safetensors or pytorch_model.bin, whole or in shards with an index")


def _shards(index: Path, weight_map: object) -> list[Path]:
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: weight_map is no map of tensors to files")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise ValueError(f"{index}: {tensor} is said to be in {shard!r}, which is no file beside it")
    files = {shard: index.with_name(shard) for shard in sorted(set(weight_map.values()))}
    missing = [shard for shard, file in files.items() if not file.is_file()]
    if missing:
        raise ValueError(f"{len(missing)} of {len(files)} files that {index} names are missing, e.g. {missing[0]}")
    for shard, file in files.items():
        said = {tensor for tensor, where in weight_map.items() if where == shard}
        found = unitok.load_tensors(file).keys()
        told = [f"{len(said - found)} missing, e.g. {min(said - found)}"] if said - found else []
        told += [f"{len(found - said)} too many, e.g. {min(found - said)}"] if found - said else []
        if told:
            raise ValueError(f"{file} has other tensors than {index.name} says: {'; '.join(told)}")
    return list(files.values())


def _compare_codebooks(layout: Layout, files: Files) -> list[str]:
    layout = {name: entry for name, entry in layout.items() if name.endswith("quantizer.codebooks_KVq")}
    tensors = unitok.to_ours(layout, files.select(unitok.reference_shapes(layout)))
    language, image = (tensors[part + "quantizer.codebooks_KVq"] for part in ("code_embed.", INSIDE))
    if torch.equal(image.to(language.dtype), language):
        return []
    return ["note: the image tokenizer's codebooks are not those that the language model was trained with"]
