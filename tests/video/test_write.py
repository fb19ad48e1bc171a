"""Videos that are written: every frame, at its rate, whole or absent."""

from fractions import Fraction

import av
import numpy as np
import pytest

from timewalk.errors import UserError
from timewalk.video import write
from timewalk.video.write import write_mp4


def pictures(count, size=(36, 50)):
    rows = np.linspace(0, 200, size[0])[:, None, None]
    for number in range(count):
        yield np.broadcast_to(rows + 5 * number, (*size, 3)).round().astype(np.uint8)


def read(path):
    with av.open(str(path)) as file:
        rate = file.streams.video[0].average_rate
        return rate, [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]


@pytest.mark.parametrize(
    ("fps", "rate"), [(25, 25), (30000 / 1001, Fraction(30000, 1001)), (2.5, 2.5)]
)
def test_every_frame_at_its_rate(tmp_path, fps, rate):
    assert write_mp4(tmp_path / "out.mp4", pictures(9), fps) == 9
    found_rate, found = read(tmp_path / "out.mp4")
    assert found_rate == rate
    assert len(found) == 9
    for one, expected in zip(found, pictures(9), strict=True):
        assert np.abs(one.astype(int) - expected).mean() < 3


def test_odd_sizes_gain_a_row_and_a_column(tmp_path):
    write_mp4(tmp_path / "odd.mp4", pictures(2, (37, 51)), 25)
    _, found = read(tmp_path / "odd.mp4")
    assert found[0].shape == (38, 52, 3)
    expected = next(pictures(1, (37, 51)))
    assert np.abs(found[0][:37, :51].astype(int) - expected).mean() < 3


def test_the_same_frames_give_the_same_bytes(tmp_path, monkeypatch):
    """Whatever the memory held that ffmpeg gets: the C library fills it."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 144, 3), np.uint8)
    moving = [np.clip(noise[0] // 2 + noise[n] // 8 + n, 0, 255) for n in range(60)]
    write_mp4(tmp_path / "a.mp4", moving, 25)
    monkeypatch.setenv("MALLOC_PERTURB_", "1")
    write_mp4(tmp_path / "b.mp4", moving, 25)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_a_failure_on_the_way_leaves_nothing(tmp_path):
    def broken():
        yield from pictures(3)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_mp4(tmp_path / "out.mp4", broken(), 25)
    assert list(tmp_path.iterdir()) == []


def test_frames_of_two_sizes_and_no_frames_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no frames"):
        write_mp4(tmp_path / "out.mp4", [], 25)
    frames = [*pictures(1), *pictures(1, (20, 20))]
    with pytest.raises(ValueError, match="frame 1"):
        write_mp4(tmp_path / "out.mp4", frames, 25)
    assert list(tmp_path.iterdir()) == []


def test_an_ffmpeg_that_refuses_is_one_sentence(tmp_path, monkeypatch):
    plain = write._command

    def wrong(*arguments):
        return [word if word != "libx264" else "no_such_encoder" for word in plain(*arguments)]

    monkeypatch.setattr(write, "_command", wrong)
    # More than a pipe holds, so that writing itself fails.
    with pytest.raises(UserError, match=r"out\.mp4 could not be written by ffmpeg"):
        write_mp4(tmp_path / "out.mp4", pictures(50, (200, 200)), 25)
    assert list(tmp_path.iterdir()) == []
