"""Labels of frames from annotators' segments, as the TCC tools compute them (CVPR 2019)."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from timewalk.errors import UserError

Segments = list[tuple[float, float]]
Annotations = Mapping[str, Mapping[str, Sequence[float]]]


def merge_segments(annotations: Annotations, expected_segments: int, where: str) -> Segments:
    """Return start and end in seconds of each phase, by phase.

    The annotators' times are averaged; then neighbouring phases (by start) meet at the midpoint of
    the earlier one's end and the later one's start, which closes gaps and removes overlaps.

    Args:
        annotations: per annotator and phase ("0", "1", ...) start and end in microseconds.
        expected_segments: number of phases.
        where: file and video, for messages.

    Raises:
        UserError: no annotator, or one without a phase.
    """
    if not annotations:
        raise UserError(f"{where} has no annotator; add the segments.")
    for annotator, phases in annotations.items():
        for phase in map(str, range(expected_segments)):
            if len(phases.get(phase, ())) != 2:
                raise UserError(
                    f"{where}: annotator '{annotator}' gives no start and end of phase {phase}; "
                    "add them, or correct expected_segments."
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


def frame_labels(segments: Segments, times: Sequence[float], where: str) -> list[int]:
    """Return the phase of each time.

    Before the first phase its own label holds, after the last one likewise.

    Args:
        segments: start and end in seconds of each phase, by phase.
        times: seconds of each frame.
        where: file and video, for messages.

    Raises:
        UserError: a time that belongs to no phase (upstream drops it and shifts all later ones).
    """
    first = min(range(len(segments)), key=lambda i: segments[i][0])
    last = max(range(len(segments)), key=lambda i: segments[i][1])
    labels = []
    for time in times:
        inside = [i for i, (start, end) in enumerate(segments) if start <= time < end]
        if inside:
            labels.append(inside[0])
        elif time >= segments[last][1]:
            labels.append(last)
        elif time < segments[first][0]:
            labels.append(first)
        else:
            raise UserError(f"{where}: {time:.3f} s belongs to no phase; correct the segments.")
    return labels
