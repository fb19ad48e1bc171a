"""Embedded videos with their frames: from our files and a labelled set, or from the original's.

The original's file holds its frames itself, if it was made with them (`keep_data` of TCC's released
code); ours names frames of the labelled set.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from timewalk.artefacts import sha256_file
from timewalk.data.phases import PhaseVideo, PhaseVideos
from timewalk.errors import UserError
from timewalk.evaluation.alignment import Video
from timewalk.evaluation.phase_sequences import (
    NPY,
    PhaseEmbeddings,
    PhaseSequence,
    check_widths,
    load_phase_embeddings,
)

Split = Literal["train", "test"]
OURS = ".safetensors"


def read_videos(
    sources: Sequence[Path], manifest: Path | None = None, split: Split | None = None
) -> list[Video]:
    """Read the videos of files of embeddings, in the files' order.

    Args:
        sources: files of one run, ours or the original's.
        manifest: of the labelled set that our files' frames are read from.
        split: of that set; None: the one that a file says it is of.

    Raises:
        UserError: a file that cannot be read, is of an unknown kind, holds no frames or is of
            another set, a video without embeddings, or embeddings of different widths.
    """
    for source in sources:
        if source.suffix not in (OURS, NPY):
            raise UserError(
                f"{source} is no file of embeddings by its name: those end in {OURS}, the "
                f"original's in {NPY}."
            )
        if source.suffix == OURS and manifest is None:
            raise UserError(f"{source} holds no frames: name its labelled set with --dataset.")
    files = [(source, load_phase_embeddings(source)) for source in sources]
    check_widths((source, found.videos[0]) for source, found in files)
    return [x for source, found in files for x in videos_of(source, found, manifest, split)]


def videos_of(
    source: Path, found: PhaseEmbeddings, manifest: Path | None, split: Split | None = None
) -> list[Video]:
    """Return the videos of one file; see :func:`read_videos`."""
    if source.suffix == NPY:
        return _original(source, found)
    assert manifest is not None
    return _ours(source, found, manifest, split)


def _ours(source: Path, found: PhaseEmbeddings, manifest: Path, split: Split | None) -> list[Video]:
    used: Split = split or ("train" if found.about.get("split") == "train" else "test")
    of_set = PhaseVideos(manifest, used)
    digest = sha256_file(manifest)
    if found.about.get("dataset_sha256", digest) != digest or len(found.videos) > len(of_set):
        raise _another(source, manifest, used)
    videos = []
    for sequence, video in zip(found.videos, of_set, strict=False):
        if sequence.name != video.name or sequence.steps.max(initial=0) >= len(video):
            raise _another(source, manifest, used)
        videos.append(_video(sequence, partial(_frame, video, sequence.steps)))
    return videos


def _another(source: Path, manifest: Path, split: str) -> UserError:
    return UserError(
        f"{source} was not made of the split '{split}' of {manifest}: embed that split again, or "
        "name the set that it was made of."
    )


def _video(sequence: PhaseSequence, frame: Callable[[int], np.ndarray]) -> Video:
    return Video(sequence.name, sequence.embeddings, sequence.labels, sequence.action, frame)


def _frame(video: PhaseVideo, steps: np.ndarray, number: int) -> np.ndarray:
    pixels: np.ndarray = video.frames([int(steps[number])])[0].permute(1, 2, 0).numpy()
    return pixels


def _original(source: Path, found: PhaseEmbeddings) -> list[Video]:
    videos = []
    for sequence in found.videos:
        if sequence.frames is None:
            raise UserError(
                f"{source} holds no frames: extract its embeddings again with keep_data on."
            )
        videos.append(_video(sequence, partial(_own_frame, sequence.frames)))
    return videos


def _own_frame(frames: np.ndarray, number: int) -> np.ndarray:
    """Return a frame of floats from -1 to 1 as uint8."""
    return np.round((frames[number].clip(-1, 1) + 1) * 127.5).astype(np.uint8)
