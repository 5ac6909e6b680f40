"""The image tokenizer's training loop: captioned images in, an ImageTokenizer out.

Shapes: N images of this rank's batch, of which the first ones are decoded.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from data_recipes.images import SCENES, open_images
from mllm.device import send, sync_is_free
from mllm.folders import load_image_tokenizer
from tokenizer import SIZES, ImageTokenizer, ImageTokenizerConfig
from tokenizer.image_tokenizer import TrainingOutput
from tokenizer.psnr import psnr
from tokenizer.quantizers import code_use, count_codes
from tokenizer.transform import to_images, to_pixels

from ..run.checkpoint import latest_checkpoint, load_state, save_checkpoint
from ..run.device import allocator_lines, autocast, pick_device, short_attention
from ..run.distributed import (
    barrier,
    from_rank_zero,
    rank_and_world,
    start_ranks,
    stop_ranks,
    sum_gradients,
    sum_over_ranks,
    world_size,
)
from ..run.folder import only_run
from ..run.metrics import Metrics, Problems, Rate, StopSignal, due
from ..run.optim import freeze, load_optimizer_state, make_optimizer, optimizer_state, schedule, set_lr, trained
from ..run.recipe import AdversarialConfig, TokenizerTrainConfig
from .clip_weights import load_clip
from .data import ImageBatch, TrainingImages, image_loader
from .discriminator import (
    DinoDiscriminator,
    PatchDiscriminator,
    adaptive_weight,
    discriminator_terms,
    generator_loss,
    ramp,
)
from .losses import perceptual_network, tokenizer_losses
from .text_entries import begin_from_text

MAX_LOGIT_SCALE = math.log(100)  # CLIP's bound on the learned temperature
QUANTIZER_FIELDS = ("quantizer", "quantizer_args", "num_codebooks", "codebook_size")
STRIP = 8  # images in the pictures of a run


def model_config_of(config: TokenizerTrainConfig) -> ImageTokenizerConfig:
    """The named size with the recipe's overrides."""
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SIZES[config.size]), config.model))
    except (OmegaConfBaseException, ValueError) as error:
        raise ValueError(f"recipe, model: {' '.join(str(error).split())}") from error


def build_image_tokenizer(config: TokenizerTrainConfig) -> ImageTokenizer:
    """A new one, the one at `init_from`, or with the encoder at `init_clip` and entries by `init_entries`. Raises
    ValueError when these have other sizes than the recipe."""
    model = ImageTokenizer(model_config_of(config))
    if config.init_from:
        _take_over(model, config.init_from)
    if config.init_clip:
        load_clip(model, config.init_clip)
    if config.init_entries:
        begin_from_text(model.quantizer, config.init_entries)
    return model


def _take_over(model: ImageTokenizer, name: str) -> None:
    """All weights of the image tokenizer `name`; all but those of the quantizer if that is of another kind."""
    before = load_image_tokenizer(name)
    sizes, pixel_width = before.config, before.config.pixel_width
    if sizes.quantizer != model.config.quantizer:
        before.quantizer = model.quantizer
        try:
            sizes = replace(sizes, **{field: getattr(model.config, field) for field in QUANTIZER_FIELDS})
        except ValueError as error:
            raise ValueError(f"recipe, init_from: {name} does not go with this quantizer: {error}") from error
    if sizes != model.config or pixel_width != model.config.pixel_width:
        raise ValueError(f"recipe, init_from: {name} has other sizes than `size` and `model` say")
    model.load_state_dict(before.state_dict())


def build_discriminator(config: AdversarialConfig, generator: torch.Generator) -> nn.Module | None:
    """As the recipe says; None without an adversarial loss. `generator` chooses its crops."""
    if not config.weight:
        return None
    return DinoDiscriminator(config.dino, generator) if config.dino else PatchDiscriminator()


def train_tokenizer(config: TokenizerTrainConfig) -> Path:
    """Train, or resume, a recipe's run; `run.batch_size` images on each rank. Returns the last checkpoint's model."""
    device = pick_device(config.run)
    _, world = start_ranks(device)
    config.run.divide(world)
    with only_run(config) as checkpoint:
        run_updates(config, device, checkpoint)
        barrier()
    stop_ranks()
    return latest_checkpoint(config.run.path) / "model"


def run_updates(config: TokenizerTrainConfig, device: torch.device, checkpoint: Path | None) -> None:
    """From the checkpoint, or the beginning, to the last step or a stop signal."""
    rank, world = rank_and_world()
    torch.manual_seed(config.run.seed)
    learner = Learner(config, device, checkpoint)
    step, seen = learner.restore(checkpoint) if checkpoint else (0, 0)
    data = TrainingImages(config, learner.model.config)
    batches = iter(image_loader(data, rank, world, seen, config.run.steps - step))
    metrics = Metrics(config, step) if rank == 0 else None
    problems, clock = Problems(config.data.max_bad), Rate()
    if rank == 0:
        for note in [*data.images.notes, *allocator_lines(device)]:
            print(note, flush=True)
        problems.add(data.images.damages)
        fixed_N3HW = first_pixels(data)

    def save(folder: Path) -> None:
        learner.evaluated.save_pretrained(folder)
        data.text_tokenizer.save_pretrained(folder)  # what its text tower reads

    with StopSignal() as stop:
        while step < config.run.steps:
            micro_batches = [next(batches) for _ in range(config.run.accumulate)]
            for batch in micro_batches:
                problems.add(batch.problems, batch.complete)
            report = learner.update(step, rank, micro_batches)
            step, seen = step + 1, seen + world * config.run.batch_size * config.run.accumulate
            stopping = stop.anywhere()
            if due(step, config.run.log_every, config.run.steps):
                values = report()
                if metrics:
                    metrics.log(step, {**values, "images_per_s": clock.rate(seen)})
            if rank == 0 and (due(step, config.run.save_every, config.run.steps) or stopping):
                learner.check_finite()
                state = {**learner.state_dict(), "seen": seen}
                save_checkpoint(config.run.path, step, save, state, config.run.keep)
                metrics.picture(step, "reconstructions", learner.reconstructions(fixed_N3HW))
            if stopping:
                break
    if metrics:
        metrics.close()


class Learner:
    """All that an update changes: the image tokenizer and its average, the discriminator, and their optimizers.

    Everything drawn in an update depends on (seed, step, rank) alone, so a checkpoint holds no generator's state.
    """

    def __init__(self, config: TokenizerTrainConfig, device: torch.device, checkpoint: Path | None = None):
        """What `init_from` and its like name is not read for a checkpoint, which is to be restored."""
        self.config, self.device = config, device
        model = ImageTokenizer(model_config_of(config)) if checkpoint else build_image_tokenizer(config)
        if config.run.checkpointing:
            model.checkpoint_blocks()
        self.model = model.to(device, memory_format=torch.channels_last).train()
        freeze(self.model, config.trainable)
        self.optimizer = make_optimizer(self.model.named_parameters(), config.optim)
        self.average = deepcopy(self.model) if config.ema else None
        self.generator = torch.Generator()
        self.discriminator = build_discriminator(config.adversarial, self.generator)
        if self.discriminator:
            self.discriminator.to(device)
            parameters, options = self.discriminator.named_parameters(), config.adversarial.optim
            self.discriminator_optimizer = make_optimizer(parameters, options, "adversarial.optim")
        self.start = deepcopy(self.model.encoder).requires_grad_(False).eval() if config.losses.layers else None
        network = perceptual_network(config.losses)
        self.network = network.to(device) if network else None
        self.options = config.quantizer_options()
        self.upkeep = self.model.quantizer.upkeep(self.options, sum_over_ranks, from_rank_zero)
        sizes = self.model.config
        self.counts_KV = torch.zeros(sizes.num_codebooks, sizes.codebook_size, device=device)  # since a report
        self.steps, self.finite = 0, torch.ones((), dtype=torch.bool, device=device)

    @property
    def evaluated(self) -> ImageTokenizer:
        """The weights to save and to look at."""
        return self.average or self.model

    def state_dict(self) -> dict:
        """What a checkpoint holds beside `evaluated`."""
        state = {"optimizer": optimizer_state(self.optimizer, trained(self.model))}
        if self.average:
            state["weights"] = self.model.state_dict()
        if self.discriminator:
            state["discriminator"] = self.discriminator.state_dict()
            state["discriminator_optimizer"] = optimizer_state(
                self.discriminator_optimizer, trained(self.discriminator)
            )
        if self.upkeep:
            state["quantizer"] = self.upkeep.state_dict()
        if self.start:
            state["start"] = self.start.state_dict()
        return state

    def restore(self, checkpoint: Path) -> tuple[int, int]:
        """-> steps done, images seen."""
        state = load_state(checkpoint)
        self.evaluated.load_state_dict(ImageTokenizer.from_pretrained(checkpoint / "model").state_dict())
        load_optimizer_state(self.optimizer, trained(self.model), state["optimizer"])
        if self.average:
            self.model.load_state_dict(state["weights"])
        if self.discriminator:
            self.discriminator.load_state_dict(state["discriminator"])
            before = state["discriminator_optimizer"]
            load_optimizer_state(self.discriminator_optimizer, trained(self.discriminator), before)
        if self.upkeep:
            self.upkeep.load_state_dict(state["quantizer"])
        if self.start:
            self.start.load_state_dict(state["start"])
        return state["step"], state["seen"]

    def update(self, step: int, rank: int, micro_batches: Sequence[ImageBatch]) -> Callable[[], dict[str, float]]:
        """One step of image tokenizer and discriminator; `step` counts from 0. Returns a function that computes the
        numbers of this step, since most are not logged; all ranks must call it. Raises ValueError for a loss that is
        not finite, before anything is changed; on a GPU, which would be waited for, the returned function does."""
        config, self.steps = self.config, step + 1
        torch.manual_seed((config.run.seed * 1_000_003 + step) * 1009 + rank)
        self.generator.manual_seed(int(torch.randint(2**62, ())))
        lr = set_lr(self.optimizer, schedule(step, config.run.steps, config.optim))
        self.optimizer.zero_grad()
        sums: dict[str, torch.Tensor] = {}
        pairs = []
        for batch in micro_batches:
            pixels_N3HW, ids_NT = send(batch.pixels_N3HW, self.device), send(batch.ids_NT, self.device)
            terms, output = self._backward(step, pixels_N3HW, ids_NT, 1 / len(micro_batches))
            _add(sums, terms)
            self.counts_KV += count_codes(output.quantized.codes_NLK, self.counts_KV.shape[1])
            if self.upkeep:
                self.upkeep.add(output.quantized)
            pairs.append((pixels_N3HW[: len(output.pixels_N3HW)], output.pixels_N3HW.detach()))
        grad_norm = self._apply(self.optimizer, self.model, config.optim.clip)
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
        kept = self.upkeep.step(self.steps) if self.upkeep else {}
        if self.average:
            self._update_average()
        _add(sums, self._train_discriminator(step, pairs))

        def report() -> dict[str, float]:
            self.check_finite()
            sums["psnr"] = sum(_psnr(*pair) for pair in pairs)
            shares = sum_over_ranks(torch.stack([value.detach().float().cpu() for value in sums.values()]))
            means = (shares / (world_size() * len(micro_batches))).tolist()
            values = {**dict(zip(sums, means, strict=True)), "grad_norm": grad_norm.item(), **lr}
            use = code_use(sum_over_ranks(self.counts_KV))
            self.counts_KV.zero_()
            each = {f"{name}/{k}": value for name, of in use.items() for k, value in enumerate(of)}
            upkeep = {name: value.item() for name, value in kept.items()}
            return {**values, **upkeep, **{name: fmean(of) for name, of in use.items()}, **each}

        return report

    @torch.no_grad()
    def _update_average(self) -> None:
        """It begins with the weights of the first update. torch's AveragedModel would wait for a GPU in each one."""
        mine, theirs = [*self.average.parameters()], [*self.model.parameters()]
        if self.steps == 1:
            self.average.load_state_dict(self.model.state_dict())
        else:
            get_ema_multi_avg_fn(self.config.ema)(mine, theirs, None)
        for one, other in zip(self.average.buffers(), self.model.buffers(), strict=True):
            one.copy_(other)

    def check_finite(self) -> None:
        """Raises ValueError if a loss or a gradient was not finite."""
        if not self.finite:
            raise ValueError(f"the loss or its gradient is not finite by step {self.steps}: lower optim.lr")

    def _check(self, what: str, value: torch.Tensor) -> None:
        """Raises ValueError for one that is not finite, before the update; on a GPU, `check_finite` does later."""
        self.finite = self.finite & value.detach().isfinite()
        if sync_is_free(self.device) and not self.finite:
            raise ValueError(
                f"the {what} is {value.item()} at step {self.steps}; stopped before the update: lower optim.lr"
            )

    def _backward(
        self, step: int, pixels_N3HW: torch.Tensor, ids_NT: torch.Tensor, share: float
    ) -> tuple[dict[str, torch.Tensor], TrainingOutput]:
        """-> terms, output. Leaves gradients of `share` of the loss."""
        config, adversarial = self.config, self.config.adversarial
        with autocast(config.run, self.device), short_attention(self.device):
            options = self.options.at(step, config.run.steps)
            output = self.model(pixels_N3HW, ids_NT, options, config.losses.decoded, self.start is not None)
            scale = self.model.logit_scale.exp()
            terms = tokenizer_losses(output, pixels_N3HW, ids_NT, scale, config.losses, self.network, self.start)
            if self.discriminator and step >= adversarial.start:
                terms["adversarial"] = generator_loss(
                    self.discriminator, output.pixels_N3HW, self.generator, adversarial.criterion, self._blur(step)
                )
        loss = terms["loss"]
        if "adversarial" in terms:
            pull = adaptive_weight(terms["reconstruction"], terms["adversarial"], self.model.decoder.last_weight)
            strength = adversarial.weight * ramp(step, adversarial.start, adversarial.ramp) * pull
            loss, terms["adversarial_weight"] = loss + strength * terms["adversarial"], strength
        self._check("loss", loss)
        (loss * share / world_size()).backward()
        return {**terms, "loss": loss}, output

    def _train_discriminator(
        self, step: int, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        """`pairs` of real and decoded pixels. -> terms."""
        adversarial, run = self.config.adversarial, self.config.run
        sums: dict[str, torch.Tensor] = {}
        if not self.discriminator or step < adversarial.start:
            return sums
        progress = schedule(step - adversarial.start, run.steps - adversarial.start, adversarial.optim)
        set_lr(self.discriminator_optimizer, progress)
        self.discriminator_optimizer.zero_grad()
        for real_N3HW, fake_N3HW in pairs:
            with autocast(run, self.device):
                terms = discriminator_terms(
                    self.discriminator,
                    real_N3HW,
                    fake_N3HW.float(),
                    self.generator,
                    adversarial.criterion,
                    self._blur(step),
                    adversarial.consistency > 0,
                )
            loss = terms.adversarial + adversarial.consistency * terms.consistency
            (loss / len(pairs) / world_size()).backward()
            _add(sums, {f"discriminator_{name}": value for name, value in terms._asdict().items()})
        self._apply(self.discriminator_optimizer, self.discriminator, adversarial.optim.clip)
        return sums

    def _blur(self, step: int) -> float:
        adversarial = self.config.adversarial
        return 1 - ramp(step, adversarial.start, adversarial.blur)

    def _apply(self, optimizer, network: nn.Module, clip: float) -> torch.Tensor:
        """Sum gradients over ranks, clip, step; -> the norm before clipping."""
        parameters = [*trained(network).values()]
        sum_gradients(parameters)
        grad_norm = nn.utils.clip_grad_norm_(parameters, clip)
        self._check("gradient", grad_norm)
        optimizer.step()
        return grad_norm

    @torch.no_grad()
    def reconstructions(self, pixels_N3HW: torch.Tensor) -> Image.Image:
        """The images side by side, and below them what the image tokenizer makes of them."""
        model, training = self.evaluated, self.evaluated.training
        model.eval()
        decoded_N3HW = model.decode_pixels(model.encode(pixels_N3HW)).cpu()
        model.train(training)
        rows = [torch.cat(list(row), -1) for row in (pixels_N3HW, decoded_N3HW)]
        return to_images(torch.cat(rows, -2)[None])[0]


def first_pixels(data: TrainingImages) -> torch.Tensor:
    """The first images that can be read, at most `STRIP`; of scenes, held-out ones. Raises ValueError without any."""
    config, images, found = data.config.data, data.images, []
    if config.images == SCENES:
        images = open_images(SCENES, config.artwork, "held_out", config.crop)
    for index in range(min(len(images), 10 * STRIP)):
        with suppress(ValueError):
            found.append(to_pixels(images[index].image, config.crop or data.model.image_size))
        if len(found) == STRIP:
            return torch.stack(found)
    if not found:
        raise ValueError(f"none of the first images of data.images {config.images} can be read")
    return torch.stack(found)


def _add(sums: dict[str, torch.Tensor], terms: dict[str, torch.Tensor]) -> None:
    for name, term in terms.items():
        sums[name] = sums.get(name, 0.0) + term.detach()


def _psnr(pixels_N3HW: torch.Tensor, decoded_N3HW: torch.Tensor) -> torch.Tensor:
    """Mean over images, in dB; pixels in [-1, 1]."""
    error = (decoded_N3HW.float().clamp(-1, 1) - pixels_N3HW).pow(2).flatten(1).mean(1)
    return psnr(error, 2).mean()
