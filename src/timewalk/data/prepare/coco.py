"""COCO 2017's instances: a folder of images and a file of annotations for each split.

Reads a file of annotations once, checks every row and every image's header, and gives the compact
index of :mod:`timewalk.data.object_index`. What cannot be meant (an unknown image or category, a
box that is no four numbers, runs of another size) is a fault; what real annotations have (empty
boxes, boxes beyond the image, polygons of fewer than three corners) is counted.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from timewalk.data.object_index import IndexBuilder
from timewalk.data.object_masks import FEWEST_NUMBERS, Outline, text_to_runs
from timewalk.data.objects import SMALLEST_SIDE, SPLITS, ObjectImage, sides_inside
from timewalk.data.prepare.videos import Archive, Faults, Source
from timewalk.data.sequences import why
from timewalk.errors import UserError, reason

HOST = "http://images.cocodataset.org"
IMAGES = {"train": 118_287, "test": 5_000}
CLASSES = 80
OFFICIAL = Source(
    "COCO 2017",
    "https://cocodataset.org",
    "train2017, val2017 and annotations/instances_{train,val}2017.json",
    needed=("train2017", "val2017", "annotations"),
    inside=("coco", "COCO"),
    archives=(
        Archive(f"{HOST}/zips/train2017.zip", "train2017"),
        Archive(f"{HOST}/zips/val2017.zip", "val2017"),
        Archive(f"{HOST}/annotations/annotations_trainval2017.zip", "annotations"),
    ),
)
BEYOND = 1.0
"""pixels beyond the image from which a box is counted; the published ones round"""


class Category(NamedTuple):
    """A class as the set has it: its number, with gaps between them, and its name."""

    number: int
    name: str


@dataclass
class Instances:
    """A file of annotations as it was read.

    Attributes:
        place: the file from the root on, for messages.
        folder: where its images are.
        images: rows by number of the image, in the order of the numbers.
        annotations: rows by number of their image.
        categories: in the order of their numbers.
    """

    place: str
    folder: Path
    images: dict[int, dict[str, Any]]
    annotations: dict[int, list[dict[str, Any]]]
    categories: list[Category]


@dataclass
class Tally:
    """What was found: numbers by name, and lines for the digest."""

    counts: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)


def annotations_file(root: Path, split: str) -> Path:
    """Return the file of annotations of a split, `train` or `test`."""
    return root / "annotations" / f"instances_{SPLITS[split]}.json"


def read_instances(name: str, root: Path, split: str, faults: Faults) -> Instances:
    """Read a file of annotations, its rows checked for what they refer to.

    Args:
        name: the set's name in the configuration, for messages.
        root: folder of the layout.
        split: `train` or `test`.
        faults: where faulty rows are noted; they are left out.

    Raises:
        UserError: the file is missing, or no annotations of instances.
    """
    path = annotations_file(root, split)
    content = _read(name, path)
    place = path.relative_to(root).as_posix()
    categories = [Category(row["id"], row["name"]) for row in _rows(content, "categories")]
    numbers = [category.number for category in categories]
    for number, count in Counter(numbers).items():
        if count > 1:
            faults.add(place, f"has the category {number} twice")
    images: dict[int, dict[str, Any]] = {}
    for row in _rows(content, "images"):
        if images.setdefault(row["id"], row) is not row:
            faults.add(place, f"has the image {row['id']} twice")
    found = Instances(place, root / SPLITS[split], dict(sorted(images.items())), {}, categories)
    _add_annotations(found, _rows(content, "annotations"), set(numbers), faults)
    found.categories.sort()
    return found


def _read(name: str, path: Path) -> dict[str, Any]:
    remedy = "restore the published file"
    try:
        content: Any = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"labelled.{name}: {path} is missing; {remedy}.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"labelled.{name}: {path} is not valid JSON ({reason(error)}); {remedy}."
        ) from None
    keys: dict[str, dict[str, type | tuple[type, ...]]] = {
        "images": {"id": int, "file_name": str, "height": int, "width": int},
        "annotations": {"id": int, "image_id": int, "category_id": int, "bbox": list,
                        "area": (int, float), "segmentation": (list, dict)},
        "categories": {"id": int, "name": str},
    }  # fmt: skip
    for key, needed in keys.items():
        rows = content.get(key) if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise UserError(f"labelled.{name}: {path} has no list '{key}'; {remedy}.")
        for number, row in enumerate(rows):
            lacks = [
                word
                for word, kind in needed.items()
                if not (isinstance(row, dict) and isinstance(row.get(word), kind))
            ]
            if lacks:
                raise UserError(
                    f"labelled.{name}: row {number} of '{key}' in {path} has no '{lacks[0]}' "
                    f"of the right kind; {remedy}."
                )
    found: dict[str, Any] = content
    return found


def _rows(content: dict[str, Any], key: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = content[key]
    return rows


def _add_annotations(
    found: Instances, rows: list[dict[str, Any]], known: set[int], faults: Faults
) -> None:
    seen = set[int]()
    for row in rows:
        place = f"annotation {row['id']} of {found.place}"
        if row["id"] in seen:
            faults.add(place, "is there twice")
        seen.add(row["id"])
        if row["image_id"] not in found.images:
            faults.add(place, f"refers to the image {row['image_id']}, which is not listed")
        elif row["category_id"] not in known:
            faults.add(
                place,
                f"has the category {row['category_id']}, which is beyond the list of "
                f"{len(known)} categories",
            )
        else:
            found.annotations.setdefault(row["image_id"], []).append(row)


def add_images(found: Instances, builder: IndexBuilder, *, training: bool, faults: Faults) -> Tally:
    """Check every image and its objects, and add them to an index.

    Args:
        found: what was read.
        builder: where they go; of a training split, images with nothing to train on do not.
        training: whether this is a training split.
        faults: where what is wrong is noted.
    """
    tally = Tally()
    labels = {category.number: label for label, category in enumerate(found.categories)}
    for row, length in _checked_files(found, faults):
        size = (row["height"], row["width"])
        name = f"{found.folder.name}/{row['file_name']}"
        tally.lines.append(f"{name}\t{length}\n")
        rows = found.annotations.get(row["id"], [])
        image = _image(found, row, rows, labels, tally.counts, faults)
        tally.counts["images"] += 1
        tally.counts["without_objects"] += not rows
        tally.counts["images_not_trained_on"] += not image.trainable.any()
        if training and not image.trainable.any():
            continue
        builder.add_image(name, row["id"], size)
        for number, outline in enumerate(image.outlines):
            builder.add_object(
                image.boxes[number],
                int(image.classes[number]),
                bool(image.crowd[number]),
                float(image.areas[number]),
                outline,
            )
    return tally


def _checked_files(found: Instances, faults: Faults) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield every image's row and its file's length in bytes; headers are read many at once."""

    def check(row: dict[str, Any]) -> tuple[int, str | None]:
        path = found.folder / row["file_name"]
        try:
            with Image.open(path) as image:
                if image.size == (row["width"], row["height"]):
                    return path.stat().st_size, None
                stated = f"{row['width']}x{row['height']}"
                return 0, f"is {image.width}x{image.height} pixels, but {stated} in {found.place}"
        except (OSError, SyntaxError, ValueError) as error:
            missing = isinstance(error, FileNotFoundError)
            return 0, "is missing" if missing else f"cannot be read ({why(error)})"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = list(found.images.values())
        for row, (length, fault) in zip(rows, pool.map(check, rows), strict=True):
            if fault is not None:
                faults.add(found.folder / row["file_name"], fault)
            yield row, length


def _image(
    found: Instances,
    row: dict[str, Any],
    annotations: list[dict[str, Any]],
    labels: dict[int, int],
    counts: Counter[str],
    faults: Faults,
) -> ObjectImage:
    size = (row["height"], row["width"])
    places = [f"annotation {item['id']} of {found.place}" for item in annotations]
    boxes = [_box(item, place, faults) for item, place in zip(annotations, places, strict=True)]
    outlines = [
        _outline(item, size, place, counts, faults)
        for item, place in zip(annotations, places, strict=True)
    ]
    image = ObjectImage(
        found.folder / row["file_name"],
        row["id"],
        *size,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array([labels[item["category_id"]] for item in annotations], np.int64),
        np.array([bool(item.get("iscrowd", 0)) for item in annotations], bool),
        np.array([item["area"] for item in annotations], np.float32),
        tuple(outlines),
    )
    _count(image, counts)
    return image


def _box(row: dict[str, Any], place: str, faults: Faults) -> tuple[float, float, float, float]:
    """Return x0, y0, x1, y1."""
    numbers = row["bbox"]
    if len(numbers) != 4 or not all(_finite(number) for number in (*numbers, row["area"])):
        faults.add(place, "has a box or an area that is no finite number")
        return (0.0, 0.0, 0.0, 0.0)
    x, y, width, height = numbers
    return (x, y, x + width, y + height)


def _finite(number: Any) -> bool:
    return isinstance(number, int | float) and math.isfinite(number)


def _outline(
    row: dict[str, Any],
    size: tuple[int, int],
    place: str,
    counts: Counter[str],
    faults: Faults,
) -> Outline:
    shape = row["segmentation"]
    if isinstance(shape, dict):
        return _runs(shape, size, place, faults)
    polygons = []
    for numbers in shape:
        try:
            corners = np.array(numbers, np.float64)
        except (TypeError, ValueError):
            corners = np.full(1, np.nan)
        if corners.ndim != 1 or len(corners) % 2 or not np.isfinite(corners).all():
            faults.add(place, "has a polygon that is no list of finite x and y")
        elif len(corners) < FEWEST_NUMBERS:
            counts["short_polygons"] += 1
        else:
            polygons.append(corners.reshape(-1, 2))
    return Outline(tuple(polygons))


def _runs(shape: dict[str, Any], size: tuple[int, int], place: str, faults: Faults) -> Outline:
    runs = shape.get("counts")
    try:
        lengths = np.array(text_to_runs(runs) if isinstance(runs, str) else runs, np.int64)
    except (TypeError, ValueError, OverflowError):
        lengths = np.full(1, -1)
    if lengths.ndim != 1 or (lengths < 0).any():
        faults.add(place, "has runs that are no lengths")
        return Outline()
    if shape.get("size") != list(size) or lengths.sum() != size[0] * size[1]:
        faults.add(place, f"has runs that do not fill its image of {size[1]}x{size[0]} pixels")
        return Outline()
    return Outline(runs=lengths)


def _count(image: ObjectImage, counts: Counter[str]) -> None:
    high = np.array([image.width, image.height] * 2)
    sides = (image.boxes[:, 2:] - image.boxes[:, :2]).min(axis=1)
    inside = sides_inside(image.boxes, (image.height, image.width))
    over = (image.boxes < -BEYOND) | (image.boxes > high + BEYOND)
    counts["objects"] += len(image.boxes)
    counts["crowd"] += int(image.crowd.sum())
    counts["empty_boxes"] += int((sides <= 0).sum())
    counts["boxes_beyond_image"] += int(over.any(axis=1).sum())
    counts["boxes_too_small"] += int(((inside < SMALLEST_SIDE) & (sides > 0)).sum())
    counts["without_outline"] += sum(not outline.known for outline in image.outlines)
