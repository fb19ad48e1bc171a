"""Polygons and runs to masks, beside the official library."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from timewalk.data.object_masks import (
    Outline,
    Placement,
    fill_polygon,
    mask_to_runs,
    outlines_to_masks,
    runs_to_mask,
    text_to_runs,
)

MASKS = arrays(
    np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 1)
)


def filled(points, size):
    mask = np.zeros(size, np.uint8)
    fill_polygon(mask, np.array(points, np.float64))
    return mask


def star(seed, size=(120, 160)):
    """Corners of an irregular closed curve, as annotators draw objects."""
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 24))
    radii = rng.uniform(25, 50, 24)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.clip((80, 60) + radii[:, None] * circle, 0, size[::-1])


def test_coordinates_are_edges_of_pixels():
    mask = filled([(1, 2), (4, 2), (4, 4), (1, 4)], (6, 6))
    assert mask.sum() == 6
    assert mask[2:4, 1:4].all()


def test_a_pixel_is_inside_where_its_centre_is():
    assert filled([(0.6, 0), (3.5, 0), (3.5, 1), (0.6, 1)], (1, 5)).tolist() == [[0, 1, 1, 0, 0]]
    triangle = filled([(0, 0), (4, 0), (0, 4)], (4, 4))
    # Centres on the slanting edge belong to the pixel whose left edge is crossed last.
    assert triangle.tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]


def test_what_is_beyond_the_mask_is_cut_off():
    around = [(-5, -5), (20, -5), (20, 20), (-5, 20)]
    assert filled(around, (4, 7)).all()
    assert not filled([(10, 1), (15, 1), (15, 3), (10, 3)], (4, 7)).any()
    assert not filled([(1, -9), (5, -9), (5, -2), (1, -2)], (4, 7)).any()
    half = filled([(-3, 1), (3, 1), (3, 3), (-3, 3)], (4, 7))
    assert half.sum() == 6
    assert half[1:3, :3].all()


def test_a_polygon_thinner_than_a_pixel_may_have_none():
    assert not filled([(1.6, 0), (2.4, 0), (2.4, 4), (1.6, 4)], (4, 4)).any()


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_polygons_agree_with_the_official_library(seed):
    official = pytest.importorskip("pycocotools.mask")
    points = star(seed)
    runs = official.frPyObjects([points.reshape(-1).tolist()], 120, 160)
    theirs = official.decode(official.merge(runs)).astype(bool)
    ours = filled(points, (120, 160)).astype(bool)
    assert (ours & theirs).sum() / (ours | theirs).sum() > 0.97


@given(MASKS)
def test_runs_give_back_their_mask(mask):
    assert (runs_to_mask(np.array(mask_to_runs(mask)), mask.shape) == mask).all()


@given(MASKS)
@settings(deadline=None)
def test_runs_are_the_official_ones(mask):
    official = pytest.importorskip("pycocotools.mask")
    encoded = official.encode(np.asfortranarray(mask))
    assert text_to_runs(encoded["counts"].decode()) == mask_to_runs(mask)
    plain = {"counts": mask_to_runs(mask), "size": list(mask.shape)}
    assert (official.decode(official.frPyObjects(plain, *mask.shape)) == mask).all()


def test_runs_by_hand():
    mask = np.array([[0, 1, 1], [1, 1, 0]])
    assert mask_to_runs(mask) == [1, 4, 1]  # down the columns: 0 1, 1 1, 1 0
    assert mask_to_runs(np.ones((2, 2))) == [0, 4]
    assert mask_to_runs(np.zeros((2, 2))) == [4]


def test_long_runs_of_a_text():
    official = pytest.importorskip("pycocotools.mask")
    mask = (np.arange(400 * 300) % 997 < 400).astype(np.uint8).reshape(400, 300)
    text = official.encode(np.asfortranarray(mask))["counts"].decode()
    assert text_to_runs(text) == mask_to_runs(mask)


@pytest.mark.parametrize(("text", "what"), [("1 1", "' '"), ("1~~", "'~'"), ("15P", "breaks off")])
def test_damaged_text(text, what):
    with pytest.raises(ValueError, match=what):
        text_to_runs(text)


def test_a_mirrored_and_scaled_placement_of_polygons_and_runs():
    stored = np.zeros((4, 6), np.uint8)
    stored[1:3, 0:2] = 1
    square = np.array([(0, 1), (2, 1), (2, 3), (0, 3)], np.float64)
    outlines = [Outline((square,)), Outline(runs=np.array(mask_to_runs(stored)))]
    mirrored = Placement(8, 12, x_scale=-2, y_scale=2, x_shift=12)
    masks = outlines_to_masks(outlines, (4, 6), mirrored)
    assert (masks == np.kron(stored, np.ones((2, 2)))[:, ::-1]).all()
    box = mirrored.boxes(np.array([[0, 1, 2, 3]], np.float32))
    assert box.tolist() == [[8, 2, 12, 6]]


def test_several_polygons_are_one_object():
    squares = [np.array([(x, 0), (x + 2, 0), (x + 2, 2), (x, 2)], float) for x in (0, 1, 5)]
    (mask,) = outlines_to_masks([Outline(tuple(squares))], (2, 8), Placement(2, 8))
    assert mask.tolist() == [[1, 1, 1, 0, 0, 1, 1, 0]] * 2


def test_an_object_without_outline_has_no_pixel():
    (mask,) = outlines_to_masks([Outline()], (2, 3), Placement(2, 3))
    assert mask.shape == (2, 3)
    assert not mask.any()
