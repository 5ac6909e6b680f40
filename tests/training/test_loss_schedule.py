"""Schedules against the reference's numbers: one epoch of 10000 iterations, its discriminator from 0.375 of it on."""

import pytest
import torch

from tests.golden_data import golden
from training.loss_schedule import discriminator_lr, ramp, warmup_cosine

END, START = 10_000, 3750


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("unitok_lr_multiplier", lambda i: warmup_cosine(i, warmup=100, end=END, final=0.1)),
        ("disc_lr_multiplier", lambda i: discriminator_lr(i, START, warmup=300, end=END, final=0.1)),
        ("disc_weight_warmup", lambda i: ramp(i, START, 300)),
        ("blur_fade", lambda i: 1 - ramp(i, START, 600)),
    ],
)
def test_schedules_are_the_reference(name, factor):
    iterations = golden()["schedule/iters"].int().tolist()
    torch.testing.assert_close(torch.tensor([factor(i) for i in iterations]), golden()[f"schedule/{name}"])


def test_short_runs():
    """No warm-up, no ramp, a single step, and more steps than planned."""
    assert warmup_cosine(0, warmup=0, end=1, final=0.1) == 1
    assert [warmup_cosine(i, warmup=0, end=3, final=0.1) for i in (0, 2, 5)] == pytest.approx([1, 0.1, 0.1])
    assert [ramp(i, 4, 0) for i in (3, 4)] == [0, 1]
    assert [discriminator_lr(i, 4, 0, 8, 0.5) for i in (3, 4, 7)] == pytest.approx([0, 1, 0.5])
