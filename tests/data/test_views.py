import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.nn import functional as F
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as TF

from timewalk.data import views
from timewalk.data.views import ColourChain, Window


def photograph(height=60, width=80, seed=0):
    """Return something with gradients, edges, grey and saturated places."""
    rng = np.random.default_rng(seed)
    small = torch.from_numpy(rng.random((1, 3, height // 6, width // 6)))
    large = F.interpolate(small, size=(height, width), mode="bicubic").clamp(0, 1)
    pixels = (large[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    pixels[:10, :10] = 128
    pixels[10:20, :10] = (255, 0, 0)
    pixels[20:30, :10] = (0, 7, 250)
    return Image.fromarray(pixels)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("ours", "theirs", "factors"),
    [
        (views.brightness, TF.adjust_brightness, (0.6, 0.93, 1.0, 1.4)),
        (views.contrast, TF.adjust_contrast, (0.6, 0.93, 1.0, 1.4)),
        (views.saturation, TF.adjust_saturation, (0.8, 0.93, 1.0, 1.2)),
        (views.hue, TF.adjust_hue, (-0.1, -0.031, 0.0, 0.004, 0.1)),
    ],
)
def test_enhancements_are_torchvisions_on_pil_to_the_last_bit(ours, theirs, factors):
    noise = np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    for image in (photograph(), Image.fromarray(noise)):
        for factor in factors:
            found = np.asarray(ours(image, factor))
            assert np.array_equal(found, np.asarray(theirs(image, factor))), factor


def test_hue_of_every_colour():
    levels = np.arange(0, 256, 5, dtype=np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, len(levels), 3)
    image = Image.fromarray(cube)
    for shift in (-0.1, 0.07):
        found, expected = views.hue(image, shift), TF.adjust_hue(image, shift)
        assert np.array_equal(np.asarray(found), np.asarray(expected))


def test_chain_applies_each_part_by_its_chance():
    image, same = photograph(), [0.99] * 12
    chain = ColourChain()
    assert chain.apply(image, same) is image
    grey = np.asarray(chain.apply(image, [0.99, 0.1, *same[2:]]))
    assert np.array_equal(grey[..., 0], grey[..., 2])
    blurred = np.asarray(chain.apply(image, [0.99, 0.99, 0.1, *same[3:]]))
    assert np.abs(np.diff(blurred.astype(int), axis=1)).max() < 128
    jittered = chain.apply(image, [0.1, 0.99, 0.99, *same[3:]])
    assert not np.array_equal(np.asarray(jittered), np.asarray(image))


def test_solarisation_is_pils_and_comes_last():
    image, chain = photograph(), ColourChain(solarise_prob=0.2)
    assert (ColourChain().draws, chain.draws) == (12, 13)
    assert chain.apply(image, [0.99] * 12 + [0.2]) is image
    for blur in (0.0, 0.99):
        draws = [0.99, 0.99, blur, *[0.5] * 9]
        plain = ColourChain().apply(image, draws)
        found = chain.apply(image, [*draws, 0.1])
        assert np.array_equal(np.asarray(found), np.asarray(ImageOps.solarize(plain)))


def test_chain_follows_the_drawn_order():
    image = photograph()
    draws = [0.0, 1.0, 1.0, 0.9, 0.1, 0.8, 0.7, 0.5]
    orders = ([0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1])
    factors = (1.32, 0.68, 1.12, 0.04)
    steps = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
    for keys, order in zip(orders, ([0, 1, 2, 3], [3, 2, 1, 0]), strict=True):
        expected = image
        for number in order:
            expected = steps[number](expected, factors[number])
        found = ColourChain().apply(image, draws + keys)
        assert np.array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.parametrize("size", [(300, 300), (480, 270), (30, 400)])
def test_windows_are_distributed_as_torchvisions(size):
    height, width = size
    generator = rng()
    ours = [views.random_window(height, width, (0.2, 1.0), generator) for _ in range(3000)]
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    theirs = [RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)]
    found = np.array([[w.top, w.left, w.height, w.width] for w in ours])
    expected = np.array(theirs)
    assert (found[:, 0] + found[:, 2]).max() <= height
    assert (found[:, 1] + found[:, 3]).max() <= width
    error = 4 * expected.std(axis=0) * math.sqrt(2 / 3000) + 1e-9
    assert (np.abs(found.mean(axis=0) - expected.mean(axis=0)) <= error).all()
    spread = expected.std(axis=0)
    assert (np.abs(found.std(axis=0) - spread) <= 0.1 * spread + 1e-9).all()


def test_a_window_that_never_fits_is_the_largest_in_the_centre():
    assert views.random_window(10, 1000, (0.9, 1.0), rng()) == Window(0, 493, 10, 13)
    assert views.random_window(1000, 10, (0.9, 1.0), rng()) == Window(493, 0, 13, 10)


def test_clip_crop_is_bilinear_without_antialias():
    clip = torch.randint(0, 256, (2, 3, 40, 50), dtype=torch.uint8)
    found = views.crop_resize(clip, Window(5, 7, 30, 20), 12)
    expected = TF.resized_crop(
        clip.float(), 5, 7, 30, 20, [12, 12], TF.InterpolationMode.BILINEAR, antialias=False
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("window", [Window(3, 4, 50, 40), Window(0, 9, 21, 30)])
def test_local_crop_is_pils_bicubic_within_a_level(window):
    image = photograph()
    frames = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    found = views.resize_window(frames, window, 32)[0].permute(1, 2, 0).numpy().astype(int)
    box = (window.left, window.top, window.left + window.width, window.top + window.height)
    # Columns first, then rows, as Pillow did until it began to choose the order by the shape.
    bicubic = Image.Resampling.BICUBIC
    columns = image.crop(box).resize((32, window.height), bicubic)
    expected = np.asarray(columns.resize((32, 32), bicubic)).astype(int)
    assert np.abs(found - expected).max() <= 1
    assert (found != expected).mean() < 0.02


PLAIN = ColourChain(jitter_prob=0.0, grey_prob=0.0, blur_prob=0.0)


def test_all_frames_of_the_global_view_share_window_and_flip():
    frame = torch.from_numpy(np.array(photograph())).permute(2, 0, 1).float()
    frames = frame.expand(5, -1, -1, -1)
    flips = set()
    for seed in range(20):
        view = views.global_view(frames, (0.4, 1.0), 24, PLAIN, rng(seed))
        assert view.dtype == torch.uint8
        assert view.shape == (5, 3, 24, 24)
        assert all(torch.equal(view[0], other) for other in view)
        height, width = frame.shape[-2:]
        window = views.random_window(height, width, (0.4, 1.0), rng(seed))
        plain = views.crop_resize(frames, window, 24)[0].to(torch.uint8)
        flips.add("plain" if torch.equal(view[0], plain) else "flipped")
        assert torch.equal(view[0], plain) or torch.equal(view[0], plain.flip(-1))
    assert flips == {"plain", "flipped"}


def test_colours_of_the_global_view_are_drawn_for_each_frame():
    frames = torch.from_numpy(np.array(photograph())).permute(2, 0, 1).float().expand(6, -1, -1, -1)
    view = views.global_view(frames, (0.4, 1.0), 24, ColourChain(blur_prob=0.1), rng())
    assert not all(torch.equal(view[0], other) for other in view)


def test_local_views_are_unrelated_windows():
    frames = torch.from_numpy(np.array(photograph())).permute(2, 0, 1).float().expand(3, -1, -1, -1)
    found = views.local_views(frames, 4, (0.05, 0.4), 16, PLAIN, rng())
    assert found.shape == (4, 3, 3, 16, 16)
    assert len({view.numpy().tobytes() for view in found.flatten(0, 1)}) == 12


def test_image_crops_have_windows_and_flips_of_their_own():
    frame = torch.from_numpy(np.array(photograph())).permute(2, 0, 1)[None]
    crops = views.image_crops(frame, 40, (0.05, 0.4), 16, rng())
    assert crops.dtype == torch.uint8
    assert crops.shape == (40, 3, 16, 16)
    assert len({crop.numpy().tobytes() for crop in crops}) == 40
    generator, flips = rng(), 0
    for crop in crops:
        window = views.random_window(60, 80, (0.05, 0.4), generator)
        plain = views.resize_window(frame, window, 16)[0]
        flip = bool(torch.rand((), generator=generator) < 0.5)
        assert torch.equal(crop, plain.flip(-1) if flip else plain)
        flips += flip
    assert 8 < flips < 32
    assert views.image_crops(frame, 0, (0.05, 0.4), 16, rng()).shape == (0, 3, 16, 16)


def test_each_image_gets_the_colours_of_its_draws():
    frames = torch.stack([torch.from_numpy(np.array(photograph(seed=s))) for s in range(3)])
    frames, chain = frames.permute(0, 3, 1, 2), ColourChain()
    draws = views.colour_draws(3, chain, rng())
    found = views.coloured(frames, draws, chain)
    for image, uniform, pixels in zip(frames, draws.tolist(), found, strict=True):
        expected = chain.apply(Image.fromarray(image.permute(1, 2, 0).numpy()), uniform)
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(expected))
    assert found.is_contiguous()
    assert views.coloured(frames[:0], draws[:0], chain).shape == (0, 3, 60, 80)


def test_chances_over_many_frames():
    """Grey in a fifth, jitter in four fifths of the frames."""
    grey_blue = torch.tensor([90.0, 120.0, 150.0]).view(1, 3, 1, 1).expand(400, 3, 8, 8)
    view = views.global_view(grey_blue, (0.4, 1.0), 8, ColourChain(blur_prob=0.1), rng())
    grey = (view[:, 0] == view[:, 2]).flatten(1).all(1).float().mean()
    untouched = (view == grey_blue.to(torch.uint8)).flatten(1).all(1).float().mean()
    assert grey == pytest.approx(0.2, abs=0.07)
    assert untouched == pytest.approx(0.2 * 0.8, abs=0.06)


def test_global_generator_is_left_alone():
    frames = torch.rand(2, 3, 40, 40) * 255
    before = torch.get_rng_state()
    views.global_view(frames, (0.4, 1.0), 16, ColourChain(), rng())
    views.local_views(frames, 2, (0.1, 0.4), 8, ColourChain(), rng())
    assert torch.equal(torch.get_rng_state(), before)


def test_normalised_bytes_are_torchvisions_floats():
    image = photograph()
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = TF.normalize(TF.to_tensor(image), mean, std)
    frames = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    torch.testing.assert_close(views.normalise(frames, mean, std)[0], expected, rtol=0, atol=1e-6)
