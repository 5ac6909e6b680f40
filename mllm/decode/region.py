"""Where an edit may change a picture. Outside, the codes stay while it is drawn, and the pixels are those it had."""

from typing import NamedTuple

import numpy as np
from PIL import Image


class Region(NamedTuple):
    """`free_HW` says of each pixel of a picture whether it may change. The model sees the square of `view`: left, top
    and side, in the picture's pixels."""

    free_HW: np.ndarray
    view: tuple[float, float, float]

    def free_positions(self, side: int) -> list[bool]:
        """Of each of `side` x `side` positions, row by row, whether any of its pixels may change."""
        left, top, width = self.view
        places = np.argwhere(self.free_HW) + 0.5 - (top, left)
        rows, columns = (places * (side / width)).astype(int)[((places >= 0) & (places < width)).all(1)].T
        free = np.zeros((side, side), bool)
        free[rows, columns] = True
        return free.flatten().tolist()

    def put(self, drawn: Image.Image, picture: Image.Image) -> Image.Image:
        """The picture with `drawn`, what the model made of its view, where it may change."""
        left, top, width = map(round, self.view)
        changed = picture.copy()
        changed.paste(drawn.resize((width, width), Image.Resampling.LANCZOS), (left, top))
        return Image.composite(changed, picture, Image.fromarray(self.free_HW))


def read_region(mask: Image.Image, picture: Image.Image, view: tuple[float, float, float]) -> Region:
    """The fully transparent pixels of a mask, as OpenAI's API has it. Raises ValueError for a mask of another size or
    without alpha, and for one that leaves nothing free that the model sees."""
    if mask.size != picture.size:
        sizes = "{} x {} pixels, its picture {} x {}".format(*mask.size, *picture.size)
        raise ValueError(f"the mask has {sizes}: make them equal")
    if not mask.has_transparency_data:
        raise ValueError("the mask has no alpha channel: make transparent, in a PNG, what may change")
    region = Region(np.asarray(mask.convert("RGBA"))[..., 3] == 0, view)
    if not region.free_HW.any():
        raise ValueError("the mask has no pixel that is fully transparent: make transparent what may change")
    if not any(region.free_positions(1)):
        raise ValueError("the mask is transparent only outside of the square that the model sees of the picture")
    return region
