"""Generated phases: labels, speeds and looks differ by video, the action does not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from timewalk.data.generated_phases import (
    FEWEST_FRAMES,
    PHASES,
    PhaseClip,
    moving_phases,
    time_warp,
)
from timewalk.errors import UserError

PLAIN = {"clutter": 0.0, "distractors": 0, "variety": 0.0}
"""nothing but the action, in its usual colours, on grey"""


@pytest.fixture(scope="module")
def clips() -> list[PhaseClip]:
    return moving_phases(6, size=(48, 64), seed=1)


@pytest.fixture(scope="module")
def plain() -> list[PhaseClip]:
    return moving_phases(8, seed=2, **PLAIN)


def redness(frames: np.ndarray) -> np.ndarray:
    """Return where the jug is, from its colour, bool (L, H, W)."""
    red, green, blue = np.moveaxis(frames.astype(int), -1, 0)
    return (red - np.maximum(green, blue) > 40) & (green < 110)


def blueness(frames: np.ndarray) -> np.ndarray:
    """Return where the water is, from its colour, bool (L, H, W)."""
    red, green, blue = np.moveaxis(frames.astype(int), -1, 0)
    return (blue - np.maximum(red, green) > 40) & (red < 110)


def test_videos_have_the_promised_shapes(clips: list[PhaseClip]) -> None:
    assert [clip.name for clip in clips] == [f"pour{number:03d}" for number in range(6)]
    for clip in clips:
        assert 30 <= len(clip.labels) <= 60
        assert clip.frames.shape == (len(clip.labels), 48, 64, 3)
        assert clip.frames.dtype == np.uint8
        assert clip.labels.dtype == np.int64
    assert len({len(clip.labels) for clip in clips}) > 1


def test_the_seed_decides_and_earlier_videos_stay(clips: list[PhaseClip]) -> None:
    fewer = moving_phases(2, size=(48, 64), seed=1)
    for clip, same in zip(clips[:2], fewer, strict=True):
        assert np.array_equal(clip.frames, same.frames)
        assert np.array_equal(clip.labels, same.labels)
    other = moving_phases(1, size=(48, 64), seed=9)[0]
    assert other.frames.shape != clips[0].frames.shape or np.any(other.frames != clips[0].frames)


@settings(max_examples=30, deadline=None)
@given(st.integers(FEWEST_FRAMES, 120), st.integers(0, 1000))
def test_time_goes_on_and_every_phase_occurs(frames: int, seed: int) -> None:
    stage, labels = time_warp(frames, np.random.default_rng(seed))
    assert stage.shape == labels.shape == (frames,)
    assert stage[0] == 0
    assert np.all(np.diff(stage) > 0)
    assert np.array_equal(np.floor(stage), labels)
    assert np.bincount(labels, minlength=len(PHASES)).min() >= 2


def test_phases_have_speeds_of_their_own() -> None:
    counts = [
        np.bincount(time_warp(60, np.random.default_rng(seed))[1], minlength=5)
        for seed in range(200)
    ]
    spread = np.std(counts, axis=0)
    assert np.all(spread > 2.5)
    assert np.allclose(np.mean(counts, axis=0), 12, atol=1)


def test_the_jug_goes_up_and_comes_back(plain: list[PhaseClip]) -> None:
    for clip in plain:
        height = [np.nonzero(mask)[0].mean() for mask in redness(clip.frames)]
        at = [
            np.mean([h for h, k in zip(height, clip.labels, strict=True) if k == p])
            for p in (0, 2, 4)
        ]
        assert at[1] < at[0] - 20
        assert abs(at[2] - at[0]) < 4


def test_water_comes_while_it_is_poured(plain: list[PhaseClip]) -> None:
    for clip in plain:
        water = blueness(clip.frames).sum(axis=(1, 2))
        assert water[clip.labels < 2].max() < 80
        after = water[clip.labels > 2]
        assert after.min() > 300
        during = water[clip.labels == 2]
        assert during[0] < 80 < during[-1]


def test_the_hand_comes_from_either_side(plain: list[PhaseClip]) -> None:
    offsets = []
    for clip in plain:
        jug = np.nonzero(redness(clip.frames[:1])[0])[1].mean()
        water = np.nonzero(blueness(clip.frames[-1:])[0])[1].mean()
        offsets.append(jug > water)
    assert set(offsets) == {True, False}


def test_distractors_move_all_the_time_and_come_back() -> None:
    quiet, busy = (moving_phases(4, seed=5, distractors=number) for number in (0, 3))
    for still, moving in zip(quiet, busy, strict=True):
        changed = [np.mean(v.frames[1:] != v.frames[:-1], axis=(1, 2, 3)) for v in (still, moving)]
        assert changed[0].min() < 0.01
        assert changed[1].min() > 0.02
        first = np.all(moving.frames == moving.frames[:1], axis=3)
        returns = np.diff(first.astype(int), axis=0) == 1
        assert returns.sum(axis=0).max() >= 3


def test_pixels_hardly_and_brightness_never_tell_the_time() -> None:
    clips = moving_phases(10, size=(48, 48), seed=4)
    pixels = [clip.frames[:, ::4, ::4].reshape(len(clip.labels), -1) / 255 for clip in clips]
    taus = []
    for query in pixels:
        for candidate in pixels:
            if query is not candidate:
                distances = np.square(query[:, None] - candidate[None]).sum(axis=2)
                taus.append(kendalltau(range(len(query)), distances.argmin(axis=1)).statistic)
    assert np.nanmean(taus) < 0.45
    rises = [kendalltau(range(len(p)), p.mean(axis=1)).statistic for p in pixels]
    assert abs(np.mean(rises)) < 0.3


def test_clutter_variety_and_shade_change_what_they_say() -> None:
    keys = {"distractors": 0, "seed": 3}
    flat, rich = (moving_phases(1, **keys, clutter=c)[0].frames[0, :10] for c in (0.0, 1.0))
    assert flat.std() == 0
    assert rich.std() > 30
    usual, other = (moving_phases(6, seed=3, **{**PLAIN, "variety": v}) for v in (0.0, 1.0))
    jugs = [
        np.std([redness(clip.frames[:1]).sum() for clip in videos]) for videos in (usual, other)
    ]
    assert jugs[1] > jugs[0]
    bright, dark = (moving_phases(1, **keys, shade=s)[0].frames for s in (0.0, 0.5))
    assert dark.mean() < 0.9 * bright.mean()


@pytest.mark.parametrize("frames", [(9, 20), (30, 20)])
def test_impossible_lengths_are_refused(frames: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=rf"^frames is {frames[0]} to 20; .* at least 10\.$"):
        moving_phases(1, frames=frames)


def test_small_images_are_refused() -> None:
    with pytest.raises(UserError, match=r"^size is 96 x 31 pixels; give at least 32 a side\.$"):
        moving_phases(1, size=(96, 31))


@pytest.mark.parametrize(("sides", "found"), [(1, {"right"}), (2, {"left", "right"})])
def test_the_hand_comes_from_one_side_or_two(sides: int, found: set[str]) -> None:
    """The jug stands on the side that the hand comes from, the glass with the water beyond it."""
    seen = set()
    for clip in moving_phases(8, seed=2, sides=sides, **PLAIN):
        jug, water = (np.nonzero(what(clip.frames[-1:]))[2].mean() for what in (redness, blueness))
        seen.add("right" if jug > water else "left")
    assert seen == found
