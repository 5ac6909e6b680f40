"""scripts.text_to_image: seeds, batches, going on where a run stopped, and bad input."""

import json

import pytest
from PIL import Image
from rich.progress import Progress

from eval import drawn_folder
from scripts import text_to_image
from scripts.text_to_image import main, read_prompts


@pytest.fixture
def draw(run, tiny_folder, tmp_path):
    """Runs the script into a folder of tmp_path; -> that folder."""

    def run_draw(*words, out="out"):
        ended = run(main, *words, "--model", tiny_folder, "--out", tmp_path / out)
        assert ended.status == 0, ended.err
        return tmp_path / out

    return run_draw


@pytest.fixture
def prompts_drawn(monkeypatch):
    """Prompts that were really drawn, in order."""
    drawn, generate = [], drawn_folder.generate_images

    def counted(model, processor, prompts, **options):
        drawn.extend(prompts)
        return generate(model, processor, prompts, **options)

    monkeypatch.setattr(drawn_folder, "generate_images", counted)
    return drawn


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def pictures(folder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("0*.png")}


# ---- what is written


def test_images_grid_and_metadata(draw, tiny_model):
    folder = draw("a cat", " two dogs ", "-n", 3, "--seed", 7, "--cfg-scale", 2, "--top-k", 5, "--top-p", 0.9)
    names = [f"000{index}.png" for index in range(6)]
    assert sorted(file.name for file in folder.iterdir()) == [*names, "grid.png", "metadata.jsonl"]
    hash = {"model_hash": tiny_model[0].weights_hash()}
    settings = {"cfg_scale": 2.0, "temperature": 0.5, "top_k": 5, "top_p": 0.9, "code_context": "exact", **hash}
    settings |= {"cfg_interval": [0.0, 1.0], "candidates": 1, "steps": 0}
    assert lines(folder) == [
        {"file": name, "prompt": prompt, "seed": 7 + index, **settings}
        for index, (name, prompt) in enumerate(zip(names, ["a cat"] * 3 + ["two dogs"] * 3, strict=True))
    ]
    images = [Image.open(folder / name).copy() for name in names]
    grid = Image.open(folder / "grid.png").copy()
    assert images[0].size == (32, 32) and grid.size == (96, 64)
    assert grid.crop((64, 32, 96, 64)).tobytes() == images[5].tobytes()


def test_same_seed_same_image_whatever_the_batch(draw):
    words = ("a cat", "a photo of two very big dogs", "-n", 3)
    first = pictures(draw(*words, "--batch-size", 1, out="one"))
    assert len(set(first.values())) == 6
    assert pictures(draw(*words, "--batch-size", 4, out="four")) == first
    assert pictures(draw(*words, out="all")) == first


def test_one_prompt_makes_a_square_grid(draw):
    assert Image.open(draw("a cat", "-n", 5) / "grid.png").copy().size == (96, 64)


def test_the_grid_has_an_end(draw, monkeypatch):
    monkeypatch.setattr(drawn_folder, "GRID_IMAGES", 3)
    assert Image.open(draw("a cat", "a dog", "-n", 2) / "grid.png").copy().size == (64, 64)


def test_prompts_from_a_file(draw, tmp_path, prompts_drawn):
    (tmp_path / "prompts.txt").write_text("a dog\n\n  a red car\r\nein grüner Apfel\n", encoding="utf-8")
    folder = draw("a cat", "--prompts", tmp_path / "prompts.txt", "-n", 1)
    assert prompts_drawn == ["a cat", "a dog", "a red car", "ein grüner Apfel"]
    assert [line["prompt"] for line in lines(folder)] == prompts_drawn


def test_the_bar_moves_within_a_batch(draw, monkeypatch):
    done = []
    monkeypatch.setattr(Progress, "update", lambda self, task, completed: done.append(completed))
    draw("a cat", "-n", 3, "--batch-size", 2)
    assert done == [0.5, 1, 1.5, 2, 2.25, 2.5, 2.75, 3]  # four positions


# ---- going on


def test_nothing_is_drawn_twice(draw, prompts_drawn):
    before = pictures(draw("a cat", "a dog", "-n", 2))
    prompts_drawn.clear()
    folder = draw("a cat", "a dog", "-n", 2)
    assert prompts_drawn == [] and pictures(folder) == before and len(lines(folder)) == 4


def test_a_removed_image_is_drawn_again(draw, prompts_drawn):
    folder = draw("a cat", "a dog", "-n", 2)
    before, listed = pictures(folder), lines(folder)
    (folder / "0002.png").unlink()
    prompts_drawn.clear()
    draw("a cat", "a dog", "-n", 2)
    assert prompts_drawn == ["a dog"] and pictures(folder) == before and lines(folder) == listed


def test_more_images_are_added(draw, prompts_drawn):
    before = pictures(draw("a cat", "-n", 2))
    prompts_drawn.clear()
    folder = draw("a cat", "-n", 3)
    assert prompts_drawn == ["a cat"] and pictures(folder).items() > before.items()


def test_a_line_lost_between_image_and_metadata_is_written(draw, prompts_drawn):
    folder = draw("a cat", "-n", 3)
    listed, file = lines(folder), folder / "metadata.jsonl"
    file.write_text(file.read_text()[:-20])
    prompts_drawn.clear()
    draw("a cat", "-n", 3)
    assert prompts_drawn == [] and lines(folder) == listed


def test_ctrl_c_then_the_same_command_is_as_one_run(run, draw, tiny_folder, tmp_path, monkeypatch):
    whole = draw("a cat", "-n", 5, "--batch-size", 2, out="whole")
    generate, calls = drawn_folder.generate_images, []

    def interrupted(*words, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(*words, **options)

    monkeypatch.setattr(drawn_folder, "generate_images", interrupted)
    words = ("a cat", "-n", 5, "--batch-size", 2)
    ended = run(main, *words, "--model", tiny_folder, "--out", tmp_path / "out")
    assert ended.status == 130 and ended.err.endswith("stopped\n") and "Traceback" not in ended.err
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert names == ["0000.png", "0001.png", "metadata.jsonl"] and len(lines(tmp_path / "out")) == 2
    folder = draw(*words)
    assert pictures(folder) == pictures(whole) and lines(folder) == lines(whole)


def test_ctrl_c_while_saving_leaves_no_half_image(run, tiny_folder, tmp_path, monkeypatch):
    def half(self, file, *_, **__):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", half)
    assert run(main, "a cat", "--model", tiny_folder, "--out", tmp_path / "out").status == 130
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    "words, told",
    [
        (["a cat", "--cfg-scale", "5"], "cfg_scale 2.0, now it is 5.0"),
        (["a dog"], "prompt 'a cat', now it is 'a dog'"),
        (["a cat", "--seed", "1"], "seed 0, now it is 1"),
    ],
)
def test_two_ways_of_drawing_never_share_a_folder(draw, refused, tiny_folder, words, told):
    folder = draw("a cat", "-n", 1)
    before = pictures(folder)
    line = refused(main, *words, "-n", 2, "--model", tiny_folder, "--out", folder)
    assert f"{folder / '0000.png'} was drawn with {told}: choose another --out" in line
    assert pictures(folder) == before and len(lines(folder)) == 1


def test_two_models_never_share_a_folder(draw, refused, make_tiny_model, tmp_path):
    folder = draw("a cat", "-n", 1)
    for part in make_tiny_model(code_head="parallel"):
        part.save_pretrained(tmp_path / "other")
    assert "model_hash" in refused(main, "a cat", "--model", tmp_path / "other", "--out", folder)


def test_an_image_of_the_user_is_not_touched(refused, tiny_folder, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "0001.png")
    before = (tmp_path / "0001.png").read_bytes()
    line = refused(main, "a cat", "--model", tiny_folder, "--out", tmp_path)
    assert f"{tmp_path / '0001.png'} is there but was not drawn by this script" in line
    assert (tmp_path / "0001.png").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_strange_metadata_file_is_refused(refused, tiny_folder, tmp_path):
    (tmp_path / "metadata.jsonl").write_text('{"name": "something else"}\n')
    assert "metadata.jsonl was not written by this script" in refused(
        main, "a cat", "--model", tiny_folder, "--out", tmp_path
    )


def test_quantized_weights_are_other_weights(draw):
    """So that one folder never holds images of both."""
    [exact], [quantized] = (lines(draw("a cat", "-n", 1, *words, out=out)) for out, words in OUTS.items())
    assert exact["model_hash"] != quantized["model_hash"]


OUTS = {"exact": (), "quantized": ("--quantize", "int8")}


# ---- bad input


@pytest.mark.parametrize(
    "words, told",
    [
        ([], "no prompts: give some on the command line, or a file with --prompts"),
        ([""], "prompt 1 is empty"),
        (["a cat", "  "], "prompt 2 is empty"),
        (["a cat", "-n", "0"], "-n 0 is below 1"),
        (["a cat", "-n", "-3"], "-n -3 is below 1"),
        (["a cat", "-n", "two"], "-n: invalid int value: 'two'"),
        (["a cat", "--batch-size", "0"], "--batch-size 0 is below 1"),
        (["a cat", "--temperature", "-1"], "temperature -1.0 is neither 0"),
        (["a cat", "--top-k", "-1"], "top_k -1 is negative"),
        (["a cat", "--top-p", "1.5"], "top_p 1.5 is outside"),
        (["a cat", "--code-context", "all"], "unknown code_context 'all'; known: exact, published"),
        (["a cat", "--cfg-scale", "0"], "cfg_scale 0.0 is below 1"),
        (["a cat", "--cfg-interval", "0.5", "0.2"], "cfg_interval 0.5 to 0.2 is no part of an image"),
        (["a cat", "--quantize", "int2"], "invalid choice: 'int2'"),
        (["a cat", "--seed", "-5"], "seed -5 is outside"),
        (["--prompts", "no_such_file.txt"], "no_such_file.txt: No such file or directory"),
    ],
)
def test_wrong_options_are_refused_before_loading_a_model(refused, monkeypatch, tmp_path, words, told):
    monkeypatch.setattr(text_to_image, "load_model", None)
    assert told in refused(main, *words, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_of_prompts_has_one_a_line_whatever_else_texts_hold(tmp_path, encoding):
    (tmp_path / "prompts.txt").write_bytes("a red dog\r\n\r\nthis:\u2028a\x85cat\x0c and a bus\n".encode(encoding))
    expected = ["first", "a red dog", "this:\u2028a\x85cat\x0c and a bus"]
    assert read_prompts(["first"], tmp_path / "prompts.txt") == expected


@pytest.mark.parametrize("content, told", [(b"\xff\xfe", "is not UTF-8 text"), (b"\n \n", "no prompts")])
def test_bad_prompt_files(refused, tmp_path, content, told):
    (tmp_path / "prompts.txt").write_bytes(content)
    assert told in refused(main, "--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "out")


def test_an_output_folder_that_cannot_be_made(refused, monkeypatch, tmp_path):
    monkeypatch.setattr(text_to_image, "load_model", None)
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert f"cannot write to {out}" in refused(main, "a cat", "--out", out)


def test_an_unknown_model_is_refused(refused, tmp_path):
    assert "no_such_model" in refused(main, "a cat", "--model", "no_such_model", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_very_long_prompt_is_refused_before_any_is_drawn(refused, tiny_folder, tmp_path):
    words = ("a cat", "a dog " * 17_000, "--model", tiny_folder, "--out", tmp_path / "out")
    line = refused(main, *words)
    assert "prompt 2 ('a dog a dog a dog a '...) is too long" in line and "the model reads 256" in line
    assert not (tmp_path / "out").exists()


def test_the_published_loop_is_refused_for_models_that_never_had_it(run, tiny_folder, tmp_path):
    ended = run(main, "a cat", "--code-context", "published", "--model", tiny_folder, "--out", tmp_path)
    assert ended.status == 2 and "'published' is for converted UniTok models" in ended.err
