"""Unsupervised discovery of several objects on DAVIS 2017: the official J and F, and SMTC's.

Sheet: object-discovery-eval. One pass over each video gives both: candidates of every frame are
matched with the truth frame by frame, as SMTC's release scores them, and they are linked to tracks
that are written as masks of ids, which the official protocol matches once a sequence.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from timewalk.artefacts import write_json
from timewalk.data.sequences import LabelledVideos
from timewalk.data.sequences import Sequence as Video
from timewalk.errors import UserError
from timewalk.evaluation.base import Inputs, Result
from timewalk.evaluation.davis_tables import Scores, SequenceScores, write_csv, write_scores
from timewalk.evaluation.frame_matching import annotations, as_scores, match_frames, true_ids
from timewalk.evaluation.over_videos import Notes, each_video
from timewalk.evaluation.overlays import check_ffmpeg, write_overlay
from timewalk.evaluation.proposal_tracks import Enlarge, link, nearest, paint, rank
from timewalk.evaluation.proposals import ProposalConfig, Proposals, Proposer, proposer
from timewalk.evaluation.video_segmentation import check_set, percent, save_masks, scored

LAYOUT = "davis2017"
NOT_FOR_RESULTS = {"runs", "overlays"}
"""keys that change no video's scores"""
LINKING = (
    "timewalk's own: candidates of a group are linked over frames by cosine of their vectors and "
    "soft IoU of their masks; SMTC's release links nothing"
)
MATCHING = {
    "jf_official": "one proposal an object for the whole sequence, as davis2017-evaluation",
    "jf_frame_matched": "proposals matched anew in every frame, as SMTC's release; not comparable "
    "with official figures",
}


class Config(ProposalConfig):
    """Unsupervised object discovery on a `davis2017` set of the task `unsupervised`."""

    kind: Literal["object_discovery"] = "object_discovery"
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
        "encoder": propose.digest,
        "dataset": videos.about["digest"],
        "config": config.model_dump(mode="json", exclude=NOT_FOR_RESULTS),
    }
    slots = propose.title == "slots"
    drawn = {
        video.name: overlays(output_dir, video, slots) if config.overlays else {}
        for video in videos
    }
    kept = {
        video.name
        for video in videos
        if all(path.is_file() for path in drawn[video.name].values())
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
        *(path for paths in drawn.values() for path in paths.values()),
    ]
    return Result(protocol(config, videos), metrics, len(official.rows()), files)


def protocol(config: Config, videos: LabelledVideos) -> str:
    """Return the name of the official protocol; what differs from the published settings is part
    of it."""
    own = [*config.proposal_title(), *(["nearest"] if config.enlarge == "nearest" else [])]
    return "-".join([LAYOUT, videos.subset, "unsupervised", "official", *own])


def discover(
    video: Video, propose: Proposer, config: Config, folder: Path, workers: int
) -> dict[str, Any]:
    """Write the masks and overlays of a video.

    Returns:
        J and F of the objects by frame, matched in every frame; candidates of each frame; and how
        many tracks there were, and were kept.
    """
    truth = true_ids(video)
    proposals = propose(video)
    tracks = link(proposals)
    kept = rank(tracks, proposals)
    ids = paint(kept, proposals, video.size, config.enlarge)
    save_masks(folder / "masks" / video.name, pngs(video), list(ids))
    if config.overlays:
        for kind, path in overlays(folder, video, propose.title == "slots").items():
            drawn = slot_ids(proposals, video.size) if kind == "slots" else ids
            write_overlay(path, video, list(drawn))
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


def overlays(folder: Path, video: Video, slots: bool) -> dict[str, Path]:
    """Return the overlay videos of a sequence by what they show."""
    kinds = ["proposals", "slots"] if slots else ["proposals"]
    return {kind: folder / "overlays" / kind / f"{video.name}.mp4" for kind in kinds}


def slot_ids(proposals: Proposals, size: tuple[int, int]) -> np.ndarray:
    """Return the largest semantic slot of each pixel, uint8 (T, H, W), from 1."""
    maps = proposals.group_maps()
    rows, columns = nearest(size, maps.shape[1:])
    return (maps % 255 + 1).astype(np.uint8)[:, rows][:, :, columns]


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
