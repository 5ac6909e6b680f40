"""The schema of a sample: what it takes, what it refuses, and what raw formats become."""

import io
import json
from pathlib import Path

import datasets
import pytest
from PIL import Image

from data_recipes.messages import (
    DESCRIBE,
    READERS,
    Reader,
    checked,
    from_files,
    images_of,
    stored_image,
    to_files,
    with_images,
)


def picture(kind: str = "PNG", color: str = "red") -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (20, 10), color).save(data, kind)
    return data.getvalue()


def chat(*contents) -> list[dict]:
    return [{"role": ("user", "assistant")[turn % 2], "content": content} for turn, content in enumerate(contents)]


def image(name: str) -> dict[str, str]:
    return {"type": "image", "image": name}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


KINDS = {
    "text only": chat("hello", "hi", "how are you?", "well"),
    "question": chat([image("a"), text("what is this?")], "a dog"),
    "two images": chat([image("a"), image("b"), text("which is red?")], "the first", "sure?", "yes"),
    "text to image": chat("a red dog", [image("a")]),
    "edit": chat([image("a"), text("make it blue")], [image("b")]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_survives_its_files(kind):
    messages = checked(KINDS[kind])
    contents = [picture("PNG", color) for color, _ in zip(("red", "blue"), images_of(messages), strict=False)]
    files = to_files(messages, [("png", content) for content in contents])
    back = from_files(files)
    assert back.images == contents and back.codes_of == {}
    assert images_of(back.messages) == [f"{place}.png" for place in range(len(contents))]
    assert with_images(back.messages, images_of(messages)) == messages


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (None, "no messages"),
        ([], "no messages"),
        (chat("hello"), "roles are user; they alternate"),
        (chat("hello", "hi", "and?"), "roles are user, assistant, user; they alternate"),
        ([{"role": "system", "content": "be nice"}, *chat("hello", "hi")], "roles are system, user"),
        (["hello", "hi"], "roles are None, None"),
        ([{"role": "user"}, {"role": "assistant", "content": "hi"}], "a message has no content"),
        (chat([], "hi"), "a message has no content"),
        (chat("hello", " "), "a part of type text holds ' '"),
        (chat([{"type": "image"}], "hi"), "a part of type image holds None"),
        (chat([{"type": "video", "video": "0.mp4"}], "hi"), "unknown content type 'video'; known: text, image"),
    ],
)
def test_what_is_not_in_the_schema_is_refused(messages, reason):
    with pytest.raises(ValueError, match=reason):
        checked(messages)


def test_files_and_messages_must_agree():
    files = to_files(checked(KINDS["question"]), [("png", picture())])
    with pytest.raises(ValueError, match="no 0.png, which its messages show"):
        from_files({"json": files["json"]})
    with pytest.raises(ValueError, match="no message shows its 1.png"):
        from_files({**files, "1.png": picture()})
    with pytest.raises(ValueError, match="no json"):
        from_files({"0.png": picture()})
    with pytest.raises(ValueError, match="its json is damaged"):
        from_files({"json": files["json"][:-9]})
    with pytest.raises(ValueError, match="no messages"):
        from_files({"json": b"[1]"})


def test_files_of_images_stay_as_they_are_where_they_can():
    for kind, extension in (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")):
        assert stored_image(picture(kind), "x") == (extension, picture(kind))
    extension, content = stored_image(picture("BMP"), "x")
    assert extension == "png" and Image.open(io.BytesIO(content)).getpixel((3, 3)) == (255, 0, 0)
    with pytest.raises(ValueError, match="cannot read x as an image"):
        stored_image(picture("JPEG")[:-200], "x")


def test_names_of_images_may_differ_in_case_from_those_in_a_shard():
    messages = chat([image("./0.PNG"), text("what is this?")], [image("É.jpg")])
    files = {"json": json.dumps({"messages": messages}).encode(), "0.png": picture(), "é.jpg": picture("JPEG")}
    assert images_of(from_files(files).messages) == ["0.png", "é.jpg"]


def test_a_part_of_two_kinds_is_refused():
    with pytest.raises(ValueError, match="a part of type text also holds image '0.png': make it a part of its own"):
        checked(chat([{"type": "text", "text": "what?", "image": "0.png"}], "hi"))


# ---- raw formats


def lines(folder: Path, *records) -> Path:
    file = folder / "samples.jsonl"
    file.write_text("\n".join(record if isinstance(record, str) else json.dumps(record) for record in records))
    return file


def as_read(reader: Reader, index: int) -> list[dict]:
    """Messages with colours for images."""
    found = from_files(reader[index])
    colors = [Image.open(io.BytesIO(content)).convert("RGB").getpixel((3, 3)) for content in found.images]
    return with_images(found.messages, ["red" if color[0] > 200 else "blue" for color in colors])


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for color in ("red", "blue"):
        (folder / f"{color}.png").write_bytes(picture("PNG", color))
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def test_lines_of_messages(tmp_path, images):
    edit, words = chat([image("red.png"), text("make it blue")], [image("blue.png")]), chat("é", "ü")
    file = lines(tmp_path, {"messages": edit}, "", {"messages": words})
    reader = READERS["messages"](file, images)
    assert len(reader) == 2
    assert as_read(reader, 0) == checked(chat([image("red"), text("make it blue")], [image("blue")]))
    assert as_read(reader, 1) == checked(words)


@pytest.mark.parametrize(
    "names",
    [("before", "instruction", "after"), ("source_img", "edit_prompt", "target_img"), ("source", "text", "target")],
)
def test_lines_of_edits(tmp_path, images, names):
    file = lines(tmp_path, dict(zip(names, ("red.png", "make it blue", "blue.png"), strict=True)))
    edit = chat([image("red"), text("make it blue")], [image("blue")])
    assert as_read(READERS["edits"](file, images), 0) == checked(edit)


@pytest.mark.parametrize(
    "wrong, problem",
    [
        ({"before": "red.png", "instruction": "x"}, "line 1: no field for the image after; give one of after, target"),
        (
            {"before": "red.png", "after": "blue.png", "edit": "x", "prompt": "y"},
            "several fields for the instruction: edit",
        ),
        ({"before": "red.png", "after": "blue.png", "edit": ""}, "a part of type text holds ''"),
        ({"before": "red.png", "after": "green.png", "edit": "x"}, "no image file at .*green.png"),
        ({"before": None, "after": "blue.png", "edit": "x"}, "a part of type image holds None"),
        (["red.png"], "line 1: "),
    ],
)
def test_wrong_lines_of_edits_are_named(tmp_path, images, wrong, problem):
    with pytest.raises(ValueError, match=problem):
        READERS["edits"](lines(tmp_path, wrong), images)[0]


def test_lines_with_a_mark_blank_ones_and_separators_inside_texts(tmp_path, images):
    words = chat("one\u2028two\x85three", "ü")
    record = json.dumps({"messages": words}, ensure_ascii=False).encode()
    file = tmp_path / "samples.jsonl"
    for content in (b"\xef\xbb\xbf" + record + b"\r\n\r\n", b"\xef\xbb\xbf\n" + record, record):
        file.write_bytes(content)
        reader = READERS["messages"](file, images)
        assert len(reader) == 1 and as_read(reader, 0) == checked(words)
    file.write_bytes(record + b"\n" + json.dumps({"messages": chat("café", "a")}, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(ValueError, match="samples.jsonl, line 2: the line is no text that can be read.*byte 0xe9"):
        READERS["messages"](file, images)[1]
    file.write_bytes(record.decode().encode("utf-16"))
    with pytest.raises(ValueError, match="samples.jsonl is UTF-16 text: save it as UTF-8"):
        READERS["messages"](file, images)


@pytest.mark.parametrize("name", ["./é.png", "./sub\\..\\é.png", "e\u0301.png"])
def test_images_are_found_by_any_form_of_their_names(tmp_path, images, name):
    (images / "é.png").write_bytes(picture("PNG", "red"))
    reader = READERS["messages"](lines(tmp_path, {"messages": chat([image(name)], "a dog")}), images)
    assert as_read(reader, 0) == checked(chat([image("red")], "a dog"))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "Expecting property name"),
        ("[1]", "a field is missing or of another type"),
        ({"text": "x"}, "a field is missing or of another type: 'messages'"),
        ({"messages": chat([image("gone.png")], "a")}, "no image file at .*gone.png"),
        ({"messages": chat([image("broken.png")], "a")}, "cannot read broken.png as an image"),
        ({"messages": chat("a")}, "roles are user"),
    ],
)
def test_a_bad_line_is_named(tmp_path, images, line, reason):
    file = lines(tmp_path, {"messages": chat("a", "b")}, line)
    with pytest.raises(ValueError, match=f"samples.jsonl, line 2: {reason}"):
        READERS["messages"](file, images)[1]


def test_llava(tmp_path, images):
    def record(names, *texts):
        talk = [{"from": ("human", "gpt")[turn % 2], "value": words} for turn, words in enumerate(texts)]
        return {"id": "x", **({"image": names} if names else {}), "conversations": talk}

    file = tmp_path / "llava.json"
    records = [
        record("red.png", "<image>\nwhat is this?", "a dog", "sure?", "yes"),
        record(["red.png", "blue.png"], "this: <image> and that: <image>", "differ"),
        record(None, "hello", "hi"),
        record("red.png", "where is it?", "gone"),
        {"id": "y"},
    ]
    file.write_text(json.dumps(records))
    reader = READERS["llava"](file, images)
    assert as_read(reader, 0) == checked(chat([image("red"), text("what is this?")], "a dog", "sure?", "yes"))
    two = [text("this:"), image("red"), text("and that:"), image("blue")]
    assert as_read(reader, 1) == checked(chat(two, "differ"))
    assert as_read(reader, 2) == checked(chat("hello", "hi"))
    with pytest.raises(ValueError, match="llava.json, entry 3: 0 <image> in the texts, 1 images given"):
        reader[3]
    with pytest.raises(ValueError, match="llava.json, entry 4: a field is missing or of another type"):
        reader[4]


@pytest.mark.parametrize("task", ["draw", "describe"])
def test_captioned_images(tmp_path, task):
    (tmp_path / "a.png").write_bytes(picture("PNG", "red"))
    (tmp_path / "a.txt").write_text("a red dog")
    (tmp_path / "b.png").write_bytes(picture("PNG", "blue"))
    reader = READERS["captions"](tmp_path, task=task)
    draw, describe = chat("a red dog", [image("red")]), chat([image("red"), text(DESCRIBE)], "a red dog")
    assert as_read(reader, 0) == checked(draw if task == "draw" else describe)
    with pytest.raises(ValueError, match="b.png: no caption"):
        reader[1]
    assert reader.notes == [f"{tmp_path}: 2 images; captions: 1 in .txt files, 1 none"]


def test_saved_datasets(tmp_path):
    values = {"image": [Image.new("RGB", (20, 10), "red"), None], "caption": ["a red dog", "nothing"]}
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    datasets.Dataset.from_dict(values, features).save_to_disk(tmp_path / "captions")
    reader = READERS["datasets"](tmp_path / "captions")
    assert as_read(reader, 0) == checked(chat("a red dog", [image("red")]))
    with pytest.raises(ValueError, match="captions, row 1: a field is missing"):
        reader[1]

    values = {"image": [Image.new("RGB", (20, 10), "red")] * 2, "text": [["a red dog", "a dog"], []]}
    datasets.Dataset.from_dict(values).save_to_disk(tmp_path / "lists")
    reader = READERS["datasets"](tmp_path / "lists")
    assert as_read(reader, 0)[0]["content"] in ([text("a red dog")], [text("a dog")])
    with pytest.raises(ValueError, match="lists, row 1: its caption is .*; give a text, or a list of texts"):
        reader[1]

    asked = chat([{"type": "image", "text": None}, text("what is this?")], [text("a dog")])
    unasked = chat([text("what is this?")], [text("a dog")])
    values = {"messages": [asked, unasked], "image": [Image.new("RGB", (20, 10), "red")] * 2}
    datasets.Dataset.from_dict(values).save_to_disk(tmp_path / "single")
    reader = READERS["datasets"](tmp_path / "single")
    assert as_read(reader, 0) == checked(chat([image("red"), text("what is this?")], "a dog"))
    with pytest.raises(ValueError, match="single, row 1: 0 images in the messages, 1 in the column images"):
        reader[1]

    parts = [[{"type": "image", "text": None}, text("make it blue")], [{"type": "image", "text": None}]]
    pictures = [[Image.new("RGB", (20, 10), color) for color in ("red", "blue")]] * 2
    values = {"messages": [chat(*parts), chat([text("hi")], [text("hi")])], "images": pictures}
    datasets.Dataset.from_dict(values).save_to_disk(tmp_path / "chats")
    reader = READERS["datasets"](tmp_path / "chats")
    assert as_read(reader, 0) == checked(chat([image("red"), text("make it blue")], [image("blue")]))
    with pytest.raises(ValueError, match="chats, row 1: 0 images in the messages, 2 in the column images"):
        reader[1]

    both = datasets.load_from_disk(str(tmp_path / "chats"))
    datasets.DatasetDict({"train": both, "test": both}).save_to_disk(tmp_path / "both")
    with pytest.raises(ValueError, match="both holds the splits train, test: give the folder of one"):
        READERS["datasets"](tmp_path / "both")
    both.remove_columns("messages").save_to_disk(tmp_path / "other")
    with pytest.raises(ValueError, match="other has the columns images; give messages, or image and caption"):
        READERS["datasets"](tmp_path / "other")


def _captions(folder: Path) -> Path:
    (folder / "red.txt").write_text("a red dog")
    (folder / "cut.txt").write_text("a blue dog")
    return folder


def _messages(folder: Path) -> Path:
    return lines(folder, *({"messages": chat("a red dog", [image(name)])} for name in ("red.png", "cut.png")))


def _edits(folder: Path) -> Path:
    edit = {"before": "red.png", "instruction": "make it blue"}
    return lines(folder, *({**edit, "after": name} for name in ("red.png", "cut.png")))


def _llava(folder: Path) -> Path:
    turns = [{"from": "human", "value": "what is it? <image>"}, {"from": "gpt", "value": "a red dog"}]
    records = [{"image": name, "conversations": turns} for name in ("red.png", "cut.png")]
    (folder / "llava.json").write_text(json.dumps(records))
    return folder / "llava.json"


def _datasets(folder: Path) -> Path:
    values = {"image": [str(folder / "red.png"), str(folder / "cut.png")], "caption": ["a red dog", "a blue dog"]}
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    datasets.Dataset.from_dict(values, features).save_to_disk(folder / "saved")
    return folder / "saved"


TWO_SAMPLES = {"captions": _captions, "messages": _messages, "edits": _edits, "llava": _llava, "datasets": _datasets}
"""For each of READERS: an input of two samples, of which one shows the image cut.png."""


@pytest.mark.parametrize("name", READERS)
def test_samples_of_every_format_survive_their_files_and_damaged_images_are_named(name, tmp_path):
    (tmp_path / "red.png").write_bytes(picture())
    (tmp_path / "cut.png").write_bytes(picture()[:-30])
    reader, good = READERS[name](TWO_SAMPLES[name](tmp_path)), []
    assert len(reader) == 2
    for index in range(2):
        try:
            good.append(from_files(reader[index]))
        except ValueError as error:
            assert str(error).startswith(f"{reader.name(index)}: ") and "\n" not in str(error)
    [sample] = good
    assert checked(sample.messages) == sample.messages and sample.codes_of == {}
    assert len(images_of(sample.messages)) == len(sample.images) > 0 and set(sample.images) == {picture()}


@pytest.mark.parametrize("name", READERS)
def test_an_input_that_is_not_there_is_named(name, tmp_path):
    with pytest.raises(ValueError, match="no (file|folder) .*nowhere"):
        READERS[name](tmp_path / "nowhere")
