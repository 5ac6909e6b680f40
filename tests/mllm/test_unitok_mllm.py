"""The reference's unified model: every tensor there and back, a folder that loads everywhere, one line if it cannot."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, LlamaTokenizer

from mllm import Mllm, MllmConfig, MllmProcessor, Processor, generate_images, generate_texts, unitok_mllm
from tests.golden_data import reference_shapes
from tests.reference_files import (
    ARGS,
    CONFIG,
    VITAMIN_TINY,
    same_bits,
    unitok_checkpoint,
    unitok_mllm_tensors,
    write_unitok_mllm,
)
from tokenizer import ImageTokenizer, ImageTokenizerConfig, unitok
from tokenizer.unitok import UniTok

SHARDS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]


def no_bar(done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def image_tokenizer() -> UniTok:
    tensors = unitok_checkpoint()["trainer"]["unitok"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(unitok.VITAMIN, "vitamin_tiny", VITAMIN_TINY)
        return UniTok(unitok.unitok_config(ARGS), tensors, ARGS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The reference's, in float32."""
    folder = tmp_path_factory.mktemp("reference") / "unitok_mllm"
    write_unitok_mllm(folder, unitok_mllm_tensors(torch.float32))
    return folder


@pytest.fixture(scope="module")
def converted(folder, image_tokenizer, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("ours")
    assert unitok_mllm.convert_unitok_mllm(folder, image_tokenizer, out, no_bar) == [
        "dropped: 1 pos_embed (zeros)",
        "dropped: 3 zero_k_bias (zeros)",
        "dropped: 16 vocab_usage (a running statistic of training)",
    ]
    return out


@pytest.fixture
def changed(folder, tmp_path) -> Path:
    """A copy of the reference's folder to damage."""
    return Path(shutil.copytree(folder, tmp_path / "changed"))


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    return {n: t for file in sorted(folder.glob("*.safetensors")) for n, t in unitok.load_tensors(file).items()}


# ---- tensors


def test_every_tensor_of_the_released_model_has_its_place():
    llama = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "vocab_size": 32000}
    config = MllmConfig(
        text_config=llama | {"num_hidden_layers": 32},
        image_tokenizer=ImageTokenizerConfig(depth=1, text_layers=1).to_dict(),
        code_embedding="codebook",
        code_head_args={"layers": 3, "heads": 32, "hidden": 11008, "shared_output": True},
    )
    shapes = unitok.reference_shapes(unitok_mllm.unitok_mllm_layout(config))
    assert {name: list(shape) for name, shape in shapes.items() if not name.startswith("image_tokenizer.")} == (
        reference_shapes("state_dict_unitok_mllm_7b")
    )


@pytest.mark.parametrize("kind, dtype", [("safetensors", torch.bfloat16), ("bin", torch.float32)])
def test_every_tensor_goes_there_and_back(image_tokenizer, tmp_path, monkeypatch, kind, dtype):
    """All layers; in several shards on both sides, parts of fused matrices in different ones."""
    monkeypatch.setattr(unitok_mllm, "SHARD", "400KB")
    reference = unitok_mllm_tensors(dtype, depth=32)
    write_unitok_mllm(tmp_path / "in", reference, kind, num_hidden_layers=32)
    for name in ("ours", "back"):
        (tmp_path / name).mkdir()
    unitok_mllm.convert_unitok_mllm(tmp_path / "in", image_tokenizer, tmp_path / "ours", no_bar)
    unitok_mllm.export_unitok_mllm(tmp_path / "ours", tmp_path / "back", no_bar)

    assert len(list((tmp_path / "ours").glob("model-*-of-*.safetensors"))) > 1
    assert same_bits(read_all(tmp_path / "back"), reference)
    checkpoint = unitok.load_torch(tmp_path / "back" / "unitok_tokenizer.pth")
    assert checkpoint["args"] == ARGS and same_bits(checkpoint["trainer"]["unitok"], image_tokenizer.tensors)
    for name in ("config.json", "tokenizer.model", "tokenizer_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "in" / name).read_bytes()


# ---- the folder


def test_the_config_is_the_released_model_s(converted):
    config = AutoConfig.from_pretrained(converted)
    ids = (config.pad_token_id, config.boi_token_id, config.eoi_token_id, config.image_token_id)
    assert ids == (0, 3, 4, -200) and config.code_z_loss == 5e-5
    assert (config.text_config.num_hidden_layers, config.text_config.rms_norm_eps) == (2, 1e-5)
    assert (config.image_tokenizer["resize_ratio"], config.image_tokenizer["interpolation"]) == (1.125, "bilinear")
    assert AutoProcessor.from_pretrained(converted).template == "unitok"


@pytest.fixture(scope="module")
def direct(folder, image_tokenizer, converted) -> tuple[Mllm, Processor]:
    """The same model made in memory, from the reference's tensors."""
    config = AutoConfig.from_pretrained(converted)
    reference = {f"image_tokenizer.{name}": tensor for name, tensor in image_tokenizer.tensors.items()}
    layout = unitok_mllm.unitok_mllm_layout(config)
    model = Mllm(config).eval()
    model.load_state_dict(unitok.to_ours(layout, reference | read_all(folder)))
    return model, Processor(LlamaTokenizer.from_pretrained(folder), 16, 64, template="unitok")


def codes_answer_drawing(model: Mllm, processor: Processor) -> tuple[list, list[str], bytes]:
    image = Image.radial_gradient("L").resize((80, 70))
    question = [{"type": "image", "image": image}, {"type": "text", "text": "what is in this picture?"}]
    return (
        model.image_tokenizer.encode([image]).tolist(),
        generate_texts(model, processor, [[{"role": "user", "content": question}]], max_new_tokens=4),
        generate_images(model, processor, ["a red dog"], cfg_scale=1.0)[0].tobytes(),
    )


def test_it_sees_says_and_draws_the_same_as_before(direct, converted):
    loaded = Mllm.from_pretrained(converted).eval(), Processor.from_pretrained(converted)
    assert loaded[0].lm_head.weight.dtype == torch.float32
    expected = codes_answer_drawing(*direct)
    assert len(set(map(tuple, expected[0][0]))) > 1  # some codes differ
    assert codes_answer_drawing(*loaded) == expected


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForImageTextToText])
def test_auto_classes_load_it(direct, converted, auto):
    model = auto.from_pretrained(converted)
    assert isinstance(model, Mllm) and same_bits(model.state_dict(), direct[0].state_dict())
    assert isinstance(AutoProcessor.from_pretrained(converted), MllmProcessor)


def test_a_half_precision_model_keeps_its_image_tokenizer_whole(image_tokenizer, tmp_path):
    """Rounded weights would give other codes than those that the language model was trained on."""
    write_unitok_mllm(tmp_path / "in", unitok_mllm_tensors(torch.bfloat16))
    for name, make in {"mllm": unitok_mllm.convert_unitok_mllm, "alone": unitok.convert_unitok}.items():
        (tmp_path / name).mkdir()
        make(*[tmp_path / "in"] * (name == "mllm"), image_tokenizer, tmp_path / name, no_bar)
    model = Mllm.from_pretrained(tmp_path / "mllm")
    assert model.lm_head.weight.dtype == torch.bfloat16
    alone = ImageTokenizer.from_pretrained(tmp_path / "alone")
    pixels_N3HW = torch.rand(1, 3, 64, 64) * 2 - 1
    assert torch.equal(model.image_tokenizer.encode(pixels_N3HW), alone.encode(pixels_N3HW))


# ---- what may be wrong


def refusal(folder: Path, image_tokenizer: UniTok, out: Path) -> str:
    out.mkdir()
    with pytest.raises(ValueError) as caught:
        unitok_mllm.convert_unitok_mllm(folder, image_tokenizer, out, no_bar)
    return str(caught.value)


CONFIGS = {
    "another model": ({"model_type": "llama"}, "model_type is 'llama', UniTok's is 'mini_gemini'"),
    "another depth": ({"num_hidden_layers": 1}, "9 too many, e.g. model.layers.1.input_layernorm.weight"),
    "another width": ({"hidden_size": 64}, "32] instead of ["),
    "fewer heads of keys": ({"num_key_value_heads": 1}, "k_proj.weight is [32, 32] instead of [16, 32]"),
    "no heads": ({"num_attention_heads": 0}, "config.json describes no such model"),
    "no number": ({"hidden_size": "wide"}, "config.json describes no such model"),
    "scaled positions": ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling {'type'"),
}


@pytest.mark.parametrize("config, told", CONFIGS.values(), ids=CONFIGS)
def test_a_config_that_does_not_fit(changed, image_tokenizer, tmp_path, config, told):
    (changed / "config.json").write_text(json.dumps(CONFIG | config))
    assert told in refusal(changed, image_tokenizer, tmp_path / "out")


def rewrite(shard: Path, change) -> None:
    tensors = unitok.load_tensors(shard)
    shard.unlink()  # it is mapped
    save_file(change(tensors), shard)


FILES = {
    "no config": ("config.json", Path.unlink, OSError, "config.json"),
    "no size in the config": (
        "config.json",
        lambda file: file.write_text('{"model_type": "mini_gemini"}'),
        ValueError,
        "config.json has no 'vocab_size'",
    ),
    "no JSON": ("config.json", lambda file: file.write_text("hello"), ValueError, "config.json is no JSON object"),
    "no index": ("model.safetensors.index.json", Path.unlink, ValueError, "has no model.safetensors or"),
    "a shard missing": (SHARDS[1], Path.unlink, ValueError, f"are missing, e.g. {SHARDS[1]}"),
    "an index without a map": (
        "model.safetensors.index.json",
        lambda file: file.write_text('{"metadata": {}}'),
        ValueError,
        "index.json has no 'weight_map'",
    ),
    "a list for a map": (
        "model.safetensors.index.json",
        lambda file: file.write_text('{"weight_map": ["lm_head.weight"]}'),
        ValueError,
        "weight_map is no map of tensors to files",
    ),
    "an empty map": (
        "model.safetensors.index.json",
        lambda file: file.write_text('{"weight_map": {}}'),
        ValueError,
        "weight_map is no map of tensors to files",
    ),
    "a map to a number": (
        "model.safetensors.index.json",
        lambda file: file.write_text('{"weight_map": {"lm_head.weight": 3}}'),
        ValueError,
        "lm_head.weight is said to be in 3, which is no file beside it",
    ),
    "a map to elsewhere": (
        "model.safetensors.index.json",
        lambda file: file.write_text('{"weight_map": {"lm_head.weight": "../x.safetensors"}}'),
        ValueError,
        "lm_head.weight is said to be in '../x.safetensors', which is no file beside it",
    ),
    "a list for an index": (
        "model.safetensors.index.json",
        lambda file: file.write_text("[]"),
        ValueError,
        "index.json is no JSON object, but a list",
    ),
    "a map to another shard": (
        "model.safetensors.index.json",
        lambda file: file.write_text(file.read_text().replace(SHARDS[0], SHARDS[1])),
        ValueError,
        "index.json says: ",
    ),
    "a pointer of Git LFS": (
        SHARDS[1],
        lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        ValueError,
        f"{SHARDS[1]} as a checkpoint",
    ),
    "a shard cut off": (
        SHARDS[1],
        lambda file: file.write_bytes(file.read_bytes()[:-9]),
        ValueError,
        f"{SHARDS[1]} as a checkpoint",
    ),
    "a tensor missing": (
        SHARDS[0],
        lambda file: rewrite(file, lambda tensors: dict(list(tensors.items())[1:])),
        ValueError,
        "1 missing, e.g. ",
    ),
    "a tensor too many": (
        SHARDS[0],
        lambda file: rewrite(file, lambda tensors: tensors | {"model.extra": torch.ones(1)}),
        ValueError,
        "1 too many, e.g. model.extra",
    ),
    "no text tokenizer": (
        "tokenizer.model",
        Path.unlink,
        ValueError,
        "has no text tokenizer: tokenizer.model or",
    ),
    "a damaged text tokenizer": (
        "tokenizer.model",
        lambda file: file.write_bytes(b"hello" * 99),
        ValueError,
        "cannot read the text tokenizer",
    ),
}


@pytest.mark.parametrize("name, damage, error, told", FILES.values(), ids=FILES)
def test_damaged_folders(changed, image_tokenizer, tmp_path, name, damage, error, told):
    damage(changed / name)
    (tmp_path / "out").mkdir()
    with pytest.raises(error) as caught:
        unitok_mllm.convert_unitok_mllm(changed, image_tokenizer, tmp_path / "out", no_bar)
    assert told in str(caught.value)


def test_the_image_tokenizer_of_another_model(folder, image_tokenizer, tmp_path):
    """Nothing tells it but the codebooks."""
    other = {
        name: tensor.flip(0) if "codebook." in name else tensor for name, tensor in image_tokenizer.tensors.items()
    }
    lines = unitok_mllm.convert_unitok_mllm(folder, image_tokenizer._replace(tensors=other), tmp_path, no_bar)
    assert lines[-1].startswith("note: the image tokenizer's codebooks are not those")


def test_only_what_was_converted_is_exported(tiny_folder, tmp_path):
    with pytest.raises(ValueError, match="was not converted from the reference: it has no reference/kept.pt"):
        unitok_mllm.export_unitok_mllm(tiny_folder, tmp_path, no_bar)


# ---- where the image tokenizer is


def test_the_image_tokenizer_is_found(image_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setitem(unitok.VITAMIN, "vitamin_tiny", VITAMIN_TINY)
    folder, file, ours = tmp_path / "unitok_mllm", tmp_path / "any.pth", tmp_path / "ours"
    folder.mkdir()
    ours.mkdir()
    unitok.export_unitok(image_tokenizer, tmp_path)
    shutil.copy(tmp_path / unitok.FILE, file)
    unitok.convert_unitok(image_tokenizer, ours, no_bar)
    for given in (None, file, ours, tmp_path):
        found = unitok_mllm.find_image_tokenizer(folder, given)
        assert (found.config, found.args) == (image_tokenizer.config, ARGS)
        assert same_bits(found.tensors, image_tokenizer.tensors)
    shutil.move(tmp_path / unitok.FILE, folder / unitok.FILE)
    assert unitok_mllm.find_image_tokenizer(folder, causal=True).config.causal
    (folder / unitok.FILE).unlink()
    with pytest.raises(ValueError, match="no unitok_tokenizer.pth in .* or beside it: give one with --image-tokenizer"):
        unitok_mllm.find_image_tokenizer(folder)
    with pytest.raises(ValueError, match="no image tokenizer at .*nowhere"):
        unitok_mllm.find_image_tokenizer(folder, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="ours has full projections"):
        unitok_mllm.find_image_tokenizer(folder, ours, causal=True)
