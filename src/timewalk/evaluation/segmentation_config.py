"""Keys that the segmentation evaluations share, and the sets that they read."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from timewalk.config import EvaluationConfig, Name, Positive, Strict
from timewalk.data.segmented import SegmentedSet, open_segmented, picked
from timewalk.errors import UserError
from timewalk.evaluation.embed import Precision
from timewalk.ops.kmeans import KMeans

DIMENSIONS = 50
Side = Annotated[int, Field(ge=8)]


class SegmentationConfig(EvaluationConfig):
    """Keys of an evaluation of patch features against masks."""

    image_size: Side = 224
    """side in pixels of the square to which images are resized for the encoder"""
    map_size: Side = 112
    """side in pixels of the square maps on which classes are compared: features are upsampled to
    it, masks resized (nearest)"""
    frames_per_clip: Positive | None = 4
    """annotated frames of each video, evenly spread; null: all (still images: no meaning)"""
    foreground_only: bool = False
    """all objects are one class, the foreground"""
    precision: Precision = "fp32"
    """arithmetic of the encoder"""
    pictures: Annotated[int, Field(ge=0)] = 8
    """images, or videos, in the pictures of input, truth and prediction"""


class WithClusters(Strict):
    """Keys of an evaluation that clusters features by K-means."""

    dimensions: Positive = DIMENSIONS
    """principal components of the features that are clustered"""
    iterations: Positive = KMeans.iterations
    """of K-means, in each redo"""
    redos: Positive = KMeans.redos
    """starts of K-means from other centroids; the best is kept"""
    points_per_centroid: Positive = KMeans.max_points_per_centroid
    """of more pixels than this times the clusters, a random part makes the centroids"""
    variant: Literal["published", "fast"] = "published"
    """`published`: faiss with the settings above; `fast`: fewer iterations and starts"""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = KMeans.seed
    """of K-means"""

    def kmeans(self) -> KMeans:
        """Return the settings of K-means."""
        return KMeans(
            self.iterations, self.redos, self.points_per_centroid, self.seed, self.variant
        )

    def cluster_title(self, dimensions: int) -> list[str]:
        """Return what of these settings is not as published, for the protocol's name.

        Args:
            dimensions: components that there were.
        """
        parts, usual, own = [], KMeans(), self.kmeans()
        if dimensions != DIMENSIONS:
            parts.append(f"d{dimensions}")
        if (own.iterations, own.redos) != (usual.iterations, usual.redos):
            parts.append(f"i{own.iterations}x{own.redos}")
        if own.max_points_per_centroid != usual.max_points_per_centroid:
            parts.append(f"p{own.max_points_per_centroid}")
        if own.variant != usual.variant:
            parts.append(own.variant)
        if own.seed != usual.seed:
            parts.append(f"seed{own.seed}")
        return parts


class WithTraining(Strict):
    """Keys of an evaluation that learns from a training split."""

    train_dataset: Name | None = None
    """labelled set to learn from; null: the training split of `dataset` (still images only)"""


def scored_set(manifest: Path, config: SegmentationConfig) -> SegmentedSet:
    """Open the set that is scored, with the frames that the configuration picks.

    Raises:
        UserError: only the foreground counts, and the set has no background.
    """
    found = open_segmented(manifest, "test")
    if config.foreground_only:
        check_background(found, "foreground_only: true")
    return picked(found, config.frames_per_clip)


def check_background(segmented: SegmentedSet, what: str) -> None:
    """Refuse a set whose class 0 is a class like the others.

    Raises:
        UserError: names the set and what needs a background.
    """
    if not segmented.background:
        raise UserError(
            f"every pixel of '{segmented.name}' has a class and none is background, which {what} "
            "needs; name another labelled set."
        )


def training_set(
    manifest: Path,
    train_manifest: Path | None,
    config: SegmentationConfig,
    *,
    same_classes: bool = True,
) -> SegmentedSet:
    """Open the set that is learnt from.

    Args:
        manifest: of the set that is scored.
        train_manifest: of the set that `train_dataset` names, if any: of videos all of it, of still
            images its training split.
        config: settings.
        same_classes: whether both sets must have the same classes.

    Raises:
        UserError: a set of videos without `train_dataset`, sets of different classes, or images
            that are scored too.
    """
    scored = open_segmented(manifest, "test")
    if train_manifest is None:
        found = open_segmented(manifest, "train")
    else:
        found = open_segmented(train_manifest, "test")
        if not found.videos:
            found = open_segmented(train_manifest, "train")
    if config.foreground_only:
        check_background(found, "foreground_only: true")
    elif same_classes and found.classes != scored.classes:
        raise UserError(
            f"'{found.name}', which is learnt from, and '{scored.name}', which is scored, have "
            "different classes; correct the key 'train_dataset', or set foreground_only: true."
        )
    both = {frame for frame, _, _ in found.frames} & {frame for frame, _, _ in scored.frames}
    if both:
        raise UserError(
            f"{min(both)} and {len(both) - 1} other images of '{scored.name}' are learnt from and "
            "scored; name a set without them under 'train_dataset'."
        )
    return picked(found, config.frames_per_clip)
