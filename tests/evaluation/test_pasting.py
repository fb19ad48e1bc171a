import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.evaluation.pasting import paste


def pasted(mask, box, size, threshold=0.5):
    (result,) = paste(mask[None], torch.tensor([box]), size, threshold)
    return result


def test_full_mask_is_its_box():
    result = pasted(torch.ones(28, 28), [3.0, 2.0, 10.0, 6.0], (8, 12))
    expected = torch.zeros(8, 12, dtype=torch.bool)
    expected[2:6, 3:10] = True
    assert torch.equal(result, expected)


def test_pixels_count_by_their_centres():
    result = pasted(torch.ones(4, 4), [0.4, 0.6, 2.6, 1.4], (3, 4))
    assert result.nonzero().tolist() == []
    result = pasted(torch.ones(4, 4), [0.4, 0.4, 2.6, 1.6], (3, 4))
    assert result.nonzero().tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


def test_left_half_of_a_mask():
    mask = torch.zeros(28, 28)
    mask[:, :14] = 1
    result = pasted(mask, [0.0, 0.0, 8.0, 8.0], (8, 10))
    assert result.any(dim=0).tolist() == [True] * 4 + [False] * 6


def test_boxes_beyond_the_image_are_cut():
    result = pasted(torch.ones(28, 28), [-5.0, -5.0, 3.0, 20.0], (6, 6))
    assert result.sum() == 3 * 6
    assert not pasted(torch.ones(28, 28), [50.0, 50.0, 60.0, 60.0], (6, 6)).any()


@pytest.mark.parametrize("box", [[2.0, 2.0, 2.0, 5.0], [4.0, 4.0, 3.0, 3.0]])
def test_boxes_without_area_have_no_pixel(box):
    assert not pasted(torch.ones(28, 28), box, (6, 6)).any()


def test_nothing_is_pasted_of_nothing():
    assert list(paste(torch.zeros(0, 28, 28), torch.zeros(0, 4), (6, 6))) == []


def test_columns_are_contiguous():
    assert pasted(torch.ones(28, 28), [0.0, 0.0, 4.0, 4.0], (6, 5)).numpy().flags.f_contiguous


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 10**6),
    st.floats(-4, 20),
    st.floats(-4, 20),
    st.floats(1, 30),
    st.floats(1, 30),
)
def test_agrees_with_a_sampled_grid(seed, left, top, width, height):
    mask = torch.rand(28, 28, generator=torch.Generator().manual_seed(seed))
    box = torch.tensor([left, top, left + width, top + height])
    y, x = torch.meshgrid(torch.arange(22) + 0.5, torch.arange(25) + 0.5, indexing="ij")
    places = torch.stack([(x - box[0]) / (box[2] - box[0]), (y - box[1]) / (box[3] - box[1])], -1)
    sampled = F.grid_sample(mask[None, None], places[None] * 2 - 1, align_corners=False)[0, 0]
    inside = ((places >= 0) & (places < 1)).all(dim=-1)
    unsure = ((sampled - 0.5).abs() < 1e-4) | (places.abs() < 1e-4).any(-1)
    unsure |= ((places - 1).abs() < 1e-4).any(-1)
    result = pasted(mask, box.tolist(), (22, 25))
    assert torch.equal(result[~unsure], ((sampled >= 0.5) & inside)[~unsure])
