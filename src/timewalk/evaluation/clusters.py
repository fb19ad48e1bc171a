"""Patch features clustered without labels, and what the clusters say of the classes.

What the evaluations `clustering` and `overclustering` share. Source: TimeT's released evaluation.
The scope says over what one K-means and one matching go: a frame, a clip, or the data set.

Shapes: F frames, S side of the maps.
"""

import logging
import shutil
import sys
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from tqdm import tqdm

from timewalk.artefacts import atomic_path, sha256_json
from timewalk.data.segmented import SegmentedSet
from timewalk.data.sequences import VOID
from timewalk.encoders import load_encoder
from timewalk.errors import UserError
from timewalk.evaluation.base import Inputs, Result, write_csv
from timewalk.evaluation.cluster_tables import (
    Group,
    Pictures,
    Scored,
    class_rows,
    cluster_rows,
    frame_names,
    frame_rows,
    score_rows,
    summary,
)
from timewalk.evaluation.feature_file import mapped
from timewalk.evaluation.feature_maps import cluster_maps, maps_key, reduced_maps
from timewalk.evaluation.segmentation_config import (
    SegmentationConfig,
    Side,
    WithClusters,
    scored_set,
)
from timewalk.evaluation.segmentation_pairs import check_side, read_target
from timewalk.metrics.matching import contingency, matched_scores, with_classes
from timewalk.ops.kmeans import load_faiss

log = logging.getLogger(__name__)

Scope = Literal["per_frame", "per_clip", "per_dataset"]
Matching = Literal["hungarian", "many_to_one", "many_to_one_iou"]

NOT_FOR_CLUSTERS = {"runs", "matching", "fixed_classes", "pictures"}
"""keys that change no cluster"""
MAP_SIZES = {"per_frame": 224, "per_clip": 224, "per_dataset": 112}


class ClusterConfig(SegmentationConfig, WithClusters):
    """Keys of an evaluation that clusters patch features."""

    scope: Scope = "per_frame"
    """one K-means and one matching for each frame, for each clip, or for the whole data set"""
    map_size: Side | None = None  # type: ignore[assignment]  # read as `side` alone
    """side in pixels of the square maps that are clustered and compared; null: 224, or 112 for
    `per_dataset`"""
    clusters: Annotated[int, Field(gt=0, le=65535)] | None = None
    """K; null: the number of classes in the truth of that frame, clip or data set"""
    matching: Matching = "hungarian"
    """`hungarian`: one cluster a class, the rest is background; `many_to_one`: each cluster takes
    the class of most of its pixels; `many_to_one_iou`: that of largest IoU"""
    fixed_classes: bool = False
    """a class that the truth lacks scores 0, as in Leopart's code; else it does not count"""

    @property
    def side(self) -> int:
        """Side of the maps in pixels; they are smaller where all of them are clustered at once."""
        return self.map_size or MAP_SIZES[self.scope]


def evaluate_clusters(inputs: Inputs, config: ClusterConfig, output_dir: Path) -> Result:
    """Cluster a run's patch features and score the clusters.

    Args:
        inputs: the run and the set with masks.
        config: settings.
        output_dir: `scores.csv`, `classes.csv`, `clusters.csv`, `frames.csv` and pictures go here;
            `work/` holds features and finished clusters until the end, for an interrupted
            evaluation to go on.

    Raises:
        UserError: an unreadable image or mask, ids beyond the classes, nothing but void, fewer
            pixels than clusters, or no faiss.
    """
    load_faiss()  # said before the work, not after it
    segmented = scored_set(inputs.dataset, config)
    names = class_names(segmented, config)
    encoder = load_encoder(inputs.run).eval().to(inputs.device)
    check_side(encoder, config.image_size)
    work = output_dir / "work"
    truth = read_truth(segmented, config, work / "truth.npy")
    groups = scored_groups(segmented, config.scope, truth)
    maps = reduced_maps(
        encoder,
        [frame for frame, _, _ in segmented.frames],
        config.image_size,
        device=inputs.device,
        dimensions=config.dimensions,
        work=work,
        workers=inputs.workers,
        precision=config.precision,
    )
    settings = config.model_dump(mode="json", exclude=NOT_FOR_CLUSTERS)
    kept = work / sha256_json([settings, maps_key(work), segmented.digest])[:16]
    found: list[Scored] = []
    shown = Pictures(segmented, config.pictures)
    for group in tqdm(groups, unit="K-means", disable=not sys.stderr.isatty()):
        own = truth[group.frames]
        count = config.clusters or len(present(own))
        path = kept / f"{group.frames.start}_{count}.npz"
        predicted = _clusters(path, maps[group.frames], count, config)
        table = contingency(own, predicted, void=VOID)
        if config.fixed_classes:
            table = with_classes(table, len(names))
        found.append(Scored(group, count, table, matched_scores(table, config.matching)))
        shown.add(group, own, predicted, found[-1].scores)
    warn(segmented, config, found)
    artefacts = [
        write_csv(output_dir / "scores.csv", score_rows(found)),
        write_csv(output_dir / "classes.csv", class_rows(found, names)),
        write_csv(output_dir / "clusters.csv", cluster_rows(found, names)),
        write_csv(output_dir / "frames.csv", frame_rows(segmented, truth, groups)),
        *shown.write(output_dir, names),
    ]
    shutil.rmtree(work)
    return Result(
        protocol(segmented, config, maps.shape[1]),
        summary(found, config.matching, segmented.background),
        len(groups),
        artefacts,
    )


def class_names(segmented: SegmentedSet, config: ClusterConfig) -> tuple[str, ...]:
    """Return the names of the classes that are scored; none where ids are instances.

    Raises:
        UserError: classes are to be fixed and the set has no list of them.
    """
    names = ("background", "foreground") if config.foreground_only else segmented.classes
    if config.fixed_classes and not names:
        raise UserError(
            f"'{segmented.name}' has no list of classes, so that fixed_classes has no meaning; "
            "set it to false."
        )
    return names


def read_truth(segmented: SegmentedSet, config: ClusterConfig, file: Path) -> np.ndarray:
    """Return the classes of every frame, uint8 (F, S, S), memory-mapped; 255 is void.

    Raises:
        UserError: an unreadable mask, or an id beyond the classes.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    frames, side = segmented.frames, config.side
    truth = mapped(file, np.uint8, (len(frames), side, side))
    for number, frame in enumerate(frames):
        truth[number] = read_target(frame, side, config.foreground_only)
    return truth


def scored_groups(segmented: SegmentedSet, scope: Scope, truth: np.ndarray) -> list[Group]:
    """Return the frames, the clips or the set, without those in which all is void.

    Raises:
        UserError: there is nothing else.
    """
    every = groups_of(segmented, scope)
    groups = [group for group in every if len(present(truth[group.frames]))]
    if not groups:
        raise UserError(f"'{segmented.name}' has no pixel that is not void; correct its masks.")
    if left_out := len(every) - len(groups):
        log.warning(
            "%d of %d images or clips have nothing but void and do not count", left_out, len(every)
        )
    return groups


def groups_of(segmented: SegmentedSet, scope: Scope) -> list[Group]:
    """Return all frames, all clips, or the set as a whole."""
    if scope == "per_dataset":
        return [Group(segmented.name, slice(0, len(segmented.frames)))]
    groups, start = [], 0
    for clip in segmented.clips:
        count = len(clip.frames)
        if scope == "per_clip":
            groups.append(Group(clip.name, slice(start, start + count)))
        else:
            groups += [
                Group(name, slice(start + place, start + place + 1))
                for place, name in enumerate(frame_names(segmented, clip))
            ]
        start += count
    return groups


def present(truth: np.ndarray) -> np.ndarray:
    """Return the classes that occur, without void."""
    counts = np.bincount(truth.ravel(), minlength=VOID + 1)
    return np.flatnonzero(counts[:VOID])


def warn(segmented: SegmentedSet, config: ClusterConfig, found: list[Scored]) -> None:
    """Say in the log what makes the scores hard to read."""
    if config.scope == "per_dataset" and not segmented.classes and not config.foreground_only:
        log.warning(
            "the ids of '%s' number the objects of one video each; over the whole data set an id "
            "has no meaning, and neither has this score",
            segmented.name,
        )
    few = [entry for entry in found if entry.clusters < (entry.table.counts.sum(axis=1) > 0).sum()]
    if few:
        log.warning(
            "%d of %d clusterings have fewer clusters than classes (the first: %s, %d clusters); "
            "some classes must score 0",
            *(len(few), len(found), few[0].group.name, few[0].clusters),
        )
    alone = sum(entry.clusters == 1 for entry in found)
    if alone and config.clusters is None:
        log.warning("%d of %d clusterings have one class and score 1", alone, len(found))


def protocol(segmented: SegmentedSet, config: ClusterConfig, dimensions: int) -> str:
    """Return the protocol's name: all that makes scores incomparable is part of it."""
    clusters = "gt" if config.clusters is None else str(config.clusters)
    parts = [
        f"{segmented.title}-{config.scope}-{config.matching}-k{clusters}",
        f"m{config.side}-s{config.image_size}",
    ]
    if segmented.videos:
        parts.append(f"f{config.frames_per_clip or 'all'}")
    if config.foreground_only:
        parts.append("fg")
    if config.fixed_classes:
        parts.append("fixed")
    if config.precision != "fp32":
        parts.append(config.precision)
    parts += config.cluster_title(dimensions)
    return "-".join(parts)


def _clusters(path: Path, maps: np.ndarray, count: int, config: ClusterConfig) -> np.ndarray:
    """Return the clusters that lie in a file, or make them and keep them."""
    if path.is_file():
        with np.load(path) as file:
            kept: np.ndarray = file["clusters"]
        return kept
    clusters = cluster_maps(maps, count, config.side, config.kmeans())
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, clusters=clusters)
    return clusters
