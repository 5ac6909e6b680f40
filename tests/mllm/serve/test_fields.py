"""OpenAI's fields: those that ask for nothing are taken, others are refused, each by its name and place."""

import http.client
import json
import urllib.error
import urllib.request
from functools import reduce
from typing import get_type_hints

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase
from openai.types.image_generate_params import ImageGenerateParamsBase

from mllm.serve import schema
from mllm.serve.limits import host_name
from tests.mllm.serve.conftest import WAIT, about, data_uri, picture

CHAT, DRAW = "/v1/chat/completions", "/v1/images/generations"
RED = data_uri(picture())
HELLO = {"messages": about("hi"), "max_tokens": 2, "seed": 1}
DOG = {"prompt": "a dog", "seed": 1}

# What asks for nothing, or changes nothing in the answer.
CHAT_NOTHING = {
    "audio": [None],
    "frequency_penalty": [0, 0.0, None],
    "function_call": ["none", "auto", None],
    "functions": [[], None],
    "logit_bias": [{}, None],
    "logprobs": [False, None],
    "metadata": [{}, {"run": "7"}, None],
    "modalities": [["text", "image"], ["image", "text"], None],
    "moderation": [None],
    "n": [1, None],
    "parallel_tool_calls": [True, False, None],
    "prediction": [{"type": "content", "content": "hello"}, None],
    "presence_penalty": [0, 0.0, None],
    "prompt_cache_key": ["a", None],
    "prompt_cache_options": [{"mode": "implicit", "ttl": "30m"}, None],
    "prompt_cache_retention": ["in_memory", "24h", None],
    "reasoning_effort": ["none", None],
    "response_format": [{"type": "text"}, None],
    "safety_identifier": ["somebody", None],
    "service_tier": ["auto", "default", None],
    "stop": [[], None],
    "store": [False, None],
    "stream": [False, None],
    "stream_options": [{}, {"include_usage": False}, None],
    "temperature": [0, None],
    "tool_choice": ["none", "auto", None],
    "tools": [[], None],
    "top_logprobs": [0, None],
    "top_p": [1, None],
    "user": ["somebody", None],
    "verbosity": ["medium", None],
    "web_search_options": [None],
}
DRAW_NOTHING = {
    "background": ["auto", "opaque", None],
    "complexity": [None],
    "frame_count": [None],
    "frame_duration_ms": [None],
    "model": ["tiny", None],
    "moderation": ["auto", "low", None],
    "n": [1, None],
    "output_compression": [100, None],
    "output_format": ["png", None],
    "partial_images": [0, None],
    "quality": ["auto", "standard", None],
    "response_format": ["b64_json", None],
    "safety_identifier": ["somebody", ""],
    "size": ["auto", "32x32", None],
    "style": [None],
    "svg": [None],
    "user": ["somebody", None],
}
# What would change the answer, and is not built.
CHAT_REFUSED = {
    "audio": {"voice": "alloy", "format": "wav"},
    "frequency_penalty": 0.5,
    "function_call": {"name": "f"},
    "functions": [{"name": "f"}],
    "logit_bias": {"50256": -100},
    "logprobs": True,
    "modalities": ["image"],
    "moderation": {"model": "omni-moderation-latest"},
    "n": 2,
    "presence_penalty": -1,
    "reasoning_effort": "high",
    "response_format": {"type": "json_object"},
    "service_tier": "priority",
    "store": True,
    "tool_choice": "required",
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "top_k": 5,
    "top_logprobs": 3,
    "verbosity": "low",
    "web_search_options": {},
}
DRAW_REFUSED = {
    "background": "transparent",
    "complexity": "high",
    "frame_count": 9,
    "frame_duration_ms": 200,
    "output_compression": 50,
    "output_format": "jpeg",
    "quality": "high",
    "response_format": "url",
    "size": "1024x1024",
    "style": "vivid",
    "svg": {"model": "x"},
}


def _message(answered) -> str:
    return answered.body["error"]["message"]


def test_every_field_of_openais_client_is_known():
    """Fields that a newer client has are added here, once somebody has thought about them."""
    shared = {"messages", "prompt", "model", "max_tokens", "max_completion_tokens", "seed"}
    for params, request, known in (
        (CompletionCreateParamsBase, schema.ChatRequest, CHAT_NOTHING),
        (ImageGenerateParamsBase, schema.ImageRequest, DRAW_NOTHING),
    ):
        theirs = set(get_type_hints(params))
        assert theirs <= set(request.model_fields) and theirs <= shared | set(known)


@pytest.mark.parametrize(
    ("path", "body", "fields", "result"),
    [(CHAT, HELLO, CHAT_NOTHING, "choices"), (DRAW, DOG, DRAW_NOTHING, "data")],
    ids=["chat", "image"],
)
def test_what_asks_for_nothing_changes_nothing(served, path, body, fields, result):
    plain = served.post(path, body).body[result]
    for number in range(3):
        asked = {name: values[number % len(values)] for name, values in fields.items()}
        answered = served.post(path, {**body, **asked})
        assert answered.status == 200 and answered.body[result] == plain, (asked, answered.body)


@pytest.mark.parametrize(
    ("path", "body", "fields"), [(CHAT, HELLO, CHAT_REFUSED), (DRAW, DOG, DRAW_REFUSED)], ids=["chat", "image"]
)
def test_what_is_not_built_is_refused_by_name(served, path, body, fields):
    for name, value in fields.items():
        answered = served.post(path, {**body, name: value})
        assert (answered.status, answered.body["error"]["param"]) == (422, name), answered.body


def test_numbers_are_not_true_or_false(served):
    for name, value in {
        "logprobs": 0,
        "store": 0,
        "n": True,
        "top_logprobs": False,
        "frequency_penalty": False,
    }.items():
        assert served.post(CHAT, {**HELLO, name: value}).body["error"]["param"] == name


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"logprobs": True}, "logprobs: not supported: leave it out, or send false"),
        ({"response_format": {"type": "json_object"}}, 'leave it out, or send {"type": "text"}'),
        ({"audio": {}}, "audio: not supported: leave it out"),
        ({"modalities": ["image"]}, "modalities: the model decides whether it draws"),
        ({"modalities": []}, "modalities: the model decides whether it draws"),
        ({"modalities": ["text", "audio"]}, "modalities[1]: Input should be 'text' or 'image'"),
        ({"stop": list("abcde")}, "stop: 5 items, at most 4"),
        ({"stop": ["a", 3]}, "stop[1]: Input should be a valid string"),
        ({"stop": ["a", "b" * 65]}, "stop[1]: String should have at most 64 characters"),
        ({"stop": ["a", ""]}, "stop[1]: String should have at least 1 character"),
        ({"stop": 3}, "stop: Input should be a string or a list of strings"),
        ({"fancy": 1}, "fancy: no such field here: leave it out"),
        ({"stream_options": {"x": 1}}, "stream_options.x: no such field here: leave it out"),
        ({"stream_options": 1}, "stream_options: Input should be an object"),
        ({"metadata": {"run": 7}}, "metadata.run: Input should be a valid string"),
        ({"messages": "hi"}, "messages: Input should be a list"),
        ({"messages": [{"role": "system", "content": "x"}]}, "its 'role' is 'system', not one of 'user', 'assistant'"),
    ],
    ids=str,
)
def test_the_message_says_what_to_send(served, body, told):
    assert told in _message(served.post(CHAT, {**HELLO, **body}))


TEXT, IMAGE = {"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": RED}}
TURNS = [
    {"role": "user", "content": "draw"},
    {"role": "assistant", "content": [TEXT], "images": [IMAGE, IMAGE]},
    {"role": "user", "content": [TEXT, IMAGE, IMAGE]},
]


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        ("2.content.1.image_url.url", "x", "messages[2].content[1].image_url.url"),
        ("2.content.2.image_url.url", RED[:60], "messages[2].content[2].image_url.url"),
        ("2.content.2.image_url.url", "data:image/png;base64,a-_b", "messages[2].content[2].image_url.url"),
        ("2.content.2.image_url.url", "data:image/png;base64,", "messages[2].content[2].image_url.url"),
        ("2.content.2.image_url.url", "https://example.org/a.png", "messages[2].content[2].image_url.url"),
        ("2.content.2.image_url.url", 3, "messages[2].content[2].image_url.url"),
        ("2.content.2.image_url", RED, "messages[2].content[2].image_url"),
        ("2.content.2.image_url", {}, "messages[2].content[2].image_url.url"),
        ("2.content.2.image_url.detail", "best", "messages[2].content[2].image_url.detail"),
        ("2.content.2.text", "hi", "messages[2].content[2].text"),
        ("2.content.2", {"type": "image_url"}, "messages[2].content[2].image_url"),
        ("2.content.2", {"type": "input_audio"}, "messages[2].content[2]"),
        ("2.content.2", {}, "messages[2].content[2]"),
        ("2.content.2", "hi", "messages[2].content[2]"),
        ("2.content.0", {"type": "text"}, "messages[2].content[0].text"),
        ("2.content.0.text", None, "messages[2].content[0].text"),
        ("2.content", 3, "messages[2].content"),
        ("2.content", [], "messages[2].content"),
        ("2.role", "system", "messages[2]"),
        ("2.role", "assistant", "messages[2].role"),
        ("1.images.1.image_url.url", "data:image/png;base64,AAAA", "messages[1].images[1].image_url.url"),
        ("1.content.0.text", 7, "messages[1].content[0].text"),
        ("1.tool_calls", [{"id": "a"}], "messages[1].tool_calls"),
        ("1.refusal", "no", "messages[1].refusal"),
        ("1.reasoning", "because", "messages[1].reasoning"),
    ],
)
def test_the_part_that_is_wrong_is_named(served, place, value, named):
    messages = json.loads(json.dumps(TURNS))
    *way, last = (int(step) if step.isdigit() else step for step in place.split("."))
    reduce(lambda inside, step: inside[step], way, messages)[last] = value
    answered = served.post(CHAT, {**HELLO, "messages": messages})
    error = answered.body["error"]
    assert answered.status == 422 and error["param"] == named and named in error["message"], error


def test_whole_messages_may_be_sent_back(served):
    """As OpenAI's client, LangChain and others dump them."""
    nothing = dict.fromkeys(("audio", "function_call", "name", "annotations", "reasoning_content"))
    said = {"role": "assistant", "content": "ok", "refusal": None, "tool_calls": [], "images": None, **nothing}
    for message in (said, {**said, "refusal": "", "annotations": [], "tool_calls": None}):
        messages = [*about("hi"), message, *about("and now?")]
        assert served.post(CHAT, {**HELLO, "messages": messages}).status == 200


def test_base64_may_have_line_breaks(served):
    head, data = RED.split(",")
    lines = "\n".join(data[place : place + 76] for place in range(0, len(data), 76)) + "\n"
    plain = served.post(CHAT, {**HELLO, "messages": about("what?", RED)}).body["choices"]
    for uri in (f"{head},{lines}", f"{head},{lines}".replace("\n", "\r\n"), RED.replace("data:image", "DATA:Image")):
        assert served.post(CHAT, {**HELLO, "messages": about("what?", uri)}).body["choices"] == plain


@pytest.mark.parametrize(
    ("body", "headers", "told"),
    [
        (b'{"messages": [}', {}, "the body is not JSON: Expecting value: line 1 column 15"),
        (b'{\n"messages":\n 3,}', {}, "line 3 column"),
        (b"\xff{}", {}, "the body is not UTF-8"),
        (b"[" * 100_000, {}, "the body is not JSON of reasonable depth"),
        (b"", {}, "the body: Field required"),
        (b"[]", {}, "the body: Input should be an object"),
        (b"{}", {"content_type": "text/plain"}, "content-type is text/plain: send content-type: application/json"),
    ],
    ids=["JSON", "lines", "UTF-8", "depth", "empty", "list", "type"],
)
def test_a_body_that_is_no_request_is_told_why(served, body, headers, told):
    answered = served.post(CHAT, body, **headers)
    assert answered.status in (400, 422) and told in _message(answered)


def test_no_content_type_is_told(served):
    connection = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=WAIT)
    connection.request("POST", CHAT, json.dumps(HELLO))
    error = json.loads(connection.getresponse().read())["error"]
    connection.close()
    assert error["message"] == "the header content-type is missing: send content-type: application/json"
    assert error["param"] == "content-type"


def test_a_name_may_have_slashes(start, tiny_model):
    server = start(*tiny_model, name="org/scenes")
    models = server.client().models
    assert models.retrieve("org/scenes").id == models.list().data[0].id == "org/scenes"
    assert server.post(CHAT, {**HELLO, "model": "org/scenes"}).status == 200
    for wrong in ("org", "scenes", "org/scenes/x"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{server.url}/v1/models/{wrong}")


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("localhost", "localhost"),
        ("localhost:8000", "localhost"),
        ("LocalHost.:8000", "localhost"),
        ("127.0.0.1", "127.0.0.1"),
        ("[::1]", "::1"),
        ("[::1]:8000", "::1"),
        ("[0:0:0:0:0:0:0:1]:", "::1"),
        ("::1", ""),
        ("[::1", ""),
        ("[::1]evil.example", ""),
        ("localhost:evil.example", ""),
        ("localhost.evil.example", "localhost.evil.example"),
    ],
)
def test_hosts_have_one_name(served, host, name):
    assert host_name(host) == name
    assert (served.post(CHAT, HELLO, host=host).status == 200) == (name in ("localhost", "127.0.0.1", "::1"))
