"""Phases of frames from annotators' segments, as the TCC tools compute them (CVPR 2019).

A label file is JSON: {video: {annotator: {"0": [start, end], "1": [start, end], ...}}}, times in
microseconds, phases "0" to "E-1".
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from timewalk.errors import UserError, nearest

Segments = list[tuple[float, float]]
Annotations = Mapping[str, Mapping[str, Sequence[float]]]

LARGEST = 2**63
"""microseconds: what a time of 64 bits stays below"""


def read_label_file(path: Path, key: str = "--label-file") -> dict[str, Annotations]:
    """Return the annotators' segments of each video.

    Args:
        path: the label file.
        key: key or option that names it, for messages.

    Raises:
        UserError: missing, no JSON, or not of the nested form above.
    """
    if not path.is_file():
        raise UserError(f"{key}: there is no file {path}; correct the path.")
    try:
        videos = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, no UTF-8, or a number of thousands of digits
        raise UserError(f"{key}: {path} is not valid JSON ({error}); correct the file.") from None
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
    return isinstance(value, list) and all(
        type(time) in (int, float) and abs(time) < LARGEST for time in value
    )


def segments_of_video(
    videos: Mapping[str, Annotations],
    video: str,
    expected_segments: int,
    path: Path,
    key: str | None = "--expected-segments",
) -> Segments:
    """Return start and end in seconds of each phase of one video of a label file.

    Args:
        videos: what :func:`read_label_file` returned.
        video: its key there.
        expected_segments: number of phases.
        path: the label file, for messages.
        key: as in :func:`merge_segments`.

    Raises:
        UserError: the file has no such video, or as :func:`merge_segments`.
    """
    if video not in videos:
        raise UserError(
            f"{path} has no video '{video}'{nearest(video, videos)}; add its segments, or leave "
            "the video out."
        )
    return merge_segments(videos[video], expected_segments, f"{path}, '{video}'", key)


def merge_segments(
    annotations: Annotations,
    expected_segments: int,
    where: str,
    key: str | None = "--expected-segments",
) -> Segments:
    """Return start and end in seconds of each phase, by phase.

    The annotators' times are averaged; then neighbouring phases (by start) meet at the midpoint of
    the earlier one's end and the later one's start, which closes gaps and removes overlaps.

    Args:
        annotations: per annotator and phase ("0", "1", ...) start and end in microseconds.
        expected_segments: number of phases.
        where: file and video, for messages.
        key: key or option that gives the number of phases, for messages; None: the set itself.

    Raises:
        UserError: no annotator, one without a phase or with a further one, or a phase that ends
            before it starts.
    """
    if not annotations:
        raise UserError(f"{where} has no annotator; add the segments.")
    or_key = f", or correct {key}" if key else ""
    known = [str(phase) for phase in range(expected_segments)]
    for annotator, phases in annotations.items():
        if further := [phase for phase in phases if phase not in known]:
            raise UserError(
                f"{where}: annotator '{annotator}' has a phase '{further[0]}', but the phases are "
                f"0 to {expected_segments - 1}; remove it{or_key}."
            )
        for phase in known:
            segment = phases.get(phase, ())
            if len(segment) != 2:
                raise UserError(
                    f"{where}: annotator '{annotator}' gives no start and end of phase {phase}; "
                    f"add them{or_key}."
                )
            if segment[0] > segment[1]:
                raise UserError(
                    f"{where}: phase {phase} of annotator '{annotator}' ends before it starts; "
                    "correct it."
                )
    times = np.array(
        [[phases[phase] for phase in known] for phases in annotations.values()], dtype=np.float64
    )
    merged = times.mean(0) / 1e6
    order = np.argsort(merged[:, 0], kind="stable")
    for earlier, later in pairwise(order):
        middle = (merged[earlier, 1] + merged[later, 0]) / 2
        merged[earlier, 1] = merged[later, 0] = middle
    return [(float(start), float(end)) for start, end in merged]


def doubts(segments: Segments, times: ArrayLike) -> list[str]:
    """Return what is legal and yet seldom meant in the segments of one video, as sentences.

    Args:
        segments: start and end in seconds of each phase, by phase.
        times: (T,) seconds of each frame.
    """
    found = [
        f"phase {phase} has no time left once segments are averaged and gaps are closed"
        for phase, (start, end) in enumerate(segments)
        if end <= start
    ]
    later = np.asarray(times, dtype=np.float64)[1:2]
    if len(later) and max(end for _, end in segments) <= later[0]:
        found.append("all phases end before the second frame (a label file holds microseconds)")
    return found


def label_warnings(found: Iterable[tuple[str, Sequence[str]]]) -> list[str]:
    """Return one sentence for all videos of which :func:`doubts` says the same.

    Args:
        found: name and doubts of each video.
    """
    videos = defaultdict(list)
    for video, sentences in found:
        for sentence in sentences:
            videos[sentence].append(video)
    return [
        f"{sentence} in {len(names)} video{'' if len(names) == 1 else 's'}, the first '{names[0]}'"
        for sentence, names in videos.items()
    ]


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
