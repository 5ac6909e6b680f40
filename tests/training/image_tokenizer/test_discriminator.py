"""Discriminators and DiffAugment: the reference's numbers, and what both sides of the training promise."""

import pytest
import torch
import torch.nn.functional as F

from tests.golden_data import dinov2_tensors, filled, golden, make_images
from training.image_tokenizer.diffaug import diff_augment, gaussian_blur
from training.image_tokenizer.discriminator import (
    CRITERIA,
    DinoDiscriminator,
    PatchDiscriminator,
    adaptive_weight,
    discriminator_terms,
    generator_loss,
)

ATOL = 1e-4


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def dino_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("dino") / "dinov2_vits14_pretrain.pth"
    torch.save(dinov2_tensors(), file)
    return file


@pytest.fixture(scope="module")
def dino(dino_file):
    """With the golden heads; never trained by a test."""
    discriminator = DinoDiscriminator(dino_file).eval()
    heads = {name: filled(f"disc.{name}", value.shape) for name, value in discriminator.state_dict().items()}
    discriminator.load_state_dict(heads)
    return discriminator


@pytest.fixture
def patch():
    torch.manual_seed(0)
    return PatchDiscriminator(width=8)


@torch.no_grad()
def test_dino_is_the_reference(dino):
    image, other = make_images(1040), make_images(1041)
    expected = golden()
    torch.testing.assert_close(dino(image), expected["disc/logits_area256"], atol=ATOL, rtol=0)
    torch.testing.assert_close(dino(other), expected["disc/logits_area256_rec"], atol=ATOL, rtol=0)
    real, fake = dino(image[..., :252, :252]), dino(other[..., :252, :252])
    torch.testing.assert_close(real, expected["disc/logits_252"], atol=ATOL, rtol=0)
    hinge = CRITERIA["hinge"](real).mean() + CRITERIA["hinge"](-fake).mean()
    torch.testing.assert_close(hinge[None], expected["disc/hinge_252"], atol=ATOL, rtol=0)


def test_dino_trains_and_saves_its_heads_alone(dino):
    names = {name.split(".")[0] for name, _ in dino.named_parameters()}
    assert names == {"heads"} and set(dino.state_dict()) == {name for name, _ in dino.named_parameters()}
    pixels = make_images(1)[..., :56, :56].requires_grad_()
    dino(pixels).sum().backward()
    assert pixels.grad.abs().sum() > 0
    dino.zero_grad()


@torch.no_grad()
def test_dino_takes_any_size_and_draws_its_crops_from_its_generator(dino):
    assert dino(make_images(1)[..., :48, :70]).shape == (2, 5 * 3 * 5)
    image = make_images(1, batch=1)[..., :66, :66]
    dino.generator = seeded()
    drawn = [dino(image) for _ in range(8)]
    dino.generator = seeded()
    assert all(torch.equal(again, before) for again, before in zip([dino(image) for _ in drawn], drawn, strict=True))
    dino.generator = None
    areas = [torch.equal(logits, dino(image)) for logits in drawn]
    assert any(areas) and not all(areas)


def test_weights_that_are_no_dino_are_named(tmp_path):
    torch.save({"cls_token": torch.zeros(1, 1, 768)}, tmp_path / "base.pth")
    with pytest.raises(ValueError, match=r"base.pth.*missing.*cls_token"):
        DinoDiscriminator(tmp_path / "base.pth")


@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 64), (128, 128)])
def test_patch_logits_are_of_places(patch, height, width):
    assert patch(make_images(1)[..., :height, :width]).shape == (2, (height // 8 - 2) * (width // 8 - 2))
    pixels = make_images(1, batch=1)[..., :128, :128].requires_grad_()
    patch(pixels)[0, 0].backward()
    assert pixels.grad.isfinite().all()
    # Group norms read the whole image, but a far place matters little.
    assert pixels.grad[..., 64:, 64:].abs().max() < 0.1 * pixels.grad[..., :47, :47].abs().max()


def test_the_discriminator_learns_to_tell_real_from_fake(patch):
    real, draws = make_images(1, batch=4)[..., :64, :64], seeded()
    fake = F.avg_pool2d(real, 5, stride=1, padding=2)
    optimizer, losses = torch.optim.AdamW(patch.parameters(), lr=5e-4, betas=(0.5, 0.9)), []
    for _ in range(80):
        terms = discriminator_terms(patch, real, fake, draws, consistency=False)
        optimizer.zero_grad()
        terms.adversarial.backward()
        optimizer.step()
        losses.append(terms.adversarial.item())
    assert sum(losses[-10:]) / 10 < 1.4  # 2 is to know nothing
    assert terms.real_logit > terms.fake_logit
    with pytest.raises(ValueError, match="unknown adversarial criterion 'hing'; known: hinge, softplus, linear"):
        discriminator_terms(patch, real, fake, draws, criterion="hing")


@pytest.mark.parametrize("criterion", CRITERIA)
def test_each_side_has_its_gradients_alone(patch, criterion):
    real, fake = make_images(1)[..., :48, :48].requires_grad_(), make_images(2)[..., :48, :48].requires_grad_()
    generator_loss(patch, fake, seeded(), criterion).backward()
    assert fake.grad.abs().sum() > 0 and all(parameter.grad is None for parameter in patch.parameters())
    fake.grad = None
    terms = discriminator_terms(patch, real, fake, seeded(), criterion)
    (terms.adversarial + terms.consistency).backward()
    assert fake.grad is None and real.grad is None
    assert all(parameter.grad.abs().sum() > 0 for parameter in patch.parameters())


@pytest.mark.parametrize("name", ["dino", "patch"])
def test_bf16_trains(name, request):
    discriminator, images = request.getfixturevalue(name), make_images(1)[..., :56, :56]
    with torch.autocast("cpu", torch.bfloat16):
        terms = discriminator_terms(discriminator, images, 0.5 * images, seeded(), blur=0.5)
    (terms.adversarial + terms.consistency).backward()
    assert terms.adversarial.dtype == terms.consistency.dtype == torch.float32
    assert all(parameter.grad.isfinite().all() for parameter in discriminator.parameters())
    discriminator.zero_grad()
    exact = discriminator_terms(discriminator, images, 0.5 * images, seeded(), blur=0.5)
    torch.testing.assert_close(terms.adversarial, exact.adversarial, atol=0.03, rtol=0)


@torch.no_grad()
def test_losses_by_hand():
    """The first image has the logit 0.5, all others -2."""

    class Known(torch.nn.Module):
        def forward(self, pixels_N3HW):
            return torch.tensor([[0.5]] + [[-2.0]] * (len(pixels_N3HW) - 1))

    real = fake = make_images(1, batch=1)[..., :32, :32]
    expected = {"hinge": 0.5 + 0.0, "softplus": (1 + 2.718281828**-0.5) * (1 + 2.718281828**-2), "linear": -2.5}
    for criterion, value in expected.items():
        terms = discriminator_terms(Known(), real, fake, seeded(), criterion)
        found = terms.adversarial.exp() if criterion == "softplus" else terms.adversarial
        torch.testing.assert_close(found, torch.tensor(value))
        assert terms.consistency == 0 and terms.real_logit == 0.5 and terms.fake_logit == -2
    assert generator_loss(Known(), fake, seeded(), "hinge") == generator_loss(Known(), fake, seeded(), "linear") == -0.5


def test_the_consistency_is_that_of_two_draws(patch):
    """By hand, draw by draw: real and fake images have a mean each."""
    real, fake = make_images(1)[..., :48, :48], make_images(2)[..., :48, :48]
    terms = discriminator_terms(patch, real, fake, seeded(), blur=0.5)
    draws, images = seeded(), torch.cat([real, fake])
    first, second = patch(diff_augment(images, draws, 0.5)), patch(diff_augment(images, draws))
    expected = F.mse_loss(first[:2], second[:2]) + F.mse_loss(first[2:], second[2:])
    torch.testing.assert_close(terms.consistency, expected)
    assert expected > 0
    assert discriminator_terms(patch, real, fake, seeded(), consistency=False).consistency == 0


def test_the_adaptive_weight_evens_the_pulls():
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    pull = (weight * torch.tensor([1.0, 2.0])).sum()  # its gradient has norm sqrt(5)
    assert adaptive_weight(6 * pull, 2 * pull, weight) == pytest.approx(3, rel=1e-5)
    assert adaptive_weight(pull, 1e9 * pull, weight) == pytest.approx(0.015)
    assert adaptive_weight(pull, 0 * pull, weight) == 1e4
    assert adaptive_weight(pull, pull, weight, bounds=(2.0, 3.0)) == 2
    found = adaptive_weight(pull, pull, weight)
    assert not found.requires_grad
    (pull + found * pull).backward()  # the graphs are still there


@pytest.mark.parametrize("fade", [0.1, 0.5, 1.0])
def test_blur_is_the_reference(fade):
    blurred = gaussian_blur(make_images(1040), fade)
    torch.testing.assert_close(blurred[..., :32, :32], golden()[f"diffaug/blur_{fade}_crop"], atol=1e-5, rtol=0)


def test_augmentation_is_a_function_of_its_generator_and_differs_by_image():
    twins = make_images(1, batch=1)[..., :64, :64].expand(4, -1, -1, -1)
    draws = seeded()
    first = diff_augment(twins, draws)
    state = draws.get_state()
    second = diff_augment(twins, draws)
    draws.set_state(state)
    assert torch.equal(diff_augment(twins, draws), second) and not torch.equal(first, second)
    assert len({image.sum().item() for image in [*first, *second]}) == 8
    torch.manual_seed(1)
    assert torch.equal(diff_augment(twins, seeded()), first)


def test_augmentation_moves_recolours_and_cuts():
    """A white image: what is grey came in or is the hole; the rest has one colour within the ranges."""
    augmented = diff_augment(torch.ones(200, 3, 40, 80), seeded())
    assert augmented.isfinite().all()
    hole = (augmented == 0).all(1).flatten(1).sum(1)
    assert 0 < hole.max() <= 8 * 16 and hole.float().mean() > 0.7 * 8 * 16
    brightest = augmented.flatten(1).max(1).values
    assert brightest.min() > 0.3 and brightest.max() < 2.2


def test_augmentation_moves_up_to_an_eighth():
    """The cross of a row and a column of its own colour, found again."""
    seen = set()
    for seed in range(60):
        pixels = torch.full((1, 3, 32, 64), -1.0)
        pixels[..., 16, :] = pixels[..., :, 32] = 1.0
        image = diff_augment(pixels, seeded(seed))[0].sum(0)
        seen.add((int(image.sum(1).argmax()) - 16, int(image.sum(0).argmax()) - 32))
    rows, columns = zip(*seen, strict=True)
    assert (min(rows), max(rows)) == (-4, 4) and (min(columns), max(columns)) == (-8, 8)


def test_gradients_pass_through_the_augmentation():
    pixels = make_images(1)[..., :48, :48].requires_grad_()
    diff_augment(pixels, seeded(), blur=0.5).pow(2).sum().backward()
    assert pixels.grad.isfinite().all() and (pixels.grad != 0).float().mean() > 0.5
