"""Foreground by clusters and attention, then classes without any label.

Sheet: segmentation-eval section 6. Patches of a training set are clustered; clusters that mostly lie
where the class token looks are foreground, above a threshold that the training set's masks tune.
The scored set is clustered anew and judged by its own attention and that threshold. With what is
not foreground set to zero, its features are clustered once more, into as many clusters as there are
classes, and matched to these.

Shapes: F images, K clusters, h and w rows and columns of patches, M side of a map in pixels.
"""

import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from timewalk.artefacts import atomic_path, read_json, sha256_file, sha256_json, write_json
from timewalk.config import Positive
from timewalk.data.segmented import SegmentedSet, Squares, read_square
from timewalk.data.sequences import VOID
from timewalk.data.workers import plain_errors
from timewalk.encoders import Encoder, load_encoder
from timewalk.errors import UserError
from timewalk.evaluation.base import Inputs, Result, write_csv
from timewalk.evaluation.embed import Extractor
from timewalk.evaluation.feature_maps import (
    check_size,
    cluster_maps,
    pixels_at,
    reduced_maps,
    upsampled,
)
from timewalk.evaluation.mask_pictures import sheet, write_gif
from timewalk.evaluation.pictures import save_png
from timewalk.evaluation.segmentation_config import (
    SegmentationConfig,
    Side,
    WithTraining,
    scored_set,
    training_set,
)
from timewalk.evaluation.segmentation_pairs import all_targets, title
from timewalk.evaluation.segmentation_scores import PICTURE_SIDE, class_table, percent, spread
from timewalk.metrics import foreground as metric
from timewalk.metrics.foreground import Table, Tuning
from timewalk.metrics.matching import MatchedScores, contingency, matched_scores, renamed
from timewalk.ops.foreground_mask import BLUR, attention_masks
from timewalk.ops.kmeans import KMeans, assign, kmeans, load_faiss, training_rows

log = logging.getLogger(__name__)

BATCH = 16
PART = 64
"""images whose patches are assigned to clusters at a time"""
LIGHT = 255
"""id that draws the foreground in a pale colour, which no class has"""

Share = Annotated[float, Field(gt=0, lt=1)]


class Config(SegmentationConfig, WithTraining):
    """Cluster-based foreground extraction, and the segmentation of what it finds."""

    kind: Literal["foreground"] = "foreground"
    image_size: Side = 448
    """side in pixels of the square to which images are resized for the encoder"""
    map_size: Side = 100
    """side in pixels of the square maps on which foreground and classes are compared"""
    clusters: Positive = 300
    """clusters of each set, some of which are foreground"""
    dimensions: Positive = 50
    """principal components of the features that are clustered"""
    keep: Share = 0.65
    """share of the class token's attention that an image's mask holds"""
    cuts: tuple[Share, Share] = (0.55, 0.75)
    """shares of the clusters, sorted by precision, that are tried as background: from, to before"""
    boundary: Literal["foreground", "background"] = "foreground"
    """what boundary pixels (id 255) count as in `jaccard`"""
    segmentation_clusters: Positive | None = None
    """clusters of the second stage; null: as many as the set has classes, background included"""
    boundary_f: bool = False
    """also score outlines, as published: that of the true background with the foreground's"""
    boundary_distance: Annotated[float, Field(gt=0)] = 16
    """pixels of the map that outlines must be nearer than"""
    iterations: Positive = 50
    """of K-means, in each redo"""
    redos: Positive = 5
    """starts of K-means; the best is kept"""
    max_points_per_centroid: Positive = 256
    """more pixels than this times the clusters: a random part of them trains K-means"""
    variant: Literal["published", "fast"] = "published"
    """of K-means: faiss as published, or a faster one (another protocol)"""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 1
    """seed of K-means"""

    @model_validator(mode="after")
    def _cuts_of_clusters(self) -> "Config":
        low, high = (int(share * self.clusters) for share in self.cuts)
        if low >= high:
            raise ValueError(
                f"no cut of {self.clusters} clusters lies between the shares of cuts "
                f"{list(self.cuts)}; raise clusters or widen cuts"
            )
        return self

    @property
    def kmeans(self) -> KMeans:
        """The settings of K-means."""
        return KMeans(
            self.iterations, self.redos, self.max_points_per_centroid, self.seed, self.variant
        )


@dataclass(frozen=True)
class Clustered:
    """A set's patches in clusters.

    Attributes:
        ids: uint16 (F, h, w).
        truth: uint8 (F, M, M), classes; 255 is boundary.
        table: pixels of the clusters.
        precision: float64 (K,), of each cluster.
    """

    ids: np.ndarray
    truth: np.ndarray
    table: Table
    precision: np.ndarray


@dataclass(frozen=True)
class Segmentation:
    """The second stage.

    Attributes:
        classes: uint8 (F, M, M), predicted.
        names: of the classes.
        scores: of the matched clusters.
    """

    classes: np.ndarray
    names: tuple[str, ...]
    scores: MatchedScores


def evaluate(inputs: Inputs, config: Config, output_dir: Path) -> Result:
    """Find the foreground of a labelled set, and segment it, without its labels.

    Args:
        inputs: the run, the scored set, and the training set where it is another.
        config: settings.
        output_dir: tables and pictures go here; `work/` holds features and clusters until the end,
            for an interrupted evaluation to go on.

    Raises:
        UserError: an encoder without attention, a set without foreground, clusters without pixels,
            or none of the precision that counts as foreground.
    """
    encoder = load_encoder(inputs.run).eval().requires_grad_(False).to(inputs.device)
    _check(encoder, config)
    scored = scored_set(inputs.dataset, config)
    train = training_set(inputs.dataset, inputs.train_dataset, config)
    work = _work(output_dir / "work", inputs, config)

    def clustered(segmented: SegmentedSet, part: str) -> Clustered:
        return cluster(segmented, encoder, inputs, config, work / part)

    learnt = clustered(train, "train")
    table = learnt.table
    tuning = metric.tune(learnt.precision, table.pixels, table.foreground, config.cuts)
    log.info("foreground: clusters of a precision of at least %.2f", tuning.threshold)
    found = clustered(scored, "test")
    chosen = found.precision >= tuning.threshold
    if not chosen.any():
        raise UserError(
            f"no cluster of '{scored.name}' has a precision of at least {tuning.threshold:.2f}, "
            f"which '{train.name}' was tuned to; raise 'keep', or learn from a set like it."
        )
    segmentation = segment(scored, encoder, inputs, config, work / "classes", (found, chosen))
    metrics, rows = _scores(found, chosen, config)
    metrics |= {"threshold": tuning.threshold, "clusters_foreground": float(chosen.sum())}
    names = _names(scored)
    artefacts = [
        write_csv(output_dir / "images.csv", [rows[0], *zip(names, *rows[1:], strict=True)]),
        _write_clusters(output_dir / "clusters.csv", {train.split: learnt, "scored": found}, chosen),
        _write_cuts(output_dir / "cuts.csv", tuning),
    ]
    metrics |= dict.fromkeys(("miou", "miou_without_background"))
    if segmentation is not None:
        metrics |= percent(segmentation.scores, len(segmentation.names))
        classes = class_table(segmentation.scores, segmentation.names)
        artefacts.append(write_csv(output_dir / "classes.csv", classes))
    artefacts += draw(scored, found, chosen, segmentation, config, output_dir)
    shutil.rmtree(work)
    return Result(protocol(config, scored, train), metrics, len(found.truth), artefacts)
