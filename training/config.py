"""Recipes: nested dataclasses, filled by defaults <- YAML file <- `a.b=c` words, unknown keys refused (OmegaConf)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

ConfigType = TypeVar("ConfigType")


@dataclass
class RunConfig:
    """Where a run lives, how long it is, and what it writes. `folder/name` holds everything."""

    name: str = MISSING
    folder: str = "runs"
    seed: int = 0
    steps: int = MISSING
    batch_size: int = 32
    save_every: int = 500
    log_every: int = 20
    keep: int = 2
    precision: str = "bf16"
    device: str = "auto"
    threads: int = 0
    workers: int = 1
    compile: bool = False
    wandb: str = "off"

    @property
    def path(self) -> Path:
        return Path(self.folder) / self.name


@dataclass
class OptimConfig:
    """AdamW with warm-up and cosine decay. `lr_by_prefix` overrides `lr` for parameters by name prefix; matrices whose
    name starts with a word of `muon` are updated by Muon instead."""

    lr: float = 1e-3
    lr_by_prefix: dict[str, float] = field(default_factory=dict)
    muon: list[str] = field(default_factory=list)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-6
    weight_decay: float = 0.02
    clip: float = 1.0
    warmup: int = 100
    final_lr: float = 0.02


@dataclass
class ScenesConfig:
    """The scenes world as a source: which glyphs, which split."""

    artwork: str = "emoji"
    split: str = "train"


@dataclass
class TokenizerDataConfig(ScenesConfig):
    """`crop` (pixels, 0: the whole image) cuts a square around one of the things: more of them a second."""

    crop: int = 0


@dataclass
class TokenizerLossConfig:
    """Weights of the image tokenizer's loss terms (UniTok, arXiv 2502.20321, section 3.1). The entropy term is taken
    over each `entropy_every`-th feature (0: not at all). The first `decoded` images of a rank's batch (null: all) are
    decoded; all of them count in the contrastive loss."""

    l1: float = 0.2
    l2: float = 1.0
    quantizer: float = 1.0
    entropy: float = 0.0
    entropy_every: int = 0
    contrastive: float = 1.0
    decoded: int | None = None


@dataclass
class TokenizerTrainConfig:
    """A run of `scripts.train_tokenizer`: a new image tokenizer of a named size, `model` overriding its fields, or on
    from the one at `init_from`."""

    run: RunConfig = field(default_factory=RunConfig)
    size: str = MISSING
    init_from: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    text_tokenizer: str = MISSING
    data: TokenizerDataConfig = field(default_factory=TokenizerDataConfig)
    losses: TokenizerLossConfig = field(default_factory=TokenizerLossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)


@dataclass
class ModelConfig:
    """What a language-model run starts from: either `init_from`, or the parts of a new model."""

    init_from: str | None = None
    image_tokenizer: str | None = None
    text_tokenizer: str | None = None
    backbone: dict[str, Any] = field(default_factory=dict)
    code_embedding: str = "tables"
    code_head: str = "depth"
    code_head_args: dict[str, Any] = field(default_factory=dict)
    trainable: list[str] = field(default_factory=lambda: [""])


@dataclass
class MixConfig:
    """Shares of the two kinds of samples, and how captions and questions become sequences."""

    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    codes: str | None = None
    draw: float = 0.6
    answer: float = 0.4
    caption_dropout: float = 0.1
    questions_per_image: int = 4


@dataclass
class TrainConfig:
    """A run of `scripts.train`."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: MixConfig = field(default_factory=MixConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    code_weight: float = 1.0


def load_config(kind: type[ConfigType], path: str | Path, overrides: Sequence[str] = ()) -> ConfigType:
    """A recipe file and `a.b=c` words as an instance of `kind`. Raises ValueError naming the key that is wrong."""
    if not Path(path).is_file():
        raise ValueError(f"no recipe at {path}")
    try:
        merged = OmegaConf.merge(
            OmegaConf.structured(kind), OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides))
        )
        return OmegaConf.to_object(merged)
    except (OmegaConfBaseException, YAMLError) as error:
        raise ValueError(f"recipe {path}: {' '.join(str(error).split())}") from error


def save_config(config: Any, path: Path) -> None:
    """The resolved recipe as YAML."""
    OmegaConf.save(OmegaConf.structured(config), path)
