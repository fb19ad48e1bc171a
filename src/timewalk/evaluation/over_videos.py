"""An evaluation by label propagation over all videos of a set, with and without adaptation.

What DAVIS, JHMDB and VIP share: the check of the set, going on where a job was interrupted, keeping
what is done when a video fails, and the plain figures beside those of test-time adaptation.
"""

import logging
import sys
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from tqdm import tqdm

from timewalk.artefacts import read_json, sha256_json, write_json
from timewalk.data.segmented import SegmentedClip
from timewalk.data.sequences import LabelledVideos
from timewalk.data.sequences import Sequence as Video
from timewalk.data.tracks import Track
from timewalk.encoders import Encoder, encoder_digest, load_encoder
from timewalk.errors import UserError
from timewalk.evaluation.adaptation import AdaptConfig, Adapter
from timewalk.evaluation.base import Inputs, Result
from timewalk.evaluation.label_propagation import BeforeFrame, FrameFeatures
from timewalk.evaluation.overlays import check_ffmpeg
from timewalk.evaluation.protocols import PropagationConfig, Protocol

log = logging.getLogger(__name__)

Found = TypeVar("Found")
Clip = TypeVar("Clip", Video, SegmentedClip, Track)
Notes = dict[str, dict[str, Any]]

SHOWN = 3
"""failed videos that a message quotes"""
NOT_FOR_RESULTS = {"runs", "tool", "tool_path", "tool_python"}
"""keys that change no video's result"""


class VideosConfig(PropagationConfig):
    """Keys of an evaluation over videos."""

    overlays: bool = False
    """write a video of each sequence: predictions in colour over the frames, the truth in white"""

    adapt: AdaptConfig | None = None
    """test-time adaptation; the result has the plain figures too"""


@dataclass(frozen=True)
class Task(Generic[Found]):
    """What one evaluation does.

    Attributes:
        layout: kind of set that it reads.
        protocol: the protocol for an encoder.
        do: works on one video, given its features, what is to be called before each frame, and the
            folder to write into; returns what is to be remembered of it.
        output: what that leaves of a video, below the folder: without it the video is done again.
        score: scores a folder, given the set and what is remembered; returns also the files.
        numbers: metrics of the scores.
        main: the metric whose gain by adaptation is told.
        samples: how many of what is counted were scored.
    """

    layout: str
    protocol: Callable[[Encoder], Protocol]
    do: Callable[[Video, FrameFeatures, BeforeFrame | None, Path], dict[str, Any]]
    output: Callable[[Video], str]
    score: Callable[[Path, LabelledVideos, Notes], tuple[Found, list[Path]]]
    numbers: Callable[[Found], dict[str, float | None]]
    main: str
    samples: Callable[[Found, LabelledVideos], int]


def evaluate_videos(
    inputs: Inputs, config: VideosConfig, output_dir: Path, task: Task[Found]
) -> Result:
    """Do a task on all videos of a set.

    Args:
        inputs: the run and the prepared set.
        config: settings.
        output_dir: files go here, and notes of what is done into `work/`; with adaptation the same
            without it into `plain/`.
        task: what is done.

    Raises:
        UserError: a set of another layout, or videos that failed; the others are kept.
    """
    videos = LabelledVideos(inputs.dataset)
    if videos.kind != task.layout:
        raise UserError(
            f"evaluations of kind '{config.kind}' need a set of kind '{task.layout}', but "
            f"{inputs.dataset} is '{videos.kind}'; name another under the key 'dataset'."
        )
    if config.overlays:
        check_ffmpeg()  # said before the work, not after it
    settings = config.model_dump(mode="json", exclude=NOT_FOR_RESULTS)
    key = {
        "encoder": encoder_digest(inputs.run),
        "dataset": videos.about["digest"],
    }
    plain_dir = output_dir / "plain" if config.adapt else output_dir
    plain_key = key | {"config": settings | {"adapt": None}}
    encoder = load_encoder(inputs.run).eval().to(inputs.device)
    title, found, files, _ = _once(inputs, plain_dir, videos, plain_key, task, encoder)
    metrics = task.numbers(found)
    if config.adapt is not None:
        before, plain_files = metrics, files
        adapter = Adapter(inputs.run, config.adapt, inputs.device)
        title, found, files, notes = _once(
            inputs, output_dir, videos, key | {"config": settings}, task, adapter.encoder, adapter
        )
        title = f"{title}-{config.adapt.title()}"
        files += plain_files
        metrics = compared(task.numbers(found), before, task.main, list(notes.values()))
    protocol = f"{task.layout}-{videos.subset}-{title}"
    return Result(protocol, metrics, task.samples(found, videos), files)


def _once(
    inputs: Inputs,
    folder: Path,
    videos: LabelledVideos,
    key: dict[str, Any],
    task: Task[Found],
    encoder: Encoder,
    adapter: Adapter | None = None,
) -> tuple[str, Found, list[Path], Notes]:
    protocol = task.protocol(encoder)

    def do(video: Video) -> dict[str, Any]:
        features = FrameFeatures(encoder, inputs.device, protocol, video.frames, video.size)
        before = adapter.start(video.name, video.frames, video.size) if adapter else None
        note = task.do(video, features, before, folder)
        return {**note, **(adapter.spent() if adapter else {})}

    # Weights that are carried from video to video are in no note.
    carried = adapter is not None and not adapter.config.reset
    kept = (video for video in videos if not carried and (folder / task.output(video)).exists())
    notes = each_video(videos, folder / "work", key, do, kept={video.name for video in kept})
    found, files = task.score(folder, videos, notes)
    return protocol.title, found, files, notes


def compared(
    adapted: dict[str, float | None],
    plain: dict[str, float | None],
    main: str,
    spent: list[dict[str, Any]],
) -> dict[str, float | None]:
    """Return metrics with adaptation, those without it as `plain_*`, the gain and the cost."""
    after, before = adapted[main], plain[main]
    return {
        **adapted,
        **{f"plain_{name}": value for name, value in plain.items()},
        f"gain_{main}": None if after is None or before is None else after - before,
        "adapt_seconds": sum(video["seconds"] for video in spent),
        "adapt_updates": sum(video["updates"] for video in spent),
    }


def each_video(
    videos: Iterable[Clip],
    work: Path,
    key: dict[str, Any],
    do: Callable[[Clip], dict[str, Any]],
    *,
    kept: Set[str],
) -> Notes:
    """Do something for every video, going on where an interrupted job stopped.

    Args:
        videos: the sequences.
        work: folder of a small file for each video that is done.
        key: what the results depend on; what was done under another key is done again.
        do: writes what belongs to a video and returns what is to be remembered.
        kept: names of the videos whose results of an earlier job are still there and may be used.

    Returns:
        what ``do`` returned, by name of the video.

    Raises:
        UserError: some videos failed: names them, after all others are done.
    """
    digest, videos = sha256_json(key), list(videos)
    done: Notes = {}
    faults: dict[str, str] = {}
    for video in tqdm(videos, unit="video", disable=not sys.stderr.isatty()):
        note = work / f"{video.name}.json"
        known = read_json(note) if note.is_file() else {}
        if known.get("key") == digest and video.name in kept:
            done[video.name] = known["found"]
            continue
        log.info("%s: %d frames", video.name, len(video.frames))
        # While its files are overwritten no note may vouch for them.
        note.unlink(missing_ok=True)
        try:
            done[video.name] = do(video)
        except UserError as error:
            log.error("%s: %s", video.name, error)
            faults[video.name] = str(error)
            continue
        write_json(note, {"key": digest, "found": done[video.name]})
    if faults:
        quoted = list(faults.items())[:SHOWN]
        first = "; ".join(f"{name}: {fault.removesuffix('.')}" for name, fault in quoted)
        raise UserError(
            f"{len(faults)} of {len(videos)} videos failed ({first}); mend them and start again: "
            "the others are kept."
        )
    return done
