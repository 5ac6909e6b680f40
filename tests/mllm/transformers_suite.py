"""transformers' own tests of models, configs and processors, on our classes with tiny sizes.

Not collected here: `test_transformers_suite.py` unpacks transformers' tests, and runs this file among them. Its source
distribution has no mixins for generation, export and pipelines: `test_transformers.py` asks for the same in our words.
"""

import tempfile
import unittest
from pathlib import Path

import torch
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, ids_tensor
from tests.test_processing_common import ProcessorTesterMixin
from transformers import AutoTokenizer

from mllm import Mllm, MllmConfig, MllmProcessor
from tokenizer import SIZES
from training.lm.text_tokenizer import train_text_tokenizer

B, T, L, IMAGE = 7, 12, 4, 5

# Tests that do not fit, each with its reason. Those that skip themselves say why.
NOT_APPLICABLE = {
    "ModelTest": {
        "test_cannot_load_with_meta_device_context_manager": "all that loading raises is a ValueError of one line",
        "test_correct_missing_keys": "a backbone's folder alone is refused: it has no image tokenizer's sizes",
        "test_generation_tester_mixin_inheritance": "the source distribution has no GenerationTesterMixin",
    },
    "ProcessorTest": {
        "test_apply_chat_template_assistant_mask": "there are no offsets: `encode` labels the ids of answers",
    },
}


class Sizes:
    """What the mixins read of a model, and its inputs: an image to draw in each row."""

    batch_size, seq_length, is_training = B, T, True
    num_hidden_layers, hidden_size, num_attention_heads, vocab_size = 2, 32, 2, 99

    def get_config(self) -> MllmConfig:
        text_config = {
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": 64,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
        }
        return MllmConfig(
            text_config=text_config,
            image_tokenizer=SIZES["tiny"].to_dict(),
            code_head_args={"layers": 1, "heads": 2},
            image_token_id=IMAGE,
            boi_token_id=6,
            eoi_token_id=7,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[MllmConfig, dict[str, torch.Tensor]]:
        ids_BT = ids_tensor([B, T], self.vocab_size - 20) + 10
        ids_BT[:, 3 : 3 + L] = IMAGE
        codes_NLK = ids_tensor([B, L, 2], 16)
        images = {"codes": codes_NLK, "is_target": torch.ones(B, dtype=torch.bool)}
        return self.get_config(), {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT), **images}


class ModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (Mllm,)
    additional_model_inputs = ["codes", "is_target"]
    test_all_params_have_gradient = False  # none for the image tokenizer: codes are given
    _is_composite = True

    def setUp(self):
        self.model_tester = Sizes()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class)
        return {**inputs, "labels": torch.zeros(B, T, dtype=torch.long)} if return_labels else inputs

    def test_config(self):
        sizes = {"plan_length": 3, "code_head": "parallel", "code_z_loss": 0.5}
        ConfigTester(self, config_class=MllmConfig, has_text_modality=False, **sizes).run_common_tests()


class ProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = MllmProcessor

    @classmethod
    def _setup_tokenizer(cls):
        with tempfile.TemporaryDirectory() as folder:
            train_text_tokenizer(Path(folder), vocab_size=768, scenes=300)
            return AutoTokenizer.from_pretrained(folder)


for kind in (ModelTest, ProcessorTest):
    for name, reason in NOT_APPLICABLE[kind.__name__].items():
        setattr(kind, name, unittest.skip(reason)(getattr(kind, name)))
