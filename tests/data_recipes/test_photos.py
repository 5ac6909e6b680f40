"""Photographs out of packages: wallpapers with their corners, and pictures stored inside resource files."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from data_recipes.photos import photographs
from scripts.make_photos import main
from tokenizer.transform import load_image


def encoded(width: int, height: int, kind: str) -> bytes:
    data = BytesIO()
    pixels = np.random.default_rng(width).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(data, kind)
    return data.getvalue()


def test_wallpapers_are_taken_whole_and_by_their_corners_and_small_pictures_are_not(tmp_path):
    (tmp_path / "lake.jpg").write_bytes(encoded(1600, 1200, "JPEG"))
    (tmp_path / "button.jpg").write_bytes(encoded(300, 200, "JPEG"))
    found = dict(photographs(tmp_path))
    assert [name.removeprefix("lake") for name in found] == ["", "_0", "_1", "_2", "_3"]
    assert {image.size for image in found.values()} == {(533, 400), (400, 400)}
    assert len({image.tobytes() for image in found.values()}) == 5


def test_pictures_inside_resource_files_are_found(tmp_path):
    parts = [encoded(320, 200, "JPEG"), encoded(240, 180, "WEBP"), encoded(60, 60, "JPEG"), b"\xff\xd8\xff no picture"]
    (tmp_path / "farm.rcc").write_bytes(b"qres" + b"\0\1".join(parts))
    assert [image.size for _, image in photographs(tmp_path)] == [(320, 200), (240, 180)]


def test_the_command_writes_a_folder_of_images_or_says_why_not(tmp_path, capsys):
    (tmp_path / "packages").mkdir()
    out = tmp_path / "photos"
    words = [str(tmp_path / "packages"), "--out", str(out)]
    with pytest.raises(ValueError, match="holds no wallpapers"):
        main(words)
    (tmp_path / "packages" / "farm.rcc").write_bytes(encoded(320, 200, "JPEG"))
    main(words)
    assert capsys.readouterr().out == f"{out}: 1 photographs\n"
    assert [load_image(file).size for file in out.rglob("*.jpg")] == [(320, 200)]
    with pytest.raises(ValueError, match="is there already"):
        main(words)
