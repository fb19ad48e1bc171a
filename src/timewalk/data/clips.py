"""Clips of several videos: the contract ClipSource and its two implementations.

A clip of F frames, S frames apart, starts at any frame that leaves room as the data set of DoRA
(ICLR 2024) counts it: a video of T frames has T - F*S clips, and clip i of a video begins at its
frame i. Where steps shrink, as CRW (NeurIPS 2020) has it, a video with T < F*S takes the largest
step with which a clip fits, and every video has T - F*S + 1 clips of its own step. The videos'
ranges follow one another; a clip never crosses videos.

Sampled clips, as TimeT (ICCV 2023) has them, are not numbered by their frames: each video has the
same number of clips, and which frames a clip takes is drawn anew each time. So are the windows of
SMTC (ICCV 2023). A sampler of a method's own (:class:`timewalk.data.sampling.FrameSampler`) draws
in the same way.
"""

import logging
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from timewalk.data.decode import decode_frames
from timewalk.data.folder import FrameStore
from timewalk.data.frame_folders import open_stores
from timewalk.data.images import ImageStore
from timewalk.data.sampling import Drawn, FrameSampler, anywhere, window, window_step
from timewalk.errors import UserError

log = logging.getLogger(__name__)

SHOWN = 3
"""videos that a message names"""

Sampling = Literal["uniform", "dense", "regular", "full", "window"]
"""how the frames of a sampled clip lie in their video: anywhere, in order; in a row; with a fixed
step; all of them; with a fixed step around a frame that leaves half a clip free on both sides"""


class ClipShape(NamedTuple):
    """Which frames make a clip, and which clips an epoch.

    Attributes:
        frames: F, frames in a clip.
        step: S, from one frame to the next, in frames of the data set. Single frames have step 0:
            every frame of a video counts.
        per_video: most clips of one video in an epoch, drawn anew in each; None: all.
        shrink: whether the step is reduced, video by video, until a clip fits.
        sampling: how a clip's frames are drawn; None: clips have numbers and their frames follow.
        sampler: draws a clip's frames, instead of ``sampling``.
        fraction: share of the videos of each action that are used, the first ones; at least one is.
    """

    frames: int
    step: int
    per_video: int | None = None
    shrink: bool = False
    sampling: Sampling | None = None
    sampler: FrameSampler | None = None
    fraction: float = 1.0


@dataclass
class Clip:
    """Some frames of one video.

    Attributes:
        frames: uint8 (T, 3, H, W), RGB.
        times: float64 (T,), seconds from the video's first frame; of folders of images, which have
            no clock, the frames' numbers; of still images 0.
        video: the video's name.
        start: number of the first frame within the video.
        steps: int64 (S,), the sampled frames as drawn. Those of a sampler may lie outside the video
            and are fewer than T where frames come with context; else the T frames' numbers.
        length: frames of the video.
        labels: int64 (T,), label of each frame; None where the video has none.
    """

    frames: Tensor
    times: Tensor
    video: str
    start: int
    steps: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    length: int = 0
    labels: Tensor | None = None


class ClipSource(Protocol):
    """Clips by number, whatever the storage. Safe in forked and spawned loader workers."""

    def __len__(self) -> int:
        """Return the number of clips."""

    def counts(self) -> list[int]:
        """Return the number of clips of each video, in the clips' order."""

    def groups(self) -> list[int]:
        """Return the group of each clip, its video's action; 0 where videos have none."""

    def clip(self, index: int, rng: torch.Generator | None = None) -> Clip:
        """Return a clip; damaged data is a :class:`UserError` with file and offset.

        Args:
            index: its number.
            rng: draws the frames of a sampled clip; None: frames spread evenly, for pictures.
        """


class VideoClips:
    """Clips of ``num_frames`` frames, ``step`` frames apart, of videos laid end to end.

    With ``shrink`` a video of less than ``num_frames`` times ``step`` frames has a smaller step.
    """

    def __init__(
        self, stores: Sequence[FrameStore], num_frames: int, step: int, shrink: bool = False
    ) -> None:
        self.stores, self.num_frames = list(stores), num_frames
        self.steps = [
            min(step, len(store) // num_frames) if shrink else step for store in self.stores
        ]
        lengths = zip(self.stores, self.steps, strict=True)
        self._counts = [len(store) - num_frames * step + shrink for store, step in lengths]
        self.ends = list(accumulate(self._counts))

    def __len__(self) -> int:
        return self.ends[-1]

    def counts(self) -> list[int]:
        """Return the number of clips of each video."""
        return self._counts

    def groups(self) -> list[int]:
        """Return the action of each clip's video."""
        return _groups(self.stores, self._counts)

    def locate(self, index: int) -> tuple[int, int]:
        """Return (number of the video, first frame within it) of a clip."""
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        video = bisect_right(self.ends, index)
        return video, index - (self.ends[video - 1] if video else 0)

    def clip(self, index: int, rng: torch.Generator | None = None) -> Clip:
        """Return a clip, decoded; nothing is drawn."""
        video, start = self.locate(index)
        store, step = self.stores[video], self.steps[video]
        return _clip(store, [start + frame * step for frame in range(self.num_frames)])


class SampledClips:
    """``per_video`` clips of each video, whose frames are drawn when a clip is asked for.

    Args:
        stores: the videos, each long enough (:func:`open_clips` sees to it).
        num_frames: F, frames of a clip; `full` takes all of a video.
        sampling: how frames are drawn.
        step: between frames, in frames of the data set (`regular`, `window`); smaller, video by
            video, where it does not fit.
        per_video: clips of each video.
        sampler: draws frames instead.
    """

    def __init__(
        self,
        stores: Sequence[FrameStore],
        num_frames: int,
        sampling: Sampling | None,
        step: int = 1,
        per_video: int = 1,
        sampler: FrameSampler | None = None,
    ) -> None:
        self.stores, self.num_frames = list(stores), num_frames
        self.sampling, self.step, self.per_video = sampling, step, per_video
        self.sampler = sampler

    def __len__(self) -> int:
        return len(self.stores) * self.per_video

    def counts(self) -> list[int]:
        """Return the number of clips of each video."""
        return [self.per_video] * len(self.stores)

    def groups(self) -> list[int]:
        """Return the action of each clip's video."""
        return _groups(self.stores, self.counts())

    def clip(self, index: int, rng: torch.Generator | None = None) -> Clip:
        """Return a clip, decoded."""
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        store = self.stores[index // self.per_video]
        if self.sampler is not None:
            return _drawn(store, self.sampler.draw(len(store), rng))
        return _clip(store, self.numbers(len(store), rng))

    def numbers(self, length: int, rng: torch.Generator | None = None) -> list[int]:
        """Return the frames of a clip, in order, of a video with ``length`` frames."""
        if self.sampling == "full":
            return list(range(length))
        if self.sampling == "uniform":
            return anywhere(length, self.num_frames, rng)
        if self.sampling == "window":
            return window(length, self.num_frames, self.step, rng)
        step = self.step if self.sampling == "regular" else 1
        # A video too short for the step takes the largest that fits.
        step = min(step, length // self.num_frames)
        # As published, the last frame is followed by a whole step too.
        room = length - self.num_frames * step + 1
        start = room // 2 if rng is None else int(torch.randint(room, (), generator=rng))
        return [start + frame * step for frame in range(self.num_frames)]


def _groups(stores: Sequence[FrameStore], counts: Sequence[int]) -> list[int]:
    each = zip(stores, counts, strict=True)
    return [max(getattr(store, "action", 0), 0) for store, count in each for _ in range(count)]


def _clip(store: FrameStore, numbers: list[int]) -> Clip:
    return _made(store, numbers, numbers, decode_frames(store, numbers))


def _drawn(store: FrameStore, drawn: Drawn) -> Clip:
    """Return the clip of what was drawn; a frame that comes again is decoded once."""
    once, places = np.unique(drawn.frames, return_inverse=True)
    frames = decode_frames(store, once.tolist())[torch.from_numpy(places)]
    return _made(store, drawn.frames, drawn.steps, frames)


def _made(store: FrameStore, numbers: list[int], steps: list[int], frames: Tensor) -> Clip:
    labels = getattr(store, "labels", None)
    return Clip(
        frames=frames,
        times=torch.from_numpy(store.times[numbers]),
        video=store.video,
        start=numbers[0],
        steps=torch.tensor(steps),
        length=len(store),
        labels=None if labels is None else torch.from_numpy(labels[numbers]),
    )


def open_clips(
    manifests: Sequence[Path],
    num_frames: int,
    step: int,
    shrink: bool = False,
    sampling: Sampling | None = None,
    per_video: int | None = None,
    sampler: FrameSampler | None = None,
    fraction: float = 1.0,
) -> ClipSource:
    """Open the shards of some videos as one source of clips.

    Args:
        manifests: ``<video>.json`` of the shards stage, in the order of the clips.
        num_frames: F, frames of a clip.
        step: S, frames between them.
        shrink: reduce S for a video of less than F*S frames; one of less than F is left out, with a
            warning.
        sampling: draw each clip's frames so; None: number the clips by their first frame.
        per_video: sampled clips of each video; None: one.
        sampler: draws each clip's frames instead; ``num_frames`` and ``step`` then say nothing.
        fraction: share of the videos of each action that are used, the first ones; at least one is.

    Raises:
        UserError: no video, damaged shards, or a video shorter than a clip.
    """
    if not manifests:
        raise UserError("no videos: name at least one under the data set's key 'videos'.")
    stores = _first([store for path in manifests for store in open_stores(Path(path))], fraction)
    stills = [store.video for store in stores if isinstance(store, ImageStore)]
    if stills and num_frames > 1:
        raise UserError(
            f"the data set '{stills[0]}' holds still images, but a clip of this run has "
            f"{num_frames} frames; choose a data set of videos, or a method that learns from "
            "images (dino)."
        )
    if sampler is not None:
        _refuse_below(stores, sampler.shortest)
        return SampledClips(stores, num_frames, None, step, per_video or 1, sampler)
    if sampling == "window":
        fitting = _with_windows(stores, num_frames, step)
        return SampledClips(fitting, num_frames, sampling, step, per_video or 1)
    if sampling is not None:
        _refuse_short(stores, num_frames, sampling)
        return SampledClips(stores, num_frames, sampling, step, per_video or 1)
    if shrink:
        return VideoClips(_long_enough(stores, num_frames), num_frames, step, shrink)
    short = [store for store in stores if len(store) <= num_frames * step]
    if short:
        found = _few([f"'{store.video}' has {len(store)} frames" for store in short])
        raise UserError(
            f"{found}, but a clip of {num_frames} frames with step {step} needs at least "
            f"{num_frames * step + 1}: lower the frames of a clip or the step between them, "
            "raise the data set's frames.fps, or leave the video out."
        )
    return VideoClips(stores, num_frames, step)


def _first(stores: Sequence[FrameStore], fraction: float) -> list[FrameStore]:
    """Return the first videos of each action; at least one of each."""
    groups = _groups(stores, [1] * len(stores))
    room = {group: max(1, int(fraction * count)) for group, count in Counter(groups).items()}
    earlier: Counter[int] = Counter()
    kept = []
    for store, group in zip(stores, groups, strict=True):
        if earlier[group] < room[group]:
            kept.append(store)
        earlier[group] += 1
    return kept


def _refuse_short(stores: Sequence[FrameStore], num_frames: int, sampling: Sampling) -> None:
    """Refuse videos of which no clip can be sampled; `uniform` shows frames twice instead."""
    needed = {"uniform": 1, "dense": num_frames, "regular": num_frames, "full": 2}[sampling]
    short = [_length(store) for store in stores if len(store) < needed]
    if not short:
        return
    remedy = "leave the video out."
    if sampling != "full":
        remedy = "lower the frames of a clip, set sampling to uniform, or leave the video out."
    raise UserError(
        f"a clip with `sampling: {sampling}` needs {needed} frames, but there are less in "
        f"{_few(short)}: {remedy}"
    )


def _refuse_below(stores: Sequence[FrameStore], shortest: int) -> None:
    """Refuse videos of which a sampler can draw no clip."""
    short = [_length(store) for store in stores if len(store) < shortest]
    if short:
        raise UserError(
            f"frames are drawn from videos of at least {shortest} frames, but there are less in "
            f"{_few(short)}: lower the run's offset, or leave the video out."
        )


def _with_windows(stores: Sequence[FrameStore], num_frames: int, step: int) -> list[FrameStore]:
    """Return the videos that hold a window at all; name the others, and those of smaller steps."""
    steps = [window_step(len(store), num_frames, step) for store in stores]
    each = list(zip(stores, steps, strict=True))
    fitting = [store for store, found in each if found is not None]
    short = [_length(store) for store, found in each if found is None]
    half = num_frames // 2
    needed = 2 * half + 1
    why = f"{half} on each side of the one that it is drawn around"
    if not fitting:
        raise UserError(
            f"no video has the {needed} frames that a clip of {num_frames} needs, {why}: "
            f"{_few(short)}; lower the frames of a clip, or use longer videos."
        )
    if short:
        log.warning(
            "left out, since a clip of %d frames needs %d, %s: %s",
            num_frames,
            needed,
            why,
            _few(short),
        )
    lowered = [
        f"'{store.video}' (step {found})" for store, found in each if found not in (None, step)
    ]
    if lowered:
        log.warning(
            "too short for a step of %d frames, take a smaller one: %s", step, _few(lowered)
        )
    return fitting


def _long_enough(stores: Sequence[FrameStore], num_frames: int) -> list[FrameStore]:
    """Return the videos that hold a clip at all; name the others."""
    fitting = [store for store in stores if len(store) >= num_frames]
    short = [_length(store) for store in stores if len(store) < num_frames]
    if not fitting:
        raise UserError(
            f"no video has the {num_frames} frames of a clip: {_few(short)}; lower the frames "
            "of a clip, or use longer videos."
        )
    if short:
        log.warning("left out, with less than %d frames: %s", num_frames, _few(short))
    return fitting


def _length(store: FrameStore) -> str:
    return f"'{store.video}' ({len(store)} frame{'' if len(store) == 1 else 's'})"


def _few(names: list[str]) -> str:
    """Return the first names and how many more there are: lists may have thousands of videos."""
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest
