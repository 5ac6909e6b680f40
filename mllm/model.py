"""The unified model: text ids and image codes in, text logits and code logits out.

Shapes: B sequences, T positions (text and image together), N images in a batch in order of appearance, M of them to
read, L positions an image, K sub-codebooks, V entries each, Q channels before the quantizer, D backbone width, P image
positions that carry loss.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple, torch_compilable_check

from tokenizer import ImageTokenizer
from tokenizer.quantizers import Quantized
from tokenizer.weights import weights_hash

from .codes import CODE_EMBEDDINGS, CODE_HEADS, PlacedTables
from .config import CACHE, MllmConfig
from .device import send, sync_is_free
from .folders import find_model, lazy_tensors, loading
from .image_inputs import IMAGE_INPUTS, check_lengths, shortened
from .image_layers import ImageLayers
from .masks import added, visible
from .orders import make_order

# Arguments of a pass that have a row for each image, not for each sequence.
OF_IMAGES = ("codes", "pixel_values", "is_target", "features", "image_lengths")


@dataclass
class MllmOutput(CausalLMOutputWithPast):
    """transformers' fields, and ours.

    `text_loss` and `code_loss` are sums over `text_count` text targets and `code_count` codes, in nats. So a trainer
    can combine those of all ranks and micro-batches by `mean_loss`; `loss` is this batch's alone. `text_losses`
    and `code_losses` [P, K] are the losses of single targets for logging, without gradient and without z-loss. With a
    `code_share` below 1, losses of codes are those of the sampled positions times the number of positions that each
    stands for, so their sum estimates the sum over all."""

    text_loss: torch.Tensor | None = None
    text_count: torch.Tensor | None = None
    code_loss: torch.Tensor | None = None
    code_count: torch.Tensor | None = None
    text_losses: torch.Tensor | None = None
    code_losses: torch.Tensor | None = None


def mean_loss(text_loss: Any, text_count: Any, code_loss: Any, code_count: Any, code_weight: float) -> Any:
    """The loss of a batch or of a whole update, from sums over text targets and codes: the weighted mean over text
    targets, of weight 1, and codes, of weight `code_weight`. 0 where there are neither."""
    return (text_loss + code_weight * code_loss) / (text_count + code_weight * code_count).clamp(min=1e-6)


def _check(condition: torch.Tensor, message: Callable[[], str]) -> None:
    """Raises ValueError if a condition is false. On an accelerator, reading it would wait for the device, so a kernel
    asserts it later, without the message."""
    if sync_is_free(condition.device) or torch.compiler.is_compiling():
        torch_compilable_check(condition, message)
    else:
        torch._assert_async(condition)


def _places(slots_BT: torch.Tensor, count: int) -> torch.Tensor:
    """The flat places of `count` true values. The number is given, so that no device is waited for to learn it."""
    return slots_BT.flatten().nonzero_static(size=count)[:, 0]


def image_starts(slots_BT: torch.Tensor) -> torch.Tensor:
    """Which image positions are the first of an image: there is other text between any two images."""
    return slots_BT & ~F.pad(slots_BT[:, :-1], (1, 0))


def _choose(choices: dict, what: str, name: str):
    if name not in choices:
        raise ValueError(f"unknown {what} {name!r}; known: {', '.join(choices)}")
    return choices[name]


class MllmForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """A decoder-only backbone with code embeddings, a code head, and the image tokenizer it sees and draws with."""

    config_class = MllmConfig
    base_model_prefix = "backbone"
    input_modalities = ("image", "text")
    output_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # `loss` is a mean over this batch, so a Trainer that accumulates must divide it
    _supports_sdpa = _supports_flash_attn = True
    _tp_plan = {"lm_head": "colwise_gather_output"}
    # Rounded weights would give codes other than those that the language model was trained on.
    _keep_in_fp32_modules_strict = ["image_tokenizer"]

    def __init__(self, config: MllmConfig):
        super().__init__(config)
        sizes, dim = config.image_tokenizer_config, config.text_config.hidden_size
        self.image_tokenizer = ImageTokenizer(sizes)
        self.backbone = AutoModel.from_config(config.text_config)
        self.lm_head = nn.Linear(dim, config.text_config.vocab_size, bias=False)
        self.code_embed = _choose(CODE_EMBEDDINGS, "code_embedding", config.code_embedding)(
            sizes, dim, **config.code_embedding_args
        )
        self.code_head = _choose(CODE_HEADS, "code_head", config.code_head)(
            dim, sizes.num_codebooks, sizes.codebook_size, **config.code_head_args
        )
        self.image_layers = ImageLayers(config.text_config, **config.image_layers) if config.image_layers else None
        self.order = make_order(config.order, sizes, dim)
        self.image_input = _choose(IMAGE_INPUTS, "image_input", config.image_input)(sizes, dim)
        check_lengths(config.image_lengths or (), sizes)
        inputs = self.get_input_embeddings()
        name = next(name for name, module in self.named_modules() if module is inputs)
        self._tied_weights_keys = {"lm_head.weight": f"{name}.weight"}
        self.post_init()
        # `generate` writes text: it ends where the model would begin to draw.
        ends = self.generation_config.eos_token_id
        self.generation_config.eos_token_id = [*([ends] if isinstance(ends, int) else ends or []), config.boi_token_id]
        self.generation_config.pad_token_id = config.pad_token_id
        if config.image_token_id >= 0:  # UniTok's is outside the vocabulary
            self.generation_config.suppress_tokens = [config.image_token_id]

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | None,
        *args: Any,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a shipped model ("scenes"), a folder or a hub id; with None, `config` and `state_dict`. Other arguments
        are as in transformers. Raises ValueError, in one line, for unknown names, damaged or missing files, weights
        that are not finite, and weights that do not fit the config. With `output_loading_info`, returns the model and
        what did not fit, and raises nothing for it.
        """
        source = pretrained_model_name_or_path
        source = source if source is None else find_model(source, "config.json", kwargs.get("subfolder", ""))
        with loading(source):
            model, info = super().from_pretrained(
                source, *args, output_loading_info=True, ignore_mismatched_sizes=ignore_mismatched_sizes, **kwargs
            )
        mismatched = [] if ignore_mismatched_sizes else [key[0] for key in info["mismatched_keys"]]
        wrong = sorted([*info["missing_keys"], *info["unexpected_keys"], *mismatched])
        if output_loading_info:
            return model, info
        if wrong:
            raise ValueError(f"{source}: weights and config disagree on {len(wrong)} tensors, e.g. {wrong[0]}")
        for name, weight in model.named_parameters():
            if weight.is_floating_point() and not weight.is_meta and not bool(weight.isfinite().all()):
                raise ValueError(f"{source}: the tensor {name} has values that are not finite: the weights are damaged")
        return model

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As in transformers. On the way it imports DeepSpeed, if that is installed, which would print a warning on
        every machine without an accelerator."""
        if not torch.accelerator.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        super().save_pretrained(*args, **kwargs)

    @staticmethod
    def _load_pretrained_model(model: Any, state_dict: dict | None, checkpoint_files: Any, *args: Any, **kwargs: Any):
        """Read tensors one by one. transformers would map files into memory: weights that change precision would be in
        memory twice, and replacing a file meanwhile would end the process."""
        if state_dict is None and not is_deepspeed_zero3_enabled():
            state_dict = lazy_tensors(checkpoint_files)
        return PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs)

    def _init_weights(self, module: nn.Module) -> None:
        # The image tokenizer initialises itself, by its own paper's rules.
        if not any(module is part for part in self.image_tokenizer.modules()):
            super()._init_weights(module)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the language model; the image tokenizer computes in float32 beside any."""
        return self.backbone.dtype

    def noisy(self, codes_NLK: torch.Tensor, is_target_N: torch.Tensor, most: float) -> torch.Tensor:
        """The codes, with a share of the positions of target images exchanged for random codes: in each image, a share
        between 0 and `most`. What is drawn later then does not trust earlier codes blindly, which in generation may be
        wrong (noisy context learning, xAR, arXiv 2502.20388)."""
        N, L = codes_NLK.shape[:2]
        shares_N1 = most * torch.rand(N, 1, device=codes_NLK.device) * send(is_target_N, codes_NLK.device)[:, None]
        wrong_NL = torch.rand(N, L, device=codes_NLK.device) < shares_N1
        others_NLK = torch.randint_like(codes_NLK, self.config.image_tokenizer["codebook_size"])
        return torch.where(wrong_NL[..., None], others_NLK, codes_NLK)

    def draw_in(self, order: str) -> None:
        """Give the model another order, which it has to learn. Embeddings of places go with them. Raises ValueError for
        one that is unknown or does not fit."""
        before, sizes = self.order, self.config.image_tokenizer_config
        self.order = make_order(order, sizes, self.config.text_config.hidden_size)
        self.order.apply(self._init_weights)
        self.config.order = order
        if isinstance(self.code_embed, PlacedTables):
            places_LD = self.code_embed.places.weight.data
            places_LD.copy_(self.order.of_slots(before.of_places(places_LD, 0), 0))

    def read_as(self, image_input: str) -> None:
        """Give the model another input of images to read, which it has to learn. Raises ValueError for an unknown
        one."""
        kind = _choose(IMAGE_INPUTS, "image_input", image_input)
        self.image_input = kind(self.config.image_tokenizer_config, self.config.text_config.hidden_size)
        self.image_input.apply(self._init_weights)
        self.config.image_input = image_input

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_input_embeddings(value)

    def embed(
        self,
        ids_BT: torch.Tensor,
        codes_NLK: torch.Tensor | None = None,
        quantized: Quantized | None = None,
        is_target: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
        image_lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """ids_BT with L placeholders for each image, and codes_NLK -> embeds_BTD, images in the order of drawing. Codes
        of fewer than L positions are the first that were drawn, in that order. With `quantized`, from which the codes
        were chosen, gradients reach the image tokenizer.

        Images to read, those that are not true in `is_target` [N] (None: all), may be read in other ways: with
        `features` [M, L, Q] of theirs before the quantizer, as `image_input` says, and at fewer positions, with
        `image_lengths` [N]. Raises ValueError when numbers of placeholders and codes disagree, for features that are
        missing, and for lengths that were not learned."""
        slots_BT = ids_BT == self.config.image_token_id
        # The placeholder need not be in the vocabulary: the released UniTok model uses -200.
        x_BTD = self.get_input_embeddings()(ids_BT.masked_fill(slots_BT, self.config.pad_token_id))
        given = 0 if codes_NLK is None else codes_NLK.shape[0] * codes_NLK.shape[1]
        given = given if image_lengths is None else int(image_lengths.sum())
        asked = slots_BT.sum()
        _check(asked == given, lambda: f"{int(asked)} image positions in the text, codes given for {given}")
        if not given:
            if self.training and torch.is_grad_enabled():  # every rank must run every module: see `code_loss`
                K = self.config.image_tokenizer["num_codebooks"]
                x_BTD = x_BTD + 0.0 * self.code_embed(ids_BT.new_zeros(1, 1, K)).sum() + self._unread(x_BTD)
            return x_BTD
        self._check_codes(codes_NLK)
        if codes_NLK.shape[1] == len(self.order.places):
            codes_NLK = self.order.of_slots(codes_NLK, 1)
            quantized = quantized and quantized.reordered(self.order.of_slots, len(codes_NLK))
        embeds_NLD = self.code_embed(codes_NLK, quantized=quantized)
        if self.image_input.reads_features:
            embeds_NLD = self._read(embeds_NLD, is_target, features)
        if image_lengths is None:
            embeds_SD = embeds_NLD.flatten(0, 1)
        else:
            config, by_place = self.config, partial(self.order.of_places, dim=1)
            how = config.image_shortening, config.image_lengths or (), by_place
            embeds_SD = shortened(embeds_NLD, image_lengths.tolist(), *how)
        places = _places(slots_BT, given)
        return x_BTD.flatten(0, 1).index_copy(0, places, embeds_SD.to(x_BTD.dtype)).view_as(x_BTD)

    def _read(
        self, embeds_NLD: torch.Tensor, is_target_N: torch.Tensor | None, features_MLQ: torch.Tensor | None
    ) -> torch.Tensor:
        """The embeddings of codes, with what `image_input` makes of them and the features in images to read."""
        N, L = embeds_NLD.shape[:2]
        read = torch.arange(N) if is_target_N is None else (~is_target_N).nonzero()[:, 0]
        if not len(read):
            return embeds_NLD + self._unread(embeds_NLD) if self.training and torch.is_grad_enabled() else embeds_NLD
        given = () if features_MLQ is None else tuple(features_MLQ.shape[:2])
        if given != (len(read), L):
            raise ValueError(
                f"{len(read)} images to read and features of {given[0] if given else 0}: image_input "
                f"{self.config.image_input!r} reads what comes before codes, so give pictures, not codes"
            )
        read, features_MLQ = send(read, embeds_NLD.device), self.order.of_slots(features_MLQ, 1)
        new_MLD = self.image_input(embeds_NLD.index_select(0, read), features_MLQ)
        return embeds_NLD.index_copy(0, read, new_MLD.to(embeds_NLD.dtype))

    def _unread(self, like: torch.Tensor) -> torch.Tensor:
        """0, from all weights of `image_input`: see `code_loss`."""
        return sum((0.0 * weight.sum().to(like.dtype) for weight in self.image_input.parameters()), like.new_zeros(()))

    def run_layers(
        self,
        inputs_embeds: torch.Tensor,
        ids_BT: torch.Tensor | None,
        drawn: torch.Tensor | None = None,
        steps: int = 0,
        **kwargs: Any,
    ) -> Any:
        """The layers over what `embed` gave for these ids; `kwargs` and the output are those of a backbone of
        transformers. The begin of an image, which predicts its first codes, is a position of the image. Positions of an
        image that are drawn in one step see each other.

        `drawn` are the indices of images that are to be predicted. An order with queries then puts those of so many
        `steps` (0: its own choice) after each row, and their hidden states follow those of the ids, [B, T + Q, D]."""
        if self.order.asks:
            if drawn is not None and len(drawn):
                inputs_embeds, ids_BT, kwargs = self._ask(inputs_embeds, ids_BT, drawn, steps, kwargs)
        elif self.order.parallel and ids_BT is not None:
            kwargs["attention_mask"] = self._mask(
                ids_BT, kwargs.get("attention_mask"), kwargs.get(CACHE), inputs_embeds.dtype
            )
        if self.image_layers is None or ids_BT is None:
            return self.backbone(inputs_embeds=inputs_embeds, **kwargs)
        is_image_BT = (ids_BT == self.config.image_token_id) | (ids_BT == self.config.boi_token_id)
        return self.image_layers(self.backbone, inputs_embeds, is_image_BT, **kwargs)

    def _mask(self, ids_BT: torch.Tensor, mask: torch.Tensor | None, cache: Any, dtype: torch.dtype) -> torch.Tensor:
        """`mask`, with the later positions that are drawn together, as `added` makes it."""
        past = 0 if cache is None else cache.get_seq_length()
        ahead_BTT = self.order.ahead(ids_BT == self.config.image_token_id)
        return added(visible(mask, ids_BT, past) | F.pad(ahead_BTT, (past, 0)), dtype)

    def _ask(
        self, x_BTD: torch.Tensor, ids_BT: torch.Tensor, drawn: torch.Tensor, steps: int, kwargs: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        """The arguments of `run_layers` with the queries of the images that are drawn after each row."""
        places_BT = kwargs.get("position_ids")
        if places_BT is None:
            places_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device).expand_as(ids_BT)
        starts = self._starts(ids_BT, drawn)
        seen_BTT = visible(kwargs.get("attention_mask"), ids_BT)
        x_BTD, seen_BTT, places_BT = self.order.ask(x_BTD, seen_BTT, places_BT, starts, steps)
        ids_BT = F.pad(ids_BT, (0, x_BTD.shape[1] - ids_BT.shape[1]), value=self.config.image_token_id)
        return x_BTD, ids_BT, {**kwargs, "attention_mask": added(seen_BTT, x_BTD.dtype), "position_ids": places_BT}

    def _starts(self, ids_BT: torch.Tensor, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows and columns where some of the images begin, each [n]."""
        begins = _places(image_starts(ids_BT == self.config.image_token_id), ids_BT.numel())[images]
        return begins // ids_BT.shape[1], begins % ids_BT.shape[1]

    def _check_codes(self, codes_NLK: torch.Tensor) -> None:
        K, V = (self.config.image_tokenizer[name] for name in ("num_codebooks", "codebook_size"))
        if codes_NLK.dim() != 3 or codes_NLK.shape[-1] != K:
            raise ValueError(f"codes of shape {tuple(codes_NLK.shape)}, not [images, positions, {K} sub-codebooks]")
        inside = (codes_NLK >= 0) & (codes_NLK < V)
        _check(inside.all(), lambda: f"code {int(codes_NLK[~inside][0])}: the codebooks have 0..{V - 1}")

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        codes: torch.Tensor | None = None,
        is_target: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        code_weight: float = 1.0,
        code_share: float = 1.0,
        code_noise: float = 0.0,
        pixel_values: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
        image_lengths: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MllmOutput:
        """With `labels` [B, T] (-100: ignored), returns losses, and, outside of training, `logits` [B, T, S]. Without
        labels, returns `logits` of the last `logits_to_keep` positions (0: all; a tensor: those positions). `labels`
        and `is_target` may stay on the CPU: on a GPU, the number of targets must be read from them, which would wait.

        Images are `codes` (codes_NLK), or `pixel_values` [N, 3, H, W] in [-1, 1], which are encoded. `is_target` [N] is
        true for images to draw, false for images to read; `embed` explains `features` and `image_lengths`. A code
        counts `code_weight` times as much as a text target. The code head predicts a random `code_share` of the
        positions to draw. In images to draw, up to `code_noise` of the positions are read with other codes than those
        that are to be predicted (see `noisy`). All other arguments, such as keys and values, go to the backbone. Raises
        ValueError when images and placeholders disagree, and for codes outside the codebooks."""
        if pixel_values is not None:
            codes, features = self._encoded(pixel_values, is_target)
        if inputs_embeds is None:
            is_noisy = code_noise and codes is not None and is_target is not None
            read = self.noisy(codes, is_target, code_noise) if is_noisy else codes
            inputs_embeds = self.embed(
                input_ids, read, is_target=is_target, features=features, image_lengths=image_lengths
            )
        output = self.run_layers(
            inputs_embeds,
            input_ids,
            self._drawn(codes, is_target, input_ids) if labels is not None else None,
            self.order.some_count() if self.training else 0,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache if labels is None else False,
            **kwargs,
        )
        h_BTD, T = output.last_hidden_state, inputs_embeds.shape[1]
        result = {CACHE: output.get(CACHE), "hidden_states": output.hidden_states, "attentions": output.attentions}
        if labels is None or not self.training:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            result["logits"] = self.lm_head(h_BTD[:, :T][:, kept])
        if labels is None:
            return MllmOutput(**result)
        text_losses = self.text_losses(h_BTD, labels)
        code_loss, code_losses_PK = self.code_loss(h_BTD, input_ids, codes, is_target, code_share)
        text_loss, text_count = text_losses.sum(), torch.full((), text_losses.numel(), device=h_BTD.device)
        code_count = torch.zeros_like(text_count)
        if codes is not None and is_target is not None:
            code_count += is_target.sum() * codes[0].numel()
        return MllmOutput(
            **result,
            loss=mean_loss(text_loss, text_count, code_loss, code_count, code_weight),
            text_loss=text_loss,
            text_count=text_count,
            code_loss=code_loss,
            code_count=code_count,
            text_losses=text_losses.detach(),
            code_losses=code_losses_PK.detach(),
        )

    @wraps(GenerationMixin.prepare_inputs_for_generation)  # whose signature says what `generate` may be given
    def prepare_inputs_for_generation(self, *args: Any, is_first_iteration: bool = False, **kwargs: Any) -> dict:
        """As in transformers, but images are given with the prompt only; later steps have their keys and values."""
        inputs = super().prepare_inputs_for_generation(*args, is_first_iteration=is_first_iteration, **kwargs)
        if not is_first_iteration and kwargs.get("use_cache", True):
            inputs = {name: value for name, value in inputs.items() if name not in OF_IMAGES}
        return inputs

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Any = None, **kwargs: Any
    ) -> tuple[Any, dict]:
        """As in transformers, for several answers to each sequence: all images of a sequence are repeated together."""
        images = {name: kwargs.pop(name) for name in OF_IMAGES if kwargs.get(name) is not None}
        if images and expand_size > 1:
            slots_B = (input_ids == self.config.image_token_id).sum(1)
            count = len(next(iter(images.values())))
            places = torch.arange(count).split((slots_B // (slots_B.sum() // count)).tolist())
            order = torch.cat([place.repeat(expand_size) for place in places])
            images = {name: value[order.to(value.device)] for name, value in images.items()}
        input_ids, kwargs = super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **kwargs)
        return input_ids, {**kwargs, **images}

    def _encoded(
        self, pixels_N3HW: torch.Tensor, is_target_N: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """codes_NLK of all images, and features_MLQ of those to read."""
        features_NLQ = self.image_tokenizer.encode_features(pixels_N3HW)
        codes_NLK = self.image_tokenizer.quantizer.encode(features_NLQ)
        if is_target_N is None:
            return codes_NLK, features_NLQ
        return codes_NLK, features_NLQ.index_select(0, send((~is_target_N).nonzero()[:, 0], features_NLQ.device))

    def _drawn(
        self, codes_NLK: torch.Tensor | None, is_target_N: torch.Tensor | None, ids_BT: torch.Tensor
    ) -> torch.Tensor | None:
        """The indices of images to draw."""
        given = codes_NLK is not None and is_target_N is not None
        return send(is_target_N.nonzero()[:, 0], ids_BT.device) if given else None

    def text_logits(self, h_BD: torch.Tensor) -> torch.Tensor:
        """Logits of the next text id, h_BD -> [B, S]; the placeholder of images has -inf."""
        logits_BS = self.lm_head(h_BD)
        if self.config.image_token_id >= 0:  # UniTok's is outside the vocabulary
            logits_BS[:, self.config.image_token_id] = float("-inf")
        return logits_BS

    def text_losses(self, h_BTD: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of each text target, [number of targets]. `lm_head` is applied at targets only."""
        rows, columns = (labels_BT[:, 1:] != -100).nonzero(as_tuple=True)
        labels, places = labels_BT[rows, columns + 1], rows * h_BTD.shape[1] + columns
        logits = self.lm_head(h_BTD.flatten(0, 1).index_select(0, send(places, h_BTD.device))).float()
        return F.cross_entropy(logits, send(labels, h_BTD.device), reduction="none")

    def code_loss(
        self,
        h_BTD: torch.Tensor,
        ids_BT: torch.Tensor,
        codes_NLK: torch.Tensor | None,
        is_target_N: torch.Tensor | None,
        share: float = 1.0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum of the cross-entropies of all codes of target images, with z-loss, and the cross-entropies alone,
        [P, K]. With a `share` below 1, both are computed from so many random positions and scaled to all: unbiased."""
        K = self.config.image_tokenizer["num_codebooks"]
        targets = self._drawn(codes_NLK, is_target_N, ids_BT)
        if targets is None or not len(targets):
            # Under ZeRO every rank must run every module in every micro-batch: one dummy tuple, weighted with zero.
            slot, codes_1K = torch.zeros(1, K + 1, dtype=torch.long, device=h_BTD.device).split([1, K], 1)
            dummy = self.code_head(self.order.aim(h_BTD[:1, 0], slot[0]), codes_1K)
            return 0.0 * dummy.float().sum(), h_BTD.new_zeros(0, K)
        h_PD, codes_PK = (x.flatten(0, 1) for x in self.predictors(h_BTD, ids_BT, codes_NLK, targets))
        scale = 1.0
        if share < 1:
            drawn = send(torch.randperm(len(codes_PK))[: max(1, round(share * len(codes_PK)))], h_BTD.device)
            scale, h_PD, codes_PK = len(codes_PK) / len(drawn), h_PD.index_select(0, drawn), codes_PK[drawn]
        logits_PKV = self.code_head(h_PD, codes_PK).float()
        losses_PK = F.cross_entropy(logits_PKV.flatten(0, 1), codes_PK.flatten(), reduction="none").view_as(codes_PK)
        loss = losses_PK.sum()
        if self.config.code_z_loss:
            # UniTok's form: of the largest logit, not of the log-partition function (PaLM, arXiv 2204.02311).
            loss = loss + self.config.code_z_loss * logits_PKV.amax(-1).square().sum()
        return scale * loss, scale * losses_PK

    def predictors(
        self, h_BTD: torch.Tensor, ids_BT: torch.Tensor, codes_NLK: torch.Tensor, images: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the code head predicts some of the images from, [n, L, D], and their codes, [n, L, K], both in the order
        of drawing. Each position is predicted from the hidden state that the order names: in raster, one position
        before; the first from the begin-of-image id. An order with queries needs `run_layers` with these images."""
        L = codes_NLK.shape[1]
        rows, columns = self._starts(ids_BT, images)
        at_nL = self.order.predicted_at(rows, columns, ids_BT.shape[1])[:, :L]
        h_nLD = h_BTD.flatten(0, 1).index_select(0, (rows[:, None] * h_BTD.shape[1] + at_nL).flatten())
        slots = torch.arange(L, device=h_BTD.device)
        return self.order.aim(h_nLD.unflatten(0, (-1, L)), slots), self.order.of_slots(codes_NLK[images], 1)

    def decode_image_tokens(self, codes_NLK: torch.Tensor) -> list:
        """codes_NLK -> PIL images."""
        return self.image_tokenizer.decode(codes_NLK)

    def weights_hash(self) -> str:
        """12 hex digits that change with any weight, for the records of evaluations and drawings."""
        return weights_hash(self)
