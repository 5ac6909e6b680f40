"""scripts.doctor: its exit status says whether a model is healthy."""

import shutil

from safetensors.torch import load_file, save_file

from eval.model_checks import CHECKS
from scripts.doctor import main


def test_a_healthy_model_ends_with_0(run, tiny_folder):
    ended = run(main, "--model", tiny_folder)
    assert ended.status == 0, ended.out
    found = [line[5:].split(":")[0] for line in ended.out.splitlines() if line.startswith("ok")]
    assert found == ["versions", *CHECKS]
    assert "versions: Python" in ended.out and "memory:" in ended.out and "is healthy" in ended.out


def test_a_damaged_or_missing_model_ends_with_1(run, tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights["lm_head.weight"][0] = float("inf")
    save_file(weights, file, {"format": "pt"})
    ended = run(main, "--model", folder)
    assert (
        ended.status == 1 and "FAIL loads:" in ended.out and "not finite" in ended.out and "is not healthy" in ended.out
    )
    file.write_bytes(b"damaged")
    for name in (folder, "no_such_model"):
        ended = run(main, "--model", name)
        assert ended.status == 1 and "FAIL loads:" in ended.out and ended.err == ""
