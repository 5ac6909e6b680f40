"""What the multi-codebook quantizer promises beside what every quantizer does."""

import pytest
import torch

from tokenizer.quantizers.multi_codebook import CodebookUpkeep, MultiCodebookOptions, MultiCodebookQuantizer, k_means


def _revival(after: int) -> CodebookUpkeep:
    """For one process."""
    quantizer = MultiCodebookQuantizer(4, 2, 16)
    return quantizer.upkeep(MultiCodebookOptions(revive_after=after), lambda tensor: tensor, lambda tensor: tensor)


def test_codes_survive_a_round_trip():
    torch.manual_seed(0)
    quantizer = MultiCodebookQuantizer(8, num_codebooks=2, codebook_size=16)
    codes_NLK = torch.randint(0, 16, (3, 5, 2))
    assert torch.equal(quantizer.encode(quantizer.decode(codes_NLK)), codes_NLK)


def test_quantized_features_are_the_decoded_codes_and_gradient_passes_straight_through():
    torch.manual_seed(0)
    quantizer = MultiCodebookQuantizer(8, num_codebooks=2, codebook_size=16)
    features_NLQ = torch.randn(3, 5, 8, requires_grad=True)
    quantized = quantizer(features_NLQ, MultiCodebookOptions(entropy_every=1))
    assert torch.equal(quantized.codes_NLK, quantizer.encode(features_NLQ))
    torch.testing.assert_close(quantized.features_NLQ, quantizer.decode(quantized.codes_NLK))
    (gradient,) = torch.autograd.grad(
        quantized.features_NLQ.square().sum() + quantized.features_NLQ.sum(), features_NLQ
    )
    assert gradient.abs().sum() > 0


def test_codes_outside_the_codebook_are_refused():
    quantizer = MultiCodebookQuantizer(8, num_codebooks=2, codebook_size=16)
    with pytest.raises(ValueError, match=r"reach from 16 to 16; the codebook has 0..15"):
        quantizer.decode(torch.full((1, 1, 2), 16))
    with pytest.raises(ValueError, match="3 sub-codebooks"):
        quantizer.decode(torch.zeros(1, 1, 3, dtype=torch.long))


def test_the_entropy_loss_prefers_used_entries():
    quantizer = MultiCodebookQuantizer(8, num_codebooks=2, codebook_size=16)
    every_entry = quantizer.entries().detach().transpose(0, 1).reshape(1, 16, 8)
    one_entry = every_entry[:, :1].expand(1, 16, 8)
    options = MultiCodebookOptions(entropy_every=1)
    assert quantizer(every_entry, options).entropy_loss < quantizer(one_entry, options).entropy_loss


def test_only_chosen_entries_get_a_gradient_unless_asked_for_all():
    torch.manual_seed(0)
    quantizer, features_NLQ = MultiCodebookQuantizer(8, 2, 16), torch.randn(1, 3, 8, requires_grad=True)
    reached = []
    for temperature in (0.0, 0.1):
        quantizer.zero_grad()
        quantizer(features_NLQ, MultiCodebookOptions(index_temperature=temperature)).features_NLQ.pow(
            3
        ).sum().backward()
        reached.append(0 if quantizer.codebooks_KVq.grad is None else (quantizer.codebooks_KVq.grad != 0).any(-1).sum())
    assert reached == [0, 32]


@pytest.mark.parametrize("temperature", [0.0, 0.1])
def test_quantized_features_are_those_of_the_codes(temperature):
    torch.manual_seed(0)
    quantizer, features_NLQ = MultiCodebookQuantizer(8, 2, 16), torch.randn(2, 3, 8)
    quantized = quantizer(features_NLQ, MultiCodebookOptions(index_temperature=temperature))
    torch.testing.assert_close(quantized.features_NLQ, quantizer.decode(quantized.codes_NLK))


def test_without_a_share_nothing_is_perturbed_or_drawn():
    torch.manual_seed(0)
    quantizer, features_NLQ = MultiCodebookQuantizer(8, 2, 16), torch.randn(2, 3, 8)
    state = torch.get_rng_state()
    plain, off = quantizer(features_NLQ), quantizer(features_NLQ, MultiCodebookOptions(perturbed=0.0, nearest=3))
    assert torch.equal(off.features_NLQ, plain.features_NLQ) and torch.equal(torch.get_rng_state(), state)


def test_perturbed_codes_are_near_ones():
    torch.manual_seed(0)
    quantizer, codes_NLK = MultiCodebookQuantizer(8, 2, 16), torch.randint(16, (2, 500, 2))
    moved_NLK = quantizer.perturb(codes_NLK, torch.tensor([0.0, 0.5]), quantizer.neighbours(3))
    assert torch.equal(moved_NLK[0], codes_NLK[0]), "an image has a share of its own"
    changed_LK = moved_NLK[1] != codes_NLK[1]
    assert changed_LK.float().mean().item() == pytest.approx(0.5, abs=0.04)
    for k, entries in enumerate(quantizer.entries()):
        pairs = zip(codes_NLK[1, changed_LK[:, k], k].tolist(), moved_NLK[1, changed_LK[:, k], k].tolist(), strict=True)
        order = (entries @ entries.T).argsort(descending=True).tolist()
        assert {order[code].index(other) for code, other in pairs} == {1, 2, 3}, "the nearest is the entry itself"
    with pytest.raises(ValueError, match="quantizer.nearest: 16 other entries, but a sub-codebook has 16"):
        quantizer.neighbours(16)


def test_what_is_decoded_is_perturbed_and_codes_still_name_the_image():
    torch.manual_seed(0)
    quantizer, features_NLQ = MultiCodebookQuantizer(8, 2, 16), torch.randn(200, 20, 8)
    exact, moved = quantizer(features_NLQ), quantizer(features_NLQ, MultiCodebookOptions(perturbed=0.8, nearest=4))
    assert torch.equal(moved.codes_NLK, exact.codes_NLK)
    changed = (moved.features_NLQ - exact.features_NLQ).unflatten(-1, (2, 4)).abs().amax(-1) > 1e-5
    shares_N = changed.float().mean((1, 2))  # uniform between 0 and 0.8
    assert shares_N.mean().item() == pytest.approx(0.4, abs=0.05) and shares_N.std().item() > 0.2
    assert shares_N.min() < 0.1 and 0.6 < shares_N.max() < 1


def test_perturbation_fades():
    options = MultiCodebookOptions(perturbed=0.4, perturbed_final=0.5)
    assert [options.at(step, 5).perturbed for step in range(5)] == pytest.approx([0.4, 0.35, 0.3, 0.25, 0.2])
    assert options.at(0, 1) == options


@pytest.mark.parametrize(
    "change", [{"perturbed": 1.5}, {"perturbed": -0.1}, {"perturbed_final": 2.0}, {"nearest": 0}], ids=str
)
def test_perturbation_that_makes_no_sense_is_refused(change):
    [(name, value)] = change.items()
    with pytest.raises(ValueError, match=rf"quantizer.{name}: {value} is"):
        MultiCodebookOptions(**change)


def test_dead_entries_move_onto_features_and_living_ones_stay():
    torch.manual_seed(0)
    revival = _revival(after=3)
    quantizer = revival.quantizer
    before = quantizer.codebooks_KVq.detach().clone()
    quantized = quantizer(torch.randn(1, 5, 4))
    steps = [(revival.add(quantized), revival.step(update)["revived"])[1] for update in range(1, 4)]
    assert steps[:2] == [0, 0]
    moved = steps[2]
    after = quantizer.codebooks_KVq.detach()
    same_KV = (after == before).all(-1)
    for k in range(2):
        used = quantized.codes_NLK[0, :, k].unique()
        assert set(same_KV[k].nonzero().flatten().tolist()) == set(used.tolist())
        distances = torch.cdist(after[k][~same_KV[k]], quantized.slices_KMq[k])
        assert distances.amin(1).max() < 1e-6
    assert moved == int((~same_KV).sum()) > 0


def test_an_entry_that_any_micro_batch_used_is_alive():
    torch.manual_seed(0)
    whole, parts = (_revival(after=1) for _ in range(2))
    parts.quantizer.load_state_dict(whole.quantizer.state_dict())
    features_NLQ = torch.randn(2, 5, 4)
    moved = []
    for revival, sizes in ((whole, [2]), (parts, [1, 1])):
        for micro_batch_NLQ in features_NLQ.split(sizes):
            revival.add(revival.quantizer(micro_batch_NLQ))
        torch.manual_seed(1)
        moved.append(revival.step(1)["revived"])
    assert moved[0] == moved[1] > 0
    assert torch.equal(whole.quantizer.codebooks_KVq, parts.quantizer.codebooks_KVq)


def test_codebooks_move_to_the_centres_of_features_once_and_the_distance_falls():
    torch.manual_seed(0)
    quantizer = MultiCodebookQuantizer(4, 2, 16)
    upkeep = quantizer.upkeep(MultiCodebookOptions(k_means_at=2), lambda tensor: tensor, lambda tensor: tensor)
    features_NLQ, losses = torch.randn(4, 100, 4), []
    for update in range(1, 4):
        quantized = quantizer(features_NLQ)
        losses.append(quantized.loss.item())
        upkeep.add(quantized)
        upkeep.step(update)
    assert losses[1] == losses[0] > 2 * losses[2]
    assert torch.equal(quantizer(features_NLQ).codes_NLK, quantizer.encode(features_NLQ))


def test_centres_are_the_means_of_what_is_nearest_to_them():
    torch.manual_seed(0)
    places_KVq = torch.tensor([[[-9.0, 0.0], [9.0, 0.0]], [[0.0, -9.0], [0.0, 9.0]]])
    points_KMq = (places_KVq[:, :, None] + torch.randn(2, 2, 50, 2)).flatten(1, 2)
    centres_KVq = k_means(points_KMq, 2)
    order_KVq = centres_KVq.sum(-1).argsort(1)[..., None].expand_as(centres_KVq)
    torch.testing.assert_close(centres_KVq.gather(1, order_KVq), points_KMq.unflatten(1, (2, 50)).mean(2))


def test_k_means_begins_at_other_points_where_there_are_enough():
    points_KMq = torch.randn(2, 12, 3)
    for points, found in zip(points_KMq, k_means(points_KMq, 12), strict=True):
        assert torch.equal(points.unique(dim=0), found.unique(dim=0)), "as many centres as points: each is one"
    assert k_means(points_KMq[:, :5], 12).isfinite().all()
