"""Phase of each frame with few labelled videos.

Source: TCC and its released code. In each episode k training videos are drawn; a classifier of
single frames is fitted on all their frames and scored on all frames of the test split. The draws
are the published ones.
"""

import logging
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, field_validator

from timewalk.config import EvaluationConfig, Positive
from timewalk.evaluation.base import Inputs, Result, write_csv
from timewalk.evaluation.phase_embeddings import load_both, phase_names
from timewalk.evaluation.phase_settings import features, finite, joined, labels, protocol
from timewalk.evaluation.pictures import needed, save_figure
from timewalk.metrics.phases import (
    Classifier,
    Episodes,
    Gamma,
    confidence,
    draw_episodes,
    score_episodes,
    standard_error,
)

log = logging.getLogger(__name__)


class Config(EvaluationConfig):
    """Accuracy of phases after few labelled videos."""

    kind: Literal["few_shot"] = "few_shot"
    labelled: Annotated[list[Positive], Field(min_length=1)] = list(range(1, 11))
    """numbers of labelled videos, each a result of its own; above the training videos: all"""
    episodes: Positive = 50
    """draws for each of these numbers"""
    classifier: Classifier = "svm"
    """`svm`: radial basis functions, C = 1; `logistic`: multinomial logistic regression, C = 1"""
    gamma: Gamma = "scale"
    """width of the basis functions: `scale`, 1 / (D variance); `auto`, 1 / D"""

    @field_validator("labelled")
    @classmethod
    def _no_doubles(cls, value: list[int]) -> list[int]:
        if len(set(value)) < len(value):
            raise ValueError("each number may stand once")
        return value


def evaluate(inputs: Inputs, config: Config, output_dir: Path) -> Result:
    """Score a run's embeddings of videos.

    Args:
        inputs: embeddings of both splits.
        config: settings.
        output_dir: `episodes.csv` and `few_shot.png` go here.

    Raises:
        UserError: a set without labels, files that do not belong together, a missing library.
    """
    train, test = load_both(inputs)
    phase_names(inputs, train, test)
    videos = [(x.embeddings, y) for x, y in zip(train.videos, labels(train), strict=True)]
    scored = (features(test), np.concatenate(labels(test)))
    if max(config.labelled) > len(videos):
        log.warning(
            "labelled %s: there are %d training videos, all of which are used",
            [k for k in config.labelled if k > len(videos)],
            len(videos),
        )
    drawn = draw_episodes(len(videos), config.labelled, config.episodes)
    threads = torch.get_num_threads()
    found = [
        score_episodes(videos, scored, episodes, config.classifier, config.gamma, threads)
        for episodes in drawn
    ]
    metrics: dict[str, float | None] = {"accuracy": _percent(float(found[-1].test.mean()))}
    for k, item in zip(config.labelled, found, strict=True):
        for prefix, values in (("", item.test), ("train_", item.train)):
            metrics |= {
                f"{prefix}accuracy_k{k}": _percent(float(values.mean())),
                f"{prefix}ci95_k{k}": _percent(confidence(values)),
                f"{prefix}sem_k{k}": _percent(standard_error(values)),
            }
        log.info("%d videos: %.2f %% of the test frames", k, 100 * item.test.mean())
    width = f"-{config.gamma}" if config.classifier == "svm" else ""
    return Result(
        protocol=protocol(
            f"few-shot-{config.classifier}{width}",
            f"k{joined(config.labelled)}",
            f"e{config.episodes}",
            of=test,
        ),
        metrics=metrics,
        samples=len(scored[1]),
        artefacts=_write(output_dir, config.labelled, found),
    )


def _percent(value: float) -> float | None:
    return finite(100.0 * value)


def _write(folder: Path, labelled: list[int], found: list[Episodes]) -> list[Path]:
    rows = [
        [k, episode, " ".join(map(str, videos)), 100 * train, 100 * test]
        for k, item in zip(labelled, found, strict=True)
        for episode, (videos, train, test) in enumerate(
            zip(item.videos, item.train.tolist(), item.test.tolist(), strict=True)
        )
    ]
    heads = ["labelled", "episode", "videos", "train_accuracy", "accuracy"]
    return [
        draw(folder / "few_shot.png", labelled, found),
        write_csv(folder / "episodes.csv", [heads, *rows]),
    ]


def draw(target: Path, labelled: list[int], found: list[Episodes]) -> Path:
    """Write mean accuracy and its 95 % interval over the number of labelled videos."""
    figure = needed("matplotlib.figure").Figure(figsize=(6, 4))
    axes = figure.add_subplot()
    means = [100 * item.test.mean() for item in found]
    widths = [np.nan_to_num(100 * confidence(item.test)) for item in found]
    axes.errorbar(labelled, means, widths, marker="o", capsize=3)
    axes.set_xticks(labelled)
    axes.set_xlabel("labelled videos")
    axes.set_ylabel("accuracy of test frames, %")
    axes.grid(alpha=0.3)
    return save_figure(target, figure)
