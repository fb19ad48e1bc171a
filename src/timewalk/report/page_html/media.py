"""Pictures and videos of a page: small ones inside it, everything in full beside it."""

import base64
import io
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from urllib.parse import quote, unquote

from PIL import Image

PICTURES, VIDEOS = frozenset((".png", ".jpg", ".jpeg", ".gif", ".webp")), frozenset((".mp4",))
SIDE = 480
"""pixels of the longer side inside the page"""
KEEP = 12_000
"""bytes of a file that goes into the page as it is"""
BUDGET = 2_500_000
"""bytes of all pictures inside the page; further ones are linked"""
VIDEO, VIDEO_BUDGET = 1_000_000, 4_000_000
"""bytes of a video that goes into the page, and of all of these there; further ones are linked"""
EACH = 4
"""pictures or videos of one result on the page"""


@dataclass(frozen=True)
class Medium:
    """A picture or a video.

    Attributes:
        run: that it is of.
        source: the evaluation it is an artefact of, `figures`, or the data it was trained on.
        name: of the file without its folder.
        link: relative to the page.
        image: address of the picture, or of the video's poster; None: no poster.
        width: of the image in pixels, for its place; 0: unknown.
        height: the same.
        video: whether it moves under controls.
        why: a picture is not shown.
        inside: address of a video that is inside the page.
    """

    run: str
    source: str
    name: str
    link: str
    image: str | None
    width: int
    height: int
    video: bool
    why: str | None = None
    inside: str | None = None


@dataclass
class Gallery:
    """Collects media until the page is full."""

    folder: Path
    left: int = BUDGET
    media: list[Medium] = field(default_factory=list)
    more: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(self, run: str, source: str, files: Iterable[Path]) -> None:
        """Add the first pictures and videos of a run from one source; count the others."""
        found = [file for file in files if file.suffix.lower() in PICTURES | VIDEOS]
        found = [file for file in found if file.is_file()]
        for file in found[:EACH]:
            self.media.append(self._medium(run, source, file))
        if len(found) > EACH:
            self.more[run, source] = len(found) - EACH

    def embed_videos(self, room: int = VIDEO_BUDGET) -> None:
        """Put small videos inside the page, the first of each result before the second of any."""
        places: dict[tuple[str, str], list[int]] = {}
        for number, medium in enumerate(self.media):
            if medium.video:
                places.setdefault((medium.run, medium.source), []).append(number)
        for number in (n for turn in zip_longest(*places.values()) for n in turn if n is not None):
            file = self.folder / unquote(self.media[number].link)
            if file.stat().st_size > min(VIDEO, room * 3 // 4):
                continue
            address = _address("video/mp4", file.read_bytes())
            room -= len(address)
            self.media[number] = replace(self.media[number], inside=address)

    def _medium(self, run: str, source: str, file: Path) -> Medium:
        link = relative(file, self.folder)
        video = file.suffix.lower() in VIDEOS
        image = _first_frame(file) if video else _opened(file)
        if image is None or isinstance(image, str):
            return Medium(run, source, file.name, link, None, 0, 0, video, image)
        width, height = image.size
        inside = self._inside(file, image)
        if inside is None and video:
            return Medium(run, source, file.name, link, None, width, height, video)
        return Medium(run, source, file.name, link, inside or link, width, height, video)

    def _inside(self, file: Path, image: Image.Image) -> str | None:
        """Return a picture's data address, or None where the page has no room for it."""
        suffix = file.suffix.lower()
        if suffix in PICTURES and file.stat().st_size <= KEEP:
            kind = "jpeg" if suffix == ".jpg" else suffix[1:]
            data = file.read_bytes()
        else:
            kind, data = "webp", _reduced(image)
        address = _address(f"image/{kind}", data)
        if len(address) > self.left:
            return None
        self.left -= len(address)
        return address


def _address(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def relative(file: Path, folder: Path) -> str:
    """Return the address of a file for a page in a folder."""
    return quote(Path(os.path.relpath(file, folder)).as_posix())


def _opened(file: Path) -> Image.Image | str:
    """Return a picture, or why it is not shown: its link stays."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                return image.convert("RGBA" if "transparency" in image.info else "RGB")
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return "is too large to be shown here"
    except (OSError, SyntaxError, ValueError):
        return "cannot be read"


def _first_frame(file: Path) -> Image.Image | None:
    """Return a video's first frame; None without PyAV, or of a damaged video."""
    if find_spec("av") is None:
        return None
    import av

    try:
        with av.open(str(file)) as container:
            return next(container.decode(video=0)).to_image()
    except (av.FFmpegError, StopIteration):
        return None


def _reduced(image: Image.Image) -> bytes:
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "webp", quality=72, method=4)
    return buffer.getvalue()
