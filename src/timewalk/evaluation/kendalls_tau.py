"""How well nearest neighbours keep the order of time between videos.

Source: TCC and its released code. For every ordered pair of videos of a split: the nearest frame in
the second of each frame of the first, and Kendall's tau-b between time and those. No labels are
needed.

Shapes: V videos.
"""

import logging
from pathlib import Path
from typing import Literal

import numpy as np

from timewalk.config import EvaluationConfig, Positive
from timewalk.evaluation.base import Inputs, Result, write_csv
from timewalk.evaluation.phase_embeddings import PhaseEmbeddings, load_both
from timewalk.evaluation.phase_settings import protocol
from timewalk.evaluation.pictures import needed, save_figure
from timewalk.metrics.phases import Distance, tau_matrix

log = logging.getLogger(__name__)


class Config(EvaluationConfig):
    """Kendall's tau between time and nearest frames."""

    kind: Literal["kendalls_tau"] = "kendalls_tau"
    stride: Positive = 5
    """every how many-th embedded frame counts; the authors advise 2 for Pouring, 5 for Penn
    Action"""
    distance: Distance = "sqeuclidean"
    """between frames: squared Euclidean or `cosine`"""


def evaluate(inputs: Inputs, config: Config, output_dir: Path) -> Result:
    """Score a run's embeddings of videos.

    Args:
        inputs: embeddings of both splits.
        config: settings.
        output_dir: `tau.csv` and `tau.png`, of the test split, go here.

    Raises:
        UserError: files that do not belong together, or matplotlib is missing.
    """
    splits = dict(zip(("train", "test"), load_both(inputs), strict=True))
    metrics: dict[str, float | None] = {}
    artefacts: list[Path] = []
    for split, found in splits.items():
        prefix = "train_" if split == "train" else ""
        matrix = tau_matrix([x.embeddings for x in found.videos], config.stride, config.distance)
        scored = ~np.isnan(matrix)
        metrics[f"{prefix}tau"] = _mean(matrix, split)
        metrics[f"{prefix}pairs"] = int(scored.sum())
        if split == "test":
            artefacts = _write(output_dir, matrix, found)
    return Result(
        protocol=protocol(f"tau-b-{config.distance}", f"s{config.stride}", of=splits["test"]),
        metrics={name: metrics[name] for name in ("tau", "pairs", "train_tau", "train_pairs")},
        samples=len(splits["test"].videos),
        artefacts=artefacts,
    )


def _mean(matrix: np.ndarray, split: str) -> float | None:
    found = matrix[~np.isnan(matrix)]
    if len(matrix) < 2:
        log.warning("the %s split has one video: there is no pair, and no tau", split)
        return None
    if len(found) == 0:
        log.warning(
            "no pair of videos of the %s split has a tau: each has one frame, or all its nearest "
            "frames are the same",
            split,
        )
        return None
    return float(found.mean())


def _write(folder: Path, matrix: np.ndarray, found: PhaseEmbeddings) -> list[Path]:
    names = [video.name for video in found.videos]
    rows = [
        [names[i], names[j], None if np.isnan(tau) else float(tau)]
        for (i, j), tau in np.ndenumerate(matrix)
        if i != j
    ]
    return [
        draw(folder / "tau.png", matrix, names),
        write_csv(folder / "tau.csv", [["video", "other", "tau"], *rows]),
    ]


def draw(target: Path, matrix: np.ndarray, names: list[str]) -> Path:
    """Write the matrix (V, V) in colours, grey where there is no tau."""
    side = max(4.0, min(12.0, 0.25 * len(names) + 3))
    figure = needed("matplotlib.figure").Figure(figsize=(side, side))
    axes = figure.add_subplot()
    colours = needed("matplotlib").colormaps["RdBu"].with_extremes(bad="lightgrey")
    image = axes.imshow(np.ma.masked_invalid(matrix), cmap=colours, vmin=-1, vmax=1)
    if len(names) <= 40:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
        axes.set_yticks(range(len(names)), names, fontsize=6)
    axes.set_xlabel("video with the nearest frames")
    axes.set_ylabel("video whose order is asked for")
    figure.colorbar(image, shrink=0.7, label="Kendall's tau-b")
    return save_figure(target, figure)
