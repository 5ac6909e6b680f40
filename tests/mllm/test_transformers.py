"""A citizen of transformers: what its own tests and its users ask of any model and processor."""

import threading

import numpy as np
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    GenerationConfig,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    pipeline,
)

from mllm import Mllm, MllmConfig, MllmProcessor, Processor, generate_images, generate_text, generate_texts
from mllm.codes import CODE_EMBEDDINGS
from mllm.config import CACHE
from mllm.folders import SHIPPED
from mllm.text.templates import TEMPLATES
from tests.golden_data import llama_tokenizer

PICTURES = [
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)) for seed in range(3)
]


def _user(*content) -> dict:
    parts = [{"type": "text", "text": x} if isinstance(x, str) else {"type": "image", "image": x} for x in content]
    return {"role": "user", "content": parts}


CHATS = [
    [_user(PICTURES[0], "what is this?")],
    [_user(PICTURES[1], PICTURES[2], "which of the two is red?")],
    [_user("hello")],
    [_user(PICTURES[2]), {"role": "assistant", "content": "a dog"}, _user("and its color?")],
]


def _inputs(processor: Processor, chats=CHATS, **options) -> dict:
    return processor.apply_chat_template(
        chats,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs={"padding": True},
        **options,
    )


def _new_texts(processor: Processor, inputs: dict, rows: torch.Tensor) -> list[str]:
    return [processor.decode(row[inputs["input_ids"].shape[1] :]) for row in rows]


# generate


@pytest.mark.parametrize("code_embedding", CODE_EMBEDDINGS)
@pytest.mark.parametrize("use_cache", [True, False])
def test_generate_reads_images_and_answers_as_generate_texts_does(make_tiny_model, code_embedding, use_cache):
    model, processor = make_tiny_model(code_embedding)
    inputs = _inputs(processor)
    rows = model.generate(**inputs, max_new_tokens=12, do_sample=False, use_cache=use_cache)
    answers = _new_texts(processor, inputs, rows)
    assert answers == generate_texts(model, processor, CHATS, 12)
    assert len(set(answers)) > 1


def test_generate_takes_codes_in_place_of_pixels(tiny_model):
    model, processor = tiny_model
    inputs = _inputs(processor)
    codes = model.image_tokenizer.encode(inputs["pixel_values"])
    by_pixels = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    by_codes = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        codes=codes,
        max_new_tokens=6,
        do_sample=False,
    )
    assert torch.equal(by_pixels, by_codes)


@pytest.mark.parametrize("images", ["pixel_values", "codes"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_beams_of_a_row_see_the_images_of_that_row(tiny_model, images, use_cache):
    """The images of a batch are repeated by row, not one by one: two images in a row stay side by side."""
    model, processor = tiny_model
    options = {"max_new_tokens": 6, "num_beams": 3, "num_return_sequences": 2, "do_sample": False}

    def generate(chats):
        inputs = _inputs(processor, chats)
        if images == "codes":
            found = [part["image"] for chat in chats for turn in chat for part in turn["content"] if "image" in part]
            inputs["codes"] = model.image_tokenizer.encode(found)
            del inputs["pixel_values"]
        return _new_texts(processor, inputs, model.generate(**inputs, **options, use_cache=use_cache))

    together = generate(CHATS[:2])
    assert together == [text for chat in CHATS[:2] for text in generate([chat])]


def test_generate_ends_where_a_drawing_would_begin_and_never_writes_a_placeholder(make_tiny_model):
    model, processor = make_tiny_model()
    inputs = {"input_ids": torch.tensor([processor.encode([_user("hello")]).ids])}
    for wanted, ends in ((processor.boi_id, True), (processor.image_id, False)):
        favored = torch.tensor([wanted])
        hook = model.lm_head.register_forward_hook(lambda _, __, y, id=favored: y.index_fill(-1, id, 100.0))
        rows = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        hook.remove()
        new = rows[0, inputs["input_ids"].shape[1] :].tolist()
        assert new == [wanted] if ends else wanted not in new


def test_a_chat_goes_on_from_the_keys_and_values_of_the_last_answer(tiny_model):
    model, processor = tiny_model
    inputs = _inputs(processor, CHATS[:1])

    def generate(count, **state):
        return model.generate(
            **state, min_new_tokens=count, max_new_tokens=count, do_sample=False, return_dict_in_generate=True
        )

    whole, start = generate(8, **inputs).sequences, generate(4, **inputs)
    rest = generate(4, input_ids=start.sequences, **{CACHE: start[CACHE]}).sequences
    assert torch.equal(rest, whole)


def test_the_shipped_model_says_where_its_answers_end():
    config, shipped = (
        MllmConfig.from_pretrained(SHIPPED / "scenes"),
        GenerationConfig.from_pretrained(SHIPPED / "scenes"),
    )
    assert shipped.eos_token_id == [config.text_config.eos_token_id, config.boi_token_id]
    assert shipped.suppress_tokens == [config.image_token_id] and shipped.pad_token_id == config.pad_token_id


# Training with transformers' Trainer


def _updated(model: Mllm, samples: list[dict], accumulate: int, folder) -> torch.Tensor:
    weight = model.lm_head.weight.detach().clone()
    options = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=len(samples) // accumulate,
        gradient_accumulation_steps=accumulate,
        max_steps=1,
        learning_rate=1.0,
        optim="sgd",
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
    )

    def collate(rows):
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    Trainer(model, options, train_dataset=samples, data_collator=collate).train()
    return model.lm_head.weight.detach() - weight


def test_gradients_of_a_trainer_do_not_depend_on_accumulation(make_tiny_model, tmp_path):
    _, processor = make_tiny_model()
    drawings = [processor.encode_drawing("a dog", torch.randint(0, 16, (4, 2))) for _ in range(8)]
    batches = [vars(processor.collate([drawing])) for drawing in drawings]
    samples = [{name: value for name, value in batch.items() if torch.is_tensor(value)} for batch in batches]
    updates = [_updated(make_tiny_model()[0].train(), samples, accumulate, tmp_path) for accumulate in (1, 2, 8)]
    assert updates[0].abs().max() > 0
    for update in updates[1:]:
        torch.testing.assert_close(update, updates[0], atol=1e-6, rtol=1e-3)


# Adapters of PEFT


def test_peft_adapts_all_linear_layers_of_the_language_model(make_tiny_model):
    """As docs/use.md has it. Each adapter gets a gradient, which data-parallel training needs."""
    model, processor = make_tiny_model()
    linear = {name: part for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
    expected = {name for name in linear if not name.startswith("image_tokenizer.") and name != "lm_head"}
    inject_adapter_in_model(LoraConfig(target_modules="all-linear", exclude_modules="image_tokenizer.*"), model)
    assert {name for name, part in model.named_modules() if isinstance(part, BaseTunerLayer)} == expected
    batch = processor.collate([processor.encode_drawing("a dog", torch.randint(0, 16, (4, 2)))])
    model(**vars(batch)).loss.backward()
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert len(trained) == 2 * len(expected)
    assert [name for name, weight in trained.items() if weight.grad is None] == []


# Outputs


def test_outputs_have_what_was_asked_for(make_tiny_model):
    model, processor = make_tiny_model()
    batch = processor.collate([processor.encode_drawing("a red dog", torch.randint(0, 16, (4, 2)))])
    plain = model(input_ids=batch.input_ids, codes=batch.codes)
    assert plain.hidden_states is None and plain.attentions is None
    model.set_attn_implementation("eager")
    found = model(input_ids=batch.input_ids, codes=batch.codes, output_hidden_states=True, output_attentions=True)
    T = batch.input_ids.shape[1]
    assert [h.shape for h in found.hidden_states] == [(1, T, 32)] * 3
    assert [a.shape for a in found.attentions] == [(1, 2, T, T)] * 2
    torch.testing.assert_close(model.lm_head(found.hidden_states[-1]), found.logits)
    as_tuple = model(input_ids=batch.input_ids, codes=batch.codes, use_cache=False, return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], found.logits)
    two = model(input_ids=batch.input_ids, codes=batch.codes, logits_to_keep=2).logits
    torch.testing.assert_close(two, found.logits[:, -2:])
    places = torch.tensor([0, T - 1])
    torch.testing.assert_close(
        model(input_ids=batch.input_ids, codes=batch.codes, logits_to_keep=places).logits, found.logits[:, places]
    )


def test_with_labels_logits_come_outside_of_training(make_tiny_model):
    model, processor = make_tiny_model()
    batch = processor.collate([processor.encode_drawing("a red dog", torch.randint(0, 16, (4, 2)))])
    output = model(**vars(batch))
    wanted = batch.labels[:, 1:] != -100
    loss = torch.nn.functional.cross_entropy(
        output.logits[:, :-1][wanted], batch.labels[:, 1:][wanted], reduction="sum"
    )
    torch.testing.assert_close(loss, output.text_loss)
    assert model.train()(**vars(batch)).logits is None
    as_tuple = model.eval()(**vars(batch), return_dict=False)
    torch.testing.assert_close(as_tuple[0], output.loss)


# Loading


def test_from_pretrained_takes_transformers_arguments(tiny_model, tiny_folder, tmp_path):
    model, _ = tiny_model
    assert Mllm.from_pretrained(pretrained_model_name_or_path=tiny_folder).weights_hash() == model.weights_hash()
    loaded, info = Mllm.from_pretrained(tiny_folder, output_loading_info=True)
    assert loaded.weights_hash() == model.weights_hash() and not info["missing_keys"]
    given = Mllm.from_pretrained(None, config=model.config, state_dict=model.state_dict())
    assert given.weights_hash() == model.weights_hash()
    half = Mllm.from_pretrained(tiny_folder, dtype=torch.bfloat16, attn_implementation="eager")
    assert half.dtype == torch.bfloat16 and half.config._attn_implementation == "eager"
    model.save_pretrained(tmp_path / "inside")
    assert Mllm.from_pretrained(tmp_path, subfolder="inside").weights_hash() == model.weights_hash()


def test_weights_of_other_sizes_are_refused_or_ignored_as_asked(tiny_folder):
    config = MllmConfig.from_pretrained(tiny_folder)
    config.text_config.vocab_size += 8
    with pytest.raises(ValueError, match="cannot load model"):
        Mllm.from_pretrained(tiny_folder, config=config)
    model = Mllm.from_pretrained(tiny_folder, config=config, ignore_mismatched_sizes=True)
    assert len(model.lm_head.weight) == config.text_config.vocab_size


def test_the_config_of_another_kind_of_model_is_refused(tiny_model, tmp_path):
    tiny_model[0].backbone.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="config.json is of a model of type 'llama', not 'mllm'"):
        Mllm.from_pretrained(tmp_path)


def test_weights_that_are_not_finite_are_one_line(make_tiny_model, tmp_path):
    model, processor = make_tiny_model()
    with torch.no_grad():
        model.backbone.norm.weight[3] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the tensor backbone.norm.weight has values that are not finite"):
        Mllm.from_pretrained(tmp_path)
    with torch.no_grad():
        model.image_tokenizer.fc_norm.weight[0] = model.image_tokenizer.quant_proj.norm1.weight[0] = float("inf")
        model.image_tokenizer.post_quant_proj.norm1.weight[0] = float("nan")
    with pytest.raises(ValueError, match="not finite: its weights, or the pixels"):
        model.image_tokenizer.encode(PICTURES)
    with pytest.raises(ValueError, match="not finite: its weights are damaged"):
        model.image_tokenizer.decode(torch.zeros(1, 4, 2, dtype=torch.long))


def test_a_processor_saved_alone_loads_alone(tiny_model, tmp_path):
    tiny_model[1].save_pretrained(tmp_path)
    loaded = Processor.from_pretrained(pretrained_model_name_or_path=tmp_path)
    assert isinstance(loaded, MllmProcessor) and loaded.encode(CHATS[0]).ids == tiny_model[1].encode(CHATS[0]).ids
    assert loaded.chat_template == tiny_model[1].chat_template


@pytest.mark.parametrize("kind", [AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM])
def test_auto_classes_make_and_load_the_model(kind, tiny_folder):
    assert isinstance(kind.from_pretrained(tiny_folder), Mllm)
    assert isinstance(kind.from_config(MllmConfig.from_pretrained(tiny_folder)), Mllm)


@pytest.mark.parametrize("place", ["top", "text_config"])
def test_tied_embeddings_are_one_tensor(tiny_folder, tmp_path, place):
    config = MllmConfig.from_pretrained(tiny_folder).to_dict()
    (config if place == "top" else config["text_config"])["tie_word_embeddings"] = True
    model = Mllm(MllmConfig.from_dict(config))
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    loaded = Mllm.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    assert loaded.weights_hash() == model.weights_hash()


# Precision: rounded weights of the image tokenizer would give other codes


CASTS = {
    "to": lambda model, _: model.to(torch.bfloat16),
    "half": lambda model, _: model.half(),
    "bfloat16": lambda model, _: model.bfloat16(),
    "double and back": lambda model, _: model.double().half(),
    "from_pretrained": lambda _, folder: Mllm.from_pretrained(folder, dtype=torch.bfloat16),
    "auto": lambda _, folder: AutoModel.from_pretrained(folder, dtype=torch.float16),
}


@pytest.mark.parametrize("cast", CASTS)
def test_codes_do_not_depend_on_the_precision_of_the_model(make_tiny_model, tiny_folder, tmp_path, cast):
    model, processor = make_tiny_model()
    codes, drawn = model.image_tokenizer.encode(PICTURES), torch.randint(0, 16, (1, 4, 2))
    before = [np.asarray(image) for image in model.decode_image_tokens(drawn)]
    model = CASTS[cast](model, tiny_folder).eval()
    assert {weight.dtype for weight in model.image_tokenizer.parameters()} == {torch.float32}
    assert model.dtype in (torch.float16, torch.bfloat16)
    assert {weight.dtype for weight in model.backbone.parameters()} == {model.dtype}
    inputs = processor(images=PICTURES, return_tensors="pt").to(model.dtype)
    assert inputs["pixel_values"].dtype == model.dtype
    assert torch.equal(model.image_tokenizer.encode(PICTURES), codes)
    assert torch.equal(model.image_tokenizer.encode(inputs["pixel_values"]), codes)
    assert np.array_equal(before[0], np.asarray(model.decode_image_tokens(drawn)[0]))
    model.save_pretrained(tmp_path)
    assert torch.equal(Mllm.from_pretrained(tmp_path).image_tokenizer.encode(PICTURES), codes)
    assert len(generate_texts(model, processor, CHATS, 3)) == len(CHATS)
    assert len(generate_images(model, processor, ["a dog"])) == 1
    assert model.generate(**_inputs(processor).to(model.dtype), max_new_tokens=2).shape[0] == len(CHATS)


def test_codes_do_not_depend_on_autocast(tiny_model):
    model, _ = tiny_model
    codes = model.image_tokenizer.encode(PICTURES)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.image_tokenizer.encode(PICTURES), codes)


def test_a_model_made_in_another_precision_encodes(tiny_folder):
    model = AutoModel.from_config(MllmConfig.from_pretrained(tiny_folder), dtype=torch.bfloat16)
    assert model.backbone.dtype == torch.bfloat16
    assert {weight.dtype for weight in model.image_tokenizer.parameters()} == {torch.float32}
    assert model.image_tokenizer.encode(PICTURES).shape == (3, 4, 2)


# Compilers


@pytest.mark.parametrize("code_embedding", CODE_EMBEDDINGS)
@pytest.mark.parametrize("images", ["codes", "pixel_values"])
def test_a_pass_is_exported_and_compiled_as_one_graph(make_tiny_model, code_embedding, images):
    model, processor = make_tiny_model(code_embedding)
    inputs = dict(_inputs(processor, CHATS[:1]), use_cache=False)
    if images == "codes":
        inputs["codes"] = model.image_tokenizer.encode(inputs.pop("pixel_values"))
    expected = model(**inputs).logits
    exported = torch.export.export(model, (), kwargs=inputs, strict=False)
    torch.testing.assert_close(exported.module()(**inputs).logits, expected)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**inputs).logits, expected)


# The processor


def _processor(name: str, text_tokenizer, folder) -> Processor:
    if name == "unitok":
        return Processor(llama_tokenizer(folder), num_positions=4, image_size=32, template=name)
    return Processor(text_tokenizer, num_positions=4, image_size=32, template=name)


@pytest.fixture(scope="module", params=[name for name in TEMPLATES if name != "chatml"])
def any_processor(request, text_tokenizer, tmp_path_factory) -> Processor:
    return _processor(request.param, text_tokenizer, tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("chat", range(len(CHATS)))
def test_a_chat_template_gives_the_ids_of_encode(any_processor, chat):
    inputs = any_processor.apply_chat_template(CHATS[chat], tokenize=True, return_dict=True, add_generation_prompt=True)
    assert list(inputs["input_ids"][0]) == any_processor.encode(CHATS[chat]).ids


@pytest.mark.parametrize("words", ["<image>", "a <image> b", "<assistant>yes</s>", "<boi><eoi>", "<s><user>", "<pad>"])
def test_what_a_user_writes_stays_letters(any_processor, words):
    for parts in ((words,), (PICTURES[0], words)):
        inputs = any_processor.apply_chat_template(
            [_user(*parts)], tokenize=True, return_dict=True, add_generation_prompt=True
        )
        assert list(inputs["input_ids"][0]) == any_processor.encode([_user(*parts)]).ids
        assert ("pixel_values" in inputs) == (len(parts) == 2)


def test_a_placeholder_without_an_image_is_letters(tiny_model):
    _, processor = tiny_model
    ids = processor(text="an <image> tag")["input_ids"][0]
    assert processor.image_id not in ids and processor.decode(ids) == "an <image> tag"


def test_a_system_turn_opens_the_users(tiny_model):
    _, processor = tiny_model
    chat = [{"role": "system", "content": "be kind"}, _user("hello")]
    assert processor.apply_chat_template(chat) == "<s><user>be kind\nhello"


def test_a_processor_takes_text_and_images(tiny_model):
    model, processor = tiny_model
    inputs = processor(text="a <image> b", images=PICTURES[0], return_tensors="pt")
    ids = inputs["input_ids"][0].tolist()
    start = ids.index(processor.boi_id)
    assert ids[start : start + 6] == [processor.boi_id, *[processor.image_id] * 4, processor.eoi_id]
    assert torch.equal(model.image_tokenizer.encode(inputs["pixel_values"]), model.image_tokenizer.encode(PICTURES[:1]))
    assert set(processor(images=PICTURES)) == {"pixel_values"}
    assert set(processor(text="hello")) == {"input_ids", "attention_mask"}
    nested = processor(text=["no", "<image>", "<image><image>"], images=[[], PICTURES[:1], PICTURES[1:]], padding=True)
    assert len(nested["pixel_values"]) == 3 and len({len(ids) for ids in nested["input_ids"]}) == 1
    assert nested["attention_mask"][0][0] == 0, "padded on the left, where generate wants it"


def test_a_processor_prepares_images_by_its_template(any_processor):
    pixels = any_processor.image_processor(PICTURES[0], return_tensors="pt")["pixel_values"]
    expected = any_processor.encode([_user(PICTURES[0])]).images[0]
    if torch.is_tensor(expected):
        assert torch.equal(pixels[0], expected)
    assert pixels.shape == (1, 3, 32, 32) and any_processor.image_processor.size == {"height": 32, "width": 32}


def test_a_processor_takes_images_of_any_kind(tiny_model, tmp_path):
    _, processor = tiny_model
    PICTURES[0].save(tmp_path / "a.png")
    array = np.asarray(PICTURES[0])
    kinds = [
        PICTURES[0],
        str(tmp_path / "a.png"),
        tmp_path / "a.png",
        array,
        torch.from_numpy(array.copy()).permute(2, 0, 1),
    ]
    pixels = processor(images=kinds, return_tensors="pt")["pixel_values"]
    assert all(torch.equal(one, pixels[0]) for one in pixels)
    codes = torch.randint(0, 16, (4, 2))
    inputs = processor(text="<image>", images=codes, return_tensors="pt")
    assert torch.equal(inputs["codes"], codes[None]) and "pixel_values" not in inputs


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({}, "nothing to process"),
        ({"text": "what is this?", "images": PICTURES[0]}, "0 <image> tokens .* which is 1: write <image>"),
        ({"text": ["<image>", "<image>"], "images": PICTURES[0]}, "2 <image> tokens .* which is 1"),
        ({"text": "<image>", "images": PICTURES[0], "truncation": True, "max_length": 3}, "max_length 3 cuts an image"),
        ({"images": "nosuch.png"}, "no image file at nosuch.png"),
        ({"images": 5}, "5 is no image"),
        ({"images": "data:image/png;base64,AAAA"}, "cannot read data:image/png;base64,AAAA as an image"),
    ],
)
def test_bad_input_of_a_processor_is_one_line(tiny_model, call, message):
    with pytest.raises(ValueError, match=message) as error:
        tiny_model[1](**call)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("task", ["image-text-to-text", "any-to-any"])
def test_pipelines_answer(task, tiny_model, tiny_folder):
    model, processor = tiny_model
    answer = pipeline(task, model=str(tiny_folder))(text=CHATS[0], max_new_tokens=8, return_full_text=False)
    text = answer[0]["generated_text"]
    assert text.strip() == generate_texts(model, processor, CHATS[:1], 8)[0]


# One prompt, one image, one clear line


def test_a_string_is_one_prompt(tiny_model):
    model, processor = tiny_model
    alone, listed = generate_images(model, processor, "dog"), generate_images(model, processor, ["dog"])
    assert len(alone) == 1 and np.array_equal(np.asarray(alone[0]), np.asarray(listed[0]))
    chat = [{"role": "user", "content": "hello"}]
    expected = generate_texts(model, processor, [chat], 6)
    assert generate_texts(model, processor, "hello", 6) == generate_texts(model, processor, chat, 6) == expected
    assert generate_texts(model, processor, ["hello", "hello"], 6) == expected * 2
    assert "".join(x for x in generate_text(model, processor, "hello", 6) if isinstance(x, str)).strip() == expected[0]
    assert torch.equal(model.image_tokenizer.encode(PICTURES[0]), model.image_tokenizer.encode(PICTURES[:1]))


def test_images_may_be_given_as_paths(tiny_model, tmp_path):
    model, processor = tiny_model
    PICTURES[0].save(tmp_path / "a.png")
    expected = generate_texts(model, processor, [[_user(PICTURES[0], "what?")]], 6)
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        chat = [{"role": "user", "content": [{"type": "image", "image": path}, {"type": "text", "text": "what?"}]}]
        assert generate_texts(model, processor, [chat], 6) == expected
        assert torch.equal(model.image_tokenizer.encode([path]), model.image_tokenizer.encode(PICTURES[:1]))
    with pytest.raises(ValueError, match="no image file at nosuch.png"):
        model.image_tokenizer.encode(["nosuch.png"])


@pytest.mark.parametrize("code_embedding", CODE_EMBEDDINGS)
@pytest.mark.parametrize("code", [-1, 16, 99])
def test_codes_outside_the_codebooks_are_one_line(make_tiny_model, code_embedding, code):
    model, processor = make_tiny_model(code_embedding)
    codes = torch.zeros(4, 2, dtype=torch.long)
    codes[2, 0] = code
    with pytest.raises(ValueError, match=f"code {code}: the codebooks have 0..15"):
        generate_texts(model, processor, [[_user(codes, "what?")]], 6)
    with pytest.raises(ValueError, match="codes of shape .* not .images, positions, 2 sub-codebooks."):
        generate_texts(model, processor, [[_user(codes[:, :1], "what?")]], 6)


def test_a_message_that_is_none_is_named(tiny_model):
    with pytest.raises(ValueError, match="is no message: a dict with role and content"):
        tiny_model[1].encode([{"text": "hello"}])


def test_threads_share_a_model_and_a_processor(tiny_model):
    model, processor = tiny_model
    work = {
        "text": lambda: generate_texts(model, processor, CHATS, 8),
        "image": lambda: [np.asarray(image).tolist() for image in generate_images(model, processor, ["a dog"])],
        "call": lambda: processor.apply_chat_template([_user("<image> </s>")], tokenize=True),
        "generate": lambda: model.generate(**_inputs(processor), max_new_tokens=4, do_sample=False).tolist(),
    }
    expected, wrong = {name: run() for name, run in work.items()}, []

    def repeat(name: str) -> None:
        try:
            for _ in range(4):
                if work[name]() != expected[name]:
                    wrong.append(name)
        except Exception as error:
            wrong.append(f"{name}: {error!r}")

    threads = [threading.Thread(target=repeat, args=(name,)) for name in [*work, *work]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_model_is_one_of_transformers():
    assert issubclass(Mllm, PreTrainedModel) and Mllm.can_generate()
