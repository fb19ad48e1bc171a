"""DAVIS 2017 scores of a folder of predicted masks, as the official evaluation gives them.

Source: the official evaluation of DAVIS 2017, both of its tasks, on its layout of folders; the
files it writes are those of `davis_tables.py`. Masks are read frame by frame, sequences in
parallel. A sequence that cannot be scored is named with its fault, and the others are scored all
the same.
"""

import logging
import multiprocessing
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image, UnidentifiedImageError

from timewalk.errors import UserError, nearest, reason
from timewalk.evaluation.davis_tables import ObjectScores, Scores, SequenceScores
from timewalk.metrics.davis import frame_scores, match, statistics

Task = Literal["semi-supervised", "unsupervised"]

SUBSETS = ("train", "val", "test-dev", "test-challenge")
ANNOTATIONS = {"semi-supervised": "Annotations", "unsupervised": "Annotations_unsupervised"}
RESOLUTION = "480p"
VOID = 255
MAX_PROPOSALS = 20

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
    task: str
    sequence: str
    annotations: Path
    images: Path
    results: Path


def score_folders(
    results: Path,
    davis: Path,
    task: Task,
    subset: str = "val",
    *,
    year: str | None = None,
    workers: int = 1,
    sequences: list[str] | None = None,
) -> Scores:
    """Score a folder of results against DAVIS.

    Args:
        results: holds ``<sequence>/<frame>.png``, palette or gray, pixel = id, 0 = background.
        davis: the data set's folder, with ``JPEGImages``, annotations and ``ImageSets``.
        task: `semi-supervised` (ids are given; first and last frame and void do not take part) or
            `unsupervised` (proposals are matched to objects; void pixels do not count).
        subset: `train`, `val`, `test-dev` or `test-challenge`.
        year: folder of the set file; by default 2019 for the two test sets of the unsupervised
            task, otherwise 2017.
        workers: processes; each takes one sequence at a time.
        sequences: only these sequences of the set.

    Raises:
        UserError: a folder or set file is missing, a name is unknown. What is wrong with a single
            sequence does not raise: it is listed in the scores' ``failures``.
    """
    if task not in get_args(Task):
        raise UserError(f"task is '{task}', which is unknown{nearest(task, get_args(Task))}.")
    for path, what in ((results, "folder of results"), (davis, "DAVIS folder")):
        if not path.is_dir():
            raise UserError(f"{path} is missing: give the {what}.")
    annotations = davis / ANNOTATIONS[task] / RESOLUTION
    images = davis / "JPEGImages" / RESOLUTION
    for folder in (annotations, images):
        if not folder.is_dir():
            raise UserError(f"{folder} is missing: the {task} task needs it.")
    chosen = _chosen(davis, task, subset, year, sequences)
    jobs = [_Job(task, name, annotations / name, images / name, results / name) for name in chosen]
    found = dict(zip(chosen, _each(jobs, workers), strict=True))
    scores = Scores(
        task,
        subset,
        tuple(scores for scores in found.values() if isinstance(scores, SequenceScores)),
        {name: fault for name, fault in found.items() if isinstance(fault, str)},
    )
    if not scores.failures and not scores.rows():
        raise UserError(f"{annotations}: no sequence of '{subset}' has an object to score.")
    return scores


def _chosen(
    davis: Path, task: str, subset: str, year: str | None, wanted: list[str] | None
) -> list[str]:
    if subset not in SUBSETS:
        raise UserError(f"the set '{subset}' is unknown{nearest(subset, SUBSETS)}.")
    if year is None:
        year = "2019" if task == "unsupervised" and subset.startswith("test") else "2017"
    path = davis / "ImageSets" / year / f"{subset}.txt"
    if not path.is_file():
        raise UserError(f"{path} is missing: it is to list the sequences of the set, one a line.")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    listed = list(dict.fromkeys(line for line in lines if line))
    if not listed:
        raise UserError(f"{path} is empty: it is to list the sequences of the set, one a line.")
    if wanted is None:
        return listed
    for name in wanted:
        if name not in listed:
            raise UserError(f"{path} does not list the sequence '{name}'{nearest(name, listed)}.")
    return [name for name in listed if name in wanted]


def _each(jobs: list[_Job], workers: int) -> Iterator[SequenceScores | str]:
    processes = min(workers, len(jobs))
    if processes <= 1:
        yield from map(_score_or_fault, jobs)
        return
    # Forked, because a fresh process takes longer to import than to score a sequence; nothing in
    # it touches what a fork may not: threads of torch, or a GPU.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, context) as pool:
        try:
            yield from pool.map(_score_or_fault, jobs)
        except BrokenProcessPool:
            raise UserError(
                "a process of the scoring was killed, probably for lack of memory: run it again "
                "with fewer workers."
            ) from None


def _score_or_fault(job: _Job) -> SequenceScores | str:
    try:
        return _score(job)
    except UserError as error:
        return str(error)


def _score(job: _Job) -> SequenceScores:
    stems = _frames(job)
    first = _read(job, job.annotations, stems[0])
    size = first.shape
    num_objects = int(np.where(first == VOID, 0, first).max())
    if num_objects == 0:
        log.warning("sequence %s: no object in its first frame; nothing to score", job.sequence)
    if job.task == "semi-supervised":
        _read(job, job.annotations, stems[-1], size)
        stems = stems[1:-1]
        J, F = _given(job, stems, size, num_objects)
        proposals = objects = np.arange(num_objects)
    else:
        J, F, proposals, objects = _matched(job, stems, size, num_objects)
    rows = tuple(
        ObjectScores(
            f"{job.sequence}_{row + 1}",
            int(objects[row]) + 1,
            int(proposals[row]) + 1,
            J[row],
            F[row],
            statistics(J[row]),
            statistics(F[row]),
        )
        for row in range(num_objects)
    )
    return SequenceScores(job.sequence, tuple(stems), rows)


def _frames(job: _Job) -> list[str]:
    """Return the stems of all annotated frames once the folders fit together."""
    where = f"sequence {job.sequence}"
    images = len(list(job.images.glob("*.jpg")))
    stems = sorted(path.stem for path in job.annotations.glob("*.png"))
    if images == 0:
        raise UserError(f"{where}: {job.images} has no JPEG images: complete the data set.")
    if not stems:
        raise UserError(f"{where}: {job.annotations} has no PNG masks: complete the data set.")
    if len(stems) < images:
        raise UserError(
            f"{where}: {images} images but only {len(stems)} annotations, the last of them "
            f"{stems[-1]}.png: complete the data set, or score a set whose truth is public."
        )
    if job.task == "semi-supervised" and len(stems) < 3:
        raise UserError(
            f"{where}: it has {len(stems)} frames ({stems[-1]}.png the last), but the first and "
            "the last are not scored: it needs at least 3."
        )
    if not job.results.is_dir():
        raise UserError(f"{where}: {job.results} is missing: predict the sequence first.")
    extra = sorted({path.stem for path in job.results.glob("*.png")} - set(stems))
    if extra:
        raise UserError(
            f"{where}: the result {extra[0]}.png has no annotation: name the results after the "
            f"annotations ({stems[0]}.png to {stems[-1]}.png)."
        )
    return stems


def _given(
    job: _Job, stems: list[str], size: tuple[int, ...], num_objects: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return J and F of each object with the result of the same id, (O, T)."""
    J, F = np.empty((num_objects, len(stems))), np.empty((num_objects, len(stems)))
    for t, (stem, truth, result) in enumerate(_pairs(job, stems, size)):
        highest = int(result.max())
        if highest > num_objects:
            raise UserError(
                f"sequence {job.sequence}: the result {stem}.png has the id {highest}, but the "
                f"sequence has {num_objects} objects: only ids 0 to {num_objects} are allowed."
            )
        truth[truth == VOID] = 0
        pairwise = frame_scores(truth, result, num_objects, num_objects)
        J[:, t], F[:, t] = (np.diagonal(values) for values in pairwise)
    return J, F


def _matched(
    job: _Job, stems: list[str], size: tuple[int, ...], num_objects: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return J and F, (O, T), of the matched pairs by rising proposal, and the pairs, from 0."""
    # As in the official evaluation: with fewer proposals than objects, empty ones fill up.
    most = max(MAX_PROPOSALS, num_objects)
    J, F = np.empty((most, num_objects, len(stems))), np.empty((most, num_objects, len(stems)))
    num_proposals = 0
    for t, (stem, truth, result) in enumerate(_pairs(job, stems, size)):
        num_proposals = max(num_proposals, int(result.max()))
        if num_proposals > MAX_PROPOSALS:
            raise UserError(
                f"sequence {job.sequence}: the result {stem}.png has the id {num_proposals}, but "
                f"at most {MAX_PROPOSALS} proposals are allowed: merge or drop some."
            )
        void = truth == VOID
        truth[void] = 0
        result[void] = 0
        J[..., t], F[..., t] = frame_scores(truth, result, num_objects, most)
    kept = max(num_proposals, num_objects)
    J, F = J[:kept], F[:kept]
    proposals, objects = match(J, F)
    return J[proposals, objects], F[proposals, objects], proposals, objects


def _pairs(
    job: _Job, stems: Iterable[str], size: tuple[int, ...]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield name, truth and result of each frame."""
    for stem in stems:
        truth = _read(job, job.annotations, stem, size)
        yield stem, truth, _read(job, job.results, stem, size)


def _read(job: _Job, folder: Path, stem: str, size: tuple[int, ...] | None = None) -> np.ndarray:
    """Return the ids of a mask, uint8 (H, W), writable; of another size it is a fault."""
    path = folder / f"{stem}.png"
    where = f"sequence {job.sequence}: {path}"
    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L", "1"):
                raise UserError(
                    f"{where} is of the kind {image.mode}: expected an id (palette or gray) PNG."
                )
            ids = np.array(image, np.uint8)
    except FileNotFoundError:
        raise UserError(f"{where} is missing: every annotated frame needs its mask.") from None
    except UnidentifiedImageError:
        raise UserError(f"{where} cannot be read (not an image): write it again.") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{where} cannot be read ({reason(error)}): write it again.") from None
    if size and ids.shape != size:
        raise UserError(
            f"{where} is {ids.shape[1]}x{ids.shape[0]} pixels, but the sequence is {size[1]}x"
            f"{size[0]}: write all masks in that size."
        )
    return ids
