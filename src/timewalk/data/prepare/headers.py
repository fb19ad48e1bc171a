"""Sizes of images from their headers, and whether their files are whole, without decoding them."""

import os
from pathlib import Path

from PIL import Image

ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
"""what stands at the end of a file"""
TAIL = 64
"""bytes from the end in which it is looked for"""


def whole_size(path: Path) -> tuple[int, int]:
    """Return (height, width) of an image whose file does not break off.

    Only a file without its end mark, or of a format that has none, is decoded.

    Raises:
        OSError, SyntaxError, ValueError: missing, no image, or broken off.
    """
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(file.tell() - TAIL, 0))
        tail = file.read()
        with Image.open(file) as image:
            mark = ENDS.get(str(image.format))
            if mark is None or mark not in tail:
                image.load()
            return image.height, image.width
