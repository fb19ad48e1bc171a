"""Body parts and garments on VIP by label propagation: mean IoU.

Source: CRW's evaluation on VIP. Labels are propagated on squares of 560 pixels; one confusion
matrix over all frames of all videos, the first frames among them.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from timewalk.data.sequences import LabelledVideos, read_ids
from timewalk.data.sequences import Sequence as Video
from timewalk.errors import UserError
from timewalk.evaluation.base import Inputs, Result, write_csv
from timewalk.evaluation.label_propagation import (
    BeforeFrame,
    FrameFeatures,
    nearest,
    propagate,
    soft_labels,
    to_ids,
)
from timewalk.evaluation.over_videos import Notes, Task, VideosConfig, evaluate_videos
from timewalk.evaluation.overlays import write_overlay
from timewalk.evaluation.protocols import make_protocol
from timewalk.evaluation.video_segmentation import first_ids, save_masks
from timewalk.metrics.segmentation import SegmentationScores, confusion, scores

CONTEXT = 4
CLASSES = (
    "background",
    "hat",
    "hair",
    "sun-glasses",
    "upper-clothes",
    "dress",
    "coat",
    "socks",
    "pants",
    "gloves",
    "scarf",
    "skirt",
    "torso-skin",
    "face",
    "right-arm",
    "left-arm",
    "right-leg",
    "left-leg",
    "right-shoe",
    "left-shoe",
)


class Config(VideosConfig):
    """Body parts by label propagation on a `vip` set, by CRW's procedure."""

    kind: Literal["vip"] = "vip"
    crop_size: Annotated[int, Field(ge=16)] = 560
    """side in pixels of the square to which frames and masks are resized, whatever their shape"""


def evaluate(inputs: Inputs, config: Config, output_dir: Path) -> Result:
    """Propagate the first frame's parts through every video, and score all frames.

    Args:
        inputs: the run and the prepared set.
        config: settings.
        output_dir: `masks/<video>/<frame>.png` and `classes.csv` go here, as
            :func:`timewalk.evaluation.over_videos.evaluate_videos` says.

    Raises:
        UserError: a set of another layout, or videos that failed; the others are kept.
    """

    def segment(
        video: Video, features: FrameFeatures, before: BeforeFrame | None, folder: Path
    ) -> dict[str, Any]:
        masks = parts(video, features, config.crop_size, before)
        names = [f"{path.stem}.png" for path in video.frames]
        save_masks(folder / "masks" / video.name, names, masks)
        if config.overlays:
            write_overlay(folder / "overlays" / f"{video.name}.mp4", video, masks)
        return {"confusion": confused(video, masks).tolist()}

    def score(
        folder: Path, videos: LabelledVideos, notes: Notes
    ) -> tuple[SegmentationScores, list[Path]]:
        found = scores(np.sum([note["confusion"] for note in notes.values()], axis=0))
        rows = [
            [name, None if np.isnan(iou) else f"{100 * iou:.6g}"]
            for name, iou in zip(CLASSES, found.iou, strict=True)
        ]
        files = [write_csv(folder / "classes.csv", [["class", "IoU"], *rows])]
        if config.overlays:
            files += [folder / "overlays" / f"{video.name}.mp4" for video in videos]
        return found, files

    task = Task(
        layout="vip",
        protocol=lambda encoder: make_protocol(
            "crw", config, encoder, context=CONTEXT, size=config.crop_size
        ),
        do=segment,
        output=lambda video: f"masks/{video.name}",
        score=score,
        numbers=percent,
        main="mIoU",
        samples=lambda _, videos: len(videos),
    )
    return evaluate_videos(inputs, config, output_dir, task)


def parts(
    video: Video, features: FrameFeatures, side: int, before: BeforeFrame | None = None
) -> list[np.ndarray]:
    """Return the ids of every frame, uint8 (H, W) each, from those of the first.

    Args:
        video: the sequence.
        features: of its frames.
        side: of the square in pixels at which labels begin and are decided.
        before: called before each frame but the first.
    """
    first = nearest(first_ids(video), (side, side))
    channels = [int(value) for value in np.unique(first)]
    softs = propagate(features, lambda grid: soft_labels(first, channels, grid), before)
    won = (to_ids(soft, features.protocol, (side, side), video.size) for soft in softs)
    return [np.asarray(channels, np.uint8)[mask] for mask in won]


def confused(video: Video, masks: list[np.ndarray]) -> np.ndarray:
    """Return the confusion matrix (20, 20) of a video's frames with annotation.

    Raises:
        UserError: the first annotation holds a part that VIP does not know.
    """
    total = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
    for path, mask in zip(video.masks, masks, strict=True):
        if mask.max() >= len(CLASSES):
            raise UserError(
                f"{video.masks[0]} has the id {mask.max()}, but VIP has ids 0 to "
                f"{len(CLASSES) - 1}; restore the published file."
            )
        if path is not None:
            total += confusion(read_ids(path, video.size), mask, len(CLASSES))
    return total


def percent(found: SegmentationScores) -> dict[str, float | None]:
    """Return the four published figures in percent."""
    return {
        "mIoU": 100 * found.mean_iou,
        "overall_accuracy": 100 * found.overall_accuracy,
        "mean_accuracy": 100 * found.mean_accuracy,
        "weighted_IoU": 100 * found.weighted_iou,
    }
