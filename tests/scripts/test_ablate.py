"""An ablation from its recipe to its table: each variant is trained, measured on both sides, and not twice."""

import json
from itertools import pairwise
from statistics import median

import pytest
import yaml

from scripts.ablate import main

TOKENIZER = """\
run: {name: tiny, steps: 2, batch_size: 2, save_every: 2, threads: 1, workers: 0}
size: tiny
model: {text_vocab_size: 769, text_context: 24}
text_tokenizer: checkpoints/scenes/text_tokenizer
data: {crop: 32}
losses: {contrastive: 0.1}
optim: {warmup: 1}
"""
LANGUAGE = """\
run: {name: tiny, steps: 8, batch_size: 2, save_every: 8, threads: 1, workers: 0}
model:
  text_tokenizer: checkpoints/scenes/text_tokenizer
  backbone: {hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2}
  code_head_args: {layers: 1, heads: 2}
data: {sources: {scenes: {scenes: {draw: 1.0, answer: 0.0}}}}
optim: {lr: 1.0e-5, warmup: 1}
"""


@pytest.mark.slow
def test_variants_are_measured_on_both_sides_once(tmp_path):
    for name, text in (("tokenizer", TOKENIZER), ("language", LANGUAGE)):
        (tmp_path / f"{name}.yaml").write_text(text)
    recipe = {
        "base": str(tmp_path / "tokenizer.yaml"),
        "language": str(tmp_path / "language.yaml"),
        "crops": 8,
        "variants": {"two": [], "one": ["model.num_codebooks=1"]},
    }
    (tmp_path / "ablation.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    words = [str(tmp_path / "ablation.yaml"), "--out", str(tmp_path / "out")]
    main(words)
    scores = json.loads((tmp_path / "out" / "results.json").read_text())["variants"]
    assert list(scores) == ["two", "one"]
    # A language model that has learned nothing spends the log of the 16 entries on each code of the 4 positions.
    assert [scores[name]["nats"][0] for name in scores] == pytest.approx([2 * 4 * 2.77, 4 * 2.77], rel=0.05)
    assert all(0 < scores[name]["st_lpips"][0] < 2 and scores[name]["psnr"][0] > 5 for name in scores)
    logs = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*/log.txt")}
    main(words)
    assert len(logs) == 2 and all(file.stat().st_mtime_ns == before for file, before in logs.items())


@pytest.mark.slow
def test_orders_are_trained_for_equal_time_and_draw_in_their_steps(tmp_path):
    text = LANGUAGE.replace("model:\n", "model:\n  image_tokenizer: new:tiny\n")
    (tmp_path / "language.yaml").write_text(text)
    recipe = {
        "base": str(tmp_path / "language.yaml"),
        "kind": "language_model",
        "minutes": 0.005,
        "prompts": 2,
        "variants": {"raster": [], "groups": ["model.order=groups"]},
    }
    (tmp_path / "orders.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    words = [str(tmp_path / "orders.yaml"), "--out", str(tmp_path / "out"), "--jobs", "1"]
    main(words)
    scores = json.loads((tmp_path / "out" / "results.json").read_text())["variants"]
    assert [scores[name]["backbone_steps"][0] for name in scores] == [4, 1]
    assert [scores[name]["nats"][0] for name in scores] == pytest.approx([2 * 4 * 2.77] * 2, rel=0.05)
    for name, of_variant in scores.items():
        folder = tmp_path / "out" / f"{name}_0"
        rows = map(json.loads, (folder / "timed" / "metrics.jsonl").read_text().splitlines())
        update = median(later - earlier for earlier, later in pairwise(row["seconds"] for row in rows))
        assert of_variant["updates"][0] == max(1, round(0.3 / update))
        assert (folder / "run" / f"step_{int(of_variant['updates'][0]):06d}" / "model").is_dir()
        assert of_variant["seconds_1"][0] > 0 and 0 <= of_variant["rules"][0] <= 1


def test_minutes_are_for_language_models(tmp_path, refused):
    (tmp_path / "ablation.yaml").write_text("{base: x.yaml, minutes: 3}")
    assert "ablation, minutes: for language models only" in refused(main, str(tmp_path / "ablation.yaml"))
