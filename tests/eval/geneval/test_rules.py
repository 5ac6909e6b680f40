"""GenEval's rules, against 1,200 recorded verdicts of the original scoring code; and the scoring of a folder."""

import gzip
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from eval.drawn_folder import save
from eval.geneval.page import failures_page
from eval.geneval.rules import judge, read_drawings, relative_position, report, score_folder, summary
from eval.pieces import digest

CASES = Path(__file__).parents[1] / "fixtures" / "rule_cases.jsonl.gz"


def found(name: str, score: float = 0.99, box=(0, 0, 10, 10), color: str = "red") -> dict:
    return {"cls": name, "score": score, "box": list(box), "color": color}


def test_every_recorded_verdict_is_reproduced():
    with gzip.open(CASES, "rt") as lines:
        cases = [json.loads(line) for line in lines]
    wrong = [case for case in cases if judge(case["metadata"], case["detections"])[0] != case["correct"]]
    assert len(cases) == 1200
    assert not wrong


def test_a_wrong_image_has_a_reason_and_a_right_one_has_none():
    metadata = {"tag": "colors", "include": [{"class": "cow", "count": 1, "color": "red"}]}
    assert judge(metadata, [found("cow")]) == (True, "")
    assert judge(metadata, [found("cow", color="blue")]) == (False, "expected red cow, found blue")
    assert judge(metadata, [found("dog")]) == (False, "expected 1 cow, found 0")


def test_counting_asks_for_exactly_n_at_the_high_threshold():
    metadata = {
        "tag": "counting",
        "include": [{"class": "cow", "count": 2}],
        "exclude": [{"class": "cow", "count": 3}],
    }
    assert judge(metadata, [found("cow"), found("cow"), found("cow", score=0.9)])[0]
    assert not judge(metadata, [found("cow"), found("cow", score=0.9)])[0]
    assert not judge(metadata, [found("cow")] * 3)[0]


@pytest.mark.parametrize(
    ("box", "relations"),
    [
        ([0, 50, 10, 60], ["left of"]),
        ([90, 50, 100, 60], ["right of"]),
        ([50, 0, 60, 10], ["above"]),
        ([90, 90, 100, 100], ["right of", "below"]),
        ([51, 50, 61, 60], []),
        ([50, 50, 60, 60], []),
    ],
)
def test_relations_to_a_box_in_the_middle(box, relations):
    assert relative_position(box, [50, 50, 60, 60]) == relations


def test_overall_is_the_mean_of_the_tasks_not_of_the_images():
    rows = [{"tag": "colors", "correct": c} for c in (True, True, True, False)] + [
        {"tag": "counting", "correct": False}
    ]
    assert summary(rows) == {"colors": 0.75, "counting": 0.0, "overall": 0.375}
    assert summary([]) == {}


# ---- a folder of drawings


class ByColor:
    """A detector that knows cows (red) and dogs (blue): one fills an image of its colour."""

    def __init__(self):
        self.seen = 0

    def detect(self, images: list) -> list[list[dict]]:
        self.seen += len(images)
        names = {(255, 0, 0): "cow", (0, 0, 255): "dog"}
        corners = [names.get(image.getpixel((0, 0))) for image in images]
        return [[found(name, box=(2, 2, 30, 30))] if name else [] for name in corners]


RUN = {"model": "0123", "model_name": "tiny", "images_per_prompt": 2, "seed": 0, "cfg_scale": 3.0}


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three prompts by two images, each red and blue: a cow, a dog, and a thing nobody knows. Drawn by RUN."""
    clauses = {"a cow": "cow", "a <dog> \ud800": "dog", "a toaster": "toaster"}
    records = [
        {"tag": tag, "prompt": prompt, "include": [{"class": clauses[prompt], "count": 1}]}
        for prompt, tag in zip(clauses, ("single_object", "colors", "colors"), strict=True)
    ]
    about = {**RUN, "prompts": 3, "prompts_hash": digest({str(place): record for place, record in enumerate(records)})}
    (tmp_path / "run.json").write_text(json.dumps(about))
    for place, record in enumerate(records):
        for sample, color in enumerate(("red", "blue")):
            image = tmp_path / f"{place:05d}" / "samples" / f"{sample:04d}.png"
            save(image, Image.new("RGB", (32, 32), color), {"prompt": record["prompt"], "seeds": [1], **about})
        (tmp_path / f"{place:05d}" / "metadata.jsonl").write_text(json.dumps(record))
    return tmp_path


def scored(folder: Path, detector: ByColor, name: str, count: int = 4) -> list[dict] | None:
    return score_folder(folder, read_drawings(folder, count), detector, name)


def test_a_folder_is_scored_by_the_rules(folder):
    rows = scored(folder, ByColor(), "by color")
    assert [row["correct"] for row in rows] == [True, False, False, True, False, False]
    official = {"filename", "tag", "prompt", "correct", "reason", "metadata", "details"}
    assert set(rows[0]) == official | {"judged"} and rows[1]["filename"] == "00000/samples/0001.png"
    result = report(folder, rows, ["cow", "dog"])
    assert result["scores"] == {"single_object": 0.5, "colors": 0.25, "overall": 0.375}
    assert (result["correct_images"], result["correct_prompts"]) == pytest.approx((1 / 3, 2 / 3))
    assert (result["model"], result["model_hash"], result["settings"]["cfg_scale"]) == ("tiny", "0123", 3.0)
    assert result["prompts_with_unknown_things"] == 1 and result["not_judged"] == []


def test_an_image_is_judged_once_and_again_when_it_changed(folder):
    detector = ByColor()
    before = scored(folder, detector, "by color")
    assert scored(folder, detector, "by color") == before and detector.seen == 6
    image = folder / "00000/samples/0001.png"
    image.write_bytes((folder / "00000/samples/0000.png").read_bytes())
    assert [row["correct"] for row in scored(folder, detector, "by color")[:2]] == [True, True]
    assert detector.seen == 8
    scored(folder, detector, "another one")
    assert detector.seen == 14


def test_two_processes_share_the_judging(folder, monkeypatch):
    alone = scored(folder, ByColor(), "alone")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert scored(folder, ByColor(), "together") is None
    monkeypatch.setenv("RANK", "0")
    detector = ByColor()
    assert scored(folder, detector, "together") == alone
    assert detector.seen == 4


def test_a_damaged_image_is_wrong_and_named(folder):
    damaged = folder / "00000/samples/0000.png"
    damaged.write_bytes(damaged.read_bytes()[:40])
    rows = scored(folder, ByColor(), "by color")
    assert not rows[0]["correct"] and "cannot read" in rows[0]["reason"]
    assert report(folder, rows, [])["not_judged"] == ["00000/samples/0000.png"]
    assert rows[3]["correct"]


def test_images_that_could_not_be_drawn_are_wrong(folder):
    files = [f"00001/samples/000{sample}.png" for sample in (0, 1)]
    (folder / "not_drawn.json").write_text(json.dumps(dict.fromkeys(files, "too long")))
    for file in files:
        (folder / file).unlink()
    rows = scored(folder, ByColor(), "by color")
    assert [row["reason"] for row in rows[2:4]] == ["not drawn: too long"] * 2
    assert report(folder, rows, [])["not_judged"] == files and len(rows) == 6


def other_prompt(folder: Path) -> None:
    shutil.copy(folder / "00001/samples/0000.png", folder / "00000/samples/0000.png")


def other_settings(folder: Path) -> None:
    save(folder / "00000/samples/0000.png", Image.new("RGB", (32, 32)), {"prompt": "a cow", "cfg_scale": 1.0})


def other_metadata(folder: Path) -> None:
    file = folder / "00000/metadata.jsonl"
    file.write_text(file.read_text().replace('"count": 1', '"count": 2'))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda folder: (folder / "00001/samples/0001.png").unlink(),
            "incomplete or mixed, 1 images in .*, 2 are wanted",
        ),
        (lambda folder: shutil.copytree(folder / "00000", folder / "00009"), "incomplete, 4 of 3 prompts"),
        (lambda folder: shutil.rmtree(folder / "00002"), "incomplete, 2 of 3 prompts"),
        (
            lambda folder: shutil.copy(folder / "00000/samples/0000.png", folder / "00000/samples/0002.png"),
            "mixed, 3 images",
        ),
        (other_prompt, "mixed: .*drawn otherwise .prompt 'a <dog>"),
        (other_settings, "mixed: .*drawn otherwise .cfg_scale 1.0, not 3.0"),
        (other_metadata, "mixed: its metadata.jsonl files"),
        (lambda folder: [shutil.rmtree(place) for place in folder.glob("0*")], "holds no images"),
    ],
)
def test_half_and_mixed_folders_are_refused(folder, spoil, message):
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        scored(folder, ByColor(), "by color")


def test_images_of_other_formats_are_judged_too(folder):
    (folder / "run.json").unlink()
    for place, file in enumerate(sorted(folder.glob("*/samples/*.png"))):
        suffix = (".jpg", ".WEBP", ".PNG")[place % 3]
        with Image.open(file) as image:
            image.convert("RGB").save(file.with_suffix(suffix), quality=100)
        if suffix != ".PNG":
            file.unlink()
    for file in folder.glob("*/samples/*.PNG"):
        file.with_suffix(".png").unlink()
    rows = scored(folder, ByColor(), "by color", count=2)
    assert len(rows) == 6 and all(row["judged"] for row in rows)
    assert {row["filename"].rpartition(".")[2] for row in rows} == {"jpg", "WEBP", "PNG"}


def test_a_folder_says_what_was_looked_for(folder, tmp_path):
    (folder / "run.json").unlink()
    for file in folder.glob("*/samples/*.png"):
        file.rename(file.with_suffix(".tiff"))
    with pytest.raises(
        ValueError, match=r"0 images in .*samples \(0000.png, 0001.png, ..., or .bmp, .jpeg, .jpg, .webp\)"
    ):
        read_drawings(folder, 2)
    with pytest.raises(
        ValueError, match="they are in folders 00000, 00001, ... with metadata.jsonl and samples/0000.png"
    ):
        read_drawings(tmp_path / "nowhere")
    for line in ("[1]", "3", '{"tag": "a"}', "hello"):
        (folder / "00000/metadata.jsonl").write_text(line)
        with pytest.raises(ValueError, match="GenEval records"):
            read_drawings(folder, 2)


def test_a_folder_of_another_program_is_scored_when_it_is_whole(folder):
    (folder / "run.json").unlink()
    assert len(scored(folder, ByColor(), "by color", count=2)) == 6
    assert report(folder, scored(folder, ByColor(), "by color", 2), [])["model"] == "unknown"
    with pytest.raises(ValueError, match="2 images in .*, 4 are wanted"):
        scored(folder, ByColor(), "by color")
    shutil.rmtree(folder / "00001")
    with pytest.raises(ValueError, match="incomplete, 2 of 3 prompts"):
        scored(folder, ByColor(), "by color", count=2)


def test_the_page_shows_wrong_images_with_boxes_and_needs_no_other_file(folder):
    (folder / "00002/samples/0000.png").write_bytes(b"damaged")
    rows = scored(folder, ByColor(), "by color")
    page = failures_page(folder, "GenEval <tiny>", rows)
    assert page.count("<figure>") == 4 and page.count("<rect") == 3 == page.count("data:image/jpeg;base64,")
    assert "colors: 3 wrong of 4" in page and "red dog 0.99" in page
    assert 'x="2" y="2" width="28" height="28"' in page and "cannot read" in page
    assert "a &lt;dog&gt; &#55296;" in page and "<dog>" not in page
    assert "http" not in page and "src=" not in page and "<script" not in page
