"""Models that behave in one way."""

import pytest
import torch


@pytest.fixture
def talkative(make_tiny_model):
    """A model that never ends an answer."""
    model, processor = make_tiny_model()
    silenced = torch.tensor([processor.eos_id, processor.boi_id])
    model.lm_head.register_forward_hook(lambda _, __, logits: logits.index_fill(-1, silenced, -100.0))
    return model, processor
