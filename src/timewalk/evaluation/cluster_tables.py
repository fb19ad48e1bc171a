"""Tables, means and pictures of scored clusters.

Shapes: G classes, P clusters, S side of the maps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from timewalk.data.segmented import SegmentedClip, SegmentedSet, read_square
from timewalk.data.sequences import VOID
from timewalk.evaluation.mask_pictures import sheet, write_gif
from timewalk.evaluation.pictures import save_png
from timewalk.evaluation.segmentation_scores import PICTURE_SIDE
from timewalk.metrics.matching import Contingency, Criterion, MatchedScores, renamed

Rows = list[list[object]]


@dataclass(frozen=True)
class Group:
    """Frames that are clustered and matched together.

    Attributes:
        name: of the frame, the clip or the set.
        frames: their numbers in the set.
    """

    name: str
    frames: slice


@dataclass(frozen=True)
class Scored:
    """A group's scores.

    Attributes:
        group: which.
        clusters: number of clusters that were made.
        table: pixels of each class in each cluster.
        scores: of it.
    """

    group: Group
    clusters: int
    table: Contingency
    scores: MatchedScores


def summary(
    found: Sequence[Scored], matching: Criterion, background: bool = True
) -> dict[str, float | None]:
    """Return the means over all groups, in percent.

    Groups that have background only do not count in `miou_without_background`, which has no meaning
    for a set without a background class. The share of the clusters that become background says
    nothing where each class has one cluster: None.
    """
    each = [_without_background(entry.scores) for entry in found]
    foreground = [share for share in each if share is not None]
    shares = [entry.scores.background_fraction or 0.0 for entry in found]
    return {
        "miou": _percent([entry.scores.miou for entry in found]),
        "miou_without_background": _percent(foreground) if background else None,
        "pixel_accuracy": _percent([entry.scores.accuracy for entry in found]),
        "background_clusters": None if matching == "hungarian" else _percent(shares),
        "clusters": float(np.mean([entry.clusters for entry in found])),
    }


def frame_names(segmented: SegmentedSet, clip: SegmentedClip) -> list[str]:
    """Return the names of a clip's frames in tables: the image's, or video and frame."""
    if not segmented.videos:
        return [clip.name]
    return [f"{clip.name}/{frame.stem}" for frame in clip.frames]


def score_rows(found: Sequence[Scored]) -> Rows:
    """Return a row for every group, in percent."""
    header = ["name", "frames", "clusters", "classes", "miou", "miou_without_background"]
    rows: Rows = [[*header, "pixel_accuracy"]]
    for entry in found:
        scores = entry.scores
        shares = (scores.miou, _without_background(scores), scores.accuracy)
        frames = entry.group.frames.stop - entry.group.frames.start
        rows.append(
            [entry.group.name, frames, entry.clusters, len(scores.classes), *map(_cell, shares)]
        )
    return rows


def class_rows(found: Sequence[Scored], names: Sequence[str]) -> Rows:
    """Return a row for every class: mean IoU in percent over the groups in which it counts, and
    its pixels over all groups."""
    rows: Rows = [["class", "name", "groups", "iou", "tp", "fp", "fn"]]
    columns: dict[int, list[tuple[float, int, int, int]]] = {}
    for scores in (entry.scores for entry in found):
        values = zip(scores.iou, scores.tp, scores.fp, scores.fn, strict=True)
        for number, value in zip(scores.classes.tolist(), values, strict=True):
            columns.setdefault(number, []).append(value)
    for number, each in sorted(columns.items()):
        iou, tp, fp, fn = np.array(each).T
        pixels = [int(counts.sum()) for counts in (tp, fp, fn)]
        rows.append([number, _name(number, names), len(each), _cell(float(iou.mean())), *pixels])
    return rows


def cluster_rows(found: Sequence[Scored], names: Sequence[str]) -> Rows:
    """Return a row for every cluster: its class, its pixels that count, and the share in percent
    of them that have this class."""
    rows: Rows = [["of", "cluster", "class", "name", "pixels", "precision"]]
    for entry in found:
        table, places = entry.table, {c: n for n, c in enumerate(entry.table.classes.tolist())}
        pixels = table.counts.sum(axis=0).tolist()
        for column, cluster in enumerate(table.clusters.tolist()):
            own = entry.scores.cluster_to_class[cluster]
            right = int(table.counts[places[own], column]) if own in places else 0
            share = _cell(right / pixels[column])
            rows.append([entry.group.name, cluster, own, _name(own, names), pixels[column], share])
    return rows


def frame_rows(segmented: SegmentedSet, truth: np.ndarray, groups: Sequence[Group]) -> Rows:
    """Return a row for every frame that was taken."""
    scored = {n for group in groups for n in range(group.frames.start, group.frames.stop)}
    rows: Rows = [["clip", "frame", "void_percent", "scored"]]
    for clip in segmented.clips:
        for frame in clip.frames:
            number = len(rows) - 1
            void = float((truth[number] == VOID).mean())
            rows.append([clip.name, frame.name, _cell(void), str(number in scored).lower()])
    return rows


class Pictures:
    """Input, truth and prediction in the colours of the classes: a sheet of still images, a GIF of
    each video; evenly spread over the set.

    Args:
        segmented: the set.
        count: images or videos.
    """

    def __init__(self, segmented: SegmentedSet, count: int) -> None:
        self._segmented = segmented
        clips = len(segmented.clips)
        self._clips = sorted({int(n) for n in np.linspace(0, clips - 1, min(count, clips)).round()})
        starts = np.cumsum([0, *(len(clip.frames) for clip in segmented.clips)]).tolist()
        self._frames = {clip: range(starts[clip], starts[clip + 1]) for clip in self._clips}
        self._wanted = {number for frames in self._frames.values() for number in frames}
        self._maps: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def add(
        self, group: Group, truth: np.ndarray, predicted: np.ndarray, scores: MatchedScores
    ) -> None:
        """Keep what is drawn of a group's classes and clusters, (n, S, S) each."""
        for place, number in enumerate(range(group.frames.start, group.frames.stop)):
            if number in self._wanted:
                named = renamed(predicted[place], scores.cluster_to_class).astype(np.uint8)
                self._maps[number] = (np.array(truth[place]), named)

    def write(self, folder: Path, names: Sequence[str]) -> list[Path]:
        """Write `sheet.png`, or `<video>.gif` of every video; return the files."""
        rows = {clip: self._rows(frames) for clip, frames in self._frames.items()}
        if self._segmented.videos:
            clips = self._segmented.clips
            return [write_gif(folder / f"{clips[n].name}.gif", r) for n, r in rows.items() if r]
        images = [row for own in rows.values() for row in own]
        return [save_png(folder / "sheet.png", sheet(images, names))] if images else []

    def _rows(self, frames: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        paths = self._segmented.frames
        return [
            (read_square(paths[number][0], PICTURE_SIDE).transpose(1, 2, 0), *self._maps[number])
            for number in frames
            if number in self._maps
        ]


def _without_background(scores: MatchedScores) -> float | None:
    """Return the mean IoU without background; None where the truth has nothing else."""
    # Fixed classes are listed even where they have no pixel.
    objects = (scores.tp + scores.fn)[scores.classes > 0].any()
    return scores.miou_without_background if objects else None


def _name(number: int, names: Sequence[str]) -> str:
    return names[number] if number < len(names) else str(number)


def _percent(shares: Sequence[float]) -> float | None:
    return 100 * float(np.mean(shares)) if shares else None


def _cell(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.6g}"
