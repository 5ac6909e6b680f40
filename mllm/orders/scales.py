"""Next-scale prediction (VAR, arXiv 2404.02905; beside text, VARGPT, arXiv 2501.12327): all positions of a map at once,
coarse to fine. A position is predicted from the one of the map before in which its middle lies."""

from tokenizer import ImageTokenizerConfig

from .base import Order


class Scales(Order):
    layout = "scales"

    @staticmethod
    def plan(sizes: ImageTokenizerConfig) -> list[dict[int, int | None]]:
        steps: list[dict[int, int | None]] = []
        first, before, coarser = 0, 0, 0  # the first place of this map, that of the map before, and the latter's side
        for side in sizes.layout_args["scales"]:
            step: dict[int, int | None] = {}
            for place in range(side**2):
                row, column = ((2 * number + 1) * coarser // (2 * side) for number in divmod(place, side))
                step[first + place] = before + row * coarser + column if coarser else None
            steps.append(step)
            first, before, coarser = first + side**2, first, side
        return steps
