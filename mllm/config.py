"""MllmConfig: a backbone's config, an image tokenizer's, and how codes enter and leave."""

from dataclasses import fields
from typing import Any

from transformers import AutoConfig, LlamaConfig, PretrainedConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from tokenizer import ImageTokenizerConfig

# What transformers calls keys and values, as argument and in outputs: `past_key_values` before 5.24, `cache` since.
CACHE = next(field.name for field in fields(CausalLMOutputWithPast) if field.name in ("past_key_values", "cache"))
LLAMA_LIKE = ("llama", "mistral", "qwen2")  # models whose layers our own loops run, in `image_layers.py` and `fast`


class MllmConfig(PretrainedConfig):
    """`text_config` is any decoder-only config of transformers (Llama by default); `image_tokenizer` has the fields of
    an ImageTokenizerConfig. `code_embedding` and `code_head` are keys of the dicts in `codes.py`; `code_embedding_args`
    and `code_head_args` are their own sizes. `code_z_loss` is the weight of the squared largest logit of each code in
    the loss (UniTok: 5e-5). Before an image, the model writes a plan of at most `plan_length` ids (0: none), such as a
    layout (LayoutGPT, arXiv 2305.15393): special tokens of the text tokenizer (`text/ids.py`: `plan_token`), or any
    text where it has none. `image_layers`, such as {"width": 256, "hidden": 768}, gives image positions weights of
    their own (see `ImageLayers`; None: the backbone's). `order` is a key of `orders.ORDERS`: how images are drawn.
    `image_input` is a key of `image_inputs.IMAGE_INPUTS`: what is read at the positions of images that are not drawn.
    `image_lengths` are the numbers of positions that the model learned to read an image at (None: all of them only),
    and `image_shortening`, a key of `image_inputs.SHORTENINGS`, is how an image gets fewer. With `tie_word_embeddings`,
    here or in `text_config`, `lm_head` shares the weights of the text embedding. Raises ValueError for sizes of the
    image tokenizer that do not fit together."""

    model_type = "mllm"
    sub_configs = {"text_config": AutoConfig}
    keys_to_ignore_at_inference = ["past_key_values", "cache"]

    text_config: dict | PretrainedConfig | None = None
    image_tokenizer: dict | None = None
    code_embedding: str = "tables"
    code_embedding_args: dict | None = None
    code_head: str = "depth"
    code_head_args: dict | None = None
    code_z_loss: float = 0.0
    image_layers: dict | None = None
    order: str = "raster"
    image_input: str = "codes"
    image_lengths: list[int] | None = None
    image_shortening: str = "pool"
    plan_length: int = 0
    tie_word_embeddings: bool = False
    pad_token_id: int = 0
    image_token_id: int = 4
    boi_token_id: int = 5
    eoi_token_id: int = 6

    def __post_init__(self, **kwargs: Any):
        if isinstance(self.text_config, dict):
            self.text_config = AutoConfig.for_model(**{"model_type": "llama", **self.text_config})
        elif self.text_config is None:
            self.text_config = LlamaConfig()
        self.tie_word_embeddings |= self.text_config.tie_word_embeddings
        self.image_tokenizer = ImageTokenizerConfig(**(self.image_tokenizer or {})).to_dict()
        self.code_embedding_args, self.code_head_args = (
            dict(args or {}) for args in (self.code_embedding_args, self.code_head_args)
        )
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers. Raises ValueError for the config of another kind of model. transformers would only warn,
        and fill in the defaults of a 7 B model with random weights."""
        kind = config_dict.get("model_type", cls.model_type)
        if kind != cls.model_type:
            raise ValueError(f"config.json is of a model of type {kind!r}, not {cls.model_type!r}")
        return super().from_dict(config_dict, **kwargs)

    @property
    def image_tokenizer_config(self) -> ImageTokenizerConfig:
        return ImageTokenizerConfig(**self.image_tokenizer)
