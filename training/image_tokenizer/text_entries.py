"""Codebooks that begin from text: each entry near words that a language model treats alike (SweetTokenizer, arXiv
2412.10443).

Shapes: T tokens of text, D channels of their embeddings, Q channels of a position.
"""

import json
from pathlib import Path

import torch
from huggingface_hub import snapshot_download

from mllm.folders import find_model, lazy_tensors, loading
from tokenizer.quantizers import Quantizer
from tokenizer.quantizers.multi_codebook import MultiCodebookQuantizer

EMBEDDINGS = "embed_tokens.weight"  # what Llama's relatives call them
MOST = 8192  # tokens that are looked at, drawn at random


@torch.no_grad()
def begin_from_text(quantizer: Quantizer, name: str) -> None:
    """Entries become the centres of text embeddings of the language model `name` (a folder, a shipped model, or a hub
    id), by their Q principal components, each of variance 1. Raises ValueError where the kind of quantizer has no
    entries of its own, and where fewer embeddings are looked at than there are entries, or have fewer channels than Q.
    """
    if not isinstance(quantizer, MultiCodebookQuantizer):
        raise ValueError("recipe, init_entries: this kind of quantizer learns no entries that could begin from text")
    embeddings_TD = _embeddings(name)
    embeddings_TD = embeddings_TD[torch.randperm(len(embeddings_TD))[:MOST]]
    width = quantizer.slice_width * (1 if quantizer.summed else quantizer.num_codebooks)
    if len(embeddings_TD) < quantizer.codebook_size or embeddings_TD.shape[1] < width:
        raise ValueError(
            f"recipe, init_entries: {name} gives {' x '.join(map(str, embeddings_TD.shape))} text embeddings, fewer "
            f"than codebook_size {quantizer.codebook_size} x code_width {width} (at most {MOST} are looked at)"
        )
    centred_TD = embeddings_TD - embeddings_TD.mean(0)
    _, axes_DD = torch.linalg.eigh(centred_TD.T @ centred_TD)
    components_TQ = centred_TD @ axes_DD[:, -width:]
    components_TQ /= components_TQ.std(0).clamp(min=1e-6)
    slices_KTq, _ = quantizer.choose(quantizer.bound(components_TQ[None]))
    quantizer.codebooks_KVq.copy_(quantizer.centres(slices_KTq))


def _embeddings(name: str) -> torch.Tensor:
    folder = Path(find_model(name))
    with loading(folder):
        if not folder.is_dir():
            folder = _download(str(folder))
        tensors = lazy_tensors([str(file) for file in sorted(folder.glob("*.safetensors"))]) or {}
    found = [tensor for key, tensor in tensors.items() if key.endswith(EMBEDDINGS)]
    if not found:
        raise ValueError(f"recipe, init_entries: {name} has no text embeddings ({EMBEDDINGS} in safetensors)")
    return found[0][:].float()


def _download(hub_id: str) -> Path:
    """-> a folder with the safetensors file that holds the embeddings, or with all of them where no index tells which
    it is."""
    folder = Path(snapshot_download(hub_id, allow_patterns=["*.safetensors.index.json"]))
    maps = [json.loads(index.read_text())["weight_map"] for index in folder.glob("*.safetensors.index.json")]
    files = {file for files in maps for key, file in files.items() if key.endswith(EMBEDDINGS)}
    return Path(snapshot_download(hub_id, allow_patterns=sorted(files) or ["*.safetensors"]))
