"""The rules of GenEval as a reward: what a scene shows fulfils what its prompt asks for, and each clause counts."""

from data_recipes.scenes.world import GENEVAL, World, expressible, geneval_prompt, geneval_record
from eval.geneval.rules import judge, load_records
from eval.scenes import reward
from eval.scenes.detector import Detector
from training.rl.drawings import Group
from training.rl.prompts import Prompt
from training.run.recipe import RewardConfig

WORLD = World()


def seen(scene) -> list[dict]:
    return [{"cls": t.name, "box": list(t.box), "score": 0.99, "color": t.color or "none"} for t in scene.things]


def test_a_scene_fulfils_its_own_record_and_not_that_of_others():
    scenes = [WORLD.scene(seed) for seed in range(200)]
    records = [geneval_record(scene) for scene in scenes]
    assert {record["tag"] for record in records} == {scene.skill for scene in scenes} and len(scenes) == 200
    for scene, record in zip(scenes, records, strict=True):
        assert judge(record, seen(scene)) == (True, "") and record["prompt"] == geneval_prompt(scene)
    others = [judge(record, seen(scene))[0] for scene, record in zip(scenes[1:], records, strict=False)]
    assert sum(others) < 5


def test_a_record_is_written_as_genevals():
    for record in [record for record in load_records(GENEVAL) if expressible(record)][::7]:
        assert geneval_record(WORLD.scene_of(record, 0)) == record


def test_the_reward_is_the_share_of_clauses(tiny_model):
    model, processor = tiny_model
    scene = next(s for s in map(WORLD.scene, range(100)) if s.skill == "color_attr")
    judged = reward.rules(RewardConfig(), model, processor)
    whole, half = WORLD.render(scene), WORLD.render(type(scene)(scene.skill, scene.things[:1], scene.background))
    group = Group(Prompt("", geneval_record(scene)), [None, None], [whole, half])
    assert judged(group) == [1.0, 0.5] and isinstance(Detector.from_pretrained(reward.SHIPPED), Detector)
