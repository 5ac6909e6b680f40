"""Pretrained language models as backbones, with their text tokenizers and room for the tokens of images."""

from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from io import StringIO
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from mllm import Mllm
from mllm.folders import loading
from mllm.shipped import PACKAGES, backbone_file
from mllm.text.templates import TEMPLATES


class Pretrained(NamedTuple):
    """A causal language model in float32, and its text tokenizer with the tokens that `template` (a key of TEMPLATES)
    needs."""

    model: PreTrainedModel
    text_tokenizer: PreTrainedTokenizerBase
    template: str


def load_pretrained(name: str) -> Pretrained:
    """Load one of `PACKAGES`, a folder of Hugging Face weights, or a hub id. Raises ValueError, in one line, when there
    is none, and for a text tokenizer without an end-of-text token."""
    source = {"pretrained_model_name_or_path": name}
    if name in PACKAGES:
        file = backbone_file(name)
        source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    with loading(name), redirect_stderr(StringIO()):  # transformers' bars over the tensors of a GGUF file
        text_tokenizer = AutoTokenizer.from_pretrained(**source)
        model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    template = "chatml" if "<|im_start|>" in text_tokenizer.get_vocab() else "mllm"
    if template == "mllm" and None in (text_tokenizer.bos_token_id, text_tokenizer.eos_token_id):
        raise ValueError(f"model.backbone {name}: its text tokenizer has no tokens for begin and end of text")
    known = text_tokenizer.get_vocab()
    new = [piece for piece in TEMPLATES[template].needs if piece not in known]
    text_tokenizer.add_tokens(new, special_tokens=True)
    return Pretrained(model, text_tokenizer, template)


def text_config(pretrained: Pretrained) -> dict:
    """The config of a backbone that takes over these weights: as many rows as the text tokenizer now needs, and an
    output layer of its own."""
    config = pretrained.model.config.to_dict()
    config.pop("quantization_config", None)  # of the file; what is loaded is no longer quantized
    rows = max(len(pretrained.text_tokenizer), config["vocab_size"])
    return {**config, "vocab_size": rows, "tie_word_embeddings": False}


@torch.no_grad()
def copy_weights(model: Mllm, pretrained: Pretrained, meanings: Mapping[int, Sequence[int]]) -> None:
    """Copy backbone and output layer. Embeddings of new tokens are sampled to be like the others', with a fixed seed.
    Their output rows are the mean of the others'. New ids with `meanings`, which are ids of words, begin near these:
    both rows are their means, with half as much of the sample, so that no two begin alike."""
    source = pretrained.model
    inputs, outputs = source.get_input_embeddings().weight, source.get_output_embeddings().weight
    first, rows = len(inputs), model.lm_head.out_features
    draws = inputs.std(0) * torch.randn(rows - first, inputs.shape[1], generator=torch.Generator().manual_seed(0))
    state = source.base_model.state_dict()
    name = next(name for name, tensor in state.items() if tensor.data_ptr() == inputs.data_ptr())
    state[name] = torch.cat([inputs, inputs.mean(0) + draws])
    model.backbone.load_state_dict(state)
    model.lm_head.weight.copy_(torch.cat([outputs, outputs.mean(0).expand(rows - first, -1)]))
    for new, words in meanings.items():
        if new >= first:
            model.get_input_embeddings().weight[new] = inputs[words].mean(0) + draws[new - first] / 2
            model.lm_head.weight[new] = outputs[words].mean(0)
