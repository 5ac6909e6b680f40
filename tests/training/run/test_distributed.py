"""Two ranks with half of the samples each compute what one process computes with all of them."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from training.image_tokenizer.discriminator import adaptive_weight
from training.image_tokenizer.losses import contrastive_loss
from training.run.distributed import gather_features

WORKER = """
import sys
import torch
import torch.distributed as dist
from tests.training.run.test_distributed import losses_and_gradients
from training.run.distributed import start_ranks, stop_ranks
rank, world = start_ranks(torch.device("cpu"))
torch.save(losses_and_gradients(rank, world), f"{sys.argv[1]}/{rank}.pt")
stop_ranks()
"""


def losses_and_gradients(rank: int, world: int) -> dict[str, torch.Tensor]:
    """Of linear towers and a temperature; gradients are sums over ranks of what each rank's loss / world gives."""
    generator = torch.Generator().manual_seed(0)
    images, texts, towers = (torch.randn(8, 5, generator=generator) for _ in range(3))
    ids = torch.tensor([[1], [2], [3], [1], [4], [5], [2], [6]])  # equal captions on different ranks
    rows = slice(8 // world * rank, 8 // world * (rank + 1))
    towers, scale = towers[:5].clone().requires_grad_(), torch.tensor(3.0, requires_grad=True)
    own = {"image": images[rows] @ towers, "text": texts[rows] @ towers.T}
    image, text = gather_features(own["image"]), gather_features(own["text"])
    loss = contrastive_loss(image, text, scale, gather_features(ids[rows]))
    weight = adaptive_weight(own["image"].pow(2).mean(), own["text"].pow(3).mean(), towers)
    (loss / world).backward()
    for parameter in (towers, scale):
        if world > 1:
            torch.distributed.all_reduce(parameter.grad)
    return {"loss": loss.detach(), "towers": towers.grad, "scale": scale.grad, "weight": weight}


def test_two_ranks_are_one_process(tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    command += [str(tmp_path / "worker.py"), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    expected = losses_and_gradients(0, 1)
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt", weights_only=True), expected)
