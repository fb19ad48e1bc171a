"""What a machine has of what timewalk and a suite need: found, to come, or missing and how to get.

Nothing is fetched, written or changed. What a suite would fetch by itself is not missing.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from timewalk.check import check
from timewalk.config import Config
from timewalk.config.files import read_configs
from timewalk.doctor.finding import Finding
from timewalk.doctor.machine import disk, ffmpeg, gpus, mlflow, slurm, software
from timewalk.doctor.suite import (
    datasets,
    evaluations,
    needed_packages,
    to_come_gib,
    videos,
    weights,
)

__all__ = ["Finding", "as_json", "examine", "healthy"]


def examine(files: Sequence[Path]) -> list[Finding]:
    """Look at the machine, and at what the suite of some configuration files needs.

    Args:
        files: configuration files, later over earlier; none: the machine alone.

    Raises:
        UserError: a file is missing, or a key of the suite's frame is wrong.
    """
    config = check(Config, read_configs(files)) if files else Config()
    films = any(dataset.videos for dataset in config.datasets.values())
    return [
        *software(needed_packages(config) if files else {}),
        *gpus(),
        *ffmpeg(needed=films),
        *disk({config.results_dir: 0.0, config.data_dir: to_come_gib(config)}),
        *slurm(),
        *mlflow(Path(config.results_dir)),
        *videos(config),
        *datasets(config),
        *evaluations(config),
        *weights(config),
    ]


def healthy(findings: Sequence[Finding]) -> bool:
    """Return whether nothing is missing that is needed."""
    return not any(finding.state == "missing" for finding in findings)


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return findings for a program."""
    return {"healthy": healthy(findings), "findings": [asdict(finding) for finding in findings]}
