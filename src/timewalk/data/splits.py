"""A set of videos cut into two parts by a seed, for sets whose published split has no masks.

The names are sorted, brought into a seeded order, and the first `share` of them are `train`, as
TimeT has it for YouTube-VOS. Training and evaluation use this one function: the same names give the
same parts, which are disjoint and together everything.
"""

import hashlib
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from timewalk.config import Split
from timewalk.errors import UserError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
"""of frames: a folder with such a file is a video of training"""


def part_of(names: Iterable[str], split: Split, key: str) -> list[str]:
    """Return the names of one part, sorted.

    Args:
        names: of all videos, in any order.
        split: share, seed and part.
        key: the configuration's key of the split, for messages.

    Raises:
        UserError: so few names that a part is empty.
    """
    ordered = sorted(names)
    # A share such as 0.29 of 100 is a little less than 29.
    count = math.floor(split.share * len(ordered) + 1e-9)
    if not 0 < count < len(ordered):
        raise UserError(
            f"{key}: {split.share:g} of {len(ordered)} videos leaves one of the parts empty; "
            "change 'share', or leave the key out."
        )
    # The legacy generator: its numbers are the same in every version of NumPy.
    order = np.random.RandomState(split.seed).permutation(len(ordered))
    chosen = order[:count] if split.part == "train" else order[count:]
    return [ordered[place] for place in sorted(chosen.tolist())]


def record(names: Iterable[str], split: Split) -> dict[str, Any]:
    """Return what a manifest says of a split: two of the same `names_sha256` and other keys, but
    for the part, share no video."""
    ordered = sorted(names)
    digest = hashlib.sha256("".join(f"{name}\n" for name in ordered).encode()).hexdigest()
    return {**split.model_dump(mode="json"), "names": len(ordered), "names_sha256": digest}
