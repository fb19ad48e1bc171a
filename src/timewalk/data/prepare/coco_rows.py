"""The rows of a file of COCO's annotations: whether each value is what it has to be.

What a row lacks, and names that lead out of the folder of images, stop the reading at once; numbers
that cannot be meant are for the caller to note.
"""

import json
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any

from timewalk.errors import UserError, reason

REACH = 10
"""longer sides of an image by which a coordinate may be away from its corner"""
LARGEST = 2**31 - 1
"""of an image's sides in pixels"""
LARGEST_ID = 2**63 - 1
REMEDY = "restore the published file"
NUMBER = (int, float)
# `bool` is an `int` to isinstance, so kinds are compared.
NEEDED: dict[str, dict[str, tuple[type, ...]]] = {
    "images": {"id": (int,), "file_name": (str,), "height": (int,), "width": (int,)},
    "annotations": {"id": (int,), "image_id": (int,), "category_id": (int,), "bbox": (list,),
                    "area": NUMBER, "segmentation": (list, dict)},
    "categories": {"id": (int,), "name": (str,)},
}  # fmt: skip


def read_rows(name: str, path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the lists `images`, `annotations` and `categories` of a file.

    Args:
        name: the set's name in the configuration, for messages.
        path: the file.

    Raises:
        UserError: it is missing, no JSON, or a row lacks a value of the right kind.
    """
    place = f"labelled.{name}: {path}"
    try:
        content: Any = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{place} is missing; {REMEDY}.") from None
    except RecursionError:
        raise UserError(f"{place} is nested too deep for annotations; {REMEDY}.") from None
    except ValueError as error:
        raise UserError(f"{place} is not valid JSON ({reason(error)}); {REMEDY}.") from None
    for key in NEEDED:
        rows = content.get(key) if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise UserError(f"{place} has no list '{key}'; {REMEDY}.")
        for number, row in enumerate(rows):
            if fault := _fault(key, row):
                raise UserError(
                    f"labelled.{name}: row {number} of '{key}' in {path} {fault}; {REMEDY}."
                )
    return {key: content[key] for key in NEEDED}


def _fault(key: str, row: Any) -> str | None:
    """Return what is wrong with a row, however its values fit those of others."""
    for word, kinds in NEEDED[key].items():
        if not isinstance(row, dict) or type(row.get(word)) not in kinds:
            return f"has no '{word}' of the right kind"
    if not -LARGEST_ID <= row["id"] <= LARGEST_ID:
        return "has an 'id' of more than 64 bits"
    if key != "images":
        return None
    if not all(1 <= row[side] <= LARGEST for side in ("height", "width")):
        return f"has a height or width that is not from 1 to {LARGEST}"
    if not is_inside(row["file_name"]):
        return f"has the file name {row['file_name'][:60]!r}, which is no path below its folder"
    return None


def is_inside(name: str) -> bool:
    """Return whether a file's name is a relative path that does not leave its folder."""
    path = PurePosixPath(name)
    clean = name.isprintable() and "\\" not in name
    return clean and bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def are_numbers(values: Any, low: float, high: float, kinds: Collection[type] = NUMBER) -> bool:
    """Return whether a value is a list of numbers of these kinds, within both limits.

    A number of hundreds of digits, which no array holds, and NaN are within none.
    """
    return (
        isinstance(values, list)
        and set(map(type, values)) <= set(kinds)
        and all(low <= value <= high for value in values)
    )


def is_crowd_mark(value: Any) -> bool:
    """Return whether a value of `iscrowd` is 0 or 1, or false or true."""
    return isinstance(value, int) and value in (0, 1)
