"""Labelled videos as the prepare stage indexed them: frames, masks and joints by path.

``manifest.json`` (kind `labelled_videos`) is small; ``sequences.jsonl`` beside it has one sequence
a line, its paths relative to the set's root. Nothing is decoded until it is asked for, and nothing
is ever written into the set.
"""

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from timewalk.artefacts import read_manifest, sha256_file
from timewalk.errors import UserError, nearest, reason

KIND = "labelled_videos"
LIST = "sequences.jsonl"
VOID = 255
"""pixel value of what is not scored, in sets of ids"""
JOINTS = 15


@dataclass(frozen=True)
class Sequence:
    """One video.

    Attributes:
        name: as in the published list.
        frames: image files in order.
        masks: as many as frames; None where a frame has no annotation. Of sets that have a file
            for each object, those of the first object.
        size: (height, width) of the frames and masks in pixels.
        joints: JHMDB's file of joint positions.
        layers: masks of the further objects, each as many as frames, of sets that have a file for
            each object.
        categories: name of each object's category by its id, of sets that have categories.
        above: share of white above which a gray mask is foreground.
        white_is_background: whether white means background.
    """

    name: str
    frames: tuple[Path, ...]
    masks: tuple[Path | None, ...]
    size: tuple[int, int]
    joints: Path | None = None
    layers: tuple[tuple[Path | None, ...], ...] = ()
    categories: Mapping[int, str] = field(default_factory=dict)
    above: float = 0.0
    white_is_background: bool = False

    def foreground(self, index: int) -> np.ndarray | None:
        """Return what any object covers in a frame, bool (H, W); None without annotation.

        Raises:
            UserError: a mask cannot be read or has another size.
        """
        paths = [masks[index] for masks in (self.masks, *self.layers)]
        found = [self._foreground(path) for path in paths if path is not None]
        return np.logical_or.reduce(found) if found else None

    def _foreground(self, path: Path) -> np.ndarray:
        # Gray of a palette image would be its colours' brightness; what counts is the id.
        image = _open(path, self.size)
        gray = np.asarray(image if image.mode in ("P", "L") else image.convert("L"))
        inside = gray / 255 > self.above
        return inside & (gray < 0.99 * 255) if self.white_is_background else inside


def listed_sequences(manifest: Path, kind: str) -> tuple[dict[str, Any], list[str]]:
    """Return the manifest of a set of sequences, and the lines of the list beside it.

    Raises:
        UserError: no manifest of that kind, or a list that is not the manifest's.
    """
    about = read_manifest(manifest, kind)
    listed = manifest.parent / LIST
    if not listed.is_file() or sha256_file(listed) != about["source"]["list_sha256"]:
        raise UserError(
            f"{listed} is missing or not the one of {manifest}; run the prepare stage again."
        )
    # No other break than "\n": a name may hold U+2028.
    return about, listed.read_text(encoding="utf-8").removesuffix("\n").split("\n")


class LabelledVideos:
    """The sequences of a prepared set, in the order of its list.

    Attributes:
        name: the set's name in the configuration.
        kind: its layout, such as `davis2017`.
        subset: which part of the set; empty where it has only one.
        root: folder of the published layout.
        sequences: all sequences.
        about: the manifest.
    """

    def __init__(self, manifest: Path) -> None:
        """Open a set.

        Raises:
            UserError: no manifest of labelled videos, or a list that is not the manifest's.
        """
        self.about, rows = listed_sequences(manifest, KIND)
        self.name, self.kind = str(self.about["name"]), str(self.about["layout"])
        self.subset = str(self.about["subset"])
        self.root = manifest.parent / self.about["source"]["root"]
        self.sequences = tuple(_from_row(json.loads(row), self.root) for row in rows)
        self._by_name = {sequence.name: sequence for sequence in self.sequences}

    def __len__(self) -> int:
        return len(self.sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self.sequences)

    def __getitem__(self, name: str) -> Sequence:
        if name not in self._by_name:
            raise UserError(f"{self.name} has no sequence '{name}'{nearest(name, self._by_name)}")
        return self._by_name[name]


ID_MODES = frozenset({"P", "L", "1"})
NO_IDS = "holds colours (mode {}), not ids: save it as a palette or gray PNG"


def read_ids(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Return the ids of a palette or gray image, uint8 (H, W).

    Args:
        path: the mask.
        size: (height, width) that it must have.

    Raises:
        UserError: unreadable, of colours instead of ids, or of another size.
    """
    image = _open(path, size)
    if image.mode not in ID_MODES:
        raise UserError(f"{path} {NO_IDS.format(image.mode)}.")
    return np.array(image, dtype=np.uint8)


def read_frame(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Return a frame, uint8 RGB (H, W, 3); errors as of :func:`read_ids`."""
    image = _open(path, size)
    if image.mode.startswith("I;16"):
        # Pillow's own conversion cuts 16 bits off at 255.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return np.array(image.convert("RGB"))


def read_mat(path: Path, fields: tuple[str, ...]) -> dict[str, Any]:
    """Return some variables of a MATLAB file; those that it lacks are left out.

    Raises:
        UserError: unreadable.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        found: dict[str, Any] = loadmat(path, variable_names=fields)
    except (OSError, ValueError, TypeError, MatReadError, zlib.error, NotImplementedError) as error:
        raise UserError(f"{path} cannot be read as a .mat file ({reason(error)}).") from None
    return found


def read_joints(path: Path) -> np.ndarray:
    """Return JHMDB's joint positions, float64 (2, 15, n): x and y in pixels from 0.

    Raises:
        UserError: unreadable, or not (2, 15, n) numbers under the name `pos_img`.
    """
    content = read_mat(path, ("pos_img",))
    found = np.asarray(content.get("pos_img", ()), dtype=np.float64)
    if found.ndim != 3 or found.shape[:2] != (2, JOINTS) or not np.isfinite(found).all():
        raise UserError(
            f"{path} has no finite `pos_img` of shape (2, {JOINTS}, n), but {found.shape}; "
            "restore the published file."
        )
    return found - 1


def _open(path: Path, size: tuple[int, int] | None) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({why(error)}); restore the published file."
        ) from None
    if size is not None and (image.height, image.width) != size:
        raise UserError(
            f"{path} is {image.width}x{image.height} pixels, not {size[1]}x{size[0]} as its "
            "sequence; restore the published file."
        )
    return image


def why(error: BaseException) -> str:
    """Return what is wrong with an image, without the address of a buffer or its path."""
    if isinstance(error, FileNotFoundError):
        return "it is missing"
    return "no image" if isinstance(error, UnidentifiedImageError) else reason(error)


def to_row(sequence: Sequence, root: Path) -> dict[str, Any]:
    """Return a sequence as a line of the list; what is empty or default is left out."""

    def names(paths: tuple[Path | None, ...]) -> list[str | None]:
        return [None if path is None else path.relative_to(root).as_posix() for path in paths]

    row: dict[str, Any] = {
        "name": sequence.name,
        "size": list(sequence.size),
        "frames": names(sequence.frames),
    }
    if any(sequence.masks):
        row["masks"] = names(sequence.masks)
    if sequence.joints is not None:
        row["joints"] = sequence.joints.relative_to(root).as_posix()
    if sequence.layers:
        row["layers"] = [names(layer) for layer in sequence.layers]
    if sequence.categories:
        row["categories"] = {str(key): name for key, name in sequence.categories.items()}
    if sequence.above:
        row["above"] = sequence.above
    if sequence.white_is_background:
        row["white_is_background"] = True
    return row


def _from_row(row: dict[str, Any], root: Path) -> Sequence:
    def paths(names: list[str | None]) -> tuple[Path | None, ...]:
        return tuple(None if name is None else root / name for name in names)

    frames = tuple(root / name for name in row["frames"])
    return Sequence(
        name=row["name"],
        frames=frames,
        masks=paths(row.get("masks", [None] * len(frames))),
        size=(row["size"][0], row["size"][1]),
        joints=root / row["joints"] if "joints" in row else None,
        layers=tuple(paths(layer) for layer in row.get("layers", [])),
        categories={int(key): name for key, name in row.get("categories", {}).items()},
        above=row.get("above", 0.0),
        white_is_background=row.get("white_is_background", False),
    )
