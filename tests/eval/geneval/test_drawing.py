"""Drawing a benchmark: its layout, going on after a stop, several processes, and prompts that cannot be drawn."""

import json
from pathlib import Path

import pytest
from PIL import Image

from eval.geneval import drawing
from eval.geneval.drawing import PLANS, Settings, draw, identity, save_grids
from eval.pieces import claim

SETTINGS = Settings(images_per_prompt=2, cfg_scale=1.0, batch_size=3)
PROMPTS = ["a cow", 'a "photo" of <two> d\u00f6gs\n\U0001f415', "  ", "a red bus", "word " * 300]


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Path:
    """Five prompts, of which one is empty and one too long."""
    file = tmp_path_factory.mktemp("prompts") / "metadata.jsonl"
    include = [{"class": "cow", "count": 1}]
    lines = [{"tag": "colors", "prompt": prompt, "include": include} for prompt in PROMPTS]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture(scope="module")
def draw_to(tiny_model, records):
    """draw_to(folder): everything, as the script does it; -> what could not be drawn."""

    def draw_to(folder: Path, settings: Settings = SETTINGS) -> dict[str, str]:
        pictures = PLANS["geneval"](records, settings)
        drawn_by = identity("0123", pictures, settings)
        claim(folder, drawn_by)
        refused = draw(*tiny_model, folder, pictures, settings, drawn_by)
        save_grids(folder, pictures)
        return refused

    return draw_to


@pytest.fixture(scope="module")
def drawn(draw_to, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    draw_to(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Hidden files, too."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_layout_is_genevals(drawn, records):
    samples = {f"0000{place}/samples/000{sample}.png" for place in (0, 1, 3) for sample in (0, 1)}
    about = {f"0000{place}/metadata.jsonl" for place in range(5)} | {f"0000{place}/grid.png" for place in (0, 1, 3)}
    assert set(contents(drawn)) == samples | about | {"run.json", "not_drawn.json"}
    lines = [(drawn / f"0000{place}" / "metadata.jsonl").read_text() for place in range(5)]
    assert "".join(lines) == records.read_text()
    assert Image.open(drawn / "00000/grid.png").copy().size == (64, 32)
    note = json.loads(Image.open(drawn / "00003/samples/0001.png").copy().info["mllm"])
    assert (note["prompt"], note["seeds"], note["model"]) == ("a red bus", [3001], "0123")


def test_prompts_that_cannot_be_drawn_are_told(drawn):
    refused = json.loads((drawn / "not_drawn.json").read_text())
    assert set(refused) == {f"0000{place}/samples/000{sample}.png" for place in (2, 4) for sample in (0, 1)}
    assert refused["00002/samples/0000.png"] == "empty prompt: say what to draw"
    assert "positions" in refused["00004/samples/0000.png"]


def test_two_processes_draw_what_one_does(drawn, draw_to, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        assert len(list(tmp_path.rglob("000?.png"))) == (0 if rank == "1" else 4)
        monkeypatch.setenv("RANK", rank)
        draw_to(tmp_path)
    assert contents(tmp_path) == contents(drawn)


def test_a_stopped_run_goes_on(drawn, draw_to, tmp_path, monkeypatch):
    generate, calls = drawing.generate_images, []

    def stop_in_the_second(*args, **options):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(*args, **options)

    monkeypatch.setattr(drawing, "generate_images", stop_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        draw_to(tmp_path)
    assert len(list(tmp_path.rglob("000?.png"))) == 3
    draw_to(tmp_path)
    assert [len(call[2]) for call in calls] == [3, 3, 3]
    assert contents(tmp_path) == contents(drawn)


def test_nothing_is_drawn_twice_and_two_runs_never_mix(drawn, draw_to, monkeypatch):
    monkeypatch.setattr(drawing, "generate_images", None)  # would fail if anything were drawn
    before = contents(drawn)
    draw_to(drawn)
    assert contents(drawn) == before
    with pytest.raises(ValueError, match="cfg_scale was 1.0, is 2.0.*choose another --out"):
        draw_to(drawn, Settings(images_per_prompt=2, cfg_scale=2.0))


def test_a_limit_keeps_numbers_and_seeds(records):
    whole = PLANS["geneval"](records, SETTINGS)
    part = PLANS["geneval"](records, Settings(images_per_prompt=2, limit=2))
    assert [picture.number for picture in part] == [0, 0, 2, 2]
    assert all(picture in whole for picture in part)
    assert len({picture.seeds[0] for picture in whole}) == len(whole)


def test_dpg_has_one_grid_for_each_prompt(tiny_model, tmp_path):
    (tmp_path / "prompts").mkdir()
    for name, text in (("0", "a cow"), ("partiprompts12", "a bus")):
        (tmp_path / "prompts" / f"{name}.txt").write_text(text)
    settings = Settings(images_per_prompt=4, cfg_scale=1.0, batch_size=4)
    pictures = PLANS["dpg"](tmp_path / "prompts", settings)
    draw(*tiny_model, tmp_path, pictures, settings, {})
    assert {file.name for file in (tmp_path / "images").iterdir()} == {"0.png", "partiprompts12.png"}
    grid = Image.open(tmp_path / "images" / "0.png")
    assert grid.size == (64, 64)
    alone = drawing.generate_images(*tiny_model, ["a cow"], [2], cfg_scale=1.0)[0]
    assert grid.crop((0, 32, 32, 64)).tobytes() == alone.tobytes()


def test_parti_reads_its_table(tmp_path):
    rows = ["Prompt\tCategory\tChallenge\tNote", "bond\tAbstract\tBasic\t", 'a "red" dog\tAnimals\tBasic\tsays "a\t']
    (tmp_path / "PartiPrompts.tsv").write_text("\n".join(rows) + "\n")
    settings = Settings(images_per_prompt=1)
    pictures = PLANS["parti"](tmp_path / "PartiPrompts.tsv", settings)
    found = [(picture.file, picture.prompt) for picture in pictures]
    assert found == [("images/00000.png", "bond"), ("images/00001.png", 'a "red" dog')]
    (tmp_path / "other.tsv").write_text("a dog\na cat\n")
    with pytest.raises(ValueError, match="holds no prompts: give PartiPrompts.tsv"):
        PLANS["parti"](tmp_path / "other.tsv", settings)


def test_genai_and_mjhq_name_images_by_id(tiny_model, tmp_path):
    entries = {"00000": {"prompt": "a cow", "category": "animals"}, "00007": {"prompt": "a bus", "category": "cars"}}
    (tmp_path / "prompts.json").write_text(json.dumps(entries))
    settings = Settings(images_per_prompt=1, cfg_scale=1.0)
    plans = {name: PLANS[name](tmp_path / "prompts.json", settings) for name in ("genai", "mjhq")}
    assert [picture.file for picture in plans["mjhq"]] == ["images/animals/00000.png", "images/cars/00007.png"]
    draw(*tiny_model, tmp_path, plans["genai"], settings, {})
    for id in entries:
        with Image.open(tmp_path / "images" / f"{id}.jpeg") as image:
            assert (image.format, image.size) == ("JPEG", (32, 32))


@pytest.mark.parametrize("name", ["gedit", "imgedit"])
def test_pictures_of_editing_benchmarks_are_edited(tiny_model, tmp_path, name):
    """This model answers all in words, so the pictures come back as they were; one that cannot be read is told."""
    for file, color in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (40, 30), color).save(tmp_path / file)
    prompts = tmp_path / "prompts.json"
    if name == "imgedit":
        entries = {key: {"id": f"{key}.png", "prompt": f"edit {key}", "edit_type": "add"} for key in "abc"}
        prompts.write_text(json.dumps(entries))
    else:
        prompts = tmp_path / "prompts.jsonl"
        about = {"task_type": "color_alter", "instruction_language": "en"}
        lines = [{"key": key, **about, "instruction": f"edit {key}", "image": f"{key}.png"} for key in "abc"]
        prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = Settings(images_per_prompt=1, image_cfg_scale=1.2)
    pictures = PLANS[name](prompts, settings)
    assert drawing.identity("0123", pictures, settings)["image_cfg_scale"] == 1.2
    files = ["{}.png", "fullset/color_alter/en/{}.png"][name == "gedit"]
    refused = draw(*tiny_model, tmp_path / "out", pictures, settings, {})
    assert refused == {files.format("c"): f"no image file at {tmp_path / 'c.png'}"}
    for key in "ab":
        assert (
            Image.open(tmp_path / "out" / files.format(key)).tobytes() == Image.open(tmp_path / f"{key}.png").tobytes()
        )
    prompts.write_text('{"1": {"prompt": "a"}}' + "\n")
    with pytest.raises(ValueError, match="is no file of entries with"):
        PLANS[name](prompts, settings)


@pytest.mark.parametrize(
    ("name", "file", "content"),
    [
        ("genai", "p.json", '{"../../etc/x": {"prompt": "a"}}'),
        ("mjhq", "p.json", '{"1": {"prompt": "a", "category": "/etc"}, "2": {"prompt": "b", "category": ".."}}'),
        ("imgedit", "p.jsonl", '{"key": "../x", "prompt": "a", "id": "a.png"}'),
        ("imgedit", "p.jsonl", '{"key": "x", "prompt": "a", "id": "a.png"}\n' * 2),
    ],
)
def test_files_stay_in_their_folder_and_apart(tmp_path, name, file, content):
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match="is outside of the folder|two entries"):
        PLANS[name](tmp_path / file, Settings())


@pytest.mark.parametrize(("name", "content"), [("genai", "[1]"), ("mjhq", '{"1": {"prompt": "a"}}'), ("genai", "{")])
def test_a_wrong_file_of_prompts_is_one_line(tmp_path, name, content):
    (tmp_path / "prompts.json").write_text(content)
    with pytest.raises(ValueError, match="prompts by id"):
        PLANS[name](tmp_path / "prompts.json", SETTINGS)
    with pytest.raises(ValueError, match="holds no prompts"):
        PLANS["dpg"](tmp_path, SETTINGS)


@pytest.mark.parametrize(("name", "value"), [("seed", -1), ("seed", 10**12), ("limit", 0), ("batch_size", 0)])
def test_impossible_settings_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        Settings(**{name: value})
