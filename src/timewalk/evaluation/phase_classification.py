"""Phase of each frame from its frozen embedding.

Source: TCC and its released code. A classifier of single frames is fitted on all frames of the
first videos of the training split, for several shares of them, and scored on all frames of the test
split. Nothing is scaled or shuffled.

Shapes: F frames, K phases.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from timewalk.config import EvaluationConfig
from timewalk.evaluation.base import Inputs, Result, write_csv
from timewalk.evaluation.phase_embeddings import PhaseEmbeddings, load_both, phase_names
from timewalk.evaluation.phase_settings import (
    Fractions,
    features,
    first,
    joined,
    labels,
    percent,
    protocol,
)
from timewalk.evaluation.pictures import needed, save_figure
from timewalk.metrics.classification import confusion
from timewalk.metrics.phases import Classifier, Gamma, fit_classifier

log = logging.getLogger(__name__)


class Config(EvaluationConfig):
    """Accuracy of phases, frame by frame."""

    kind: Literal["phase_classification"] = "phase_classification"
    fractions: Fractions = [0.1, 0.5, 1.0]
    """shares of the training videos that are learnt from, each a result of its own; the first
    videos in the set's order, at least one"""
    classifier: Classifier = "svm"
    """`svm`: radial basis functions, C = 1; `logistic`: multinomial logistic regression, C = 1"""
    gamma: Gamma = "scale"
    """width of the basis functions: `scale`, 1 / (D variance); `auto`, 1 / D, which was
    scikit-learn's default when TCC was published"""


@dataclass(frozen=True)
class Scores:
    """The outcome for one share of the training videos.

    Attributes:
        fraction: the share.
        videos: how many these are.
        frames: of these videos.
        train: percent, on these frames.
        test: percent, on all test frames.
        predictions: int64 (F,), of all test frames.
    """

    fraction: float
    videos: int
    frames: int
    train: float
    test: float
    predictions: np.ndarray


def evaluate(inputs: Inputs, config: Config, output_dir: Path) -> Result:
    """Score a run's embeddings of videos.

    Args:
        inputs: embeddings of both splits.
        config: settings.
        output_dir: tables and the confusion matrix go here.

    Raises:
        UserError: a set without labels, files that do not belong together, a missing library.
    """
    train, test = load_both(inputs)
    names = phase_names(inputs, train, test)
    truth = np.concatenate(labels(test))
    scores = [_score(train, test, truth, fraction, config) for fraction in config.fractions]
    metrics: dict[str, float | None] = {"accuracy": scores[-1].test}
    for item in scores:
        key = f"{item.fraction:g}"
        metrics |= {f"accuracy_{key}": item.test, f"train_accuracy_{key}": item.train}
        log.info("%d videos: %.2f %% of the test frames", item.videos, item.test)
    width = f"-{config.gamma}" if config.classifier == "svm" else ""
    return Result(
        protocol=protocol(
            f"phase-{config.classifier}{width}", f"f{joined(config.fractions)}", of=test
        ),
        metrics=metrics,
        samples=len(truth),
        artefacts=_write(output_dir, scores, truth, names),
    )


def _score(
    train: PhaseEmbeddings,
    test: PhaseEmbeddings,
    truth: np.ndarray,
    fraction: float,
    config: Config,
) -> Scores:
    chosen = first(train, fraction)
    x, y = features(train, chosen), np.concatenate(labels(train)[: len(chosen)])
    predict = fit_classifier(x, y, config.classifier, config.gamma)
    found = predict(features(test))
    return Scores(
        fraction, len(chosen), len(x), percent(predict(x), y), percent(found, truth), found
    )


def _write(folder: Path, scores: list[Scores], truth: np.ndarray, names: list[str]) -> list[Path]:
    count = len(names)
    tables = [
        confusion(torch.from_numpy(truth), torch.from_numpy(item.predictions), count).numpy()
        for item in scores
    ]
    frames = tables[0].sum(1)
    shares = [f"{item.fraction:g}" for item in scores]
    rows = [[x.fraction, x.videos, x.frames, x.train, x.test] for x in scores]
    per_class = [
        [name, int(frames[i]), *(_recognised(table[i], i) for table in tables)]
        for i, name in enumerate(names)
    ]
    pairs = [
        [key, names[i], names[j], int(table[i, j])]
        for key, table in zip(shares, tables, strict=True)
        for i, j in np.argwhere(table).tolist()
    ]
    heads = ["fraction", "videos", "frames", "train_accuracy", "accuracy"]
    columns = ["class", "frames", *(f"accuracy_{key}" for key in shares)]
    return [
        draw(folder / "confusion.png", tables[-1], names),
        write_csv(folder / "fractions.csv", [heads, *rows]),
        write_csv(folder / "per_class.csv", [columns, *per_class]),
        write_csv(folder / "confusion.csv", [["fraction", "class", "predicted", "frames"], *pairs]),
    ]


def _recognised(row: np.ndarray, label: int) -> float | None:
    total = int(row.sum())
    return 100.0 * int(row[label]) / total if total else None


def draw(target: Path, table: np.ndarray, names: list[str]) -> Path:
    """Write a confusion matrix (K, K) in percent of each row's frames."""
    total = table.sum(1, keepdims=True)
    shares = 100 * table / np.maximum(total, 1)
    side = max(4.0, 0.6 * len(names) + 2)
    figure = needed("matplotlib.figure").Figure(figsize=(side, side))
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    for (i, j), value in np.ndenumerate(shares):
        colour = "white" if value > 50 else "black"
        axes.text(j, i, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted phase")
    axes.set_ylabel("phase; percent of its frames")
    return save_figure(target, figure)
