import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from tests.data.conftest import read_number
from timewalk.data.clips import SampledClips, VideoClips, decode_frames, open_clips
from timewalk.data.sampling import Drawn
from timewalk.data.shards import write_shards
from timewalk.errors import UserError


@pytest.fixture(params=["tfrecord", "folder"])
def videos(request, make_frames, tmp_path):
    """Two videos of different sizes; the second one's numbers begin at 500."""
    targets = []
    for video, count, size, first in (("walk", 30, (96, 48), 0), ("run", 25, (88, 64), 500)):
        target = tmp_path / "shards" / "set" / f"{video}.json"
        write_shards(make_frames(video, count, size, first), target, request.param)
        targets.append(target)
    return targets


def test_each_clip_shows_its_frames(videos):
    source = open_clips(videos, num_frames=3, step=4)
    assert len(source) == (30 - 12) + (25 - 12)
    for index in range(len(source)):
        clip = source.clip(index)
        second = index >= 18
        start = index - 18 if second else index
        assert (clip.video, clip.start) == (("run", start) if second else ("walk", start))
        assert clip.frames.shape == ((3, 3, 64, 88) if second else (3, 3, 48, 96))
        assert clip.frames.dtype == torch.uint8
        expected = [500 * second + start + 4 * t for t in range(3)]
        assert [read_number(frame) for frame in clip.frames] == expected
        assert clip.times.tolist() == [(start + 4 * t) / 25 for t in range(3)]


@pytest.mark.parametrize("index", [-1, 31])
def test_numbers_outside(videos, index):
    with pytest.raises(IndexError):
        open_clips(videos, 3, 4).clip(index)


def test_a_clip_longer_than_the_video(videos):
    with pytest.raises(
        UserError,
        match=r"'run' has 25 frames, .* at least 29: lower the frames of a clip or the step",
    ):
        open_clips(videos, 7, 4)
    with pytest.raises(UserError, match=r"'walk' has 30 frames, 'run' has 25 frames"):
        open_clips(videos, 8, 60)
    assert len(open_clips(videos, 6, 4)) == 6 + 1


def test_shrinking_steps_fit_short_videos(videos):
    source = open_clips(videos, num_frames=7, step=4, shrink=True)
    assert source.counts() == [30 - 28 + 1, 25 - 7 * 3 + 1]
    assert len(source) == sum(source.counts())
    starts = []
    for index in range(len(source)):
        clip = source.clip(index)
        step, first = (4, 0) if clip.video == "walk" else (3, 500)
        found = [read_number(frame) for frame in clip.frames]
        assert found == [first + clip.start + step * t for t in range(7)]
        starts.append((clip.video, clip.start))
    assert starts == [("walk", n) for n in range(3)] + [("run", n) for n in range(5)]
    # A step that fits stays as it is, with one start more than where none shrinks.
    assert open_clips(videos, 3, 4, shrink=True).counts() == [30 - 12 + 1, 25 - 12 + 1]
    assert open_clips(videos, 3, 4).counts() == [30 - 12, 25 - 12]


def test_videos_shorter_than_a_clip_are_named_and_left_out(videos, caplog):
    source = open_clips(videos, 28, 4, shrink=True)
    assert source.counts() == [30 - 28 + 1]
    assert source.clip(2).video == "walk"
    assert "left out, with less than 28 frames: 'run' (25 frames)" in caplog.text
    with pytest.raises(
        UserError, match=r"no video has the 31 frames .*'walk' \(30 frames\), 'run' \(25 f"
    ):
        open_clips(videos, 31, 4, shrink=True)


def test_no_videos():
    with pytest.raises(UserError, match="no videos"):
        open_clips([], 3, 4)


class Lengths:
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count


@settings(max_examples=50)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.integers(1, 5), st.integers(1, 7))
def test_ranges_are_laid_end_to_end(room, num_frames, step):
    """Every start of every video once, in order, and no frame outside its video."""
    stores = [Lengths(num_frames * step + 1 + extra) for extra in room]
    clips = VideoClips(stores, num_frames, step)
    found = [clips.locate(index) for index in range(len(clips))]
    assert found == [(v, i) for v, extra in enumerate(room) for i in range(extra + 1)]
    assert all(i + (num_frames - 1) * step < len(stores[v]) for v, i in found)


class Numbers(Dataset):
    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        return read_number(self.source.clip(index).frames[0])


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_keep_the_order(videos, context):
    source = open_clips(videos, 3, 4)
    source.clip(0)  # a file is open before the workers start
    numbers = Numbers(source)
    workers = 2 if context == "fork" else 1
    loader = DataLoader(numbers, 4, num_workers=workers, multiprocessing_context=context)
    found = [int(number) for batch in loader for number in batch]
    assert found == [*range(18), *range(500, 513)]


def test_pickle(videos):
    source = open_clips(videos, 3, 4)
    before = source.clip(20).frames
    assert pickle.loads(pickle.dumps(source)).clip(20).frames.equal(before)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


class TestSampled:
    """Frames drawn when a clip is asked for, as TimeT has it."""

    @pytest.mark.parametrize("sampling", ["uniform", "dense", "regular"])
    @pytest.mark.parametrize("seed", [None, 0, 1])
    def test_each_clip_shows_its_frames(self, videos, sampling, seed):
        source = open_clips(videos, 4, 3, sampling=sampling, per_video=2)
        assert len(source) == 4
        assert source.counts() == [2, 2]
        for index in range(4):
            clip = source.clip(index, None if seed is None else rng(seed))
            first, length = (500, 25) if index >= 2 else (0, 30)
            assert clip.video == ("run" if index >= 2 else "walk")
            numbers = source.numbers(length, None if seed is None else rng(seed))
            assert [read_number(frame) for frame in clip.frames] == [first + n for n in numbers]
            assert clip.times.tolist() == [n / 25 for n in numbers]
            assert clip.start == numbers[0]

    def test_all_frames(self, videos):
        source = open_clips(videos, 4, 3, sampling="full")
        assert len(source) == 2
        assert [read_number(f) for f in source.clip(0, rng()).frames] == list(range(30))
        assert len(source.clip(1).frames) == 25

    @settings(max_examples=60)
    @given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 99))
    def test_uniform(self, length, count, seed):
        found = SampledClips([], count, "uniform").numbers(length, rng(seed))
        assert len(found) == count
        assert found == sorted(found)
        assert all(0 <= number < length for number in found)
        # Frames occur twice only where there are not enough of them.
        assert length < count or len(set(found)) == count

    @settings(max_examples=60)
    @given(st.integers(2, 40), st.integers(2, 8), st.integers(1, 6), st.integers(0, 99))
    def test_dense_and_regular(self, length, count, step, seed):
        length = max(length, count)
        for sampling in ("dense", "regular"):
            found = SampledClips([], count, sampling, step).numbers(length, rng(seed))
            expected = step if length >= count * step else length // count
            apart = 1 if sampling == "dense" else expected
            assert found == [found[0] + apart * n for n in range(count)]
            assert 0 <= found[0] <= length - count * apart

    def test_every_start_is_drawn_and_no_other(self):
        for sampling, starts in (("dense", 7), ("regular", 4)):
            clips = SampledClips([], 4, sampling, 3)
            length = 10 if sampling == "dense" else 15
            found = {clips.numbers(length, rng(seed))[0] for seed in range(200)}
            assert found == set(range(starts))

    def test_every_frame_is_drawn_equally_often(self):
        clips = SampledClips([], 3, "uniform")
        drawn = [n for seed in range(2000) for n in clips.numbers(10, rng(seed))]
        assert all(500 < drawn.count(number) < 700 for number in range(10))

    def test_without_a_generator_frames_are_spread_evenly(self):
        assert SampledClips([], 4, "uniform").numbers(16) == [2, 6, 10, 14]
        assert SampledClips([], 4, "uniform").numbers(2) == [0, 0, 1, 1]
        assert SampledClips([], 4, "dense").numbers(10) == [3, 4, 5, 6]
        assert SampledClips([], 4, "regular", 2).numbers(10) == [1, 3, 5, 7]

    def test_the_generator_decides(self, videos):
        source = open_clips(videos, 4, 1, sampling="uniform")
        one, same, other = (source.clip(0, rng(seed)).frames for seed in (1, 1, 2))
        assert torch.equal(one, same)
        assert not torch.equal(one, other)

    @pytest.mark.parametrize("sampling", ["dense", "regular"])
    def test_too_short_a_video_is_named(self, videos, sampling):
        message = (
            rf"`sampling: {sampling}` needs 26 frames, .* in 'run' \(25 frames\): lower .* uniform"
        )
        with pytest.raises(UserError, match=message):
            open_clips(videos, 26, 1, sampling=sampling)
        assert len(open_clips(videos, 26, 1, sampling="uniform")) == 2

    def test_all_of_a_single_frame_is_no_clip(self, make_frames, tmp_path):
        target = tmp_path / "shards" / "set" / "short.json"
        write_shards(make_frames("short", 1, (96, 48), 0), target, "folder")
        with pytest.raises(UserError, match=r"full` needs 2 frames, .* 'short' \(1 frame\): leave"):
            open_clips([target], 4, 1, sampling="full")

    @pytest.mark.parametrize("index", [-1, 2])
    def test_numbers_outside(self, videos, index):
        with pytest.raises(IndexError):
            open_clips(videos, 3, 4, sampling="dense").clip(index, rng())


def test_numbered_clips_draw_nothing(videos):
    source, generator = open_clips(videos, 3, 4), rng()
    assert torch.equal(source.clip(5, generator).frames, source.clip(5).frames)
    assert torch.equal(torch.rand(1, generator=generator), torch.rand(1, generator=rng()))


class NoPicture:
    def jpeg(self, index):
        return b"no picture"

    def where(self, index):
        return "walk.tfrecord at byte 77"


def test_bytes_that_are_no_picture():
    """The checksum agrees, so the frames stage wrote it."""
    with pytest.raises(UserError, match=r"walk\.tfrecord at byte 77: .* cannot be decoded"):
        decode_frames(NoPicture(), [3, 5])


class Two:
    """Draws the last frame of a video, a frame before its beginning, and the last one again."""

    shortest = 26

    def draw(self, length, rng):
        return Drawn([length - 1, 0, length - 1], [length - 1, -3, length])


def test_a_sampler_of_the_methods_own(videos):
    source = open_clips(videos[:1], 3, 1, sampler=Two(), per_video=2)
    assert (len(source), source.counts(), source.groups()) == (2, [2], [0, 0])
    clip = source.clip(1, rng())
    assert [read_number(frame) for frame in clip.frames] == [29, 0, 29]
    assert clip.steps.tolist() == [29, -3, 30]
    assert clip.steps.dtype == torch.int64
    assert (clip.length, clip.start, clip.labels) == (30, 29, None)
    assert clip.times.tolist() == [29 / 25, 0, 29 / 25]


def test_a_video_too_short_for_a_sampler_is_named(videos):
    message = r"videos of at least 26 frames, .* less in 'run' \(25 frames\): lower .*offset"
    with pytest.raises(UserError, match=message):
        open_clips(videos, 3, 1, sampler=Two())


@pytest.mark.parametrize(
    ("fraction", "names"), [(1, ["walk", "run"]), (0.99, ["walk"]), (0.1, ["walk"])]
)
def test_a_share_of_the_videos(videos, fraction, names):
    source = open_clips(videos, 2, 1, sampling="dense", fraction=fraction)
    assert [source.clip(index).video for index in range(len(source))] == names


def test_numbered_clips_know_their_frames(videos):
    source = open_clips(videos, 3, 4)
    clip = source.clip(19)
    assert (clip.video, clip.length, clip.labels) == ("run", 25, None)
    assert clip.steps.tolist() == [1, 5, 9]
    assert source.groups() == [0] * len(source)
