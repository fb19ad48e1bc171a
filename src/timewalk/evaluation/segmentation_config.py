"""Keys that the segmentation evaluations share, and the sets that they read."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from timewalk.config import EvaluationConfig, Name, Positive, Strict
from timewalk.data.segmented import SegmentedSet, open_segmented, picked
from timewalk.errors import UserError
from timewalk.evaluation.embed import Precision

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


class WithTraining(Strict):
    """Keys of an evaluation that learns from a training split."""

    train_dataset: Name | None = None
    """labelled set to learn from; null: the training split of `dataset` (still images only)"""


def scored_set(manifest: Path, config: SegmentationConfig) -> SegmentedSet:
    """Open the set that is scored, with the frames that the configuration picks."""
    return picked(open_segmented(manifest, "test"), config.frames_per_clip)


def training_set(
    manifest: Path, train_manifest: Path | None, config: SegmentationConfig
) -> SegmentedSet:
    """Open the set that is learnt from.

    Args:
        manifest: of the set that is scored.
        train_manifest: of the set that `train_dataset` names, if any: of videos all of it, of still
            images its training split.
        config: settings.

    Raises:
        UserError: a set of videos without `train_dataset`, or sets of different classes.
    """
    if train_manifest is None:
        return picked(open_segmented(manifest, "train"), config.frames_per_clip)
    found = open_segmented(train_manifest, "test")
    if not found.videos:
        found = open_segmented(train_manifest, "train")
    scored = open_segmented(manifest, "test")
    if found.classes != scored.classes:
        raise UserError(
            f"'{found.name}', which is learnt from, and '{scored.name}', which is scored, have "
            "different classes; correct the key 'train_dataset'."
        )
    return picked(found, config.frames_per_clip)
