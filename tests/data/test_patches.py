"""Frames cut into patches: how many, where, and always the same for the same generator."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from timewalk.data.patches import (
    frame_view,
    node_patches,
    patch_grid,
    patch_view,
    random_crop,
    square,
)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def gradient(height, width):
    """Return an image whose red says the column and whose green says the row, in 0..255."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([255 * columns / (width - 1), 255 * rows / (height - 1), 0 * rows], -1)
    return Image.fromarray(pixels.round().astype(np.uint8))


def test_the_published_grid():
    """7 x 7 patches of 64 pixels, 32 apart, in a frame of 256."""
    places = patch_grid(256, 64)
    assert len(places) == 49
    assert places[:8] == [(0, 0), (0, 32), (0, 64), (0, 96), (0, 128), (0, 160), (0, 192), (32, 0)]
    assert places[-1] == (192, 192)


@given(st.integers(8, 300), st.integers(8, 300))
def test_patches_lie_within_the_frame(image_size, patch_size):
    places = patch_grid(image_size, patch_size)
    assert (not places) == (patch_size > image_size)
    for top, left in places:
        assert 0 <= top <= image_size - patch_size
        assert 0 <= left <= image_size - patch_size
    lines = sorted({top for top, _ in places})
    assert len(places) == len(lines) ** 2
    assert set(np.diff(lines).tolist()) <= {patch_size // 2}


@pytest.mark.parametrize("size", [(60, 80), (256, 256), (97, 51)])
def test_shape_and_kind(size):
    found = node_patches(gradient(*size), 96, 32, rng())
    assert found.shape == (25, 3, 32, 32)
    assert found.dtype == np.uint8


def test_patches_come_from_their_places():
    """Red rises from patch to patch along a row, green from row to row; blue is none."""
    found = node_patches(gradient(120, 160), 128, 32, rng(1)).astype(float)
    red, green, blue = found.mean((2, 3)).reshape(7, 7, 3).transpose(2, 0, 1)
    assert (np.diff(red, axis=1) > 0).all()
    assert (np.diff(green, axis=0) > 0).all()
    assert (blue == 0).all()
    # The crop keeps 0.8 of the frame or more, so neighbours are an eighth of 255 or less apart.
    assert np.diff(red, axis=1).mean() == pytest.approx(29, abs=5)


@pytest.mark.parametrize("place", [(0, 0), (16, 32), (64, 64)])
def test_a_patch_is_cropped_within_its_place(place):
    frame = gradient(96, 96)
    low = np.array(place[::-1]) * 255 / 95
    for seed in range(20):
        patch = np.asarray(patch_view(frame, place, 32, rng(seed)), float)
        assert patch.shape == (32, 32, 3)
        for axis in (0, 1):
            values = patch[..., axis]
            assert low[axis] - 1 <= values.min()
            assert values.max() <= low[axis] + 31 * 255 / 95 + 1
        # 0.7 to 0.9 of the area, the sides in the ratio 3/4 to 4/3 at most.
        share = np.prod([np.ptp(patch[..., axis]) / (31 * 255 / 95) for axis in (0, 1)])
        assert 0.6 < share < 0.95


def test_the_same_generator_gives_the_same_patches():
    image = gradient(70, 90)
    assert np.array_equal(node_patches(image, 64, 32, rng(3)), node_patches(image, 64, 32, rng(3)))
    assert not np.array_equal(
        node_patches(image, 64, 32, rng(3)), node_patches(image, 64, 32, rng(4))
    )
    state = rng(3)
    one, other = (node_patches(image, 64, 32, state) for _ in range(2))
    assert not np.array_equal(one, other)


def test_a_frame_without_crop_is_the_whole_frame():
    image = gradient(60, 80)
    found = frame_view(image, 64, False, rng())
    assert np.array_equal(found, square(image, 64))
    assert found.size == (64, 64)
    cropped = np.asarray(frame_view(image, 64, True, rng()), float)
    assert np.ptp(cropped[..., 0]) < 254


@given(st.integers(0, 2**16), st.integers(8, 90), st.integers(8, 90))
def test_crops_keep_the_share_of_the_area(seed, height, width):
    crop = random_crop(gradient(height, width), (0.8, 0.95), (0.7, 1.3), rng(seed))
    assert crop.width <= width
    assert crop.height <= height
