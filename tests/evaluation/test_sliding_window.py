"""Windows over an image: where they lie, and what becomes of their logits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from timewalk.evaluation.sliding_window import (
    cut,
    decide,
    make_pass,
    side_weights,
    windows_along,
)


@pytest.mark.parametrize(
    ("length", "starts"),
    [
        (512, (0,)),
        (513, (0, 1)),
        (683, (0, 171)),
        (853, (0, 341)),
        (854, (0, 341, 342)),
        (2048, (0, 341, 682, 1023, 1364, 1536)),
    ],
)
def test_the_last_window_is_shifted_back(length, starts):
    side = windows_along(length, 512, 341)
    assert (side.window, side.starts) == (512, starts)


def test_a_short_side_is_one_window_and_so_is_a_whole_image():
    assert windows_along(400, 512, 341).starts == (0,)
    assert windows_along(400, 512, 341).window == 400
    assert windows_along(2048, None, 341).starts == (0,)
    assert windows_along(2048, None, 341).window == 2048


@given(st.integers(1, 300), st.integers(1, 80), st.data())
def test_windows_cover_every_pixel_and_stay_inside(length, crop, data):
    side = windows_along(length, crop, data.draw(st.integers(1, crop)))
    covered = {start + i for start in side.starts for i in range(side.window)}
    assert covered == set(range(length))
    assert len(set(side.starts)) == len(side.starts)


@given(st.integers(5, 90), st.integers(8, 40), st.integers(1, 200), st.data())
def test_weights_of_a_pixel_sum_to_one(length, crop, size, data):
    side = windows_along(length, crop, data.draw(st.integers(1, crop)))
    cells = data.draw(st.integers(1, side.window))
    weights = side_weights(side, side.window + data.draw(st.integers(0, 7)), cells, size)
    assert weights.shape == (size, len(side.starts) * cells)
    torch.testing.assert_close(weights.sum(1), torch.ones(size))
    assert weights.min() >= 0


def naive(logits, sides, covered, size):
    """Resize, add up, divide, resize: (K, H, W)."""
    rows, columns = sides
    total = torch.zeros(logits.shape[1], rows.length, columns.length, dtype=torch.float64)
    counts = torch.zeros(rows.length, columns.length)
    places = [(y, x) for y in rows.starts for x in columns.starts]
    for cells, (y, x) in zip(logits.double(), places, strict=True):
        pixels = F.interpolate(cells[None], covered, mode="bilinear", align_corners=False)[0]
        inside = slice(y, y + rows.window), slice(x, x + columns.window)
        total[:, *inside] += pixels[:, : rows.window, : columns.window]
        counts[inside] += 1
    averaged = (total / counts)[None]
    return F.interpolate(averaged, size, mode="bilinear", align_corners=False)[0]


@pytest.mark.parametrize(
    ("shape", "size", "covered"),
    [
        ((40, 70), (40, 70), (32, 32)),
        ((40, 70), (97, 151), (32, 32)),
        ((64, 33), (20, 11), (32, 32)),
        ((20, 70), (50, 175), (24, 32)),
    ],
)
def test_it_is_the_average_of_resized_windows(shape, size, covered):
    sides = tuple(windows_along(length, 32, 21) for length in shape)
    count = len(sides[0].starts) * len(sides[1].starts)
    cells = (covered[0] // 4, covered[1] // 4)
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(count, 9, *cells, generator=rng)
    expected = naive(logits, sides, covered, size)
    found = decide([make_pass(logits, sides, covered, size)])
    assert found.shape == size
    best = expected.topk(2, dim=0)
    clear = best.values[0] - best.values[1] > 1e-5
    assert clear.float().mean() > 0.99
    assert torch.equal(found.long()[clear], best.indices[0][clear])


def test_several_passes_are_averaged_as_probabilities():
    sides = (windows_along(32, None, 1), windows_along(48, None, 1))
    rng = torch.Generator().manual_seed(1)
    coarse, fine = (3 * torch.randn(1, 5, 32 // n, 48 // n, generator=rng) for n in (8, 4))
    size = (70, 90)
    passes = [
        make_pass(coarse, sides, (32, 48), size),
        make_pass(fine, sides, (32, 48), size, flipped=True),
    ]
    expected = naive(coarse, sides, (32, 48), size).softmax(0)
    expected = expected + naive(fine, sides, (32, 48), size).softmax(0).flip(2)
    best = expected.topk(2, dim=0)
    clear = best.values[0] - best.values[1] > 1e-5
    assert torch.equal(decide(passes).long()[clear], best.indices[0][clear])


def test_windows_are_cut_row_by_row():
    image = torch.arange(3 * 6 * 8).reshape(3, 6, 8)
    rows, columns = windows_along(6, 4, 3), windows_along(8, 4, 4)
    windows = cut(image, rows, columns)
    assert windows.shape == (4, 3, 4, 4)
    assert torch.equal(windows[1], image[:, :4, 4:])
    assert torch.equal(windows[2], image[:, 2:, :4])
