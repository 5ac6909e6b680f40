"""The scenes report: every part runs on a tiny model, goes on where it stopped, and never mixes two runs."""

import copy
import json
import re
from itertools import cycle
from pathlib import Path

import pytest
import torch
from PIL import Image

from data_recipes.scenes.language.questions import KINDS
from data_recipes.scenes.world import CLASSES, COLORS, QUESTIONS, World
from eval import drawn_folder
from eval.geneval import drawing
from eval.scenes import conversation
from eval.scenes import suite as scenes
from eval.scenes.detector import Detector, DetectorConfig
from eval.scenes.suite import (
    AT_LEAST,
    AT_MOST,
    Settings,
    Subject,
    compare,
    evaluate_scenes,
    report,
    spread,
)
from eval.scenes.tables import print_report
from scripts.eval_scenes import write_results
from training.lm.build import build_backbone

SMALL = Settings(limit=3, images_per_prompt=2, batch_size=2)


def read_rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def shapes(monkeypatch):
    """The world without the emoji font."""
    monkeypatch.setattr(scenes, "World", lambda _="", size=128: World("shapes", size))


@pytest.fixture
def subject(tiny_model, shapes) -> Subject:
    torch.manual_seed(0)
    config = DetectorConfig(CLASSES, tuple(COLORS), widths=(4, 4, 8, 8), depths=(1, 1, 1), neck_width=8)
    return Subject("tiny", *tiny_model, Detector(config).eval())


def test_questions_are_scored_by_kind_and_asked_once(subject, tmp_path, monkeypatch):
    first = evaluate_scenes(subject, SMALL, tmp_path, ["questions"])["questions"]["scores"]
    rows = read_rows(tmp_path / "questions.jsonl")
    assert {row["scene"] for row in rows} == {0, 1, 2}
    assert set(first) == {"overall"} | {row["kind"] for row in rows} <= {"overall", *QUESTIONS}
    assert first["overall"] == sum(row["correct"] for row in rows) / len(rows)

    monkeypatch.setattr(scenes, "generate_texts", None)  # would fail if anything were asked again
    assert evaluate_scenes(subject, SMALL, tmp_path, ["questions"])["questions"]["scores"] == first


def test_freely_worded_questions_are_the_same_in_other_words(subject, tmp_path):
    evaluate_scenes(subject, SMALL, tmp_path, ["questions", "free_wording"])
    plain, free = (read_rows(tmp_path / f"{part}.jsonl") for part in ("questions", "free_wording"))
    assert [(row["scene"], row["kind"]) for row in plain] == [(row["scene"], row["kind"]) for row in free]
    assert not {row["question"] for row in plain} & {row["question"] for row in free}


def test_freely_worded_questions_may_be_answered_in_a_sentence():
    assert scenes.holds("No, there is a dog.", "no") and scenes.holds("It's Light Blue!", "light blue")
    assert (
        not scenes.holds("nothing", "no")
        and not scenes.holds("", "no")
        and not scenes.holds("blue, light", "light blue")
    )


def test_right_answers_score_one(subject, tmp_path, monkeypatch):
    order = iter([question.answer for _, _, question in scenes.asked(subject.world, range(3))])
    monkeypatch.setattr(scenes, "generate_texts", lambda model, processor, talks: [f" {next(order)}\n" for _ in talks])
    scores = evaluate_scenes(subject, SMALL, tmp_path, ["questions"])["questions"]["scores"]
    assert set(scores.values()) == {1.0}


def test_a_stopped_run_goes_on(subject, tmp_path, monkeypatch):
    whole = evaluate_scenes(subject, SMALL, tmp_path / "whole", ["questions"])
    calls = []

    def stop_in_the_last_scene(model, processor, talks):
        calls.append(talks)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return generate(model, processor, talks)

    generate = scenes.generate_texts
    monkeypatch.setattr(scenes, "generate_texts", stop_in_the_last_scene)
    stop = len(scenes.in_batches(list(scenes.asked(subject.world, range(2))), 2)) + 1
    with pytest.raises(KeyboardInterrupt):
        evaluate_scenes(subject, SMALL, tmp_path / "killed", ["questions"])
    calls.clear()
    stop = None
    assert evaluate_scenes(subject, SMALL, tmp_path / "killed", ["questions"]) == whole
    last = [question.text for *_, question in scenes.asked(subject.world, [2])]
    assert [talk[0]["content"][1]["text"] for batch in calls for talk in batch] == last


@pytest.mark.parametrize("part", ["trained_forms", "unseen_forms"])
def test_right_answers_in_all_forms_are_judged_right(subject, tmp_path, monkeypatch, part):
    forms = {"trained_forms": "train", "unseen_forms": "held_out"}[part]
    answers = iter([one.question.answer for one in conversation.asked(subject.world, range(3), forms)])
    monkeypatch.setattr(conversation, "generate_texts", lambda _, __, chats, ___: [next(answers) for _ in chats])
    scores = evaluate_scenes(subject, SMALL, tmp_path, [part])[part]["scores"]
    assert set(scores.values()) == {1.0} and {"overall"} < set(scores) <= {"overall", *KINDS}
    rows = read_rows(tmp_path / f"{part}.jsonl")
    assert {row["scene"] for row in rows} == {0, 1, 2} and next(answers, None) is None


def test_a_model_that_is_its_backbone_has_kept_all(subject, pretrained_folder, tmp_path):
    model, processor = build_backbone(str(pretrained_folder))
    subject = subject._replace(model=model, processor=processor, backbone=str(pretrained_folder))
    scores = evaluate_scenes(subject, SMALL, tmp_path, ["talk"])["talk"]["scores"]
    assert scores["perplexity_ratio"] == pytest.approx(1) and scores["perplexity"] > 1
    rows = read_rows(tmp_path / "talk.jsonl")
    counts = {kind: sum(row["kind"] == kind for row in rows) for kind in ("words", "refusals", "pictures", "facts")}
    assert counts == {"words": 3, "refusals": 3, "pictures": 3, "facts": 3}
    assert {"words", "refusals", "pictures", "facts", "kept_facts"} < set(scores)


def test_talk_is_words_where_words_are_wanted_and_a_picture_where_it_is(subject, make_tiny_model, tmp_path):
    for what, expected in (("picture", (0.0, 1.0)), ("words", (1.0, 0.0))):
        model, processor = make_tiny_model()
        first = processor.boi_id if what == "picture" else processor.encode("a").ids[-2]
        wanted = cycle([first, processor.eos_id])  # all rows of a batch are in step
        model.lm_head.register_forward_hook(lambda _, __, logits, ids=wanted: only(logits, next(ids)))
        model.text_losses = lambda h_BTD, _: h_BTD.new_zeros(1)  # which would take one of them
        one = subject._replace(model=model, processor=processor)
        scores = evaluate_scenes(one, SMALL, tmp_path / what, ["talk"])["talk"]["scores"]
        assert (scores["words"], scores["pictures"]) == expected and scores["refusals"] == scores["words"]


def only(logits: torch.Tensor, wanted: int) -> torch.Tensor:
    return torch.full_like(logits, -10.0).index_fill_(-1, torch.tensor([wanted]), 10.0)


PARTS = ["questions", "free_wording", "unseen_forms", "talk", "drawing", "tokenizer"]


def test_two_processes_have_the_numbers_of_one(subject, tmp_path, monkeypatch):
    one = evaluate_scenes(subject, SMALL, tmp_path / "one", PARTS)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert evaluate_scenes(subject, SMALL, tmp_path / "two", PARTS) is None
    assert len(list((tmp_path / "two").rglob("samples/*.png"))) == 2  # one prompt of three
    monkeypatch.setenv("RANK", "0")
    assert evaluate_scenes(subject, SMALL, tmp_path / "two", PARTS) == one
    for name in ("questions.jsonl", "free_wording.jsonl", "results.jsonl"):
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "two" / name).read_text()


def test_drawings_are_kept_in_the_layout_of_geneval(subject, tmp_path):
    scores = evaluate_scenes(subject, SMALL, tmp_path, ["drawing"])["drawing"]["scores"]
    folders = sorted((tmp_path / "images").iterdir())
    assert len(folders) == 3 and all(folder.name.isdigit() and len(folder.name) == 5 for folder in folders)
    for folder in folders:
        assert sorted(file.name for file in (folder / "samples").iterdir()) == ["0000.png", "0001.png"]
        assert "include" in json.loads((folder / "metadata.jsonl").read_text())
    rows = read_rows(tmp_path / "results.jsonl")
    assert len(rows) == 6 == len({row["seed"] for row in rows})
    assert all((tmp_path / row["filename"]).is_file() for row in rows)
    assert all("overall" in scores[kind] for kind in ("model", "ceiling", "tokenizer_ceiling"))


def test_only_missing_drawings_are_drawn_and_alone_they_are_the_same(subject, tmp_path, monkeypatch):
    evaluate_scenes(subject, SMALL, tmp_path, ["drawing"])
    files = sorted((tmp_path / "images").rglob("*.png"))
    before = [file.read_bytes() for file in files]
    files[3].unlink()
    files[4].write_bytes(before[4][:60])
    prompts = []
    generate = drawing.generate_images

    def counted(model, processor, batch, seeds, **options):
        prompts.extend(batch)
        return generate(model, processor, batch, seeds, **options)

    monkeypatch.setattr(drawing, "generate_images", counted)
    evaluate_scenes(subject, SMALL, tmp_path, ["drawing"])
    assert len(prompts) == 2
    assert [file.read_bytes() for file in files] == before


def test_prompts_that_cannot_be_drawn_count_as_wrong(subject, tmp_path, monkeypatch):
    refuse = drawn_folder.start_drawing

    def refuse_one(model, processor, prompt, candidates):
        if prompt == refused:
            raise ValueError("cannot be drawn")
        return refuse(model, processor, prompt, candidates)

    refused = next(record["prompt"] for record in scenes.load_records(scenes.GENEVAL) if scenes.expressible(record))
    monkeypatch.setattr(drawn_folder, "start_drawing", refuse_one)
    evaluate_scenes(subject, SMALL, tmp_path, ["drawing"])
    rows = read_rows(tmp_path / "results.jsonl")
    assert [row["reason"] for row in rows if row["prompt"] == refused] == ["not drawn: cannot be drawn"] * 2
    assert [row["correct"] for row in rows if not row["judged"]] == [False, False]


def test_tokenizer_part(subject, tmp_path):
    scores = evaluate_scenes(subject, SMALL, tmp_path, ["tokenizer"])["tokenizer"]["scores"]
    config = subject.model.image_tokenizer.config
    assert set(scores["usage"]) == {str(k) for k in range(config.num_codebooks)}
    assert all(0 < value <= 1 for value in scores["usage"].values())
    assert 0 < scores["psnr"] < 60
    assert 0 <= scores["zero_shot"] <= 1


def test_a_text_tokenizer_that_the_text_tower_does_not_read_leaves_zero_shot_out(subject, tmp_path, capsys):
    """As a pretrained backbone's, which is many times as large."""
    processor = copy.deepcopy(subject.processor)
    processor.tokenizer.add_tokens([f"word{number}" for number in range(8)])
    results = evaluate_scenes(subject._replace(processor=processor), SMALL, tmp_path / "larger", ["tokenizer"])
    assert set(results["tokenizer"]["scores"]) == {"psnr", "usage"}
    print_report(results)
    assert "no zero-shot accuracy: the image tokenizer's text tower does not read" in capsys.readouterr().out
    print_report(evaluate_scenes(subject, SMALL, tmp_path / "own", ["tokenizer"]))
    assert "no zero-shot" not in capsys.readouterr().out


def test_speed_part(subject, tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "seconds_to_first_byte", lambda name, image: 1.0)
    scores = evaluate_scenes(subject, SMALL, tmp_path, ["speed"])["speed"]["scores"]
    assert set(scores) == {"first_token", "image", "chat_first_output"}
    assert all(value > 0 for value in scores.values())


def test_results_of_two_ways_of_drawing_never_mix(subject, tmp_path):
    evaluate_scenes(subject, SMALL, tmp_path, [])
    evaluate_scenes(subject, Settings(limit=5), tmp_path, [])
    with pytest.raises(ValueError, match="top_p was 1.0, is 0.9.*choose another --out"):
        evaluate_scenes(subject, Settings(top_p=0.9), tmp_path, [])


def test_parts_add_up_and_are_written_with_their_goals(subject, tmp_path, capsys):
    evaluate_scenes(subject, SMALL, tmp_path, ["questions"])
    results = evaluate_scenes(subject, SMALL, tmp_path, ["tokenizer"])
    assert set(results) == {"questions", "tokenizer"}
    write_results(tmp_path / "results.json", subject, results, ["--out", "a folder"])
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["command"] == "python -m scripts.eval_scenes --out 'a folder'" and written["versions"]["torch"]
    assert written["model_hash"] == subject.model.weights_hash()
    assert written["parts"] == results
    assert {"name", "value", "goal", "met"} == set(written["goals"][0])
    print_report(results)
    assert re.search(r"tokenizer.psnr *│ *[\d.]+ *│ *>= 27 *│ *miss", capsys.readouterr().out)


def test_an_unknown_part_names_the_known_ones(subject, tmp_path):
    with pytest.raises(ValueError, match="unknown part 'speeed'; known: speed, questions, free_wording, trained_forms"):
        evaluate_scenes(subject, SMALL, tmp_path, ["speeed"])


@pytest.mark.parametrize("name", ["limit", "images_per_prompt", "batch_size"])
def test_settings_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        Settings(**{name: 0})


def test_goals_hold_for_their_name_and_below():
    assert compare("tokenizer.usage.3", 0.95) == ("tokenizer.usage.3", 0.95, ">= 0.9", True)
    assert compare("speed.image", 2.5).met is False
    assert compare("drawing.held_out.overall", 0.1).met is None
    results = {"speed": {"scores": {"image": 1.0}}, "drawing": {"scores": {"model": {"overall": 0.8}}}}
    assert [(line.name, line.met) for line in report(results)] == [
        ("speed.image", True),
        ("drawing.model.overall", True),
    ]
    assert not AT_LEAST.keys() & AT_MOST.keys()


def test_spread_takes_evenly():
    assert spread(range(10), 5) == [0, 2, 4, 6, 8]
    assert spread(range(3), None) == spread(range(3), 9) == [0, 1, 2]


def test_psnr_of_a_known_difference():
    assert scenes.psnr(Image.new("RGB", (4, 4), (0, 0, 0)), Image.new("RGB", (4, 4), (255, 255, 255))) == 0
    assert scenes.psnr(Image.new("RGB", (4, 4), (0, 0, 0)), Image.new("RGB", (4, 4), (1, 1, 1))) == pytest.approx(
        48.13, abs=0.01
    )


def test_a_chat_that_fails_is_an_error(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    with pytest.raises(ValueError, match="scripts.chat .*failed"):
        scenes.seconds_to_first_byte(str(tmp_path / "no_model"), tmp_path / "image.png")
