"""Semi-supervised video object segmentation on DAVIS 2017 by label propagation: J and F.

Source: CRW, DINO and SMTC for the propagation, DAVIS 2017 for the scores. Written are the masks in
the layout of the official evaluation, its two tables, a JSON with every frame's value, and a video
of each sequence.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from timewalk.artefacts import atomic_path, read_manifest
from timewalk.data.generated import PALETTE_START, save_ids
from timewalk.data.sequences import KIND, VOID, LabelledVideos, read_ids
from timewalk.data.sequences import Sequence as Video
from timewalk.errors import UserError
from timewalk.evaluation.base import Inputs, Result
from timewalk.evaluation.davis_folders import Task as DavisTask
from timewalk.evaluation.davis_folders import score_folders
from timewalk.evaluation.davis_official import compare_with_official
from timewalk.evaluation.davis_tables import Scores, write_csv, write_scores
from timewalk.evaluation.label_propagation import (
    BeforeFrame,
    FrameFeatures,
    hard_labels,
    propagate,
    soft_labels,
    to_ids,
)
from timewalk.evaluation.over_videos import Notes, Task, VideosConfig, evaluate_videos
from timewalk.evaluation.overlays import write_overlay
from timewalk.evaluation.protocols import Protocol, ProtocolName, make_protocol


class Config(VideosConfig):
    """Video object segmentation by label propagation on a `davis2017` set."""

    kind: Literal["davis"] = "davis"
    protocol: ProtocolName = "crw"
    """whose procedure: they differ by several points and are never compared"""
    overlays: bool = True
    """write a video of each sequence: predicted masks in colour, true ones as white outlines"""
    tool: Literal["ours", "official"] = "ours"
    """`official`: run the official davis2017-evaluation too, and stop if its tables differ"""
    tool_path: str | None = None
    """folder of a clone of davis2017-evaluation; null: where the package `davis2017` lies"""
    tool_python: str | None = None
    """path of the Python that runs it, such as that of envs/davis.yaml; null: this one"""


def evaluate(inputs: Inputs, config: Config, output_dir: Path) -> Result:
    """Propagate the first annotation of every sequence, write the masks, and score them.

    Args:
        inputs: the run and the prepared set.
        config: settings.
        output_dir: `masks/<sequence>/<frame>.png`, `overlays/<sequence>.mp4`, the official tables
            and `davis_semi-supervised-<subset>.json` go here, as
            :func:`timewalk.evaluation.over_videos.evaluate_videos` says.

    Raises:
        UserError: a set of another layout, size or task, or sequences that failed; the others are
            kept.
    """
    check_set(inputs.dataset)

    def segment(
        video: Video, features: FrameFeatures, before: BeforeFrame | None, folder: Path
    ) -> dict[str, Any]:
        masks = segmentation(video, features, before)
        names = [f"{path.stem}.png" for path in video.frames]
        save_masks(folder / "masks" / video.name, names, masks)
        if config.overlays:
            write_overlay(folder / "overlays" / f"{video.name}.mp4", video, masks)
        return {}

    def score(folder: Path, videos: LabelledVideos, _: Notes) -> tuple[Scores, list[Path]]:
        found = scored(folder, videos, inputs.workers)
        files = [*write_csv(found, folder), write_scores(found, folder)]
        if config.tool == "official":
            compare_with_official(
                folder, videos.root, videos.subset, config.tool_path, config.tool_python
            )
        if config.overlays:
            files += [folder / "overlays" / f"{video.name}.mp4" for video in videos]
        return found, files

    task = Task(
        layout="davis2017",
        protocol=lambda encoder: make_protocol(config.protocol, config, encoder),
        do=segment,
        output=lambda video: f"masks/{video.name}",
        score=score,
        numbers=percent,
        main="JF_mean",
        samples=lambda found, _: len(found.rows()),
    )
    return evaluate_videos(inputs, config, output_dir, task)


def check_set(manifest: Path, task: DavisTask = "semi-supervised", kind: str = "davis") -> None:
    """Refuse sets of which the official scores are not to be had: they are given at 480p only, and
    annotations for the unsupervised task number the objects differently.

    Args:
        manifest: of the set.
        task: whose annotations it must have.
        kind: of the evaluation, for the message.

    Raises:
        UserError: names the set's key.
    """
    parameters = read_manifest(manifest, KIND)["parameters"]
    for key, needed in (("task", task), ("resolution", "480p")):
        found = parameters.get(key, needed)
        if found != needed and parameters["kind"] == "davis2017":
            raise UserError(
                f"{manifest} has the {key} '{found}', but evaluations of kind '{kind}' "
                f"score '{needed}'; name another set under the key 'dataset'."
            )


def segmentation(
    video: Video, features: FrameFeatures, before: BeforeFrame | None = None
) -> list[np.ndarray]:
    """Return the ids of every frame, uint8 (H, W) each, from those of the first.

    Raises:
        UserError: the first frame has no annotation, or no object in it.
    """
    protocol = features.protocol
    first = first_ids(video)
    channels = order_of_channels(first)
    if protocol.hard_labels:
        channels = list(range(int(first.max()) + 1))

    def labels(grid: tuple[int, int]) -> Tensor:
        if protocol.hard_labels:
            return hard_labels(first, grid)
        return soft_labels(first, channels, grid)

    between = features.input_size if protocol.minmax else output_size(protocol, video.size)
    masks = []
    for index, soft in enumerate(propagate(features, labels, before)):
        if index == 0 and protocol.hard_labels:
            masks.append(first)
            continue
        won = to_ids(soft, protocol, between, video.size)
        masks.append(np.asarray(channels, np.uint8)[won])
    return masks


def output_size(protocol: Protocol, size: tuple[int, int]) -> tuple[int, int]:
    """Return the size at which the labels of CRW and SMTC are decided: the frame's, or the square
    to which it was resized."""
    return (protocol.size, protocol.size) if isinstance(protocol.size, int) else size


def first_ids(video: Video) -> np.ndarray:
    """Return the first frame's ids, uint8 (H, W); void is background."""
    if video.masks[0] is None:
        raise UserError(f"sequence '{video.name}' has no annotation of its first frame; add it.")
    ids = read_ids(video.masks[0], video.size)
    ids[ids == VOID] = 0
    if not ids.any():
        raise UserError(f"{video.masks[0]} has no object; nothing can be propagated.")
    return ids


def order_of_channels(ids: np.ndarray) -> list[int]:
    """Return the ids of a mask in the order of CRW's channels, which decides ties: by blue, green
    and red of their colour in DAVIS's palette."""

    def colour(value: int) -> tuple[int, ...]:
        return PALETTE_START[value][::-1] if value < len(PALETTE_START) else (value,) * 3

    return sorted((int(value) for value in np.unique(ids)), key=colour)


def save_masks(folder: Path, names: Sequence[str], masks: Sequence[np.ndarray]) -> None:
    """Write ids as PNGs with DAVIS's palette; other PNGs in the folder are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in set(folder.glob("*.png")) - {folder / name for name in names}:
        stale.unlink()
    for name, mask in zip(names, masks, strict=True):
        with atomic_path(folder / name) as temporary:
            save_ids(temporary, mask)


def scored(
    folder: Path, videos: LabelledVideos, workers: int, task: DavisTask = "semi-supervised"
) -> Scores:
    """Return J and F of the masks in a folder.

    Args:
        folder: holds `masks/<sequence>/<frame>.png`.
        videos: the set.
        workers: processes.
        task: how masks and objects are paired.

    Raises:
        UserError: a sequence cannot be scored; the tables of the others are written.
    """
    names = [video.name for video in videos]
    scores = score_folders(
        folder / "masks",
        videos.root,
        task,
        videos.subset,
        workers=max(1, workers),
        sequences=names,
    )
    if scores.failures:
        files = [*write_csv(scores, folder), write_scores(scores, folder)]
        first = next(iter(scores.failures.values()))
        raise UserError(
            f"{len(scores.failures)} of {len(names)} sequences cannot be scored ({first}); the "
            f"others are in {files[0]}."
        )
    return scores


def percent(scores: Scores) -> dict[str, float | None]:
    """Return the global figures under our names, such as `JF_mean` and `J_recall`, in percent."""
    found: dict[str, float | None] = {}
    for name, value in scores.means().items():
        measure, statistic = name.split("-")
        found[f"{measure.replace('&', '')}_{statistic.lower()}"] = 100 * value
    return found
