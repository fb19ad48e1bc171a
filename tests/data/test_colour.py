import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from timewalk.data import colour
from timewalk.data.views import ColourChain, colour_draws, coloured

OFF = {"jitter_prob": 0.0, "grey_prob": 0.0, "blur_prob": 0.0}
STILL = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
CHAINS = {
    "brightness": ColourChain(**OFF | STILL | {"jitter_prob": 1.0, "brightness": 0.4}),
    "contrast": ColourChain(**OFF | STILL | {"jitter_prob": 1.0, "contrast": 0.4}),
    "saturation": ColourChain(**OFF | STILL | {"jitter_prob": 1.0, "saturation": 0.2}),
    "hue": ColourChain(**OFF | STILL | {"jitter_prob": 1.0, "hue": 0.1}),
    "grey": ColourChain(**OFF | {"grey_prob": 1.0}),
    "blur": ColourChain(**OFF | {"blur_prob": 1.0}),
    "wide blur": ColourChain(**OFF | {"blur_prob": 1.0, "blur_radius": (2.0, 6.0)}),
    "solarise": ColourChain(**OFF, solarise_prob=1.0),
    "chain": ColourChain(solarise_prob=0.2),
    "no solarisation": ColourChain(blur_prob=1.0),
}


def photographs(count, seed=0, height=40, width=48):
    """Return smooth colour images with some noise, a grey and a saturated patch."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
        pixels = (pixels + rng.integers(-9, 10, pixels.shape)).clip(0, 255).astype(np.uint8)
        pixels[:8, :8], pixels[8:16, :8] = 128, (255, 0, 0)
        images.append(pixels)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


@pytest.mark.parametrize("name", CHAINS)
def test_batch_equals_the_chain_on_pil(name):
    chain, images = CHAINS[name], photographs(48)
    draws = colour_draws(48, chain, torch.Generator().manual_seed(1))
    found = colour.apply_chain(images, draws, chain)
    expected = coloured(images, draws, chain)
    assert (found.dtype, found.shape) == (torch.uint8, images.shape)
    gap = (found.int() - expected.int()).abs().numpy()
    assert gap.mean() < 0.1
    assert np.quantile(gap, 0.99) <= 1
    assert not torch.equal(expected, images)


levels = st.integers(0, 255)
seeds = st.integers(0, 10_000)


@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_factor_one_and_no_turn_change_nothing_that_pil_keeps(seed):
    pixels, one = photographs(1, seed).float(), torch.ones(1)
    assert torch.equal(colour.blend(torch.zeros_like(pixels), pixels, one), pixels)
    assert torch.equal(
        colour.solarise(colour.solarise(pixels)), torch.minimum(pixels, 255 - pixels)
    )


@settings(max_examples=15, deadline=None)
@given(level=levels, shift=st.floats(-0.5, 0.5), radius=st.floats(0.1, 2.0))
def test_hue_keeps_grey_and_blur_keeps_constants(level, shift, radius):
    pixels = torch.full((1, 3, 9, 7), float(level))
    assert torch.equal(colour.hue(pixels, torch.tensor([shift])), pixels)
    assert torch.equal(colour.gaussian_blur(pixels, torch.tensor([radius]), 2.0), pixels)
