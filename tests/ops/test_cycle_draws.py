"""Random cycles of videos: what they name, how often, and what cannot be drawn."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from timewalk.ops.cycle_draws import draw_cycles, draw_starts


@given(
    videos=st.integers(2, 6),
    cycles=st.integers(1, 40),
    data=st.data(),
    seed=st.integers(0, 99),
)
def test_cycles_are_of_different_videos(videos, cycles, data, seed):
    length = data.draw(st.integers(2, videos))
    drawn = draw_cycles(videos, cycles, length, np.random.default_rng(seed))
    assert drawn.shape == (cycles, length + 1)
    assert drawn.dtype == torch.int64
    assert torch.equal(drawn[:, 0], drawn[:, -1])
    for row in drawn.tolist():
        assert len(set(row)) == length
        assert set(row) <= set(range(videos))


def test_every_cycle_occurs_equally_often():
    drawn = draw_cycles(3, 6000, 2, np.random.default_rng(0))
    rows, counts = drawn.unique(dim=0, return_counts=True)
    assert len(rows) == 6
    assert counts.min() > 900
    starts = draw_starts(4, 4000, np.random.default_rng(0))
    assert starts.dtype == torch.int64
    assert starts.bincount().min() > 900


def test_published_cycles_are_all_the_same():
    for cycles, videos in ((20, 4), (40, 2), (80, 4)):
        drawn = draw_cycles(videos, cycles, 2, np.random.default_rng(0), published=True)
        assert drawn.unique(dim=0).tolist() == [[0, 1, 0]]
    drawn = draw_cycles(4, 20, 3, np.random.default_rng(0), published=True)
    assert drawn.unique(dim=0).tolist() == [[0, 1, 2, 0]]
    drawn = torch.cat(
        [draw_cycles(3, 20, 2, np.random.default_rng(seed), published=True) for seed in range(9)]
    )
    assert (drawn[:, 0] == drawn[:, 1]).any()


@pytest.mark.parametrize("length", [1, 5])
def test_lengths_that_cannot_be(length):
    with pytest.raises(ValueError, match=f"cycle_length is {length}; .* the number of videos, 4"):
        draw_cycles(4, 3, length, np.random.default_rng(0))


def test_nothing_to_draw():
    with pytest.raises(ValueError, match="num_cycles is 0; it must be at least 1"):
        draw_cycles(4, 0, 2, np.random.default_rng(0))
    with pytest.raises(ValueError, match="frames is 0; it must be at least 1"):
        draw_starts(0, 3, np.random.default_rng(0))
