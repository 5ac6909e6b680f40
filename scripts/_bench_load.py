"""How long loading a model takes and how much memory, in a process of its own: its peak would hide in another's."""

import json
import subprocess
import sys
import time
from pathlib import Path
from resource import getpagesize
from typing import Any


def measure_load(folder: str, first: str, form: str) -> dict[str, float]:
    """`seconds` from the files in `folder` to all weights of model and processor in memory, `peak_gb` that this adds
    and `held_gb` of it at the end, `weights_gb` in that `form` ("float32", "bfloat16", or a kind of quantization), and
    `read_seconds` of only reading the files, afterwards. A small model, the `first` that is loaded, takes what comes
    once in a process, most of it pages of the libraries' programs: `once_gb`."""
    run = subprocess.run(
        [sys.executable, "-m", __name__, folder, first, form], capture_output=True, text=True, check=False
    )
    if run.returncode:
        told = run.stderr.strip() or f"loading {folder} ended with status {run.returncode}"
        raise ValueError(told.splitlines()[-1])
    return json.loads(run.stdout)


def main(folder: str, first: str, form: str) -> None:
    import torch
    from safetensors.torch import load_file

    from mllm import Mllm, Processor  # noqa: F401 - their imports are no part of loading
    from training.run.metrics import peak_memory

    start_gb = resident_gb()
    load(first, form)
    before, start = resident_gb(), time.perf_counter()
    model = load(folder, form)
    seconds, held = time.perf_counter() - start, resident_gb() - before
    peak = peak_memory(torch.device("cpu")) / 2**30 - before
    start = time.perf_counter()
    for file in Path(folder).glob("*.safetensors"):
        for tensor in load_file(file).values():
            tensor.sum()  # files are mapped, and read when they are used
    read, weights = time.perf_counter() - start, sum(x.nbytes for x in weights_of(model)) / 2**30
    told = {"seconds": seconds, "read_seconds": read, "weights_gb": weights}
    told |= {"peak_gb": peak, "held_gb": held, "once_gb": before - start_gb}
    print(json.dumps(told))


def load(folder: str, form: str) -> Any:
    """-> a model, of which each weight has been read."""
    from mllm import Mllm, Processor
    from mllm.fast.quantize import KINDS
    from scripts._load import load_model

    if form in KINDS:
        model, _ = load_model(folder, form)
    else:
        model, _ = Mllm.from_pretrained(folder, dtype=form), Processor.from_pretrained(folder)
    for weight in weights_of(model):
        weight.sum()
    return model


def weights_of(model: Any) -> list:
    return [*model.parameters(), *model.buffers()]


def resident_gb() -> float:
    """What it holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * getpagesize() / 2**30


if __name__ == "__main__":
    main(*sys.argv[1:])
