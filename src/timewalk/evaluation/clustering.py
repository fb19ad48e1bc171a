"""Clusters of patch features as a segmentation: as many clusters as classes, one for each class.

Source: TimeT and its released evaluation: the figures that its tables call K = ground truth.
"""

from pathlib import Path
from typing import Literal

from timewalk.evaluation.base import Inputs, Result
from timewalk.evaluation.clusters import ClusterConfig, evaluate_clusters


class Config(ClusterConfig):
    """K-means of patch features, one cluster for each class."""

    kind: Literal["clustering"] = "clustering"


def evaluate(inputs: Inputs, config: Config, output_dir: Path) -> Result:
    """Cluster and score, as :func:`timewalk.evaluation.clusters.evaluate_clusters` says."""
    return evaluate_clusters(inputs, config, output_dir)
