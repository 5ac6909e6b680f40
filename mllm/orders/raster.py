"""Row by row, one position a step, each predicted from the one before it."""

from tokenizer import ImageTokenizerConfig

from .base import Order


class Raster(Order):
    parallel, layout = False, None

    @staticmethod
    def plan(sizes: ImageTokenizerConfig) -> list[dict[int, int | None]]:
        return [{place: place - 1 if place else None} for place in range(sizes.num_positions)]
