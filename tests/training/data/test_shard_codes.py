"""Codes in shards are the codes that training from the images would see, whatever the template does to images."""

import numpy as np
import pytest
import torch
from PIL import Image

from data_recipes.shards import Shards
from mllm import Processor
from tests.golden_data import llama_tokenizer
from tests.shard_files import IMAGE, png, talk, text, write_shard
from training.data.mixture import ImageForm, MessageShards
from training.data.shard_codes import ShardEncoder


@pytest.mark.parametrize("template", ["mllm", "unitok"])
def test_samples_from_codes_are_those_from_images(tiny_model, tmp_path, template):
    model, processor = tiny_model
    if template == "unitok":  # it pads what a user shows to a square, and crops what is drawn
        processor = Processor(llama_tokenizer(tmp_path), 4, 32, template="unitok")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 120, 3), dtype=np.uint8))
    sample = talk([IMAGE, text("which?")], [IMAGE], png(picture), png(picture))
    images = write_shard(tmp_path / "images.tar", {"a": sample})
    encoder = ShardEncoder(model.image_tokenizer, processor)
    codes = write_shard(tmp_path / "codes.tar", dict(encoder.samples(Shards(images), 0)))
    form = ImageForm(model.image_tokenizer, template)
    samples = [MessageShards([shard], processor, form, max_length=400).read(0) for shard in (images, codes)]
    seen, stored = (processor.collate([sample], model.image_tokenizer) for sample in samples)
    assert torch.equal(seen.codes, stored.codes) and torch.equal(seen.input_ids, stored.input_ids)
    assert torch.equal(seen.codes[0], seen.codes[1]) == (template == "mllm")


def test_codes_that_16_bits_cannot_hold_are_refused(tiny_model, monkeypatch):
    image_tokenizer = tiny_model[0].image_tokenizer
    monkeypatch.setattr(image_tokenizer.config, "codebook_size", 2**17)
    with pytest.raises(ValueError, match="131072 codebook entries; codes are stored in 16 bits"):
        ShardEncoder(image_tokenizer)
