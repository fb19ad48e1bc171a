"""Images with a box, a mask and a class for every object: the reader of COCO and its like.

Reads what :mod:`timewalk.data.prepare.objects` wrote. The training split holds the images that have
something to learn; the test split all of them, its truth in the set's own file of annotations,
which the official metrics read. Source: COCO.

Shapes: H and W rows and columns of a stored image, N objects.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from timewalk.artefacts import read_manifest, sha256_file
from timewalk.data.object_index import ObjectIndex, index_digest, open_index
from timewalk.data.object_masks import Outline, Placement, outlines_to_masks
from timewalk.data.sequences import read_frame
from timewalk.errors import UserError

OBJECTS = "labelled_objects"
"""kind of the manifest"""
SPLITS = {"train": "train2017", "test": "val2017"}
"""what COCO calls our splits"""
SMALLEST_SIDE = 1.0
"""pixels of a box's sides inside its image, below which an object is not trained on"""


@dataclass(frozen=True)
class ObjectImage:
    """An image and its objects as they are stored.

    Attributes:
        path: the file.
        image_id: the set's own number of it.
        height, width: in pixels.
        boxes: float32 (N, 4) x0, y0, x1, y1 in pixels; may reach beyond the image.
        classes: int64 (N,) from 0, without gaps.
        crowd: bool (N,) whether it is a region of many objects.
        areas: float32 (N,) pixels, as the set states them.
        outlines: N, which pixels they have.
    """

    path: Path
    image_id: int
    height: int
    width: int
    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    outlines: tuple[Outline, ...]

    def read(self) -> np.ndarray:
        """Return the pixels, uint8 RGB (H, W, 3).

        Raises:
            UserError: it cannot be read, or has another size than its set states.
        """
        image = read_frame(self.path)
        if image.shape[:2] != (self.height, self.width):
            raise UserError(
                f"{self.path} is {image.shape[1]}x{image.shape[0]} pixels, but its set states "
                f"{self.width}x{self.height}; restore the published file."
            )
        return image

    def masks(self, placement: Placement | None = None) -> np.ndarray:
        """Return the objects' masks, uint8 (N, H, W), or as many as they come to lie elsewhere."""
        stored = (self.height, self.width)
        return outlines_to_masks(self.outlines, stored, placement or Placement(*stored))

    @property
    def trainable(self) -> np.ndarray:
        """bool (N,): one object, not a crowd, with an outline, and not outside the image."""
        known = [outline.known for outline in self.outlines]
        inside = sides_inside(self.boxes, (self.height, self.width)) >= SMALLEST_SIDE
        return np.array(~self.crowd & inside & np.array(known, bool))


def sides_inside(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the shorter side in pixels of what of boxes (N, 4) is inside a (height, width)."""
    high = np.array([size[1], size[0]])
    corners = np.clip(boxes.reshape(-1, 2, 2), 0, high)
    return np.array((corners[:, 1] - corners[:, 0]).min(axis=1))


class LabelledObjects(Dataset[ObjectImage]):
    """The images of one split, by number.

    Attributes:
        name: the set's name in the configuration.
        kind: its layout, `coco`.
        classes: names; their positions are the labels.
        category_ids: the set's own number of each class, which has gaps.
        annotations: the set's own file of this split.
        digest: of the manifest.
        about: the manifest.
    """

    def __init__(self, manifest: Path, split: str) -> None:
        """Open a split, `train` or `test`.

        Raises:
            UserError: no manifest of objects, an index that is not its own, or annotations of the
                test split that are not those that were prepared.
        """
        self.about: dict[str, Any] = read_manifest(manifest, OBJECTS)
        self.split, self.folder = split, manifest.parent / split
        source = self.about["source"]
        self.root = manifest.parent / source["root"]
        self.name, self.kind = str(self.about["name"]), str(self.about["layout"])
        self.classes = tuple(self.about["classes"])
        self.category_ids = tuple(self.about["category_ids"])
        self.annotations = self.root / source["annotations"][split]
        self.digest = sha256_file(manifest)
        try:
            found = index_digest(self.folder)
        except FileNotFoundError:
            raise UserError(f"{self.folder} is incomplete; run the prepare stage again.") from None
        if found != source["index_sha256"][split]:
            raise UserError(
                f"{self.folder} is not the index of {manifest}; run the prepare stage again."
            )
        self.index = open_index(self.folder)
        # The truth of the test is read from the set's own file.
        if split == "test":
            self._check_annotations(self.about["inputs"][source["annotations"][split]])

    def _check_annotations(self, expected: str) -> None:
        found = sha256_file(self.annotations) if self.annotations.is_file() else None
        if found != expected:
            state = "is missing" if found is None else "has changed since it was prepared"
            raise UserError(
                f"{self.annotations} {state}; restore it or run the prepare stage again."
            )

    @property
    def title(self) -> str:
        """Layout and part, such as `coco-val2017`."""
        return f"{self.about['parameters']['kind']}-{SPLITS[self.split]}"

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> ObjectImage:
        return image_of(self.index, number, self.root)

    def __getstate__(self) -> dict[str, Any]:
        # A pickled mapping would be a copy of all annotations.
        return {key: value for key, value in vars(self).items() if key != "index"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, index=open_index(state["folder"]))


def image_of(index: ObjectIndex, number: int, root: Path) -> ObjectImage:
    """Return an image of an index; ``root`` is the folder that names are told from.

    Raises:
        IndexError: beyond the last.
    """
    name, size = index.names[number], index.sizes[number]
    objects = range(*index.first[number : number + 2].tolist())
    rows = slice(objects.start, objects.stop)
    return ObjectImage(
        root / name.decode(),
        int(index.image_ids[number]),
        int(size[0]),
        int(size[1]),
        np.array(index.boxes[rows]),
        np.array(index.classes[rows], np.int64),
        np.array(index.crowd[rows]),
        np.array(index.areas[rows]),
        tuple(index.outline(item) for item in objects),
    )
