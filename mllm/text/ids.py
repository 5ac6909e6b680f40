"""Text ids: the special tokens of our models, those of plans, and the ids that the contrastive text tower reads."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

PAD, IMAGE, BEGIN_IMAGE, END_IMAGE, USER, ASSISTANT, UNCONDITIONAL = SPECIAL_TOKENS = (
    "<pad>",
    "<image>",
    "<boi>",
    "<eoi>",
    "<user>",
    "<assistant>",
    "<unconditional>",
)
PLAN = "<plan "  # with what every token of plans begins


def plan_token(word: str) -> str:
    """The special token that stands for a word of plans. It is no text: no text becomes it, and `decode` leaves it
    out."""
    return f"{PLAN}{word}>"


def text_ids(text_tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of plain text; words that look like special tokens stay words. Raises ValueError for text that is not valid
    Unicode, which a command line in another encoding can give."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"text with characters that are no Unicode, at position {error.start}: use UTF-8") from error
    return text_tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids


def contrastive_ids(
    text_tokenizer: PreTrainedTokenizerBase, texts: Sequence[str] | str, context: int, vocab_size: int
) -> torch.Tensor:
    """Texts -> ids_NT for `ImageTokenizer.text_features`: cut to `context`, the largest id at the end, zero-padded."""
    texts = [texts] if isinstance(texts, str) else texts
    ids_NT = torch.zeros(len(texts), context, dtype=torch.long)
    for row, text in zip(ids_NT, texts, strict=True):
        ids = text_ids(text_tokenizer, text)[: context - 1] + [vocab_size - 1]
        row[: len(ids)] = torch.tensor(ids)
    return ids_NT
