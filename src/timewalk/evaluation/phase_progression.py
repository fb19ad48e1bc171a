"""How far an action has come, from each frame's frozen embedding.

Source: TCC and its released code. The end of each phase but the last is an event. A linear
regression for each event says how far away in time it is, as a share of the video's length; its R2
over all frames of the test split, averaged over events, is the score.

Shapes: L frames of a video, K phases.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from timewalk.config import EvaluationConfig
from timewalk.errors import UserError
from timewalk.evaluation.base import Inputs, Result, write_csv
from timewalk.evaluation.phase_embeddings import (
    PhaseEmbeddings,
    load_both,
    name_of,
    phase_names,
)
from timewalk.evaluation.phase_settings import (
    Fractions,
    features,
    finite,
    first,
    joined,
    labels,
    protocol,
)
from timewalk.evaluation.pictures import needed, save_figure
from timewalk.metrics.phases import (
    fit_least_squares,
    progression_targets,
    r_squared,
    transition_error,
)

log = logging.getLogger(__name__)

DRAWN = 16
"""videos in the picture at most"""


class Config(EvaluationConfig):
    """R2 of the time to each event."""

    kind: Literal["phase_progression"] = "phase_progression"
    fractions: Fractions = [0.1, 0.5, 1.0]
    """shares of the training videos that are learnt from, each a result of its own; the first
    videos in the set's order, at least one"""


@dataclass(frozen=True)
class Scores:
    """The outcome for one share of the training videos.

    Attributes:
        fraction: the share.
        videos: how many these are.
        train: float64 (K - 1,), R2 of each event on these videos.
        test: float64 (K - 1,), on all test videos.
        predictions: float64 (L, K - 1) of each test video.
    """

    fraction: float
    videos: int
    train: np.ndarray
    test: np.ndarray
    predictions: list[np.ndarray]


def evaluate(inputs: Inputs, config: Config, output_dir: Path) -> Result:
    """Score a run's embeddings of videos.

    Args:
        inputs: embeddings of both splits.
        config: settings.
        output_dir: tables and curves go here.

    Raises:
        UserError: a set without labels or with one phase, files that do not belong together.
    """
    train, test = load_both(inputs)
    names = phase_names(inputs, train, test)
    if len(names) < 2:
        raise UserError(
            f"the set '{name_of(inputs, test)}' has one phase only, so that there is no event; "
            "name a set of two or more."
        )
    known, truth = (
        [progression_targets(y, len(names)) for y in labels(part)] for part in (train, test)
    )
    scores = [_score(train, test, known, truth, fraction) for fraction in config.fractions]
    last = scores[-1]
    metrics = {
        "r2": finite(last.test.mean()),
        "transition_error": finite(transition_error(truth, last.predictions)),
    }
    for item in scores:
        key = f"{item.fraction:g}"
        metrics |= {f"r2_{key}": finite(item.test.mean())}
        metrics |= {f"train_r2_{key}": finite(item.train.mean())}
        log.info("%d videos: R2 %.4f on the test frames", item.videos, item.test.mean())
    metrics |= {f"r2_event{i + 1}": finite(value) for i, value in enumerate(last.test)}
    return Result(
        protocol=protocol("progression", f"f{joined(config.fractions)}", of=test),
        metrics=metrics,
        samples=sum(len(x.steps) for x in test.videos),
        artefacts=_write(output_dir, test, scores, truth, names),
    )


def _score(
    train: PhaseEmbeddings,
    test: PhaseEmbeddings,
    known: list[np.ndarray],
    truth: list[np.ndarray],
    fraction: float,
) -> Scores:
    chosen = first(train, fraction)
    x, y = features(train, chosen), np.concatenate(known[: len(chosen)])
    predict = fit_least_squares(x, y)
    predictions = [predict(video.embeddings) for video in test.videos]
    return Scores(
        fraction,
        len(chosen),
        r_squared(y, predict(x)),
        r_squared(np.concatenate(truth), np.concatenate(predictions)),
        predictions,
    )


def _write(
    folder: Path,
    test: PhaseEmbeddings,
    scores: list[Scores],
    truth: list[np.ndarray],
    names: list[str],
) -> list[Path]:
    events = [f"end of {name}" for name in names[:-1]]
    rows = [
        [item.fraction, item.videos, event, train, scored]
        for item in scores
        for event, train, scored in zip(
            events, item.train.tolist(), item.test.tolist(), strict=True
        )
    ]
    frames = [
        [video.name, step, event, f"{wanted:.6g}", f"{found:.6g}"]
        for video, y, guess in zip(test.videos, truth, scores[-1].predictions, strict=True)
        for step, targets, predicted in zip(
            video.steps.tolist(), y.tolist(), guess.tolist(), strict=True
        )
        for event, wanted, found in zip(events, targets, predicted, strict=True)
    ]
    heads = ["fraction", "videos", "event", "train_r2", "r2"]
    columns = ["video", "frame", "event", "target", "predicted"]
    return [
        draw(folder / "progression.png", test, truth, scores[-1].predictions, events),
        write_csv(folder / "events.csv", [heads, *rows]),
        write_csv(folder / "progression.csv", [columns, *frames]),
    ]


def draw(
    target: Path,
    test: PhaseEmbeddings,
    truth: list[np.ndarray],
    predictions: list[np.ndarray],
    events: list[str],
) -> Path:
    """Write targets and predictions over time of the first test videos, one colour an event."""
    count = min(DRAWN, len(test.videos))
    columns = min(4, count)
    lines = -(-count // columns)
    colours = needed("matplotlib").colormaps["tab10"]
    figure = needed("matplotlib.figure").Figure(figsize=(3.5 * columns, 2.5 * lines))
    for place in range(count):
        axes = figure.add_subplot(lines, columns, place + 1)
        video = test.videos[place]
        for event, name in enumerate(events):
            colour = colours(event % 10)
            axes.plot(video.steps, truth[place][:, event], color=colour, linewidth=1, ls="--")
            axes.plot(video.steps, predictions[place][:, event], color=colour, label=name)
        axes.set_title(f"{video.name} (dashed: true)", fontsize=8)
        axes.tick_params(labelsize=7)
    figure.axes[0].legend(fontsize=6)
    figure.supxlabel("frame", fontsize=9)
    figure.supylabel("time from the event", fontsize=9)
    figure.tight_layout()
    return save_figure(target, figure)
