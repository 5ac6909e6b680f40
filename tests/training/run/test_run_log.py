"""What a run of the language model says, logs and shows."""

import json
import math

import pytest
import torch

from tests.processes import ROOT
from training.data.mixture import Mixture
from training.lm.start_log import first_loss_line, source_lines
from training.lm.train import train
from training.run.metrics import Metrics, read_rows
from training.run.plots import write_report
from training.run.recipe import MixConfig, MixtureConfig, ScenesConfig, SourceConfig, TrainConfig, load_config

TEXT_TOKENIZER = f"model.text_tokenizer={ROOT}/checkpoints/scenes/text_tokenizer"


def debug(folder, *words: str) -> TrainConfig:
    fixed = [f"run.folder={folder}", "run.steps=3", TEXT_TOKENIZER]
    return load_config(TrainConfig, ROOT / "data_recipes" / "debug.yaml", [*fixed, *words])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three steps, and what it printed."""
    config = debug(
        tmp_path_factory.mktemp("runs"),
        "run.sample_every=2",
        "run.log_every=2",
        "optim.lr_by_prefix={lm_head: 1e-4}",
        "run.wandb=offline",
    )
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", lambda *parts, **_: printed.extend("\n".join(map(str, parts)).splitlines()))
        train(config)
    return config.run.path, printed


def test_the_start_names_parameters_and_where_loss_is(run):
    _, printed = run
    lines = {line.partition(":")[0]: line.partition(": ")[2] for line in printed}
    assert lines["parameters loaded"] == "none"
    assert lines["parameters frozen"].startswith("image_tokenizer ")
    assert lines["parameters trained"].startswith("backbone 45,216, lm_head ")
    assert "10 drawing, 6 answering" in lines["source scenes"] and "as image" in lines["source scenes"]
    assert any(line.startswith("first text_loss 6.") and "(ln 768 = 6.644)" in line for line in printed)
    assert [line.split(" ")[1] for line in printed if line.startswith("step ")] == ["1/3", "2/3", "3/3"]


def test_every_step_is_a_row(run):
    rows = read_rows(run[0] / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert {"loss", "text_loss", "code_loss", "seconds", "tokens", "tokens_per_s", "memory_gb", "lr"} <= row.keys()
        assert {"code_loss/0", "code_loss/1", "text_loss/drawing"} <= row.keys()
        assert row["lr/lm_head"] < row["lr"]
        assert all(math.isfinite(value) for value in row.values())


def test_drawings_and_answers_are_kept_and_shown(run, tmp_path):
    folder = run[0]
    assert sorted(path.name for path in (folder / "pictures").iterdir()) == [
        "drawings_000002.png",
        "drawings_000003.png",
    ]
    assert (folder / "texts" / "answers_000003.txt").read_text().startswith("what is this? -> ")
    assert list(folder.glob("wandb/offline-run-*"))
    write_report(folder, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "drawings_000003.png" in page and "what is this? -&gt; " in page


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's compiler looks at it
def test_samples_compile_nothing(tmp_path, monkeypatch):
    """Layers that were compiled for training draw and answer as they are: each length of a cache is a graph anew."""
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    def compile_layers(model):
        for layer in model.backbone.layers:
            layer.compile(backend=backend, dynamic=True)

    def compiled(every: int) -> int:
        torch.compiler.reset()
        graphs.clear()
        train(debug(tmp_path / str(every), "run.compile=true", f"run.sample_every={every}"))
        return len(graphs)

    monkeypatch.setattr("training.lm.train.compile_layers", compile_layers)
    assert compiled(1) == compiled(0) > 0


def test_a_source_without_loss_is_refused(tiny_model):
    model, processor = tiny_model
    config = MixtureConfig({"scenes": SourceConfig(scenes=MixConfig(scenes=ScenesConfig(artwork="shapes")))})
    mixture = Mixture(config, processor, model.image_tokenizer, seed=0)
    mixture.sources["scenes"].sample = lambda number: processor.encode([{"role": "user", "content": "hi"}])
    with pytest.raises(ValueError, match="data.sources.scenes: nothing in its first 16 samples carries loss"):
        source_lines(mixture)


@pytest.mark.parametrize(
    ("losses", "before", "loaded", "shown", "warned"),
    [
        ({"text_loss": 6.7, "code_loss": 2.8}, None, (), "first text_loss 6.7", False),
        ({"text_loss": 9.7, "code_loss": 2.8}, None, (), "first text_loss 9.7", True),
        ({"text_loss": 1.7, "code_loss": 2.8}, None, ("backbone", "lm_head"), "first text_loss 1.7", False),
        ({"text_loss": 1.7, "code_loss": 9.8}, None, ("backbone", "lm_head"), "code_loss 9.8", True),
        ({"text_loss": 6.7, "code_loss": 0.0}, None, (), "(ln 768 = 6.644)", False),
        ({"loss": 3.0}, {"loss": 3.1}, ("",), "after resuming 3, the last one before 3.1", False),
    ],
)
def test_the_first_loss_is_shown_beside_what_it_should_be(tiny_model, losses, before, loaded, shown, warned):
    line = first_loss_line(losses, before, tiny_model[0], loaded)
    assert shown in line and ("WARNING" in line) == warned


def test_rows_past_the_checkpoint_and_halves_of_rows_are_dropped(tmp_path):
    config = debug(tmp_path)
    config.run.path.mkdir()
    rows = "".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in (1, 2, 3))
    (config.run.path / "metrics.jsonl").write_text(rows + '{"step": 4, "lo')
    metrics = Metrics(config, first_step=2)
    assert [row["step"] for row in read_rows(metrics.file)] == [1, 2]
    assert metrics.before["step"] == 2
