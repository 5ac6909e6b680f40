"""What a recipe's `model` says, as a model: new, pretrained in part, or from a folder; and which of it trains."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from data_recipes.scenes.world import LAYOUT_WORDS
from mllm import Mllm, MllmConfig, Processor
from mllm.codes import CodebookEmbedding
from mllm.folders import load_image_tokenizer, loading
from mllm.image_inputs import check_lengths
from mllm.text.ids import plan_token, text_ids
from tokenizer import SIZES, ImageTokenizer, ImageTokenizerConfig

from ..run.optim import freeze
from ..run.recipe import ModelConfig
from ..run.values import Interval
from .backbones import Pretrained, copy_weights, load_pretrained, text_config
from .lora import add_lora, load_adapter, merged, train_adapters
from .tune import TunedMllm, copy_codebooks
from .words import WordsMllm

NEW = "new:"  # before the size of an image tokenizer


class Start(NamedTuple):
    """What a run begins with. `loaded`: prefixes of the parameters that are not new."""

    model: Mllm
    processor: Processor
    loaded: tuple[str, ...]


def build_model(config: ModelConfig, checkpoint: Path | None = None, plain: type[Mllm] = Mllm) -> Start:
    """A new model from its parts, or the one at `init_from`, whose image tokenizer `image_tokenizer` replaces, or the
    one of a checkpoint; as a TunedMllm for `tune`, as a WordsMllm for `words`, else of the class `plain`, and with
    adapters for `lora`. Those of a checkpoint stand beside the weights that they began with, not beside the merged
    ones."""
    kind = TunedMllm if config.tune else WordsMllm if config.words else plain
    folder = checkpoint / "model" if checkpoint and not config.lora else config.init_from
    start = _load(kind, folder, config, folder != config.init_from) if folder else _assemble(kind, config)
    if config.words and not start.model.image_tokenizer.layout.on_grid:
        raise ValueError(
            "recipe, model.words: this image tokenizer's codes have no place in the picture to have a word"
        )
    if config.tune:
        start.model.guard(config.tune)
    if config.lora:
        add_lora(start.model, config.lora, start.processor.first_added_id())
        if checkpoint:
            load_adapter(start.model, checkpoint / "adapter")
    return start


def build_backbone(name: str) -> tuple[Mllm, Processor]:
    """A pretrained backbone alone, as a model that talks; what it has for images is new and as small as can be."""
    config = ModelConfig(image_tokenizer=f"{NEW}tiny", backbone=name, code_head="parallel")
    model, processor, _ = build_model(config)
    return model.eval(), processor


def choose_trained(model: Mllm, config: ModelConfig) -> None:
    """Parameters named by `trainable`, and adapters, keep a gradient; those of the image tokenizer only with `tune`.
    Raises ValueError for names of nothing, and when the two do not fit together."""
    freeze(model, config.trainable)
    if config.order and not all(parameter.requires_grad for parameter in model.order.parameters()):
        raise ValueError(f"recipe, model.trainable: the order {config.order!r} learns vectors of its own: add order")
    if config.image_input and not all(parameter.requires_grad for parameter in model.image_input.parameters()):
        raise ValueError(f"recipe, model.trainable: {config.image_input!r} learns a projector: add image_input")
    if not config.tune:
        named = [word for word in config.trainable if word.startswith("image_tokenizer")]
        if named:
            raise ValueError(f"recipe, model.trainable: {named[0]} trains with model.tune only")
        model.image_tokenizer.requires_grad_(False)
    elif not any(parameter.requires_grad for parameter in model.image_tokenizer.encoder.parameters()):
        raise ValueError("recipe, model.tune: nothing of image_tokenizer.encoder is in model.trainable")
    if config.lora:
        train_adapters(model)


def weights_to_save(weights: Mapping[str, torch.Tensor], config: ModelConfig) -> dict[str, torch.Tensor]:
    """The state dict of a plain model, as every command loads it, from that of one in training."""
    plain = merged(weights, config.lora) if config.lora else dict(weights)
    return copy_codebooks(plain) if config.tune else plain


def _load(kind: type[Mllm], folder: str | Path, config: ModelConfig, is_checkpoint: bool) -> Start:
    model = kind.from_pretrained(folder)
    if config.image_tokenizer and not is_checkpoint:
        model.image_tokenizer = _image_tokenizer(config.image_tokenizer)
        _share_codebooks(model)
    elif not isinstance(model.image_tokenizer, ImageTokenizer):  # loaded in parts
        model.image_tokenizer = load_image_tokenizer(folder)
    if config.plan_length is not None:
        model.config.plan_length = config.plan_length
    new = []
    if config.order not in (None, model.config.order):
        new.append("order")
        model.draw_in(config.order)
    if config.image_input not in (None, model.config.image_input):
        new.append("image_input")
        model.read_as(config.image_input)
    loaded = tuple(f"{name}." for name, _ in model.named_children() if name not in new) if new else ("",)
    if config.image_lengths:
        check_lengths(config.image_lengths, model.config.image_tokenizer_config)
        model.config.image_lengths = list(config.image_lengths)
    return Start(model, Processor.from_pretrained(folder), loaded)


def _assemble(kind: type[Mllm], config: ModelConfig) -> Start:
    pretrained = load_pretrained(config.backbone) if isinstance(config.backbone, str) else None
    if not config.image_tokenizer or bool(config.text_tokenizer) == bool(pretrained):
        raise ValueError(
            "recipe, model: give init_from; or image_tokenizer, and text_tokenizer or the name of a pretrained backbone"
        )
    image_tokenizer = _image_tokenizer(config.image_tokenizer)
    text_tokenizer = pretrained.text_tokenizer if pretrained else load_text_tokenizer(config.text_tokenizer)
    if config.plan_length:
        text_tokenizer.add_tokens(list(map(plan_token, LAYOUT_WORDS)), special_tokens=True)
    sizes = image_tokenizer.config
    template = pretrained.template if pretrained else "mllm"
    processor = Processor(
        text_tokenizer, sizes.num_positions, sizes.image_size, template, sizes.resize_ratio, sizes.interpolation
    )
    with naming_bad_sizes():
        model = kind(_model_config(config, processor, sizes, pretrained))
    model.image_tokenizer = image_tokenizer
    _share_codebooks(model)
    loaded = () if config.image_tokenizer.startswith(NEW) else ("image_tokenizer",)
    if pretrained:
        copy_weights(model, pretrained, _meanings(text_tokenizer) if config.plan_length else {})
        loaded += ("backbone", "lm_head")
    return Start(model, processor, loaded)


def _meanings(text_tokenizer: PreTrainedTokenizerBase) -> dict[int, list[int]]:
    """The ids of plans' words, such as "color red", with those of their last part as text: " red"."""
    ids = text_tokenizer.convert_tokens_to_ids(list(map(plan_token, LAYOUT_WORDS)))
    words = [f" {word.partition(' ')[2] or word}" for word in LAYOUT_WORDS]
    return dict(zip(ids, (text_ids(text_tokenizer, word) for word in words), strict=True))


def load_text_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Raises ValueError, in one line, for what is not there."""
    with loading(name):
        return AutoTokenizer.from_pretrained(name)


def _model_config(
    config: ModelConfig, processor: Processor, image_tokenizer: ImageTokenizerConfig, pretrained: Pretrained | None
) -> MllmConfig:
    vocab_size = len(processor.tokenizer)
    if not pretrained:
        check_backbone(config.backbone)
    check_sizes("model.code_embedding_args", config.code_embedding_args)
    check_sizes("model.code_head_args", config.code_head_args)
    check_sizes("model.image_layers", config.image_layers)
    sizes = text_config(pretrained) if pretrained else {"model_type": "llama", "vocab_size": vocab_size}
    ids = {"bos_token_id": processor.bos_id, "eos_token_id": processor.eos_id, "pad_token_id": processor.pad_id}
    return MllmConfig(
        text_config={**sizes, **ids, **({} if pretrained else config.backbone)},
        image_tokenizer=image_tokenizer.to_dict(),
        code_embedding=config.code_embedding,
        code_embedding_args=config.code_embedding_args,
        code_head=config.code_head,
        code_head_args=config.code_head_args,
        image_layers=config.image_layers or None,
        order=config.order or "raster",
        image_input=config.image_input or "codes",
        image_lengths=list(config.image_lengths) or None,
        plan_length=config.plan_length or 0,
        pad_token_id=processor.pad_id,
        image_token_id=processor.image_id,
        boi_token_id=processor.boi_id,
        eoi_token_id=processor.eoi_id,
    )


def check_backbone(sizes: Mapping[str, Any]) -> None:
    """Raises ValueError for no sizes, for sizes below 1, and for a key that transformers' config of this backbone does
    not know, which it would take in silence."""
    if not sizes:  # transformers' defaults are those of 7 B weights
        raise ValueError("recipe, model.backbone: give sizes, such as hidden_size, or the name of a pretrained one")
    kind = sizes.get("model_type", "llama")
    try:
        known = AutoConfig.for_model(kind).to_dict()
    except ValueError as error:
        raise ValueError(f"recipe, model.backbone.model_type: transformers knows no {kind!r}") from error
    for key in sizes:
        if key not in known and key != "model_type":
            near = get_close_matches(key, known, n=3) or [name for name in known if name.startswith("num_")]
            raise ValueError(f"recipe, model.backbone: a {kind} has no {key!r}; near to it: {', '.join(near)}")
    ends = ("_size", "_layers", "_heads", "_embeddings")
    check_sizes("model.backbone", {key: value for key, value in sizes.items() if key.endswith(ends)})


def check_sizes(name: str, sizes: Mapping[str, Any]) -> None:
    """Raises ValueError for one that is no number, or below 1; true and false are no sizes."""
    for key, value in sizes.items():
        if isinstance(value, bool):
            continue
        problem = Interval("[1, inf)").problem(value) if isinstance(value, (int, float)) else "is no number"
        if problem:
            raise ValueError(f"recipe, {name}.{key}: {value} {problem}")


@contextmanager
def naming_bad_sizes() -> Iterator[None]:
    """Sizes that make no model, of whatever part, end in one ValueError."""
    try:
        yield
    except (TypeError, RuntimeError, ZeroDivisionError, AttributeError, KeyError, StrictDataclassError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"recipe, model: these sizes make no model: {reason}") from error


def _share_codebooks(model: Mllm) -> None:
    """An embedding that reads codebook vectors reads those that the image tokenizer writes."""
    if isinstance(model.code_embed, CodebookEmbedding):
        model.code_embed.quantizer.load_state_dict(model.image_tokenizer.quantizer.state_dict())


def _image_tokenizer(name: str) -> ImageTokenizer:
    """One that is there, or a new one of a named size: "new:tiny"."""
    size = name.removeprefix(NEW)
    if size == name:
        return load_image_tokenizer(name)
    if size not in SIZES:
        raise ValueError(f"recipe, model.image_tokenizer: unknown size {size!r}; known: {', '.join(SIZES)}")
    return ImageTokenizer(SIZES[size]).eval()
