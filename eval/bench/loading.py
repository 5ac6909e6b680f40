"""How long loading a model takes and how much memory, in a process of its own: its peak would hide in another's."""

import json
import sys
import time
from pathlib import Path
from resource import getpagesize
from statistics import median
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file

from mllm import Mllm, MllmConfig, Processor
from mllm.fast.quantize import KINDS
from mllm.folders import find_model
from tokenizer import SIZES
from training.run.metrics import peak_memory

from ..models import load_model
from . import Options
from .figures import Figure, last_line, spread
from .models import new_model


def bench_load(options: Options, batch: int) -> list[Figure]:
    form = options.form or "float32"
    with TemporaryDirectory() as scratch:
        first = stored(smallest(), Path(scratch) / "first")
        folder = find_model(options.model) if options.model else ""
        folder = folder or stored(new_model(options.shape), Path(scratch) / "new")
        runs = [measure_load(folder, first, form) for _ in range(options.repeats)]
    for run in runs:
        run["peak_once_gb"] = run["peak_gb"] + run["once_gb"]
    middle = {name: median(run[name] for run in runs) for name in runs[0]}
    spreads = {name: spread([run[name] for run in runs]) for name in runs[0]}
    return [
        Figure(name, middle[mine], unit, middle[least], middle[least] / middle[mine], spreads[mine], spreads[least])
        for name, mine, unit, least in [
            (f"load, {form}", "seconds", "s", "read_seconds"),
            (f"load, {form}, memory held", "held_gb", "GB", "weights_gb"),
            (f"load, {form}, peak memory", "peak_gb", "GB", "weights_gb"),
            (f"load, {form}, peak memory with the libraries'", "peak_once_gb", "GB", "weights_gb"),
        ]
    ]


def stored(parts: tuple[Mllm, Processor], folder: Path) -> str:
    """The folder, with a model as released ones are stored: all but the image tokenizer in bfloat16."""
    model, processor = parts
    for part in (model.config, processor):
        part.save_pretrained(folder)
    weights = model.state_dict()
    weights |= {name: x.bfloat16() for name, x in weights.items() if not name.startswith("image_tokenizer.")}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def smallest() -> tuple[Mllm, Processor]:
    """A model that is loaded for what comes with it."""
    processor = Processor(Processor.from_pretrained("scenes").tokenizer)
    text = {"vocab_size": len(processor.tokenizer), "hidden_size": 64, "intermediate_size": 64}
    text |= {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    sizes, head = SIZES["tiny"].to_dict(), {"layers": 1, "heads": 1}
    return Mllm(MllmConfig(text_config=text, image_tokenizer=sizes, code_head_args=head)), processor


def measure_load(folder: str, first: str, form: str) -> dict[str, float]:
    """`seconds` from the files in `folder` to all weights of model and processor in memory, `peak_gb` that this adds
    and `held_gb` of it at the end, `weights_gb` in that `form` ("float32", "bfloat16", or a kind of quantization), and
    `read_seconds` of only reading the files, afterwards. A small model, the `first` that is loaded, takes what comes
    once in a process, most of it pages of the libraries' programs: `once_gb`."""
    return json.loads(last_line([sys.executable, "-m", __name__, folder, first, form]))


def main(folder: str, first: str, form: str) -> None:
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


def load(folder: str, form: str) -> Mllm:
    """-> a model, of which each weight has been read."""
    if form in KINDS:
        model, _ = load_model(folder, form)
    else:
        model, _ = Mllm.from_pretrained(folder, dtype=form), Processor.from_pretrained(folder)
    for weight in weights_of(model):
        weight.sum()
    return model


def weights_of(model: Mllm) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def resident_gb() -> float:
    """What it holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * getpagesize() / 2**30


if __name__ == "__main__":
    main(*sys.argv[1:])
