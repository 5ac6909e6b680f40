"""What every use of a model relies on: small checks that a healthy one passes.

Shapes: B = 1 sequence, T positions, D width, L positions an image, K sub-codebooks, V entries.
"""

import json
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw

from mllm import Mllm, Processor, generate_images, generate_texts
from mllm.decode.options import Sampling
from mllm.decode.sampling import Picker
from mllm.decode.stream import New, Stream
from mllm.fast import pick_kernels
from mllm.folders import find_model

from .images.similarity import psnr

PROMPT, QUESTION = "a photo of a red car", "what is this?"
TOLERANCE = 1e-3  # of hidden states, relative to the largest; float32 leaves 1e-5


class Patient(NamedTuple):
    name: str
    model: Mllm
    processor: Processor


def loads(patient: Patient) -> str:
    parameters = sum(parameter.numel() for parameter in patient.model.parameters())
    return f"{parameters / 1e6:.1f} million parameters on {patient.model.device}"


def weights(patient: Patient) -> str:
    """Finite, and where the folder has results, those that were measured."""
    bad = [name for name, tensor in patient.model.state_dict().items() if not tensor.isfinite().all()]
    if bad:
        raise ValueError(f"{len(bad)} tensors hold numbers that are not finite, e.g. {bad[0]}")
    found, results = patient.model.weights_hash(), Path(find_model(patient.name)) / "results.json"
    if not results.is_file():
        return f"{found}, no results to compare it with"
    measured = json.loads(results.read_text()).get("model_hash")
    if measured != found:
        raise ValueError(f"hash {found}, but {results} was measured with {measured}")
    return f"{found}, as in {results}"


def reconstructs(patient: Patient) -> str:
    """An image to codes and back. Its PSNR depends on the training, so it is printed, not judged."""
    image_tokenizer = patient.model.image_tokenizer
    image, config = sample_image(image_tokenizer.config.image_size), image_tokenizer.config
    codes_NLK = image_tokenizer.encode([image, image])
    if codes_NLK.shape[1:] != (config.num_positions, config.num_codebooks):
        raise ValueError(f"codes of shape {tuple(codes_NLK.shape[1:])}")
    if not torch.equal(codes_NLK[0], image_tokenizer.encode([image])[0]):
        raise ValueError("an image has other codes alone than in a batch")
    return f"PSNR {psnr(image, image_tokenizer.decode(codes_NLK)[0]):.1f} dB"


def answers(patient: Patient) -> str:
    return repr(generate_texts(patient.model, patient.processor, [question(patient)], max_new_tokens=16)[0])


def question(patient: Patient) -> list[dict]:
    image = sample_image(patient.model.image_tokenizer.config.image_size)
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]}]


def draws(patient: Patient) -> str:
    """The same image alone and in a batch."""
    alone = generate_images(patient.model, patient.processor, [PROMPT], seeds=[0])[0]
    batch = generate_images(patient.model, patient.processor, ["a cat", PROMPT], seeds=[1, 0])
    if alone.tobytes() != batch[1].tobytes():
        raise ValueError("a seed gives another image in a batch than alone")
    return f"{alone.width} x {alone.height} pixels"


@torch.no_grad()
def forwards(patient: Patient) -> str:
    """A question about an image through transformers' `forward`, without labels."""
    _, model, processor = patient
    batch = processor.collate([processor.encode(question(patient))], model.image_tokenizer)
    inputs = {**vars(batch), "labels": None, "attention_mask": None}
    logits_BTS = model(**{k: v.to(model.device) if torch.is_tensor(v) else v for k, v in inputs.items()}).logits
    if not logits_BTS.isfinite().all():
        raise ValueError("logits that are not finite")
    return f"logits of shape {tuple(logits_BTS.shape)}"


@torch.no_grad()
def generates(patient: Patient) -> str:
    """transformers' `generate`: each id must be the likeliest one by `forward` without a cache."""
    _, model, processor = patient
    chat = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    ids_BT = processor.collate([processor.encode(chat)]).input_ids.to(model.device)
    start = ids_BT.shape[1]
    ids_T = model.generate(ids_BT, max_new_tokens=8, do_sample=False, pad_token_id=processor.pad_id)[0]
    drawn = (ids_T[start:] == processor.boi_id).nonzero()  # from where on ids need codes
    new_T = ids_T[start : start + int(drawn[0, 0]) if len(drawn) else None]
    logits_TS = model(input_ids=ids_T[None, : start + len(new_T)]).logits[0, start - 1 : -1].float()
    short_T = logits_TS.amax(-1) - logits_TS.gather(-1, new_T[:, None])[:, 0]
    if (short_T > TOLERANCE * logits_TS.abs().max()).any():
        raise ValueError(f"of the ids {new_T.tolist()}, some are not the likeliest by forward")
    return f"{len(new_T)} ids agree with forward"


def prefills(patient: Patient) -> str:
    steps_LD, whole_LD, _, _ = draw_both_ways(patient)
    difference = ((steps_LD - whole_LD).abs().max() / whole_LD.abs().max()).item()
    if not difference < TOLERANCE:
        raise ValueError(f"hidden states differ by {difference:.1e} of the largest")
    return f"hidden states differ by {difference:.1e} of the largest"


def caches(patient: Patient) -> str:
    """Greedy codes with the cache are the likeliest without it. Rounding may swap two that are nearly equal."""
    _, _, codes_LK, logits_LKV = draw_both_ways(patient)
    short_LK = logits_LKV.amax(-1) - logits_LKV.gather(-1, codes_LK[..., None])[..., 0]
    wrong = int((short_LK > TOLERANCE * logits_LKV.abs().max()).sum())
    if wrong:
        raise ValueError(f"{wrong} of {codes_LK.numel()} codes are not the likeliest in one pass without cache")
    return f"{codes_LK.numel()} codes agree"


@torch.no_grad()
def draw_both_ways(patient: Patient) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A greedy drawing with the cache, step by step, and the same sequence in one pass without. -> what each position
    is predicted from, [L, D], of both, the codes_LK, and the logits_LKV of the one pass, all in the order of
    drawing."""
    _, model, processor = patient
    kernels, cache, states, codes, order = pick_kernels(model), {}, [], [], model.order
    all_slots = torch.arange(len(order.places), device=model.device)
    stream = Stream(model, [processor.encode_drawing(PROMPT)], processor, kernels)
    for step, following in zip_longest(order.steps, order.steps[1:]):
        n, device = len(step.places), model.device
        slots = all_slots[step.first : step.first + n]
        states.append(order.aim(stream.h_ED[list(step.sources)], slots))
        codes.append(kernels.draw(states[-1], Picker((), [], sampling=Sampling(temperature=0.0))))
        if following:
            x_nD = torch.cat([kernels.embed(codes_1K, cache) for codes_1K in codes[-1].split(1)])
            queries = len(following.places) if order.asks else 0
            if queries:
                x_nD = torch.cat([x_nD, order.aims(all_slots[following.first :][:queries])])
            new = New(order.sees(step.first, n, queries), n)
            stream.feed(x_nD, torch.ones(len(x_nD), dtype=torch.bool, device=device), [new])
    codes_LK = order.of_places(torch.cat(codes), 0)
    batch = processor.collate([processor.encode_drawing(PROMPT, codes_LK)])
    ids_BT = batch.input_ids.to(device)
    x_BTD = model.embed(ids_BT, codes_LK[None], is_target=batch.is_target)
    h_BTD = model.run_layers(x_BTD, ids_BT, all_slots[:1]).last_hidden_state
    whole_NLD, codes_NLK = model.predictors(h_BTD, ids_BT, codes_LK[None], all_slots[:1])
    return torch.cat(states), whole_NLD[0], codes_NLK[0], model.code_head(whole_NLD[0], codes_NLK[0])


def sample_image(size: int) -> Image.Image:
    """A red disc on a light ground."""
    image = Image.new("RGB", (size, size), "#dde")
    ImageDraw.Draw(image).ellipse((size // 4, size // 4, 3 * size // 4, 3 * size // 4), fill="#c22")
    return image


# Name -> a function that says what it found, or raises with what is wrong.
CHECKS: dict[str, Callable[[Patient], str]] = {
    "loads": loads,
    "weights": weights,
    "reconstructs an image": reconstructs,
    "answers a question": answers,
    "draws": draws,
    "forward": forwards,
    "generate": generates,
    "prefill equals step by step": prefills,
    "cached equals uncached": caches,
}
