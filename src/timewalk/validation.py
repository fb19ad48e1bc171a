"""What a training needs to evaluate its encoder between epochs: an evaluation and its set."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from timewalk.evaluation import get_evaluation
from timewalk.evaluation.base import Inputs
from timewalk.suite import load_evaluation


@dataclass(frozen=True)
class Validator:
    """Evaluates saved encoders.

    Attributes:
        name: of the evaluation in the configuration.
        settings: its keys.
        dataset: manifest of the labelled set.
        train_dataset: manifest of the set that it learns from, if any.
        device: where to compute.
        workers: processes that read images.
    """

    name: str
    settings: dict[str, Any]
    dataset: Path
    train_dataset: Path | None
    device: torch.device
    workers: int

    def __call__(self, run: Path) -> dict[str, float | None]:
        """Return the metrics of the encoder in a folder."""
        config = load_evaluation(self.settings, f"evaluations.{self.name}")
        inputs = Inputs(
            run=run,
            dataset=self.dataset,
            device=self.device,
            train_dataset=self.train_dataset,
            workers=self.workers,
        )
        entry = get_evaluation(config.kind)
        metrics: dict[str, float | None] = (
            entry.load().evaluate(inputs, config, run.parent / "evaluation").metrics
        )
        return metrics
