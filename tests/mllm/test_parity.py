"""The language model against the reference's numbers, through the converter: embeddings, losses of a mixed batch."""

import re

import pytest
import torch

from mllm import Mllm, MllmConfig
from mllm.convert import convert_unitok_mllm
from tests.golden_data import filled, golden, make_codes, reference_shapes
from tokenizer import ImageTokenizerConfig

# The image tokenizer's networks play no part here; its widths size the code embedding.
TOKENIZER = ImageTokenizerConfig(
    depth=1, conv_widths=(16, 16), conv_depths=(1, 1), text_width=16, text_heads=1, text_layers=1, text_vocab_size=8
)
SIZES = {4096: 64, 11008: 160, 32000: 320}  # of Llama-2-7B -> of the golden model
IMAGE = -200


def _shape(name: str, released: list[int]) -> list[int]:
    """The golden model's shape; codebooks and the embedder's projection kept their full size."""
    if "codebook.weight" in name or "vocab_usage" in name or "attn_projection" in name:
        return released
    if name.startswith(("ar_head.linear_head", "ar_head.codebooks")):
        return [4096, *(64 for _ in released[1:])]
    return [SIZES.get(size, size) for size in released]


@pytest.fixture(scope="module")
def stored():
    return {key.removeprefix("mllm/"): value for key, value in golden().items() if key.startswith("mllm/")}


@pytest.fixture(scope="module")
def model() -> Mllm:
    config = MllmConfig(
        text_config={
            "vocab_size": 320,
            "hidden_size": 64,
            "intermediate_size": 160,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-5,
        },
        image_tokenizer=TOKENIZER.to_dict(),
        code_embedding="codebook",
        code_head="depth",
        code_head_args={"layers": 3, "heads": 4, "hidden": 160, "shared_output": True},
        image_token_id=IMAGE,
    )
    released = reference_shapes("state_dict_unitok_mllm_7b")
    names = [name for name in released if not re.match(r"model\.layers\.([2-9]|\d\d)\.", name)]
    weights = convert_unitok_mllm({name: filled(name, _shape(name, released[name])) for name in names})
    model = Mllm(config).eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.startswith("image_tokenizer.") for name in missing)
    return model


@torch.no_grad()
def test_the_code_embedding(model, stored):
    torch.testing.assert_close(model.code_embed(make_codes(1100, 2)), stored["embedder/output"], atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(("case", "rows"), [("train", [0, 1, 2, 3, 4]), ("train_no_t2i", [0, 2, 3])])
def test_the_losses_of_a_mixed_batch(model, stored, case, rows):
    """Rows: caption an image, draw, text alone, chat about an image, draw."""
    ids, labels = stored["train/input_ids"].long(), stored["train/labels"].long()
    draws = stored["train/data_types"] == 1
    expanded = [_expand(ids[row].tolist(), labels[row].tolist()) for row in rows]
    length = max(len(row_ids) for row_ids, _ in expanded)
    ids_BT = torch.tensor([row_ids + [0] * (length - len(row_ids)) for row_ids, _ in expanded])
    labels_BT = torch.tensor([row_labels + [-100] * (length - len(row_labels)) for _, row_labels in expanded])
    with_image = [row for row in rows if row != 2]
    output = model(
        input_ids=ids_BT,
        codes=torch.cat([make_codes(1120 + row) for row in with_image]),
        is_target=draws[with_image],
        labels=labels_BT,
        attention_mask=(ids_BT != 0).long(),
    )
    assert output.text_count == stored[f"{case}/num_text_targets"]
    torch.testing.assert_close(output.text_loss / output.text_count, stored[f"{case}/text_loss"][0], atol=1e-4, rtol=0)
    if case == "train":
        assert output.code_count == stored["train/num_image_targets"]
        torch.testing.assert_close(output.code_loss / output.code_count, stored["train/image_ce"][0], atol=1e-4, rtol=0)
    else:
        assert output.code_count == 0


def _expand(ids: list[int], labels: list[int]) -> tuple[list[int], list[int]]:
    """One placeholder, as the reference has it, -> one for each of the 256 positions."""
    pairs = [
        pair
        for id, label in zip(ids, labels, strict=True)
        for pair in ([(IMAGE, -100)] * 256 if id == IMAGE else [(id, label)])
    ]
    return [id for id, _ in pairs], [label for _, label in pairs]
