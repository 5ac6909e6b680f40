"""Edits as OpenAI's own client, unchanged, speaks them: what the server gives is what `edit_images` gives alone."""

import base64
from io import BytesIO
from typing import get_type_hints

import openai
import pytest
import torch
from openai.types.image_edit_params import ImageEditParamsBase
from PIL import Image

from mllm import edit_images, generate_images, generate_text
from mllm.serve import schema
from tests.mllm.serve.conftest import Served, about, data_uri, picture, running

EDITS = "/v1/images/edits"
NOTHING = {
    "background": "auto",
    "input_fidelity": "low",
    "n": 1,
    "output_compression": 100,
    "output_format": "png",
    "partial_images": 0,
    "quality": "auto",
    "response_format": "b64_json",
    "safety_identifier": "somebody",
    "size": "auto",
    "stream": False,
    "user": "somebody",
}


@pytest.fixture(scope="module")
def editor(make_tiny_model):
    """A model that draws whatever it is asked."""
    model, processor = make_tiny_model()
    begin = torch.tensor([processor.boi_id])
    model.lm_head.register_forward_hook(lambda _, __, logits: logits.index_fill(-1, begin, 100.0))
    return model, processor


@pytest.fixture(scope="module")
def edits(editor) -> Served:
    with running(*editor, pixels=10_000, n=3) as server:
        yield server


def _file(image: Image.Image, format: str = "PNG", name: str = "picture.png", **options) -> tuple[str, bytes]:
    file = BytesIO()
    image.save(file, format, **options)
    return name, file.getvalue()


def _mask(size: int = 32) -> Image.Image:
    """Transparent in its upper half."""
    mask = Image.new("RGBA", (size, size), "black")
    mask.paste((0, 0, 0, 0), (0, 0, size, size // 2))
    return mask


def _edit(server, image=None, prompt="make it blue", seed=7, **options):
    image = _file(picture()) if image is None else image
    extra = {"seed": seed, **options.pop("extra", {})}
    with server.client() as client:
        answer = client.images.edit(model="tiny", image=image, prompt=prompt, extra_body=extra, **options)
        return list(answer) if options.get("stream") else answer


def _image(b64_json: str) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(b64_json)))


def test_edits_are_those_of_edit_images(edits, editor):
    extra = {"guidance": 3.0, "image_guidance": 1.2, "temperature": 0.9, "top_p": 0.8}
    answer = _edit(edits, n=2, size="32x32", extra=extra)
    options = {"cfg_scale": 3.0, "image_cfg_scale": 1.2, "temperature": 0.9, "top_p": 0.8}
    alone = edit_images(*editor, [picture()] * 2, ["make it blue"] * 2, seeds=7, **options)
    assert [_image(one.b64_json).tobytes() for one in answer.data] == [image.tobytes() for image in alone]
    assert [one.seed for one in answer.data] == [7, 8] and answer.size == "32x32"
    usage = answer.usage
    prompt = len(editor[1].encode_planning("make it blue", [torch.zeros(4, 2)]).ids)
    assert (usage.input_tokens, usage.input_tokens_details.image_tokens) == (2 * prompt, 8)
    assert usage.input_tokens_details.text_tokens == 2 * prompt - 8


def test_a_mask_leaves_what_is_outside(edits, editor):
    large = picture("green", 64)
    [edited] = _edit(edits, _file(large), mask=_file(_mask(64)), size="64x64").data
    [alone] = edit_images(*editor, large, "make it blue", _mask(64), seeds=7)
    shown = _image(edited.b64_json)
    assert shown.tobytes() == alone.tobytes() and shown.size == (64, 64)
    assert shown.crop((0, 32, 64, 64)).getcolors() == [(64 * 32, (0, 128, 0))]


def test_several_pictures(edits, editor):
    pictures = [picture("red"), picture("blue", 40)]
    [edited] = _edit(edits, [_file(one) for one in pictures]).data
    [alone] = edit_images(*editor, [pictures], ["make it blue"], seeds=7)
    assert _image(edited.b64_json).tobytes() == alone.tobytes()
    assert _image(_edit(edits, [_file(pictures[0])]).data[0].b64_json).size == (32, 32)


def test_a_stream_has_previews(edits):
    [edited] = _edit(edits).data
    events = _edit(edits, stream=True, partial_images=3)
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]
    assert events[0].progress == 0.5 and events[-1].b64_json == edited.b64_json
    assert events[-1].usage.input_tokens_details.image_tokens == 4


def test_what_asks_for_nothing_changes_nothing(edits):
    plain = _edit(edits).data
    assert _edit(edits, **NOTHING).data == plain
    theirs = set(get_type_hints(ImageEditParamsBase))
    assert theirs <= set(schema.EditRequest.model_fields) | set(schema.FILES)
    shared = {"image", "mask", "prompt", "model"}
    assert theirs - shared - set(NOTHING) == {"complexity", "frame_count", "frame_duration_ms", "markup", "svg"}


def test_words_in_place_of_an_edit_come_with_the_picture(served, tiny_model):
    large = picture("green", 40)
    [edited] = _edit(served, _file(large)).data
    [alone] = edit_images(*tiny_model, large, "make it blue")
    assert edited.answer == alone.info["answer"] != "" and _image(edited.b64_json).tobytes() == large.tobytes()
    *_, last = _edit(served, _file(large), stream=True)
    assert (last.answer, last.size) == (edited.answer, "40x40")


def test_a_chat_edits_what_it_was_shown_and_what_it_drew(edits, editor):
    client, options = edits.client().chat.completions, {"model": "tiny", "max_tokens": 1, "seed": 3}
    first = about("make it blue", data_uri(picture()))
    message = client.create(messages=first, **options).choices[0].message
    [uri] = [part["image_url"]["url"] for part in message.images]
    content = [{"type": "image", "image": picture()}, {"type": "text", "text": "make it blue"}]
    [alone] = generate_text(*editor, [{"role": "user", "content": content}], max_new_tokens=1, seed=3)
    assert _image(uri.split(",")[1]).tobytes() == alone.tobytes() != generate_images(*editor, "x")[0].tobytes()
    more = client.create(messages=[*first, message, *about("now add a dog")], **options)
    assert len(more.choices[0].message.images) == 1 and more.usage.prompt_tokens > 2 * 6


ANIMATION = {"save_all": True, "append_images": [picture("blue")]}


@pytest.mark.parametrize(
    ("wrong", "param", "told"),
    [
        ({"image": ("x.png", b"junk")}, "image", "image is none of PNG, JPEG, WEBP, GIF, BMP, or damaged"),
        ({"image": ("x.png", b"")}, "image", "image"),
        ({"image": _file(picture(), "GIF", **ANIMATION)}, "image", "image is an animation of 2 frames"),
        ({"image": _file(picture(size=200))}, "image", "200 x 200 pixels; at most 10,000 are read"),
        ({"image": [_file(picture()), ("x.png", b"junk")]}, "image[1]", "image[1] is none of"),
        ({"image": [_file(picture())] * 9}, "image[]", "9 pictures, at most 8"),
        ({"mask": _file(_mask(16))}, None, "the mask has 16 x 16 pixels, its picture 32 x 32: make them equal"),
        ({"mask": _file(picture())}, None, "the mask has no alpha channel"),
        ({"mask": _file(Image.new("RGBA", (32, 32)).convert("P"), "GIF")}, None, "the mask has no alpha channel"),
        ({"mask": _file(Image.new("RGBA", (32, 32), "red"))}, None, "no pixel that is fully transparent"),
        ({"prompt": ""}, "prompt", "prompt: String should have at least 1 character"),
        ({"prompt": "  "}, None, "empty prompt: say what to change"),
        ({"prompt": "dog " * 300}, None, "but the model reads 256"),
        ({"n": 0}, "n", "n: Input should be greater than or equal to 1"),
        ({"n": 4}, "n", "n 4 is above 3"),
        ({"n": "two"}, "n", "n: Input should be a valid integer"),
        ({"size": "1024x1024"}, "size", "this model draws 32x32"),
        ({"response_format": "url"}, "response_format", "not supported"),
        ({"input_fidelity": "high"}, "input_fidelity", 'leave it out, or send "low"'),
        ({"background": "transparent"}, "background", "not supported"),
        ({"svg": {"model": "x"}}, "svg[model]", "no such field here: leave it out"),
        ({"frame_count": 9}, "frame_count", "not supported"),
        ({"extra": {"guidance": 0}}, "guidance", "greater than or equal to 1"),
        ({"extra": {"fancy": 1}}, "fancy", "no such field here: leave it out"),
        ({"extra": {"mask": "x"}}, "mask", "mask: not a file: send one"),
        ({"markup": ("m.png", b"x")}, "markup", "no such file here: leave it out"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_wrong_is_named(edits, wrong, param, told):
    with pytest.raises(openai.APIStatusError) as error:
        _edit(edits, **wrong)
    assert error.value.status_code in (400, 422) and error.value.param == param, error.value.message
    assert told in error.value.message


def _form(*parts: tuple[str, str | None, bytes]) -> bytes:
    """A body with the boundary "b", of (name, file name, content)."""
    body = b""
    for name, file, content in parts:
        named = f'; filename="{file}"' if file else ""
        body += f'--b\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode() + content + b"\r\n"
    return body + b"--b--\r\n"


RED = _file(picture())[1]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (_form(("prompt", None, b"x")), "image: missing: send the picture that is to be changed"),
        (_form(("prompt", None, b"x"), ("image", None, b"red.png")), "image: not a file"),
        (
            _form(("prompt", None, b"x"), ("image", "a", RED), ("image", "b", RED)),
            "several pictures are called image[]",
        ),
        (_form(("prompt", None, b"x"), ("image", "a", RED), ("mask", "b", RED), ("mask", "c", RED)), "mask: 2 files"),
        (_form(("prompt", None, b"x"), ("prompt", None, b"y"), ("image", "a", RED)), "prompt: sent twice"),
        (_form(("image", "a", RED)), "prompt: Field required"),
        (b"--b\r\nnothing", ""),
    ],
    ids=str,
)
def test_a_form_that_is_no_request_is_told_why(edits, body, told):
    answered = edits.post(EDITS, body, content_type="multipart/form-data; boundary=b")
    assert answered.status in (400, 422) and told in answered.body["error"]["message"]
    answered = edits.post(EDITS, {"prompt": "x"})
    assert answered.status == 422 and "send a form, content-type: multipart/form-data" in str(answered.body)
