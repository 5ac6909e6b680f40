"""The unified model: positions, losses, loading."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from mllm import Mllm, MllmConfig, MllmProcessor, Processor, generate_texts
from mllm.codes import CODE_EMBEDDINGS, CODE_HEADS
from mllm.config import CACHE

KINDS = [(embedding, head) for embedding in CODE_EMBEDDINGS for head in CODE_HEADS]


@pytest.fixture(params=KINDS, ids="-".join)
def model_and_processor(request, make_tiny_model):
    return make_tiny_model(*request.param)


def _codes(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 16, (4, 2), generator=torch.Generator().manual_seed(seed))


def _samples(processor: Processor) -> list:
    image = {"type": "image", "image": _codes(1)}
    question = [image, {"type": "text", "text": "what is this?"}]
    chat = [{"role": "user", "content": question}, {"role": "assistant", "content": "a dog"}]
    two_images = [{"role": "user", "content": [image, {"type": "image", "image": _codes(2)}]}]
    return [
        processor.encode_drawing("a red dog", _codes(0)),
        processor.encode(chat, open_answer=False),
        processor.encode([*two_images, {"role": "assistant", "content": "two cats"}], open_answer=False),
        processor.encode([{"role": "user", "content": "hello"}, {"role": "assistant", "content": "a"}], False),
    ]


def _losses(model: Mllm, processor: Processor, samples: list, left: bool = False) -> torch.Tensor:
    output = model(**vars(processor.collate(samples, left=left)))
    return torch.stack([output.text_loss, output.text_count, output.code_loss, output.code_count])


def test_a_mixed_batch_loses_the_sum_of_its_parts(model_and_processor):
    model, processor = model_and_processor
    samples = _samples(processor)
    parts = sum(_losses(model, processor, [sample]) for sample in samples)
    together = _losses(model, processor, samples)
    torch.testing.assert_close(together, parts, rtol=1e-4, atol=1e-4)
    assert together[3] == 4 * 2  # one target image: L * K codes


def test_left_and_right_padding_lose_the_same(model_and_processor):
    model, processor = model_and_processor
    samples = _samples(processor)
    right, left = (_losses(model, processor, samples, left=left) for left in (False, True))
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)


def test_counts_are_the_targets(tiny_model):
    model, processor = tiny_model
    drawing, chat, _, text = _samples(processor)
    assert _losses(model, processor, [drawing])[1] == 3  # begin and end of image, end of turn
    assert _losses(model, processor, [text])[3] == 0
    assert _losses(model, processor, [chat])[3] == 0  # an image to read is no target


@pytest.mark.filterwarnings("error")
def test_a_pass_goes_on_from_the_keys_and_values_of_another(tiny_model):
    model, processor = tiny_model
    ids = torch.tensor([processor.encode_drawing("a red dog").ids])
    whole = model(input_ids=ids, use_cache=False)
    start = model(input_ids=ids[:, :-2], use_cache=True)
    rest = model(input_ids=ids[:, -2:], use_cache=True, **{CACHE: start[CACHE]})
    assert CACHE not in whole
    torch.testing.assert_close(torch.cat([start.logits, rest.logits], 1), whole.logits)


@pytest.mark.filterwarnings("error")
def test_generate_of_transformers_writes_what_we_do(tiny_model):
    model, processor = tiny_model
    chat = [{"role": "user", "content": "hello"}]
    ids = torch.tensor([processor.encode(chat).ids])
    written = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=processor.pad_id)
    assert processor.decode(written[0, ids.shape[1] :]) == generate_texts(model, processor, [chat], 8)[0]


def test_the_loss_of_a_code_does_not_see_the_code(model_and_processor):
    """Changing the last code of an image changes no hidden state that predicts it, only the target."""
    model, processor = model_and_processor
    codes_LK = _codes()
    logits = []
    for last in (3, 9):
        changed = codes_LK.clone()
        changed[-1, -1] = last
        seen = []
        handle = model.code_head.register_forward_hook(lambda _, __, output, seen=seen: seen.append(output))
        model(**vars(processor.collate([processor.encode_drawing("a dog", changed)])))
        handle.remove()
        logits.append(seen[0])
    torch.testing.assert_close(logits[0], logits[1])


def test_noise_is_in_what_is_read_of_images_to_draw_alone(tiny_model):
    model, processor = tiny_model
    batch = vars(processor.collate(_samples(processor) + [processor.encode_drawing("a", _codes(n)) for n in range(9)]))
    targets = batch["is_target"]
    torch.manual_seed(0)
    noisy = torch.stack([model.noisy(batch["codes"], targets, 0.5) for _ in range(400)])
    changed_SN = (noisy != batch["codes"]).any(-1).float().mean(2)
    assert not changed_SN[:, ~targets].any()
    assert changed_SN[:, targets].mean() == pytest.approx(0.25 * (1 - 1 / 16**2), abs=0.03)  # of 0 to 0.5
    exact, none, much = (model(**batch, **noise) for noise in ({}, {"code_noise": 0.0}, {"code_noise": 1.0}))
    assert torch.equal(exact.loss, none.loss) and not torch.equal(exact.code_loss, much.code_loss)
    assert torch.equal(exact.code_count, much.code_count)
    seen = []
    hook = model.code_head.register_forward_hook(lambda _, args, __: seen.append(args[1]))
    model(**batch, code_noise=1.0)
    hook.remove()
    assert torch.equal(seen[0], batch["codes"][targets].flatten(0, 1))  # what is to be predicted is exact


def test_losses_reach_embeddings_and_heads(model_and_processor):
    model, processor = model_and_processor
    model.zero_grad()
    model(**vars(processor.collate(_samples(processor)))).loss.backward()
    for part in ("backbone", "lm_head", "code_embed", "code_head"):
        touched = [p.grad for n, p in model.named_parameters() if n.startswith(part) and p.grad is not None]
        assert touched and any(gradient.abs().sum() > 0 for gradient in touched), part


def test_code_positions_and_codes_must_agree(tiny_model):
    model, processor = tiny_model
    batch = processor.collate([processor.encode_drawing("a dog", _codes())])
    with pytest.raises(ValueError, match="4 image positions in the text, codes given for 8"):
        model.embed(batch.input_ids, torch.cat([batch.codes, batch.codes]))
    with pytest.raises(ValueError, match="4 image positions in the text, codes given for 0"):
        model.embed(batch.input_ids)


def test_save_load_and_auto_classes_give_the_same_model(model_and_processor, tmp_path):
    model, processor = model_and_processor
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = Mllm.from_pretrained(tmp_path).eval()
    assert isinstance(AutoConfig.from_pretrained(tmp_path), MllmConfig)
    assert isinstance(AutoModel.from_pretrained(tmp_path), Mllm)
    assert isinstance(AutoModelForImageTextToText.from_pretrained(tmp_path), Mllm)
    assert isinstance(AutoProcessor.from_pretrained(tmp_path), MllmProcessor)
    assert loaded.weights_hash() == model.weights_hash()
    samples = _samples(Processor.from_pretrained(tmp_path))
    assert torch.equal(_losses(loaded, processor, samples), _losses(model, processor, samples))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="tells nowhere what is mapped")
def test_loaded_weights_do_not_depend_on_their_files(tiny_model, tmp_path):
    """A mapped file ends the process when it is cut short, and is held beside what its weights became."""
    tiny_model[0].save_pretrained(tmp_path)
    loaded = Mllm.from_pretrained(tmp_path)
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert loaded.weights_hash() == tiny_model[0].weights_hash()


def test_the_weights_hash_changes_with_any_weight(make_tiny_model):
    model, _ = make_tiny_model()
    before = model.weights_hash()
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    assert model.weights_hash() != before


def test_unknown_kinds_name_the_known_ones(make_tiny_model):
    with pytest.raises(ValueError, match="unknown code_head 'deep'; known: depth, parallel"):
        make_tiny_model(code_head="deep")
    with pytest.raises(ValueError, match="unknown code_embedding 'sum'; known: tables, placed_tables, codebook"):
        make_tiny_model(code_embedding="sum")


def _truncate_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _edit_config(**changes):
    def edit(folder):
        config = json.loads((folder / "config.json").read_text())
        config["text_config"].update(changes)
        (folder / "config.json").write_text(json.dumps(config))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate_weights, "cannot load model"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot load model"),
        (lambda folder: (folder / "config.json").unlink(), "is no model folder: it has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot load model"),
        (_edit_config(hidden_size=64), "cannot load model"),
        (_edit_config(num_hidden_layers=3), "weights and config disagree on 9 tensors"),
        (_edit_config(num_hidden_layers=1), "weights and config disagree on 9 tensors"),
    ],
)
def test_a_damaged_folder_is_one_clear_line(tiny_folder, tmp_path, damage, message):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    damage(folder)
    with pytest.raises(ValueError, match=message) as error:
        Mllm.from_pretrained(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


@pytest.mark.parametrize("name", ["nosuch", "", "nosuch/", "/nosuch/model", "../nosuch"])
@pytest.mark.parametrize("kind", [Mllm, Processor])
def test_an_unknown_name_lists_the_shipped_models(kind, name):
    with pytest.raises(ValueError, match=f"unknown model '{name}': no such folder; shipped models:"):
        kind.from_pretrained(name)
