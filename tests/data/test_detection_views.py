"""Views of images with objects: sizes, crops, boxes and masks that stay together."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from timewalk.data.detection_views import (
    Sizes,
    Window,
    collate,
    collate_images,
    draw_window,
    packed_masks,
    resized,
    training_sample,
    unpacked_masks,
    whole_image,
    window_sample,
)
from timewalk.data.object_masks import Outline, Placement, mask_to_runs, outlines_to_masks
from timewalk.data.objects import ObjectImage

HEIGHT, WIDTH = 60, 80
RED = (20, 10, 50, 40)
"""left, top, right, bottom of the red box in the image"""


def square(box):
    left, top, right, bottom = box
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return Outline((np.array(corners, np.float64),))


def objects(path, *boxes, crowd=(), size=(HEIGHT, WIDTH), outlines=None):
    count = len(boxes)
    return ObjectImage(
        path,
        7,
        *size,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.arange(count),
        np.array([number in crowd for number in range(count)], bool),
        np.ones(count, np.float32),
        tuple(outlines or [square(box) for box in boxes]),
    )


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("views") / "picture.png"
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[RED[1] : RED[3], RED[0] : RED[2], 0] = 255
    Image.fromarray(pixels).save(path)
    return path


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def masks_of(sample):
    return unpacked_masks(sample["masks"], sample["image"].shape[-1])


SMALL = Sizes().scaled(0.1)


def test_sizes_of_the_sheet():
    sizes = Sizes()
    assert sizes.short_sides == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    assert (
        Sizes((48, 51, 54, 58, 61, 64, 67, 70, 74, 77, 80), 133, 80, (40, 50, 60), (38, 60))
        == SMALL
    )
    assert sizes.scaled(1) == sizes
    with pytest.raises(ValueError, match="at least a pixel"):
        Sizes(crop=(600, 384))


def test_a_resize_keeps_the_ratio_and_both_limits():
    assert resized((480, 640), 800, 1333) == (800, 1067)
    assert resized((640, 427), 800, 1333) == (1199, 800)
    assert resized((400, 2000), 800, 1333) == (267, 1333)
    assert resized((1, 5000), 800, 1333) == (1, 1333)


def test_the_whole_image(picture):
    image = whole_image(objects(picture), SMALL)
    assert image.dtype == torch.uint8
    assert image.shape == (3, 80, 107)


def test_a_window_by_hand(picture):
    # The right half but for its last ten columns, at twice the size.
    image = objects(picture, RED, (60, 20, 75, 30), (0, 0, 40, 60), (72, 5, 80, 9))
    sample = window_sample(image, Window(40, 0, 70, 60, 120, 60))
    assert sample["classes"].tolist() == [0, 1]
    assert sample["boxes"].tolist() == [[0, 20, 20, 80], [40, 40, 60, 60]]
    assert masks_of(sample).sum(dim=(1, 2)).tolist() == [20 * 60, 20 * 20]
    assert (sample["image"][0, 21:79, 1:19] == 255).all()
    assert (sample["image"][0, :, 21:] == 0).all()


def test_a_mirrored_window_is_the_mirrored_sample(picture):
    image = objects(picture, RED, (41, 5, 79, 33))
    window = Window(15.5, 3.25, 70.5, 58, 90, 75)
    plain = window_sample(image, window)
    mirrored = window_sample(image, dataclasses.replace(window, mirrored=True))
    assert torch.equal(mirrored["image"], plain["image"].flip(-1))
    left, top, right, bottom = plain["boxes"].T
    expected = torch.stack([75 - right, top, 75 - left, bottom], dim=1)
    torch.testing.assert_close(mirrored["boxes"], expected)
    assert torch.equal(masks_of(mirrored), masks_of(plain).flip(-1))


@given(seed=st.integers(0, 2**31), height=st.integers(30, 300), width=st.integers(30, 300))
@settings(max_examples=60, deadline=None)
def test_windows_lie_in_the_image_and_keep_its_ratio(seed, height, width):
    window = draw_window((height, width), SMALL, rng(seed))
    assert 0 <= window.left < window.right <= width + 1e-9
    assert 0 <= window.top < window.bottom <= height + 1e-9
    assert max(window.height, window.width) <= 133
    assert min(window.height, window.width) <= 80
    ratio = (window.right - window.left) / window.width
    # Two sizes are rounded to pixels: by at most half a pixel of the shorter side.
    low = min(window.height, window.width, 25)
    assert (window.bottom - window.top) / window.height == pytest.approx(ratio, rel=1.5 / low)


@given(
    seed=st.integers(0, 2**31),
    x=st.floats(0, 70),
    y=st.floats(0, 50),
    width=st.floats(2, 60),
    height=st.floats(2, 60),
)
@settings(max_examples=60, deadline=None)
def test_boxes_hold_their_masks_tightly(picture, seed, x, y, width, height):
    box = (x, y, min(x + width, WIDTH), min(y + height, HEIGHT))
    sample = training_sample(objects(picture, box), SMALL, rng(seed))
    masks = masks_of(sample)
    assert sample["image"].shape[1:] == masks.shape[1:]
    for found, mask in zip(sample["boxes"], masks, strict=True):
        rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
        tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert (torch.tensor(tight) - found).abs().max() <= 0.51
        assert found[0] >= 0
        assert found[2] <= mask.shape[1]
        assert found[1] >= 0
        assert found[3] <= mask.shape[0]


def test_pixels_boxes_and_masks_stay_together(picture):
    for seed in range(30):
        sample = training_sample(objects(picture, RED), SMALL, rng(seed))
        red = sample["image"][0] > 127
        for mask in masks_of(sample):
            both, either = (mask.bool() & red).sum(), (mask.bool() | red).sum()
            assert both / either > 0.9


def test_about_half_is_mirrored_and_half_is_cropped():
    size = (HEIGHT, WIDTH)
    windows = [draw_window(size, SMALL, rng(seed)) for seed in range(400)]
    assert 170 <= sum(window.mirrored for window in windows) <= 230
    # A crop may still be the whole image where that is small.
    parts = [(w.bottom - w.top) * (w.right - w.left) < HEIGHT * WIDTH - 1 for w in windows]
    assert 140 <= sum(parts) <= 230


def test_crops_have_the_sides_of_the_sheet():
    sizes = Sizes(short_sides=(500,), crop_short_sides=(600,), long_side=5000)
    windows = [draw_window((600, 1000), sizes, rng(seed)) for seed in range(300)]
    sides = [side for w in windows for side in (w.bottom - w.top, w.right - w.left) if side < 600]
    assert min(sides) == pytest.approx(384, abs=5)
    assert max(sides) == pytest.approx(599, abs=5)
    assert all(side >= 384 for side in sides)


def test_crops_begin_anywhere_from_end_to_end():
    # Crops of 20x20 out of 24x24: five places along each side, all of them drawn.
    sizes = Sizes(short_sides=(20,), long_side=100, crop_short_sides=(24,), crop=(20, 20))
    windows = [draw_window((24, 24), sizes, rng(seed)) for seed in range(300)]
    crops = [w for w in windows if w.right - w.left < 24]
    assert 110 <= len(crops) <= 190
    assert {w.left for w in crops} == {0, 1, 2, 3, 4}
    assert {w.top for w in crops} == {0, 1, 2, 3, 4}
    assert {(w.left, w.top) for w in crops} >= {(0, 0), (0, 4), (4, 0), (4, 4)}
    assert {w.right - w.left for w in crops} == {w.bottom - w.top for w in crops} == {20}


def test_crops_have_every_side_both_ends_included():
    sizes = Sizes(short_sides=(20,), long_side=100, crop_short_sides=(24,), crop=(20, 23))
    windows = [draw_window((24, 24), sizes, rng(seed)) for seed in range(300)]
    crops = [w for w in windows if w.right - w.left < 24]
    assert {w.right - w.left for w in crops} == {20, 21, 22, 23}
    assert {w.bottom - w.top for w in crops} == {20, 21, 22, 23}


def test_every_short_side_is_drawn():
    sizes = Sizes(short_sides=(30, 40, 50), long_side=500, crop_short_sides=(60, 70), crop=(20, 20))
    windows = [draw_window((100, 100), sizes, rng(seed)) for seed in range(300)]
    whole = Counter(w.height for w in windows if w.right - w.left == 100)
    assert set(whole) == {30, 40, 50}
    assert min(whole.values()) >= 30
    # The crop's 20 pixels are of an image resized to the side drawn before.
    before = Counter(round(20 * 100 / (w.right - w.left)) for w in windows if w.right - w.left < 99)
    assert set(before) == {60, 70}
    assert min(before.values()) >= 50
    assert {w.height for w in windows if w.right - w.left < 99} == {30, 40, 50}


def test_the_same_draws_give_the_same_sample(picture):
    image = objects(picture, RED)
    one, again = (training_sample(image, SMALL, rng(5)) for _ in range(2))
    assert all(torch.equal(one[key], again[key]) for key in one)
    other = training_sample(image, SMALL, rng(6))
    assert other["image"].shape != one["image"].shape


def test_what_is_not_trained_on(picture):
    image = objects(
        picture,
        RED,
        (0, 0, 40, 40),  # a crowd
        (10, 10, 10, 20),  # empty
        (90, 10, 99, 20),  # outside
        (30, 30, 20, 20),  # turned inside out
        (5, 5, 9, 9),  # without outline
        (70, 50, 95, 70),  # beyond the frame: cut
        crowd=(1,),
        outlines=[square(RED)] * 5 + [Outline(), square((70, 50, 95, 70))],
    )
    sample = window_sample(image, Window(0, 0, WIDTH, HEIGHT, HEIGHT, WIDTH))
    assert sample["classes"].tolist() == [0, 6]
    assert sample["boxes"].tolist() == [list(RED), [70, 50, 80, 60]]
    assert masks_of(sample).sum(dim=(1, 2)).tolist() == [900, 100]


def test_an_image_with_nothing_left(picture):
    sample = window_sample(objects(picture, RED), Window(60, 0, 80, 60, 60, 20))
    assert sample["boxes"].shape == (0, 4)
    assert sample["boxes"].dtype == torch.float32
    assert sample["classes"].shape == (0,)
    assert sample["classes"].dtype == torch.int64
    assert sample["masks"].shape == (0, 60, 3)
    assert sample["masks"].dtype == torch.uint8
    assert masks_of(sample).shape == (0, 60, 20)


def test_a_box_whose_mask_is_elsewhere_keeps_an_empty_one(picture):
    corner = Outline((np.array([(20, 10), (50, 10), (20, 40)], np.float64),))
    image = objects(picture, RED, outlines=[corner])
    sample = window_sample(image, Window(42, 32, 80, 60, 28, 38))
    assert sample["boxes"].tolist() == [[0, 0, 8, 8]]
    assert not masks_of(sample).any()


def test_runs_follow_like_polygons(picture):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[RED[1] : RED[3], RED[0] : RED[2]] = 1
    runs = Outline(runs=np.array(mask_to_runs(mask)))
    image = objects(picture, RED, RED, outlines=[runs, square(RED)])
    for seed in range(10):
        masks = masks_of(training_sample(image, SMALL, rng(seed)))
        if len(masks):
            assert (masks[0] != masks[1]).sum() <= 2 * sum(masks.shape[1:])


def test_a_batch_of_different_sizes(picture):
    image = objects(picture, RED, (41, 5, 79, 33))
    whole = window_sample(image, Window(0, 0, 80, 60, 60, 80))
    half = window_sample(image, Window(0, 0, 40, 60, 120, 80))
    nothing = window_sample(objects(picture), Window(0, 0, 80, 60, 30, 40))
    batch = collate([whole, nothing, half], 32)
    assert batch["images"].shape == (3, 3, 128, 96)
    assert batch["images"].dtype == torch.uint8
    assert batch["sizes"].tolist() == [[60, 80], [30, 40], [120, 80]]
    assert batch["counts"].tolist() == [2, 0, 1]
    assert batch["boxes"].shape == (3, 4)
    assert batch["classes"].tolist() == [0, 1, 0]
    assert batch["masks"].shape == (3, 128, 12)
    assert batch["masks"].dtype == torch.uint8
    masks = unpacked_masks(batch["masks"], 96)
    assert torch.equal(masks[2, :120, :80], masks_of(half)[0])
    assert masks[2].any()
    assert not masks[0, 60:].any()
    assert not masks[0, :, 80:].any()
    assert torch.equal(batch["images"][0, :, :60, :80], whole["image"])
    assert not batch["images"][1, :, 30:].any()


def test_a_batch_without_any_object(picture):
    nothing = window_sample(objects(picture), Window(0, 0, 80, 60, 30, 40))
    batch = collate([nothing, nothing], 16)
    assert batch["masks"].shape == (0, 32, 6)
    assert batch["boxes"].shape == (0, 4)
    assert batch["counts"].tolist() == [0, 0]


@given(height=st.integers(1, 20), width=st.integers(1, 40), multiple=st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_masks_are_the_same_after_their_way_as_bits(height, width, multiple):
    drawn = np.random.default_rng(height * 64 + width).integers(0, 2, (3, height, width))
    outlines = [Outline(runs=np.array(mask_to_runs(mask))) for mask in drawn]
    size = (height, width)
    plain = outlines_to_masks(outlines, size, Placement(*size))
    np.testing.assert_array_equal(plain, drawn)
    sample = {
        "image": torch.zeros(3, *size, dtype=torch.uint8),
        "boxes": torch.zeros(3, 4),
        "classes": torch.zeros(3, dtype=torch.int64),
        "masks": torch.from_numpy(packed_masks(outlines, size, Placement(*size))),
    }
    batch = collate([sample], multiple)
    assert batch["masks"].shape[-1] == -(-batch["images"].shape[-1] // 8)
    masks = unpacked_masks(batch["masks"], batch["images"].shape[-1])
    assert masks.dtype == torch.uint8
    assert masks.shape[1:] == batch["images"].shape[2:]
    assert masks[:, :height, :width].tolist() == drawn.tolist()
    assert masks.sum() == drawn.sum()


def test_images_of_the_test(picture):
    images, sizes = collate_images([whole_image(objects(picture), SMALL)] * 2, 14)
    assert images.shape == (2, 3, 84, 112)
    assert sizes.tolist() == [[80, 107]] * 2
