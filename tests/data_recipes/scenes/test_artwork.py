"""The glyphs ship with the project, and have the pixels that the weights were trained on."""

import hashlib

import pytest

from data_recipes.scenes import artwork
from data_recipes.scenes.world import SKILLS, World


def test_glyphs_have_the_pixels_of_the_font():
    """Drawn with FreeType from Noto Color Emoji 2.042, before the sheet was made."""
    digest = hashlib.sha256()
    for name in artwork.EMOJI:
        image = artwork.crop(artwork.draw_emoji(name), name)
        digest.update(f"{name} {image.size} {image.mode}".encode() + image.tobytes())
    assert digest.hexdigest() == "bb8a89e327e42fc5bc3b794f2e3856c1ba1792427085c4685cf344fd00150ea8"


def test_scenes_have_the_pixels_of_the_font():
    world, digest = World(), hashlib.sha256()
    for skill in SKILLS:
        for seed in range(100):
            digest.update(world.render(world.scene(seed, skill=skill)).tobytes())
    assert digest.hexdigest() == "11ee26f41171e431b636d7a3c0a27ae9f1e5c0238702d0a573675e7c3f277f0c"


def test_the_sheet_has_its_licence_and_is_small():
    assert "SIL OPEN FONT LICENSE Version 1.1" in artwork.GLYPHS.with_name("LICENSE").read_text()
    assert artwork.GLYPHS.stat().st_size < 2e6


def test_a_sheet_is_made_from_a_font_with_bitmaps_only(tmp_path):
    font = tmp_path / "other.ttf"
    font.write_bytes(b"not a font")
    with pytest.raises(OSError):
        artwork.sheet_from_font(font)
    with pytest.raises(ValueError, match="no glyph for 'dog'"):
        artwork.crop(artwork.Image.new("RGBA", (9, 9)), "dog")
