"""The reference's image tokenizer: sizes from its arguments, tensors there and back, files that cannot be trusted."""

import pathlib
import pickle
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.golden_data import reference_shapes
from tests.reference_files import ARGS, VITAMIN_TINY, same_bits, tiny_tensors, unitok_checkpoint
from tokenizer import SIZES, ImageTokenizer, unitok


@pytest.fixture(autouse=True)
def tiny_size(monkeypatch):
    monkeypatch.setitem(unitok.VITAMIN, "vitamin_tiny", VITAMIN_TINY)


# ---- sizes


@pytest.mark.parametrize("name", ["large", "base"])
def test_the_reference_s_arguments_are_our_sizes(name):
    preprocessing = {"resize_ratio": 1.125, "interpolation": "bilinear"}
    args = {"model": f"vitamin_{name}", "img_size": 256, "vocab_size": 32768, "num_codebooks": 8, "drop_path": 0.1}
    assert unitok.unitok_config(args) == replace(SIZES[f"unitok-{name}"], **preprocessing)
    assert unitok.unitok_config(args, causal=True).causal


def test_what_is_not_saved_is_as_released():
    assert unitok.unitok_config({}) == unitok.unitok_config({"model": "vitamin_large", "num_codebooks": 8})


# ---- tensors


def test_every_tensor_goes_there_and_back():
    """Under all names of the released file."""
    reference = tiny_tensors("state_dict_unitok_large", depth=31)
    config = replace(unitok.unitok_config(ARGS), depth=31, text_layers=12)
    layout = unitok.unitok_layout(config)
    ours = unitok.to_ours(layout, reference)
    ImageTokenizer(config).load_state_dict(ours)
    assert reference.keys() == reference_shapes("state_dict_unitok_large").keys()
    assert same_bits(unitok.to_reference(layout, ours, reference), reference)


def test_one_codebook_and_linear_projections():
    config = replace(SIZES["tiny"], num_codebooks=1, projection="linear")
    layout, ours = unitok.unitok_layout(config), ImageTokenizer(config).state_dict()
    shapes = unitok.reference_shapes(layout)
    assert shapes["quantizer.codebooks.0.codebook.weight"] == (16, 8)
    assert not any("zero_k_bias" in name for name in shapes)
    reference = unitok.to_reference(layout, ours, {name: torch.zeros(shape) for name, shape in shapes.items()})
    assert same_bits(unitok.to_ours(layout, reference), ours)


def test_codebooks_of_different_dtypes_are_refused():
    reference = tiny_tensors("state_dict_unitok_large")
    reference["quantizer.codebooks.2.codebook.weight"] = reference["quantizer.codebooks.2.codebook.weight"].half()
    with pytest.raises(ValueError, match="quantizer.codebooks.0.codebook.weight.* have different dtypes"):
        unitok.to_ours(unitok.unitok_layout(unitok.unitok_config(ARGS)), reference)


# ---- files


def drop(state, name):
    del state[name]


CHANGES = {
    "a missing tensor": (lambda s: drop(s, "fc_norm.bias"), "1 missing, e.g. fc_norm.bias"),
    "a missing zero": (lambda s: drop(s, "encoder.pos_embed"), "1 missing, e.g. encoder.pos_embed"),
    "a tensor too many": (lambda s: s.update(extra=torch.ones(1)), "1 too many, e.g. extra"),
    "another shape": (
        lambda s: s.update({"fc_norm.bias": torch.ones(7)}),
        r"fc_norm.bias is \[7\] instead of \[32\]",
    ),
}
ARGUMENTS = {
    "an unknown model": ({"model": "vit_huge"}, "unknown model 'vit_huge'.*known: vitamin_small"),
    "register tokens": ({"num_query": 4}, "num_query 4 .*register tokens are not supported"),
    "a wrong size": ({"img_size": 100}, "image_size 100 is not a positive multiple of 16"),
    "a size of another model": ({"embed_dim": 24}, r"projection.bias is \[16\] instead of \[24\]"),
    "no codebooks": ({"num_codebooks": 0}, "other arguments"),
    "no number": ({"vocab_size": "many"}, "other arguments"),
    "an unknown projection": ({"quant_proj": "conv"}, "unknown projection 'conv'"),
}


def refusal(checkpoint: object, file: Path) -> str:
    """What `read_unitok` says of it: one line that begins with the file."""
    torch.save(checkpoint, file)
    with pytest.raises(ValueError) as caught:
        unitok.read_unitok(file)
    line = str(caught.value)
    assert str(file) in line and "\n" not in line
    return line


def test_a_checkpoint_of_training_is_read_too(tmp_path):
    checkpoint = unitok_checkpoint()
    checkpoint["trainer"]["unitok_optim"] = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-4}]}
    torch.save(checkpoint, tmp_path / "ckpt-last.pth")
    read = unitok.read_unitok(tmp_path / "ckpt-last.pth")
    assert read.args == ARGS and same_bits(read.tensors, checkpoint["trainer"]["unitok"])


@pytest.mark.parametrize("change, told", CHANGES.values(), ids=CHANGES)
def test_every_tensor_is_accounted_for(tmp_path, change, told):
    checkpoint = unitok_checkpoint()
    change(checkpoint["trainer"]["unitok"])
    assert re.search(told, refusal(checkpoint, tmp_path / "file.pth"))


@pytest.mark.parametrize("args, told", ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments_that_do_not_fit(tmp_path, args, told):
    assert re.search(told, refusal(unitok_checkpoint(**args), tmp_path / "file.pth"))


@pytest.mark.parametrize("content", [{"a": torch.ones(2)}, [1, 2], {"args": {}, "trainer": {"vae": {}}}, None])
def test_another_checkpoint(tmp_path, content):
    assert "is no checkpoint of UniTok" in refusal(content, tmp_path / "file.pth")


class Intruder:
    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return pathlib.Path.touch, (self.file,)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    line = refusal(unitok_checkpoint(seed=Intruder(tmp_path / "was_here")), tmp_path / "file.pth")
    assert re.search(r"holds objects that may run code, such as .+: not loaded$", line)
    assert not (tmp_path / "was_here").exists()


@pytest.mark.parametrize("size", [0, 1000, -100], ids=["empty", "its begin", "almost whole"])
def test_a_truncated_file(tmp_path, size):
    torch.save(unitok_checkpoint(), tmp_path / "whole.pth")
    (tmp_path / "file.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:size])
    with pytest.raises(ValueError, match=r"^cannot read .*file.pth as a checkpoint: .+$"):
        unitok.read_unitok(tmp_path / "file.pth")


def save_as_before(file: Path) -> None:
    torch.save(unitok_checkpoint(), file, _use_new_zipfile_serialization=False)


def pickle_it(file: Path) -> None:
    file.write_bytes(pickle.dumps({"args": {}}))


FOREIGN = {
    "torch before 1.6": (save_as_before, "is in the format that torch.save had before version 1.6"),
    "a pickle": (pickle_it, "is in the format that torch.save had before version 1.6"),
    "nothing": (Path.touch, "is empty"),
    "Git LFS": (lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "a page": (lambda file: file.write_text("<html>not found</html>"), "is no file of torch.save"),
    "another archive": (lambda file: zipfile.ZipFile(file, "w").writestr("a.txt", "a"), "as a checkpoint"),
}


@pytest.mark.parametrize("write, told", FOREIGN.values(), ids=FOREIGN)
def test_what_is_no_file_of_torch_says_what_it_is(tmp_path, write, told):
    """And no pickle is read on the way."""
    file = tmp_path / "unitok_tokenizer.pth"
    write(file)
    with pytest.raises(ValueError) as caught:
        unitok.read_unitok(file)
    line = str(caught.value)
    assert line.startswith(f"cannot read {file} as a checkpoint: ") and told in line and "\n" not in line


@pytest.mark.parametrize(
    ("kept", "told"),
    [
        ([1], "is not what a conversion keeps"),
        ({"args": {}}, "is not what a conversion keeps"),
        ({"args": {}, "dropped": {}}, "reference/kept.pt has other tensors than such a model: 11 missing"),
    ],
)
def test_what_was_kept_for_the_way_back_is_looked_at(tmp_path, kept, told):
    checkpoint = unitok_checkpoint()
    torch.save(checkpoint, tmp_path / "file.pth")
    out = tmp_path / "out"
    out.mkdir()
    unitok.convert_unitok(unitok.read_unitok(tmp_path / "file.pth"), out, lambda done, total: None)
    torch.save(kept, out / unitok.KEPT)
    with pytest.raises(ValueError, match=told):
        unitok.read_folder(out)


@pytest.mark.parametrize("name", ["encoder.pos_embed", "quant_proj.attn.zero_k_bias"])
def test_zeros_that_are_none_are_not_dropped(tmp_path, name):
    checkpoint = unitok_checkpoint()
    checkpoint["trainer"]["unitok"][name].view(-1)[3] = 1e-30
    torch.save(checkpoint, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=f"{name} should be zeros and is not"):
        unitok.convert_unitok(unitok.read_unitok(tmp_path / "file.pth"), tmp_path, lambda done, total: None)
