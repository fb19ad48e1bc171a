"""Object proposals of single frames, linked to tracks over a video and painted as ids.

Source: SMTC's released evaluation for the masks. It links nothing, while the official scores of
DAVIS 2017 need one id an object, so the tracks are a choice of our own: candidates of a group
follow each other if they look alike and cover the same place, the tracks that are trusted most and
longest are kept but for their near-duplicates, and where they overlap the largest soft value wins.

Shapes: T frames, n candidates of a frame, D width of vectors, h and w rows and columns of cells, H
and W of pixels.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F

from timewalk.evaluation.davis_folders import MAX_PROPOSALS
from timewalk.evaluation.proposals import Proposals
from timewalk.metrics.video_foreground import enlarged, occurring

Enlarge = Literal["bilinear", "nearest"]

FOREGROUND = 0.3
"""share of the way from a soft mask's smallest value to its largest above which it is foreground"""
MIN_AFFINITY = 0.5
"""cosine plus soft IoU from which a candidate continues a track"""
DUPLICATE = 0.7
"""mean soft IoU with a better track from which a track is left out"""


@dataclass
class Track:
    """One object over time.

    Attributes:
        group: semantic slot or cluster.
        members: candidate of each frame where the track is seen, by frame, in order.
    """

    group: int
    members: dict[int, int]


def binarised(soft: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return soft masks (n, h, w) as masks at another size, bool (n, H, W), as published.

    Enlarged by nearest neighbour, brought to 0..1 one by one, foreground above 0.3; a constant mask
    is empty.
    """
    # Cells that no pixel takes do not count.
    cells = occurring(soft, size)
    low, high = (end(axis=(1, 2), keepdims=True) for end in (cells.min, cells.max))
    stretched = (cells - low) / np.where(high > low, high - low, 1)
    return enlarged(stretched > FOREGROUND, size)


def link(proposals: Proposals) -> list[Track]:
    """Return the tracks of a video, in the order in which they begin.

    In every frame the candidates of a group and its tracks so far are paired so that the sum of
    their affinities is largest: the cosine of their vectors, and for tracks of the frame before
    the soft IoU of their masks. Below an affinity of 0.5 a pair is none; a candidate without
    partner begins a track, and a track without partner may be taken up again later.
    """
    tracks: list[Track] = []
    for frame, groups in enumerate(proposals.groups):
        for group in np.unique(groups).tolist():
            candidates = np.flatnonzero(groups == group)
            known = [track for track in tracks if track.group == group]
            partners = _partners(proposals, frame, candidates, known)
            for candidate in candidates.tolist():
                if candidate in partners:
                    partners[candidate].members[frame] = candidate
                else:
                    tracks.append(Track(group, {frame: candidate}))
    return tracks


def _partners(
    proposals: Proposals, frame: int, candidates: np.ndarray, tracks: list[Track]
) -> dict[int, Track]:
    """Return the track that each candidate continues."""
    from scipy.optimize import linear_sum_assignment

    if not tracks:
        return {}
    latest = [max(track.members) for track in tracks]
    ends = [track.members[last] for track, last in zip(tracks, latest, strict=True)]
    seen = [proposals.vectors[last][end] for last, end in zip(latest, ends, strict=True)]
    affinity = _unit(proposals.vectors[frame][candidates]) @ _unit(np.stack(seen)).T
    recent = np.flatnonzero(np.array(latest) == frame - 1)
    if len(recent):
        before = proposals.masks[frame - 1][[ends[place] for place in recent]]
        affinity[:, recent] += soft_iou(proposals.masks[frame][candidates], before)
    # What may not be paired adds nothing to the sum.
    rows, columns = linear_sum_assignment(-np.where(affinity < MIN_AFFINITY, 0, affinity))
    return {
        int(candidates[row]): tracks[column]
        for row, column in zip(rows, columns, strict=True)
        if affinity[row, column] >= MIN_AFFINITY
    }


def _unit(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(length, 1e-12)


def soft_iou(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the sum of the smaller values over that of the larger, (n, m), of soft masks (n, h, w)
    and (m, h, w); 0 where both are empty."""
    a, b = ones.reshape(len(ones), 1, -1), others.reshape(1, len(others), -1)
    union = np.maximum(a, b).sum(-1)
    return np.minimum(a, b).sum(-1) / np.where(union > 0, union, 1)


def rank(tracks: list[Track], proposals: Proposals, most: int = MAX_PROPOSALS) -> list[Track]:
    """Return the best tracks, best first: by mean score times frames; of equals the earlier.

    A track that repeats one that is kept is left out: their soft IoU, a mean over the frames where
    either is seen and 0 where one is absent, is at least 0.7.
    """

    def weight(track: Track) -> float:
        # The mean times the number is the sum.
        scores = (proposals.scores[frame][k] for frame, k in track.members.items())
        return float(sum(map(float, scores)))

    kept: list[Track] = []
    for track in sorted(tracks, key=weight, reverse=True):
        if len(kept) == most:
            break
        if not any(_repeats(track, better, proposals) for better in kept):
            kept.append(track)
    return kept


def _repeats(track: Track, better: Track, proposals: Proposals) -> bool:
    shared = track.members.keys() & better.members.keys()
    frames = len(track.members | better.members)
    if len(shared) / frames < DUPLICATE:
        return False  # however like they are in the frames that they share
    total = 0.0
    for frame in shared:
        masks = proposals.masks[frame]
        one, other = masks[track.members[frame]], masks[better.members[frame]]
        total += float(soft_iou(one[None], other[None])[0, 0])
    return total / frames >= DUPLICATE


def paint(
    tracks: list[Track], proposals: Proposals, size: tuple[int, int], enlarge: Enlarge = "bilinear"
) -> np.ndarray:
    """Return the tracks as ids, uint8 (T, H, W): the first is 1, 0 is what none covers.

    A mask is where the enlarged soft mask is above 0.3 of the way from the smallest cell to the
    largest; a constant one is empty. Where tracks overlap the larger soft value wins, of equals
    the earlier track.

    Args:
        tracks: at most 255.
        proposals: of the video.
        size: (H, W).
        enlarge: `nearest`: as published.
    """
    ids = np.zeros((len(proposals.masks), *size), np.uint8)
    for frame, painted in enumerate(ids):
        present = [
            (number, track.members[frame])
            for number, track in enumerate(tracks, start=1)
            if frame in track.members
        ]
        if not present:
            continue
        cells = proposals.masks[frame][[candidate for _, candidate in present]]
        best = np.full(size, -np.inf, np.float32)
        for (number, _), soft, large in zip(
            present, cells, _enlarged(cells, size, enlarge), strict=True
        ):
            low, high = soft.min(), soft.max()
            if low == high:
                continue
            wins = ((large - low) / (high - low) > FOREGROUND) & (large > best)
            painted[wins], best[wins] = number, large[wins]
    return ids


def _enlarged(cells: np.ndarray, size: tuple[int, int], how: Enlarge) -> np.ndarray:
    if how == "nearest":
        return enlarged(cells, size)
    maps = torch.from_numpy(cells)[None]
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)[0].numpy()
