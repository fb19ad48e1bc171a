"""What a training needs to evaluate its encoder between epochs: an evaluation and its sets."""

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from timewalk.artefacts import atomic_path, sha256_file, sha256_json
from timewalk.check import check
from timewalk.config import EvaluationConfig, Strict
from timewalk.evaluation import get_evaluation
from timewalk.evaluation.base import Inputs, Result
from timewalk.evaluation.phase_embeddings import Split, embed_split
from timewalk.evaluation.run import numbers
from timewalk.suite import load_evaluation

SPLITS: tuple[Split, Split] = ("train", "test")
DRAWN = (".png", ".gif", ".mp4")
"""suffixes of pictures among an evaluation's files"""


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

    def lower_is_better(self, metric: str) -> bool:
        """Return whether less of a metric is better."""
        return get_evaluation(self.config.kind).lower_is_better(metric)

    def __call__(self, run: Path, pictures: Path | None = None) -> dict[str, float | None]:
        """Return the metrics of the encoder in a folder; None: its pictures are not kept."""
        entry = get_evaluation(self.config.kind)
        train, test = self._embed(run) if entry.needs == "embeddings" else (None, None)
        inputs = Inputs(
            run=run,
            dataset=self.sets[0],
            device=self.device,
            train=train,
            test=test,
            train_dataset=self.sets[1],
            workers=self.workers,
        )
        folder = run.parent / "evaluation"
        result: Result = entry.load().evaluate(inputs, self.config, folder)
        for path in result.artefacts:
            if pictures is not None and path.suffix in DRAWN:
                with atomic_path(pictures / path.relative_to(folder)) as temporary:
                    shutil.copyfile(path, temporary)
        return numbers(result.metrics, f"validation, {self.config.kind}")

    def _embed(self, run: Path) -> tuple[Path, Path]:
        """Return embeddings of both splits by the encoder of the moment, beside it."""
        train, test = (run.parent / f"embeddings-{split}.safetensors" for split in SPLITS)
        for split, path in zip(SPLITS, (train, test), strict=True):
            embed_split(run, self.sets[0], split, path, device=self.device, workers=self.workers)
        return train, test


def validator(raw: Any, device: torch.device, workers: int) -> Validator:
    """Return what evaluates encoders, from the words of the command line.

    Raises:
        UserError: names the key that is wrong.
    """
    sources = check(Sources, raw, "--validation")
    config = load_evaluation(sources.settings, f"evaluations.{sources.name}")
    train = Path(sources.train_dataset) if sources.train_dataset else None
    return Validator(config, (Path(sources.dataset), train), device, workers)
