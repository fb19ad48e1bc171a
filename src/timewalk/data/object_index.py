"""The compact index of a set of objects: flat arrays, opened in no time by every loader worker.

COCO's annotations are hundreds of megabytes of JSON. The prepare stage reads them once and writes
a folder a split; the arrays are mapped, not read, so that workers share them.

M images, N objects, P polygons, K corners, R runs.
"""

import hashlib
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path

import numpy as np

from timewalk.artefacts import atomic_path, sha256_file
from timewalk.data.object_masks import Outline


@dataclass(frozen=True)
class ObjectIndex:
    """Images with their objects.

    Attributes:
        names: bytes (M,) UTF-8 path of each image, relative to the set's root.
        image_ids: int64 (M,) the set's own number of each image.
        sizes: int32 (M, 2) height and width in pixels.
        first: int64 (M + 1,) where each image's objects begin, and all end.
        boxes: float32 (N, 4) x0, y0, x1, y1 in pixels.
        classes: int32 (N,) from 0.
        crowd: bool (N,) whether it is a region of many objects.
        areas: float32 (N,) pixels, as the set states them.
        first_polygon: int64 (N + 1,).
        first_corner: int64 (P + 1,).
        corners: float32 (K, 2) x and y in pixels.
        first_run: int64 (N + 1,).
        runs: int32 (R,) lengths down the columns, absent pixels first.
    """

    names: np.ndarray
    image_ids: np.ndarray
    sizes: np.ndarray
    first: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    first_polygon: np.ndarray
    first_corner: np.ndarray
    corners: np.ndarray
    first_run: np.ndarray
    runs: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def outline(self, number: int) -> Outline:
        """Return the outline of an object by its number in the whole set."""
        start, end = self.first_run[number : number + 2]
        if end > start:
            return Outline(runs=np.array(self.runs[start:end]))
        start, end = self.first_polygon[number : number + 2]
        edges = self.first_corner[start : end + 1]
        return Outline(tuple(self.corners[a:b].astype(np.float64) for a, b in pairwise(edges)))

    def save(self, folder: Path) -> None:
        """Write one ``.npy`` an array, the folder atomically."""
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            for field in fields(self):
                np.save(temporary / f"{field.name}.npy", getattr(self, field.name))


def index_digest(folder: Path) -> str:
    """Return the SHA-256 over the files of an index.

    Raises:
        FileNotFoundError: one is missing.
    """
    digest = hashlib.sha256()
    for field in fields(ObjectIndex):
        digest.update(f"{field.name}\t{sha256_file(folder / f'{field.name}.npy')}\n".encode())
    return digest.hexdigest()


def open_index(folder: Path) -> ObjectIndex:
    """Map the arrays that :meth:`ObjectIndex.save` wrote."""
    arrays = {
        field.name: np.load(folder / f"{field.name}.npy", mmap_mode="r", allow_pickle=False)
        for field in fields(ObjectIndex)
    }
    return ObjectIndex(**arrays)


class IndexBuilder:
    """An index in the making, image by image, each followed by its objects."""

    def __init__(self) -> None:
        self.names: list[bytes] = []
        self.image_ids: list[int] = []
        self.sizes: list[tuple[int, int]] = []
        self.first: list[int] = []
        self.boxes: list[np.ndarray] = []
        self.classes: list[int] = []
        self.crowd: list[bool] = []
        self.areas: list[float] = []
        self.first_polygon = [0]
        self.first_corner = [0]
        self.corners: list[np.ndarray] = []
        self.first_run = [0]
        self.runs: list[np.ndarray] = []

    def add_image(self, name: str, image_id: int, size: tuple[int, int]) -> None:
        """Add an image by its path from the root, its number, and (height, width)."""
        self.names.append(name.encode())
        self.image_ids.append(image_id)
        self.sizes.append(size)
        self.first.append(len(self.classes))

    def add_object(
        self, box: np.ndarray, label: int, crowd: bool, area: float, outline: Outline
    ) -> None:
        """Add an object of the last image; its fields as in :class:`ObjectIndex`."""
        self.boxes.append(box)
        self.classes.append(label)
        self.crowd.append(crowd)
        self.areas.append(area)
        for polygon in outline.polygons:
            self.corners.append(polygon.astype(np.float32))
            self.first_corner.append(self.first_corner[-1] + len(polygon))
        self.first_polygon.append(self.first_polygon[-1] + len(outline.polygons))
        runs = outline.runs if outline.runs is not None else np.empty(0)
        self.runs.append(runs.astype(np.int32))
        self.first_run.append(self.first_run[-1] + len(runs))

    def build(self) -> ObjectIndex:
        """Return the arrays."""
        return ObjectIndex(
            names=np.array(self.names, dtype=np.bytes_),
            image_ids=np.array(self.image_ids, np.int64),
            sizes=np.array(self.sizes, np.int32).reshape(-1, 2),
            first=np.array([*self.first, len(self.classes)], np.int64),
            boxes=np.array(self.boxes, np.float32).reshape(-1, 4),
            classes=np.array(self.classes, np.int32),
            crowd=np.array(self.crowd, bool),
            areas=np.array(self.areas, np.float32),
            first_polygon=np.array(self.first_polygon, np.int64),
            first_corner=np.array(self.first_corner, np.int64),
            corners=np.concatenate([np.empty((0, 2), np.float32), *self.corners]),
            first_run=np.array(self.first_run, np.int64),
            runs=np.concatenate([np.empty(0, np.int32), *self.runs]),
        )
