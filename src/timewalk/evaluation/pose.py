"""Human pose on JHMDB by label propagation: percentage of correct keypoints.

Source: CRW's evaluation on JHMDB. The first frame's joints become heat maps on the grid of cells, a
channel each; they are propagated as CRW propagates masks, and read out again as coordinates.

Shapes: J joints, T frames, h and w cells.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from timewalk.artefacts import atomic_path
from timewalk.data.sequences import JOINTS, LabelledVideos, read_joints
from timewalk.data.sequences import Sequence as Video
from timewalk.errors import UserError
from timewalk.evaluation.base import Inputs, Result, write_csv
from timewalk.evaluation.label_propagation import BeforeFrame, FrameFeatures, propagate
from timewalk.evaluation.over_videos import Notes, Task, VideosConfig, evaluate_videos
from timewalk.evaluation.overlays import write_pose_overlay
from timewalk.evaluation.protocols import make_protocol
from timewalk.metrics.keypoints import pck, relative_distances

CONTEXT = 7
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
SIGMA = 0.5
"""of a joint's heat map in cells"""
READ_OUT = 3
"""cells whose weighted mean is a joint's position"""


class Config(VideosConfig):
    """Pose by label propagation on a `jhmdb` set, by CRW's procedure."""

    kind: Literal["jhmdb"] = "jhmdb"
    crop_size: Annotated[int, Field(ge=16)] = 320
    """side in pixels of the square to which frames are resized, whatever their shape"""


def evaluate(inputs: Inputs, config: Config, output_dir: Path) -> Result:
    """Propagate the first frame's joints through every video, and score all joints.

    Args:
        inputs: the run and the prepared set.
        config: settings.
        output_dir: `poses/<video>.npy`, (2, J, T) in cells of the grid, -1 where a joint is lost,
            and `joints.csv` go here, as
            :func:`timewalk.evaluation.over_videos.evaluate_videos` says.

    Raises:
        UserError: a set of another layout, or videos that failed; the others are kept.
    """

    def track(
        video: Video, features: FrameFeatures, before: BeforeFrame | None, folder: Path
    ) -> dict[str, Any]:
        found, grid = poses(video, features, before)
        target = folder / "poses" / f"{video.name}.npy"
        with atomic_path(target) as temporary, temporary.open("wb") as file:
            np.save(file, found)
        if config.overlays:
            place = folder / "overlays" / f"{video.name}.mp4"
            write_pose_overlay(place, video, in_pixels(found, grid, video.size))
        return {"grid": list(grid)}

    def score(folder: Path, videos: LabelledVideos, notes: Notes) -> tuple[Any, list[Path]]:
        shares = correct(folder, videos, {name: note["grid"] for name, note in notes.items()})
        header = ["joint", *(f"PCK@{x:g}" for x in THRESHOLDS)]
        rows = [
            [joint, *(None if np.isnan(x) else f"{x:.6g}" for x in column)]
            for joint, column in enumerate(shares.T, 1)
        ]
        files = [write_csv(folder / "joints.csv", [header, *rows])]
        if config.overlays:
            files += [folder / "overlays" / f"{video.name}.mp4" for video in videos]
        return shares, files

    task: Task[Any] = Task(
        layout="jhmdb",
        protocol=lambda encoder: make_protocol(
            "crw", config, encoder, context=CONTEXT, size=config.crop_size
        ),
        do=track,
        output=lambda video: f"poses/{video.name}.npy",
        score=score,
        numbers=numbers,
        main="PCK_0.1",
        samples=lambda _, videos: len(videos),
    )
    return evaluate_videos(inputs, config, output_dir, task)


def poses(
    video: Video, features: FrameFeatures, before: BeforeFrame | None = None
) -> tuple[np.ndarray, tuple[int, int]]:
    """Return joints in every frame, (2, J, T) as column and row in cells, and the grid (h, w)."""
    truth = truth_of(video)
    grids = []

    def labels(grid: tuple[int, int]) -> Tensor:
        grids.append(grid)
        return heat_maps(truth[:, :, 0], grid, video.size)

    found = [read_out(soft) for soft in propagate(features, labels, before)]
    return np.stack(found, axis=-1), grids[0]


def truth_of(video: Video) -> np.ndarray:
    """Return the true joints of a video, (2, J, T) in pixels.

    Raises:
        UserError: no file of joints, or another number of frames in it.
    """
    if video.joints is None:
        raise UserError(f"sequence '{video.name}' has no joint positions; prepare the set again.")
    truth = read_joints(video.joints)
    if truth.shape[2] != len(video.frames):
        raise UserError(
            f"{video.joints} has joints of {truth.shape[2]} frames, but sequence '{video.name}' "
            f"has {len(video.frames)}; restore the published files."
        )
    return truth


def heat_maps(joints: np.ndarray, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Return labels (1 + J, h, w) of joints (2, J) in pixels: background, then a blob each.

    A blob covers 4 x 4 cells, less at the border, and nothing for a joint outside of the grid.

    Args:
        joints: x and y.
        grid: (h, w).
        size: (height, width) of the frame in pixels.
    """
    h, w = grid
    scale = np.array([[w / size[1]], [h / size[0]]])
    maps = np.zeros((1 + joints.shape[1], h, w), np.float32)
    for channel, (x, y) in enumerate((joints * scale).T, start=1):
        columns, rows = _blob(x, w), _blob(y, h)
        maps[channel] = rows[:, None] * columns
    maps[0] = maps[1:].sum(axis=0) == 0
    return torch.from_numpy(maps)


def _blob(position: float, cells: int) -> np.ndarray:
    """Return one axis of a blob, (cells,); truncation toward 0 shifts it near the first cell."""
    first, end = int(position - 1.5), int(position + 2.5)
    values = np.zeros(cells)
    inside = np.arange(max(first, 0), min(end, cells))
    values[inside] = np.exp(-np.square(inside - (first + 2)) / (2 * SIGMA**2))
    return values


def read_out(soft: Tensor) -> np.ndarray:
    """Return joints (2, J), column and row in cells, of soft labels (1 + J, h, w).

    The mean of the three strongest cells, weighted by their values; -1 where a map is empty.
    """
    width = soft.shape[2]
    values, cells = soft[1:].flatten(1).topk(min(READ_OUT, soft[0].numel()), dim=1)
    total = values.sum(1)
    weights = values / total.clamp_min(torch.finfo(values.dtype).tiny)[:, None]
    columns, rows = ((weights * place).sum(1) for place in (cells % width, cells // width))
    found = torch.stack([columns, rows])
    found[:, total == 0] = -1
    return found.cpu().numpy()


def in_pixels(joints: np.ndarray, grid: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Return joints (2, J, T) in pixels from those in cells; lost ones stay negative."""
    scale = np.array([size[1] / grid[1], size[0] / grid[0]])
    return joints * scale[:, None, None]


def correct(folder: Path, videos: LabelledVideos, grids: dict[str, list[int]]) -> np.ndarray:
    """Return the percentage of correct joints, (thresholds, J), of all frames but the first."""
    distances = []
    for video in videos:
        found = np.load(folder / "poses" / f"{video.name}.npy")
        h, w = grids[video.name]
        predicted = in_pixels(found, (h, w), video.size)
        distances.append(relative_distances(predicted[..., 1:], truth_of(video)[..., 1:]))
    if not any(part.size for part in distances):
        raise UserError("no video of the set has a second frame; there is nothing to score.")
    return pck(distances, THRESHOLDS)


def numbers(shares: np.ndarray) -> dict[str, float | None]:
    """Return the mean over joints of each threshold's percentage."""
    found: dict[str, float | None] = {}
    for threshold, row in zip(THRESHOLDS, shares, strict=True):
        seen = row[~np.isnan(row)]
        found[f"PCK_{threshold:g}"] = float(seen.mean()) if len(seen) else None
    assert shares.shape[1] == JOINTS
    return found
