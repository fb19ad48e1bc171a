"""The first mask of a video carried through it by patch features: IoU of each object.

Source: TimeT's released mask propagation. Its feature-forwarder carries the labels: frame 0 and the
last ``context`` frames vote, each patch within a square window. By default every object is scored
by its own id; ``compat: published`` scores as the released code does, which matches ids frame by
frame though they are known, and compares each prediction with the mask of the frame before it.

Shapes: F frames, C ids of the first mask, S side of a resized frame, M side of the maps, h and w
cells.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from timewalk.config import Positive
from timewalk.data.segmented import SegmentedClip, SegmentedSet, Squares, read_square
from timewalk.data.sequences import VOID
from timewalk.encoders import encoder_digest, load_encoder
from timewalk.errors import UserError
from timewalk.evaluation.base import Inputs, Result, write_csv
from timewalk.evaluation.embed import Extractor
from timewalk.evaluation.feature_file import PART, check_finite
from timewalk.evaluation.label_propagation import one_hot
from timewalk.evaluation.mask_pictures import write_gif
from timewalk.evaluation.over_videos import each_video
from timewalk.evaluation.segmentation_config import SegmentationConfig, Side, scored_set
from timewalk.evaluation.segmentation_pairs import (
    check_side,
    in_batches,
    read_target,
    runs_of,
    title,
)
from timewalk.metrics.davis import region_similarity
from timewalk.metrics.matching import contingency, matched_scores
from timewalk.ops.propagation import Propagation, Propagator

log = logging.getLogger(__name__)

PUBLISHED_OFFSET = 1
"""frames that the published code's predictions are ahead of the masks they are compared with"""
FRAMES = {"intended": 2, "published": 3}
"""frames that a video needs at least"""
NOT_FOR_RESULTS = {"runs", "pictures"}
"""keys that change no video's scores"""


class Config(SegmentationConfig):
    """IoU of masks that are propagated from a video's first one."""

    kind: Literal["propagation_iou"] = "propagation_iou"
    map_size: Side = 224
    """side in pixels of the squares on which masks are compared"""
    frames_per_clip: Annotated[int, Field(ge=2)] | None = 25
    """annotated frames of each video, evenly spread; null: all"""
    context: Positive = 4
    """previous frames that a frame takes labels from, besides the first"""
    window: Annotated[int, Field(ge=0)] = 12
    """rows and columns of cells that a neighbour may lie off; 0: no limit"""
    top_k: Positive = 5
    """neighbours that vote for a cell; all that tie with the last count too"""
    temperature: Annotated[float, Field(gt=0)] = 0.1
    """of the softmax over the neighbours' cosines"""
    upsample: Literal["bilinear", "nearest"] = "bilinear"
    """how soft labels are enlarged from cells to the map before the largest decides"""
    compat: Literal["intended", "published"] = "intended"
    """`published`: Hungarian matching in each frame, background left out, and the prediction for a
    frame against the mask of the one before"""


def evaluate(inputs: Inputs, config: Config, output_dir: Path) -> Result:
    """Propagate the first mask of every video and score the others.

    Args:
        inputs: the run and the set, of videos.
        config: settings.
        output_dir: `videos.csv`, `objects.csv` and `gifs/<video>.gif` (input, truth, prediction) go
            here, and notes of the videos that are done into `work/`.

    Raises:
        UserError: a set of still images, or without a video to score, an image size that the
            network cannot read, or videos that failed; the others are kept.
    """
    scored = scored_set(inputs.dataset, config)
    if not scored.videos:
        raise UserError(
            f"'{scored.name}' holds still images, but evaluations of kind '{config.kind}' need "
            "videos; name another set under the key 'dataset'."
        )
    encoder = load_encoder(inputs.run).eval().requires_grad_(False).to(inputs.device)
    check_side(encoder, config.image_size)
    extractor = Extractor(encoder, inputs.device, config.precision, encoder.dense)
    clips = usable(scored, config)
    drawn = {
        clip.name: output_dir / "gifs" / f"{clip.name}.gif" for clip in clips[: config.pictures]
    }

    def do(clip: SegmentedClip) -> dict[str, Any]:
        truth = [true_map(clip, place, config) for place in range(len(clip.frames))]
        maps = list(propagated(clip, truth[0], extractor, config, inputs.workers))
        if clip.name in drawn:
            squares = [read_square(path, config.map_size) for path in clip.frames]
            pixels = [square.transpose(1, 2, 0) for square in squares]
            write_gif(drawn[clip.name], list(zip(pixels, truth, maps, strict=True)))
        frames = len(clip.frames)
        if config.compat == "published":
            return {"frames": frames, "miou": published_score(truth, maps), "objects": {}}
        objects = object_scores(truth, maps)
        return {"frames": frames, "miou": float(np.mean([*objects.values()])), "objects": objects}

    key = {
        "encoder": encoder_digest(inputs.run),
        "dataset": scored.digest,
        "config": config.model_dump(mode="json", exclude=NOT_FOR_RESULTS),
    }
    lacking = {name for name, path in drawn.items() if not path.is_file()}
    kept = {clip.name for clip in clips} - lacking
    notes = each_video(clips, output_dir / "work", key, do, kept=kept)
    files = [*tables(notes, output_dir, config), *drawn.values()]
    metrics: dict[str, float | None] = {
        "miou": 100 * float(np.mean([note["miou"] for note in notes.values()]))
    }
    if config.compat == "intended":
        every = [iou for note in notes.values() for iou in note["objects"].values()]
        metrics |= {"miou_objects": 100 * float(np.mean(every)), "objects": float(len(every))}
    return Result(protocol(config, scored), metrics, len(notes), files)


def protocol(config: Config, scored: SegmentedSet) -> str:
    """Return the protocol's name; what differs from the published one is part of it."""
    name = "propagation_iou" + ("-published" if config.compat == "published" else "")
    name += f"-{title(config, scored)}"
    marks = {"context": "n", "window": "r", "top_k": "k", "temperature": "t"}
    fields = type(config).model_fields
    own = [
        f"{mark}{value:g}"
        for key, mark in marks.items()
        if (value := getattr(config, key)) != fields[key].default
    ]
    return "-".join([name, *own, *(["nearest"] if config.upsample == "nearest" else [])])


def usable(scored: SegmentedSet, config: Config) -> list[SegmentedClip]:
    """Return the videos that can be scored: of frames enough, with an object in the first mask. The
    others are told in the log.

    Raises:
        UserError: there is none, or a first mask cannot be read.
    """
    needed, found = FRAMES[config.compat], []
    for clip in scored.clips:
        if len(clip.frames) < needed:
            few = len(clip.frames)
            log.warning("%s is left out: %d annotated frames of %d", clip.name, few, needed)
        elif not ids_of(true_map(clip, 0, config)).any():
            log.warning("%s is left out: no object in %s", clip.name, clip.masks[0])
        else:
            found.append(clip)
    if not found:
        raise UserError(
            f"no video of '{scored.name}' has {needed} annotated frames and an object in the first "
            "of them; raise frames_per_clip if it is smaller, or name another set under the key "
            "'dataset'."
        )
    return found


def true_map(clip: SegmentedClip, place: int, config: Config) -> np.ndarray:
    """Return the true ids of a frame, uint8 (M, M); 255 is void."""
    frame = clip.frames[place], clip.masks[place], clip.lookup
    return read_target(frame, config.map_size, config.foreground_only)


def ids_of(truth: np.ndarray) -> np.ndarray:
    """Return the ids of a mask in ascending order, the background first, without void."""
    return np.union1d([0], truth[truth != VOID])


def propagated(
    clip: SegmentedClip, first: np.ndarray, extractor: Extractor, config: Config, workers: int
) -> Iterator[np.ndarray]:
    """Yield the ids of every frame, uint8 (M, M): of the first as they are given, void as
    background."""
    channels = ids_of(first)
    first = np.where(first == VOID, 0, first).astype(np.uint8)
    propagator = None
    for features in frame_features(clip, extractor, config.image_size, workers):
        if propagator is None:
            labels = first_labels(first, channels.tolist(), tuple(features.shape[1:]), config)
            propagator = Propagator(settings_of(config), features, labels.to(features.device))
            yield first
            continue
        soft = propagator.step(features)
        yield channels.astype(np.uint8)[winners(soft, config)]


def settings_of(config: Config) -> Propagation:
    """Return how labels are propagated: as the feature-forwarder does."""
    return Propagation(
        context=config.context,
        top_k=config.top_k,
        temperature=config.temperature,
        radius=config.window or float("inf"),
        window="square",
        fill=False,
        keep_ties=True,
    )


def first_labels(
    first: np.ndarray, channels: Sequence[int], grid: tuple[int, ...], config: Config
) -> Tensor:
    """Return the first frame's labels on the cells, (C, h, w): one-hot, resized by nearest
    neighbour; a cell takes the pixel at its centre, as published that at its top left."""
    how = "nearest" if config.compat == "published" else "nearest-exact"
    return F.interpolate(one_hot(first, channels)[None], grid, mode=how)[0]


def frame_features(
    clip: SegmentedClip, extractor: Extractor, size: int, workers: int
) -> Iterator[Tensor]:
    """Yield the features of each frame, (D, h, w)."""
    runs = runs_of(0, len(clip.frames), PART)
    for batch in in_batches(Squares(clip.frames, size), runs, workers):
        found = extractor(batch)
        check_finite(found, f"the frames of '{clip.name}'")
        yield from found


def winners(soft: Tensor, config: Config) -> np.ndarray:
    """Return the channel that wins at each pixel, int64 (M, M), of soft labels (C, h, w)."""
    size = (config.map_size, config.map_size)
    if config.upsample == "nearest":
        large = F.interpolate(soft[None], size, mode="nearest-exact")
    else:
        large = F.interpolate(soft[None], size, mode="bilinear", align_corners=False)
    return large[0].argmax(0).cpu().numpy()


def object_scores(truth: Sequence[np.ndarray], maps: Sequence[np.ndarray]) -> dict[str, float]:
    """Return the IoU of each object of the first mask, by its id: the mean over the frames after
    the first; 1 in a frame where it is neither there nor predicted."""
    pairs = list(zip(truth, maps, strict=True))[1:]
    return {
        str(number): float(
            np.mean([region_similarity(t == number, m == number, t == VOID) for t, m in pairs])
        )
        for number in ids_of(truth[0]).tolist()[1:]
    }


def published_score(truth: Sequence[np.ndarray], maps: Sequence[np.ndarray]) -> float:
    """Return the mean over frames of the mIoU after matching, without background, of each frame's
    mask and the prediction for the next one; the first mask is not scored, nor are void ones.

    Raises:
        UserError: nothing is left.
    """
    found = []
    for place in range(1, len(maps) - PUBLISHED_OFFSET):
        table = contingency(truth[place], maps[place + PUBLISHED_OFFSET], void=VOID)
        if table.counts.size:
            found.append(matched_scores(table, "hungarian").miou_without_background)
    if not found:
        raise UserError("every mask after the first is void; leave the video out.")
    return float(np.mean(found))


def tables(notes: dict[str, dict[str, Any]], folder: Path, config: Config) -> list[Path]:
    """Write the scores of the videos, and of their objects where these have any; percent."""
    rows: list[list[object]] = [["video", "frames", "objects", "iou"]]
    objects: list[list[object]] = [["video", "object", "iou"]]
    for name, note in notes.items():
        of_video = note["objects"]
        rows.append([name, note["frames"], len(of_video) or None, f"{100 * note['miou']:.6g}"])
        objects += [[name, number, f"{100 * iou:.6g}"] for number, iou in of_video.items()]
    files = [write_csv(folder / "videos.csv", rows)]
    if config.compat == "intended":
        files.append(write_csv(folder / "objects.csv", objects))
    return files
