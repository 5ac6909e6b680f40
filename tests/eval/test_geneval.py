"""GenEval's rules, against 1,200 recorded verdicts of the original scoring code."""

import gzip
import json
from pathlib import Path

import pytest

from eval.geneval import judge, relative_position, summary

CASES = Path(__file__).parent / "fixtures" / "rule_cases.jsonl.gz"


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
