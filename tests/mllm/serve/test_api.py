"""The API as OpenAI's own client, unchanged, speaks it: what it gives is what the model gives alone."""

import base64
import logging
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import openai
import pytest
from PIL import Image

from mllm import generate_images, generate_text
from tests.mllm.serve.conftest import about, data_uri, picture, until


def _alone(tiny_model, messages: list, **options) -> str:
    return "".join(piece for piece in generate_text(*tiny_model, messages, **options) if isinstance(piece, str))


def _shown(text: str, image: Image.Image) -> list:
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}]


def _image(b64_json: str) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(b64_json)))


def _chat(server, messages, **options):
    return server.client().chat.completions.create(model="tiny", messages=messages, **options)


def _draw(server, prompt, **options):
    return server.client().images.generate(model="tiny", prompt=prompt, **options)


def test_models(served):
    models = served.client().models
    assert [model.id for model in models.list()] == ["tiny"]
    assert models.retrieve("tiny").image_size == "32x32"
    with pytest.raises(openai.NotFoundError, match="there is 'tiny'"):
        models.retrieve("gpt-4")


def test_a_chat_is_what_generate_text_says(served, tiny_model):
    text, image = "what is this?", picture("blue")
    answer = _chat(served, about(text, data_uri(image)), max_tokens=9, modalities=["text"])
    [choice] = answer.choices
    assert choice.message.content == _alone(tiny_model, _shown(text, image), max_new_tokens=9)
    assert (choice.message.role, choice.finish_reason) == ("assistant", "length")
    processor = tiny_model[1]
    assert answer.usage.prompt_tokens == len(processor.encode(_shown(text, image)).ids)
    assert answer.usage.completion_tokens == 9


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "GIF", "BMP"])
def test_other_formats_are_read(served, tiny_model, format):
    uri = data_uri(picture("green"), format)
    answer = _chat(served, about("what?", uri), max_tokens=3)
    shown = Image.open(BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB")
    assert answer.choices[0].message.content == _alone(tiny_model, _shown("what?", shown), max_new_tokens=3)


def test_streaming_gives_the_same(served):
    options = {"max_tokens": 12, "temperature": 1.0, "top_p": 0.9, "seed": 5}
    whole = _chat(served, about("hello"), **options)
    chunks = list(_chat(served, about("hello"), **options, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content != ""
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:-1]] == [whole.choices[0].finish_reason]
    assert chunks[-1].usage == whole.usage


def test_a_told_seed_gives_the_answer_again(served):
    options = {"max_tokens": 12, "temperature": 1.0}
    first = _chat(served, about("hello"), **options)
    again = _chat(served, about("hello"), **options, seed=first.seed)
    assert again.choices[0].message.content == first.choices[0].message.content
    assert _chat(served, about("hello"), **options).seed != first.seed


def test_several_turns(served, tiny_model):
    messages = about("what is this?", data_uri(picture()))
    first = _chat(served, messages, max_tokens=4, modalities=["text"])
    messages += [first.choices[0].message, *about("and now?")]
    second = _chat(served, messages, max_tokens=4, modalities=["text"]).choices[0].message.content
    turns = _shown("what is this?", picture())
    turns += [{"role": "assistant", "content": first.choices[0].message.content}]
    assert second == _alone(tiny_model, [*turns, {"role": "user", "content": "and now?"}], max_new_tokens=4)


def test_stop(start, talkative):
    server = start(*talkative)
    options = {"max_tokens": 30, "temperature": 1.0, "seed": 1}
    whole = _chat(server, about("hello"), **options).choices[0].message.content
    stop = whole[10:14]
    ended = _chat(server, about("hello"), **options, stop=["never", stop]).choices[0]
    assert ended.message.content == whole[: whole.index(stop)] and ended.finish_reason == "stop"
    chunks = _chat(server, about("hello"), **options, stop=stop, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ended.message.content


def test_a_drawn_image_is_a_part_of_the_answer_and_of_the_next_question(start, drawing_model):
    server = start(*drawing_model)
    options = {"max_tokens": 1, "seed": 4}
    message = _chat(server, about("draw"), **options).choices[0].message
    [part] = message.images
    uri = part["image_url"]["url"]
    assert message.content == "" and _image(uri.split(",")[1]).size == (32, 32)
    deltas = [chunk.choices[0].delta for chunk in _chat(server, about("draw"), **options, stream=True)]
    streamed = [image for delta in deltas for image in getattr(delta, "images", [])]
    assert [image["image_url"]["url"] for image in streamed] == [uri]
    more = _chat(server, [*about("draw"), message, *about("what is it?")], **options)
    assert more.usage.prompt_tokens > 4 + len(drawing_model[1].encode_drawing("draw").ids)
    assert not _chat(server, about("draw"), **options, modalities=["text"]).choices[0].message.images


def test_a_streamed_chat_has_previews_if_asked(start, drawing_model):
    server, options = start(*drawing_model), {"max_tokens": 1, "seed": 4}
    chunks = list(_chat(server, about("draw"), **options, stream=True, extra_body={"partial_images": 3}))
    deltas = [chunk.choices[0].delta.model_extra for chunk in chunks]
    kinds = [*filter(None, (next(iter(extra), None) for extra in deltas))]
    assert kinds == ["partial_images", "images"]  # two rows of codes
    [[preview]] = [extra["partial_images"] for extra in deltas if "partial_images" in extra]
    seen = _image(preview["image_url"]["url"].split(",")[1])
    assert (preview["index"], preview["partial_image_index"], preview["progress"]) == (0, 0, 0.5)
    assert seen.size == (32, 32) and seen.getchannel("A").getbbox() == (0, 0, 32, 16)
    [[drawn]] = [extra["images"] for extra in deltas if "images" in extra]
    whole = _chat(server, about("draw"), **options, extra_body={"partial_images": 3}).choices[0].message
    assert whole.images == [drawn]


def test_images_are_those_of_generate_images(served, tiny_model):
    sampling = {"guidance": 2.0, "temperature": 0.9, "top_p": 0.8}
    answer = _draw(served, "a red dog", n=3, size="32x32", extra_body={"seed": 7, **sampling})
    assert [drawn.seed for drawn in answer.data] == [7, 8, 9]
    options = {"cfg_scale": 2.0, "temperature": 0.9, "top_p": 0.8}
    alone = generate_images(*tiny_model, ["a red dog"] * 3, seeds=[7, 8, 9], **options)
    assert [_image(drawn.b64_json).tobytes() for drawn in answer.data] == [image.tobytes() for image in alone]
    prompt = 3 * len(tiny_model[1].encode_drawing("a red dog").ids)
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (prompt, 12)


def test_a_stream_of_an_image_has_previews(served):
    [drawn] = _draw(served, "a dog", extra_body={"seed": 2}).data
    events = list(_draw(served, "a dog", stream=True, partial_images=3, extra_body={"seed": 2}))
    assert [event.type.split(".")[1] for event in events] == ["partial_image", "completed"]  # two rows of codes
    assert _image(events[0].b64_json).size == (32, 32) and events[0].progress == 0.5
    assert events[-1].b64_json == drawn.b64_json and events[-1].usage.output_tokens == 4


def test_an_answer_does_not_depend_on_the_crowd(served):
    red, blue = data_uri(picture("red")), data_uri(picture("blue", 40))
    asks = [
        lambda: _chat(served, about("what is this?", red), max_tokens=20).choices[0].message.content,
        lambda: _chat(served, about("hello"), max_tokens=5, temperature=1.0, seed=1).choices[0].message.content,
        lambda: _chat(served, about("how many?", blue, red), max_tokens=11, seed=2).choices[0].message.content,
        lambda: [one.b64_json for one in _draw(served, "a dog", n=2, extra_body={"seed": 3}).data],
        lambda: [one.b64_json for one in _draw(served, "two cats", extra_body={"seed": 4, "guidance": 1}).data],
    ]
    alone = [ask() for ask in asks]
    with ThreadPoolExecutor(10) as pool:
        crowd = list(pool.map(lambda ask: ask(), asks * 3))
    assert crowd == alone * 3


def test_who_hangs_up_frees_the_place(start, slow_talker, caplog):
    caplog.set_level(logging.INFO, "mllm.serve")
    server = start(*slow_talker, rows=2)
    with pytest.raises(openai.APITimeoutError):  # the client gives up
        server.client().with_options(timeout=0.5).chat.completions.create(
            model="tiny", messages=about("hi"), max_tokens=200
        )
    until(lambda: not server.engine.running and not server.gate.inside)
    until(lambda: "/v1/chat/completions 499 in" in caplog.text)
    stream = _chat(server, about("hi"), max_tokens=200, stream=True)
    next(stream)
    assert server.gate.inside == 1
    stream.close()
    until(lambda: not server.engine.running and not server.gate.inside)


def test_what_is_refused_has_the_clients_error(start, slow_talker):
    server = start(*slow_talker, key="secret", seconds=2)
    client = server.client("secret")

    def ask(client=client, **options):
        return client.chat.completions.create(**{"model": "tiny", "messages": about("hi"), **options})

    with pytest.raises(openai.AuthenticationError, match="wrong or missing API key") as error:
        ask(server.client("guess"))
    assert error.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError) as error:
        ask(model="gpt-4")
    assert (error.value.code, error.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.UnprocessableEntityError) as error:
        ask(temperature=3)
    assert error.value.param == "temperature" and "less than or equal to 2" in error.value.message
    with pytest.raises(openai.UnprocessableEntityError, match="but the model reads 256"):
        ask(max_tokens=300)
    with pytest.raises(openai.InternalServerError, match="took longer") as error:
        ask(max_tokens=200)
    assert error.value.status_code == 504
    with pytest.raises(openai.APIError, match="took longer"):  # a stream has sent its status
        for _ in ask(max_tokens=200, stream=True):
            pass
    server.gate.closing = True
    with pytest.raises(openai.InternalServerError, match="shutting down") as error:
        ask()
    assert error.value.status_code == 503 and error.value.response.headers["retry-after"]


def test_a_full_queue_says_when_to_come_back(start, slow_talker):
    server = start(*slow_talker, rows=2, queue=1)
    with server.client() as client:
        streams = [client.chat.completions.create(model="tiny", messages=about("hi"), max_tokens=200, stream=True)]
        until(lambda: server.engine.running == 1)  # beside it there is no room for a drawing, which takes two rows
        streams.append(client.images.generate(model="tiny", prompt="a dog", stream=True))
        with pytest.raises(openai.RateLimitError, match="1 requests are waiting") as error:
            _chat(server, about("hi"))
        assert int(error.value.response.headers["retry-after"]) > 0 and error.value.code == "queue_full"
        for stream in streams:
            stream.close()
    until(lambda: not server.engine.running + server.engine.waiting)
