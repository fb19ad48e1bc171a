"""Unsupervised discovery of several objects on DAVIS 2017: the official J and F, and SMTC's.

Source: SMTC's released evaluation, and the unsupervised task of DAVIS 2017. One pass over each
video gives both: candidates of every frame are matched with the truth frame by frame, as SMTC's
release scores them, and they are linked to tracks that are written as masks of ids, which the
official protocol matches once a sequence.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field

from timewalk.artefacts import write_json
from timewalk.data.sequences import LabelledVideos
from timewalk.data.sequences import Sequence as Video
from timewalk.errors import UserError
from timewalk.evaluation.base import Inputs, Result
from timewalk.evaluation.davis_folders import MAX_PROPOSALS
from timewalk.evaluation.davis_tables import Scores, SequenceScores, write_csv, write_scores
from timewalk.evaluation.frame_matching import annotations, as_scores, match_frames, true_ids
from timewalk.evaluation.over_videos import Notes, each_video
from timewalk.evaluation.overlays import check_ffmpeg, write_overlay
from timewalk.evaluation.proposal_tracks import DUPLICATE, Enlarge, link, paint, rank
from timewalk.evaluation.proposals import ProposalConfig, Proposals, Proposer, proposer
from timewalk.evaluation.video_segmentation import check_set, percent, save_masks, scored
from timewalk.metrics.video_foreground import enlarged

LAYOUT = "davis2017"
OVERLAYS = ("proposals", "slots")
"""what overlay videos show; the latter where proposals are slots"""
LINKING = (
    "timewalk's own: candidates of a group are linked over frames by cosine of their vectors and "
    "soft IoU of their masks, ranked by score times frames, and left out where their mean soft IoU "
    f"with a better one is at least {DUPLICATE}; SMTC's release links nothing"
)
MATCHING = {
    "jf_official": "one proposal an object for the whole sequence, as davis2017-evaluation",
    "jf_frame_matched": "proposals matched anew in every frame, as SMTC's release; not comparable "
    "with official figures",
}


def _allowed(clusters: int) -> int:
    if clusters > MAX_PROPOSALS:
        raise ValueError(
            f"the official protocol allows {MAX_PROPOSALS} proposals, so set it to {MAX_PROPOSALS} "
            "or less"
        )
    return clusters


class Config(ProposalConfig):
    """Unsupervised object discovery on a `davis2017` set of the task `unsupervised`."""

    kind: Literal["object_discovery"] = "object_discovery"
    clusters: Annotated[int, Field(ge=2), AfterValidator(_allowed)] = 8
    """proposals of a video where they are clusters; 20 at most, as the official protocol allows"""
    enlarge: Enlarge = "bilinear"
    """how masks of tracks are enlarged from cells to pixels; those that are matched in every frame
    are enlarged by `nearest`, as published"""
    overlays: bool = True
    """write videos of each sequence: proposals in colour, true objects as white outlines, and of
    slots the semantic one of each cell"""


def evaluate(inputs: Inputs, config: Config, output_dir: Path) -> Result:
    """Propose objects in every sequence and score them in both ways.

    Args:
        inputs: the run and the prepared set.
        config: settings.
        output_dir: `masks/<sequence>/<frame>.png`, `overlays/`, the official tables,
            `davis_unsupervised-<subset>.json` and `discovery.json` go here, and notes of what is
            done into `work/`.

    Raises:
        UserError: a set of another layout, size or task, or without annotations; a size that the
            network cannot read; slots asked of a run without; or sequences that failed: the others
            are kept.
    """
    videos = LabelledVideos(inputs.dataset)
    if videos.kind != LAYOUT:
        raise UserError(
            f"evaluations of kind '{config.kind}' need a set of kind '{LAYOUT}', but "
            f"{inputs.dataset} is '{videos.kind}'; name another under the key 'dataset'."
        )
    check_set(inputs.dataset, "unsupervised", config.kind)
    for video in videos:
        annotations(video)
    if config.overlays:
        check_ffmpeg()
    propose = proposer(inputs.run, config, inputs.device)

    def do(video: Video) -> dict[str, Any]:
        return discover(video, propose, config, output_dir, inputs.workers)

    key = {
        "proposals": [propose.title, propose.digest, propose.settings],
        "dataset": videos.about["digest"],
        "enlarge": config.enlarge,
    }
    slots = propose.title == "slots"
    shown = [kind for kind in OVERLAYS if kind != "slots" or slots] if config.overlays else []
    drawn = {video.name: [overlay(output_dir, kind, video) for kind in shown] for video in videos}
    kept = {
        video.name
        for video in videos
        if all(path.is_file() for path in drawn[video.name])
        and all((output_dir / "masks" / video.name / name).is_file() for name in pngs(video))
    }
    notes = each_video(videos, output_dir / "work", key, do, kept=kept)
    official = scored(output_dir, videos, inputs.workers, "unsupervised")
    frame_matched = frame_matched_scores(videos, notes)
    counts = [count for note in notes.values() for count in note["candidates"]]
    metrics = {
        **percent(official),
        **{f"frame_matched_{name}": value for name, value in percent(frame_matched).items()},
        "candidates_mean": float(np.mean(counts)),
        "candidates_max": float(max(counts)),
        "from_slots": float(slots),
    }
    about = {
        "matching": MATCHING,
        "linking": LINKING,
        "proposals": {"from": propose.title, **propose.settings},
        "enlarge": config.enlarge,
        "candidates_per_frame": {"mean": metrics["candidates_mean"], "max": max(counts)},
    }
    write_json(output_dir / "discovery.json", about | as_json(official, frame_matched, notes))
    files = [
        *write_csv(official, output_dir),
        write_scores(official, output_dir),
        output_dir / "discovery.json",
        *(path for paths in drawn.values() for path in paths),
    ]
    return Result(protocol(config, videos, slots), metrics, len(official.rows()), files)


def protocol(config: Config, videos: LabelledVideos, slots: bool) -> str:
    """Return the name of the set and task; what differs from the published settings is part of
    it, where they are in use."""
    own = [*config.proposal_title(slots), *(["nearest"] if config.enlarge == "nearest" else [])]
    return "-".join([LAYOUT, videos.subset, "unsupervised", *own])


def discover(
    video: Video, propose: Proposer, config: Config, folder: Path, workers: int
) -> dict[str, Any]:
    """Write the masks and overlays of a video.

    Returns:
        J and F of the objects by frame, matched in every frame; candidates of each frame; and how
        many tracks there were, and were kept.
    """
    for kind in OVERLAYS:
        overlay(folder, kind, video).unlink(missing_ok=True)  # of other settings
    truth = true_ids(video)
    proposals = propose(video)
    tracks = link(proposals)
    kept = rank(tracks, proposals)
    ids = paint(kept, proposals, video.size, config.enlarge)
    save_masks(folder / "masks" / video.name, pngs(video), list(ids))
    if config.overlays:
        write_overlay(overlay(folder, "proposals", video), video, list(ids))
        if propose.title == "slots":
            semantic = slot_ids(proposals, video.size)
            write_overlay(overlay(folder, "slots", video), video, list(semantic))
    matches = match_frames(proposals.masks, truth, workers)
    return {
        "J": matches.J.tolist(),
        "F": matches.F.tolist(),
        "candidates": [len(masks) for masks in proposals.masks],
        "tracks": len(tracks),
        "kept": len(kept),
    }


def pngs(video: Video) -> list[str]:
    """Return the names of the masks of a video."""
    return [f"{path.stem}.png" for path in video.frames]


def overlay(folder: Path, kind: str, video: Video) -> Path:
    """Return the overlay video of a sequence that shows one of ``OVERLAYS``."""
    return folder / "overlays" / kind / f"{video.name}.mp4"


def slot_ids(proposals: Proposals, size: tuple[int, int]) -> np.ndarray:
    """Return the largest semantic slot of each pixel, uint8 (T, H, W), from 1."""
    return enlarged((proposals.group_maps() % 255 + 1).astype(np.uint8), size)


def frame_matched_scores(videos: LabelledVideos, notes: Notes) -> Scores:
    """Return the scores of the matching in every frame."""
    entries = []
    for video in videos:
        J, F = (np.array(notes[video.name][letter]) for letter in ("J", "F"))
        entries.append(as_scores(video.name, [path.stem for path in video.frames], J, F))
    return Scores("unsupervised", videos.subset, tuple(entries), {})


def as_json(official: Scores, frame_matched: Scores, notes: Notes) -> dict[str, Any]:
    """Return both figures: of the set, of each sequence and of each object, percent the former two,
    shares the latter."""
    both = {"jf_official": official, "jf_frame_matched": frame_matched}
    sequences: dict[str, dict[str, Any]] = {
        name: {key: note[key] for key in ("candidates", "tracks", "kept")}
        for name, note in notes.items()
    }
    for key, scores in both.items():
        for entry in scores.sequences:
            alone = Scores(scores.task, scores.subset, (entry,), {})
            sequences[entry.sequence][key] = percent(alone) if entry.objects else None
            sequences[entry.sequence].setdefault("objects", {})
            _add_objects(sequences[entry.sequence]["objects"], key, entry)
    return {
        **{key: percent(scores) for key, scores in both.items()},
        "sequences": sequences,
    }


def _add_objects(objects: dict[str, Any], key: str, entry: SequenceScores) -> None:
    for row in entry.objects:
        found = {"J": asdict(row.J_statistics), "F": asdict(row.F_statistics)}
        proposal = {"proposal": row.proposal} if row.proposal else {}
        objects.setdefault(str(row.object), {})[key] = found | proposal
