"""Shards of messages read as training would read them: what is wrong with them, and what is in them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mllm import Mllm, Processor
from mllm.text.templates import Sample

from .mixture import ImageForm, MessageShards


@dataclass
class Totals:
    """Over good samples."""

    lengths: list[int] = field(default_factory=list)
    answers: int = 0
    images_read: int = 0
    images_drawn: int = 0
    text_targets: int = 0

    def add(self, sample: Sample, processor: Processor) -> None:
        targets = [label for label in sample.labels if label >= 0]
        self.lengths.append(len(sample.ids))
        self.answers += targets.count(processor.eos_id)
        self.images_drawn += sum(sample.is_target)
        self.images_read += len(sample.images) - sum(sample.is_target)
        self.text_targets += len(targets)

    def report(self, num_positions: int) -> str:
        tokens, codes = sum(self.lengths), self.images_drawn * num_positions
        rows = {
            "samples": f"{len(self.lengths):,}",
            "answers": f"{self.answers:,}",
            "images": f"{self.images_read:,} to read, {self.images_drawn:,} to draw",
            "tokens": f"{tokens:,}, mean {tokens / len(self.lengths):.0f}, longest {max(self.lengths):,}",
            "with loss": f"{self.text_targets / tokens:.1%} as text, {codes / tokens:.1%} as image positions",
        }
        lines = "\n".join(f"{name:<12} {value}" for name, value in rows.items())
        return f"{lines}\n\ntokens of a sample\n{histogram(self.lengths)}"


def histogram(lengths: Sequence[int], bars: int = 10, width: int = 40) -> str:
    """Counts of lengths as lines of text."""
    step = -(-(max(lengths) + 1) // bars)
    counts = [0] * bars
    for length in lengths:
        counts[length // step] += 1
    return "\n".join(
        f"{place * step:>7} to {(place + 1) * step - 1:<7} {'#' * -(-count * width // max(counts)):{width}} {count}"
        for place, count in enumerate(counts)
    )


@dataclass
class Findings:
    """`shown`: some of the good samples, with their names."""

    totals: Totals
    problems: list[str]
    shown: list[tuple[str, Sample]]


def open_source(shards: Sequence[str], model: Mllm, processor: Processor, max_length: int | None) -> MessageShards:
    """As training opens them; `max_length` None: what the model can read. Raises ValueError for shards that are not
    there."""
    form = ImageForm(model.image_tokenizer, processor.preparation)
    return MessageShards(list(shards), processor, form, max_length or model.config.text_config.max_position_embeddings)


def validate(source: MessageShards, processor: Processor, indices: Iterable[int], preview: int) -> Findings:
    """Read the samples of these `indices`, and keep about `preview` of them to show."""
    found = Findings(Totals(), list(source.damages), [])
    every = max(1, len(source.shards) // max(1, preview))
    for index in indices:
        try:
            sample = source.read(index)
        except ValueError as error:
            found.problems.append(str(error))
            continue
        found.totals.add(sample, processor)
        if len(found.totals.lengths) % every == 0 and len(found.shown) < preview:
            found.shown.append((source.shards.name(index), sample))
    return found
