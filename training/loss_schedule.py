"""How the weights of the adversarial training change over a run; all functions of the iteration, in iterations."""

import math


def warmup_cosine(iteration: int, warmup: int, end: int, final: float) -> float:
    """Factor on a learning rate: linear from 0 to 1, then a cosine to `final` in the last of `end` iterations."""
    if iteration < warmup:
        return iteration / warmup
    progress = min(1.0, (iteration - warmup) / max(1, end - warmup - 1))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def discriminator_lr(iteration: int, start: int, warmup: int, end: int, final: float) -> float:
    """`warmup_cosine` on the discriminator's own clock, which begins at `start`; 0 before."""
    return warmup_cosine(iteration - start, warmup, end - start, final) if iteration >= start else 0.0


def ramp(iteration: int, start: int, length: int) -> float:
    """From 0, until `start`, to 1 at `start + length`: the weight of the adversarial term, and 1 - it that of the blur
    before the discriminator."""
    return min(1.0, max(0.0, (iteration - start) / length)) if length else float(iteration >= start)
