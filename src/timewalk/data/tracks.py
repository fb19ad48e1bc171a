"""Videos of one object with a box a frame, as the prepare stage indexed them.

``manifest.json`` (kind `labelled_tracks`) is small; ``sequences.jsonl`` beside it has one sequence
a line: its folder, number of frames, boxes and labels. Source: GOT-10k. Boxes are (x, y, w, h) in
pixels, x and y of the upper left corner; T frames.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from timewalk.data.sequences import listed_sequences
from timewalk.errors import UserError, nearest

KIND = "labelled_tracks"
FIRST = 1
"""number of a sequence's first frame"""


def frame_name(number: int) -> str:
    """Return the name of a frame's file, numbered from 1."""
    return f"{number:08d}.jpg"


@dataclass(frozen=True)
class Track:
    """One video.

    Attributes:
        name: as in the published list.
        frames: image files in order.
        size: (height, width) of the frames in pixels.
        boxes: float64 (T, 4); where the others are withheld, (1, 4): that of the first frame. NaN
            where a box that is not seen was given none.
        bound: (height, width) that the set says the frames have: boxes are cut by it in scoring.
        cover: int64 (T,), how much of the object is seen, from 0 (nothing) to 8 (all); None where
            it is withheld.
        object_class: what the object is; None where that is withheld.
    """

    name: str
    frames: tuple[Path, ...]
    size: tuple[int, int]
    boxes: np.ndarray
    bound: tuple[int, int]
    cover: np.ndarray | None = None
    object_class: str | None = None

    @property
    def scored(self) -> bool:
        """Whether there is a box for every frame."""
        return len(self.boxes) == len(self.frames)


class LabelledTracks:
    """The sequences of a prepared set, in the order of its list.

    Attributes:
        name: the set's name in the configuration.
        kind: its layout: `got10k`.
        subset: which part of the set.
        root: folder of the published layout.
        sequences: all sequences.
        about: the manifest.
    """

    def __init__(self, manifest: Path) -> None:
        """Open a set.

        Raises:
            UserError: no manifest of labelled tracks, or a list that is not the manifest's.
        """
        self.about, rows = listed_sequences(manifest, KIND)
        self.name, self.kind = str(self.about["name"]), str(self.about["layout"])
        self.subset = str(self.about["subset"])
        self.root = manifest.parent / self.about["source"]["root"]
        folder = self.root / self.subset
        self.sequences = tuple(_from_line(row, folder) for row in rows)
        self._by_name = {track.name: track for track in self.sequences}

    @property
    def title(self) -> str:
        """Layout and part, such as `got10k-val`; generated videos are another set."""
        return f"{self.about['parameters']['kind']}-{self.subset}"

    @property
    def scored(self) -> bool:
        """Whether the boxes of every sequence are known."""
        return all(track.scored for track in self.sequences)

    def __len__(self) -> int:
        return len(self.sequences)

    def __iter__(self) -> Iterator[Track]:
        return iter(self.sequences)

    def __getitem__(self, name: str) -> Track:
        if name not in self._by_name:
            raise UserError(f"{self.name} has no sequence '{name}'{nearest(name, self._by_name)}")
        return self._by_name[name]


def to_line(track: Track) -> str:
    """Return a sequence as a line of the list; a box with NaN is null."""
    row: dict[str, Any] = {
        "name": track.name,
        "frames": len(track.frames),
        "size": list(track.size),
        "bound": list(track.bound),
        "boxes": [box.tolist() if np.isfinite(box).all() else None for box in track.boxes],
    }
    if track.cover is not None:
        row["cover"] = track.cover.tolist()
    if track.object_class is not None:
        row["object_class"] = track.object_class
    return json.dumps(row, ensure_ascii=False) + "\n"


def _from_line(line: str, folder: Path) -> Track:
    """Return the sequence of a line, its frames below the subset's ``folder``."""
    row = json.loads(line)
    place = folder / row["name"]
    boxes = [[np.nan] * 4 if box is None else box for box in row["boxes"]]
    return Track(
        name=row["name"],
        frames=tuple(place / frame_name(FIRST + index) for index in range(row["frames"])),
        size=(row["size"][0], row["size"][1]),
        boxes=np.array(boxes, np.float64),
        bound=(row["bound"][0], row["bound"][1]),
        cover=np.array(row["cover"]) if "cover" in row else None,
        object_class=row.get("object_class"),
    )
