"""Videos with phases of an action, checked and indexed in place: one manifest for every layout.

``manifest.json`` (kind `labelled_phases`) is small; what lies beside it is described where it is
read (:class:`timewalk.data.phases.PhaseVideos`). To add a layout: its keys in
``config/labelled.py``, its file here, and its line below.
"""

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timewalk.artefacts import read_manifest, sha256_file, write_manifest
from timewalk.config import (
    MovingPhases,
    PennAction,
    PhaseFrames,
    PhaseLabels,
    PhaseRecords,
    Pouring,
)
from timewalk.data.folder import frame_path, load_times
from timewalk.data.generated_phases import PHASES, PhaseClip, moving_phases
from timewalk.data.phase_labels import doubts, labels_at, segments_of_video
from timewalk.data.phases import KIND
from timewalk.data.prepare.base import check_output, check_videos
from timewalk.data.prepare.folder import relative_to
from timewalk.data.prepare.penn_action import find_penn_action
from timewalk.data.prepare.phase_records import find_phase_records, read_splits
from timewalk.data.prepare.phase_videos import (
    SPLITS,
    CheckedVideo,
    FoundVideo,
    PhaseSet,
    check_video,
    common_warnings,
    read_files,
    read_labels,
    write_split,
)
from timewalk.data.prepare.pouring import find_pouring
from timewalk.data.record_writer import jpeg_of
from timewalk.data.tfrecord import VideoRecord, checksums_digest, shard_name, write_videos
from timewalk.errors import UserError

log = logging.getLogger(__name__)


def prepare_phases(
    name: str, config: PhaseLabels, manifest: Path, frames: Mapping[str, Path]
) -> dict[str, Any]:
    """Check a set of videos with phases and write its manifest, lists and indices.

    Args:
        name: the set's name in the configuration, for messages.
        config: which layout, and where.
        manifest: ``manifest.json`` to write; lists and indices go beside it.
        frames: for `phase_frames`, each video's manifest of frames.

    Returns:
        The manifest.

    Raises:
        UserError: names the file or key, what is wrong with it and what to do.
    """
    found = _find(name, config, manifest, frames)
    for split in SPLITS:
        if not found.splits[split]:
            raise UserError(f"labelled.{name}: the {split} split has no video; add some.")
    warnings = found.warnings + common_warnings(found.splits)
    for warning in warnings:
        log.warning("labelled.%s: %s", name, warning)
    every = [item for split in SPLITS for item in found.splits[split]]
    digest = hashlib.sha256("".join(item.digest for item in every).encode()).hexdigest()
    packed = {item.video.files[0] for item in every if item.video.offsets is not None}
    return write_manifest(
        manifest,
        KIND,
        inputs=found.inputs,
        parameters=config.model_dump(mode="json"),
        counts=_counts(found),
        warnings=warnings,
        name=name,
        layout=str(config.model_dump()["kind"]),
        classes=found.classes,
        source={
            "root": relative_to(found.root, manifest.parent),
            "bytes": {
                path.relative_to(found.root).as_posix(): path.stat().st_size
                for path in sorted(packed)
            },
            "checksums": {
                path.relative_to(found.root).as_posix(): checksums_digest(path)
                for path in sorted(packed)
            },
        },
        splits={
            split: write_split(manifest.parent, split, found.root, found.splits[split])
            for split in SPLITS
        },
        digest=digest,
        **({"actions": found.actions} if found.actions else {}),
    )


def _find(name: str, config: PhaseLabels, manifest: Path, frames: Mapping[str, Path]) -> PhaseSet:
    if isinstance(config, MovingPhases):
        return _generated(name, config, manifest.parent)
    if isinstance(config, PhaseFrames):
        return _of_frames(name, config, frames)
    assert isinstance(config, PhaseRecords | Pouring | PennAction)
    check_output(name, Path(config.root), manifest)
    if isinstance(config, PennAction):
        return find_penn_action(name, config)
    if isinstance(config, Pouring):
        return find_pouring(name, config)
    return find_phase_records(name, config)


def _counts(found: PhaseSet) -> dict[str, int]:
    videos = {split: len(found.splits[split]) for split in SPLITS}
    every = [item for split in SPLITS for item in found.splits[split]]
    return {
        "classes": len(found.classes),
        **videos,
        **{
            f"{split}_frames": sum(len(item.index) for item in found.splits[split])
            for split in SPLITS
        },
        "unlabelled": sum(item.video.labels is None for item in every),
    }


def _of_frames(name: str, config: PhaseFrames, frames: Mapping[str, Path]) -> PhaseSet:
    """Return the videos of a data set; labels are those at the frames' times.

    Raises:
        UserError: no frames; a video of `test`, or one without segments, that is unknown.
    """
    check_videos(name, config.dataset, frames, "test", config.test)
    label_file = Path(config.label_file)
    annotated = read_labels(name, label_file)
    splits: dict[str, list[CheckedVideo]] = {split: [] for split in SPLITS}
    inputs = {video: sha256_file(path) for video, path in sorted(frames.items())}
    for video in sorted(frames):
        folder = frames[video].parent
        times = load_times(folder, read_manifest(frames[video], "frames"))
        key = f"labelled.{name}.classes"
        segments = segments_of_video(annotated, video, len(config.classes), label_file, key)
        found = FoundVideo(
            video,
            [frame_path(folder, number) for number in range(len(times))],
            times,
            labels_at(segments, times, f"{label_file}, '{video}'"),
            doubts=doubts(segments, times),
        )
        split = "test" if video in config.test else "train"
        splits[split].append(check_video(name, found, read_files(found)))
    root = Path(os.path.commonpath([path.parent.parent for path in frames.values()]))
    return PhaseSet(
        root, splits, list(config.classes), inputs | {"label_file": sha256_file(label_file)}
    )


def _generated(name: str, config: MovingPhases, folder: Path) -> PhaseSet:
    """Write the generated videos as the TCC tools write videos, and return them."""
    clips = moving_phases(
        config.train + config.test,
        (config.shortest, config.longest),
        (config.height, config.width),
        config.seed,
        clutter=config.clutter,
        distractors=config.distractors,
        variety=config.variety,
        shade=config.shade,
        sides=config.sides,
    )
    parts = {"train": clips[: config.train], "test": clips[config.train :]}
    files = {split: folder / shard_name(f"{config.kind}_{split}", 0, 1) for split in SPLITS}
    for split, path in files.items():
        write_videos(path, (_record(clip) for clip in parts[split]))
    return read_splits(name, folder, {split: [path] for split, path in files.items()}, None)


def _record(clip: PhaseClip) -> VideoRecord:
    return VideoRecord(
        clip.name,
        [jpeg_of(frame) for frame in clip.frames],
        class_names=list(PHASES),
        frame_labels=clip.labels.tolist(),
    )
