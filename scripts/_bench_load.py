"""How long loading a model takes and how much memory, in a process of its own: its peak would hide in another's."""

import json
import subprocess
import sys
import time
from pathlib import Path
from resource import getpagesize


def measure_load(model: str) -> dict[str, float]:
    """`seconds` of loading model and processor after imports, `peak_gb` of memory that it adds, `weights_gb`, and
    `read_seconds` of only reading the same files, afterwards."""
    run = subprocess.run([sys.executable, "-m", __name__, model], capture_output=True, text=True, check=False)
    if run.returncode:
        raise ValueError((run.stderr.strip() or f"loading {model} ended with status {run.returncode}").splitlines()[-1])
    return json.loads(run.stdout)


def main(name: str) -> None:
    import torch
    from safetensors.torch import load_file

    from mllm import Mllm, Processor  # noqa: F401 - their imports are no part of loading
    from mllm.folders import find_model
    from scripts._load import load_model
    from training.metrics import peak_memory

    before, start = resident_gb(), time.perf_counter()
    model, _ = load_model(name)
    seconds, peak = time.perf_counter() - start, peak_memory(torch.device("cpu")) / 2**30 - before
    weights = sum(x.numel() * x.element_size() for x in (*model.parameters(), *model.buffers())) / 2**30
    start = time.perf_counter()
    for file in Path(find_model(name)).glob("*.safetensors"):
        for tensor in load_file(file).values():
            tensor.sum()  # files are mapped, and read when they are used
    told = {"seconds": seconds, "peak_gb": peak, "weights_gb": weights, "read_seconds": time.perf_counter() - start}
    print(json.dumps(told))


def resident_gb() -> float:
    """What it holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * getpagesize() / 2**30


if __name__ == "__main__":
    main(sys.argv[1])
