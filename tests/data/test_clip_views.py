"""A clip's augmentations: torchvision's operations, one decision for all frames."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy.ndimage import correlate1d
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from timewalk.data.clip_views import (
    ClipAugmentation,
    clip_view,
    gaussian_blur,
    gaussian_kernel,
    photometric_view,
    plain_view,
    shorter_side,
)
from timewalk.data.views import random_window

OFF = {"jitter_prob": 0.0, "grey_prob": 0.0, "blur_prob": 0.0, "flip_prob": 0.0}


def clip(frames=3, height=40, width=61, seed=0):
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(frames):
        small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        images.append(np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def same_frames(frames=3):
    return clip(1).expand(frames, -1, -1, -1)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def view(frames, seed=0, size=32, **keys):
    return clip_view(frames, size, ClipAugmentation(**{**OFF, **keys}), rng(seed))


def images(frames):
    return [Image.fromarray(pixels) for pixels in frames.permute(0, 2, 3, 1).numpy()]


def stacked(pictures):
    return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2)


def draws(seed, frames=3, height=40, width=61, size=32):
    """Return the numbers that a view takes, in their order."""
    generator = rng(seed)
    uniform = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
    order = torch.randperm(4, generator=generator).tolist()
    chances = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    shares = torch.rand(frames, generator=generator, dtype=torch.float64).tolist()
    window = random_window(*shorter_side(height, width, size), (0.4, 1.0), generator)
    return uniform, order, chances, shares, window


def finished(pictures, window, size=32):
    """Return the view of frames whose colours are done: torchvision's resize and crop."""
    box = (window.top, window.left, window.height, window.width)
    results = []
    for image in pictures:
        image = TF.resize(image, size, InterpolationMode.BILINEAR)
        cropped = TF.resized_crop(image, *box, [size, size], InterpolationMode.BILINEAR)
        results.append(cropped)
    return stacked(results)


@pytest.mark.parametrize("seed", range(3))
def test_resize_and_crop_are_torchvisions(seed):
    *_, window = draws(seed)
    assert torch.equal(view(clip(), seed), finished(images(clip()), window))


@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_jitter_is_torchvisions_in_the_drawn_order(seed, last_only):
    uniform, order, _, _, window = draws(seed)
    factors = [0.2 + 1.6 * uniform[1], 0.2 + 1.6 * uniform[2], 0.2 + 1.6 * uniform[3]]
    factors.append(-0.2 + 0.4 * uniform[4])
    steps = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
    pictures = images(clip())
    for number in order[-1:] if last_only else order:
        pictures = [steps[number](image, factors[number]) for image in pictures]
    found = view(clip(), seed, jitter_prob=1.0, last_only=last_only)
    assert torch.equal(found, finished(pictures, window))


def test_grey_and_blur():
    _, _, _, shares, window = draws(5)
    grey = [TF.to_grayscale(image, 3) for image in images(clip())]
    assert torch.equal(view(clip(), 5, grey_prob=1.0), finished(grey, window))
    soft = [
        image.filter(ImageFilter.GaussianBlur(0.1 + 1.9 * share))
        for image, share in zip(images(clip()), shares, strict=True)
    ]
    assert torch.equal(view(clip(), 5, blur_prob=1.0), finished(soft, window))


def test_decisions_are_the_clips_and_the_radius_is_the_frames():
    still = same_frames()
    for seed in range(20):
        found = view(still, seed, jitter_prob=0.5, grey_prob=0.5, flip_prob=0.5)
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2])
        blurred = view(still, seed, blur_prob=1.0)
        assert not torch.equal(blurred[0], blurred[1])


def test_the_flip_mirrors_all_frames():
    assert torch.equal(view(clip(), 1, flip_prob=1.0), view(clip(), 1).flip(-1))


def test_chances():
    keys = {"jitter_prob": 0.0, "blur_prob": 0.0, "scale": (1.0, 1.0)}
    augmentation = ClipAugmentation(**keys)
    frames = clip(1, 32, 32)
    grey, flipped = 0, 0
    for seed in range(600):
        found = clip_view(frames, 32, augmentation, rng(seed))
        is_grey = torch.equal(found[:, 0], found[:, 1])
        grey += is_grey
        plain = [TF.to_grayscale(i, 3) for i in images(frames)] if is_grey else images(frames)
        distance = (found.int() - stacked(plain).int()).abs().sum()
        mirrored = (found.int() - stacked(plain).int().flip(-1)).abs().sum()
        flipped += bool(mirrored < distance)
    assert 80 < grey < 160
    assert 250 < flipped < 350


def test_what_is_drawn_does_not_depend_on_chance():
    """Turning one operation off leaves the others' draws as they are."""
    _, _, _, _, window = draws(9)
    generator = rng(9)
    clip_view(clip(), 32, ClipAugmentation(), generator)
    after = torch.rand(1, generator=generator)
    generator = rng(9)
    clip_view(clip(), 32, ClipAugmentation(**OFF), generator)
    assert torch.equal(torch.rand(1, generator=generator), after)
    assert torch.equal(view(clip(), 9), finished(images(clip()), window))


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (480, 854, (224, 398)),
        (854, 480, (398, 224)),
        (224, 224, (224, 224)),
        (100, 101, (224, 226)),
    ],
)
def test_the_longer_side_is_cut_to_a_whole_number(height, width, expected):
    assert shorter_side(height, width, 224) == expected


@pytest.mark.parametrize(("height", "width"), [(40, 61), (61, 40), (20, 20), (7, 90)])
def test_any_shape(height, width):
    found = clip_view(clip(2, height, width), 32, ClipAugmentation(), rng())
    assert found.shape == (2, 3, 32, 32)
    assert found.dtype == torch.uint8
    assert found.is_contiguous()


def test_the_plain_view_is_the_centre():
    frames = clip(2, 40, 61)
    found = plain_view(frames, 40)
    assert torch.equal(found, frames[..., 10:50])
    assert plain_view(frames, 16).shape == (2, 3, 16, 16)


def photometric(frames, seed=0, size=32, **keys):
    return photometric_view(frames, size, rng(seed), **keys)


def photometric_draws(generator):
    """Return the numbers that one view takes, in their order."""
    uniform = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
    order = torch.randperm(4, generator=generator).tolist()
    return uniform, order, torch.rand(3, generator=generator, dtype=torch.float64).tolist()


def changes(generator):
    """Return whether a view is anything but resized."""
    uniform, _, (grey, blur, _) = photometric_draws(generator)
    return uniform[0] < 0.8 or grey < 0.2 or blur < 0.5


def bilinear(frames, size):
    """Return frames (T, 3, H, W) resized by OpenCV's formula, float64."""
    result = frames.double().numpy()
    for axis in (2, 3):
        length = result.shape[axis]
        places = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
        low = np.floor(places).astype(int)
        share = (places - low).reshape(-1, 1) if axis == 2 else places - low
        high = np.minimum(low + 1, length - 1)
        result = (1 - share) * result.take(low, axis) + share * result.take(high, axis)
    return torch.from_numpy(result)


class TestPhotometric:
    """SMTC's views: colours and sharpness, everything in its place."""

    def test_each_view_is_the_chain_of_its_draws(self):
        frames = clip(3, 32, 32)
        steps = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
        kinds = set()
        for seed in range(12):
            found, generator = photometric(frames, seed, count=3), rng(seed)
            assert found.shape == (3, 3, 3, 32, 32)
            assert found.dtype == torch.uint8
            for view in found:
                uniform, order, (grey, blur, share) = photometric_draws(generator)
                pictures = images(frames)
                if grey < 0.2:
                    pictures = [TF.to_grayscale(image, 3) for image in pictures]
                if uniform[0] < 0.8:
                    factors = [0.6 + 0.8 * draw for draw in uniform[1:4]]
                    factors.append(-0.1 + 0.2 * uniform[4])
                    for number in order:
                        pictures = [steps[number](image, factors[number]) for image in pictures]
                expected = stacked(pictures)
                if blur < 0.5:
                    expected = gaussian_blur(expected, 0.1 + 1.9 * share)
                assert torch.equal(view, expected)
                kinds.add((grey < 0.2, uniform[0] < 0.8, blur < 0.5))
        assert len(kinds) >= 6

    def test_views_of_a_clip_differ_and_its_frames_share_them(self):
        found = photometric(same_frames(), 3, count=4)
        assert all(torch.equal(found[:, 0], found[:, n]) for n in (1, 2))
        assert all(not torch.equal(found[0], found[n]) for n in (1, 2, 3))
        assert torch.equal(found[:2], photometric(same_frames(), 3))

    def test_chances(self):
        frames, plain = clip(1, 32, 32), clip(1, 32, 32)[0]
        found = photometric(frames, count=800)[:, 0]
        grey = (found == found[:, :1]).flatten(1).all(1)
        same = (found == plain).flatten(1).all(1)
        assert 120 < int(grey.sum()) < 200
        # Neither grey, nor jitter, nor blur: 0.8 x 0.2 x 0.5, and blurs too narrow to be seen.
        assert 40 < int(same.sum()) < 130

    @pytest.mark.parametrize(("height", "width"), [(48, 85), (85, 48), (20, 20), (7, 90)])
    def test_both_sides_are_resized_as_opencv_does(self, height, width):
        frames = clip(2, height, width)
        seed = next(n for n in range(100) if not changes(rng(n)))
        plain = photometric(frames, seed, count=1)[0]
        assert plain.is_contiguous()
        assert (plain - bilinear(frames, 32)).abs().max() <= 1
        assert (plain - bilinear(frames, 32)).mean().abs() < 0.2

    def test_sigma_can_be_given_and_takes_no_other_draws(self):
        for seed in range(8):
            drawn, given = photometric(clip(), seed), photometric(clip(), seed, sigma=1.5)
            generator = rng(seed)
            for one, other in zip(drawn, given, strict=True):
                *_, (_, blur, _) = photometric_draws(generator)
                assert torch.equal(one, other) == (blur >= 0.5)
        one, other = rng(1), rng(1)
        photometric_view(clip(), 32, one)
        photometric_view(clip(), 32, other, sigma=0.3)
        assert torch.equal(torch.rand(1, generator=one), torch.rand(1, generator=other))

    def test_the_clip_is_left_as_it_was(self):
        frames = clip(2, 32, 32)
        before = frames.clone()
        photometric(frames, 4)
        assert torch.equal(frames, before)


class TestBlur:
    @pytest.mark.parametrize("sigma", [0.1, 0.4, 1.0, 2.0])
    @pytest.mark.parametrize("side", [40, 256])
    def test_it_is_a_gaussian_over_a_tenth_of_the_side(self, side, sigma):
        frames = clip(2, side, side)
        reach = int(0.1 * side) // 2
        assert (side, reach) in ((40, 2), (256, 12))
        kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
        kernel /= kernel.sum()
        expected = frames.double().numpy()
        for axis in (2, 3):
            expected = correlate1d(expected, kernel, axis, mode="mirror")
        found = gaussian_blur(frames, sigma).double().numpy()
        assert np.abs(found - expected).max() <= 0.5 + 0.01

    def test_a_constant_stays(self):
        frames = torch.full((1, 3, 64, 64), 77, dtype=torch.uint8)
        assert torch.equal(gaussian_blur(frames, 2.0), frames)

    def test_a_small_side_has_no_kernel(self):
        frames = clip(1, 19, 19)
        assert torch.equal(gaussian_blur(frames, 2.0), frames)

    @pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
    def test_the_kernel_sums_to_one(self, sigma):
        taps = gaussian_kernel(256, sigma)
        assert taps[0] + 2 * sum(taps[1:]) == pytest.approx(1, abs=2e-5)
        assert taps == sorted(taps, reverse=True)
