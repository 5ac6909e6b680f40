"""The loops of the reference implementation (github FoundationVision/UniTok, commit bb8012e), on our weights."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from transformers import DynamicCache, LlamaConfig, LlamaModel

from mllm import Mllm
from mllm.codes import DepthHead, Pick
from mllm.config import CACHE
from tokenizer import ImageTokenizer

GUIDANCE = 5.0
SAMPLING = {"temperature": 0.9, "top_k": 2048, "top_p": 0.96}  # as GUIDANCE, the defaults of the reference's script


def reference_encode(image_tokenizer: ImageTokenizer, pixels_N3HW: torch.Tensor) -> torch.Tensor:
    """-> codes_NLK: one sub-codebook after the other, each normalised at every call."""
    encoder, codebooks_KVq = image_tokenizer.encoder, image_tokenizer.quantizer.codebooks_KVq
    x_NLC = encoder.patch_embed["backbone"](pixels_N3HW).flatten(2).transpose(1, 2)
    slices = image_tokenizer.quant_proj(encoder.norm(encoder.blocks(x_NLC))).chunk(len(codebooks_KVq), -1)
    codes = [
        (F.normalize(z_NLq, dim=-1) @ F.normalize(codebook_Vq, dim=-1).T).argmax(-1)
        for z_NLq, codebook_Vq in zip(slices, codebooks_KVq, strict=True)
    ]
    return torch.stack(codes, -1)


def reference_decode(image_tokenizer: ImageTokenizer, codes_NLK: torch.Tensor) -> Iterator[torch.Tensor]:
    """-> pixels_13HW of one image after the other."""
    grid = image_tokenizer.config.grid
    for codes_LK in codes_NLK:
        codebooks_KVq = image_tokenizer.quantizer.codebooks_KVq
        parts = [F.normalize(codebook_Vq, dim=-1)[codes_LK[:, k]] for k, codebook_Vq in enumerate(codebooks_KVq)]
        yield image_tokenizer.decoder(image_tokenizer.post_quant_proj(torch.cat(parts, -1)[None]), (grid, grid))


def reference_body(head: DepthHead) -> LlamaModel:
    """The layers of the code head as the reference has them: transformers' own, no matrices joined."""
    first = head.layers[0]
    config = LlamaConfig(
        vocab_size=3,  # unused; as few as its config takes
        hidden_size=first.out.in_features,
        intermediate_size=first.down.in_features,
        num_hidden_layers=len(head.layers),
        num_attention_heads=first.heads,
        rms_norm_eps=head.norm.eps,
        rope_parameters={"rope_type": "default", "rope_theta": head.rope_theta},
    )
    body = LlamaModel(config).eval()
    weights = {"embed_tokens.weight": body.embed_tokens.weight, "norm.weight": head.norm.weight}
    for number, layer in enumerate(head.layers):
        parts = {
            "input_layernorm": layer.norm1.weight,
            "post_attention_layernorm": layer.norm2.weight,
            "self_attn.o_proj": layer.out.weight,
            "mlp.down_proj": layer.down.weight,
            **dict(zip([f"self_attn.{name}_proj" for name in "qkv"], layer.qkv.weight.chunk(3), strict=True)),
            **dict(zip(["mlp.gate_proj", "mlp.up_proj"], layer.gate_up.weight.chunk(2), strict=True)),
        }
        weights |= {f"layers.{number}.{name}.weight": weight for name, weight in parts.items()}
    body.load_state_dict(weights)
    return body.to(first.out.weight)


def reference_position(head: DepthHead, body: LlamaModel, h_BD: torch.Tensor, pick: Pick) -> torch.Tensor:
    """-> codes_BK. Nothing is kept between sub-codes: the layers run on 1, 2, ... K inputs."""
    inputs, codes = [head.enter(h_BD)], []
    for k in range(head.num_codebooks):
        x_BkW = body(inputs_embeds=torch.stack(inputs, 1), use_cache=False).last_hidden_state
        codes.append(pick(head.outputs[k % len(head.outputs)](x_BkW[:, -1]), k))
        if k < len(head.tables):
            inputs.append(head.tables[k](codes[-1]))
    return torch.stack(codes, 1)


def reference_draw(
    model: Mllm, body: LlamaModel, ids_BT: torch.Tensor, mask_BT: torch.Tensor, positions: int, pick: Pick
) -> torch.Tensor:
    """-> codes_BLK after left-padded prompts, with a dynamic cache and a mask that grows.

    Codes are embedded knowing those before them, as in training; the published loop forgets them, which costs as much.
    """
    cache, embedded, codes = DynamicCache(config=model.config.text_config), {}, []
    x_BTD = model.get_input_embeddings()(ids_BT)
    for _ in range(positions):
        places_BT = (mask_BT.cumsum(1) - 1).clamp_min(0)[:, -x_BTD.shape[1] :]
        state = {"attention_mask": mask_BT, "position_ids": places_BT, CACHE: cache, "use_cache": True}
        h_BD = model.backbone(inputs_embeds=x_BTD, **state).last_hidden_state[:, -1]
        codes.append(reference_position(model.code_head, body, h_BD, pick))
        x_BTD = model.code_embed(codes[-1][:, None], embedded)
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(mask_BT), 1)], 1)
    return torch.stack(codes, 1)


def reference_pick(temperature: float, top_k: int, top_p: float) -> Pick:
    """Guidance, temperature, top-k, top-p by sorting the whole vocabulary, and a draw."""

    def pick(logits_BV: torch.Tensor, k: int) -> torch.Tensor:
        logits_BV = guided(logits_BV) / temperature
        lowest = logits_BV.topk(min(top_k, logits_BV.shape[-1])).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < lowest, float("-inf"))
        ordered, order = logits_BV.sort(descending=True)
        outside = ordered.softmax(-1).cumsum(-1) > top_p
        outside = outside.roll(1, -1).index_fill(-1, outside.new_zeros(1, dtype=torch.long), False)
        logits_BV = logits_BV.masked_fill(outside.scatter(-1, order, outside), float("-inf"))
        return torch.multinomial(logits_BV.softmax(-1), 1)[:, 0].repeat(2)

    return pick


def guided(logits_BV: torch.Tensor) -> torch.Tensor:
    cond, uncond = logits_BV.chunk(2)
    return uncond + GUIDANCE * (cond - uncond)
