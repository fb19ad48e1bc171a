"""Views for TCC: one draw for all frames of a clip, colours in floats."""

import colorsys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from timewalk.data.phase_views import (
    PhaseAugmentation,
    coloured,
    draw_colours,
    phase_view,
    square,
    still_view,
)

PLAIN = PhaseAugmentation(flip=False, brightness=0.0, contrast=None)
EVERYTHING = PhaseAugmentation(crop=True, hue=0.2, saturation=(0.5, 1.5))
SMALLEST, LARGEST = 0.0, 1 - 2**-53


def clip(frames=3, height=20, width=30, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(256, (frames, 3, height, width), generator=rng, dtype=torch.uint8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class TestPhaseView:
    def test_without_augmentation_it_is_the_still_view(self):
        frames = clip()
        found = phase_view(frames, 16, PLAIN, generator())
        assert found.dtype == torch.uint8
        assert found.shape == (3, 3, 16, 16)
        assert torch.equal(found, still_view(frames, 16, crop=False))

    def test_resize_has_half_pixel_centres_and_no_antialias(self):
        row = torch.tensor([0, 40, 80, 120, 160, 200, 240, 250], dtype=torch.uint8)
        frames = row.expand(1, 3, 8, 8)
        found = still_view(frames, 2, crop=False)
        # Centres at 1.5 and 5.5 of the old pixels: the mean of two neighbours each.
        assert found[0, 0, 0].tolist() == [60, 220]

    def test_half_of_the_clips_are_mirrored_all_frames_alike(self):
        frames, augmentation = clip(), replace(PLAIN, flip=True)
        still = still_view(frames, 16, crop=False)
        mirrored = 0
        for seed in range(60):
            found = phase_view(frames, 16, augmentation, generator(seed))
            is_mirrored = torch.equal(found, still.flip(-1))
            assert is_mirrored or torch.equal(found, still)
            mirrored += is_mirrored
        assert 15 < mirrored < 45

    def test_draws_do_not_depend_on_what_is_asked_for(self):
        one, two = generator(), generator()
        phase_view(clip(), 16, PLAIN, one)
        draw_colours(PLAIN, one)
        phase_view(clip(), 16, EVERYTHING, two)
        draw_colours(EVERYTHING, two)
        assert torch.equal(one.get_state(), two.get_state())

    def test_a_crop_is_a_square_of_the_frame(self):
        rows = torch.arange(20, dtype=torch.uint8)[:, None] * 3
        columns = torch.arange(30, dtype=torch.uint8)[None] * 5
        frames = torch.stack([rows.expand(20, 30), columns.expand(20, 30), rows.expand(20, 30)])
        found = phase_view(frames.unsqueeze(0), 16, replace(PLAIN, crop=True), generator(3))
        height = int(found[0, 0].max()) - int(found[0, 0].min())
        width = int(found[0, 1].max()) - int(found[0, 1].min())
        assert height / 3 == pytest.approx(width / 5, abs=0.5)

    def test_the_still_crop_is_the_central_square(self):
        frames = clip(height=16, width=32)
        found = still_view(frames, 16, crop=True)
        assert torch.equal(found, frames[..., 8:24])


@given(
    st.integers(5, 40),
    st.integers(5, 40),
    *[st.floats(SMALLEST, LARGEST)] * 3,
)
def test_squares_lie_in_the_frame(height, width, share, top, left):
    found = square(height, width, share, top, left)
    shorter = min(height, width)
    assert found.height == found.width
    assert int(0.8 * shorter) <= found.height <= shorter
    assert 0 <= found.top <= height - found.height
    assert 0 <= found.left <= width - found.width


def images():
    rng = generator()
    return torch.randint(256, (2, 3, 3, 4, 4), generator=rng, dtype=torch.uint8)


def colours(*rows):
    return torch.tensor(rows)


class TestColours:
    def test_what_is_not_asked_for_has_no_effect(self):
        found = coloured(images(), colours([0.3, 2.0, 0.1, 2.0], [0.2, 2.0, 0.1, 2.0]), PLAIN)
        torch.testing.assert_close(found, images().float() / 255)

    def test_draws_lie_in_their_ranges(self):
        drawn = torch.stack([draw_colours(EVERYTHING, generator(seed)) for seed in range(200)])
        low, high = drawn.amin(dim=0).tolist(), drawn.amax(dim=0).tolist()
        ranges = [(-32 / 255, 32 / 255), (0.5, 1.5), (-0.2, 0.2), (0.5, 1.5)]
        for found_low, found_high, (wanted_low, wanted_high) in zip(low, high, ranges, strict=True):
            span = wanted_high - wanted_low
            assert wanted_low <= found_low < wanted_low + 0.1 * span
            assert wanted_high - 0.1 * span < found_high <= wanted_high

    def test_neutral_draws_without_augmentation(self):
        assert draw_colours(PLAIN, generator()).tolist() == [0, 1, 0, 1]

    def test_brightness_then_contrast_of_each_frame_and_channel(self):
        augmentation = PhaseAugmentation(flip=False)
        found = coloured(images(), colours([0.1, 1.5, 0, 1], [-0.1, 0.5, 0, 1]), augmentation)
        for clip_number, (shift, factor) in enumerate([(0.1, 1.5), (-0.1, 0.5)]):
            x = images()[clip_number].double() / 255 + shift
            mean = x.mean(dim=(2, 3), keepdim=True)
            expected = ((x - mean) * factor + mean).clamp(0, 1)
            torch.testing.assert_close(found[clip_number].double(), expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("what", ["hue", "saturation"])
    def test_hue_and_saturation_as_in_hsv(self, what):
        augmentation = replace(
            PLAIN, **({"hue": 0.2} if what == "hue" else {"saturation": (0.5, 1.5)})
        )
        drawn = {"hue": [0, 1, 0.15, 1], "saturation": [0, 1, 0, 1.4]}[what]
        grey = torch.full_like(images(), 77)
        for pixels in (images(), grey):
            found = coloured(pixels, colours(drawn, drawn), augmentation)
            flat = pixels.permute(0, 1, 3, 4, 2).reshape(-1, 3).numpy() / 255
            expected = []
            for red, green, blue in flat:
                h, s, v = colorsys.rgb_to_hsv(red, green, blue)
                h = (h + drawn[2]) % 1
                s = min(s * drawn[3], 1) if what == "saturation" else s
                expected.append(colorsys.hsv_to_rgb(h, s, v))
            same = found.permute(0, 1, 3, 4, 2).reshape(-1, 3).double().numpy()
            np.testing.assert_allclose(same, expected, atol=2e-6)

    def test_the_result_is_cut_to_its_range(self):
        augmentation = replace(EVERYTHING, brightness=1.0)
        strong = colours([0.9, 1.5, 0.2, 1.5], [-0.9, 1.5, -0.2, 0.5])
        found = coloured(images(), strong, augmentation)
        assert found.isfinite().all()
        assert found.min() == 0
        assert found.max() == 1
