"""One moving object against all else: J of the foreground that slots or clusters make.

Source: SMTC, which names these sets and has no script for them; what is followed instead is in
docs/evaluations/foreground_segmentation.md. The network sees all frames of a video; those with an
annotation are scored, at its size, all objects as one. Which slots are the foreground is told by an
oracle that reads the annotation (`oracle_slots`, a routine of SMTC's release) or by the frame's
border (`border`, ours).

Shapes: V passes, F annotated frames, K slots or clusters, h and w rows and columns of cells, H and
W of pixels.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from timewalk.artefacts import write_json
from timewalk.config import Positive
from timewalk.data.sequences import VOID, LabelledVideos, read_frame, read_ids
from timewalk.data.sequences import Sequence as Video
from timewalk.errors import UserError
from timewalk.evaluation.base import Inputs, Result, write_csv
from timewalk.evaluation.over_videos import Notes, each_video
from timewalk.evaluation.overlays import FPS, WHITE, check_ffmpeg, coloured, edges
from timewalk.evaluation.proposals import ProposalConfig, Proposer, proposer
from timewalk.metrics.video_foreground import (
    THRESHOLD,
    border_foreground,
    counted,
    enlarged,
    iou,
    occurring,
    oracle_foreground,
    overlap,
)

log = logging.getLogger(__name__)

LAYOUTS = ("davis2016", "davis2017", "fbms59", "segtrack_v2")
"""kinds of sets whose annotation is, or can be read as, one foreground"""
WITH_IDS = "davis2017"
"""the kind whose masks are ids, of which 255 is void"""
DENSE = ("davis2016", "davis2017")
"""kinds of which scores without the first and the last frame are given too"""


class Config(ProposalConfig):
    """J of one foreground on a `davis2016`, `segtrack_v2`, `fbms59` or `davis2017` set."""

    OF_SLOTS: ClassVar[tuple[str, ...]] = ("frames_per_clip", "iterations", "statistics")

    kind: Literal["foreground_segmentation"] = "foreground_segmentation"
    mask: Literal["oracle_slots", "border"] = "oracle_slots"
    """how slots become one mask: `oracle_slots` keeps those that agree more with the annotated
    foreground than with the background, so it reads the annotation; `border` keeps those that are
    weaker at the frame's border than inside, and reads none"""
    passes: Positive = 1
    """draws of the instance slots (or of the clusters' first centres) whose masks are averaged,
    with the seeds `seed`, `seed` + 1, ..."""
    averaging: Literal["sequence", "frame"] = "sequence"
    """what J is: the mean over sequences of their means over frames, or the mean over all frames"""
    overlays: bool = True
    """write a video of each sequence's annotated frames: the mask in colour, the true one as a
    white outline"""


def evaluate(inputs: Inputs, config: Config, output_dir: Path) -> Result:
    """Score the foreground of every video.

    Args:
        inputs: the run and the prepared set.
        config: settings.
        output_dir: `sequences.csv`, `frames.json` and `overlays/<sequence>.mp4` go here, and notes
            of the videos that are done into `work/`.

    Raises:
        UserError: a set of another kind or without any annotation, slots that the run does not
            have, a size that the network cannot read, or videos that failed; the others are kept.
    """
    videos = LabelledVideos(inputs.dataset)
    if videos.kind not in LAYOUTS:
        raise UserError(
            f"evaluations of kind '{config.kind}' need a set of kind {', '.join(LAYOUTS)}, but "
            f"{inputs.dataset} is '{videos.kind}'; name another under the key 'dataset'."
        )
    if config.overlays:
        check_ffmpeg()  # said before the work, not after it
    scored = with_annotation(videos)
    propose = proposer(inputs.run, config, inputs.device)
    drawn = output_dir / "overlays"

    def do(video: Video) -> dict[str, Any]:
        return segmented(video, videos.kind, propose, config, drawn)

    key = {
        "proposals": [propose.title, propose.digest, propose.settings],
        "dataset": videos.about["digest"],
        "mask": [config.mask, config.passes],
    }
    names = {video.name for video in scored}
    kept = {name for name in names if not config.overlays or (drawn / f"{name}.mp4").is_file()}
    notes = each_video(scored, output_dir / "work", key, do, kept=kept)
    name, found = protocol(config, videos, propose.title), metrics(notes, config, videos.kind)
    about = {
        "protocol": name,
        "mask": config.mask,
        "proposals": propose.title,
        "settings": propose.settings,
        "encoder": propose.digest,
        "seeds": seeds(config),
    }
    files = tables(notes, about, videos.kind, output_dir)
    if config.overlays:
        files += [drawn / f"{name}.mp4" for name in notes]
    frames = sum(len(note["frames"]) for note in notes.values())
    return Result(name, found, frames, files)


def seeds(config: Config) -> list[int]:
    """Return the seed of each pass."""
    return list(range(config.seed, config.seed + config.passes))


def protocol(config: Config, videos: LabelledVideos, proposals: str) -> str:
    """Return the protocol's name: set, mask recipe and averaging, then what is not as published."""
    recipe = "oracle" if config.mask == "oracle_slots" else config.mask
    title = [videos.kind, videos.subset, f"{recipe}_{proposals}", f"{config.averaging}_mean"]
    several = f"p{config.passes}" if config.passes > 1 else ""
    changed = config.proposal_title(slots=proposals == "slots")
    return "-".join(filter(None, [*title, several, *changed]))


def with_annotation(videos: LabelledVideos) -> list[Video]:
    """Return the videos with an annotated frame; the others are told in the log.

    Raises:
        UserError: there is none.
    """
    found = [video for video in videos if annotated(video)]
    if not found:
        raise UserError(
            f"no frame of '{videos.name}' has an annotation; name a set with masks under the key "
            "'dataset'."
        )
    if without := [video.name for video in videos if not annotated(video)]:
        log.warning("left out, without an annotated frame: %s", ", ".join(without))
    return found


def annotated(video: Video) -> list[int]:
    """Return the frames that have an annotation."""
    layers = (video.masks, *video.layers)
    return [place for place, masks in enumerate(zip(*layers, strict=True)) if any(masks)]


def segmented(
    video: Video, kind: str, propose: Proposer, config: Config, drawn: Path
) -> dict[str, Any]:
    """Return the pixels of intersection and union in each annotated frame of a video.

    Args:
        video: its frames and masks.
        kind: of the set.
        propose: gives the soft masks of each pass.
        config: settings.
        drawn: folder of the overlay; an old one of the video is removed.

    Returns:
        `frames` (names), `inner` (whether a frame is neither the first nor the last of the video),
        `both` and `union` (pixels), a value a frame each.
    """
    film = drawn / f"{video.name}.mp4"
    film.unlink(missing_ok=True)  # of other settings
    places = annotated(video)
    masks_VFKhw = np.stack([propose(video, seed).all_masks[places] for seed in seeds(config)])
    note: dict[str, Any] = {
        "frames": [video.frames[place].stem for place in places],
        "inner": [0 < place < len(video.frames) - 1 for place in places],
        "both": [],
        "union": [],
    }
    cells, truths = [], []
    for number, place in enumerate(places):
        truth, void = annotation(video, place, kind)
        counts = counted(truth, masks_VFKhw.shape[-2:], void)
        masks_VKhw = occurring(masks_VFKhw[:, number], video.size)
        oracle = config.mask == "oracle_slots"
        soft = oracle_foreground(masks_VKhw, counts) if oracle else border_foreground(masks_VKhw)
        both, union = overlap(soft > THRESHOLD, counts)
        note["both"].append(int(both))
        note["union"].append(int(union))
        cells.append(soft > THRESHOLD)
        truths.append(truth)
    if config.overlays:
        # Here, because a node that only trains may be without what writes videos.
        from timewalk.video.write import write_mp4

        pictures = overlay_frames(video, places, cells, truths)
        write_mp4(film, pictures, FPS)
    return note


def annotation(video: Video, place: int, kind: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the true foreground of a frame and the pixels that do not count, bool (H, W) each.

    Raises:
        UserError: a mask cannot be read or has another size.
    """
    path = video.masks[place]
    if kind == WITH_IDS and path is not None:
        ids = read_ids(path, video.size)
        return ids > 0, ids == VOID
    truth = video.foreground(place)
    assert truth is not None, "frames without annotation are left out"
    return truth, None


def overlay_frames(
    video: Video, places: Sequence[int], cells: Sequence[np.ndarray], truths: Sequence[np.ndarray]
) -> Iterator[np.ndarray]:
    """Yield frames, uint8 (H, W, 3), with their masks (h, w) in colour and the outlines of the true
    ones (H, W)."""
    for place, mask, truth in zip(places, cells, truths, strict=True):
        pixels = read_frame(video.frames[place], video.size)
        picture = coloured(pixels, enlarged(mask, video.size).astype(np.uint8))
        picture[edges(truth)] = WHITE
        yield picture


def scores(note: dict[str, Any], empty: float = 1.0) -> np.ndarray:
    """Return J of each frame, 0 to 1, and ``empty`` where nothing is there nor predicted."""
    return iou(np.array(note["both"]), np.array(note["union"]), empty)


def averages(frames: Sequence[np.ndarray]) -> dict[str, float | None]:
    """Return the means of J in percent by averaging; each entry of ``frames`` is a sequence, one
    without frames does not count, and None is a mean of nothing."""
    counting = [values for values in frames if len(values)]
    if not counting:
        return {"sequence": None, "frame": None}
    return {
        "sequence": 100 * float(np.mean([values.mean() for values in counting])),
        "frame": 100 * float(np.concatenate(counting).mean()),
    }


def metrics(notes: Notes, config: Config, kind: str) -> dict[str, float | None]:
    """Return J in percent under each convention; `J` is the one that ``averaging`` names."""
    every = averages([scores(note) for note in notes.values()])
    found = {
        "J": every[config.averaging],
        "J_sequence_mean": every["sequence"],
        "J_frame_mean": every["frame"],
        "J_motion_grouping": averages([scores(note, empty=0) for note in notes.values()])["frame"],
    }
    if kind in DENSE:
        inner = [scores(note)[np.array(note["inner"])] for note in notes.values()]
        found["J_without_ends"] = averages(inner)[config.averaging]
    return {**found, "sequences": float(len(notes))}


def tables(notes: Notes, about: dict[str, Any], kind: str, folder: Path) -> list[Path]:
    """Write J of each sequence as `sequences.csv` in percent, and of each frame as `frames.json`
    (0 to 1) with what it was computed with; without the ends for DAVIS alone."""
    rows: list[list[object]] = [["sequence", "frames", "J", "J_without_ends", "J_motion_grouping"]]
    frames = {}
    for name, note in notes.items():
        values = scores(note)
        inner = values[np.array(note["inner"])] if kind in DENSE else values[:0]
        columns = averages([values]), averages([inner]), averages([scores(note, empty=0)])
        percents = [None if (x := each["frame"]) is None else f"{x:.6g}" for each in columns]
        rows.append([name, len(values), *percents])
        frames[name] = dict(zip(note["frames"], values.tolist(), strict=True))
    written = folder / "frames.json"
    write_json(written, about | {"J": frames})
    return [write_csv(folder / "sequences.csv", rows), written]
