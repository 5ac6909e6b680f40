"""What tests of devices compute on one and then on another: samples, updates and drawings of tiny models."""

from collections.abc import Callable

import torch

from mllm import Mllm, Processor
from mllm.decode.batch import Batch
from mllm.decode.program import Chat, Drawing, Piece, Program
from mllm.decode.run import run
from mllm.text.processor import Batch as Inputs
from mllm.text.templates import Sample, join
from training.image_tokenizer.data import ImageBatch
from training.image_tokenizer.train import Learner
from training.lm.train import prepare
from training.lm.update import Report, train_step
from training.run.backends import TorchEngine
from training.run.recipe import (
    AdversarialConfig,
    OptimConfig,
    RunConfig,
    TokenizerLossConfig,
    TokenizerTrainConfig,
    TrainConfig,
    TuneConfig,
)

PROMPTS = ["a red dog", "two cats and a very long prompt about a bus", "a kite"]
TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


def random_codes(processor: Processor, seed: int) -> torch.Tensor:
    """Of the tiny model: V = 16, K = 2."""
    return torch.randint(16, (processor.num_positions, 2), generator=torch.Generator().manual_seed(seed))


def training_samples(processor: Processor, branches: bool = False, pixels: bool = False) -> list[Sample]:
    """Drawings, chats about images, and text. With `branches`, one is about an image in several ways at once."""
    side, generator = processor.image_size, torch.Generator().manual_seed(0)

    def image(seed: int) -> torch.Tensor:
        return torch.rand(3, side, side, generator=generator) * 2 - 1 if pixels else random_codes(processor, seed)

    def about(picture: torch.Tensor, question: str) -> Sample:
        asked = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
        talk = [{"role": "user", "content": asked}, {"role": "assistant", "content": f"it is {question}"}]
        return processor.encode(talk, open_answer=False)

    samples = [processor.encode_drawing(prompt, image(seed)) for seed, prompt in enumerate(PROMPTS)]
    samples += [about(image(5), "what?"), processor.encode(TALK, open_answer=False)]
    if branches:
        picture = image(6)
        samples.append(join([about(picture, "a dog?"), about(picture, "where is it, and why?")]))
    return samples


def training(
    model: Mllm,
    processor: Processor,
    device: torch.device,
    *,
    pack: int = 0,
    branches: bool = False,
    precision: str = "fp32",
    compile: bool = False,
    accumulate: int = 1,
    share: float = 1.0,
    muon: bool = False,
    tune: TuneConfig | None = None,
) -> tuple[TorchEngine, list[Inputs]]:
    """What an update takes. With `tune`, of a TunedMllm, which sees pixels."""
    run = RunConfig(name="test", steps=1000, precision=precision, compile=compile)
    config = TrainConfig(run=run, optim=OptimConfig(warmup=1, muon=["backbone.layers"] if muon else []))
    config.code_share, config.model.tune = share, tune
    config.model.trainable = ["backbone", "lm_head", "code_", *(["image_tokenizer"] if tune else [])]
    if tune:
        model.guard(tune)
    prepare(model, config, device)
    samples = training_samples(processor, branches, tune is not None)
    batches = [processor.collate(samples[part::accumulate], pack=pack, multiple=16) for part in range(accumulate)]
    return TorchEngine(model, config, device), batches


def launch(engine: TorchEngine, batches: list[Inputs], steps: int) -> list[Callable[[], Report]]:
    """The first updates: their reports, still to be read."""
    reports = []
    for step in range(steps):
        torch.manual_seed(step)
        reports.append(train_step(engine, batches, engine.config))
    return reports


def read(reports: list[Callable[[], Report]]) -> list[float]:
    """Loss and gradient norm of each."""
    return [value for report in reports for name, value in report().items() if name in ("loss", "grad_norm")]


def image_tokenizer_learner(device: torch.device, precision: str = "fp32", calm: bool = False) -> Learner:
    """One with all that an update can have; a `calm` one has nothing that comes from a device's own random numbers, or
    that makes much of small differences."""
    run = RunConfig(name="test", steps=1000, precision=precision)
    config = TokenizerTrainConfig(
        run=run,
        size="tiny",
        text_tokenizer="",
        quantizer={"entropy_every": 1, "perturbed": 0.0 if calm else 0.2, "revive_after": 0 if calm else 2},
        losses=TokenizerLossConfig(entropy=0.1, disentangle=0.1, perceptual=0.1, gram=0.1, decoded=3),
        adversarial=AdversarialConfig(weight=0.0 if calm else 0.1, blur=10),
        optim=OptimConfig(lr=1e-4 if calm else 1e-3, warmup=1, muon=["encoder.blocks"]),
        ema=0.9,
    )
    torch.manual_seed(0)
    return Learner(config, device)


def image_batch(learner: Learner) -> ImageBatch:
    sizes, generator = learner.model.config, torch.Generator().manual_seed(0)
    pixels_N3HW = torch.rand(4, 3, sizes.image_size, sizes.image_size, generator=generator) * 2 - 1
    ids_NT = torch.randint(1, sizes.text_vocab_size, (4, sizes.text_context), generator=generator)
    return ImageBatch(pixels_N3HW, ids_NT, [], True)


def programs(model: Mllm, processor: Processor, texts: int = 0, **options) -> list[tuple[Program, list[Piece]]]:
    """Drawings of `PROMPTS`, and so many chats, each with what it will have told."""
    requests = [Drawing(prompt, seed, **options) for seed, prompt in enumerate(PROMPTS)]
    requests += [Chat([{"role": "user", "content": f"say {row}"}], 8, drawing=None) for row in range(texts)]
    made = []
    for request in requests:
        told: list[Piece] = []
        made.append((Program(model, processor, request, told.append), told))
    return made


def codes_drawn(model: Mllm, processor: Processor, kernels: str = "auto", **options) -> torch.Tensor:
    """codes_NLK of `PROMPTS`."""
    made = programs(model, processor, **options)
    for _ in run(Batch(model, processor, kernels), [program for program, _ in made]):
        pass
    return torch.stack([program.tracks[0].result for program, _ in made])
