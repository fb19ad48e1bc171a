"""Videos of a labelled set played in step with one of them, matched by a run's embeddings.

Source: TCC's released code, its alignment videos. The numbers say how well all the split's videos
of the same action fit the reference; the pictures show some of them.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from timewalk.config import EvaluationConfig, Positive, Strict
from timewalk.errors import UserError
from timewalk.evaluation.alignment import Match, Video, averaged, match, scores
from timewalk.evaluation.alignment_files import read_videos, videos_of
from timewalk.evaluation.alignment_pictures import (
    Panel,
    Scale,
    Sheet,
    check_writer,
    grid_rows,
    pages,
    plot_paths,
    write_video,
)
from timewalk.evaluation.base import Inputs, Result, check_origin, check_split, write_csv
from timewalk.evaluation.phase_sequences import load_phase_embeddings
from timewalk.evaluation.phase_settings import protocol
from timewalk.evaluation.pictures import needed

Number = Annotated[int, Field(ge=0)]


class Alignment(Strict):
    """How videos are matched and drawn."""

    reference: Number = 0
    """number of the video to which the others are matched, counted from 0"""
    use_dtw: bool = False
    """frames are matched by dynamic time warping; false: by nearest neighbours"""
    normalise: bool = False
    """embeddings are divided by their lengths first"""
    mode: Literal["grid", "pair", "dynamic"] = "grid"
    """`grid`: all videos at once; `pair`: the reference and one candidate; `dynamic`: the reference
    and each of the others in turn"""
    candidate: Number | None = None
    """number of the video beside the reference, with `mode: pair`; null: the next one"""
    videos: Annotated[int, Field(ge=2)] = 9
    """videos that are drawn at most: the first ones, and the reference"""
    published_grid: bool = False
    """as many rows as columns, as published: videos that fill no whole square are not drawn"""
    switch: Positive = 10
    """frames after which the other video changes, with `mode: dynamic`"""
    interval_ms: Annotated[int, Field(ge=20)] = 50
    """milliseconds from one frame to the next; a gif rounds down to whole 10"""
    cell: Annotated[int, Field(ge=32)] = 200
    """side in pixels of a picture; 400 as published"""
    scale: Scale = "published"
    """`published`: each frame is stretched between its least and its largest value; `none`: as it
    is"""
    numbers: bool = False
    """the number of each frame is written into its corner"""

    @model_validator(mode="after")
    def _candidate_of_a_pair(self) -> "Alignment":
        if self.candidate is not None and self.mode != "pair":
            raise ValueError(f"candidate goes with mode pair, not {self.mode}; change one of them")
        return self


class Config(Alignment, EvaluationConfig):
    """Videos played in step with one of them, and how well they fit."""

    kind: Literal["alignment_video"] = "alignment_video"
    split: Literal["train", "test"] = "test"
    """whose videos are aligned"""
    format: Literal["mp4", "gif"] = "mp4"
    """of the video; a gif needs no ffmpeg"""


def evaluate(inputs: Inputs, config: Config, output_dir: Path) -> Result:
    """Align the videos of a split, draw them and score them.

    Args:
        inputs: the labelled set with its frames, and the embeddings of both splits.
        config: settings.
        output_dir: `alignment.mp4` or `alignment.gif`, `paths.png`, `matches.csv` and `scores.csv`
            go here.

    Raises:
        UserError: embeddings of another run, set or split, fewer than two videos of the reference's
            action, a video that does not exist, or a program or library is missing.
    """
    check_writer(f".{config.format}")
    needed("matplotlib.figure")
    source = inputs.train if config.split == "train" else inputs.test
    assert source is not None
    embedded = load_phase_embeddings(source)
    check_split(source, embedded.about, config.split)
    check_origin(source, embedded.about, inputs)
    videos = videos_of(source, embedded, inputs.dataset, config.split)
    others = companions(videos, config, str(source))
    reference = videos[config.reference]
    # Distances of long videos are large: kept only of those that are drawn.
    drawn = drawn_numbers(others, config)
    kept: dict[int, Match] = {}
    found = []
    for number in others:
        one = matched_to(reference, videos[number], config)
        found.append(scores(reference, videos[number], one))
        if number in drawn:
            kept[number] = one
    output_dir.mkdir(parents=True, exist_ok=True)
    video = draw(output_dir / f"alignment.{config.format}", videos, kept, config)
    paths = plot_paths(output_dir / "paths.png", reference, [(videos[n], kept[n]) for n in kept])
    header = ["reference_frame", *(videos[n].name for n in kept)]
    rows = zip(range(len(reference)), *(m.frames.tolist() for m in kept.values()), strict=True)
    matches = write_csv(output_dir / "matches.csv", [header, *rows])
    lines = [[videos[n].name, *s.values()] for n, s in zip(others, found, strict=True)]
    table = write_csv(output_dir / "scores.csv", [["video", *found[0]], *lines])
    how = ["dtw" if config.use_dtw else "nn", *(["normalised"] if config.normalise else [])]
    return Result(
        protocol=protocol(f"alignment-{config.split}{config.reference}", *how, of=embedded),
        metrics=averaged(found),
        samples=len(others),
        artefacts=[video, paths, matches, table],
    )


def align(
    sources: Sequence[Path],
    target: Path,
    keys: Alignment,
    *,
    manifest: Path | None = None,
    split: Literal["train", "test"] | None = None,
    path_plot: Path | None = None,
) -> dict[str, float | None]:
    """Draw the videos of some files of embeddings in step with one of them.

    Args:
        sources: embeddings of phase videos, ours or the original's.
        target: the video, `.mp4` or `.gif`.
        keys: how to match and draw.
        manifest: of the labelled set that holds the frames; None: they lie in the files.
        split: of that set; None: the one that the embeddings were made of.
        path_plot: where to draw the paths; None: nowhere.

    Returns:
        The scores, means over the videos that are drawn.

    Raises:
        UserError: a file that cannot be read or holds no frames, fewer than two videos, a video
            that does not exist, or a program or library is missing.
    """
    _check_suffix(target, ".mp4", ".gif")
    check_writer(target.suffix)
    if path_plot is not None:
        _check_suffix(path_plot, ".png")
        needed("matplotlib.figure")
    videos = read_videos(sources, manifest, split)
    others = companions(videos, keys, str(sources[0]) if len(sources) == 1 else "the files")
    reference = videos[keys.reference]
    kept = {n: matched_to(reference, videos[n], keys) for n in drawn_numbers(others, keys)}
    draw(target, videos, kept, keys)
    if path_plot is not None:
        plot_paths(path_plot, reference, [(videos[n], kept[n]) for n in kept])
    return averaged(scores(reference, videos[n], one) for n, one in kept.items())


def _check_suffix(target: Path, *suffixes: str) -> None:
    if target.suffix not in suffixes:
        raise UserError(f"{target} must end in {' or '.join(suffixes)}: name such a file.")


def companions(videos: Sequence[Video], keys: Alignment, source: str) -> list[int]:
    """Return the numbers of the videos of the reference's action other than the reference.

    Raises:
        UserError: there is none, or the reference or the candidate does not exist.
    """
    for name, number in (("reference", keys.reference), ("candidate", keys.candidate)):
        if number is not None and number >= len(videos):
            raise UserError(
                f"{name} is {number} but {source} holds {len(videos)} videos, counted from 0: "
                "choose one of them."
            )
    action = videos[keys.reference].action
    others = [n for n, x in enumerate(videos) if x.action == action and n != keys.reference]
    if not others:
        raise UserError(
            f"{source} holds no second video of the action of video {keys.reference}: an alignment "
            "needs two or more."
        )
    if keys.candidate is not None and keys.candidate not in others:
        raise UserError(
            f"candidate {keys.candidate} is the reference or shows another action: choose one of "
            f"{', '.join(map(str, others[:10]))}."
        )
    return others


def drawn_numbers(others: Sequence[int], keys: Alignment) -> list[int]:
    """Return which of the others are drawn beside the reference."""
    following = [n for n in others if n > keys.reference] or list(others)
    if keys.mode == "pair":
        return [following[0] if keys.candidate is None else keys.candidate]
    count = min(keys.videos, len(others) + 1)
    if keys.mode == "grid" and keys.published_grid:
        # The original draws no grid of fewer than four videos, but two of them.
        side = int(np.sqrt(count))
        return following[:1] if side == 1 else list(others[: side * side - 1])
    return list(others[: count - 1])


def matched_to(reference: Video, other: Video, keys: Alignment) -> Match:
    """Match a video to the reference as the keys say."""
    return match(reference, other, use_dtw=keys.use_dtw, normalise=keys.normalise)


def draw(target: Path, videos: Sequence[Video], matches: dict[int, Match], keys: Alignment) -> Path:
    """Write the video of the reference and of those matched to it."""
    reference = videos[keys.reference]
    order = [keys.reference, *matches]
    if keys.mode == "grid":
        order = sorted(order)
    rows = grid_rows(len(order)) if keys.mode == "grid" else 1
    count = len(order) if keys.mode == "grid" else 2
    frames = pages(
        panels(videos, order, matches, keys),
        Sheet(count, rows, keys.cell),
        reference,
        scale=keys.scale,
        numbers=keys.numbers,
    )
    return write_video(target, frames, keys.interval_ms)


def panels(
    videos: Sequence[Video], order: Sequence[int], matches: dict[int, Match], keys: Alignment
) -> Iterator[list[Panel]]:
    """Yield what each page shows: one page a frame of the reference."""
    others = list(matches)
    for frame in range(len(videos[keys.reference])):
        shown = order
        if keys.mode == "dynamic":
            shown = [keys.reference, others[frame // keys.switch % len(others)]]
        yield [
            (videos[n], frame if n == keys.reference else int(matches[n].frames[frame]))
            for n in shown
        ]
