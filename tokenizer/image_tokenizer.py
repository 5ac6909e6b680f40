"""ImageTokenizer: images to code tuples and back, with a contrastive branch (UniTok, arXiv 2502.20321).

Shapes: N images, H x W pixels, L positions (H/16 * W/16 in a grid), K sub-codebooks, Q quantized channels, C encoder
channels, E channels of the embedding shared with text.
"""

import math
import warnings
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.utils import torch_compilable_check

from .architectures import ARCHITECTURES
from .layouts import make_layout
from .projection import PROJECTIONS
from .psnr import psnr
from .quantizers import Quantized, QuantizerOptions, make_quantizer
from .sizes import STRIDE, ImageTokenizerConfig
from .text_tower import TextTower
from .transform import load_image, to_images, to_pixels

# Codes of an image must be those of any other machine. By default, GPUs convolve float32 with 10 bits of precision
# (TF32), which flips near ties; matrix products are in float32 by default. Older versions of torch warn of this name,
# but the new one (`cudnn.conv.fp32_precision`) is not known to torch.compile.
with warnings.catch_warnings(action="ignore"):
    torch.backends.cudnn.allow_tf32 = False


class TrainingOutput(NamedTuple):
    """What the losses of the image tokenizer need; image and text features are unit vectors [N, E]; `places_NLC` is
    what the decoder read (with `pixel_codebooks`, what the other codes say instead), `teacher_NLT` what it says of a
    teacher's features, None without `teacher_width`; `layers` what each of the encoder's gives, where it is wanted."""

    pixels_N3HW: torch.Tensor
    quantized: Quantized
    image_features: torch.Tensor
    text_features: torch.Tensor
    places_NLC: torch.Tensor
    teacher_NLT: torch.Tensor | None
    layers: list[torch.Tensor]


class ImageTokenizer(nn.Module, PyTorchModelHubMixin):
    """The public calls are `encode`, `decode`, `image_features`, `text_features`; all accept a batch.

    Its weights are float32 whatever a model around it is cast to: rounded ones would give an image other codes.
    """

    def __init__(self, config: ImageTokenizerConfig):
        super().__init__()
        self.config = config
        if config.projection not in PROJECTIONS:
            raise ValueError(f"unknown projection {config.projection!r}; known: {', '.join(PROJECTIONS)}")
        if config.architecture not in ARCHITECTURES:
            raise ValueError(f"unknown architecture {config.architecture!r}; known: {', '.join(ARCHITECTURES)}")
        encoder, decoder = ARCHITECTURES[config.architecture]
        rest = (config.heads, config.drop_path)
        self.encoder = encoder(config.conv_widths, config.conv_depths, config.width, config.depth, *rest)
        self.layout = make_layout(config)
        pixels, meaning = config.pixel_width, config.code_width - config.pixel_width
        self.quant_proj = _projection(config, config.width, meaning)
        self.quantizer = make_quantizer(config)
        self.post_quant_proj = _projection(config, meaning, config.width)
        self.quant_proj_pixels = self.post_quant_proj_pixels = None
        if pixels:
            norm = nn.LayerNorm(config.width, eps=1e-6)
            self.quant_proj_pixels = nn.Sequential(norm, _projection(config, config.width, pixels))
            self.post_quant_proj_pixels = _projection(config, pixels, config.width)
        conv_depths, depth = config.decoder_conv_depths or config.conv_depths, config.decoder_depth or config.depth
        self.decoder = decoder(config.conv_widths, conv_depths, config.width, depth, *rest)
        self.fc_norm = nn.LayerNorm(config.width, eps=1e-6)
        self.projection = nn.Linear(config.width, config.embed_dim)
        self.teacher_projection = nn.Linear(config.width, config.teacher_width) if config.teacher_width else None
        self.text_encoder = TextTower(
            config.text_vocab_size,
            config.text_context,
            config.text_width,
            config.text_layers,
            config.text_heads,
            config.embed_dim,
        )
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        _init_weights(self)
        self.float()  # of whatever default type they were made

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "ImageTokenizer":
        """All of `to`, `half` and `bfloat16` comes here: they move weights, and do not round them."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            cast = moved.is_floating_point() and moved.dtype != torch.float32
            return tensor.to(moved.device, torch.float32) if cast else moved

        return super()._apply(move, recurse)

    @property
    def device(self) -> torch.device:
        return self.logit_scale.device

    def save_rounded(self, folder: str | Path) -> None:
        """As `save_pretrained`, with weights in bfloat16, half as large. Loaded, they are float32 again, and codes are
        those of the rounded weights: a language model must be trained on codes of the folder, not of this object."""
        self.save_pretrained(folder)
        file = Path(folder) / "model.safetensors"
        save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file, {"format": "pt"})

    def features(self, pixels_N3HW: torch.Tensor) -> torch.Tensor:
        """-> features_NLQ before quantization, float32."""
        return self._features(pixels_N3HW)[0]

    def _features(self, pixels_N3HW: torch.Tensor, layers: bool = False) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """-> `features`, and what each of the encoder's layers gives, [N, H/16 * W/16, C], if `layers` are wanted."""
        H, W = pixels_N3HW.shape[-2:]
        if H % STRIDE or W % STRIDE or not H or not W:
            raise ValueError(f"pixels of {H} x {W}; both sides must be multiples of {STRIDE}")
        depth = [self.config.pixel_depth] if self.quant_proj_pixels else []
        depths = range(self.config.depth) if layers else depth
        last_NLC, taps = self.encoder.tapped(pixels_N3HW, depths) if depths else (self.encoder(pixels_N3HW), [])
        shallow = [taps[depths.index(at)] for at in depth]
        x_NLC = self.layout.gather(last_NLC, (H // STRIDE, W // STRIDE))
        # Projection and quantizer stay in float32 under autocast: near ties between entries flip otherwise.
        with torch.autocast(x_NLC.device.type, enabled=False):
            parts = [self.quant_proj(x_NLC.float()), *(self.quant_proj_pixels(x.float()) for x in shallow)]
            return torch.cat(parts, -1), [*taps[1:], last_NLC] if layers else []

    def widen(self, features_NLQ: torch.Tensor) -> torch.Tensor:
        """Quantized features -> [N, L, C], what layout and decoder read."""
        if not self.post_quant_proj_pixels:
            return self.meaning(features_NLQ)
        with torch.autocast(features_NLQ.device.type, enabled=False):
            return self.post_quant_proj_pixels(features_NLQ[..., -self.config.pixel_width :])

    def meaning(self, features_NLQ: torch.Tensor) -> torch.Tensor:
        """Quantized features -> [N, L, C], what the contrastive branch reads."""
        with torch.autocast(features_NLQ.device.type, enabled=False):
            return self.post_quant_proj(features_NLQ[..., : self.config.code_width - self.config.pixel_width])

    @torch.no_grad()
    def encode(self, images: Sequence[Image.Image | str | Path | torch.Tensor] | torch.Tensor) -> torch.Tensor:
        """PIL images and paths (resized and cropped as the config says) and pixels [3, H, W], mixed -> codes_NLK,
        int64. In float32 under autocast, too. Raises ValueError where weights or pixels are not finite."""
        return self.quantizer.encode(self.encode_features(images))

    @torch.no_grad()
    def encode_features(self, images: Sequence[Image.Image | str | Path | torch.Tensor] | torch.Tensor) -> torch.Tensor:
        """Images as `encode` takes them -> features_NLQ before quantization, from which the quantizer chooses their
        codes. Raises as `encode`."""
        with torch.autocast(self.device.type, enabled=False):
            features_NLQ = self.features(self._pixels(images))
        torch_compilable_check(
            features_NLQ.isfinite().all(),
            "the image tokenizer's features are not finite: its weights, or the pixels, are damaged",
        )
        return features_NLQ

    @torch.no_grad()
    def decode(self, codes_NLK: torch.Tensor, grid: tuple[int, int] | None = None) -> list[Image.Image]:
        """codes_NLK -> PIL images; `grid` is (rows, columns), square if not given. Raises ValueError for codes outside
        the codebooks, for as many positions as make no picture, and for weights that are not finite."""
        with torch.autocast(self.device.type, enabled=False):
            pixels_N3HW = self.decode_pixels(codes_NLK.to(self.device), grid)
        if not bool(pixels_N3HW.isfinite().all()):
            raise ValueError("the image tokenizer's pixels are not finite: its weights are damaged")
        return to_images(pixels_N3HW)

    @torch.no_grad()
    def shortest(
        self, images: Sequence[Image.Image | str | Path | torch.Tensor] | torch.Tensor, least: float
    ) -> list[torch.Tensor]:
        """The fewest codes of each image, [n, K], that make a picture with a PSNR of `least` dB; all of them where none
        has it. KARL (arXiv 2507.07995) learns to tell how many; here they are found by halving, as if each further
        position made the picture better. Raises ValueError without a `tail_drop`."""
        pixels_N3HW = self._pixels(images)
        codes_NLK = self.encode(pixels_N3HW)
        lengths = self.layout.lengths(codes_NLK.shape[1])
        if len(lengths) == 1:
            raise ValueError("fewer positions make no picture: only those of layouts with a tail_drop do")
        pairs = list(zip(pixels_N3HW, codes_NLK, strict=True))
        qualities = [partial(self._psnr_of_first, *pair) for pair in pairs]
        return [
            codes_LK[: lengths[bisect_left(lengths[:-1], least, key=quality)]]
            for (_, codes_LK), quality in zip(pairs, qualities, strict=True)
        ]

    def _psnr_of_first(self, pixels_3HW: torch.Tensor, codes_LK: torch.Tensor, count: int) -> float:
        H, W = pixels_3HW.shape[1:]
        decoded_N3HW = self.decode_pixels(codes_LK[None, :count], (H // STRIDE, W // STRIDE)).clamp(-1, 1)
        return psnr((decoded_N3HW - pixels_3HW).square().mean(), 2).item()

    def decode_pixels(self, codes_NLK: torch.Tensor, grid: tuple[int, int] | None = None) -> torch.Tensor:
        """codes_NLK -> pixels_N3HW, not clamped."""
        return self.decode_features(self.quantizer.decode(codes_NLK), grid)

    def decode_features(self, features_NLQ: torch.Tensor, grid: tuple[int, int] | None = None) -> torch.Tensor:
        """Quantized features -> pixels_N3HW, not clamped."""
        return self.decoder(*self.layout.spread(self.widen(features_NLQ), grid))

    def image_features(self, images: Sequence[Image.Image | torch.Tensor] | torch.Tensor) -> torch.Tensor:
        """-> unit vectors [N, E], from the quantized features as the decoder sees them."""
        quantized = self.quantizer(self.features(self._pixels(images)))
        return self._pool(self.meaning(quantized.features_NLQ))

    def text_features(self, ids_NT: torch.Tensor) -> torch.Tensor:
        """Zero-padded ids with the end-of-text id as the largest -> unit vectors [N, E]."""
        return F.normalize(self.text_encoder(ids_NT), dim=-1)

    def checkpoint_blocks(self) -> None:
        """Keep only the inputs of the transformer blocks in training, and compute the rest again in the backward."""
        self.encoder.checkpointing = self.decoder.checkpointing = True

    def forward(
        self,
        pixels_N3HW: torch.Tensor,
        ids_NT: torch.Tensor,
        options: QuantizerOptions | None = None,
        decoded: int | None = None,
        layers: bool = False,
    ) -> TrainingOutput:
        """One training pass. Only the first `decoded` images are decoded: the contrastive loss wants more of them than
        the decoder can afford."""
        H, W = pixels_N3HW.shape[-2:]
        features_NLQ, of_layers = self._features(pixels_N3HW, layers)
        quantized = self.quantizer(features_NLQ, options)
        x_NLC = meaning_NLC = self.widen(quantized.features_NLQ)
        places_NLC, grid = self.layout.spread(x_NLC[:decoded], (H // STRIDE, W // STRIDE))
        pixels_N3HW = self.decoder(places_NLC, grid)
        if self.post_quant_proj_pixels:
            meaning_NLC = self.meaning(quantized.features_NLQ)
            places_NLC = meaning_NLC[:decoded]
        return TrainingOutput(
            pixels_N3HW,
            quantized,
            self._pool(meaning_NLC),
            self.text_features(ids_NT),
            places_NLC,
            self.teacher_projection(places_NLC) if self.teacher_projection else None,
            of_layers,
        )

    def _pool(self, x_NLC: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.projection(self.fc_norm(x_NLC.mean(1))), dim=-1)

    def _pixels(self, images: Sequence[Image.Image | str | Path | torch.Tensor] | torch.Tensor) -> torch.Tensor:
        if isinstance(images, Image.Image | str | Path):  # one alone
            images = [images]
        if not torch.is_tensor(images):
            images = torch.stack([image if torch.is_tensor(image) else self._transform(image) for image in images])
        if images.dtype in (torch.float16, torch.bfloat16):
            # A model's inputs are often cast to its precision; that moves pixels by less than half of an 8-bit level.
            images = images.float().add(1.0).mul(127.5).round().div(127.5).sub(1.0)
        return images.to(self.device, torch.float32)

    def _transform(self, image: Image.Image | str | Path) -> torch.Tensor:
        config = self.config
        image = load_image(image) if isinstance(image, str | Path) else image
        return to_pixels(image, config.image_size, config.resize_ratio, config.interpolation)


def _projection(config: ImageTokenizerConfig, in_channels: int, out_channels: int) -> nn.Module:
    """Between the networks' width and that of codes."""
    heads = config.width // min(in_channels, out_channels)
    return PROJECTIONS[config.projection](in_channels, out_channels, heads, causal=config.causal)


def _init_weights(model: ImageTokenizer) -> None:
    """UniTok's: linear layers truncated normal 0.02, decoder convolutions Xavier with gain 0.5; the rest as it is."""
    projections = [part for name, part in model.named_children() if "quant_proj" in name]
    for part in (model.encoder.blocks, model.decoder, *projections, model.projection):
        for module in part.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
            elif isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight, gain=0.5)
            if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
