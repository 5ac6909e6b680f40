"""The language model against the reference's numbers, through the converter: a mixed batch, its gradients, greedy
drawing and answering."""

import pytest
import torch

from mllm import Mllm, MllmConfig, Processor
from mllm.decode.options import Sampling
from mllm.decode.sampling import Picker
from mllm.decode.stream import Stream
from mllm.fast import pick_kernels
from mllm.text.processor import Batch
from mllm.text.templates import Sample
from mllm.unitok_mllm import unitok_mllm_layout
from tests.golden_data import assert_reproduced, filled, golden, gradients, llama_tokenizer, make_codes
from tokenizer import ImageTokenizerConfig
from tokenizer.unitok import reference_shapes, to_ours, to_reference

# The image tokenizer's networks play no part here; its widths size the code embedding.
TOKENIZER = ImageTokenizerConfig(
    depth=1, conv_widths=(16, 16), conv_depths=(1, 1), text_width=16, text_heads=1, text_layers=1, text_vocab_size=8
)
IMAGE = -200
Z_LOSS = 5e-5
# Parts of the golden data that belong to the image tokenizer's training with a discriminator.
OTHERS = {"disc", "diffaug", "lpips", "schedule"}
TESTED = {
    "embedder",
    "train",
    "train_no_t2i",
    "gen_exact",
    "gen_exact_cfg",
    "gen_published",
    "gen_published_cfg",
    "answer",
}


def test_every_golden_tensor_has_its_test():
    """Each test compares all tensors under its prefix; here are the prefixes."""
    assert {name.split("/")[0] for name in golden()} == {"tok_small", "tok_base", "tok_large", "mllm"} | OTHERS
    assert {name.split("/")[0] for name in golden("mllm/")} == TESTED


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
        code_z_loss=Z_LOSS,
        image_token_id=IMAGE,
    )
    model = Mllm(config).eval()
    model.load_state_dict(to_ours(unitok_mllm_layout(config), _weights(config)))
    return model


def _weights(config: MllmConfig) -> dict[str, torch.Tensor]:
    return {name: filled(name, shape) for name, shape in reference_shapes(unitok_mllm_layout(config)).items()}


@pytest.fixture(scope="module")
def processor(tmp_path_factory) -> Processor:
    """Only its ids count: all sequences are stored as ids."""
    return Processor(llama_tokenizer(tmp_path_factory.mktemp("llama")), 256, 256, template="unitok")


def _sample(ids: list[int], codes_LK: torch.Tensor | None = None, is_target: bool = False) -> Sample:
    """From the reference's form, with one placeholder for an image."""
    sample = Sample(images=[] if codes_LK is None else [codes_LK], is_target=[] if codes_LK is None else [is_target])
    for id in ids:
        sample.add([IMAGE] * 256 if id == IMAGE else [id])
    return sample


@torch.no_grad()
def test_the_code_embedding(model):
    codes_NLK = make_codes(1100, 2)
    features_NLC = model.code_embed.attn_projection(model.code_embed.quantizer.decode(codes_NLK))
    ours = {"attn_projection_slice": features_NLC[:, ::32], "output": model.code_embed(codes_NLK)}
    assert_reproduced(ours, golden("mllm/embedder/"))


@pytest.mark.parametrize(("case", "rows"), [("train", [0, 1, 2, 3, 4]), ("train_no_t2i", [0, 2, 3])])
def test_a_mixed_batch(model, processor, case, rows):
    """Rows: caption an image, draw, text alone, chat about an image, draw."""
    batch, stored = _mixed_batch(processor, rows), golden(f"mllm/{case}/")
    model.zero_grad()
    seen = {}
    hooks = [
        model.backbone.register_forward_hook(
            lambda _, __, given, output: seen.update(x=given["inputs_embeds"], h=output.last_hidden_state),
            with_kwargs=True,
        ),
        model.code_head.register_forward_hook(lambda _, __, logits_PKV: seen.update(logits_PKV=logits_PKV)),
    ]
    output = model(**vars(batch))
    for hook in hooks:
        hook.remove()
    output.loss.backward()
    # What stands at padding is read by nobody.
    mask_BT1 = batch.attention_mask[:, ::37, None].bool()
    ours = {
        "merged_labels": batch.labels,
        "merged_attention_mask": batch.attention_mask,
        "inputs_embeds_slice": torch.where(mask_BT1, seen["x"][:, ::37], 0.0),
        "backbone_hidden_slice": torch.where(mask_BT1, seen["h"][:, ::37], stored["backbone_hidden_slice"]),
        "lm_logits_slice": torch.where(mask_BT1, model.lm_head(seen["h"])[:, ::37], stored["lm_logits_slice"]),
        "num_text_targets": output.text_count,
        "text_loss": output.text_loss / output.text_count,
        "loss": output.loss,
    }
    if case == "train":
        ours |= _drawn(model, batch, output, seen["logits_PKV"])
        of = to_reference(unitok_mllm_layout(model.config), _gradients(model), _weights(model.config))
        names = [name.removeprefix("grad_norm/") for name in stored if name.startswith("grad_norm/")]
        ours |= gradients(of, names, rows=16)
        stored = {name: tensor for name, tensor in stored.items() if name not in ("input_ids", "labels", "data_types")}
    assert_reproduced(ours, stored)


def _mixed_batch(processor: Processor, rows: list[int]) -> Batch:
    given = golden("mllm/train/")
    samples = []
    for row in rows:
        ids, labels = given["input_ids"][row].tolist(), given["labels"][row].tolist()
        length = max(place for place, id in enumerate(ids) if id) + 1
        codes_LK = make_codes(1120 + row)[0] if IMAGE in ids else None
        sample = _sample(ids[:length], codes_LK, is_target=given["data_types"][row] == 1)
        pairs = zip(ids[:length], labels[:length], strict=True)
        sample.labels = [label for id, target in pairs for label in ([-100] * 256 if id == IMAGE else [target])]
        samples.append(sample)
    return processor.collate(samples)


def _gradients(model: Mllm) -> dict[str, torch.Tensor]:
    """The codebooks of the embedding are frozen."""
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}


def _drawn(model: Mllm, batch: Batch, output, logits_PKV: torch.Tensor) -> dict[str, torch.Tensor]:
    """What concerns the images to be drawn: two of 256 positions, the reference's order being [image, codebook, L]."""
    logits_NKLV = logits_PKV.unflatten(0, (2, 256)).transpose(1, 2)
    codes_NKL = batch.codes[batch.is_target].transpose(1, 2)
    slots_BT = batch.input_ids[[1, 4]] == IMAGE
    starts = slots_BT.int().argmax(1)
    model.config.code_z_loss = 0.0
    with torch.no_grad():
        plain = model(**vars(batch))
    model.config.code_z_loss = Z_LOSS
    return {
        "num_image_targets": output.code_count,
        "image_spans": torch.stack([starts, starts + slots_BT.sum(1)], 1),
        "image_ce": plain.code_loss / output.code_count,
        "image_z_loss": (output.code_loss - plain.code_loss) / output.code_count,
        "ar_logits_slice": logits_NKLV[:, :, [0, 1, 100, 255], :64],
        "ar_logits_logsumexp": logits_NKLV.logsumexp(-1),
        "ar_logits_target": logits_NKLV.gather(-1, codes_NKL[..., None])[..., 0],
        "ar_logits_argmax": logits_NKLV.argmax(-1),
    }


# The first step at which two logits of the reference are nearer than 1e-4.
@pytest.mark.parametrize(
    ("case", "sure"), [("gen_exact", 199), ("gen_exact_cfg", 256), ("gen_published", 216), ("gen_published_cfg", 90)]
)
@torch.no_grad()
def test_greedy_drawing(model, processor, case, sure):
    stored, scale = golden(f"mllm/{case}/"), 5.0 if case.endswith("_cfg") else 1.0
    rows = zip(stored["input_ids"], stored["attention_mask"].bool(), strict=True)
    samples = [_sample(ids[mask].tolist()) for ids, mask in rows]
    batch = processor.collate(samples, left=True)
    guided, pick = [], Picker(() if scale == 1.0 else (scale,), [], sampling=Sampling())

    def watched(logits_BV: torch.Tensor, k: int) -> torch.Tensor:
        cond, uncond = logits_BV[0], logits_BV[-1]
        guided.append(uncond + scale * (cond - uncond))
        return pick(logits_BV, k)

    hidden, codes = [], []
    kernels, cache = pick_kernels(model), {} if "exact" in case else None
    stream = Stream(model, samples, processor, kernels)
    while True:
        hidden.append(stream.h_ED)
        codes_BK = model.code_head.sample(stream.h_ED, watched)
        codes.append(codes_BK[0])
        if len(codes) == 256:
            break
        stream.feed(kernels.embed(codes_BK, cache))
    codes_KL, logits_LKV = torch.stack(codes, 1), torch.stack(guided).unflatten(0, (256, 8))
    equal_L = (codes_KL == stored["codes"][0]).all(0)
    same = 256 if equal_L.all() else int(equal_L.int().argmin())
    assert same >= sure
    steps = torch.tensor([0, 1, 2, 127, 255])
    ours = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "codes": codes_KL[None],
        "argmax_margin": _margin(logits_LKV).t()[None],
        "hidden_steps_0_1_2_127_255": torch.stack(hidden, 1)[:, steps],
        "first_step_logits_heads_0_7": logits_LKV[0, [0, 7]],
    }
    # Past a near tie that fell the other way, these are another image's.
    ours["codes"][..., same:] = stored["codes"][..., same:]
    ours["argmax_margin"][..., same:] = stored["argmax_margin"][..., same:]
    ours["hidden_steps_0_1_2_127_255"][:, steps > same] = stored["hidden_steps_0_1_2_127_255"][:, steps > same]
    assert_reproduced(ours, stored)


@torch.no_grad()
def test_a_greedy_answer(model, processor):
    stored, ids, logits = golden("mllm/answer/"), [], []
    stream = Stream(model, [_sample(stored["prompt_ids"].tolist(), make_codes(1142)[0])], processor)
    while len(ids) < 12:
        logits.append(model.text_logits(stream.h_ED)[0])
        ids.append(int(logits[-1].argmax()))
        stream.feed(model.get_input_embeddings()(torch.tensor(ids[-1:])))
    ours = {
        "prompt_ids": stored["prompt_ids"],
        "tokens": torch.tensor(ids),
        "first_logits": logits[0],
        "argmax_margin": _margin(torch.stack(logits)),
    }
    assert_reproduced(ours, stored)


def _margin(logits: torch.Tensor) -> torch.Tensor:
    best = logits.topk(2).values
    return best[..., 0] - best[..., 1]
