"""Generated scenes: shapes in the image, told apart by colour, the same for the same generator."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from timewalk.data.generated_scenes import CLASSES, COLOURS, SEEN, draw_scene


def scene(seed=0, size=(96, 128), objects=3, classes=6):
    return draw_scene(size, np.random.default_rng(seed), objects, classes)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.tuples(st.integers(32, 80), st.integers(32, 80)),
    objects=st.integers(0, 8),
    classes=st.integers(1, 6),
)
def test_a_scene(seed, size, objects, classes):
    made = scene(seed, size, objects, classes)
    assert (made.image.shape, made.image.dtype) == ((*size, 3), np.uint8)
    assert min(objects, 1) <= len(made.objects) <= objects
    masks = [thing.mask for thing in made.objects]
    assert all(mask.shape == size and mask.dtype == bool and mask.any() for mask in masks)
    assert np.sum(masks, axis=0, dtype=int).max(initial=0) <= 1
    assert all(0 <= thing.category < classes for thing in made.objects)
    for thing in made.objects:
        assert (made.ids[thing.mask] == thing.category + 1).all()
    assert (made.ids > 0).sum() == sum(mask.sum() for mask in masks)


@pytest.mark.parametrize("seed", range(8))
def test_a_shape_s_side_is_a_sixth_to_half_of_the_shorter_side(seed):
    mask = scene(seed, (96, 120), objects=1).objects[0].mask
    sides = [np.ptp(np.flatnonzero(mask.any(axis=axis))) + 1 for axis in (0, 1)]
    assert 15 <= max(sides) <= 48


def test_the_same_generator_draws_the_same():
    first, second = scene(3), scene(3)
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.ids, second.ids)
    assert (scene(4).image != first.image).any()


def test_every_class_has_its_colour():
    seen = {}
    for seed in range(60):
        made = scene(seed, objects=1)
        seen[made.objects[0].category] = made.image[made.objects[0].mask].mean(axis=0)
    assert sorted(seen) == list(range(len(CLASSES)))
    for category, colour in seen.items():
        distances = np.linalg.norm(np.array(COLOURS) - colour, axis=1)
        assert distances.argmin() == category


def test_outlines_cover_their_share_of_the_square():
    shares = {"disc": 0.785, "box": 1, "triangle": 0.5, "ring": 0.589, "cross": 0.58, "bar": 0.35}
    for seed in range(40):
        thing = scene(seed, (240, 240), objects=1).objects[0]
        side = max(np.ptp(np.flatnonzero(thing.mask.any(axis=axis))) + 1 for axis in (0, 1))
        assert thing.mask.sum() / side**2 == pytest.approx(
            shares[CLASSES[thing.category]], abs=0.05
        )


def test_no_shape_is_hidden_by_more_than_half():
    for seed in range(30):
        alone = scene(seed, objects=1).objects[0].mask.sum()
        assert scene(seed, objects=8).objects[0].mask.sum() >= SEEN * alone
