"""The mask of the class token's attention: blur, mass, specks."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.functional import gaussian_blur

from timewalk.ops.foreground_mask import attention_masks, blurred, without_specks


def test_blur_is_torchvisions():
    maps = torch.rand(3, 5, 9, generator=torch.Generator().manual_seed(0))
    expected = gaussian_blur(maps[:, None], [7, 7], [0.6, 0.6])[:, 0]
    torch.testing.assert_close(blurred(maps), expected, rtol=0, atol=1e-6)


def test_a_bright_square_is_kept_whole_and_a_bright_dot_is_not():
    attention = torch.full((1, 12, 12), 1e-4)
    attention[0, 2:6, 2:6] = 1.0
    attention[0, 9, 9] = 3.0
    found = attention_masks(attention, keep=0.65)
    assert found.dtype == torch.bool
    assert found[0, 3:5, 3:5].all()
    found[0, 2:6, 2:6] = False
    assert not found.any()


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 0.8))
def test_more_mass_is_a_larger_mask_and_no_mask_has_specks(seed, keep):
    rng = torch.Generator().manual_seed(seed)
    attention = torch.rand(2, 8, 10, generator=rng) ** 4
    small, large = attention_masks(attention, keep), attention_masks(attention, keep + 0.1)
    assert not (small & ~large).any()
    for mask in (*small.numpy(), *large.numpy()):
        assert np.array_equal(without_specks(mask), mask)


@pytest.mark.parametrize(("size", "left"), [(1, 7), (2, 5), (4, 5), (5, 0)])
def test_specks_by_eight_neighbours(size, left):
    mask = np.zeros((7, 7), bool)
    mask[range(5), range(5)] = True  # one part: its pixels touch at corners
    mask[6, 0:2] = True
    assert without_specks(mask, size).sum() == left


def test_each_image_by_itself():
    attention = torch.rand(4, 7, 7, generator=torch.Generator().manual_seed(1))
    together = attention_masks(attention)
    for one, mask in zip(attention, together, strict=True):
        assert torch.equal(attention_masks(one[None])[0], mask)
