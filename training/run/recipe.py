"""Recipes: nested dataclasses, filled by defaults <- YAML file <- `a.b=c` words, unknown keys refused (OmegaConf)."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mllm.decode.options import DrawingOptions
from tokenizer import SIZES
from tokenizer.quantizers import Quantizer, QuantizerOptions, quantizer_kind

from .values import Section, check_values, one_of, within

ConfigType = TypeVar("ConfigType")


@dataclass
class RunConfig(Section):
    """Where a run lives, how long it is, and what it writes. `folder/name` holds everything. A step is one update from
    `accumulate` batches of `batch_size` on each rank. With `global_batch_size`, the samples of an update on all ranks,
    `accumulate` follows from the number of ranks, so that a run is the same on any. `checkpointing` saves memory by
    computing activations twice. Every step is logged, and each `log_every`-th shown; each `sample_every`-th (0: none),
    the language model draws and answers the recipe's `prompts`."""

    name: str = MISSING
    folder: str = "runs"
    seed: int = within("[0, 4294967296)", 0)  # torch's seeds are made of it, step and rank, in 64 bits
    steps: int = within("[1, inf)", MISSING)
    batch_size: int = within("[1, inf)", 32)
    accumulate: int = within("[1, inf)", 1)
    global_batch_size: int | None = within("[1, inf)", None)
    save_every: int = within("[1, inf)", 500)
    log_every: int = within("[1, inf)", 20)
    sample_every: int = within("[0, inf)", 0)
    keep: int = within("[1, inf)", 2)
    precision: str = one_of("bf16", "fp32")
    device: str = "auto"
    threads: int = within("[0, 1024]", 0)
    workers: int = within("[0, 1024]", 1)
    compile: bool = False
    checkpointing: bool = False
    wandb: str = one_of("off", "online", "offline")

    def __post_init__(self):
        super().__post_init__()
        if self.name in ("", ".", ".."):
            raise ValueError(f"recipe, run.name: {self.name!r} names no folder in run.folder")

    @property
    def path(self) -> Path:
        return Path(self.folder) / self.name

    def divide(self, world: int) -> None:
        """Set `accumulate` for so many ranks. Raises ValueError where `global_batch_size` cannot be divided."""
        if self.global_batch_size is None:
            return
        together = world * self.batch_size
        if self.global_batch_size % together:
            raise ValueError(
                f"recipe, run.global_batch_size: {self.global_batch_size} is no multiple of {together} "
                f"({world} ranks x run.batch_size {self.batch_size})"
            )
        accumulate = self.global_batch_size // together
        if self.accumulate not in (1, accumulate):
            raise ValueError(
                f"recipe, run.accumulate: {self.accumulate}, but run.global_batch_size {self.global_batch_size} makes "
                f"it {accumulate}; leave one of them out"
            )
        self.accumulate = accumulate


@dataclass
class OptimConfig(Section):
    """AdamW with warm-up and cosine decay. `lr_by_prefix` overrides `lr` for parameters by name prefix; matrices whose
    name starts with a word of `muon` are updated by Muon instead."""

    lr: float = within("(0, inf)", 1e-3)
    lr_by_prefix: dict[str, float] = within("[0, inf)", dict)
    muon: list[str] = field(default_factory=list)
    betas: tuple[float, float] = within("[0, 1)", (0.9, 0.95))
    eps: float = within("(0, inf)", 1e-6)
    weight_decay: float = within("[0, inf)", 0.02)
    clip: float = within("(0, inf]", 1.0)
    warmup: int = within("[0, inf)", 100)
    final_lr: float = within("[0, 1]", 0.02)


@dataclass
class ScenesConfig(Section):
    """The scenes world as a source: which glyphs, which split."""

    artwork: str = "emoji"
    split: str = "train"


@dataclass
class TokenizerDataConfig(ScenesConfig):
    """`images`: "scenes" (artwork, split and crop are about them), a folder, or names of webdataset shards. `crop`
    (pixels, 0: the whole image) cuts a square around one of the things: more of them a second. `mixed` is a second
    source, a folder or shards, which gives a `share` of the images: photographs beside scenes. `scale`: the least share
    of an image's area that a random crop keeps, of all but scenes; 1 takes the centre. More than `max_bad` images
    without use stop a run.
    """

    images: Any = "scenes"
    mixed: Any = None
    share: float = within("(0, 1)", 0.15)
    crop: int = within("[0, inf)", 0)
    scale: float = within("(0, 1]", 1.0)
    max_bad: int = within("[0, inf)", 100)


@dataclass
class ReconstructionConfig(Section):
    """Weights of what compares images before and after; without a weight, nothing is computed. `perceptual` and `gram`
    compare features of EfficientNet-Lite0, or of LPIPS with its file as `lpips`."""

    l1: float = within("[0, inf)", 0.2)
    l2: float = within("[0, inf)", 1.0)
    perceptual: float = within("[0, inf)", 0.0)
    gram: float = within("[0, inf)", 0.0)
    lpips: str | None = None


@dataclass
class TokenizerLossConfig(ReconstructionConfig):
    """Weights of the image tokenizer's loss terms (UniTok, arXiv 2502.20321, section 3.1). `disentangle` keeps
    sub-codebooks apart (FQGAN, arXiv 2411.16681). `teacher` lets codes tell the features of a frozen network (VQ-KD,
    arXiv 2208.06366), `relations` how alike they are at any two places; the network is that of `perceptual`. `layers`
    keeps each layer of a trained encoder near what it was (UniFlow, arXiv 2510.10575). The first `decoded` images of a
    rank's batch (null: all) are decoded; all of them count in the contrastive loss."""

    quantizer: float = within("[0, inf)", 1.0)
    entropy: float = within("[0, inf)", 0.0)
    disentangle: float = within("[0, inf)", 0.0)
    contrastive: float = within("[0, inf)", 1.0)
    teacher: float = within("[0, inf)", 0.0)
    relations: float = within("[0, inf)", 0.0)
    layers: float = within("[0, inf)", 0.0)
    decoded: int | None = within("[1, inf)", None)


@dataclass
class AdversarialConfig(Section):
    """The discriminator and its share in the loss: none at `weight` 0. It is DINOv2-S with its file as `dino`, else a
    patch discriminator from nothing. Its training begins with step `start`; from there, its weight grows over `ramp`
    steps, and the blur before it fades over `blur` steps."""

    weight: float = within("[0, inf)", 0.0)
    dino: str | None = None
    criterion: str = one_of("hinge", "softplus", "linear")
    consistency: float = within("[0, inf)", 4.0)
    start: int = within("[0, inf)", 0)
    ramp: int = within("[0, inf)", 0)
    blur: int = within("[0, inf)", 0)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=2e-4, betas=(0.5, 0.9), weight_decay=0.2, clip=10.0, final_lr=0.1)
    )


@dataclass
class TokenizerTrainConfig(Section):
    """A run of `scripts.train_tokenizer`: a new image tokenizer of a named size, `model` overriding its fields, or on
    from the one at `init_from`, alone or in a language model; `init_clip` is a file of ViTamin weights (timm's or
    open_clip's) for the encoder; `init_entries`, a language model from whose text embeddings codebooks begin. Where the
    model at `init_from` has a quantizer of another kind, all but that is taken over. Only parameters whose name starts
    with a word of `trainable` change: without encoder, quant_proj and quantizer, images keep their codes. `quantizer`
    holds options of the kind of quantizer that the model has (its `Options`).

    `ema` is the decay of the averaged weights, which are those that are saved and evaluated (0: the last ones).
    """

    run: RunConfig = field(default_factory=RunConfig)
    size: str = MISSING
    init_from: str | None = None
    init_clip: str | None = None
    init_entries: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    text_tokenizer: str = MISSING
    trainable: list[str] = field(default_factory=lambda: [""])
    data: TokenizerDataConfig = field(default_factory=TokenizerDataConfig)
    quantizer: dict[str, Any] = field(default_factory=dict)
    losses: TokenizerLossConfig = field(default_factory=TokenizerLossConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: float = within("[0, 1)", 0.0)

    def __post_init__(self):
        super().__post_init__()
        if self.size not in SIZES:
            raise ValueError(f"recipe, size: unknown {self.size!r}; known: {', '.join(SIZES)}")
        self.quantizer = asdict(self.quantizer_options())  # all of them, so that config.yaml says what was done
        if self.losses.disentangle and self.quantizer_kind().summed:
            raise ValueError("recipe, losses.disentangle: this kind of quantizer adds its entries up; set it to 0")
        if self.init_entries and self.quantizer.get("k_means_at"):
            raise ValueError("recipe, init_entries: quantizer.k_means_at replaces these entries: give one of them")
        if self.losses.layers and not (self.init_from or self.init_clip):
            raise ValueError("recipe, losses.layers: a new encoder has nothing to keep: give init_from or init_clip")
        meaning = self.losses.contrastive, self.losses.teacher, self.losses.relations
        if self.model.get("pixel_codebooks") and not any(meaning):
            raise ValueError(
                "recipe, model.pixel_codebooks: nothing teaches the other codes: give losses.contrastive, "
                "losses.teacher or losses.relations a weight"
            )

    def quantizer_kind(self) -> type[Quantizer]:
        return quantizer_kind(self.model.get("quantizer", SIZES[self.size].quantizer))

    def quantizer_options(self) -> QuantizerOptions:
        """`quantizer` as the model's kind of quantizer takes it. Raises ValueError for others."""
        options = OmegaConf.structured(self.quantizer_kind().Options)
        try:
            return OmegaConf.to_object(OmegaConf.merge(options, self.quantizer))
        except OmegaConfBaseException as error:
            raise ValueError(f"recipe, quantizer: {' '.join(str(error).split())}") from error


@dataclass
class AblationConfig(Section):
    """Variants of one recipe: `base` with the `a.b=c` words of each, once for each seed. `kind` says what is trained.

    Image tokenizers are measured on as many `crops` of scenes that no run has seen, or whole scenes where `base` has no
    crops; `language` is the recipe of a language model that learns to draw with the codes of each (null: none).
    Language models are measured on drawings of as many `prompts` of GenEval. Above 0, `minutes` replaces the steps of
    `base` with as many as each variant does in that time, by its first updates."""

    base: str = MISSING
    kind: str = one_of("image_tokenizer", "language_model")
    variants: dict[str, list[str]] = field(default_factory=dict)
    seeds: list[int] = within("[0, 4294967296)", lambda: [0])
    crops: int = within("[1, inf)", 1000)
    language: str | None = None
    prompts: int = within("[1, inf)", 200)
    minutes: float = within("[0, inf)", 0.0)

    def __post_init__(self):
        super().__post_init__()
        if self.minutes and self.kind == "image_tokenizer":
            raise ValueError("ablation, minutes: for language models only; give image tokenizers run.steps")


@dataclass
class LoraConfig(Section):
    """Adapters of `rank` beside the backbone's matrices called `targets`, scaled by `alpha / rank`; they train, and the
    matrices do not. With `tokens`, the embeddings and output rows of the tokens that were added to a pretrained text
    tokenizer train, too, or alone if there are no targets; those of words do not."""

    rank: int = within("[1, inf)", 16)
    alpha: float = within("(0, inf)", 32.0)
    targets: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"])
    tokens: bool = False


@dataclass
class TuneConfig(ReconstructionConfig):
    """The image tokenizer's share in a run that trains it with the language model (see tune.py): weights of the loss
    that keeps its reconstructions, and of its quantizer's. Where codes are read by tables, gradient reaches all entries
    through a softmax over them at `temperature`."""

    quantizer: float = within("[0, inf)", 1.0)
    temperature: float = within("(0, inf)", 0.05)


@dataclass
class ModelConfig(Section):
    """What a language-model run starts from: either `init_from`, or the parts of a new model. Its `image_tokenizer` is
    a folder, a shipped model's, or a new one ("new:" and a size); its `backbone` is a config of transformers, or names
    pretrained weights (see backbones.py), which bring their own text tokenizer. `image_layers`: see `MllmConfig`, as
    for `plan_length`, which adds the words of layouts to the text tokenizer of a new model, and for `image_input` and
    `image_lengths`, of which each training sample draws one, for the images that it only reads. With `words`, the code
    embedding alone trains, towards words of what each position of scenes shows (see words.py)."""

    init_from: str | None = None
    image_tokenizer: str | None = None
    text_tokenizer: str | None = None
    backbone: Any = field(default_factory=dict)
    code_embedding: str = "tables"
    code_embedding_args: dict[str, Any] = field(default_factory=dict)
    code_head: str = "depth"
    code_head_args: dict[str, Any] = field(default_factory=dict)
    image_layers: dict[str, Any] = field(default_factory=dict)
    order: str | None = None
    image_input: str | None = None
    image_lengths: list[int] = within("[1, inf)", list)
    plan_length: int | None = within("[0, inf)", None)
    trainable: list[str] = field(default_factory=lambda: [""])
    words: bool = False
    lora: LoraConfig | None = None
    tune: TuneConfig | None = None


@dataclass
class MixConfig(Section):
    """Scenes with extracted `codes`, or with pixels that are rendered and encoded in training (null): shares of drawing
    and answering, and how captions and questions become sequences. All questions about an image are asked, and for
    its prompt, each on its own, and so many `worded_questions` more, put as people put them. A share `chats` of the
    images has `questions_per_image` as the turns of one chat. With `layouts`, drawings begin with the layout, in ids
    that are no text, and some questions ask for it. With `language`, samples are conversations of
    data_recipes/scenes/language, each a seed's, in other words every epoch: `codes` are those of their pictures
    (scripts.extract_codes --language), and of the other keys only `caption_dropout` and `layouts` count."""

    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    codes: str | None = None
    draw: float = within("[0, inf)", 0.6)
    answer: float = within("[0, inf)", 0.4)
    caption_dropout: float = within("[0, 1]", 0.1)
    chats: float = within("[0, 1]", 0.2)
    questions_per_image: int = within("[1, inf)", 4)
    worded_questions: int = within("[0, inf)", 0)
    layouts: bool = False
    language: bool = False


@dataclass
class SourceConfig(Section):
    """Either `shards` of messages (see data_recipes/messages.py) or `scenes` with extracted codes. `weight` is the
    source's share of the samples. Of the requests to draw or edit in shards, a share of `caption_dropout` has no
    prompt, for guidance, and half of these no picture to edit; scenes have their own."""

    weight: float = within("[0, inf)", 1.0)
    shards: list[str] = field(default_factory=list)
    scenes: MixConfig | None = None
    caption_dropout: float = within("[0, 1]", 0.1)


@dataclass
class MixtureConfig(Section):
    """Sources by name. A sample of more than `max_length` tokens is a bad one, and more than `max_bad` bad ones end
    the run. `pack` is the length of rows that hold several samples (0: a row for each sample)."""

    sources: dict[str, SourceConfig] = field(default_factory=dict)
    max_length: int = within("[1, inf)", 1024)
    max_bad: int = within("[0, inf)", 100)
    pack: int = within("[0, inf)", 0)


@dataclass
class PromptConfig:
    """Something to look at during a run: an image to `draw`, or a question to `ask`, about the file `image` or none."""

    draw: str | None = None
    ask: str | None = None
    image: str | None = None

    def __post_init__(self):
        if (self.draw is None) == (self.ask is None) or (self.draw is not None and self.image is not None):
            raise ValueError("recipe, prompts: each is {draw: ...}, {ask: ...}, or {ask: ..., image: file}")


@dataclass
class DeepSpeedConfig(Section):
    """DeepSpeed's ZeRO in place of plain torch. What ranks share: nothing (`stage` 0), the optimizer's state (1), also
    gradients (2), also weights (3). `offload` keeps the optimizer's state, and weights that are shared, in the host's
    memory."""

    stage: int = within("[0, 3]", 2)
    offload: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.offload and not self.stage:
            raise ValueError("recipe, deepspeed.offload needs deepspeed.stage 1, 2 or 3")


@dataclass
class TrainConfig(Section):
    """A run of `scripts.train`. Codes count `code_weight` times as much as words. The code head predicts the codes of a
    `code_share` of the positions to draw, others in each update; their losses stand for those of all. In images to
    draw, up to `code_noise` of the positions are read with wrong codes (xAR, arXiv 2502.20388)."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: MixtureConfig = field(default_factory=MixtureConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    deepspeed: DeepSpeedConfig | None = None
    code_weight: float = within("(0, inf)", 1.0)
    code_share: float = within("(0, 1]", 1.0)
    code_noise: float = within("[0, 1]", 0.0)
    prompts: list[PromptConfig] = field(default_factory=list)

    def __post_init__(self):
        super().__post_init__()
        if self.run.sample_every and not self.prompts:
            raise ValueError("recipe, run.sample_every: there are no `prompts` to draw or to answer")
        if self.deepspeed and self.optim.muon:
            raise ValueError("recipe, optim.muon: Muon needs whole matrices; leave out deepspeed, or optim.muon")
        if self.deepspeed and self.deepspeed.stage == 3 and self.run.compile:
            raise ValueError("recipe, run.compile: not with deepspeed.stage 3, whose weights come and go in between")
        if self.code_noise and (self.model.tune or self.model.words):
            raise ValueError("recipe, code_noise: not with model.tune or model.words, whose codes come another way")
        if self.model.words and (self.model.lora or self.model.tune or self.model.trainable != ["code_embed"]):
            raise ValueError("recipe, model.words: give model.trainable: [code_embed], and no lora or tune")
        if self.model.words and (self.model.image_input or self.model.image_lengths):
            raise ValueError("recipe, model.words: it trains what codes say: leave out image_input and image_lengths")


@dataclass
class PromptSourceConfig(Section):
    """Prompts of the `scenes` world, of a `file` (one a line; or .jsonl, objects with "prompt" and, for rewards that
    read them, GenEval's other fields), or of the text-to-image samples in `shards`: one of the three."""

    scenes: ScenesConfig | None = None
    file: str | None = None
    shards: list[str] = field(default_factory=list)

    def __post_init__(self):
        super().__post_init__()
        if sum(map(bool, (self.scenes, self.file, self.shards))) > 1:
            raise ValueError("recipe, draw: give one of scenes, file and shards")


@dataclass
class RewardConfig(Section):
    """A part of the reward, `weight` times in the sum (0: only logged). `kind` is a key of `REWARDS`; by default, it is
    the part's name. `at`: the Python function as "module:function", or the address of a server, which has so many
    `seconds` for the drawings of a prompt in all `tries` together."""

    kind: str | None = None
    weight: float = within("[0, inf)", 1.0)
    at: str | None = None
    seconds: float = within("(0, 600]", 30.0)
    tries: int = within("[1, inf)", 3)


@dataclass
class GrpoConfig(Section):
    """See training/rl/methods/grpo.py. Each step makes so many `passes` over its drawings. `kl` is the weight of the
    divergence from the start (0: none, and no second model). Ids and codes whose log-probabilities in generation and in
    training differ by more than `mismatch` nats are left out. `weights` are keys of `WEIGHTS`."""

    passes: int = within("[1, inf)", 1)
    clip: float = within("(0, 1)", 0.2)
    kl: float = within("[0, inf)", 0.02)
    mismatch: float = within("(0, inf]", 1.0)
    weights: list[str] = field(default_factory=list)


@dataclass
class DpoConfig(Section):
    """`beta` weighs how far the log-probability of a whole drawing is from that of the start."""

    beta: float = within("(0, inf)", 0.02)


@dataclass
class QuestionsConfig(Section):
    """Questions that watch over understanding: the first `count` about held-out `scenes`, or of `shards`, asked every
    `every` steps. The run stops when the share of exact answers has fallen by more than `fall` since its start."""

    scenes: ScenesConfig | None = None
    shards: list[str] = field(default_factory=list)
    count: int = within("[1, inf)", 100)
    every: int = within("[1, inf)", 50)
    fall: float = within("[0, 1]", 0.03)

    def __post_init__(self):
        super().__post_init__()
        if bool(self.scenes) == bool(self.shards):
            raise ValueError("recipe, questions: give scenes or shards")


@dataclass
class RlConfig(TrainConfig):
    """A run of `scripts.train_rl`: `method` is a key of `METHODS`. A step draws a `group` of images for each of its
    prompts, at `temperature` and with guidance of `cfg_scale`; `run.batch_size` counts prompts. The text of plans
    learns, too, unless `plans` is false. `data` is optional here: an ordinary update with its samples follows each
    step, against forgetting. More than `max_bad` prompts without use, or `patience` steps in a row without a signal,
    stop the run."""

    method: str = "grpo"
    draw: PromptSourceConfig = field(default_factory=PromptSourceConfig)
    group: int = within("[2, inf)", 8)
    temperature: float = within("[0.001, inf)", 1.0)
    cfg_scale: float = within("[1, inf)", 1.0)
    plans: bool = True
    rewards: dict[str, RewardConfig] = field(default_factory=dict)
    grpo: GrpoConfig = field(default_factory=GrpoConfig)
    dpo: DpoConfig = field(default_factory=DpoConfig)
    questions: QuestionsConfig | None = None
    max_bad: int = within("[0, inf)", 100)
    patience: int = within("[1, inf)", 20)

    def __post_init__(self):
        super().__post_init__()
        if not self.model.init_from:
            raise ValueError("recipe, model.init_from: say which model learns from its drawings")
        if self.model.tune or self.model.words:
            raise ValueError("recipe, model: tune and words do not go with learning from drawings")
        if self.model.order:
            raise ValueError(
                "recipe, model.order: a model learns from its drawings in the order that it has: leave it out"
            )
        if not (self.draw.scenes or self.draw.file or self.draw.shards):
            raise ValueError("recipe, draw: give prompts: scenes, file or shards")
        if not any(reward.weight for reward in self.rewards.values()):
            raise ValueError("recipe, rewards: none has a weight")

    @property
    def drawing(self) -> DrawingOptions:
        """How the groups are drawn: from all entries, or log-probabilities would not be those of a choice."""
        return DrawingOptions(temperature=self.temperature, cfg_scale=self.cfg_scale)


def load_config(kind: type[ConfigType], path: str | Path, overrides: Sequence[str] = ()) -> ConfigType:
    """A recipe file and `a.b=c` words as an instance of `kind`. Raises ValueError naming the key that is wrong."""
    if not Path(path).is_file():
        raise ValueError(f"no recipe at {path}")
    for word in overrides:
        if not re.match(r"[^=]+=", word):
            raise ValueError(f"{word!r} is no change to the recipe: write KEY=VALUE, as in run.steps=100")
    where = f"recipe {path}"
    try:
        merged = OmegaConf.merge(OmegaConf.structured(kind), OmegaConf.load(path))
        for word in overrides:
            where = f"recipe, {word}"
            merged = OmegaConf.merge(merged, OmegaConf.from_dotlist([word]))
        where = f"recipe {path}"
        for name, section in _sections(merged):
            check_values(OmegaConf.get_type(section), OmegaConf.to_container(section, resolve=True), name)
        return OmegaConf.to_object(merged)
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError, TypeError) as error:
        raise ValueError(f"{where}: {' '.join(str(error).split())}") from error


def _sections(node: DictConfig | ListConfig, name: str = "") -> Iterator[tuple[str, DictConfig]]:
    """("a.b.", node) of each part that is a dataclass, from the outermost in."""
    if is_dataclass(OmegaConf.get_type(node)):
        yield name, node
    for key in node if isinstance(node, DictConfig) else range(len(node)):
        inner = None if OmegaConf.is_missing(node, key) else node[key]
        if isinstance(inner, (DictConfig, ListConfig)):
            yield from _sections(inner, f"{name}{key}.")


def save_config(config: Any, path: Path) -> None:
    """The resolved recipe as YAML."""
    OmegaConf.save(OmegaConf.structured(config), path)
