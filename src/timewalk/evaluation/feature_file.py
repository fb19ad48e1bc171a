"""Patch features of images in a file that is mapped into memory, computed once.

The file is a NumPy array; a note beside it says which features it holds and how many images are
done, so that an interrupted evaluation goes on.

Shapes: N images, B of them, D width, h and w cells.
"""

import logging
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from timewalk.artefacts import read_json, write_json
from timewalk.errors import UserError
from timewalk.evaluation.embed import Extractor
from timewalk.evaluation.segmentation_pairs import in_batches, runs_of

log = logging.getLogger(__name__)

PART = 16
"""images that the encoder sees at a time: always the same ones together, so that an interruption
changes no bit"""
NOTE_SECONDS = 20.0
GPU_SHARE = 0.5
"""of the free memory of a GPU that features may take"""


@dataclass(frozen=True)
class FeatureFile:
    """Features of N images.

    Attributes:
        values: (N, D, h, w), float32 or float16: in the file, or on the device.
    """

    values: np.ndarray | Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D, h, w)."""
        return tuple(self.values.shape)

    def __getitem__(self, places: Tensor) -> Tensor:
        """Return features float32 (B, D, h, w) of some images, int64 (B,)."""
        if isinstance(self.values, Tensor):
            return self.values[places.to(self.values.device)].float()
        return torch.from_numpy(self.values[places.numpy()]).float()

    def on(self, device: torch.device) -> "FeatureFile":
        """Return the features on a GPU if they fit there."""
        if device.type != "cuda" or isinstance(self.values, Tensor):
            return self
        free, _ = torch.cuda.mem_get_info(device)
        if self.values.nbytes > GPU_SHARE * free:
            return self
        return FeatureFile(torch.from_numpy(np.asarray(self.values)).to(device))


def feature_file(
    path: Path,
    key: str,
    extractor: Extractor,
    images: Dataset[Tensor],
    numbers: str,
    workers: int,
) -> FeatureFile:
    """Return the features of all images, computing those that the file does not have.

    Args:
        path: of the file.
        key: digest of what the features depend on; what lies there of another key is overwritten.
        extractor: gives maps (B, D, h, w).
        images: uint8 (3, S, S) by number, with a length.
        numbers: float32 or float16.
        workers: processes that read images.

    Raises:
        UserError: an unreadable image, features that are not finite, or too little disk.
    """
    note = path.with_suffix(".json")
    known = read_json(note) if note.is_file() and path.is_file() else {}
    done = int(known["done"]) if known.get("key") == key else 0
    count = len(images)  # type: ignore[arg-type]
    values = np.load(path, mmap_mode="r+") if done else None
    saved = time.monotonic()
    runs = runs_of(done, count, PART)
    hidden = not sys.stderr.isatty()
    for run, batch in zip(
        tqdm(runs, unit="batch", disable=hidden), in_batches(images, runs, workers), strict=True
    ):
        found = extractor(batch).cpu().numpy().astype(numbers)
        check_finite(torch.from_numpy(found), f"images {run[0] + 1} to {run[-1] + 1}")
        if values is None:
            values = _new(path, (count, *found.shape[1:]), numbers)
        values[run.start : run.stop] = found
        if time.monotonic() - saved >= NOTE_SECONDS or run.stop == count:
            values.flush()
            write_json(note, {"key": key, "done": run.stop})
            saved = time.monotonic()
    assert values is not None, "no images"
    return FeatureFile(values)


def check_finite(features: Tensor, what: str) -> None:
    """Refuse features that are not finite.

    Raises:
        UserError: says of what they are.
    """
    if not bool(features.isfinite().all()):
        raise UserError(
            f"the encoder gives features that are not finite for {what}; train it again, or keep "
            "its arithmetic and the features in float32."
        )


def check_disk(folder: Path, size: int, images: int, remedy: str = "") -> None:
    """Refuse to fill the disk.

    Args:
        folder: of the file.
        size: in bytes.
        images: whose features it holds.
        remedy: a further setting that makes it smaller.

    Raises:
        UserError: says how much is needed.
    """
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UserError(
            f"{folder} needs {size / 1e9:.1f} GB for the features of {images} images but "
            f"{free / 1e9:.1f} GB are free; set {remedy}a smaller image_size, or free some space."
        )


def _new(path: Path, shape: tuple[int, ...], numbers: str) -> np.memmap:
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(numbers).itemsize
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    check_disk(path.parent, size, shape[0], "features: float16, ")
    log.info("features of %d images: %.2f GB in %s", shape[0], size / 1e9, path)
    return mapped(path, numbers, shape)


def mapped(path: Path, numbers: np.typing.DTypeLike, shape: tuple[int, ...]) -> np.memmap:
    """Return a new array of zeros in a file that is mapped into memory.

    Its room is taken at once: to write into a mapped file on a full disk kills the process.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=numbers, shape=shape)
    with open(path, "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
