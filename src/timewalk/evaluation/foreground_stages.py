"""What the evaluation `foreground` computes: clusters of a set, and classes of its foreground.

Source: Leopart's cluster-based foreground, in the form of TimeT's released code. Nearest neighbours
enlarge whole patches, so clusters are kept a patch each; only the truth, and what is counted
against it, has the map's pixels.

Shapes: F images, K clusters, h and w rows and columns of patches, M side of a map in pixels.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from timewalk.artefacts import atomic_path
from timewalk.config import Positive
from timewalk.data.segmented import SegmentedSet, Squares
from timewalk.data.sequences import VOID
from timewalk.encoders import Encoder
from timewalk.errors import UserError
from timewalk.evaluation.base import Inputs
from timewalk.evaluation.embed import Extractor
from timewalk.evaluation.feature_maps import (
    cluster_maps,
    maps_key,
    pixels_at,
    reduced_maps,
    upsampled,
)
from timewalk.evaluation.segmentation_config import (
    SegmentationConfig,
    Side,
    WithClusters,
    WithTraining,
)
from timewalk.evaluation.segmentation_pairs import (
    check_side,
    class_names,
    in_batches,
    runs_of,
    targets_of,
)
from timewalk.metrics.foreground import Table, cluster_counts, cluster_precision
from timewalk.metrics.matching import MatchedScores, add, contingency, matched_scores
from timewalk.ops.foreground_mask import BLUR, attention_masks
from timewalk.ops.kmeans import assign, kmeans, training_rows

log = logging.getLogger(__name__)

BATCH = 16
PART = 64
"""images that are assigned to clusters, or counted, at a time"""

Share = Annotated[float, Field(gt=0, lt=1)]


class Config(SegmentationConfig, WithClusters, WithTraining):
    """Cluster-based foreground extraction, and the segmentation of what it finds."""

    kind: Literal["foreground"] = "foreground"
    image_size: Side = 448
    """side in pixels of the square to which images are resized for the encoder"""
    map_size: Side = 100
    """side in pixels of the square maps on which foreground and classes are compared"""
    clusters: Annotated[int, Field(gt=0, le=65535)] = 300
    """clusters of each set, some of which are foreground"""
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
    """pixels of the map that outlines must be nearer than to agree"""

    @model_validator(mode="after")
    def _cuts_of_clusters(self) -> "Config":
        low, high = (int(share * self.clusters) for share in self.cuts)
        if low >= high:
            raise ValueError(
                f"no cut of {self.clusters} clusters lies between the shares "
                f"{self.cuts[0]:g} and {self.cuts[1]:g}; raise clusters or widen cuts"
            )
        return self


@dataclass(frozen=True)
class Clustered:
    """A set's patches in clusters.

    Attributes:
        ids: uint16 (F, h, w).
        truth: uint8 (F, M, M), classes; 255 is boundary.
        table: pixels of the clusters.
        precision: float64 (K,), of each cluster.
        dimensions: of the features that were clustered.
    """

    ids: np.ndarray
    truth: np.ndarray
    table: Table
    precision: np.ndarray
    dimensions: int


@dataclass(frozen=True)
class Segmentation:
    """The second stage.

    Attributes:
        ids: uint16 (F, M, M), clusters.
        names: of the classes.
        scores: of the matched clusters.
    """

    ids: np.ndarray
    names: tuple[str, ...]
    scores: MatchedScores


def check_encoder(encoder: Encoder, config: Config) -> None:
    """Refuse a network that has no class token to look anywhere, or that sees too few patches.

    Raises:
        UserError: names the network or the key.
    """
    if not hasattr(encoder, "cls_attention"):
        raise UserError(
            f"the encoder ({encoder.spec.get('name', 'unnamed')}) has no attention of a class "
            "token, which evaluations of kind 'foreground' need; choose runs of a ViT with 'runs'."
        )
    check_side(encoder, config.image_size)
    if config.image_size // encoder.stride <= BLUR // 2:
        raise UserError(
            f"image_size is {config.image_size}, fewer than {BLUR // 2 + 1} patches of "
            f"{encoder.stride} pixels; make it larger."
        )


def cluster(
    segmented: SegmentedSet, encoder: Encoder, inputs: Inputs, config: Config, work: Path
) -> Clustered:
    """Cluster a set's patches, and judge the clusters by its attention.

    Args:
        segmented: the set.
        encoder: in eval mode, on the device.
        inputs: device and workers.
        config: settings.
        work: folder of what an interrupted call goes on from.

    Raises:
        UserError: masks without foreground, or a cluster without pixels.
    """
    frames, side = segmented.frames, config.map_size
    parts = targets_of(frames, side, config.foreground_only, inputs.workers)
    truth = torch.cat(list(parts)).numpy()
    if not ((truth != 0) & (truth != VOID)).any():
        raise UserError(
            f"no mask of '{segmented.name}' ({segmented.split}) has any foreground at map_size "
            f"{side}; correct the set, or raise map_size."
        )
    paths = [image for image, _, _ in frames]
    log.info("%s: features of %d images", segmented.name, len(paths))
    maps = reduced_maps(
        encoder,
        paths,
        config.image_size,
        device=inputs.device,
        dimensions=config.dimensions,
        work=work,
        workers=inputs.workers,
        precision=config.precision,
    )
    attended = kept(work, "attended", lambda: attention_of(encoder, paths, inputs, config))
    log.info("%s: %d clusters", segmented.name, config.clusters)
    ids = kept(work, "ids", lambda: patch_clusters(maps, config))
    table = counts(ids, attended, truth, config.clusters)
    precision = cluster_precision(table.pixels, table.attended)
    return Clustered(ids, truth, table, precision, maps.shape[1])


def attention_of(encoder: Any, paths: list[Path], inputs: Inputs, config: Config) -> np.ndarray:
    """Return where each image's class token looks, bool (F, h, w)."""
    extractor = Extractor(encoder, inputs.device, config.precision, encoder.cls_attention)
    runs = runs_of(0, len(paths), BATCH)
    batches = in_batches(Squares(paths, config.image_size), runs, inputs.workers)
    masks = [attention_masks(extractor(batch).mean(dim=1), config.keep) for batch in batches]
    return torch.cat([mask.cpu() for mask in masks]).numpy()


def patch_clusters(maps: np.ndarray, config: Config) -> np.ndarray:
    """Return the cluster of every patch of maps (F, d, h, w), uint16 (F, h, w).

    K-means sees the pixels of the maps enlarged by nearest neighbours.
    """
    settings, size = config.kmeans(), config.map_size
    rows = training_rows(len(maps) * size * size, config.clusters, settings)
    if rows is None:
        points = upsampled(maps, size, "nearest")
    else:
        points = pixels_at(maps, size, rows, "nearest")
    centroids = kmeans(points, config.clusters, settings)
    images, width, *grid = maps.shape
    ids = np.empty((images, *grid), np.uint16)
    for start in range(0, images, PART):
        part = maps[start : start + PART].transpose(0, 2, 3, 1)
        ids[start : start + PART] = assign(part.reshape(-1, width), centroids).reshape(-1, *grid)
    return ids


def counts(ids: np.ndarray, attended: np.ndarray, truth: np.ndarray, num_clusters: int) -> Table:
    """Count the pixels of each cluster in each image.

    Args:
        ids: clusters (F, h, w).
        attended: bool (F, h, w).
        truth: classes (F, M, M).
        num_clusters: K.
    """
    found: list[list[np.ndarray]] = [[], [], [], []]
    for patches, looked, classes in zip(ids, attended, truth, strict=True):
        pixels = enlarged(patches, len(classes))
        everywhere, foreground = np.ones(classes.shape, bool), classes != 0
        inner = foreground & (classes != VOID)
        masks = (everywhere, enlarged(looked, len(classes)), foreground, inner)
        for column, mask in zip(found, masks, strict=True):
            column.append(cluster_counts(pixels, mask, num_clusters))
    return Table(*(np.stack(column) for column in found))


def enlarged(patches: np.ndarray, size: int) -> np.ndarray:
    """Enlarge (h, w) to (size, size) as torch's nearest neighbours do."""
    rows, columns = (
        F.interpolate(torch.arange(count, dtype=torch.float32)[None, None], size, mode="nearest")
        for count in patches.shape
    )
    return patches[_places(rows)[:, None], _places(columns)]


def segment(
    segmented: SegmentedSet,
    encoder: Encoder,
    inputs: Inputs,
    config: Config,
    work: Path,
    foreground: np.ndarray,
    truth: np.ndarray,
) -> Segmentation | None:
    """Cluster the foreground of a set into classes; None where ids have no meaning as classes.

    Args:
        segmented: the set.
        encoder: in eval mode, on the device.
        inputs: device and workers.
        config: settings.
        work: folder of what an interrupted call goes on from.
        foreground: bool (F, h, w).
        truth: classes (F, M, M).
    """
    if not (segmented.classes or config.foreground_only):
        log.info("the ids of '%s' are no classes: foreground only", segmented.name)
        return None
    names = class_names(segmented, config)
    maps = reduced_maps(
        encoder,
        [image for image, _, _ in segmented.frames],
        config.image_size,
        device=inputs.device,
        dimensions=config.dimensions,
        work=work,
        workers=inputs.workers,
        weights=foreground,
        precision=config.precision,
    )
    clusters = config.segmentation_clusters or len(names)
    log.info("%s: %d clusters of the foreground", segmented.name, clusters)
    ids = kept(work, "ids", lambda: cluster_maps(maps, clusters, config.map_size, config.kmeans()))
    table = add(
        contingency(truth[start : start + PART], ids[start : start + PART], void=VOID)
        for start in range(0, len(ids), PART)
    )
    return Segmentation(ids, names, matched_scores(table, "hungarian"))


def kept(work: Path, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the array that lies in the folder for the reduced maps there, or compute and keep
    it."""
    path = work / f"{name}-{maps_key(work)[:16]}.npy"
    if not path.is_file():
        found = compute()
        with atomic_path(path) as temporary:
            np.save(temporary, found)
    array: np.ndarray = np.load(path)
    return array


def _places(positions: Tensor) -> np.ndarray:
    return positions.flatten().long().numpy()
