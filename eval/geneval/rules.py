"""GenEval's verdict on one image, and its score of a folder. Boxes are [x1, y1, x2, y2] in pixels, y down.

The rules are those of "GenEval: An Object-Focused Framework for Evaluating Text-to-Image Alignment"
(arXiv 2310.11513). Where the objects and their colours come from is the caller's business.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from data_recipes.files import read_lines
from tokenizer.transform import load_image, read_note

from ..pieces import claimed, digest, origin, work_json

THRESHOLD = 0.3
COUNTING_THRESHOLD = 0.9
MAX_OBJECTS = 16  # of one class
POSITION_THRESHOLD = 0.1

NOT_DRAWN = "not_drawn.json"  # {file: reason} in a folder of drawings
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}  # of images in folders, in either case
PNG_KEY = "mllm"  # the PNG text that says what drew an image


def judge(metadata: dict, detections: list[dict]) -> tuple[bool, str]:
    """Is the image of these `detections` right for the prompt of `metadata`? Returns (correct, reason).

    `metadata` is a line of GenEval's evaluation_metadata.jsonl; a detection is
    {"cls", "box": [x1, y1, x2, y2], "score", "color"}. `reason` names every failed clause, "" when none did.
    """
    failed = failures(metadata, detections)
    return not failed, "; ".join(failed)


def failures(metadata: dict, detections: list[dict]) -> list[str]:
    """Why each clause that failed did so, as for `judge`."""
    objects = _confident_objects(detections, COUNTING_THRESHOLD if metadata["tag"] == "counting" else THRESHOLD)
    failed = []
    matched: list[list[dict] | None] = []  # by include clause; None: it failed, so nothing can be placed against it
    for clause in metadata.get("include", []):
        found = objects.get(clause["class"], [])[: clause["count"]]
        failure = _clause_failure(clause, found, matched)
        matched.append(None if failure else found)
        if failure:
            failed.append(failure)
    for clause in metadata.get("exclude", []):
        found = objects.get(clause["class"], [])
        if len(found) >= clause["count"]:
            failed.append(f"expected fewer than {clause['count']} {clause['class']}, found {len(found)}")
    return failed


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
        records = [json.loads(line) for line in read_lines(Path(path)) if line.strip()]
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read GenEval records from {path}: {error}") from error
    needed = {"tag", "prompt", "include"}
    if not records or not all(isinstance(record, dict) and needed <= record.keys() for record in records):
        raise ValueError(f"{path} has no GenEval records: each line needs tag, prompt and include")
    return records


def judge_images(detector: Any, records: list[dict], images: list) -> list[dict]:
    """One row each: {"tag", "prompt", "correct", "reason", "detections"}. `detector` has `detect(images)`."""
    rows = []
    for record, detections in zip(records, detector.detect(images), strict=True):
        correct, reason = judge(record, detections)
        about = {"tag": record["tag"], "prompt": record["prompt"]}
        rows.append({**about, "correct": correct, "reason": reason, "detections": detections})
    return rows


def result_row(filename: str, record: dict, verdict: dict) -> dict:
    """A line of results.jsonl, with the fields of GenEval's own; `details` are the detections."""
    about = {"filename": filename, "tag": record["tag"], "prompt": record["prompt"]}
    details = {"metadata": json.dumps(record), "details": json.dumps(verdict["detections"])}
    return {**about, "correct": verdict["correct"], "reason": verdict["reason"], **details}


# ---- a folder of drawings


class Prompt(NamedTuple):
    """A prompt's images; `refusal` is why there are none."""

    record: dict
    files: list[Path]
    refusal: str = ""


def score_folder(folder: Path, prompts: dict[str, Prompt], detector: Any, detector_id: str) -> list[dict] | None:
    """A row (`result_row`) for each image of `read_drawings`; a damaged one, and one that could not be drawn, is wrong.
    Verdicts are kept in `folder`, so a second run goes on. None while other processes are still judging."""
    pieces = {f"{name}_{digest([detector_id, *fingerprint(one)])}.json": one for name, one in prompts.items()}
    verdicts = work_json(folder / "verdicts", pieces, lambda one: judge_prompt(detector, folder, one), "judging")
    return None if verdicts is None else [row for rows in verdicts for row in rows]


def fingerprint(prompt: Prompt) -> list:
    """What a verdict depends on. An image drawn again has another."""
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in prompt.files if file.is_file()]
    return [prompt.record, stats]


def judge_prompt(detector: Any, folder: Path, prompt: Prompt) -> list[dict]:
    """A row for each image; "judged" is false where there was none to judge."""
    images, damage = {}, {}
    for file in prompt.files:
        try:
            if prompt.refusal:
                raise ValueError(f"not drawn: {prompt.refusal}")
            images[file] = load_image(file)
        except ValueError as error:
            damage[file] = {"correct": False, "reason": str(error), "detections": []}
    judged = judge_images(detector, [prompt.record] * len(images), list(images.values()))
    verdicts = {**damage, **dict(zip(images, judged, strict=True))}
    return [
        {**result_row(str(file.relative_to(folder)), prompt.record, verdicts[file]), "judged": file in images}
        for file in prompt.files
    ]


def report(folder: Path, rows: list[dict], known: Iterable[str]) -> dict:
    """Scores of `score_folder`'s rows, how the images were drawn, and what there was to tell: images that could not be
    judged, and prompts that name things other than the `known` ones, which the detector cannot find."""
    prompts: dict[str, list[bool]] = {}
    for row in rows:
        prompts.setdefault(row["filename"].split("/")[0], []).append(row["correct"])
    records = {row["metadata"] for row in rows}
    names = [{clause["class"] for clause in json.loads(record)["include"]} for record in records]
    return {
        **(origin(folder) or {"model": "unknown", "model_hash": "unknown", "settings": {}}),
        "scores": summary(rows),
        "images": len(rows),
        "correct_images": sum(row["correct"] for row in rows) / len(rows),
        "correct_prompts": sum(map(any, prompts.values())) / len(prompts),
        "not_judged": [row["filename"] for row in rows if not row["judged"]],
        "prompts_with_unknown_things": sum(not things <= set(known) for things in names),
    }


def read_drawings(folder: Path, images_per_prompt: int = 4) -> dict[str, Prompt]:
    """{"00000": prompt} of a complete folder, with images of `SUFFIXES`. Where `drawing.draw` made it, run.json says
    what is complete. Raises ValueError for one that is not, or that holds images of more than one run."""
    run, refused = claimed(folder), folder / NOT_DRAWN
    refusals = json.loads(refused.read_text()) if refused.is_file() else {}
    count = run.get("images_per_prompt", images_per_prompt)
    prompts = {}
    for place in sorted(path for path in folder.glob("*/") if path.name.isdecimal()):
        record = load_records(place / "metadata.jsonl")[0]
        files = [file for file in (place / "samples").glob("*") if file.suffix.lower() in SUFFIXES]
        files = sorted(file for file in files if file.stem.isdecimal())
        planned = [place / "samples" / f"{sample:04d}.png" for sample in range(count)]
        refusal = refusals.get(str(planned[0].relative_to(folder)), "")
        prompts[place.name] = Prompt(record, planned if refusal else files, refusal)
    check_complete(folder, run, prompts, count)
    return prompts


def check_complete(folder: Path, run: dict, prompts: dict[str, Prompt], count: int) -> None:
    """Raises ValueError for missing prompts and images, and for images of another run."""
    if not prompts:
        looked_for = "folders 00000, 00001, ... with metadata.jsonl and samples/0000.png, ..."
        told = f"{folder} holds no images of GenEval: they are in {looked_for}"
        raise ValueError(f"{told}; draw some with python -m scripts.geneval generate --out {folder}")
    expected = run.get("prompts", max(map(int, prompts)) + 1)
    if len(prompts) != expected:
        raise ValueError(f"{folder} is incomplete, {len(prompts)} of {expected} prompts: generate again to go on")
    for name, prompt in prompts.items():
        if len(prompt.files) != count:
            named = f"0000.png, 0001.png, ..., or {', '.join(sorted(SUFFIXES - {'.png'}))}"
            found = f"{len(prompt.files)} images in {folder / name / 'samples'} ({named}), {count} are wanted"
            raise ValueError(f"{folder} is incomplete or mixed, {found}: generate again to go on")
        for file in prompt.files if run else []:
            check_same_run(run, prompt.record, file)
    if run and digest({str(int(name)): prompt.record for name, prompt in prompts.items()}) != run["prompts_hash"]:
        raise ValueError(f"{folder} is mixed: its metadata.jsonl files are not those it was made with")


def check_same_run(run: dict, record: dict, file: Path) -> None:
    """Every PNG says what drew it. Damaged ones are told later."""
    note = read_note(file, PNG_KEY)
    if note is None:
        return
    changed = [f"{key} {note[key]}, not {run[key]}" for key in note.keys() & run.keys() if note[key] != run[key]]
    if note.get("prompt") != record["prompt"]:
        changed.append(f"prompt {note.get('prompt')!r}")
    if changed:
        raise ValueError(f"{file.parents[2]} is mixed: {file} was drawn otherwise ({'; '.join(sorted(changed))})")


def print_report(title: str, result: dict[str, Any]) -> None:
    print(title)
    for task, value in result["scores"].items():
        print(f"  {task:15} {value:.4f}")
    settings = ", ".join(f"{name} {value}" for name, value in result["settings"].items())
    print(f"drawn with: {settings or 'unknown settings (no run.json)'}")
    shares = f"{result['correct_images']:.4f} of images, {result['correct_prompts']:.4f} of prompts with any"
    print(f"{result['images']} images; correct: {shares}")
    if result["not_judged"]:
        files = result["not_judged"]
        print(f"note: {len(files)} images count as wrong because they are damaged or missing, e.g. {files[0]}")
    if result["prompts_with_unknown_things"]:
        print(f"note: {result['prompts_with_unknown_things']} prompts name things this detector does not know")
