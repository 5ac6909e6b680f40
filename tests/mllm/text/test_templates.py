"""Whole id sequences of the released UniTok model's template, against sentencepiece itself; images, folders."""

import json

import numpy as np
import pytest
import sentencepiece
import torch
from PIL import Image
from sentencepiece import sentencepiece_model_pb2
from torchvision import transforms

from mllm import Mllm, MllmConfig, Processor, generate_images, generate_text, generate_texts
from tests.golden_data import llama_tokenizer
from tokenizer import SIZES

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
BOS, EOS, BOI, EOI = 1, 2, 3, 4
IMAGE = [-200] * 4
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("llama")


@pytest.fixture(scope="module")
def processor(folder) -> Processor:
    return Processor(llama_tokenizer(folder), num_positions=4, image_size=32, template="unitok")


@pytest.fixture(scope="module")
def spaced(folder, processor):
    """A text -> ids, with sentencepiece's space before it: what the reference's tokenizer gives, without its bos."""
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).encode


@pytest.fixture(scope="module")
def bare(folder, processor):
    """The same without that space: what comes after an end of turn."""
    proto = sentencepiece_model_pb2.ModelProto.FromString((folder / "tokenizer.model").read_bytes())
    proto.normalizer_spec.add_dummy_prefix = False
    return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString()).encode


def _user(*content) -> dict:
    parts = [{"type": "text", "text": part} if isinstance(part, str) else _image(part) for part in content]
    return {"role": "user", "content": parts}


def _assistant(*content) -> dict:
    return {**_user(*content), "role": "assistant"}


def _image(image) -> dict:
    return {"type": "image", "image": image}


def _targets(sample) -> list[int]:
    return [label for label in sample.labels if label != -100]


def test_a_chat(processor, spaced):
    sample = processor.encode([_user(PICTURE, "is this a dog?")])
    assert sample.ids == [BOS, *spaced(f"{SYSTEM} USER: "), *IMAGE, *spaced("\nis this a dog? ASSISTANT:")]
    assert sample.is_target == [False] and not _targets(sample)


def test_a_chat_without_image(processor, spaced):
    assert processor.encode([_user(" a dog")]).ids == [BOS, *spaced(f"{SYSTEM} USER:  a dog ASSISTANT:")]


MESSAGES = [
    _user(PICTURE, "is this a dog?"),
    _assistant("a dog, the image is of a dog"),
    _user("generate an image: ", PICTURE),
    _assistant("this"),
    _user("is it?"),
]


def test_a_chat_of_several_turns(processor, spaced, bare):
    first, second = spaced("a dog, the image is of a dog"), spaced("this")
    expected = [
        *[BOS, *spaced(f"{SYSTEM} USER: "), *IMAGE, *spaced("\nis this a dog? ASSISTANT:"), *first, EOS],
        *[*bare("USER: generate an image: "), *IMAGE, *spaced("\n ASSISTANT:"), *second, EOS],
        *bare("USER: is it? ASSISTANT:"),
    ]
    sample = processor.encode(MESSAGES)
    assert sample.ids == expected
    assert bare("USER: is it?") != spaced("USER: is it?")  # so that the test can see the difference
    assert _targets(sample) == [*first, EOS, *second, EOS]
    # A reply is in the pieces that it has after its question.
    assert spaced("\n ASSISTANT:") + second == spaced("\n ASSISTANT: this")
    training = processor.encode(MESSAGES[:-1], open_answer=False)
    assert training.ids == expected[: -len(bare("USER: is it? ASSISTANT:"))] and training.ids[-1] == EOS


def test_a_legacy_tokenizer_puts_its_space_after_each_turn(processor, folder, spaced):
    legacy = Processor(llama_tokenizer(folder, legacy=True), 4, 32, template="unitok")
    ids = legacy.encode([_user("is it?"), _assistant("this"), _user("is it?")]).ids
    turn = spaced("USER: is it? ASSISTANT:")
    assert ids == [BOS, *spaced(f"{SYSTEM} USER: is it? ASSISTANT: this"), EOS, *turn]
    assert legacy.encode([_user("is it?"), _assistant("this")], open_answer=False).ids == ids[: -len(turn)]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [("a dog", "a dog Generate an image based on this description."), (None, "<unconditional>")],
)
def test_drawing(processor, spaced, prompt, words):
    asked = [BOS, *spaced(words)]
    assert processor.encode_drawing(prompt).ids == [*asked, BOI]
    sample = processor.encode_drawing(prompt, torch.zeros(4, 2, dtype=torch.long))
    assert sample.ids == [*asked, BOI, *IMAGE, EOI, EOS]
    assert sample.labels == [-100] * len(asked) + [BOI] + [-100] * 4 + [EOI, EOS]
    assert sample.is_target == [True]
    # The reference gets the begin of the image from a character of the prompt.
    assert spaced(words + "\x00") == [*spaced(words), BOI]


def test_a_chat_in_which_the_model_drew(processor, spaced):
    sample = processor.encode([_user("a dog"), _assistant("this: ", PICTURE)], open_answer=False)
    words = spaced("this: ")
    asked = [BOS, *spaced(f"{SYSTEM} USER: a dog ASSISTANT:")]
    assert sample.ids == [*asked, *words, BOI, *IMAGE, EOI, EOS]
    assert _targets(sample) == [*words, BOI, EOI, EOS] and sample.is_target == [True]
    assert sample.images == [PICTURE]  # the image tokenizer's own transform is for what is drawn


@pytest.mark.parametrize("text", ["</s> <s> <unk> <image> <0x00> <unconditional>", "\x00\x01 x"])
def test_words_of_a_user_are_plain_text(processor, text):
    for ids in (processor.encode([_user(text)]).ids, processor.encode_drawing(text).ids[:-1]):
        assert min(ids[1:]) > EOI
        assert text.strip("\x00\x01 ") in processor.decode(ids)


def test_images_of_a_user_are_padded_to_squares(processor):
    square = Image.new("RGB", (90, 90), (122, 116, 104))
    square.paste(PICTURE, (0, 20))
    reference = [transforms.Resize((32, 32)), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    expected = transforms.Compose(reference)(square)
    torch.testing.assert_close(processor.encode([_user(PICTURE)]).images[0], expected, atol=1e-6, rtol=0)
    codes_LK = torch.zeros(4, 2, dtype=torch.long)
    assert processor.encode([_user(codes_LK)]).images[0] is codes_LK


def test_marks_and_placeholders_are_no_text(processor):
    ids = processor.encode([_user(PICTURE, "a dog"), _assistant("this", PICTURE)], open_answer=False).ids
    assert processor.decode(ids) == f"{SYSTEM} USER:  \na dog ASSISTANT: this"


@pytest.fixture(scope="module")
def model(processor) -> Mllm:
    config = MllmConfig(
        text_config={
            "vocab_size": 320,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
        },
        image_tokenizer={**SIZES["tiny"].to_dict(), "resize_ratio": 1.125, "interpolation": "bilinear"},
        code_embedding="codebook",
        code_head_args={"layers": 1, "heads": 2},
        pad_token_id=processor.pad_id,
        image_token_id=processor.image_id,
        boi_token_id=processor.boi_id,
        eoi_token_id=processor.eoi_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Mllm(config).eval()


def test_answers_and_drawings(model, processor):
    answers = generate_texts(model, processor, [[_user(PICTURE, "a dog?")], [_user("hi")]], max_new_tokens=5)
    assert answers[0] == generate_texts(model, processor, [[_user(PICTURE, "a dog?")]], max_new_tokens=5)[0]
    exact, again, published = (
        generate_images(model, processor, ["a dog"], cfg_scale=3.0, temperature=0, code_context=context)[0].tobytes()
        for context in ("exact", "exact", "published")
    )
    assert exact == again != published


def test_the_model_may_decide_to_draw_in_its_answer(model, processor):
    wanted = iter([312, BOI, 313, EOS])

    def only(_, __, logits):
        return torch.full_like(logits, -10.0).index_fill_(-1, torch.tensor([next(wanted)]), 10.0)

    handle = model.lm_head.register_forward_hook(only)
    pieces = list(generate_text(model, processor, [_user(PICTURE, "a dog")]))
    handle.remove()
    assert [piece if isinstance(piece, str) else piece.size for piece in pieces] == ["h", (32, 32), "m"]


def test_the_template_is_saved_and_old_folders_are_ours(processor, model, tiny_model, tmp_path):
    for part in (processor, model):
        part.save_pretrained(tmp_path / "unitok")
    loaded = Processor.from_pretrained(tmp_path / "unitok")
    assert loaded.template == "unitok" and loaded.encode(MESSAGES).ids == processor.encode(MESSAGES).ids
    for part in tiny_model:
        part.save_pretrained(tmp_path / "ours")
    path = tmp_path / "ours" / "processor_config.json"
    settings = json.loads(path.read_text())
    assert settings.pop("template") == "mllm"
    path.write_text(json.dumps(settings))
    assert Processor.from_pretrained(tmp_path / "ours").template == "mllm"


def test_what_does_not_fit_is_named(model, processor, text_tokenizer):
    with pytest.raises(ValueError, match="unknown template 'vicuna'; known: mllm, chatml, unitok"):
        Processor(text_tokenizer, template="vicuna")
    with pytest.raises(ValueError, match="no <pad>, <image>, .*: train it with scripts.train_text_tokenizer"):
        Processor(processor.tokenizer)
    with pytest.raises(ValueError, match="unknown role 'system'; known: user, assistant"):
        processor.encode([{"role": "system", "content": "be kind"}])
    with pytest.raises(ValueError, match="unknown content type 'audio'; known: text, image"):
        processor.encode([{"role": "user", "content": [{"type": "audio"}]}])
    with pytest.raises(ValueError, match="unknown code_context 'all'; known: exact, published"):
        generate_images(model, processor, ["a dog"], code_context="all")
