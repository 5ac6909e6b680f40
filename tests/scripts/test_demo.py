"""scripts.demo: what is printed and the page."""

import re
from dataclasses import replace

import pytest
from PIL import Image

from data_recipes.scenes.world import World
from eval import demo
from eval.demo import PROMPTS, Example, make_examples, report_page
from scripts.demo import main


@pytest.fixture(autouse=True)
def shapes(monkeypatch):
    """The world without the emoji font."""
    monkeypatch.setattr(demo, "World", lambda: World("shapes"))


def test_demo_prints_and_writes_a_page(run, tiny_folder, tmp_path):
    ended = run(main, "--model", tiny_folder, "--out", tmp_path / "out")
    assert ended.status == 0, ended.err
    page = (tmp_path / "out" / "index.html").read_text()
    sources = re.findall(r'src="([^"]+)"', page)
    assert sorted(sources) == sorted(file.name for file in (tmp_path / "out").glob("*.png"))
    assert len(sources) == 6 + len(PROMPTS) == len(set(sources))
    assert "http" not in page and "url(" not in page and "<script" not in page
    assert all(prompt in page for prompt in PROMPTS)
    assert "of 24 answers right" in ended.out and "index.html" in ended.out
    assert Image.open(tmp_path / "out" / "drawing_01.png").copy().size == (32, 32)


def test_true_answers_are_marked_right(run, tiny_folder, tmp_path, monkeypatch):
    asked = [one for example in make_examples(0) for one in example.asked]
    truths, place = [one.truth for one in asked], [one.of.kind for one in asked].index("describe")
    wrong = [*truths[:place], "<b>[bold]\x1b", *truths[place + 1 :]]
    monkeypatch.setattr(demo, "generate_texts", lambda model, processor, chats: wrong)
    ended = run(main, "--model", tiny_folder, "--out", tmp_path)
    page = (tmp_path / "index.html").read_text()
    right = len(truths) - 1
    assert f"{right} of {len(truths)} answers right" in ended.out and "\x1b" not in ended.out
    assert page.count(" right</span>") == right and page.count(" wrong; ") == 1
    assert "&lt;b&gt;" in page and "<b>" not in page


def test_examples_are_held_out_and_repeatable():
    first, second = make_examples(3), make_examples(3)
    assert [example.asked for example in first] == [example.asked for example in second]
    assert [e.image.tobytes() for e in first] == [e.image.tobytes() for e in second]
    assert first[0].asked != make_examples(4)[0].asked
    assert all(1 <= len(example.asked) <= demo.QUESTIONS_PER_IMAGE for example in first)


def test_answers_in_other_words_are_right():
    asked = next(one for example in make_examples(0) for one in example.asked if one.truth.startswith("No"))
    asked.answer = asked.truth.replace("No", "Nope", 1)
    assert asked.right
    asked.answer = "Yes, there is."
    assert not asked.right


def test_names_in_the_page_are_escaped():
    [*_, asked] = make_examples(0)[0].asked
    question = asked.of.question
    asked.of = asked.of._replace(question=replace(question, text="1 < 2 & 3?"))
    example = Example("example_01.png", Image.new("RGB", (8, 8)), [asked])
    report = demo.Report("out/<model>", "0" * 12, [example], [], 1.0, 2.0, 3.0)
    page = report_page(report)
    assert "<h1>What &ldquo;&lt;model&gt;&rdquo; sees" in page and "1 &lt; 2 &amp; 3?" in page


@pytest.mark.parametrize(
    "words, told",
    [
        (["--cfg-scale", "0"], "cfg_scale 0.0 is below 1"),
        (["--seed", "-1"], "seed -1 is outside"),
        (["--model", "no_such_model"], "no_such_model"),
    ],
)
def test_bad_input(refused, tmp_path, words, told):
    assert told in refused(main, *words, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_cannot_be_made(refused, monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "load_model", None)
    (tmp_path / "file").write_text("x")
    assert "choose another --out" in refused(main, "--out", tmp_path / "file" / "below")


def test_ctrl_c_writes_nothing(run, tiny_folder, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "generate_images", stop)
    assert run(main, "--model", tiny_folder, "--out", tmp_path / "out").status == 130
    assert not (tmp_path / "out").exists()
