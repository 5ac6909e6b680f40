"""A table of variants goes on with what was measured in the same way, and with nothing else."""

from dataclasses import replace
from functools import partial

from eval.images import ablation
from eval.images.ablation import Run, complete


class Trained(Run):
    """Its model is there."""

    def train(self) -> None:
        self.model.mkdir(parents=True, exist_ok=True)


def test_scores_of_other_settings_or_fewer_columns_are_measured_again(tmp_path, monkeypatch):
    measured = []

    def measure(run: Run, language: str | None) -> dict[str, float]:
        measured.append((run.changes, language))
        return {"psnr": float(len(measured))}

    run = Trained("plain", 0, "recipe.yaml", (), 2, tmp_path, 1)
    first = partial(measure, language=None)
    assert [complete(run, first)["psnr"] for _ in range(2)] == [1, 1], "not twice"
    assert complete(run, partial(measure, language="language.yaml"))["psnr"] == 2
    assert complete(replace(run, changes=("ema=0.9",)), first)["psnr"] == 3
    assert complete(run, first)["psnr"] == 1
    monkeypatch.setitem(ablation.SHOWN, "extra", "one more")
    assert complete(run, first)["psnr"] == 4
