"""Numbered frames as the frames stage leaves them: the picture says which frame it is."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from timewalk.artefacts import write_manifest

CELL = 8
BITS = 10


def numbered(number, width, height):
    """Draw a frame's number as ten black or white cells, and a gradient below them."""
    row = np.linspace(0, 255, width).astype(np.uint8)
    image = Image.fromarray(np.stack([np.tile(row, (height, 1))] * 3, axis=-1))
    draw = ImageDraw.Draw(image)
    for bit in range(BITS):
        box = (bit * CELL, 0, (bit + 1) * CELL - 1, CELL - 1)
        draw.rectangle(box, fill="white" if number >> bit & 1 else "black")
    return image


def read_number(frame):
    """Return the number that a frame, uint8 (3, H, W), shows."""
    cells = [int(frame[:, CELL // 2, bit * CELL + CELL // 2].float().mean()) for bit in range(BITS)]
    return sum((cell > 127) << bit for bit, cell in enumerate(cells))


@pytest.fixture
def make_frames(tmp_path):
    """Return a function that makes a folder of frames and returns its manifest."""

    def make(video="walk", count=40, size=(96, 48), first=0, fps=25.0):
        folder = tmp_path / "frames" / "set" / video
        folder.mkdir(parents=True)
        for number in range(count):
            path = folder / f"{number:06d}.jpg"
            numbered(first + number, *size).save(path, "JPEG", quality=90)
        np.save(folder / "times.npy", np.arange(count) / fps)
        write_manifest(
            folder / "manifest.json",
            "frames",
            inputs={},
            parameters={},
            counts={"frames": count, "width": size[0], "height": size[1]},
        )
        return folder / "manifest.json"

    return make
