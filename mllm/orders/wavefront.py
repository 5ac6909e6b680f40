"""Anti-diagonals from the top left: 2 * side - 1 steps, as ZipAR's (arXiv 2412.04062) are with a window of one, but
trained for it. A position is predicted from its left neighbour, in the first column from the one above: both are drawn
in the step before."""

from tokenizer import ImageTokenizerConfig

from .base import Order


class Wavefront(Order):
    @staticmethod
    def plan(sizes: ImageTokenizerConfig) -> list[dict[int, int | None]]:
        side = sizes.grid
        steps: list[dict[int, int | None]] = []
        for diagonal in range(2 * side - 1):
            rows = range(max(0, diagonal - side + 1), min(diagonal + 1, side))
            places = {row: row * side + diagonal - row for row in rows}
            sources = {row: place - 1 if row < diagonal else place - side for row, place in places.items()}
            steps.append({place: sources[row] if diagonal else None for row, place in places.items()})
        return steps
