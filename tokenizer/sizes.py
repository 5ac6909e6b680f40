"""What an image tokenizer is made of, and the named sizes."""

from dataclasses import asdict, dataclass, field
from typing import Any

from .layouts import layout_kind
from .quantizers import quantizer_kind
from .transform import INTERPOLATIONS

STRIDE = 16  # encoders halve the image four times


@dataclass
class ImageTokenizerConfig:
    """Sizes of an image tokenizer; the defaults are the released UniTok-Large.

    The transform makes images of `image_size` pixels: short side resized to `image_size * resize_ratio` by
    `interpolation`, then a centre crop; the networks take any multiple of 16.
    `architecture` is the kind of encoder and decoder: `vitamin`, as UniTok's, or `conv` (see conv.py). `conv_widths`
    and `conv_depths` are channels and blocks of the convolutional stages before stride 16, finest first; `width`,
    `depth` and `heads` are of the transformers at stride 16. Where `decoder_conv_depths` and `decoder_depth` are not
    given, the decoder mirrors the encoder.
    `quantizer` is the kind of quantizer (see quantizers/), `quantizer_args` what it takes beside the sizes:
    `code_width` (Q) is split into `num_codebooks` (K) slices, each with `codebook_size` (V) entries.
    `layout` says how positions lie in an image (see layouts/), `layout_args` what it takes.
    With `pixel_codebooks`, so many of the sub-codebooks, the last ones, say what a shallow layer sees, after
    `pixel_depth` transformer blocks, and only they are decoded; the others say what the last layer sees, and only they
    are compared with captions and teachers (DualToken, arXiv 2503.14324, which has residual codes for both).
    `teacher_width`, above 0, is the number of a teacher's channels that training predicts from codes (losses.teacher).
    `causal` makes the two attention projections causal, as in UniTok's first release.
    """

    image_size: int = 256
    resize_ratio: float = 1.0
    interpolation: str = "bicubic"
    architecture: str = "vitamin"
    conv_widths: tuple[int, ...] = (160, 320)
    conv_depths: tuple[int, ...] = (2, 4)
    decoder_conv_depths: tuple[int, ...] = ()
    width: int = 1024
    depth: int = 31
    decoder_depth: int = 0
    heads: int = 16
    drop_path: float = 0.0
    quantizer: str = "multi_codebook"
    quantizer_args: dict[str, Any] = field(default_factory=dict)
    layout: str = "grid"
    layout_args: dict[str, Any] = field(default_factory=dict)
    code_width: int = 64
    num_codebooks: int = 8
    codebook_size: int = 4096
    pixel_codebooks: int = 0
    pixel_depth: int = 0
    commitment: float = 0.25
    projection: str = "attn"
    causal: bool = False
    embed_dim: int = 768
    teacher_width: int = 0
    text_vocab_size: int = 49408
    text_context: int = 77
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12

    def __post_init__(self):
        for name in ("conv_widths", "conv_depths", "decoder_conv_depths"):
            setattr(self, name, tuple(getattr(self, name)))
        if not 1 <= self.resize_ratio <= 4:
            raise ValueError(f"resize_ratio {self.resize_ratio} is outside 1 to 4; 1 crops as little as possible")
        from_zero = ("drop_path", "commitment", "conv_depths", "decoder_conv_depths", "decoder_depth", "teacher_width")
        from_zero += ("pixel_codebooks", "pixel_depth")
        for name, value in vars(self).items():
            least = 0 if name in from_zero else 1
            for number in value if isinstance(value, tuple) else (value,):
                if not isinstance(number, (str, bool, dict)) and not least <= number < float("inf"):
                    raise ValueError(f"{name} {value} is below {least} or no number")
        if self.image_size <= 0 or self.image_size % STRIDE:
            raise ValueError(f"image_size {self.image_size} is not a positive multiple of {STRIDE}")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"unknown interpolation {self.interpolation!r}; known: {', '.join(INTERPOLATIONS)}")
        if self.decoder_conv_depths and len(self.decoder_conv_depths) != len(self.conv_depths):
            raise ValueError(
                f"decoder_conv_depths {self.decoder_conv_depths} has {len(self.decoder_conv_depths)} numbers, "
                f"conv_depths {self.conv_depths} has {len(self.conv_depths)}: give one for each stage"
            )
        if len(self.conv_widths) != len(self.conv_depths):
            raise ValueError(f"conv_widths {self.conv_widths} and conv_depths {self.conv_depths} differ in length")
        for whole, part in (("width", "heads"), ("code_width", "num_codebooks"), ("text_width", "text_heads")):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(f"{whole} {getattr(self, whole)} is not a multiple of {part} {getattr(self, part)}")
        layout = layout_kind(self.layout)
        layout.count(self.grid, self.layout_args)  # raises ValueError for what cannot be
        if layout.one_way(self.layout_args) and self.projection == "attn" and not self.causal:
            raise ValueError(
                f"layout {self.layout}: its codes depend on no later ones, but projection attn sees all: make it "
                "linear, or causal"
            )
        if self.pixel_codebooks:
            self._check_taps()

    def _check_taps(self) -> None:
        """Raises ValueError where `pixel_codebooks` do not go with the rest."""
        chosen = f"pixel_codebooks {self.pixel_codebooks}"
        if self.pixel_codebooks >= self.num_codebooks:
            raise ValueError(f"{chosen} leave none of num_codebooks {self.num_codebooks} for meaning")
        if self.pixel_depth >= self.depth:
            raise ValueError(f"pixel_depth {self.pixel_depth} is not below depth {self.depth}: no layer is deeper")
        if quantizer_kind(self.quantizer).summed:
            raise ValueError(f"{chosen}: quantizer {self.quantizer} adds its codes up; choose one with slices")
        if self.layout != "grid":
            raise ValueError(f"{chosen}: both taps are grids; layout {self.layout} does not go with them")

    @property
    def pixel_width(self) -> int:
        """Channels of `code_width` that `pixel_codebooks` quantize."""
        return self.code_width // self.num_codebooks * self.pixel_codebooks

    @property
    def grid(self) -> int:
        """Places along one side of an image of `image_size`, each 16 x 16 pixels."""
        return self.image_size // STRIDE

    @property
    def num_positions(self) -> int:
        """L: positions of an image of `image_size`."""
        return layout_kind(self.layout).count(self.grid, self.layout_args)

    def to_dict(self) -> dict:
        return asdict(self)


# Base is the reference's `vitamin_base`, Large its released checkpoint (paper, section 4).
SIZES = {
    "unitok-large": ImageTokenizerConfig(),
    "unitok-base": ImageTokenizerConfig(conv_widths=(128, 256), width=768, depth=14, heads=12),
    "scenes": ImageTokenizerConfig(
        image_size=128,
        conv_widths=(16, 32),
        conv_depths=(1, 1),
        width=256,
        depth=4,
        heads=4,
        codebook_size=256,
        embed_dim=128,
        text_vocab_size=769,
        text_context=24,
        text_width=128,
        text_layers=2,
        text_heads=4,
    ),
    "scenes-conv": ImageTokenizerConfig(
        image_size=128,
        architecture="conv",
        conv_widths=(96, 192),
        conv_depths=(1, 2),
        decoder_conv_depths=(3, 3),
        width=256,
        depth=2,
        decoder_depth=3,
        heads=4,
        codebook_size=256,
        projection="linear",
        embed_dim=128,
        text_vocab_size=769,
        text_context=24,
        text_width=128,
        text_layers=2,
        text_heads=4,
    ),
    "tiny": ImageTokenizerConfig(
        image_size=32,
        conv_widths=(8, 16),
        conv_depths=(1, 1),
        width=32,
        depth=1,
        heads=2,
        code_width=8,
        num_codebooks=2,
        codebook_size=16,
        embed_dim=16,
        text_vocab_size=64,
        text_context=12,
        text_width=16,
        text_layers=1,
        text_heads=2,
    ),
}
