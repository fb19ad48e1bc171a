"""What a training needs to evaluate its encoder between epochs: an evaluation and its sets."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from timewalk.artefacts import sha256_file, sha256_json
from timewalk.check import check
from timewalk.config import EvaluationConfig, Strict
from timewalk.evaluation import get_evaluation
from timewalk.evaluation.base import Inputs
from timewalk.suite import load_evaluation


class Sources(Strict):
    """What the command line says of an evaluation between epochs."""

    name: str
    """of the evaluation in the configuration"""
    settings: dict[str, Any]
    """its keys"""
    dataset: str
    """path of the manifest of the labelled set"""
    train_dataset: str | None = None
    """path of the manifest of the set that it learns from, if any"""


@dataclass(frozen=True)
class Validator:
    """Evaluates saved encoders.

    Attributes:
        config: of the evaluation.
        sets: manifests of the labelled set, and of the one that it learns from, if any.
        device: where to compute.
        workers: processes that read images.
    """

    config: EvaluationConfig
    sets: tuple[Path, Path | None]
    device: torch.device
    workers: int

    @cached_property
    def key(self) -> str:
        """Digest of all that the metrics of an encoder depend on."""
        settings = self.config.model_dump(mode="json", exclude={"runs"})
        return sha256_json([settings, *(path and sha256_file(path) for path in self.sets)])

    def __call__(self, run: Path) -> dict[str, float | None]:
        """Return the metrics of the encoder in a folder."""
        inputs = Inputs(
            run=run,
            dataset=self.sets[0],
            device=self.device,
            train_dataset=self.sets[1],
            workers=self.workers,
        )
        folder = run.parent / "evaluation"
        module = get_evaluation(self.config.kind).load()
        metrics: dict[str, float | None] = module.evaluate(inputs, self.config, folder).metrics
        return metrics


def validator(raw: Any, device: torch.device, workers: int) -> Validator:
    """Return what evaluates encoders, from the words of the command line.

    Raises:
        UserError: names the key that is wrong.
    """
    sources = check(Sources, raw, "--validation")
    config = load_evaluation(sources.settings, f"evaluations.{sources.name}")
    train = Path(sources.train_dataset) if sources.train_dataset else None
    return Validator(config, (Path(sources.dataset), train), device, workers)
