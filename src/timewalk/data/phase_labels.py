"""Phases of frames from annotators' segments, as the TCC tools compute them (CVPR 2019).

A label file is JSON: {video: {annotator: {"0": [start, end], "1": [start, end], ...}}}, times in
microseconds, phases "0" to "E-1" (sheet on TFRecords, section 5).
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from timewalk.artefacts import read_json
from timewalk.errors import UserError, nearest

Segments = list[tuple[float, float]]
Annotations = Mapping[str, Mapping[str, Sequence[float]]]


def read_label_file(path: Path) -> dict[str, Annotations]:
    """Return the annotators' segments of each video.

    Raises:
        UserError: missing, no JSON, or not of the nested form above.
    """
    videos = read_json(path)
    if not isinstance(videos, dict):
        raise UserError(f"{path} should hold an object of videos; see docs/stages/shards.md.")
    for video, annotators in videos.items():
        well_formed = isinstance(annotators, dict) and all(
            isinstance(phases, dict) and all(map(_is_segment, phases.values()))
            for phases in annotators.values()
        )
        if not well_formed:
            raise UserError(
                f"{path}: '{video}' should hold annotators, each with a [start, end] in "
                "microseconds for each phase; correct it."
            )
    return videos


def _is_segment(value: Any) -> bool:
    numbers = isinstance(value, list) and all(type(time) in (int, float) for time in value)
    return numbers and bool(np.isfinite(value).all())


def segments_of_video(
    videos: Mapping[str, Annotations], video: str, expected_segments: int, path: Path
) -> Segments:
    """Return start and end in seconds of each phase of one video of a label file.

    Args:
        videos: what :func:`read_label_file` returned.
        video: its key there.
        expected_segments: number of phases.
        path: the label file, for messages.

    Raises:
        UserError: the file has no such video, or as :func:`merge_segments`.
    """
    if video not in videos:
        raise UserError(
            f"{path} has no video '{video}'{nearest(video, videos)}; add its segments, or leave "
            "the video out."
        )
    return merge_segments(videos[video], expected_segments, f"{path}, '{video}'")


def merge_segments(annotations: Annotations, expected_segments: int, where: str) -> Segments:
    """Return start and end in seconds of each phase, by phase.

    The annotators' times are averaged; then neighbouring phases (by start) meet at the midpoint of
    the earlier one's end and the later one's start, which closes gaps and removes overlaps.

    Args:
        annotations: per annotator and phase ("0", "1", ...) start and end in microseconds.
        expected_segments: number of phases.
        where: file and video, for messages.

    Raises:
        UserError: no annotator, one without a phase, or a phase that ends before it starts.
    """
    if not annotations:
        raise UserError(f"{where} has no annotator; add the segments.")
    for annotator, phases in annotations.items():
        for phase in map(str, range(expected_segments)):
            segment = phases.get(phase, ())
            if len(segment) != 2:
                raise UserError(
                    f"{where}: annotator '{annotator}' gives no start and end of phase {phase}; "
                    "add them, or correct expected_segments."
                )
            if segment[0] > segment[1]:
                raise UserError(
                    f"{where}: phase {phase} of annotator '{annotator}' ends before it starts; "
                    "correct it."
                )
    times = np.array(
        [[phases[str(i)] for i in range(expected_segments)] for phases in annotations.values()],
        dtype=np.float64,
    )
    merged = times.mean(0) / 1e6
    order = np.argsort(merged[:, 0], kind="stable")
    for earlier, later in pairwise(order):
        middle = (merged[earlier, 1] + merged[later, 0]) / 2
        merged[earlier, 1] = merged[later, 0] = middle
    return [(float(start), float(end)) for start, end in merged]


def labels_at(
    segments: Segments, times: ArrayLike, where: str = "the segments"
) -> NDArray[np.int64]:
    """Return the phase of each time, int64 (T,).

    The first phase that holds the time; before all phases the earliest one's label, after all the
    latest one's. Segments of :func:`merge_segments` leave no time without a phase.

    Args:
        segments: start and end (exclusive) in seconds of each phase, by phase.
        times: (T,) seconds of each frame.
        where: file and video, for messages.

    Raises:
        UserError: a time that belongs to no phase (upstream drops it and shifts all later ones).
    """
    starts, ends = np.array(segments, dtype=np.float64).reshape(-1, 2, 1).transpose(1, 0, 2)
    seconds = np.asarray(times, dtype=np.float64)
    inside = (starts <= seconds) & (seconds < ends)
    after, before = seconds >= ends.max(), seconds < starts.min()
    if not (known := inside.any(0) | after | before).all():
        raise UserError(
            f"{where}: {seconds[~known][0]:.3f} s belongs to no phase; correct the segments."
        )
    outside = np.where(after, ends.argmax(), starts.argmin())
    return np.where(inside.any(0), inside.argmax(0), outside).astype(np.int64)
