"""Pictures of objects: colours, outlines, stripes of crowds, scores."""

import numpy as np

from timewalk.evaluation.mask_pictures import id_colours
from timewalk.evaluation.object_pictures import LONG_SIDE, Objects, border, drawn, object_sheet

HEIGHT, WIDTH = 60, 80
FACTOR = LONG_SIDE // WIDTH
GREY = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
COLOURS = id_colours(4)[1:].astype(float)


def objects(*boxes, classes=None, **more):
    masks = np.zeros((len(boxes), HEIGHT, WIDTH), np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = 1
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    labels = np.arange(len(boxes)) if classes is None else np.array(classes, int)
    return Objects(corners, labels, masks, **more)


def at(picture, x, y):
    """Return the pixel in the middle of a stored one."""
    return picture[y * FACTOR + FACTOR // 2, x * FACTOR + FACTOR // 2].tolist()


def mixed(label):
    return (0.5 * 100 + 0.5 * COLOURS[label]).round().tolist()


def test_masks_are_tinted_in_the_colour_of_their_class():
    picture = drawn(GREY, objects((10, 10, 30, 30), (20, 20, 50, 50), classes=(2, 0)), 3)
    assert picture.shape == (HEIGHT * FACTOR, WIDTH * FACTOR, 3)
    assert at(picture, 15, 15) == mixed(2)
    assert at(picture, 40, 40) == mixed(0)
    assert at(picture, 70, 5) == [100] * 3
    # Where two overlap, the first lies in front.
    assert at(picture, 25, 25) == mixed(2)


def test_boxes_and_outlines_have_the_full_colour():
    picture = drawn(GREY, objects((10, 10, 30, 30)), 3)
    assert picture[10 * FACTOR, 20 * FACTOR].tolist() == COLOURS[0].tolist()
    assert picture[30 * FACTOR - 1, 20 * FACTOR].tolist() == COLOURS[0].tolist()


def test_crowds_are_striped():
    found = objects((10, 10, 50, 50), crowd=np.array([True]))
    line = drawn(GREY, found, 3)[25 * FACTOR, 15 * FACTOR : 45 * FACTOR]
    assert {tuple(pixel) for pixel in line.tolist()} == {(100, 100, 100), tuple(mixed(0))}


def test_scores_stand_above_their_boxes():
    box = (10, 20, 50, 50)
    with_score = drawn(GREY, objects(box, scores=np.array([0.87])), 3)
    without = drawn(GREY, objects(box), 3)
    changed = np.flatnonzero((with_score != without).any(axis=(1, 2)))
    assert len(changed)
    assert 20 * FACTOR - 16 <= changed[0] <= changed[-1] < 20 * FACTOR
    # A box at the top has its score inside.
    assert (drawn(GREY, objects((10, 0, 50, 50), scores=np.array([0.5])), 3) != without).any()


def test_boxes_without_area_and_at_the_border():
    found = objects((0, 0, 0, 0), (80, 60, 80, 60), (79, 59, 80, 60), scores=np.array([0.9] * 3))
    assert drawn(GREY, found, 3).shape == (HEIGHT * FACTOR, WIDTH * FACTOR, 3)


def test_a_sheet_with_a_legend_of_the_classes_in_sight():
    names = ("cat", "dog", "owl")
    row = (GREY, objects((10, 10, 30, 30), classes=(1,)), objects(classes=()))
    sheet = object_sheet([row, row], names)
    assert sheet.shape == (2 * HEIGHT * FACTOR + 2 * 4 + 16, 2 * LONG_SIDE + 4, 3)
    strip = sheet[-16:].reshape(-1, 3).tolist()
    assert COLOURS[1].tolist() in strip
    assert COLOURS[0].tolist() not in strip
    nothing = object_sheet([(GREY, objects(classes=()), objects(classes=()))], names)
    assert nothing.shape == (HEIGHT * FACTOR, 2 * LONG_SIDE + 4, 3)


def test_upright_images_beside_wide_ones():
    upright = np.full((80, 60, 3), 100, np.uint8)
    empty = Objects(np.zeros((0, 4)), np.zeros(0, int), np.zeros((0, 80, 60), np.uint8))
    sheet = object_sheet([(upright, empty, empty)], ("cat",))
    assert sheet.shape == (LONG_SIDE, 2 * 360 + 4, 3)


def test_the_border_of_a_mask():
    mask = np.zeros((6, 6), bool)
    mask[1:5, 2:6] = True
    expected = mask.copy()
    expected[2:4, 3:5] = False
    assert (border(mask) == expected).all()
