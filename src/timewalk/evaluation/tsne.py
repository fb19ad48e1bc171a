"""t-SNE of frozen features in two dimensions, with its neighbourhoods' quality as numbers.

Source: t-SNE; the README of DoRA's code shows such a figure and leaves its settings open.
Features L2-normalised, PCA to 50, then t-SNE.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from timewalk.config import EvaluationConfig
from timewalk.errors import UserError
from timewalk.evaluation.base import Inputs, Result, check_origin, check_split, write_csv
from timewalk.evaluation.embed import load_embeddings
from timewalk.evaluation.pictures import balanced, needed, save_figure

log = logging.getLogger(__name__)

NEIGHBOURS = 10
FEWEST = 4


class Config(EvaluationConfig):
    """A picture of the test images' features by t-SNE."""

    kind: Literal["tsne"] = "tsne"
    images: Annotated[int, Field(ge=FEWEST)] = 2000
    """images of the test split at most, as many of each class"""
    perplexity: Annotated[float, Field(gt=1)] = 30.0
    """effective number of neighbours; with few images at most a third of them"""
    iterations: Annotated[int, Field(ge=250)] = 1000
    """steps of the optimisation"""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """of the choice of images and of the optimisation"""


@dataclass(frozen=True)
class Layout:
    """A layout in the plane.

    Attributes:
        points: float32 (N, 2).
        kl_divergence: what t-SNE minimises, in nats; None where all features are equal, and after
            the 250 iterations that scikit-learn spends on exaggerated distances.
        trustworthiness: 0 to 1: whether neighbours in the plane are neighbours of features; None
            where all features are equal.
        perplexity: the one used.
    """

    points: np.ndarray
    kl_divergence: float | None
    trustworthiness: float | None
    perplexity: float


def evaluate(inputs: Inputs, config: Config, output_dir: Path) -> Result:
    """Lay out the test images' features and draw them.

    Args:
        inputs: embeddings of the test split.
        config: settings.
        output_dir: `tsne.png` and `tsne.csv` go here.

    Raises:
        UserError: features of another run, set or split, too few images, features that are not
            finite, or a library is missing.
    """
    assert inputs.test is not None
    found = load_embeddings(inputs.test)
    check_split(inputs.test, found.about, "test")
    check_origin(inputs.test, found.about, inputs)
    if not bool(found.features.isfinite().all()):
        raise UserError(f"{inputs.test} holds features that are not finite: train the run again.")
    chosen = balanced(found.labels, config.images, config.seed)
    if len(chosen) < FEWEST:
        raise UserError(f"{inputs.test} holds {len(chosen)} images: t-SNE needs {FEWEST} or more.")
    labels = found.labels[chosen]
    layout = lay_out(found.features[chosen], config.perplexity, config.iterations, config.seed)
    rows = [
        [place, label, found.classes[label], f"{x:.6g}", f"{y:.6g}"]
        for place, label, (x, y) in zip(
            chosen, labels.tolist(), layout.points.tolist(), strict=True
        )
    ]
    table = write_csv(output_dir / "tsne.csv", [["index", "label", "class", "x", "y"], *rows])
    picture = draw(output_dir / "tsne.png", layout.points, labels.numpy(), found.classes)
    return Result(
        protocol=f"tsne-p{layout.perplexity:g}-n{len(chosen)}",
        metrics={
            "kl_divergence": layout.kl_divergence,
            "trustworthiness": layout.trustworthiness,
            "top1_2d": neighbour_accuracy(torch.from_numpy(layout.points), labels),
        },
        samples=len(chosen),
        artefacts=[picture, table],
    )


def lay_out(features: Tensor, perplexity: float, iterations: int, seed: int) -> Layout:
    """Return t-SNE's layout of features (N, D) of any length, N at least 4."""
    manifold, decomposition = needed("sklearn.manifold"), needed("sklearn.decomposition")
    vectors = F.normalize(features.float(), dim=1).numpy()
    used = min(perplexity, (len(vectors) - 1) / 3)
    if float(vectors.std(axis=0).max()) < 1e-12:
        # A collapsed encoder: there is nothing to lay out, and scikit-learn would crash on it.
        log.warning("all features are equal: the encoder tells no image from another")
        return Layout(np.zeros((len(vectors), 2), np.float32), None, None, used)
    # Reduced to as many components as there can be at most.
    width = min(50, len(vectors) - 1, vectors.shape[1])
    reduced = decomposition.PCA(width, svd_solver="full").fit_transform(vectors)
    tsne = manifold.TSNE(
        perplexity=used, init="pca", max_iter=iterations, random_state=seed, n_jobs=1
    )
    points = tsne.fit_transform(reduced)
    near = max(1, min(NEIGHBOURS, (len(vectors) - 1) // 2))
    trust = manifold.trustworthiness(vectors, points, n_neighbors=near)
    divergence = float(tsne.kl_divergence_)
    known = divergence < np.finfo(np.float64).max  # not within the first, exaggerated iterations
    return Layout(points, divergence if known else None, float(trust), used)


def neighbour_accuracy(points: Tensor, labels: Tensor) -> float:
    """Return the percentage of points whose 10 nearest others mostly bear their label."""
    distances = torch.cdist(points.double(), points.double()).fill_diagonal_(float("inf"))
    near = distances.topk(min(NEIGHBOURS, len(points) - 1), largest=False).indices
    return 100.0 * float((labels[near].mode(dim=1).values == labels).double().mean())


def draw(target: Path, points: np.ndarray, labels: np.ndarray, classes: list[str]) -> Path:
    """Write a scatter plot, one colour a class."""
    figures, colormaps = needed("matplotlib.figure"), needed("matplotlib").colormaps
    present = sorted(set(labels.tolist()))
    few = len(present) <= 10
    figure = figures.Figure(figsize=(8, 6))
    axes = figure.add_subplot()
    for number, label in enumerate(present):
        colour = colormaps["tab10"](number) if few else colormaps["turbo"](number / len(present))
        x, y = points[labels == label].T
        axes.scatter(x, y, s=8, color=[colour], label=classes[label], linewidths=0)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_axis_off()
    columns = -(-len(present) // 25)
    axes.legend(
        loc="center left", bbox_to_anchor=(1, 0.5), ncols=columns, frameon=False, markerscale=2
    )
    return save_figure(target, figure)
