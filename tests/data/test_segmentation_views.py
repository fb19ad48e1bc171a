"""Views for semantic segmentation: sizes, crops and colours, against slow and other versions."""

import colorsys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from timewalk.data.generated_scenes import draw_scene
from timewalk.data.segmentation_views import (
    Distortion,
    SegmentationViews,
    coloured,
    distorted,
    kept_size,
    normalised,
    resize_keep,
)

PLAIN = {"distortion": None, "flip": 0.0}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def scene(seed=0, size=(60, 80)):
    made = draw_scene(size, np.random.default_rng(seed), 3, 6)
    return made.image, made.ids


def noise(size=(24, 30), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def planes(image):
    return torch.from_numpy(image).permute(2, 0, 1)


@pytest.mark.parametrize(
    ("size", "scale", "least", "expected"),
    [
        ((512, 683), (2048, 512), None, (512, 683)),
        ((1500, 2000), (2048, 512), None, (512, 683)),
        ((2000, 1500), (2048, 512), None, (683, 512)),
        ((100, 2000), (2048, 512), None, (102, 2048)),
        ((600, 800), (1024, 256), None, (256, 341)),
        ((600, 800), (1024, 256), 512, (512, 683)),
        ((600, 800), (3072, 768), 512, (768, 1024)),
        ((1, 5000), (2048, 512), None, (1, 2048)),
    ],
)
def test_sizes_that_keep_the_aspect(size, scale, least, expected):
    assert kept_size(size, scale, least) == expected


@pytest.mark.parametrize("scale", [(200, 30), (200, 60), (400, 90)])
def test_images_are_resized_as_opencv_does(scale):
    cv2 = pytest.importorskip("cv2")
    image = noise((60, 80))
    made = resize_keep(image, scale)
    height, width = made.shape[1:]
    assert min(height, width) == scale[1]
    theirs = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    difference = made.permute(1, 2, 0).numpy().astype(int) - theirs
    assert abs(difference).max() <= 1
    assert made.dtype == torch.uint8


def test_an_image_of_its_size_stays():
    image = noise((60, 80))
    assert torch.equal(resize_keep(image, (200, 60)), planes(image))


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    size=st.tuples(st.integers(20, 90), st.integers(20, 90)),
    crop=st.integers(8, 70),
    flip=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_a_view_holds_what_its_source_holds(seed, size, crop, flip):
    generator = np.random.default_rng(seed)
    image, label = noise(size, seed), generator.choice([0, 3, 7, 255], size).astype(np.uint8)
    views = SegmentationViews(crop=crop, scale=(128, 32), flip=flip)
    made = views(image, label, rng(seed))
    assert (made["image"].shape, made["image"].dtype) == ((3, crop, crop), torch.uint8)
    assert (made["label"].shape, made["label"].dtype) == ((crop, crop), torch.uint8)
    rows, columns = made["valid"].tolist()
    assert 1 <= rows <= crop
    assert 1 <= columns <= crop
    assert set(np.unique(made["label"][:rows, :columns])) <= set(np.unique(label))
    assert (made["label"][rows:] == 255).all()
    assert (made["label"][:, columns:] == 255).all()
    assert not made["image"][:, rows:].any()
    assert not made["image"][:, :, columns:].any()
    again = views(image, label, rng(seed))
    assert all(torch.equal(made[key], again[key]) for key in made)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_images_and_classes_stay_together(seed, flip):
    # Each class has one level, so that a pixel away from borders tells its class.
    label = np.kron(np.random.default_rng(seed).integers(0, 8, (5, 6)), np.ones((12, 12), int))
    image = np.repeat((label * 30)[:, :, None], 3, axis=2).astype(np.uint8)
    views = SegmentationViews(crop=48, scale=(400, 60), flip=flip, distortion=None)
    made = views(image, label.astype(np.uint8), rng(seed))
    rows, columns = made["valid"].tolist()
    classes = made["label"][:rows, :columns].int()
    levels = made["image"][0, :rows, :columns].int()
    assert (levels == 30 * classes).float().mean() > 0.7


def test_a_flip_mirrors_the_crop():
    image, label = scene()
    straight = SegmentationViews(crop=40, scale=(200, 50), **PLAIN)
    flipped = SegmentationViews(crop=40, scale=(200, 50), distortion=None, flip=1.0)
    one, other = straight(image, label, rng(5)), flipped(image, label, rng(5))
    rows, columns = one["valid"].tolist()
    for key in ("image", "label"):
        assert torch.equal(
            one[key][..., :rows, :columns], other[key][..., :rows, :columns].flip(-1)
        )


def test_ratios_scale_the_image():
    image, label = scene(size=(60, 80))
    sizes = {}
    for ratio in (0.5, 1.0, 2.0):
        views = SegmentationViews(crop=300, scale=(240, 60), ratios=(ratio, ratio), **PLAIN)
        sizes[ratio] = tuple(views(image, label, rng())["valid"].tolist())
    assert sizes == {0.5: (30, 40), 1.0: (60, 80), 2.0: (120, 160)}
    views = SegmentationViews(crop=300, scale=(240, 60), **PLAIN)
    drawn = [views(image, label, rng(seed))["valid"][0].item() for seed in range(200)]
    assert 30 <= min(drawn) < 34
    assert 116 < max(drawn) <= 120
    assert np.mean(drawn) == pytest.approx(75, abs=4)


def test_classes_are_taken_at_the_centres_of_pixels():
    label = np.arange(12, dtype=np.uint8).reshape(3, 4)
    views = SegmentationViews(crop=8, scale=(80, 6), ratios=(1, 1), **PLAIN)
    made = views(noise((3, 4)), label, rng())
    expected = np.repeat(np.repeat(label, 2, 0), 2, 1)
    np.testing.assert_array_equal(made["label"][:6, :8], expected)


def share(label):
    counts = np.bincount(label[label != 255], minlength=1)
    return counts.max() / max(counts.sum(), 1)


def test_a_crop_of_one_class_is_drawn_again():
    # All but the lower right corner is one class; half of the crops hold enough of the corner.
    label = np.zeros((64, 64), np.uint8)
    label[26:, 26:] = np.random.default_rng(0).integers(1, 5, (38, 38))
    image = noise((64, 64))
    kept = {"crop": 32, "scale": (256, 64), "ratios": (1, 1), **PLAIN}
    mixed, any_crop = SegmentationViews(**kept), SegmentationViews(cat_max_ratio=1.0, **kept)
    shares = [share(mixed(image, label, rng(seed))["label"].numpy()) for seed in range(100)]
    assert max(shares) < 0.75
    shares = [share(any_crop(image, label, rng(seed))["label"].numpy()) for seed in range(100)]
    assert np.mean(np.array(shares) >= 0.75) > 0.1


class Counted(SegmentationViews):
    """Views that count how often a crop was looked at, and take none before the ``good``-th."""

    good = 0

    def _is_mixed(self, cut):
        object.__setattr__(self, "looked", getattr(self, "looked", 0) + 1)
        return self.looked == self.good


@pytest.mark.parametrize(("good", "looked"), [(1, 1), (4, 4), (10, 10), (0, 10)])
def test_ten_crops_are_looked_at_and_the_eleventh_is_taken(good, looked):
    # Every pixel has a class of its own, which tells a crop's corner.
    label = np.arange(196, dtype=np.uint8).reshape(14, 14)
    views = Counted(crop=4, scale=(56, 14), ratios=(1, 1), **PLAIN)
    object.__setattr__(views, "good", good)
    generator = rng(3)
    made = views(noise((14, 14)), label, generator)
    assert views.looked == looked
    corners = rng(3)
    torch.rand((), generator=corners, dtype=torch.float64)  # the ratio
    drawn = [torch.randint(0, 11, (), generator=corners).item() for _ in range(2 * 11)]
    top, left = drawn[2 * (good or 11) - 2 : 2 * (good or 11)]
    assert made["label"][0, 0].item() == 14 * top + left


def test_void_is_no_class_that_covers_too_much():
    views = SegmentationViews(crop=4)
    cut = np.full((4, 4), 255, np.uint8)
    cut[0] = [1, 1, 2, 2]
    assert views._is_mixed(cut)
    cut[0] = [1, 1, 1, 2]
    # Three of the four pixels with a class: as much as is allowed is too much already.
    assert not views._is_mixed(cut)
    assert not views._is_mixed(np.full((4, 4), 255, np.uint8))
    assert not views._is_mixed(np.full((4, 4), 2, np.uint8))


@pytest.mark.parametrize("only", [4, 255])
def test_a_label_of_one_class_or_none_is_taken_as_it_is(only):
    label = np.full((64, 64), only, np.uint8)
    made = SegmentationViews(crop=32, scale=(256, 64))(noise((64, 64)), label, rng())
    rows, columns = made["valid"].tolist()
    assert (made["label"][:rows, :columns] == only).all()


def test_an_image_and_a_label_of_two_sizes():
    with pytest.raises(ValueError, match=r"image \(60, 80\) and label \(60, 79\) differ in size"):
        SegmentationViews()(noise((60, 80)), np.zeros((60, 79), np.uint8), rng())


def test_padding_is_zero_for_the_network():
    images = torch.randint(0, 256, (2, 3, 6, 6), dtype=torch.uint8)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    made = normalised(images, torch.tensor([[6, 4], [2, 6]]), mean, std)
    whole = (images / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(made[0, :, :, :4], whole[0, :, :, :4])
    torch.testing.assert_close(made[1, :, :2], whole[1, :, :2])
    assert not made[0, :, :, 4:].any()
    assert not made[1, :, 2:].any()


def slow(image, saturation, turn):
    """HSV by the standard library, pixel by pixel; levels 0 to 255, not rounded."""
    out = np.empty(image.shape)
    for place in np.ndindex(image.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*(image[place] / 255))
        out[place] = colorsys.hsv_to_rgb((h + turn / 180) % 1, min(s * saturation, 1), v)
    return out * 255


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**31),
    saturation=st.floats(0.5, 1.5),
    turn=st.integers(-180, 180),
)
def test_saturation_and_hue_are_those_of_hsv(seed, saturation, turn):
    image = noise((6, 8), seed)
    image[0], image[1, :, 1], image[2, :4] = image[0, :, :1], image[1, :, 0], 0
    made = coloured(planes(image).float(), saturation, turn).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(made, slow(image.astype(float), saturation, turn), atol=1e-3)


@pytest.mark.parametrize(("saturation", "turn"), [(1, 7), (1, -18), (1.5, 0), (0.5, 0), (1.3, 11)])
def test_opencv_s_bytes_are_near(saturation, turn):
    cv2 = pytest.importorskip("cv2")
    image = noise((100, 100))
    made = coloured(planes(image).float(), saturation, turn).round().permute(1, 2, 0).numpy()
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 1] = np.clip(hsv[..., 1].astype(np.float32) * saturation, 0, 255)
    hsv[..., 0] = (hsv[..., 0].astype(int) + turn) % 180
    difference = made - cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    assert abs(difference).mean() < 0.6
    assert abs(difference).max() <= 6


def steps(image, ranges, generator):
    """The distortion step by step on bytes, with the draws in their order."""

    def unit():
        return float(torch.rand((), generator=generator, dtype=torch.float64))

    def between(low, high):
        return low + (high - low) * unit()

    def bytes_of(levels):
        return np.clip(levels, 0, 255).astype(np.uint8)

    added = between(-ranges.brightness, ranges.brightness) if unit() < ranges.chance else 0
    first = unit() < 0.5
    contrast = between(*ranges.contrast) if unit() < ranges.chance else 1
    saturation = between(*ranges.saturation) if unit() < ranges.chance else 1
    turn = 0
    if unit() < ranges.chance:
        turn = int(torch.randint(-ranges.hue, ranges.hue, (), generator=generator))
    image = bytes_of(image + np.float32(added))
    if first:
        image = bytes_of(image * np.float32(contrast))
    image = np.round(slow(image.astype(float), saturation, turn)).astype(np.uint8)
    return image if first else bytes_of(image * np.float32(contrast))


@pytest.mark.parametrize("seed", range(16))
def test_the_distortion_goes_in_mmsegmentation_s_order(seed):
    image, ranges = noise((12, 16), seed), Distortion(chance=0.7)
    made = distorted(planes(image), ranges, rng(seed)).permute(1, 2, 0).numpy()
    difference = made.astype(int) - steps(image, ranges, rng(seed))
    assert abs(difference).max() <= 2
    assert abs(difference).mean() < 0.02


def test_parts_of_the_distortion_alone():
    image = planes(noise())
    off = {"brightness": 0.0, "contrast": (1, 1), "saturation": (1, 1), "hue": 0, "chance": 1.0}
    assert torch.equal(distorted(image, Distortion(**off), rng()), image)
    made = distorted(image, Distortion(**{**off, "contrast": (1.5, 1.5)}), rng())
    assert torch.equal(made, (image * 1.5).clamp(max=255).to(torch.uint8))
    assert torch.equal(distorted(image, Distortion(chance=0.0), rng()), image)


def test_half_of_the_images_get_each_part():
    image = torch.full((3, 1, 1), 100, dtype=torch.uint8)
    changed = sum(bool((distorted(image, Distortion(), rng(s)) != image).any()) for s in range(400))
    # Grey has no saturation or hue: brightness or contrast, 3 in 4.
    assert changed / 400 == pytest.approx(0.75, abs=0.06)
