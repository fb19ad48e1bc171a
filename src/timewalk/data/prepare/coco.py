"""COCO 2017's instances: a folder of images and a file of annotations for each split.

Reads a file of annotations once, checks every row and every image's header, and gives the compact
index of :mod:`timewalk.data.object_index`. What cannot be meant (an unknown image or category, a
box or corner far from its image, runs of another size) is a fault; what real annotations have
(empty boxes, boxes beyond the image, polygons of fewer than three corners) is counted.
"""

import math
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from timewalk.data.object_index import IndexBuilder
from timewalk.data.object_masks import FEWEST_NUMBERS, Outline, text_to_runs
from timewalk.data.objects import SMALLEST_SIDE, SPLITS, ObjectImage, sides_inside
from timewalk.data.prepare.coco_rows import REACH, are_numbers, is_crowd_mark, read_rows
from timewalk.data.prepare.headers import whole_size
from timewalk.data.prepare.videos import Archive, Faults, Source
from timewalk.data.sequences import why

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
Size = tuple[int, int]
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
    content = read_rows(name, path)
    place = path.relative_to(root).as_posix()
    categories = [Category(row["id"], row["name"]) for row in content["categories"]]
    numbers = [category.number for category in categories]
    for number, count in Counter(numbers).items():
        if count > 1:
            faults.add(place, f"has the category {number} twice")
    images: dict[int, dict[str, Any]] = {}
    for row in content["images"]:
        if images.setdefault(row["id"], row) is not row:
            faults.add(place, f"has the image {row['id']} twice")
    files = Counter(PurePosixPath(row["file_name"]).as_posix() for row in images.values())
    for file, count in files.items():
        if count > 1:
            faults.add(place, f"names the file '{file}' for {count} images")
    found = Instances(place, root / SPLITS[split], dict(sorted(images.items())), {}, categories)
    _add_annotations(found, content["annotations"], set(numbers), faults)
    found.categories.sort()
    return found


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
                f"has the category {row['category_id']}, which is not in the list of {len(known)}",
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
            height, width = whole_size(path)
        except (OSError, SyntaxError, ValueError) as error:
            missing = isinstance(error, FileNotFoundError)
            return 0, "is missing" if missing else f"cannot be read ({why(error)})"
        if (height, width) == (row["height"], row["width"]):
            return path.stat().st_size, None
        stated = f"{row['width']}x{row['height']}"
        return 0, f"is {width}x{height} pixels, but {stated} in {found.place}"

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
    named = list(zip(annotations, places, strict=True))
    image = ObjectImage(
        found.folder / row["file_name"],
        row["id"],
        *size,
        np.array([_box(item, size, place, faults) for item, place in named], np.float32).reshape(
            -1, 4
        ),
        np.array([labels[item["category_id"]] for item in annotations], np.int64),
        np.array([_crowd(item, place, faults) for item, place in named], bool),
        np.array([_area(item, size, place, faults) for item, place in named], np.float32),
        tuple(_outline(item, size, place, counts, faults) for item, place in named),
    )
    _count(image, counts)
    return image


def _box(
    row: dict[str, Any], size: Size, place: str, faults: Faults
) -> tuple[float, float, float, float]:
    """Return x0, y0, x1, y1."""
    most = REACH * max(size)
    if len(row["bbox"]) != 4 or not are_numbers(row["bbox"], -most, most):
        faults.add(place, f"has a box that is not four numbers from -{most} to {most}")
        return (0.0, 0.0, 0.0, 0.0)
    x, y, width, height = row["bbox"]
    return (x, y, x + width, y + height)


def _area(row: dict[str, Any], size: Size, place: str, faults: Faults) -> float:
    most = (REACH * max(size)) ** 2
    if not are_numbers([row["area"]], 0, most):
        faults.add(place, f"has an area that is no number from 0 to {most}")
        return 0.0
    return float(row["area"])


def _crowd(row: dict[str, Any], place: str, faults: Faults) -> bool:
    mark = row.get("iscrowd", 0)
    if not is_crowd_mark(mark):
        faults.add(place, f"has {mark!r:.60} for 'iscrowd', which is 0 or 1")
        return False
    return bool(mark)


def _outline(
    row: dict[str, Any], size: Size, place: str, counts: Counter[str], faults: Faults
) -> Outline:
    shape, most = row["segmentation"], REACH * max(size)
    if isinstance(shape, dict):
        return _runs(shape, size, place, faults)
    polygons = []
    for numbers in shape:
        if not are_numbers(numbers, -most, most) or len(numbers) % 2:
            faults.add(place, f"has a polygon that is no list of x and y from -{most} to {most}")
            return Outline()
        if len(numbers) < FEWEST_NUMBERS:
            counts["short_polygons"] += 1
        else:
            polygons.append(np.array(numbers, np.float64).reshape(-1, 2))
    return Outline(tuple(polygons))


def _runs(shape: dict[str, Any], size: Size, place: str, faults: Faults) -> Outline:
    runs, pixels = shape.get("counts"), size[0] * size[1]
    try:
        lengths = text_to_runs(runs) if isinstance(runs, str) else runs
    except ValueError:
        lengths = None
    if not are_numbers(lengths, 0, math.inf, kinds=(int,)):
        faults.add(place, "has runs that are no lengths")
        return Outline()
    assert lengths is not None
    if shape.get("size") != list(size) or sum(lengths) != pixels:
        faults.add(place, f"has runs that do not fill its image of {size[1]}x{size[0]} pixels")
        return Outline()
    return Outline(runs=np.array(lengths, np.int64))


def _count(image: ObjectImage, counts: Counter[str]) -> None:
    high = np.array([image.width, image.height] * 2)
    sides = (image.boxes[:, 2:] - image.boxes[:, :2]).min(axis=1)
    inside = sides_inside(image.boxes, (image.height, image.width))
    over = (image.boxes < -BEYOND) | (image.boxes > high + BEYOND)
    counts["objects"] += len(image.boxes)
    counts["crowd"] += int(image.crowd.sum())
    counts["empty_boxes"] += int((sides <= 0).sum())
    # Not those of which nothing is left to be cut to the image.
    counts["boxes_beyond_image"] += int((over.any(axis=1) & (inside >= SMALLEST_SIDE)).sum())
    counts["boxes_too_small"] += int(((inside < SMALLEST_SIDE) & (sides > 0)).sum())
    counts["without_outline"] += sum(not outline.known for outline in image.outlines)
