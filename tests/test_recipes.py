"""Every recipe in the repository loads, and a mistake in one is refused by name."""

import json
import math
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from mllm.orders import ORDERS
from tokenizer.quantizers import make_quantizer
from training.image_tokenizer.train import model_config_of
from training.run.recipe import AblationConfig, RlConfig, TokenizerTrainConfig, TrainConfig, load_config
from training.run.values import ALLOWED, Interval

ROOT = Path(__file__).parents[1]
RECIPES = sorted(
    str(path.relative_to(ROOT))
    for folder in ("training/stages", "data_recipes")
    for path in (ROOT / folder).rglob("*.yaml")
    if path.name not in ("ablation.yaml", "sweep.yaml", "tokenizers.yaml", "orders.yaml")
)


def load(recipe: str, *overrides: str) -> TokenizerTrainConfig | TrainConfig:
    """The recipe as the class that its file name stands for."""
    name = Path(recipe).name
    kind = TokenizerTrainConfig if name.startswith(("tokenizer", "decoder")) else TrainConfig
    kind = RlConfig if name.startswith("rl_") else kind
    return load_config(kind, ROOT / recipe, overrides)


def test_there_are_recipes():
    assert RECIPES


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_begins_with_its_purpose(recipe):
    assert re.match(r"# \w+( \S+){3,}\n", (ROOT / recipe).read_text()), f"{recipe}: no sentence on purpose"


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_loads(recipe):
    config = load(recipe)
    assert config.run.name
    assert config.run.steps > 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_overrides_win(recipe):
    config = load(recipe, "run.name=other", "run.steps=7", "optim.lr=5e-5")
    assert (config.run.name, config.run.steps, config.optim.lr) == ("other", 7, 5e-5)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("run.stepz=7", "stepz"),
        ("optimizer.lr=1", "optimizer"),
        ("run.steps=many", "many"),
    ],
)
def test_mistakes_are_refused_by_name(recipe, override, named):
    with pytest.raises(ValueError, match=named) as error:
        load(recipe, override)
    assert len(str(error.value).splitlines()) == 1


def test_an_unknown_key_in_the_file_is_refused(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("run: {name: try, steps: 1, batch: 2}\n")
    with pytest.raises(ValueError, match="batch"):
        load_config(TrainConfig, file)


def test_a_value_without_default_has_to_be_given(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("run: {name: try}\n")
    with pytest.raises(ValueError, match="steps"):
        load_config(TrainConfig, file)


def test_a_recipe_that_is_not_yaml_is_named_in_one_line(tmp_path):
    (tmp_path / "broken.yaml").write_text("run: {name: x\nsteps: [")
    with pytest.raises(ValueError, match="recipe .*broken.yaml") as error:
        load_config(TrainConfig, tmp_path / "broken.yaml")
    assert "\n" not in str(error.value)


def test_every_variant_of_the_sweep_is_a_recipe():
    sweep = load_config(AblationConfig, ROOT / "data_recipes" / "sweep.yaml")
    assert len(sweep.variants) >= 8 and load(sweep.language).data.sources
    for changes in sweep.variants.values():
        model_config_of(load(sweep.base, *changes))


def test_every_variant_of_image_tokenizers_says_as_many_bits():
    table = load_config(AblationConfig, ROOT / "data_recipes" / "tokenizers.yaml")
    assert len(table.variants) >= 20 and load(table.language).data.sources
    for name, changes in table.variants.items():
        sizes = model_config_of(load(table.base, *changes))
        make_quantizer(sizes)
        bits = sizes.num_positions * sizes.num_codebooks * math.log2(sizes.codebook_size)
        assert 1023.5 < bits <= 1024, name


def test_every_order_of_a_grid_is_a_variant_of_the_table_of_orders():
    table = load_config(AblationConfig, ROOT / "data_recipes" / "orders.yaml")
    orders = [load(table.base, *changes).model.order or "raster" for changes in table.variants.values()]
    assert orders == [name for name in ORDERS if name != "scales"] and len(table.seeds) == 2


def test_the_variants_of_the_ablation_have_as_many_entries():
    ablation = load_config(AblationConfig, ROOT / "data_recipes" / "ablation.yaml")
    assert len(ablation.seeds) >= 2
    for changes in ablation.variants.values():
        model = load_config(TokenizerTrainConfig, ROOT / ablation.base, changes).model
        assert model["num_codebooks"] * model["codebook_size"] == 2048


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("run.accumulate=0", "run.accumulate: 0 is below 1"),
        ("run.keep=0", "run.keep: 0 is below 1"),
        ("run.steps=-5", "run.steps: -5 is below 1"),
        ("data.scale=0", "data.scale: 0.0 is outside"),
        ("ema=1", "ema: 1.0 is outside"),
        ("ema=nan", "ema: nan is outside"),
        ("optim.lr=-1", "optim.lr: -1.0 is not above 0"),
        ("optim.lr=inf", "optim.lr: inf is outside"),
        ("optim.betas=[0.9,1]", "optim.betas: 1.0 is outside"),
        ("adversarial.optim.lr=-1", "adversarial.optim.lr: -1.0 is not above 0"),
        ("optim.lr_by_prefix={encoder: -1}", "optim.lr_by_prefix.encoder: -1.0 is below 0"),
        ("losses.decoded=0", "losses.decoded: 0 is below 1"),
        ("quantizer.k_means_at=-1", "quantizer.k_means_at: -1 is outside"),
        ("losses.l2=-1", "losses.l2: -1.0 is below 0"),
        ("quantizer.entropy_every=-1", "quantizer.entropy_every: -1 is outside"),
        ("quantizer.entropy_every=often", "recipe, quantizer: Value 'often'"),
        ("quantizer.pertubed=0.1", "recipe, quantizer: Key 'pertubed' not in 'MultiCodebookOptions'"),
        ("model.quantizer=fqs", "unknown quantizer 'fqs'; known: multi_codebook"),
        ("size=large", "recipe, size: unknown 'large'; known: unitok-large"),
        ("run.seed=99999999999", "run.seed: 99999999999 is outside"),
        ("run.threads=5000", "run.threads: 5000 is outside"),
        ("run.precision=fp16", "run.precision: fp16 is unknown; known: bf16, fp32"),
        ("adversarial.criterion=higne", "adversarial.criterion: higne is unknown; known: hinge"),
        ("optim.lr", "'optim.lr' is no change to the recipe: write KEY=VALUE"),
        ("optim.muon=encoder", "recipe, optim.muon=encoder: "),
    ],
)
def test_numbers_that_make_no_run_are_refused(override, named):
    with pytest.raises(ValueError, match=named):
        load("training/stages/tokenizer.yaml", override)


def test_codes_of_meaning_need_a_loss_of_meaning():
    with pytest.raises(ValueError, match="recipe, model.pixel_codebooks: nothing teaches the other codes"):
        load("training/stages/tokenizer.yaml", "model.pixel_codebooks=4", "losses.contrastive=0")


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("code_weight=0", "code_weight: 0.0 is not above 0"),
        ("model.lora={alpha: 0}", "model.lora.alpha: 0.0 is not above 0"),
        ("model.tune={l1: -1}", "model.tune.l1: -1.0 is below 0"),
        ("data.sources.scenes.weight=-1", "data.sources.scenes.weight: -1.0 is below 0"),
        ("data.sources.scenes.scenes.chats=2", "data.sources.scenes.scenes.chats: 2.0 is outside"),
        ("deepspeed.stage=4", "deepspeed.stage: 4 is outside"),
        ("run.global_batch_size=0", "run.global_batch_size: 0 is below 1"),
    ],
)
def test_numbers_of_the_language_model_have_the_whole_key(override, named):
    with pytest.raises(ValueError, match=f"^recipe, {re.escape(named)}"):
        load("training/stages/mixed.yaml", override)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("group=1", "group: 1 is below 2"),
        ("temperature=0", "temperature: 0.0 is below 0.001"),
        ("grpo.clip=1", "grpo.clip: 1.0 is outside"),
        ("rewards.rules.weight=-1", "rewards.rules.weight: -1.0 is below 0"),
        ("rewards.rules.weight=0", "rewards: none has a weight"),
        ("model.init_from=null", "model.init_from: say which model"),
        ("model.tune={l1: 1}", "model: tune and words do not go with"),
        ("draw.scenes=null", "draw: give prompts"),
        ("draw.file=prompts.txt", "draw: give one of scenes, file and shards"),
        ("questions.scenes=null", "questions: give scenes or shards"),
    ],
)
def test_what_makes_no_reinforcement_learning_is_refused(override, named):
    with pytest.raises(ValueError, match=f"^recipe, {re.escape(named)}"):
        load("training/stages/rl_grpo.yaml", override)


def test_every_number_of_every_recipe_has_a_range():
    seen: set[type] = set()

    def look(kind: type) -> None:
        seen.add(kind)
        hints = get_type_hints(kind)
        for field in fields(kind):
            inner = {hints[field.name], *flat(hints[field.name])}
            if inner & {int, float}:
                assert isinstance(field.metadata.get(ALLOWED), Interval), f"{kind.__name__}.{field.name}"
            for one in inner:
                if is_dataclass(one) and one not in seen:
                    look(one)

    def flat(hint):
        for one in get_args(hint):
            yield one
            yield from flat(one)

    for kind in (TrainConfig, TokenizerTrainConfig, AblationConfig, RlConfig):
        look(kind)
    assert len(seen) > 15


def test_a_source_can_be_added_on_the_command_line():
    """As README has it."""
    config = load("training/stages/mixed.yaml", "data.sources.chats={weight: 1, shards: ['codes/chats/*.tar']}")
    assert config.data.sources["chats"].shards == ["codes/chats/*.tar"]
    assert set(config.data.sources) == {"scenes", "chats"}


def test_what_goes_on_with_scenes_keeps_its_layouts():
    """A model that plans its drawings, and is trained on drawings without plans, forgets to."""
    plans = json.loads((ROOT / "checkpoints" / "scenes" / "config.json").read_text())["plan_length"] > 0
    recipes = [load(recipe) for recipe in RECIPES if not Path(recipe).name.startswith(("tokenizer", "decoder"))]
    going_on = [config for config in recipes if config.model.init_from == "scenes"]
    assert going_on
    assert all(source.scenes.layouts == plans for config in going_on for source in config.data.sources.values())
