"""Clusters of patch features as a segmentation: as many clusters as classes, one for each class.

Sheet: segmentation-eval sections 1 and 2. The figures called K = ground truth in TimeT's tables.
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
