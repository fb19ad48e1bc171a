"""A folder of still images as a training source: every image a clip of one frame.

The images stay where they are. Beside the manifest lie the list of their paths and an index of
their lengths and checksums, so that an image that was changed later is noticed when it is read.
"""

import hashlib
import io
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from timewalk.artefacts import sha256_file, write_manifest, write_text
from timewalk.data.checksum import crc32c
from timewalk.data.folder import FrameIndex, verified
from timewalk.data.prepare.base import IMAGE_SUFFIXES, check_image
from timewalk.data.prepare.folder import relative_to
from timewalk.data.walk import walk_images
from timewalk.errors import UserError

log = logging.getLogger(__name__)

REMEDY = "run the images stage again"
SHOWN = 3
"""unreadable images that a message names"""


class Checked(NamedTuple):
    """What is known of an image that can be read.

    Attributes:
        length: bytes of the file.
        crc: CRC-32C of the file.
        digest: SHA-256 of the file.
        size: (width, height) in pixels.
    """

    length: int
    crc: int
    digest: str
    size: tuple[int, int]


class ImageStore:
    """Images of a folder, in the order of their list.

    Attributes:
        video: the data set's name.
        times: (N,) zeros: stills have no time.
    """

    def __init__(self, name: str, root: Path, files: Sequence[str], index: FrameIndex) -> None:
        self.video, self.root, self.files, self.index = name, root, list(files), index
        self.times = index.times

    def __len__(self) -> int:
        return len(self.files)

    def jpeg(self, index: int) -> bytes:
        """Return an image's file, verified, whatever its format."""
        where = self.where(index)
        try:
            data = Path(where).read_bytes()
        except OSError:
            raise UserError(f"{where} cannot be read: restore it, or {REMEDY}.") from None
        return verified(data, self.index, index, where, REMEDY)

    def where(self, index: int) -> str:
        """Return the image's path."""
        return str(self.root / self.files[index])


def index_images(root: Path, manifest: Path, workers: int = 1) -> dict[str, Any]:
    """Check every image below a folder and write its manifest, list and index.

    Files whose suffix is not an image's, and hidden files and folders, are passed over.

    Args:
        root: the folder; its sub-folders may be classes, which training ignores.
        manifest: ``…/<data set>/images.json``.
        workers: threads that read and decode.

    Returns:
        The manifest.

    Raises:
        UserError: no folder, no image in it, or images that cannot be read.
    """
    if not root.is_dir():
        raise UserError(f"{root} is no folder: correct the data set's key 'images'.")
    found = walk_images(root, IMAGE_SUFFIXES)
    files = sorted((Path(folder) / name).as_posix() for folder, names in found for name in names)
    if not files:
        raise UserError(f"{root} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}).")
    with ThreadPoolExecutor(max(1, workers)) as pool:
        results = list(pool.map(check_file, [root / file for file in files]))
    if broken := [result for result in results if isinstance(result, str)]:
        raise UserError(f"{len(broken)} of {len(files)} images: {' '.join(broken[:SHOWN])}")
    length, crc, digests, _ = zip(*results, strict=True)
    index = FrameIndex(
        offset=np.zeros(len(files), np.int64),
        length=np.array(length, np.int64),
        crc=np.array(crc, np.uint32),
        times=np.zeros(len(files)),
    )
    listing, index_path = manifest.with_suffix(".txt"), manifest.with_suffix(".index.npz")
    write_text(listing, "".join(f"{file}\n" for file in files))
    index.save(index_path)
    content = hashlib.sha256()
    for file, digest in zip(files, digests, strict=True):
        content.update(f"{file}\t{digest}\n".encode())
    return write_manifest(
        manifest,
        "shards",
        inputs={"images": content.hexdigest()},
        parameters={"storage": "images"},
        counts={"frames": len(files), "bytes": int(index.length.sum())},
        video=manifest.parent.name,
        index=index_path.name,
        index_sha256=sha256_file(index_path),
        files=listing.name,
        files_sha256=sha256_file(listing),
        images=relative_to(root, manifest.parent),
    )


def open_images(manifest: Path, about: dict[str, Any], index: FrameIndex) -> ImageStore:
    """Open what :func:`index_images` wrote."""
    listing = manifest.parent / about["files"]
    if not listing.is_file() or sha256_file(listing) != about["files_sha256"]:
        raise UserError(f"{listing} is missing or damaged: {REMEDY}.")
    # Not splitlines: names may hold rarer line separators, such as U+2028.
    files = listing.read_text(encoding="utf-8").split("\n")[:-1]
    return ImageStore(about["video"], manifest.parent / about["images"], files, index)


def check_file(path: Path) -> Checked | str:
    """Return what is known of an image, or what is wrong with it."""
    try:
        digest = check_image(path)
    except UserError as error:
        return str(error)
    data = path.read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        return Checked(len(data), crc32c(data), digest, image.size)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image as 8-bit RGB; Pillow alone would clip 16-bit grey values at 255."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")
