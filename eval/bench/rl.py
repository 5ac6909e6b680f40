"""A step of learning from drawings, beside one that draws with the passes of training: the same drawings, update and
rewards. Shapes: N drawings, L positions an image, K sub-codebooks."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from statistics import median
from tempfile import TemporaryDirectory

import torch

from mllm import Mllm, Processor
from mllm.decode.sampling import Picker
from mllm.text.templates import Sample
from training.rl.drawings import Group, draw_groups
from training.rl.methods import METHODS
from training.rl.policy import PolicyMllm
from training.rl.prompts import Prompt
from training.run.backends import TorchEngine
from training.run.optim import set_lr
from training.run.recipe import ModelConfig, PromptSourceConfig, RewardConfig, RlConfig, RunConfig, ScenesConfig

from . import Options
from .figures import Figure, seconds, spread
from .models import get_model

GROUP = 8


def bench_rl(options: Options, batch: int) -> list[Figure]:
    """`batch` prompts a step, 8 drawings each, without plans: their length is up to the weights."""
    loaded, processor = get_model(options.model, options.shape)
    model = PolicyMllm(deepcopy(loaded.config)).to(loaded.device)
    model.load_state_dict(loaded.state_dict())
    model.config.plan_length = 0
    model.image_tokenizer.requires_grad_(False)
    with TemporaryDirectory() as folder:
        config = RlConfig(
            run=RunConfig(name="bench", folder=folder, steps=1, precision="fp32"),
            model=ModelConfig(init_from=options.model or options.shape),
            draw=PromptSourceConfig(scenes=ScenesConfig()),
            rewards={"random": RewardConfig()},
            group=GROUP,
        )
        config.grpo.kl = 0.0
        engine = TorchEngine(model, config, loaded.device)
    set_lr(engine, 0.0)
    method, codebooks = METHODS["grpo"](config), model.config.image_tokenizer["num_codebooks"]
    prompts = [f"a photo of {row + 1} dogs" for row in range(batch)]
    asked = [(Prompt(text, {}), processor.encode_drawing(text)) for text in prompts]
    seeds = [range(row * GROUP, (row + 1) * GROUP) for row in range(batch)]

    def ours() -> list[Group]:
        return draw_groups(model.eval(), processor, asked, seeds, config.drawing)

    def plain() -> torch.Tensor:
        samples = [sample for _, sample in asked for _ in range(GROUP)]
        generators = [torch.Generator().manual_seed(seed) for of_prompt in seeds for seed in of_prompt]
        return draw_by_passes(model.eval(), processor, samples, Picker((), generators, codebooks))

    def update(groups: list[Group]) -> Callable[[], object]:
        for group in groups:
            group.rewards = torch.arange(GROUP, dtype=torch.double)
        model.train()
        return lambda: method.update(engine, processor, None, [groups])

    groups = ours()
    codes_NLK = torch.cat([group.codes for group in groups])
    same = (plain() == codes_NLK).flatten(1).all(1).float().mean().item()
    if same < 0.5:  # near ties may end otherwise, and all codes after them
        raise ValueError(f"not timed, as only {same:.0%} of the drawings are the same both ways")
    update(groups)()
    times = [(seconds(ours), seconds(plain), seconds(update(groups))) for _ in range(options.repeats)]
    drawing, passes, updating = (median(column) for column in zip(*times, strict=True))
    spreads, count = [spread([row[0] for row in times]), spread([row[1] for row in times])], batch * GROUP
    whole, others = drawing + updating, passes + updating
    share, share_of_passes, name = drawing / whole, passes / others, f"rl, batch {batch}"
    return [
        Figure(f"{name}, drawing alone", count / drawing, "drawings/s", count / passes, passes / drawing, *spreads),
        Figure(f"{name}, step", count / whole, "drawings/s", count / others, others / whole, *spreads),
        Figure(f"{name}, share of drawing", share, "of the step", share_of_passes, share_of_passes / share, 0.0, 0.0),
    ]


@torch.no_grad()
def draw_by_passes(model: Mllm, processor: Processor, samples: Sequence[Sample], pick: Picker) -> torch.Tensor:
    """codes_NLK by a pass of the whole model over all that is there, for each position, and one of the whole code head
    for each sub-code: as training computes them, without keys and values of earlier positions."""
    L, K = processor.num_positions, pick.num_codebooks
    codes_NLK = torch.zeros(len(samples), 0, K, dtype=torch.long, device=model.device)
    for place in range(L):
        rows = [deepcopy(sample) for sample in samples]
        for row in rows:
            row.add([processor.image_id] * place)
        ids_NT = processor.collate(rows).input_ids.to(model.device)
        # Padding is on the right, and every row is a prompt and `place` positions long.
        ends = torch.tensor([len(row.ids) - 1 for row in rows])
        embeds_NTD = model.embed(ids_NT, codes_NLK if place else None)
        h_NTD = model.run_layers(embeds_NTD, ids_NT, use_cache=False).last_hidden_state
        h_ND, codes_NK = h_NTD[torch.arange(len(rows)), ends], codes_NLK.new_zeros(len(rows), K)
        for k in range(K):
            codes_NK[:, k] = pick(model.code_head(h_ND, codes_NK)[:, k], k)
        codes_NLK = torch.cat([codes_NLK, codes_NK[:, None]], 1)
    return codes_NLK
