"""The lmms-eval plugin: every type of request on a tiny model, MME and POPE by their own code, the local tasks."""

import json
import logging
import os
import random
import subprocess
import sys
from pathlib import Path

import datasets
import lmms_eval.tasks
import pytest
import torch
from lmms_eval.api.instance import Instance
from lmms_eval.models import get_model
from PIL import Image

from data_recipes.scenes.world import CLASSES, COLORS, GENEVAL, QUESTIONS, World, expressible
from eval.geneval.rules import load_records
from eval.lmms import lmms_model
from eval.lmms.lmms_model import ChatModel, SimpleModel, clean, writing_options
from eval.lmms.run_tasks import evaluate_lmms, find_tasks
from eval.scenes.detector import Detector, DetectorConfig
from eval.scenes.suite import asked
from mllm import generate_texts
from mllm.decode.stream import Stream
from mllm.image_inputs import IMAGE_INPUTS

ROOT = Path(__file__).parents[3]
OFFICIAL = [Path(lmms_eval.tasks.__file__).parent / task for task in ("mme", "pope")]
CHOICES = ["a dog", "two cats", "no"]
WRITING = {"max_new_tokens": 8, "do_sample": False, "temperature": 0, "until": None}


def picture(seed: int) -> Image.Image:
    noise = random.Random(seed)
    return Image.frombytes("RGB", (32, 32), bytes(noise.randrange(256) for _ in range(32 * 32 * 3)))


DOCS = [
    {"images": [], "text": "say something"},
    {"images": [picture(1)], "text": "what is this?"},
    {"images": [picture(2), picture(3)], "text": "is the first larger than the second, or is it the other way round?"},
    {"images": [picture(4)], "text": "how many?"},
    {"images": [picture(5)], "text": "where?"},
]


def messages(doc: dict) -> list[dict]:
    images = [{"type": "image", "url": image} for image in doc["images"]]
    return [{"role": "user", "content": [*images, {"type": "text", "text": doc["text"]}]}]


def instance(kind: str, arguments: tuple, task: str = "task", doc_id: int = 0, **metadata) -> Instance:
    metadata = {"task": task, "doc_id": doc_id, "repeats": 1, **metadata}
    return Instance(kind, (*arguments, doc_id, task, "test"), 0, metadata)


def simple(doc_id: int, kwargs: dict = WRITING, docs=DOCS, **metadata) -> Instance:
    arguments = (docs[doc_id]["text"], kwargs, lambda doc: doc["images"])
    return instance("generate_until", arguments, doc_id=doc_id, **metadata)


def chat(doc_id: int, kwargs: dict = WRITING) -> Instance:
    return instance("generate_until", (DOCS[doc_id]["text"], messages, kwargs), doc_id=doc_id)


def choice(doc_id: int, answer) -> Instance:
    return instance("loglikelihood", (DOCS[doc_id]["text"], answer, lambda doc: doc["images"]), doc_id=doc_id)


@pytest.fixture
def load(tiny_folder):
    """A function: (class, documents, model_args) -> a model that knows them as split "test" of "task"."""

    def load(interface=SimpleModel, docs=DOCS, **model_args):
        model = interface(str(tiny_folder), **model_args)
        model.task_dict = {"task": {"test": docs}}
        return model

    return load


# ---- requests


def test_lmms_eval_finds_both_classes_by_name():
    assert get_model("mllm") is ChatModel
    assert get_model("mllm", force_simple=True) is SimpleModel


def test_answers_are_those_of_the_model_whatever_interface_and_batch_size(load, tiny_model):
    talks = [lmms_model.question(doc["images"], doc["text"]) for doc in DOCS]
    expected = [clean(generate_texts(*tiny_model, [talk], max_new_tokens=8)[0], ()) for talk in talks]
    assert len(set(expected)) > 1
    for batch_size in (1, 2, 8):
        assert load(batch_size=batch_size).generate_until([simple(i) for i in range(len(DOCS))]) == expected
        assert load(ChatModel, batch_size=batch_size).generate_until([chat(i) for i in range(len(DOCS))]) == expected


def test_requests_with_other_options_share_no_batch_and_keep_their_order(load):
    short = {**WRITING, "max_new_tokens": 2}
    mixed = load(batch_size=4).generate_until([simple(1), simple(1, short), simple(2), simple(2, short)])
    model = load()
    assert mixed[::2] == model.generate_until([simple(1), simple(2)])
    assert mixed[1::2] == model.generate_until([simple(1, short), simple(2, short)])


def test_chats_keep_the_order_of_texts_and_images_and_the_system_text():
    first, second = picture(1), picture(2)
    talk = lmms_model.as_chat(
        [
            {"role": "system", "content": [{"type": "text", "text": "be brief"}]},
            {"role": "user", "content": [{"type": "image", "url": first}, {"type": "text", "text": "or"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
            {"role": "user", "content": [{"type": "image", "url": second}]},
        ]
    )
    assert [message["role"] for message in talk] == ["user", "assistant", "user"]
    parts = [part.get("text", part.get("image")) for message in talk for part in message["content"]]
    assert parts == ["be brief", "\n", first, "or", "yes", second]


def test_what_the_model_cannot_read_is_refused():
    for visual, kind in (({"array": []}, "image"), (picture(1), "video")):
        with pytest.raises(NotImplementedError, match="reads text and images"):
            lmms_model.image_part(visual, kind)


@pytest.mark.parametrize("interface", [SimpleModel, ChatModel])
def test_rounds_see_the_answers_before_them(load, interface):
    told = []

    def next_question(doc, round_idx, previous_output, previous_round_info):
        told.append((round_idx, list(previous_output), previous_round_info))
        text = f"{doc['text']} you said: {len(previous_output)}"
        return doc["images"], text, round_idx == 3, previous_output, f"round {round_idx}"

    def next_messages(doc, round_idx=None, **so_far):
        if round_idx is None:
            return messages(doc)
        images, text, *rest = next_question(doc, round_idx, **so_far)
        return messages({"images": images, "text": text}), *rest

    arguments = {
        SimpleModel: (DOCS[1]["text"], WRITING, lambda doc: doc["images"], next_question),
        ChatModel: (DOCS[1]["text"], next_messages, WRITING),
    }[interface]
    [answers] = load(interface).generate_until_multi_round(
        [instance("generate_until_multi_round", arguments, doc_id=1)]
    )
    assert type(answers) is list and len(answers) == 3
    assert answers[0] == load().generate_until([simple(1)])[0]
    assert told == [(1, answers[:1], None), (2, answers[:2], "round 1"), (3, answers, "round 2")]


@pytest.mark.parametrize("image_input", IMAGE_INPUTS)
def test_log_likelihood_is_the_mean_loss_of_the_answer(make_tiny_model, image_input, tmp_path):
    model, processor = make_tiny_model(image_input=image_input, image_lengths=[1, 4])
    processor.image_length = 1
    for part in (model, processor):
        part.save_pretrained(tmp_path)

    def load(batch_size: int) -> SimpleModel:
        scorer = SimpleModel(str(tmp_path), batch_size=batch_size)
        scorer.task_dict = {"task": {"test": DOCS}}
        return scorer

    answers = [" a dog", " two cats on a table", lambda doc: "yes", " a dog", " no"]
    requests = [choice(i, answer) for i, answer in enumerate(answers)]
    by_size = [[r.text for r in load(batch_size=size).loglikelihood(requests)] for size in (1, 2, 8)]
    for number, doc in enumerate(DOCS):
        words = "yes" if number == 2 else answers[number].strip()
        talk = [*lmms_model.question(doc["images"], doc["text"]), {"role": "assistant", "content": words}]
        batch = processor.collate([processor.encode(talk, open_answer=False)], model.image_tokenizer)
        with torch.no_grad():
            output = model(**vars(batch))
        loss = float(output.text_loss / output.text_count)
        for results in by_size:
            assert results[number][0] == pytest.approx(loss, abs=1e-4)
            assert results[number][1] is False


def test_a_greedy_answer_is_told(load):
    model = load()
    stream = Stream(model.model, [model.processor.encode(lmms_model.question([], DOCS[0]["text"]))], model.processor)
    with torch.no_grad():  # now the model ends its answer at once
        model.model.lm_head.weight.zero_()
        model.model.lm_head.weight[model.processor.eos_id] = stream.h_ED[0]
    results = model.loglikelihood([choice(0, ""), choice(0, "dog")])
    assert [result.text[1] for result in results] == [True, False]
    assert results[0].text[0] < results[1].text[0]


@pytest.fixture
def choices(tmp_path) -> Path:
    """A folder with a multiple-choice task."""
    docs = [{"question": doc["text"], "choices": CHOICES, "label": 1} for doc in DOCS]
    (tmp_path / "docs.json").write_text("\n".join(map(json.dumps, docs)))
    (tmp_path / "choices.yaml").write_text(
        """\
task: choices
dataset_path: json
dataset_kwargs: {data_files: {test: docs.json}}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: label
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
    )
    return tmp_path


def test_multiple_choice_takes_the_likeliest_answer(tiny_folder, choices, load):
    model = load()
    right = []
    for number in range(len(DOCS)):
        request = [instance("loglikelihood", (DOCS[number]["text"], text, lambda _: None)) for text in CHOICES]
        losses = [result.text[0] for result in model.loglikelihood(request)]
        right.append(losses.index(min(losses)) == 1)
    results = evaluate_lmms(tiny_folder, ["choices"], choices / "out", simple=True, include=[choices])
    assert results["results"]["choices"]["acc,none"] == pytest.approx(sum(right) / len(right))
    with pytest.raises(ValueError, match="generation only; .*--simple"):
        evaluate_lmms(tiny_folder, ["choices"], choices / "out", include=[choices])


# ---- drawings


def test_drawings_follow_lmms_evals_convention(load, tmp_path, monkeypatch):
    drawing = {"mode": "generate"}
    docs = [{"images": [], "text": text} for text in ("a dog", "a cat", "two dogs")]
    results = {}
    for batch_size in (1, 8):
        model = load(docs=docs, batch_size=batch_size, output_dir=tmp_path / str(batch_size))
        answers = model.generate_until([simple(i, drawing, docs) for i in range(3)])
        files = [Path(file) for answer in answers for file in json.loads(answer)["images"]]
        assert len(files) == 3 and all(file.is_absolute() and file.name.startswith("task_") for file in files)
        results[batch_size] = [Image.open(file).tobytes() for file in files]
    assert results[1] == results[8] and len(set(results[1])) == 3

    monkeypatch.setattr(lmms_model, "generate_images", lambda model, processor, prompts, *_, **__: prompts)  # no images
    again = load(docs=docs, mode="generate", output_dir=tmp_path / "8")
    assert again.generate_until([simple(i, {"mode": "generate"}, docs) for i in range(3)]) == answers


def test_drawing_needs_a_folder_and_a_text(load, tmp_path):
    with pytest.raises(ValueError, match="output_dir=DIR"):
        load(mode="generate").generate_until([simple(0, {})])
    with pytest.raises(NotImplementedError, match="from text alone"):
        load(mode="generate", output_dir=tmp_path).generate_until([simple(1, {})])


# ---- damage, and going on


class Damaged(list):
    """Documents of which number 1 cannot be decoded."""

    def __getitem__(self, place):
        if place == 1:
            raise OSError("image file is truncated")
        return super().__getitem__(place)


def test_a_damaged_document_is_reported_and_the_others_are_answered(load, caplog):
    odd = [*DOCS[:4], {"images": [], "text": "no \ud800 Unicode"}]
    whole = load().generate_until([simple(i) for i in range(5)])
    model = load(docs=Damaged(odd))
    with caplog.at_level(logging.WARNING):
        answers = model.generate_until([simple(i, docs=odd) for i in range(5)])
    assert answers == [whole[0], "", whole[2], whole[3], ""]
    assert [row["doc_id"] for row in model.unreadable] == [1, 4]
    assert "task, document 1 cannot be read: image file is truncated" in caplog.text


def test_no_score_comes_from_nothing(load):
    with pytest.raises(ValueError, match="none of 1 requests can be read: image file is truncated"):
        load(docs=Damaged(DOCS)).generate_until([simple(1)])
    with pytest.raises(OSError, match="truncated"):
        load(docs=Damaged(DOCS)).loglikelihood([choice(0, "a"), choice(1, "a")])


def test_a_killed_run_goes_on(load, tmp_path, monkeypatch):
    requests = [simple(i) for i in range(5)]
    whole = load().generate_until(requests)
    batches = []

    def killed(*args, **options):
        if len(batches) == 2:
            raise KeyboardInterrupt
        batches.append(args[2])
        return generate_texts(*args, **options)

    monkeypatch.setattr(lmms_model, "generate_texts", killed)
    with pytest.raises(KeyboardInterrupt):
        load(batch_size=2, output_dir=tmp_path).generate_until(requests)
    journal = tmp_path / "answers" / "0.jsonl"
    journal.write_text(journal.read_text()[:-3])  # the last of four answers is cut
    batches.clear()
    assert load(batch_size=2, output_dir=tmp_path).generate_until(requests) == whole
    assert [len(batch) for batch in batches] == [2]
    batches.clear()
    model = load(batch_size=2, output_dir=tmp_path)
    assert model.generate_until(requests) == whole and not batches
    model.weights_hash = "other weights"
    with pytest.raises(KeyboardInterrupt):
        assert model._run(requests, model._chat) == whole and len(batches) == 3


def test_requests_that_even_out_processes_cost_nothing(load, monkeypatch):
    monkeypatch.setattr(lmms_model, "generate_texts", None)
    assert load().generate_until([simple(1, __padding_only__=True)]) == [""]
    padding = instance("loglikelihood", ("", "a", None), __padding_only__=True)
    assert load().loglikelihood([padding])[0].text == (0.0, False)


# ---- options


@pytest.mark.parametrize(
    "kwargs, room, expected",
    [
        ({}, 500, (64, 0.0, 1.0, ())),
        ({"max_new_tokens": 16, "temperature": 0, "top_p": 0, "num_beams": 1}, 500, (16, 0.0, 1.0, ())),
        ({"max_new_tokens": 16, "temperature": 0.5, "top_p": 0.9}, 500, (16, 0.5, 0.9, ())),
        ({"temperature": 0.5, "do_sample": False}, 500, (64, 0.0, 1.0, ())),
        ({"do_sample": True}, 500, (64, 1.0, 1.0, ())),
        ({"temperature": None, "until": "\n"}, 500, (64, 0.0, 1.0, ("\n",))),
        ({"max_new_tokens": 1024, "until": ["a", "b"]}, 150, (128, 0.0, 1.0, ("a", "b"))),
        ({"max_new_tokens": 1024}, 30, (30, 0.0, 1.0, ())),
    ],
)
def test_generation_kwargs(kwargs, room, expected):
    assert writing_options(kwargs, room) == ("write", *expected)


@pytest.mark.parametrize(
    "text, until, expected",
    [
        (" Yes.\n", (), "Yes"),
        ("yes", ("\n\n",), "yes"),
        ("It is a dog. ", (), "It is a dog."),
        ("a dog\n\nQuestion: and", ("\n\n", ""), "a dog"),
        ("", (), ""),
    ],
)
def test_answers_are_clean(text, until, expected):
    assert clean(text, until) == expected


@pytest.mark.parametrize(
    "model_args, message",
    [
        ({"batch_size": "auto"}, "batch_size is auto"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"mode": "draw"}, "unknown mode 'draw'; known: understand, generate"),
        ({"cfg_scale": 0.5}, "cfg_scale 0.5"),
    ],
)
def test_wrong_model_args(load, model_args, message):
    with pytest.raises(ValueError, match=message):
        load(**model_args)
    with pytest.raises(TypeError, match="bathc_size"):
        load(bathc_size=1)


# ---- whole runs


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Path:
    """Stand-ins with the columns of MME and POPE, as `save_to_disk` leaves them. Half of the answers are yes."""
    folder, rows = tmp_path_factory.mktemp("saved"), {"mme": [], "pope": []}
    for number in range(4):
        for answer in ("Yes", "No"):
            question = f"Is there {'a' if answer == 'Yes' else 'no'} thing?"
            image = picture(number)
            rows["mme"].append(
                {
                    "question_id": f"color/{number}.png",  # two questions share one: MME's acc_plus
                    "image": image,
                    "question": f"{question} Please answer yes or no.",
                    "answer": answer,
                    "category": "color",
                }
            )
            rows["pope"].append(
                {"question_id": str(number), "image": image, "question": question, "answer": answer.lower()}
            )
    for task in rows:
        features = {key: datasets.Value("string") for key in rows[task][0]} | {"image": datasets.Image()}
        split = datasets.Dataset.from_list(rows[task], features=datasets.Features(features))
        datasets.DatasetDict({"test": split}).save_to_disk(folder / task)
    return folder


@pytest.fixture
def shapes(monkeypatch):
    """The world without the emoji font."""
    monkeypatch.setattr("data_recipes.scenes.world.World", lambda _="", size=128: World("shapes", size))


def answers_of(results: dict) -> dict:
    return {(task, row["doc_id"]): row["filtered_resps"] for task, rows in results["samples"].items() for row in rows}


def test_mme_and_pope_by_their_own_code(tiny_folder, saved, tmp_path, monkeypatch):
    monkeypatch.setattr(
        lmms_model, "generate_texts", lambda model, processor, chats, *_, **__: [" Yes.\n" for _ in chats]
    )
    results = evaluate_lmms(tiny_folder, ["mme", "pope"], tmp_path, data=saved, include=OFFICIAL)
    mme, pope = results["results"]["mme"], results["results"]["pope"]
    assert mme["mme_perception_score,none"] == 50  # of 200: half of the questions, no pair of questions
    assert pope["pope_accuracy,none"] == 0.5 and pope["pope_recall,none"] == 1
    assert pope["pope_f1_score,none"] == pytest.approx(2 / 3)
    assert results["unreadable"] == []


def test_runs_are_the_same_for_both_interfaces_and_batch_sizes(tiny_folder, saved, tmp_path):
    runs = [
        evaluate_lmms(tiny_folder, ["mme"], tmp_path / str(number), data=saved, include=OFFICIAL, **settings)
        for number, settings in enumerate(({"batch_size": 1}, {"batch_size": 8}, {"simple": True, "limit": 6}))
    ]
    one, eight, older = map(answers_of, runs)
    assert one == eight and len(one) == 8 and len({str(answer) for answer in one.values()}) > 1
    assert older == {key: one[key] for key in older} and len(older) == 6
    assert runs[0]["results"] == runs[1]["results"]


def run_command(*words: object, cwd: Path) -> None:
    subprocess.run(list(map(str, words)), cwd=cwd, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.slow
def test_two_processes_are_as_one(tiny_folder, saved, tmp_path):
    words = ["-m", "scripts.eval_lmms", "--model", tiny_folder, "--tasks", "pope", "--limit", 5, "--data", saved]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    for name, before in (("one", []), ("two", torchrun)):
        run_command(sys.executable, *before, *words, "--out", tmp_path / name, cwd=ROOT)
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert one["scores"] == two["scores"] and one["documents"] == two["documents"] == {"pope": 5}
    one, two = ((tmp_path / name / "samples" / "pope.jsonl").read_text() for name in ("one", "two"))
    assert one == two and one.count("\n") == 5
    assert len(list((tmp_path / "two" / "answers").iterdir())) == 2


@pytest.mark.slow
def test_lmms_evals_own_command_runs_a_saved_copy(tiny_folder, saved, tmp_path):
    (tmp_path / "pope_saved.yaml").write_text(
        f"task: pope_saved\n"
        f"include: {OFFICIAL[1] / 'pope.yaml'}\n"
        f"dataset_path: {saved / 'pope'}\n"
        f"dataset_kwargs: {{load_from_disk: true}}\n"
    )
    words = ["--model", "mllm", "--model_args", f"pretrained={tiny_folder}", "--tasks", "pope_saved", "--limit", 4]
    paths = ["--include_path", tmp_path, "--output_path", tmp_path / "out"]
    run_command(Path(sys.executable).parent / "lmms-eval", "eval", *words, *paths, "--batch_size", 4, cwd=tmp_path)
    [report] = (tmp_path / "out").rglob("*_results.json")
    ours = evaluate_lmms(tiny_folder, ["pope"], tmp_path / "ours", limit=4, data=saved, include=OFFICIAL)
    assert json.loads(report.read_text())["results"]["pope_saved"].items() >= {
        (name, value) for name, value in ours["results"]["pope"].items() if name.startswith("pope_") and value != "N/A"
    }


def test_local_tasks(tiny_folder, tmp_path, shapes, monkeypatch):
    torch.manual_seed(0)
    config = DetectorConfig(CLASSES, tuple(COLORS), widths=(4, 4, 8, 8), depths=(1, 1, 1), neck_width=8)
    detector = Detector(config).eval()
    monkeypatch.setattr(Detector, "from_pretrained", lambda folder: detector)
    results = evaluate_lmms(tiny_folder, ["scenes_*"], tmp_path, limit=2, cfg_scale=1.0)
    scores = results["results"]
    assert set(scores) == {"scenes_vqa", "scenes_pope", "scenes_draw", *(f"scenes_vqa_{kind}" for kind in QUESTIONS)}
    assert 0 <= scores["scenes_vqa"]["exact_match,none"] <= 1
    assert 0 <= scores["scenes_draw"]["overall,none"] <= 1
    assert len(list((tmp_path / "images").glob("scenes_draw_*.png"))) == 2


def test_local_tasks_ask_about_held_out_scenes(shapes):
    manager, names = find_tasks(["scenes_*"])
    tasks = lmms_eval.tasks.get_task_dict([name for name in names if name != "scenes_vqa"], manager, "chat")
    docs = {name: list(task.test_docs()) for name, task in tasks.items()}
    world = World("shapes")
    wanted = list(asked(world, range(600)))
    for kind in QUESTIONS:
        found = [(doc["scene"], doc["question"], doc["answer"]) for doc in docs[f"scenes_vqa_{kind}"]]
        assert found == [(seed, one.text, one.answer) for seed, _, one in wanted if one.kind == kind]
    pope = docs["scenes_pope"]
    assert sum(doc["answer"] == "yes" for doc in pope) * 2 == len(pope) > 600
    for doc in pope[:50]:
        shown = {thing.name for thing in world.scene(doc["scene"], "held_out").things}
        asked_for = doc["question"].removeprefix("is there ").removesuffix("?").split(" ", 1)[1]
        assert asked_for in CLASSES and (asked_for in shown) == (doc["answer"] == "yes")
    prompts = sorted(doc["prompt"] for doc in docs["scenes_draw"])
    assert prompts == sorted(record["prompt"] for record in load_records(GENEVAL) if expressible(record))


def test_drawings_are_judged_by_genevals_rules(tmp_path, monkeypatch):
    manager, _ = find_tasks(["scenes_draw"])
    task = lmms_eval.tasks.get_task_dict(["scenes_draw"], manager, "chat")["scenes_draw"]
    doc = next(doc for doc in task.test_docs() if json.loads(doc["record"])["tag"] == "single_object")
    [thing] = json.loads(doc["record"])["include"]
    picture(1).save(tmp_path / "drawing.png")
    answer = json.dumps({"text": "", "images": [str(tmp_path / "drawing.png")]})
    for name, right in ((thing["class"], 1.0), ("nothing", 0.0)):
        found = [{"cls": name, "box": [0, 0, 9, 9], "score": 0.9, "color": "red"}]
        detector = type("Finds", (), {"detect": lambda self, images, found=found: [found for _ in images]})()
        monkeypatch.setattr(Detector, "from_pretrained", lambda folder, detector=detector: detector)
        fresh = lmms_eval.tasks.get_task_dict(["scenes_draw"], manager, "chat")["scenes_draw"]
        result = fresh.process_results(doc, [answer])
        assert result == {"overall": {"tag": "single_object", "correct": right == 1}, "single_object": right}
    unreadable = fresh.process_results(doc, [lmms_model.EMPTY["draw"]])
    assert unreadable["single_object"] == 0.0
