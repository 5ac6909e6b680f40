"""Trains the sentencepiece text tokenizer of a small model from what its world says."""

import random
import tempfile
from pathlib import Path

from data_recipes.scenes.world import World, captions, questions
from mllm.text.ids import SPECIAL_TOKENS


def train_text_tokenizer(folder: Path, vocab_size: int = 768, scenes: int = 8000, seed: int = 0) -> None:
    """Write tokenizer.model (sentencepiece BPE, byte fallback: any text is encodable) and the transformers files."""
    import sentencepiece
    from transformers import LlamaTokenizer

    world, rng = World("shapes"), random.Random(seed)
    lines = [line for index in range(scenes) for line in _lines(world.scene(index), rng)]
    with tempfile.TemporaryDirectory() as scratch:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_prefix=f"{scratch}/tokenizer",
            vocab_size=vocab_size,
            model_type="bpe",
            byte_fallback=True,
            character_coverage=1.0,
            normalization_rule_name="identity",
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            control_symbols=list(SPECIAL_TOKENS),
            minloglevel=2,
        )
        text_tokenizer = LlamaTokenizer.from_pretrained(
            scratch, pad_token="<pad>", extra_special_tokens=list(SPECIAL_TOKENS)
        )
        text_tokenizer.save_pretrained(folder)
        (folder / "tokenizer.model").write_bytes(Path(scratch, "tokenizer.model").read_bytes())


def _lines(scene, rng: random.Random) -> list[str]:
    asked = questions(scene, rng)
    return captions(scene) + [question.text for question in asked] + [question.answer for question in asked]
