"""One conversation with a model, in which it sees, answers and draws."""

from collections.abc import Callable, Iterator
from typing import Any

from PIL import Image

from ..decode.options import DrawingOptions, Sampling
from ..decode.run import generate_images, generate_text
from ..model import MllmForConditionalGeneration
from .processor import MllmProcessor


class ChatSession:
    """`images` wait for the next message. Each answer and each drawing has a seed of its own, from `seed` on."""

    def __init__(
        self,
        model: MllmForConditionalGeneration,
        processor: MllmProcessor,
        writing: Sampling,
        drawing: DrawingOptions,
        max_new_tokens: int,
        seed: int = 0,
    ):
        self.model, self.processor = model, processor
        self.writing, self.drawing, self.max_new_tokens, self.seed = writing, drawing, max_new_tokens, seed
        self.drawings = 0
        self.clear()

    def clear(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.images: list[Image.Image] = []

    def ask(self, text: str) -> Iterator[str | Image.Image]:
        """The answer as it comes. A question that fails leaves no trace. Raises ValueError for an empty one, and where
        the conversation has become too long."""
        if not text.strip():
            raise ValueError("empty prompt: ask something")
        shown = [{"type": "image", "image": image} for image in self.images]
        question = {"role": "user", "content": [*shown, {"type": "text", "text": text.strip()}]}
        answer: list[dict[str, Any]] = []
        pieces = generate_text(
            self.model,
            self.processor,
            [*self.messages, question],
            max_new_tokens=self.max_new_tokens,
            temperature=self.writing.temperature,
            top_p=self.writing.top_p,
            seed=self.seed + len(self.messages) // 2,
            drawing=self.drawing,
        )
        for piece in pieces:
            add_piece(answer, piece)
            self.drawings += not isinstance(piece, str)
            yield piece
        self.messages += [question, {"role": "assistant", "content": answer}]
        self.images = []

    def draw(self, prompt: str, progress: Callable[[int], None]) -> Image.Image:
        """The next message can be about the drawing. `progress` hears how many positions are done."""
        [image] = generate_images(
            self.model,
            self.processor,
            [prompt],
            seeds=[self.seed + self.drawings],
            progress=progress,
            **vars(self.drawing),
        )
        self.images.append(image)
        self.drawings += 1
        return image


def add_piece(answer: list[dict[str, Any]], piece: str | Image.Image) -> None:
    """Append to the content of a message; text in a row is one part, or it would be cut into other ids."""
    if not isinstance(piece, str):
        answer.append({"type": "image", "image": piece})
    elif answer and answer[-1]["type"] == "text":
        answer[-1]["text"] += piece
    else:
        answer.append({"type": "text", "text": piece})
