"""Files people really have: each becomes an upright RGB image, or one clear line."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from torchvision import transforms

from tokenizer import SIZES, ImageTokenizer
from tokenizer.transform import load_image, pad_to_square, to_images, to_pixels


def _noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_pixels_and_images_round_trip():
    image = _noise(32, 32)
    pixels_3HW = to_pixels(image, 32)
    assert pixels_3HW.min() >= -1 and pixels_3HW.max() <= 1
    assert to_images(pixels_3HW[None])[0].tobytes() == image.tobytes()


def test_pixels_are_resized_and_cropped_at_the_centre():
    image = Image.new("RGB", (96, 32), "red")
    image.paste("blue", (32, 0, 64, 32))
    assert to_pixels(image, 32)[:, 16, 16].tolist() == [-1, -1, 1]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(100, 61), (61, 100), (33, 32), (90, 90)])
def test_a_resize_ratio_is_torchvisions_resize_and_centre_crop(size, interpolation):
    image = _noise(*size)
    resize = transforms.Resize(36, transforms.InterpolationMode(interpolation))
    expected = transforms.Compose([resize, transforms.CenterCrop(32)])(image)
    assert torch.equal(to_pixels(image, 32, 1.125, interpolation), to_pixels(expected, 32))


def test_interpolations_differ_and_bicubic_is_the_default():
    image = _noise(64, 64)
    pixels = [to_pixels(image, 32, interpolation=name) for name in ("bilinear", "bicubic", "lanczos")]
    assert torch.equal(to_pixels(image, 32), pixels[1])
    assert not torch.equal(pixels[0], pixels[1]) and not torch.equal(pixels[1], pixels[2])


def test_an_image_tokenizer_transforms_as_its_config_says():
    torch.manual_seed(0)
    model = ImageTokenizer(replace(SIZES["tiny"], resize_ratio=1.125, interpolation="bilinear")).eval()
    image = _noise(50, 40)
    versions = [image, to_pixels(image, 32, 1.125, "bilinear"), to_pixels(image, 32)]
    from_image, expected, plain = model.features(model._pixels(versions))
    from_image, expected, plain = model.image_features(versions)
    assert torch.equal(from_image, expected) and not torch.equal(from_image, plain)
    assert torch.equal(*model.encode(versions[:2]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"interpolation": "nearest"}, "unknown interpolation 'nearest'; known: bilinear, bicubic, lanczos"),
        ({"resize_ratio": 0.5}, "resize_ratio 0.5 is outside 1 to 4"),
    ],
)
def test_impossible_transforms_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SIZES["tiny"], **change)


def test_padding_keeps_the_whole_image_in_the_middle():
    square = pad_to_square(Image.new("L", (40, 11), 255), (122, 116, 104))
    values = np.asarray(square)
    assert square.size == (40, 40)
    assert (values[14:25] == 255).all()
    assert (values[:14] == (122, 116, 104)).all() and (values[25:] == (122, 116, 104)).all()


def test_long_strips_do_not_fill_the_memory():
    strip = Image.new("RGB", (300_000, 2), "red")
    assert to_pixels(strip, 32, 1.125).shape == (3, 32, 32)
    assert pad_to_square(strip, (0, 0, 0)).size == (8192, 8192)


def test_out_of_range_pixels_are_clamped():
    assert to_images(torch.tensor([-3.0, 0.0, 3.0]).view(1, 3, 1, 1))[0].getpixel((0, 0)) == (0, 128, 255)


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
        ("LA", (0, 0), (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("I;16", 65535, (255, 255, 255)),
        ("I;16", 257 * 40, (40, 40, 40)),
        ("1", 1, (255, 255, 255)),
    ],
)
def test_every_mode_is_read(tmp_path, mode, color, expected):
    Image.new(mode, (20, 20), color).save(tmp_path / "image.png")
    image = load_image(tmp_path / "image.png")
    assert image.mode == "RGB" and image.getpixel((5, 5)) == expected


def test_cmyk_is_read(tmp_path):
    Image.new("CMYK", (20, 20), (0, 255, 255, 0)).save(tmp_path / "image.jpg")
    red, green, blue = load_image(tmp_path / "image.jpg").getpixel((5, 5))
    assert red > 200 and green < 80 and blue < 80


def test_exif_rotation_is_applied(tmp_path):
    image = Image.new("RGB", (40, 20), "red")
    exif = image.getexif()
    exif[274] = 6  # turned by 90 degrees
    image.save(tmp_path / "image.jpg", exif=exif)
    assert load_image(tmp_path / "image.jpg").size == (20, 40)


def test_the_first_frame_of_an_animation_is_read(tmp_path):
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "image.gif", save_all=True, append_images=frames[1:])
    assert load_image(tmp_path / "image.gif").getpixel((5, 5)) == (255, 0, 0)


def _truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_truncated_file_is_named(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    _noise(64, 64).save(path)
    _truncate(path)
    with pytest.raises(ValueError, match=f"cannot read .*image.{suffix} as an image") as error:
        load_image(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["ppm", "tiff", "jp2", "webp", "gif", "bmp", "avif", "qoi"])
def test_damaged_files_of_any_format_are_named_or_read(tmp_path, suffix):
    path, rng = tmp_path / f"image.{suffix}", np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    for _ in range(40):
        damaged = bytearray(whole[: rng.integers(1, len(whole))] if rng.random() < 0.5 else whole)
        damaged[rng.integers(len(damaged))] = rng.integers(256)
        path.write_bytes(bytes(damaged))
        try:
            assert load_image(path).mode == "RGB"
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)


def test_text_and_missing_files_are_named(tmp_path):
    (tmp_path / "words.png").write_text("not an image")
    with pytest.raises(ValueError, match="cannot read .*words.png as an image"):
        load_image(tmp_path / "words.png")
    with pytest.raises(ValueError, match="no image file at .*missing.png"):
        load_image(tmp_path / "missing.png")


@pytest.mark.parametrize(
    ("size", "message"),
    [((1, 1), "1 x 1 pixels"), ((20_000, 20_000), "decompression bomb"), ((9000, 9000), "9000 x 9000 pixels")],
)
def test_too_small_and_too_large_are_refused_without_decoding(tmp_path, size, message):
    Image.new("1", size).save(tmp_path / "image.png")
    with pytest.raises(ValueError, match=message):
        load_image(tmp_path / "image.png")


def test_a_cut_off_file_is_refused_whatever_libraries_have_told_pillow(tmp_path, monkeypatch):
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ValueError, match="cannot read .*cut.png as an image"):
        load_image(tmp_path / "cut.png")
    assert ImageFile.LOAD_TRUNCATED_IMAGES
