"""What clients send and get: OpenAI's fields, as far as the model has what they stand for, and a few of ours.

A field that the model has nothing for is taken at the values that ask for nothing (`only`), and is refused, not
ignored, at others: an answer without what it asked for would pass as one with it.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    WithJsonSchema,
    model_validator,
)

from ..decode.engine import Handle
from ..decode.options import DrawingOptions, EditingOptions

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # Pillow's names; others, as EPS, start programs or have odd readers
IMAGE_URL = rf"^(data:image/({'|'.join(FORMATS).lower()});base64,[A-Za-z0-9+/\s]+[=\s]*|https?://.+)$"
MAX_SEED = 2**63 - 1
STOP_LENGTH, STOPS, PREVIEWS = 64, 4, 8

Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Guidance = Annotated[float, Field(ge=1, le=30)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=STOP_LENGTH)]
Previews = Annotated[int, Field(ge=0, le=PREVIEWS)]


def only(*values: Any) -> Any:
    """The type of a field at nothing but null and these values."""
    told = "not supported: leave it out" + "".join(f", or send {json.dumps(value)}" for value in values)

    def check(value: Any) -> Any:
        # True equals 1 in Python, not in JSON.
        if not any(value == one and isinstance(value, bool) is isinstance(one, bool) for one in (None, *values)):
            raise ValueError(told)
        return value

    return Annotated[Any, AfterValidator(check), WithJsonSchema({"enum": [None, *values]})]


def one_or_list(one: Any, several: Any, told: str) -> Any:
    """`one | several`, which pydantic would try both, and blame the wrong one."""

    def tag(value: Any) -> str | None:
        return "several" if isinstance(value, list) else "one" if isinstance(value, str) else None

    kinds = Discriminator(tag, custom_error_type="neither", custom_error_message=f"Input should be {told}")
    return Annotated[Annotated[one, Tag("one")] | Annotated[several, Tag("several")], kinds]


PARTS = "a string or a list of parts"


class Strict(BaseModel):
    """null is the default, as OpenAI has it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="after")
    def fill(self) -> "Strict":
        for name, field in type(self).model_fields.items():
            if getattr(self, name) is None:
                setattr(self, name, field.default)
        return self


class ImageUrl(Strict):
    # The schema tells the pattern; `images` and `remote` say in words what is wrong.
    url: str = Field(
        json_schema_extra={"pattern": IMAGE_URL}, description="a data URI; an address, where the server fetches them"
    )
    detail: Literal["auto", "low", "high", "original"] | None = None  # images have one size here


class ImagePart(Strict):
    type: Literal["image_url"] = "image_url"
    image_url: ImageUrl
    prompt_cache_breakpoint: dict[str, str] | None = None  # of caches: the answer is the same


class TextPart(Strict):
    type: Literal["text"] = "text"
    text: str
    prompt_cache_breakpoint: dict[str, str] | None = None


class DrawnImage(BaseModel):
    """An image of an answer, as LiteLLM and OpenRouter have them; sent back, it may be talked about."""

    index: int | None = None
    type: Literal["image_url"] = "image_url"
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class UserMessage(Strict):
    role: Literal["user"]
    content: one_or_list(str, Annotated[list[Part], Field(min_length=1)], PARTS)
    name: str | None = None


class AssistantMessage(BaseModel):
    """As it was given: clients send whole messages back, with fields that say nothing."""

    model_config = ConfigDict(strict=True, extra="allow")
    __pydantic_extra__: dict[str, only()]
    role: Literal["assistant"]
    content: one_or_list(str, list[Part], PARTS) | None = None
    images: list[DrawnImage] | None = None
    name: str | None = None
    refusal: only("") = None
    annotations: only([]) = None
    audio: only() = None
    function_call: only() = None
    tool_calls: only([]) = None


Messages = list[Annotated[UserMessage | AssistantMessage, Field(discriminator="role")]]


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: bool | None = None


def check_modalities(values: list[str]) -> list[str]:
    if "text" not in values:
        told = 'the model decides whether it draws: send ["text", "image"], or ask /v1/images/generations for images'
        raise ValueError(told)
    return values


Modalities = Annotated[
    list[Literal["text", "image"]],
    AfterValidator(check_modalities),
    Field(json_schema_extra={"contains": {"const": "text"}}),
]


class ChatRequest(Strict):
    model: str | None = None
    messages: Annotated[Messages, Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Temperature | None = Field(0.0, description="0: the most likely, the default")
    top_p: TopP | None = 1.0
    seed: Seed | None = Field(None, description="None: another one each time, told in the answer")
    stop: one_or_list(Stop, Annotated[list[Stop], Field(max_length=STOPS)], "a string or a list of strings") | None = (
        None
    )
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    modalities: Modalities | None = Field(
        ["text", "image"], description='["text"]: the answer ends where the model would begin to draw'
    )
    guidance: Guidance | None = Field(DrawingOptions.cfg_scale, description="of drawings; 1: none")
    partial_images: Previews | None = Field(0, description="previews of each drawing, with stream")
    # Nothing here that they could do.
    n: only(1) = None
    frequency_penalty: only(0) = None
    presence_penalty: only(0) = None
    logit_bias: only({}) = None
    logprobs: only(False) = None
    top_logprobs: only(0) = None
    response_format: only({"type": "text"}) = None
    tools: only([]) = None
    tool_choice: only("none", "auto") = None
    functions: only([]) = None
    function_call: only("none", "auto") = None
    audio: only() = None
    moderation: only() = None
    reasoning_effort: only("none") = None
    verbosity: only("medium") = None
    web_search_options: only() = None
    store: only(False) = None
    service_tier: only("auto", "default") = None
    # With any value, the answer is the same.
    parallel_tool_calls: bool | None = None
    prediction: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, str] | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    user: str | None = None

    @property
    def limit(self) -> int:
        return self.max_completion_tokens or self.max_tokens or 64

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class Answer(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    images: list[DrawnImage] | None = None


class Choice(BaseModel):
    index: int = 0
    message: Answer
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatResponse(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage
    seed: int


class ImageRequest(Strict):
    prompt: Annotated[str, StringConstraints(min_length=1)]
    model: str | None = None
    n: Annotated[int, Field(ge=1)] | None = 1
    size: str | None = Field("auto", description="auto, or what the model draws, such as 128x128")
    seed: Seed | None = Field(None, description="of the first image, the next has the next; None: another each time")
    guidance: Guidance | None = Field(DrawingOptions.cfg_scale, description="1: none")
    temperature: Temperature | None = DrawingOptions.temperature
    top_p: TopP | None = 1.0
    candidates: Annotated[int, Field(ge=1)] | None = Field(
        1, description="drawings for each image, of which the model keeps the one that it finds to fit best"
    )
    steps: Annotated[int, Field(ge=0)] | None = Field(
        DrawingOptions.steps,
        description="of the backbone, where the model's order of drawing lets one choose; 0: its own",
    )
    stream: bool | None = False
    partial_images: Previews | None = Field(0, description="previews, with stream")
    response_format: only("b64_json") = None
    output_format: only("png") = None
    output_compression: only(100) = None
    quality: only("auto", "standard") = None
    background: only("auto", "opaque") = None
    moderation: only("auto", "low") = None
    style: only() = None
    complexity: only() = None
    frame_count: only() = None
    frame_duration_ms: only() = None
    svg: only() = None
    safety_identifier: str | None = None
    user: str | None = None


class EditRequest(ImageRequest):
    """The fields of a form beside its files: `image`, or several `image[]`, and `mask`."""

    image_guidance: Guidance | None = Field(
        EditingOptions.image_cfg_scale, description="over the picture: the larger it is, the more is kept of it"
    )
    input_fidelity: only("low") = None
    markup: only() = None


FILES: dict[str, Any] = {
    "image": {"type": "string", "format": "binary", "description": "the picture to change; several are called image[]"},
    "image[]": {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1},
    "mask": {
        "type": "string",
        "format": "binary",
        "description": "a PNG as large as the (first) picture, fully transparent where it may change",
    },
}
"""The files of an edit, for the API's schema."""


def form_value(name: str, text: str) -> Any:
    """A field of a form, where all are text, as JSON would have it."""
    text_alone = name in ("prompt", "model", "size", "user", "safety_identifier")
    try:
        return text if text_alone else json.loads(text)
    except (ValueError, RecursionError):
        return text


class Drawn(BaseModel):
    b64_json: str
    seed: int
    answer: str | None = Field(
        None, description="words of the model, with a picture that it was to edit and left as it was"
    )


class InputDetails(BaseModel):
    text_tokens: int
    image_tokens: int = 0


class ImageUsage(BaseModel):
    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputDetails


class ImageResponse(BaseModel):
    created: int
    data: list[Drawn]
    size: str
    output_format: Literal["png"] = "png"
    usage: ImageUsage


class Model(BaseModel):
    """`image_size` as the sides in pixels, `context` in positions, `weights` as a hash."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "mllm"
    image_size: str
    context: int
    weights: str


class Models(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    status: Literal["ok"] = "ok"


def drawn(index: int, png_base64: str) -> DrawnImage:
    return DrawnImage(index=index, image_url=ImageUrl(url=f"data:image/png;base64,{png_base64}"))


def usage(handles: list[Handle]) -> Usage:
    read, made = (
        sum(handle.program.prompt_tokens for handle in handles),
        sum(handle.program.tokens for handle in handles),
    )
    return Usage(prompt_tokens=read, completion_tokens=made, total_tokens=read + made)


def image_usage(handles: list[Handle]) -> ImageUsage:
    all_of, images = usage(handles), sum(handle.program.prompt_image_tokens for handle in handles)
    return ImageUsage(
        input_tokens=all_of.prompt_tokens,
        output_tokens=all_of.completion_tokens,
        total_tokens=all_of.total_tokens,
        input_tokens_details=InputDetails(text_tokens=all_of.prompt_tokens - images, image_tokens=images),
    )
