"""Masks in boxes as runs: beside the masks that are pasted one by one, and pycocotools."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as official

from tests.evaluation.pasting import paste
from timewalk.evaluation import mask_runs as module
from timewalk.evaluation.mask_runs import decoded, mask_runs, rle, run_lengths


def pasted(masks, boxes, size):
    """Return what pycocotools makes of the masks that are pasted one by one."""
    found = [official.encode(np.asfortranarray(mask)) for mask in paste(masks, boxes, size)]
    return [one["counts"].decode() for one in found]


@st.composite
def predictions(draw):
    """Blobs in boxes of any size within an image, some without area, some the whole image."""
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    height, width = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    count = draw(st.integers(0, 8))
    coarse = torch.rand(count, 1, 4, 4, generator=rng)
    masks = torch.nn.functional.interpolate(coarse, size=(28, 28), mode="bilinear")[:, 0]
    corners = torch.rand(count, 2, 2, generator=rng).sort(dim=1).values
    boxes = (corners * torch.tensor([width, height])).flatten(1)
    if count > 2:
        boxes[0] = torch.tensor([0.0, 0.0, width, height])
        masks[0] += 0.5
        boxes[1, 2:] = boxes[1, :2]
    return masks.clamp(max=1), boxes, (height, width)


@given(predictions(), st.sampled_from([1, 200, 2**17]))
def test_equals_masks_that_are_pasted_one_by_one(made, most):
    before = module.MOST_PIXELS
    module.MOST_PIXELS = {"cpu": most}
    try:
        assert mask_runs(*made) == pasted(*made)
    finally:
        module.MOST_PIXELS = before


def test_by_hand():
    """A mask that is 1 everywhere fills the pixels whose centres are in the box."""
    ones = torch.ones(1, 28, 28)
    assert run_lengths(ones, torch.tensor([[1.0, 2.0, 3.0, 4.0]]), (6, 5)) == [[8, 2, 4, 2, 14]]
    assert run_lengths(ones, torch.tensor([[1.4, 1.6, 3.4, 4.4]]), (6, 5)) == [[8, 2, 4, 2, 14]]


def test_runs_go_on_from_column_to_column():
    ones, boxes = torch.ones(2, 28, 28), torch.tensor([[1.0, 0, 3, 4], [0, 0, 5, 4]])
    assert run_lengths(ones, boxes, (4, 5)) == [[4, 8, 8], [0, 20]]


@pytest.mark.parametrize("box", [[2.0, 2.0, 2.0, 4.0], [3.6, 1.0, 4.4, 4.0], [5.0, 6.0, 5.0, 6.0]])
def test_a_box_without_a_pixel_centre_has_an_empty_mask(box):
    assert run_lengths(torch.ones(1, 28, 28), torch.tensor([box]), (6, 5)) == [[30]]
    assert not decoded(
        mask_runs(torch.ones(1, 28, 28), torch.tensor([box]), (6, 5))[0], (6, 5)
    ).any()


def test_a_half_belongs_to_the_object_and_less_does_not():
    box = torch.tensor([[1.0, 1.0, 4.0, 4.0]])
    for value, pixels in ((0.51, 1), (0.49, 0)):
        masks = torch.full((1, 28, 28), value)
        assert decoded(mask_runs(masks, box, (5, 5))[0], (5, 5))[2, 2] == pixels


def test_no_masks():
    assert mask_runs(torch.zeros(0, 28, 28), torch.zeros(0, 4), (6, 5)) == []


def test_masks_as_the_official_results_have_them():
    masks, boxes = torch.ones(1, 28, 28), torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    (counts,) = mask_runs(masks, boxes, (6, 5))
    expected = np.zeros((6, 5), np.uint8)
    expected[2:4, 1:3] = 1
    assert (decoded(counts, (6, 5)) == expected).all()
    assert (official.decode(rle(counts, (6, 5))) == expected).all()
