"""Foreground by clusters and attention, then classes without any label.

Source: Leopart's cluster-based foreground, in the form of TimeT's released code. Patches of a
training set are clustered; clusters that mostly lie where the class token looks are foreground,
above a threshold that the training set's masks tune. The scored set is clustered anew and judged by
its own attention and that threshold. With what is not foreground set to zero, its features are
clustered once more, into as many clusters as there are classes, and matched to these.

Shapes: F images, K clusters, M side of a map in pixels.
"""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from timewalk.artefacts import read_json, sha256_json, write_json
from timewalk.data.segmented import SegmentedSet, read_square
from timewalk.encoders import encoder_digest, load_encoder
from timewalk.errors import UserError
from timewalk.evaluation.base import Inputs, Result, write_csv
from timewalk.evaluation.cluster_tables import frame_names
from timewalk.evaluation.foreground_stages import (
    Clustered,
    Config,
    Segmentation,
    check_encoder,
    cluster,
    enlarged,
    segment,
)
from timewalk.evaluation.mask_pictures import Row, sheet, write_gif
from timewalk.evaluation.pictures import save_png
from timewalk.evaluation.segmentation_config import check_background, scored_set, training_set
from timewalk.evaluation.segmentation_pairs import title
from timewalk.evaluation.segmentation_scores import PICTURE_SIDE, class_table, percent, spread
from timewalk.metrics.foreground import Tuning, boundary_f, jaccard_of_clusters, tune
from timewalk.metrics.matching import renamed
from timewalk.ops.kmeans import load_faiss

__all__ = ["Config", "evaluate"]

log = logging.getLogger(__name__)

SEGMENTATION_METRICS = ("miou", "miou_without_background", "miou_fixed", "pixel_accuracy")
PALE = 255
"""id in whose colour the foreground is drawn: no class has it"""


def evaluate(inputs: Inputs, config: Config, output_dir: Path) -> Result:
    """Find the foreground of a labelled set, and its classes, by clusters.

    Args:
        inputs: the run, the scored set, and the training set where it is another.
        config: settings.
        output_dir: tables and pictures go here; `work/` holds features and clusters until the end,
            for an interrupted evaluation to go on.

    Raises:
        UserError: an encoder without attention, a set without foreground, a cluster without pixels,
            or none of the precision that counts as foreground.
    """
    load_faiss()
    encoder = load_encoder(inputs.run).eval().requires_grad_(False).to(inputs.device)
    check_encoder(encoder, config)
    scored = scored_set(inputs.dataset, config)
    check_background(scored, "foreground extraction")
    # Of the masks that are learnt from only the foreground counts, whatever its classes.
    train = training_set(inputs.dataset, inputs.train_dataset, config, same_classes=False)
    check_background(train, "foreground extraction")
    work = _work(output_dir / "work", inputs, config, (scored, train))
    learnt = cluster(train, encoder, inputs, config, work / "train")
    table = learnt.table
    tuning = tune(learnt.precision, table.pixels, table.foreground, config.cuts)
    log.info("clusters of a precision of %.2f or more are foreground", tuning.threshold)
    found = cluster(scored, encoder, inputs, config, work / "test")
    chosen = found.precision >= tuning.threshold
    if not chosen.any():
        raise UserError(
            f"no cluster of '{scored.name}' reaches the precision of {tuning.threshold:.2f} that "
            f"was tuned on '{train.name}'; raise 'keep', or name another set as 'train_dataset'."
        )
    foreground = chosen[found.ids]
    classes = segment(scored, encoder, inputs, config, work / "classes", foreground, found.truth)
    scores = score(found, chosen, config)
    metrics = summary(scores, classes) | {
        "threshold": tuning.threshold,
        "clusters_foreground": float(chosen.sum()),
    }
    artefacts = [
        _write_images(output_dir / "images.csv", scored, scores),
        _write_clusters(output_dir / "clusters.csv", learnt, found, tuning),
        _write_cuts(output_dir / "cuts.csv", tuning),
    ]
    if classes is not None:
        rows = class_table(classes.scores, classes.names)
        artefacts.append(write_csv(output_dir / "classes.csv", rows))
    artefacts += draw(scored, found.truth, foreground, classes, config, output_dir)
    shutil.rmtree(work)
    return Result(
        protocol(config, scored, train, found.dimensions), metrics, len(foreground), artefacts
    )


def protocol(config: Config, scored: SegmentedSet, train: SegmentedSet, dimensions: int) -> str:
    """Return the protocol's name: all that makes figures incomparable and is not as published.

    Args:
        config: settings.
        scored: the set that is scored.
        train: the set that is learnt from.
        dimensions: components that there were.
    """
    parts = ["foreground", title(config, scored, train), f"k{config.clusters}"]
    usual = Config(dataset=config.dataset)
    if config.keep != usual.keep:
        parts.append(f"keep{config.keep:g}")
    if config.cuts != usual.cuts:
        parts.append("cuts{:g}_{:g}".format(*config.cuts))
    if config.boundary != usual.boundary:
        parts.append(f"boundary_{config.boundary}")
    if config.segmentation_clusters is not None:
        parts.append(f"c{config.segmentation_clusters}")
    if config.boundary_f and config.boundary_distance != usual.boundary_distance:
        parts.append(f"bf{config.boundary_distance:g}")
    parts += config.cluster_title(dimensions)
    return "-".join(parts)


def score(found: Clustered, chosen: np.ndarray, config: Config) -> dict[str, np.ndarray]:
    """Return each image's figures in percent, (F,) each.

    Args:
        found: the scored set.
        chosen: bool (K,), the clusters that are foreground.
        config: settings.
    """
    table = found.table
    with_boundary, without = (
        100 * jaccard_of_clusters(table.pixels, truth, chosen)
        for truth in (table.foreground, table.inner)
    )
    if config.boundary == "background":
        with_boundary, without = without, with_boundary
    scores = {
        "jaccard": with_boundary,
        "jaccard_other_boundary": without,
        "foreground_percent": 100 * table.pixels[:, chosen].sum(axis=1) / table.pixels.sum(axis=1),
    }
    if config.boundary_f:
        each = [
            boundary_f(truth == 0, enlarged(chosen[ids], len(truth)), config.boundary_distance)
            for ids, truth in zip(found.ids, found.truth, strict=True)
        ]
        scores["boundary_f"] = 100 * np.array(each)
    return scores


def summary(scores: dict[str, np.ndarray], classes: Segmentation | None) -> dict[str, float | None]:
    """Return the means over images, and the figures of the classes if there are any.

    Images whose outlines are nowhere near each other do not count in `boundary_f`, as published.
    """
    metrics: dict[str, float | None] = {
        name: None if np.isnan(values).all() else float(np.nanmean(values))
        for name, values in scores.items()
    }
    if classes is None:
        return metrics | dict.fromkeys(SEGMENTATION_METRICS)
    return metrics | percent(classes.scores, len(classes.names), background=True)


def draw(
    scored: SegmentedSet,
    truth: np.ndarray,
    foreground: np.ndarray,
    classes: Segmentation | None,
    config: Config,
    folder: Path,
) -> list[Path]:
    """Draw input, truth, foreground and classes: a sheet of images, or a GIF a video.

    Args:
        scored: the set.
        truth: classes (F, M, M).
        foreground: bool (F, h, w).
        classes: the second stage, if any.
        config: how many.
        folder: where.
    """

    def row(place: int) -> Row:
        pixels = read_square(scored.frames[place][0], PICTURE_SIDE).transpose(1, 2, 0)
        pale = enlarged(foreground[place], truth.shape[1]) * np.uint8(PALE)
        if classes is None:
            return pixels, truth[place], pale
        return (
            pixels,
            truth[place],
            pale,
            renamed(classes.ids[place], classes.scores.cluster_to_class),
        )

    if not scored.videos:
        rows = [row(place) for place in spread(len(truth), config.pictures)]
        names = classes.names if classes else ()
        return [save_png(folder / "sheet.png", sheet(rows, names))] if rows else []
    ends = np.cumsum([len(clip.frames) for clip in scored.clips]).tolist()
    files = []
    for place in spread(len(scored), config.pictures):
        clip, end = scored.clips[place], ends[place]
        target = folder / f"{clip.name.replace('/', '_')}.gif"
        files.append(write_gif(target, [row(i) for i in range(end - len(clip.frames), end)]))
    return files


def _work(
    folder: Path, inputs: Inputs, config: Config, sets: tuple[SegmentedSet, SegmentedSet]
) -> Path:
    """Return the folder of half-done work, emptied if it belongs to something else."""
    key = sha256_json(
        {
            "settings": config.model_dump(mode="json", exclude={"runs", "pictures"}),
            "encoder": encoder_digest(inputs.run),
            "sets": [segmented.digest for segmented in sets],
        }
    )
    note = folder / "key.json"
    if folder.exists() and not (note.is_file() and read_json(note) == key):
        log.warning("%s belongs to other settings, another encoder or other images: anew", folder)
        shutil.rmtree(folder)
    write_json(note, key)
    return folder


def _write_images(path: Path, scored: SegmentedSet, scores: dict[str, np.ndarray]) -> Path:
    names = [name for clip in scored.clips for name in frame_names(scored, clip)]
    values = [_numbers(column) for column in scores.values()]
    return write_csv(path, [["image", *scores], *zip(names, *values, strict=True)])


def _write_clusters(path: Path, learnt: Clustered, found: Clustered, tuning: Tuning) -> Path:
    rows: list[Sequence[object]] = [["set", "cluster", "pixels", "precision", "foreground"]]
    for name, part in (("train", learnt), ("test", found)):
        pixels = part.table.pixels.sum(axis=0).tolist()
        chosen = (part.precision >= tuning.threshold).astype(int).tolist()
        columns = zip(pixels, _numbers(part.precision), chosen, strict=True)
        rows += [[name, number, *values] for number, values in enumerate(columns)]
    return write_csv(path, rows)


def _write_cuts(path: Path, tuning: Tuning) -> Path:
    columns = (tuning.starts.tolist(), _numbers(tuning.precisions), _numbers(100 * tuning.jaccards))
    return write_csv(
        path, [["clusters_background", "precision", "jaccard"], *zip(*columns, strict=True)]
    )


def _numbers(values: np.ndarray) -> list[str | None]:
    return [None if np.isnan(value) else f"{value:.6g}" for value in values.tolist()]
