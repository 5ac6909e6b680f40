"""GenEval's verdict on one image, and its score over many. Boxes are [x1, y1, x2, y2] in pixels, y down.

The rules are those of "GenEval: An Object-Focused Framework for Evaluating Text-to-Image Alignment"
(arXiv 2310.11513). Where the objects and their colours come from is the caller's business.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path

THRESHOLD = 0.3
COUNTING_THRESHOLD = 0.9
MAX_OBJECTS = 16  # of one class
POSITION_THRESHOLD = 0.1


def judge(metadata: dict, detections: list[dict]) -> tuple[bool, str]:
    """Is the image of these `detections` right for the prompt of `metadata`? Returns (correct, reason).

    `metadata` is a line of GenEval's evaluation_metadata.jsonl; a detection is
    {"cls", "box": [x1, y1, x2, y2], "score", "color"}. `reason` names every failed clause, "" when none did.
    """
    objects = _confident_objects(detections, COUNTING_THRESHOLD if metadata["tag"] == "counting" else THRESHOLD)
    failures = []
    matched: list[list[dict] | None] = []  # by include clause; None: it failed, so nothing can be placed against it
    for clause in metadata.get("include", []):
        found = objects.get(clause["class"], [])[: clause["count"]]
        failure = _clause_failure(clause, found, matched)
        matched.append(None if failure else found)
        if failure:
            failures.append(failure)
    for clause in metadata.get("exclude", []):
        found = objects.get(clause["class"], [])
        if len(found) >= clause["count"]:
            failures.append(f"expected fewer than {clause['count']} {clause['class']}, found {len(found)}")
    return not failures, "; ".join(failures)


def summary(rows: Iterable[dict]) -> dict[str, float]:
    """{task: share of its images that are correct, ..., "overall": plain mean of the tasks}.

    A row has "tag" and "correct". The mean over tasks is GenEval's headline number: a task with many prompts
    weighs no more than one with few.
    """
    verdicts: dict[str, list[bool]] = {}
    for row in rows:
        verdicts.setdefault(row["tag"], []).append(bool(row["correct"]))
    scores = {tag: sum(values) / len(values) for tag, values in verdicts.items()}
    return {**scores, "overall": sum(scores.values()) / len(scores)} if scores else {}


def _confident_objects(detections: list[dict], threshold: float) -> dict[str, list[dict]]:
    """Detections above the threshold by class, most confident first."""
    objects: dict[str, list[dict]] = {}
    for detection in sorted(detections, key=lambda d: -d["score"]):
        of_class = objects.setdefault(detection["cls"], [])
        if detection["score"] > threshold and len(of_class) < MAX_OBJECTS:
            of_class.append(detection)
    return objects


def _clause_failure(clause: dict, found: list[dict], matched: list[list[dict] | None]) -> str | None:
    """Why the objects found for an include clause do not satisfy it, or None when they do."""
    name, count = clause["class"], clause["count"]
    if len(found) < count:
        return f"expected {count} {name}, found {len(found)}"
    if "color" in clause:
        colors = [thing["color"] for thing in found]
        if colors.count(clause["color"]) < count:
            return f"expected {clause['color']} {name}, found {', '.join(colors)}"
    if "position" in clause:
        relation, reference = clause["position"]
        if matched[reference] is None:
            return f"no reference for {name} {relation} it"
        for thing in found:
            for other in matched[reference]:
                relations = relative_position(thing["box"], other["box"])
                if relation not in relations:
                    seen = " and ".join(relations) or "no relation"
                    return f"expected {name} {relation} {other['cls']}, found {seen}"
    return None


def relative_position(box: list[float], other: list[float]) -> list[str]:
    """Where `box` lies seen from `other`: none, one, or (on a diagonal) two of GenEval's four relations."""
    offset_x, offset_y = (_center(box, axis) - _center(other, axis) for axis in (0, 1))
    length = math.hypot(offset_x, offset_y)
    slack_x, slack_y = (POSITION_THRESHOLD * (_extent(box, axis) + _extent(other, axis)) for axis in (0, 1))
    beyond_x, beyond_y = max(abs(offset_x) - slack_x, 0), max(abs(offset_y) - slack_y, 0)
    if beyond_x == 0 and beyond_y == 0:
        return []
    # The part beyond the slack, over the length of the whole offset: GenEval does not shorten the latter.
    relations = []
    if beyond_x / length > 0.5:
        relations.append("left of" if offset_x < 0 else "right of")
    if beyond_y / length > 0.5:
        relations.append("above" if offset_y < 0 else "below")
    return relations


def _center(box: list[float], axis: int) -> float:
    return (box[axis] + box[axis + 2]) / 2


def _extent(box: list[float], axis: int) -> float:
    return abs(box[axis + 2] - box[axis])


def load_records(path: str | Path) -> list[dict]:
    """The records of a GenEval metadata file, one JSON object a line."""
    try:
        with open(path, encoding="utf-8") as lines:
            records = [json.loads(line) for line in lines if line.strip()]
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read GenEval records from {path}: {error}") from error
    if not records or not all({"tag", "prompt", "include"} <= set(record) for record in records):
        raise ValueError(f"{path} has no GenEval records: each line needs tag, prompt and include")
    return records


def judge_images(detector, records: list[dict], images: list) -> list[dict]:
    """One row each: {"tag", "prompt", "correct", "reason", "detections"}. `detector` has `detect(images)`."""
    rows = []
    for record, detections in zip(records, detector.detect(images), strict=True):
        correct, reason = judge(record, detections)
        rows.append(
            {
                "tag": record["tag"],
                "prompt": record["prompt"],
                "correct": correct,
                "reason": reason,
                "detections": detections,
            }
        )
    return rows
