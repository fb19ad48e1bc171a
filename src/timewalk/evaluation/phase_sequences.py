"""Files of per-frame embeddings of videos: ours, and those of TCC's released code.

Ours is one safetensors file a split: `embeddings` float32 (F, D), not normalised, the frames of all
videos one after the other; `lengths` int64 (V,); `labels` int64 (F,), -1 in videos without labels;
`steps` int64 (F,), each frame's number in its video; `actions` int64 (V,); and under `about` in its
metadata, as JSON, names, classes, and which encoder and which set they come from.

The TCC tools' is a NumPy file that holds a pickled dictionary. A pickle may run any code when it is
read: here only arrays, numbers, text and plain containers are let through.
"""

import codecs
import json
import logging
import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from timewalk.artefacts import atomic_path
from timewalk.errors import UserError

log = logging.getLogger(__name__)

UNLABELLED = -1
NPY = ".npy"

_NUMPY = {
    (f"numpy.{core}.{module}", name)
    for core in ("core", "_core")
    for module, name in (
        ("multiarray", "_reconstruct"),
        ("multiarray", "scalar"),
        ("numeric", "_frombuffer"),
    )
} | {("numpy", "ndarray"), ("numpy", "dtype")}
_BUILTINS = {"bytes", "bytearray", "complex", "dict", "frozenset", "list", "set", "str", "tuple"}
_DAMAGES = (
    pickle.UnpicklingError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    TypeError,
    ValueError,
)
"""what unpickling or reading the header of a file of another kind may raise"""


@dataclass(frozen=True)
class PhaseSequence:
    """One video.

    Attributes:
        name: as in the set.
        embeddings: float32 (L, D).
        labels: int64 (L,), phase of each frame; None where there are none.
        steps: int64 (L,), the frames' numbers in the video.
        action: number of its action; -1: none is given.
        frames: float32 (L, H, W, 3), -1 to 1, where the TCC tools' file holds them.
    """

    name: str
    embeddings: np.ndarray
    labels: np.ndarray | None
    steps: np.ndarray
    action: int = -1
    frames: np.ndarray | None = None


@dataclass(frozen=True)
class PhaseEmbeddings:
    """One split of a set.

    Attributes:
        videos: in the set's order.
        classes: names of the phases; none where the set gives no names.
        about: digests of encoder and set, split, what was read; empty from the TCC tools' file.
    """

    videos: list[PhaseSequence]
    classes: list[str] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)


def save_phase_embeddings(path: Path, found: PhaseEmbeddings) -> None:
    """Write our file."""
    videos = found.videos
    labels = [np.full(len(x.steps), UNLABELLED) if x.labels is None else x.labels for x in videos]
    tensors: dict[str, np.ndarray] = {
        "embeddings": np.concatenate([x.embeddings for x in videos]).astype(np.float32),
        "lengths": np.array([len(x.steps) for x in videos], np.int64),
        "labels": np.concatenate(labels).astype(np.int64),
        "steps": np.concatenate([x.steps for x in videos]).astype(np.int64),
        "actions": np.array([x.action for x in videos], np.int64),
    }
    about = {**found.about, "classes": found.classes, "names": [x.name for x in videos]}
    # One key: safetensors writes several in an order that changes from process to process.
    metadata = {"about": json.dumps(about, ensure_ascii=False, sort_keys=True)}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def load_phase_embeddings(path: Path) -> PhaseEmbeddings:
    """Read our file, or the TCC tools' if it ends in `.npy`; frames that are not finite left out.

    Raises:
        UserError: the file is missing, damaged or of another kind, a video has no finite embedding,
            or two have embeddings of different widths.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: run the embed stage.")
    found = load_published(path) if path.suffix == NPY else _load_ours(path)
    videos = [_finite(path, video) for video in found.videos]
    check_widths((path, video) for video in videos)
    return replace(found, videos=videos)


def _finite(path: Path, video: PhaseSequence) -> PhaseSequence:
    """Return a video without the frames whose embedding is not finite."""
    good = np.isfinite(video.embeddings).all(1)
    if not good.any():
        raise UserError(
            f"{path} holds no finite embedding of video '{video.name}': train the run again, or "
            "remove the video."
        )
    if good.all():
        return video
    log.warning(
        "%s: video %s: %d frames without finite embedding left out",
        path,
        video.name,
        (~good).sum(),
    )
    return replace(
        video,
        embeddings=video.embeddings[good],
        labels=None if video.labels is None else video.labels[good],
        steps=video.steps[good],
        frames=None if video.frames is None else video.frames[good],
    )


def check_widths(videos: Iterable[tuple[Path, PhaseSequence]]) -> None:
    """Refuse videos, each with its file, whose embeddings differ in width from the first's.

    Raises:
        UserError: names both files and both videos.
    """
    first: tuple[Path, PhaseSequence] | None = None
    for path, video in videos:
        first = first or (path, video)
        width, expected = video.embeddings.shape[1], first[1].embeddings.shape[1]
        if width != expected:
            raise UserError(
                f"{path} holds embeddings of {width} numbers for video '{video.name}' but "
                f"{first[0]} of {expected} for video '{first[1].name}': embed both by one run."
            )


def _load_ours(path: Path) -> PhaseEmbeddings:
    try:
        with safe_open(path, "np") as file:
            about = json.loads((file.metadata() or {})["about"])
            arrays = {
                key: file.get_tensor(key)
                for key in ("embeddings", "lengths", "labels", "steps", "actions")
            }
        names, classes = list(about.pop("names")), list(about.pop("classes"))
        videos = _split(names, **arrays)
    except (SafetensorError, KeyError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} holds no embeddings of videos with phases ({error}); delete it and run the "
            "embed stage again."
        ) from None
    return PhaseEmbeddings(videos, classes, about)


def _split(
    names: Sequence[str],
    embeddings: np.ndarray,
    lengths: np.ndarray,
    labels: np.ndarray,
    steps: np.ndarray,
    actions: np.ndarray,
) -> list[PhaseSequence]:
    stops = lengths.cumsum()
    videos = []
    rows = zip(names, actions.tolist(), stops - lengths, stops, strict=True)
    for name, action, start, stop in rows:
        own = labels[start:stop]
        unlabelled = bool((own == UNLABELLED).all())
        videos.append(
            PhaseSequence(
                name,
                embeddings[start:stop],
                None if unlabelled else own,
                steps[start:stop],
                action,
            )
        )
    return videos


def save_published(path: Path, found: PhaseEmbeddings) -> None:
    """Write the TCC tools' file: ``np.load(path, allow_pickle=True).item()`` reads it."""
    videos = found.videos
    lengths = [len(x.steps) for x in videos]
    content: dict[str, list[np.ndarray]] = {
        "embs": [x.embeddings.astype(np.float32) for x in videos],
        "seq_lens": [np.full(n, n, np.int64) for n in lengths],
        "steps": [x.steps.astype(np.int64) for x in videos],
        "names": [
            np.full(n, x.name.encode(), object) for n, x in zip(lengths, videos, strict=True)
        ],
        "seq_labels": [
            np.full(n, x.action, np.int64) for n, x in zip(lengths, videos, strict=True)
        ],
    }
    labels = [x.labels for x in videos if x.labels is not None]
    if len(labels) == len(videos):
        content["labels"] = [y.astype(np.int64) for y in labels]
    frames = [x.frames for x in videos if x.frames is not None]
    if len(frames) == len(videos):
        content["frames"] = frames
    box = np.empty((), object)
    box[()] = content
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        # To a file: to a path, NumPy would add its own suffix.
        np.save(file, box, allow_pickle=True)


def load_published(path: Path) -> PhaseEmbeddings:
    """Read the TCC tools' file without ever running code that it may hold.

    Raises:
        UserError: it holds something else than their dictionary of lists of arrays.
    """
    try:
        with open(path, "rb") as file:
            content = _unpickled(file)
        videos = _published_videos(content)
    except _DAMAGES as error:
        raise UserError(
            f"{path} holds no embeddings of the TCC tools ({error or type(error).__name__}); name "
            "a file of arrays that their extraction or `timewalk embed` wrote."
        ) from None
    return PhaseEmbeddings(videos)


def _unpickled(file: BinaryIO) -> Any:
    version = npy.read_magic(file)
    read: Callable[..., Any] = (
        npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    )
    shape, _, dtype = read(file)
    if shape != () or not dtype.hasobject:
        raise ValueError("it is an array, not a dictionary")
    return _Restricted(file, encoding="latin1").load().item()


class _Restricted(pickle.Unpickler):
    """Lets arrays, their types, numbers, text and plain containers through, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickle names."""
        if (module, name) in _NUMPY or (module == "builtins" and name in _BUILTINS):
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """Bytes as old pickles of Python 3 spell them."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding}")
    return codecs.encode(text, "latin1")


def _published_videos(content: Any) -> list[PhaseSequence]:
    if not isinstance(content, dict):
        raise ValueError("it holds no dictionary")
    videos = []
    for i, rows in enumerate(content["embs"]):
        embeddings = np.asarray(rows, np.float32)
        count = len(embeddings)
        if embeddings.ndim != 2 or count == 0:
            raise ValueError(f"video {i} has embeddings of shape {embeddings.shape}")
        labels, frames = content.get("labels"), content.get("frames")
        steps = content["steps"][i] if "steps" in content else np.arange(count)
        action = int(content["seq_labels"][i][0]) if "seq_labels" in content else -1
        video = PhaseSequence(
            _text(content["names"][i][0]) if "names" in content else f"video{i}",
            embeddings,
            None if labels is None else np.asarray(labels[i], np.int64),
            np.asarray(steps, np.int64),
            action,
            None if frames is None else np.asarray(frames[i], np.float32),
        )
        for part in (video.labels, video.frames, video.steps):
            if part is not None and len(part) != count:
                raise ValueError(f"video {i} has {count} embeddings but {len(part)} of another key")
        videos.append(video)
    if not videos:
        raise ValueError("it holds no video")
    return videos


def _text(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
