"""Many small clusters of patch features, each of which takes the class of most of its pixels.

Source: TimeT and its released evaluation. How pure small clusters are: classes may have many of
them.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from timewalk.evaluation.base import Inputs, Result
from timewalk.evaluation.clusters import ClusterConfig, Matching, evaluate_clusters


class Config(ClusterConfig):
    """K-means of patch features with many more clusters than classes."""

    kind: Literal["overclustering"] = "overclustering"
    clusters: Annotated[int, Field(gt=0, le=65535)] | None = 500
    """K; null: the number of classes in the truth of that frame, clip or data set"""
    matching: Matching = "many_to_one"
    """`many_to_one`: each cluster takes the class of most of its pixels; `many_to_one_iou`: that
    of largest IoU; `hungarian`: one cluster a class, the rest is background"""


def evaluate(inputs: Inputs, config: Config, output_dir: Path) -> Result:
    """Cluster and score, as :func:`timewalk.evaluation.clusters.evaluate_clusters` says."""
    return evaluate_clusters(inputs, config, output_dir)
