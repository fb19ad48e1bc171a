"""SMTC's windows: a step that fits, an anchor anywhere, videos that are too short left out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.data.conftest import read_number
from timewalk.data.clips import SampledClips, open_clips, window_step
from timewalk.data.seeds import generator
from timewalk.data.shards import write_shards
from timewalk.errors import UserError
from timewalk.methods.timet_config import TimeTConfig
from timewalk.training.batches import BatchSampler, Share, clips_of_epoch, epoch_size

LENGTHS = {"walk": 30, "run": 14, "dip": 4}


@pytest.fixture
def videos(make_frames, tmp_path):
    """Three videos; the numbers of each begin at 100 times its place."""
    targets = []
    for place, (video, count) in enumerate(LENGTHS.items()):
        target = tmp_path / "shards" / "set" / f"{video}.json"
        write_shards(make_frames(video, count, (96, 48), 100 * place), target, "folder")
        targets.append(target)
    return targets


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_each_clip_shows_its_window(videos):
    source = open_clips(videos[:2], 4, 4, sampling="window", per_video=3)
    assert (len(source), source.counts()) == (6, [3, 3])
    for index in range(6):
        clip = source.clip(index, rng(index))
        first, step = (0, 4) if index < 3 else (100, 3)
        assert clip.video == ("walk" if index < 3 else "run")
        assert [read_number(f) for f in clip.frames] == [
            first + clip.start + step * place for place in range(4)
        ]
        assert clip.times.tolist() == [(clip.start + step * place) / 25 for place in range(4)]


def test_short_videos_are_left_out_and_smaller_steps_named(videos, caplog):
    source = open_clips(videos, 4, 4, sampling="window", per_video=2)
    assert source.counts() == [2, 2]
    assert {source.clip(index).video for index in range(4)} == {"walk", "run"}
    assert [record.message for record in caplog.records] == [
        "left out, since a clip of 4 frames needs 5, 2 on each side of the one that it is drawn "
        "around: 'dip' (4 frames)",
        "too short for a step of 4 frames, take a smaller one: 'run' (step 3)",
    ]


def test_nothing_is_said_where_every_video_fits(videos, caplog):
    open_clips(videos[:1], 4, 4, sampling="window")
    assert not caplog.records


@pytest.mark.parametrize(("frames", "needed"), [(31, 31), (30, 31), (40, 41)])
def test_no_video_is_long_enough(videos, frames, needed):
    message = (
        rf"no video has the {needed} frames .* clip of {frames} needs, {frames // 2} on each side "
        r".*: 'walk' \(30 frames\), .*lower"
    )
    with pytest.raises(UserError, match=message):
        open_clips(videos, frames, 4, sampling="window")


def test_an_epoch_has_every_clip_of_every_fitting_video_once(videos):
    source = open_clips(videos, 4, 4, sampling="window", per_video=3)
    clips = clips_of_epoch(source, 3)
    assert epoch_size(clips) == 6
    sampler = BatchSampler(clips, 3, seed=1, first=0, total=4, share=Share(0, 3, 1))
    drawn = [sample for batch in sampler for sample in batch]
    for epoch in range(2):
        assert sorted(index for e, index in drawn if e == epoch) == list(range(6))
    starts = {
        (epoch, index): source.clip(index, generator(1, epoch, index)).start
        for epoch, index in drawn
    }
    assert len({starts[epoch, index] for epoch in range(2) for index in range(3)}) > 2


@settings(max_examples=200)
@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 8), st.integers(0, 99))
def test_windows_lie_within_the_video(length, frames, step, seed):
    found = window_step(length, frames, step)
    if found is None:
        assert length < 2 * (frames // 2) + 1
        return
    assert 1 <= found <= step
    for source in (rng(seed), None):
        numbers = SampledClips([], frames, "window", step).numbers(length, source)
        assert numbers == [numbers[0] + found * place for place in range(frames)]
        assert numbers[0] >= 0
        assert numbers[-1] < length


@settings(max_examples=100)
@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 8))
def test_longer_videos_never_have_smaller_steps(length, frames, step):
    steps = [window_step(n, frames, step) or 0 for n in (length, length + 1)]
    assert steps[0] <= steps[1]


def test_what_the_page_says_of_the_default_step():
    assert [window_step(length, 4, 4) for length in (18, 17, 5, 4)] == [4, 3, 1, None]


def test_every_anchor_is_drawn_equally_often():
    clips = SampledClips([], 4, "window", 4)
    anchors = [clips.numbers(20, rng(seed))[2] for seed in range(1200)]
    assert set(anchors) == set(range(8, 12))
    assert all(240 < anchors.count(anchor) < 360 for anchor in range(8, 12))


def test_without_a_generator_the_window_is_the_middle_one():
    assert SampledClips([], 4, "window", 4).numbers(30) == [6, 10, 14, 18]


def test_timet_has_no_windows():
    with pytest.raises(ValidationError, match="'uniform', 'dense', 'regular' or 'full'"):
        TimeTConfig.model_validate(TimeTConfig.miniature() | {"sampling": "window"})
