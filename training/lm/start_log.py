"""What a run of the language model prints before and after its first update, so that mistakes are seen early."""

import math
from collections.abc import Sequence

from mllm import Mllm
from mllm.text.templates import IGNORED, Sample

from ..data.mixture import Mixture, Source
from .sequences import preview_line
from .update import KINDS, Report

PREVIEWED = 2  # sequences
LOOKED_AT = 16  # samples of each source
FAR = 0.25  # from the loss of a uniform guess


def parameter_lines(model: Mllm, loaded: Sequence[str]) -> list[str]:
    """Which parts are loaded (by prefix) or new, trained or frozen, and how many numbers they have."""
    counts: dict[str, dict[str, int]] = {word: {} for word in ("loaded", "new", "trained", "frozen")}
    for name, p in model.named_parameters():
        part, size = name.partition(".")[0], getattr(p, "ds_numel", p.numel())
        origin = "loaded" if any(name.startswith(prefix) for prefix in loaded) else "new"
        for word in (origin, "trained" if p.requires_grad else "frozen"):
            counts[word][part] = counts[word].get(part, 0) + size
    return [
        f"parameters {word}: {', '.join(f'{part} {count:,}' for part, count in parts.items()) or 'none'}"
        for word, parts in counts.items()
    ]


def source_lines(mixture: Mixture) -> list[str]:
    """Of the first samples of each source: their kinds, and how many positions carry loss. Raises ValueError for a
    source without any loss."""
    lines = []
    for name, source in mixture.sources.items():
        found = [sample_or_none(source, number) for number in range(LOOKED_AT)]
        samples = [sample for sample in found if sample]
        kinds = [kind_of(sample) for sample in samples]
        tokens = sum(len(sample.ids) for sample in samples)
        text = sum(label != IGNORED for sample in samples for label in sample.labels)
        codes = sum(sum(sample.is_target) for sample in samples) * mixture.processor.num_positions
        if samples and not text + codes:
            raise ValueError(f"data.sources.{name}: nothing in its first {len(samples)} samples carries loss")
        shown = ", ".join(f"{kinds.count(kind)} {kind}" for kind in KINDS if kind in kinds)
        share = f"loss on {text / max(1, tokens):.0%} of positions as text, {codes / max(1, tokens):.0%} as image"
        lines.append(f"source {name}: {shown or 'no good sample'} among the first {len(samples)}; {share}")
    return lines


def sample_or_none(source: Source, number: int) -> Sample | None:
    """A sample, or None for a bad one, which is reported when training meets it."""
    try:
        return source.sample(number)
    except ValueError:
        return None


def kind_of(sample: Sample) -> str:
    """One of `KINDS`."""
    return KINDS[0] if any(sample.is_target) else KINDS[1] if sample.images else KINDS[2]


def preview_lines(mixture: Mixture) -> list[str]:
    """The first sequences of the run, what carries loss between « and »."""
    samples = [mixture.sample(position)[0] for position in range(PREVIEWED)]
    shown = [preview_line(mixture.processor, sample) for sample in samples if sample]
    return [f"sample {place}: {line}" for place, line in enumerate(shown)]


def first_loss_line(report: Report, before: Report | None, model: Mllm, loaded: Sequence[str]) -> str:
    """The first loss of this process beside the value that it should be near: the last loss `before`, or ln V, the loss
    of a uniform guess, if what predicts is new."""
    if before:
        return f"first loss after resuming {report['loss']:.4g}, the last one before {before['loss']:.4g}"
    sizes = {
        "text_loss": ("lm_head", model.config.text_config.vocab_size),
        "code_loss": ("code_head", model.config.image_tokenizer["codebook_size"]),
    }
    parts, far = [], False
    for name, (head, size) in sizes.items():
        if report[name]:
            parts.append(f"{name} {report[name]:.4g} (ln {size} = {math.log(size):.4g})")
            is_new = not head.startswith(tuple(loaded))
            far |= is_new and abs(report[name] / math.log(size) - 1) > FAR
    warning = "; WARNING: a new head should begin near ln V" if far else ""
    return f"first {', '.join(parts)}{warning}"
