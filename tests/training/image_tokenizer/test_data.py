"""Which images a rank reads: by counting, in any split of a run."""

import pytest

from training.image_tokenizer.data import RankPositions


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize(("seen", "batches", "size"), [(0, 6, 4), (48, 12, 1), (7, 6, 5)])
def test_ranks_share_all_positions_batch_by_batch(world, seen, batches, size):
    ranks = [RankPositions(rank, world, seen, batches, size) for rank in range(world)]
    end = seen + batches * size
    for rank, positions in enumerate(ranks):
        mine = [position for position in range(seen, end) if (position - seen) // size % world == rank]
        assert list(positions) == mine and len(positions) == len(mine)
    assert sorted(position for positions in ranks for position in positions) == list(range(seen, end))


def test_a_long_run_is_counted_not_listed():
    positions = RankPositions(1, 2, 10**12, 2 * 10**12, 64)
    assert len(positions) == 64 * 10**12
    assert positions[len(positions) - 1] == 10**12 + 2 * 64 * 10**12 - 1
    for outside in (-1, len(positions)):
        with pytest.raises(IndexError):
            positions[outside]
