"""Row by row, one position a step, each predicted from the one before it."""

from .base import Order


class Raster(Order):
    parallel = False

    @staticmethod
    def plan(positions: int) -> list[dict[int, int | None]]:
        return [{place: place - 1 if place else None} for place in range(positions)]
