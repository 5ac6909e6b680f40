"""Files people really have: each becomes an upright RGB image, or one clear line."""

import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torchvision import transforms

from tokenizer import SIZES, ImageTokenizer
from tokenizer.transform import load_image, pad_to_square, read_image, read_note, to_images, to_pixels, to_rgb


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


# ---- what only describes a picture never decides


def png(
    rows: list[bytes], width: int, depth: int, kind: int, *chunks: tuple[bytes, bytes], after: bool = False
) -> bytes:
    """A PNG from its rows; `chunks` come before the pixels, or after them."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    others = b"".join(chunk(*one) for one in chunks)
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), depth, kind, 0, 0, 0))
    parts = [header, pixels, others] if after else [header, others, pixels]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def jpeg(image: Image.Image, *segments: tuple[int, bytes]) -> bytes:
    """A JPEG with these (marker, data) before all others."""
    data = io.BytesIO()
    image.save(data, "JPEG", quality=95)
    others = b"".join(struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content for marker, content in segments)
    return data.getvalue()[:2] + others + data.getvalue()[2:]


def tiff(values_HW: np.ndarray, bits: int, *entries: tuple[int, int, int, bytes], zero: str = "black", kind: int = 1):
    """A TIFF of one channel; `entries` are (tag, type, count, value)."""
    height, width = values_HW.shape
    data = values_HW.tobytes()
    numbers = {256: width, 257: height, 258: bits, 259: 1, 262: int(zero == "black"), 273: 8, 277: 1, 278: height}
    numbers |= {279: len(data), 339: kind}
    own = [(tag, 4, 1, struct.pack("<I", number)) for tag, number in numbers.items()]
    directory = [struct.pack("<HHI", *one[:3]) + one[3] for one in sorted([*own, *entries])]
    count = struct.pack("<H", len(directory))
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + count + b"".join(directory) + bytes(4)


def exif(*entries: tuple[int, int, int, bytes], count: int | None = None) -> bytes:
    """EXIF, as in JPEG, of (tag, type, count, value)."""
    number = len(entries) if count is None else count
    directory = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", number) + directory + bytes(4)


TURNED = (0x0112, 3, 1, b"\x06\0\0\0")  # orientation: by 90 degrees
LONG_TEXT = zlib.compress(b"x" * 3_000_000)
WIDE = _noise(24, 16)


def read(content: bytes) -> Image.Image:
    return read_image(io.BytesIO(content), "it")


def same(image: Image.Image, expected: Image.Image) -> bool:
    return image.size == expected.size and image.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("marker", "content"),
    [
        (0xE1, b"Exif\0\0NOTATIFF"),
        (0xE1, b"Exif\0\0"),
        (0xE1, b"Exif\0\0II*\0\xff\xff\xff\x7f"),
        (0xE1, exif((0x0112, 2, 40, b"\xff\xff\xff\x7f"))),
        (0xE1, exif((0x0112, 3, 1, b"\x63\0\0\0"), (0x8769, 4, 1, b"\xff\xff\xff\xff"))),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta tiff:Orientation='no'"),
        (0xE2, b"ICC_PROFILE\0\x01\x01no profile"),
        (0xE2, b"ICC_PROFILE\0"),
        (0xE2, b"MPF\0II*\0garbage"),
        (0xE2, b"MPF\0" + exif((0xB000, 7, 4, b"0100"))[6:]),
        (0xED, b"Photoshop 3.0\0008BIM\x04"),
        (0xFE, b"\xff" * 40),
    ],
)
def test_metadata_of_a_jpeg_never_decides(marker, content):
    assert same(read(jpeg(WIDE, (marker, content))), read(jpeg(WIDE)))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        (b"eXIf", b"NOTATIFF"),
        (b"eXIf", b""),
        (b"zTXt", b"a\0\0" + LONG_TEXT),
        (b"iTXt", b"a\0\x01\0\0\0" + LONG_TEXT),
        (b"zTXt", b"a\0\x07"),
        (b"tEXt", b"Raw profile type exif\0\nexif\n 12\nzzzz\n"),
        (b"iCCP", b""),
        (b"iCCP", b"a\0\x07zzz"),
        (b"iCCP", b"a\0\0" + LONG_TEXT),
        (b"gAMA", b"x"),
        (b"pHYs", b""),
        (b"acTL", b"x"),
        (b"fcTL", bytes(26)),
    ],
)
def test_metadata_of_a_png_never_decides(name, content, after):
    rows = [WIDE.tobytes()[72 * row : 72 * (row + 1)] for row in range(16)]
    assert same(read(png(rows, 24, 8, 2, (name, content), after=after)), WIDE)


def test_a_wrong_checksum_counts_where_pixels_are():
    rows = [bytes(8)] * 8
    whole = png(rows, 8, 8, 0, (b"tEXt", b"a\0b"))
    text, pixels = whole.index(b"tEXt"), whole.index(b"IDAT")
    damaged = bytearray(whole)
    damaged[text + 8] ^= 1  # in the checksum
    assert same(read(bytes(damaged)), Image.new("RGB", (8, 8)))
    damaged = bytearray(whole)
    damaged[pixels + 6] ^= 0xFF
    with pytest.raises(ValueError, match="cannot read it as an image"):
        read(bytes(damaged))


@pytest.mark.parametrize("tag", [700, 34665, 34853, 34675, 282, 305, 33723])
@pytest.mark.parametrize(("kind", "count"), [(2, 4), (3, 1), (4, 2**31), (12, 1), (99, 1)])
def test_metadata_of_a_tiff_never_decides(tag, kind, count):
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    image = read(tiff(grey, 8, (tag, kind, count, b"\xff\0\xff\x7f")))
    assert np.array_equal(np.asarray(image)[..., 0], grey)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "others",
    [(), ((0x011A, 5, 1, b"\xff\xff\0\0"),), ((0x010F, 3, 1, b"zzzz"), (0x8769, 2, 4, b"abc\0"))],
    ids=["alone", "a broken fraction", "wrong types"],
)
def test_a_readable_orientation_is_applied_whatever_stands_beside_it(orientation, others):
    turned = exif((0x0112, 3, 1, struct.pack("<I", orientation)), *others)
    expected = read(jpeg(WIDE))
    expected.getexif()[0x0112] = orientation
    expected = ImageOps.exif_transpose(expected)
    assert same(read(jpeg(WIDE, (0xE1, turned))), expected)
    assert same(read(jpeg(WIDE, (0xE1, turned), (0xE2, b"ICC_PROFILE\0"))), expected)
    rows = [WIDE.tobytes()[72 * row : 72 * (row + 1)] for row in range(16)]
    for chunks in ([(b"eXIf", turned[6:])], [(b"eXIf", turned[6:]), (b"zTXt", b"a\0\0" + LONG_TEXT)]):
        image = WIDE.copy()
        image.getexif()[0x0112] = orientation
        assert same(read(png(rows, 24, 8, 2, *chunks)), ImageOps.exif_transpose(image))


def test_an_orientation_is_read_from_exif_that_breaks_off():
    assert read(jpeg(WIDE, (0xE1, exif(TURNED, count=9)))).size == (16, 24)


def test_a_picture_is_turned_once(tmp_path):
    """Whatever it passes afterwards."""
    (tmp_path / "turned.jpg").write_bytes(jpeg(WIDE, (0xE1, exif(TURNED))))
    image = load_image(tmp_path / "turned.jpg")
    assert same(to_rgb(to_rgb(image)), image) and image.size == (16, 24)
    with Image.open(tmp_path / "turned.jpg") as opened:
        assert same(to_rgb(opened), image) and same(to_rgb(opened), image)
    assert image.format == "JPEG"


# ---- ranges are right, or refused


def greys(image: Image.Image) -> list[int]:
    values = np.asarray(image)
    assert (values == values[..., :1]).all()
    return values[0, :, 0].tolist()


def saved(values, kind: str = "TIFF") -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.array([values, values])).save(data, kind)
    return data.getvalue()


def test_16_bits_are_scaled_alike_in_dark_pictures_and_bright_ones():
    for values in ([0, 128, 255], [0, 257, 65535]):
        expected = [round(value / 257) for value in values]
        for kind in ("PNG", "TIFF"):
            assert greys(read(saved(np.array(values, np.uint16), kind))) == expected
        assert greys(to_rgb(Image.fromarray(np.array([values, values], np.uint16)))) == expected
    pgm = b"P5 2 2 1023\n" + struct.pack(">4H", 0, 1023, 0, 1023)
    assert greys(read(pgm)) == [0, 255]
    assert greys(read(b"P5 2 2 65535\n" + struct.pack(">4H", 0, 200, 0, 200))) == [0, 1]


def test_12_bits_and_white_as_zero_are_read_from_their_tags():
    packed = np.frombuffer(bytes([0xFF, 0xF0, 0x00] * 2), np.uint8).reshape(2, 3)
    content = bytearray(tiff(packed, 12))
    content[content.index(struct.pack("<HHI", 256, 4, 1)) + 8] = 2  # two values of 12 bits in three bytes
    assert greys(read(bytes(content))) == [255, 0]
    values = np.array([[0, 65535]] * 2, np.uint16)
    assert greys(read(tiff(values, 16, zero="white"))) == [255, 0] and greys(read(tiff(values, 16))) == [0, 255]
    fractions = np.array([[0, 1]] * 2, np.float32)
    assert greys(read(tiff(fractions, 32, zero="white", kind=3))) == [255, 0]


def test_fractions_up_to_1_and_whole_numbers_up_to_255_are_known():
    assert greys(read(saved(np.array([0, 0.25, 1], np.float32)))) == [0, 64, 255]
    assert greys(read(saved(np.array([0, 64, 255], np.float32)))) == [0, 64, 255]
    assert greys(read(saved(np.array([0, 64, 255], np.int32)))) == [0, 64, 255]
    grey = Image.linear_gradient("L")
    for mode in ("F", "I"):
        assert same(to_rgb(grey.convert(mode)), grey.convert("RGB"))


@pytest.mark.parametrize(
    "values",
    [
        np.array([0, 0.5, 4], np.float32),
        np.array([-0.1, 0.5, 1], np.float32),
        np.array([0, 1000, 65535], np.float32),
        np.array([0, np.nan, 1], np.float32),
        np.array([0, np.inf, 1], np.float32),
        np.array([0, 1000, 65535], np.int32),
        np.array([-5, 0, 5], np.int32),
    ],
    ids=str,
)
def test_numbers_of_which_white_is_unknown_are_refused(values):
    with pytest.raises(ValueError, match="cannot read it as an image: .* white is unknown: save 8 bits"):
        read(saved(values))


@pytest.mark.parametrize(
    ("depth", "kind", "row", "key", "expected"),
    [
        (1, 0, b"\x40", b"\0\1", [0, 255]),
        (1, 0, b"\x40", b"\0\0", [255, 255]),
        (2, 0, b"\x60", b"\0\1", [255, 170]),
        (4, 0, b"\x3f", b"\0\x03", [255, 255]),
        (8, 0, b"\x07\x09", b"\0\x07", [255, 9]),
        (16, 0, b"\x12\x34\x12\x35", b"\x12\x34", [255, 18]),
        (8, 2, b"\7\7\7\x09\x09\x09", b"\0\7" * 3, [255, 9]),
        (16, 2, b"\x12\x34" * 3 + b"\x20\0" * 3, b"\x12\x34" * 3, [255, 32]),
    ],
)
def test_a_transparent_color_is_found_at_every_depth(depth, kind, row, key, expected):
    content = png([row, row], 2, depth, kind, (b"tRNS", key))
    assert greys(read(content)) == expected
    assert greys(to_rgb(Image.open(io.BytesIO(content)))) == expected


def test_palettes_with_transparency():
    palette = (b"PLTE", b"\x09\x09\x09\x14\x14\x14\x1e\x1e\x1e")
    for key, expected in ((b"\0", [255, 20, 30]), (b"\xff\0", [9, 255, 30]), (b"\xff\xff\x80", [9, 20, 142])):
        found = greys(read(png([b"\0\1\2"] * 2, 3, 8, 3, palette, (b"tRNS", key))))
        assert np.abs(np.subtract(found, expected)).max() <= 1


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("La", (0, 0), (255, 255, 255)),
        ("RGBa", (0, 0, 0, 0), (255, 255, 255)),
        ("PA", (0, 0), (255, 255, 255)),
        ("RGBX", (9, 8, 7, 0), (9, 8, 7)),
        ("YCbCr", (255, 128, 128), (255, 255, 255)),
        ("HSV", (0, 0, 40), (40, 40, 40)),
        ("LAB", (255, 128, 128), (255, 255, 255)),
        ("CMYK", (0, 0, 0, 255), (0, 0, 0)),
        ("I;16B", 65535, (255, 255, 255)),
    ],
)
def test_modes_that_pillow_knows(mode, color, expected):
    found = to_rgb(Image.new(mode, (4, 4), color)).getpixel((1, 1))
    assert np.abs(np.subtract(found, expected)).max() <= 2


# ---- what cannot be read is told


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "it is empty"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC is not supported; save it as PNG or JPEG"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL is not supported"),
        (b"  <svg xmlns='http://www.w3.org/2000/svg'/>", "SVG is not supported"),
        (b"words", "it has no format that is known"),
    ],
)
def test_formats_that_are_not_read_are_named(content, told):
    with pytest.raises(ValueError, match=f"^cannot read it as an image: {told}") as error:
        read(content)
    assert "0x" not in str(error.value)
    assert isinstance(error.value.__cause__, UnidentifiedImageError)


def test_a_truncated_file_is_named_whatever_its_metadata():
    whole = jpeg(_noise(64, 64), (0xE2, b"ICC_PROFILE\0"))
    rows = [bytes(range(64)) for _ in range(64)]
    text = png(rows, 64, 8, 0, (b"zTXt", b"a\0\0" + LONG_TEXT))
    for content in (whole[: len(whole) // 2], text[:-40], text[: text.index(b"IDAT") + 2]):
        with pytest.raises(ValueError, match="cannot read it as an image"):
            read(content)


def test_too_large_is_told_of_a_picture_with_bad_metadata():
    content = png([bytes(9000 // 8)] * 9000, 9000, 1, 0, (b"gAMA", b"x"))
    with pytest.raises(ValueError, match="^it has 9000 x 9000 pixels; at most"):
        read(content)


def test_a_folder_in_place_of_a_file_and_a_forbidden_one_are_named(tmp_path):
    with pytest.raises(ValueError, match=f"no image file at {tmp_path}"):
        load_image(tmp_path)
    with pytest.raises(ValueError, match="cannot read it as an image: No such file"):
        read_image(Path(tmp_path / "gone.png"), "it")


def test_notes_in_files_of_ours_and_of_others(tmp_path):
    file = tmp_path / "a.png"
    for content, expected in (
        (png([bytes(2)] * 2, 2, 8, 0, (b"tEXt", b'mllm\0{"seed": 3}')), {"seed": 3}),
        (png([bytes(2)] * 2, 2, 8, 0), {}),
        (png([bytes(2)] * 2, 2, 8, 0, (b"tEXt", b"mllm\0{")), None),
        (png([bytes(2)] * 2, 2, 8, 0, (b"zTXt", b"mllm\0\0" + LONG_TEXT)), None),
        (b"words", None),
    ):
        file.write_bytes(content)
        assert read_note(file, "mllm") == expected
    assert read_note(tmp_path / "gone.png", "mllm") is None
