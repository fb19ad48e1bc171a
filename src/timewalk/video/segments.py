"""A video in pieces: divided into ranges, each decoded and encoded alone, joined again.

Ranges are told apart by presentation time, not by cutting the file: open groups of pictures lose
no frame and each frame keeps its time. All pieces are encoded alike, so that they are joined
without encoding again. Nothing here holds more than a few frames.
"""

import heapq
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np
from numpy.typing import NDArray

from timewalk.config import BlurConfig
from timewalk.errors import UserError
from timewalk.video.probe import VideoInfo, open_video
from timewalk.video.write import SAME_BYTES

T = TypeVar("T")

CUTS = 4
"""most pieces between two key frames: each decodes all frames since the first of them"""
SHARES = 16
SHORTEST_S = 2.0
"""short videos are divided too: into 16 pieces, but none shorter than two seconds"""
GO_BACK_S = (0, 2, 20)
"""seconds before its start at which a piece looks for a key frame, one after the other"""
RGB_MATRIX, FULL_RANGE = 0, 2
"""FFmpeg's numbers"""


@dataclass(frozen=True)
class Piece:
    """One range of a video, for one process.

    Attributes:
        source: the video.
        target: the piece to write; detections go beside it as JSON lines.
        start: presentation time of its first frame, in the stream's clock; None: the file has no
            times, frames are counted.
        end: of the first frame after it; None for the last piece.
        first: number of its first frame in the video.
        frames: number of its frames.
        rate: frames a second of the video, "30000/1001".
        size: (width, height) of the frames to write: upright, even.
        aspect: width over height of their pixels, None if unknown.
    """

    source: Path
    target: Path
    start: int | None
    end: int | None
    first: int
    frames: int
    rate: str
    size: tuple[int, int]
    aspect: Fraction | None

    @property
    def place(self) -> str:
        """The range in words, for messages."""
        return f"{self.source} (frames {self.first} to {self.first + self.frames - 1})"


def divide(source: Path, work: Path, segment_s: float, info: VideoInfo) -> list[Piece]:
    """Divide a video into ranges of about ``segment_s`` seconds; less if the video is short.

    Cuts fall on key frames. Where none comes for two lengths, up to ``CUTS`` pieces share a group
    of pictures: each decodes from the key frame before and drops what is not its own. The result
    does not depend on the number of workers.

    Args:
        source: the video.
        work: folder of the pieces.
        segment_s: wanted length.
        info: of the video.
    """
    times, keys, base, aspect = _times(source)
    if aspect and info.rotation % 180:
        aspect = 1 / aspect
    size = (info.width // 2 * 2, info.height // 2 * 2)
    length = min(segment_s, max(SHORTEST_S, info.duration_s / SHARES)) / float(base)
    clocked = len(times) > 0 and bool((np.diff(times) > 0).all())
    firsts = _cuts(times, keys, length) if clocked else np.array([0])
    starts: list[int | None] = [int(t) for t in times[firsts]] if clocked else [None]
    counts = np.diff([*firsts, info.frames]).tolist()
    return [
        Piece(
            source=source,
            target=work / f"{number:05d}.mp4",
            start=start,
            end=end,
            first=first,
            frames=count,
            rate=info.rate,
            size=size,
            aspect=aspect,
        )
        for number, (start, end, first, count) in enumerate(
            zip(starts, [*starts[1:], None], firsts.tolist(), counts, strict=True)
        )
    ]


def _times(
    source: Path,
) -> tuple[NDArray[np.int64], NDArray[np.bool_], Fraction, Fraction | None]:
    """Return all frames' times, sorted, which are key frames, the clock, and pixels' aspect.

    A file with a frame without a time (B-frames in AVI) has none at all: empty arrays.
    """
    with open_video(source) as container:
        stream = container.streams.video[0]
        shown = (p for p in container.demux(stream) if p.size and not p.is_discard)
        stamps = ((-1 if p.pts is None else p.pts, p.is_keyframe, p.pts is None) for p in shown)
        kind = [("pts", np.int64), ("key", np.bool_), ("none", np.bool_)]
        table = np.fromiter(stamps, np.dtype(kind))
        base, aspect = Fraction(stream.time_base), stream.codec_context.sample_aspect_ratio
    if table["none"].any():
        table = table[:0]
    table = table[np.argsort(table["pts"], kind="stable")]
    return table["pts"], table["key"], base, Fraction(aspect) if aspect else None


def _cuts(
    times: NDArray[np.int64], keys: NDArray[np.bool_], length: float
) -> NDArray[np.signedinteger[Any]]:
    """Return the numbers of the frames at which pieces begin.

    Args:
        times: (T,) rising.
        keys: (T,) which are key frames.
        length: of a piece, in the same unit as the times.
    """
    cuts = [0]
    for first, last in _groups(keys):
        if times[first] - times[cuts[-1]] >= length:
            cuts.append(first)
        end = times[last] if last < len(times) else times[-1]
        parts = min(CUTS, int((end - times[first]) // length), last - first)
        if parts > 1:
            cuts += [first + (last - first) * k // parts for k in range(1, parts)]
    return np.unique(cuts)


def _groups(keys: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Yield first frame and end of each group of pictures."""
    starts = sorted({0, *np.flatnonzero(keys).tolist()})
    yield from zip(starts, [*starts[1:], len(keys)], strict=True)


# --- decoding ----------------------------------------------------------------------------------


def decoded(piece: Piece) -> Iterator[Any]:
    """Yield the frames of a range in presentation order."""
    try:
        if piece.start is None:
            with _opened(piece) as (_, _, frames):
                yield from _counted(frames, Fraction(piece.rate))
            return
        for frame in _since(piece, piece.start):
            if piece.end is not None and frame.pts >= piece.end:
                return
            if frame.pts >= piece.start:
                yield frame
    except av.FFmpegError as error:
        raise UserError(
            f"{piece.place} cannot be decoded ({error.strerror}): the video is damaged; "
            "fetch it again."
        ) from None


@contextmanager
def _opened(piece: Piece) -> Iterator[tuple[Any, Any, Iterator[Any]]]:
    """Yield the source, its video stream and the frames from where it stands."""
    with open_video(piece.source) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "AUTO", 2
        yield container, stream, container.decode(stream)


def _counted(frames: Iterable[Any], rate: Fraction) -> Iterator[Any]:
    for number, frame in enumerate(frames):
        frame.pts, frame.time_base = number, 1 / rate
        yield frame


def _since(piece: Piece, start: int) -> Iterator[Any]:
    """Yield frames from one at or before the piece's start.

    Some containers (MPEG-TS) seek to the wrong side: then further back, in the end from the
    beginning without seeking, as the first piece is read.
    """
    for back_s in GO_BACK_S if piece.first else ():
        with _opened(piece) as (container, stream, frames):
            container.seek(start - int(back_s / stream.time_base), stream=stream, backward=True)
            frame = next(frames, None)
            if frame is not None and frame.pts <= start:
                yield frame
                yield from frames
                return
    with _opened(piece) as (_, _, frames):
        yield from frames


def straighten(frame: Any, size: tuple[int, int]) -> Any:
    """Return a frame upright, of even size, in 8-bit 4:2:0, with its time and colours.

    The encoder stores no rotation and takes only even sizes: a rotated picture is turned, an odd
    last row or column is cut off.

    Args:
        frame: as decoded.
        size: (width, height) to bring it to if it has another: some streams change theirs.
    """
    full = frame.color_range == FULL_RANGE or frame.format.name.startswith("yuvj")
    new = frame
    if frame.format.name != "yuv420p":
        kept = FULL_RANGE if full else 1
        new = frame.reformat(format="yuv420p", dst_color_range=kept)
        new.color_range = kept
    turns = int(getattr(frame, "rotation", 0) or 0) // 90 % 4
    if turns or frame.width % 2 or frame.height % 2:
        new = _from_planes([np.rot90(plane, turns) for plane in planes(new)], new)
    if (new.width, new.height) != size:
        new = new.reformat(width=size[0], height=size[1])
    return new if new is frame else _keep(frame, new)


def planes(frame: Any) -> list[NDArray[np.uint8]]:
    """Return views of an 8-bit 4:2:0 frame's Y (H, W), U and V (H/2, W/2), odd ends left out."""
    height, width = frame.height // 2 * 2, frame.width // 2 * 2
    found = []
    for plane, shrink in zip(frame.planes, (1, 2, 2), strict=True):
        pixels = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
        found.append(pixels[: height // shrink, : width // shrink])
    return found


def _from_planes(pixels: Sequence[NDArray[np.uint8]], old: Any) -> Any:
    height, width = pixels[0].shape
    new = av.VideoFrame(width, height, "yuv420p")
    for target, source in zip(planes(new), pixels, strict=True):
        target[...] = source
    new.color_range = old.color_range
    return new


def _keep(old: Any, new: Any) -> Any:
    new.pts, new.time_base = old.pts, old.time_base
    if old.colorspace != RGB_MATRIX:
        new.colorspace = old.colorspace
    new.color_primaries, new.color_trc = old.color_primaries, old.color_trc
    return new


# --- encoding ----------------------------------------------------------------------------------


class Encoder:
    """x264 with the same settings for every piece, so that pieces can be joined.

    Args:
        path: file to write.
        piece: gives size, shape of pixels, and the rate for x264's rate control; times come from
            the frames.
        settings: crf and preset.
    """

    def __init__(self, path: Path, piece: Piece, settings: BlurConfig) -> None:
        self._file = av.open(str(path), "w", format="mp4")
        self._piece, self._settings = piece, settings
        self._stream: Any = None
        self._start = 0

    def write(self, frame: Any) -> None:
        """Encode one frame; the first one sets size, clock and colours."""
        if self._stream is None:
            self._open(frame)
        frame.pts -= self._start
        frame.pict_type = av.video.frame.PictureType.NONE
        self._file.mux(self._stream.encode(frame))

    def _open(self, frame: Any) -> None:
        stream = self._file.add_stream("libx264", rate=Fraction(self._piece.rate))
        (stream.width, stream.height), stream.pix_fmt = self._piece.size, "yuv420p"
        context = stream.codec_context
        context.time_base = stream.time_base = frame.time_base
        context.colorspace, context.color_range = frame.colorspace, frame.color_range
        context.color_primaries, context.color_trc = frame.color_primaries, frame.color_trc
        if self._piece.aspect:
            context.sample_aspect_ratio = self._piece.aspect
        context.thread_count = 1
        stream.options = {
            "crf": str(self._settings.crf),
            "preset": self._settings.preset,
            "x264-params": f"open-gop=0:keyint=250:force-cfr=0:{SAME_BYTES}",
        }
        self._stream, self._start = stream, frame.pts

    def close(self) -> None:
        """Write what the encoder holds back and close the file."""
        if self._stream is not None:
            self._file.mux(self._stream.encode())
        self._file.close()


class Worker:
    """Runs a call on each item in another thread, a few items behind: encoder beside detector."""

    def __init__(self, call: Callable[[Any], None], depth: int = 4) -> None:
        self._call = call
        self._queue: queue.Queue[Any] = queue.Queue(depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is None:
                try:
                    self._call(item)
                except BaseException as error:  # raised again by put or at the end
                    self._error = error

    def put(self, item: Any) -> None:
        """Hand over an item; raise what an earlier one raised."""
        if self._error is not None:
            raise self._error
        self._queue.put(item)

    def __enter__(self) -> "Worker":
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._queue.put(None)
        self._thread.join()
        if self._error is not None and error is None:
            raise self._error


def ahead(items: Iterable[T], depth: int) -> Iterator[T]:
    """Yield items that another thread makes, at most ``depth`` ahead."""
    made: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    stop = threading.Event()

    def put(kind: str, value: Any) -> None:
        while not stop.is_set():
            try:
                made.put((kind, value), timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put("item", item)
                if stop.is_set():
                    return
            put("end", None)
        except BaseException as error:  # raised again by the reader
            put("error", error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = made.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stop.set()
        thread.join()


# --- joining -----------------------------------------------------------------------------------


def join(pieces: list[Piece], target: Path, *, audio: bool) -> None:
    """Join encoded pieces without encoding, with the source's audio streams if asked.

    Raises:
        UserError: the audio is of a kind that mp4 does not hold.
    """
    source: Any
    with (
        av.open(str(target), "w", format="mp4", options={"movflags": "+faststart"}) as out,
        open_video(pieces[0].source) as source,
    ):
        with av.open(str(pieces[0].target)) as first:
            video = out.add_stream_from_template(first.streams.video[0])
        base = source.streams.video[0].time_base
        origin_s = (pieces[0].start or 0) * base
        packets: list[Iterator[tuple[float, Any]]] = [_video(pieces, video, base)]
        if audio and source.streams.audio:
            packets.append(_audio(source, _copies(out, source, pieces[0].source), origin_s))
        # Mixed by time: players read both streams from one place.
        for _, packet in heapq.merge(*packets, key=lambda item: item[0]):
            out.mux(packet)


def _video(pieces: list[Piece], video: Any, base: Fraction) -> Iterator[tuple[float, Any]]:
    """Yield the packets of all pieces, each piece shifted to its place."""
    origin, last = pieces[0].start or 0, None
    for piece in pieces:
        shift_s = ((piece.start or 0) - origin) * base
        file: Any
        with av.open(str(piece.target)) as file:
            stream = file.streams.video[0]
            shift = round(shift_s / stream.time_base)
            length = max(1, round(1 / Fraction(piece.rate) / stream.time_base))
            for packet in file.demux(stream):
                if packet.size == 0:
                    continue
                packet.pts += shift
                packet.dts += shift
                # Decoding times of a piece may reach into the one before: only their order counts.
                if last is not None and packet.dts <= last:
                    packet.dts = last + 1
                last = packet.dts
                packet.duration = packet.duration or length
                packet.stream = video
                yield float(packet.dts * stream.time_base), packet


def _copies(out: Any, source: Any, path: Path) -> dict[int, Any]:
    try:
        return {s.index: out.add_stream_from_template(s) for s in source.streams.audio}
    except (av.FFmpegError, ValueError):
        names = ", ".join(s.codec_context.name for s in source.streams.audio)
        raise UserError(
            f"{path} has audio that mp4 does not hold ({names}): set blur.keep_audio to false."
        ) from None


def _audio(source: Any, copies: dict[int, Any], origin_s: Fraction) -> Iterator[tuple[float, Any]]:
    """Yield the packets of the source's audio, moved as the video's start is moved to zero."""
    for packet in source.demux(*source.streams.audio):
        if packet.size == 0 or packet.dts is None:
            continue
        base = packet.time_base
        packet.pts -= round(origin_s / base)
        packet.dts -= round(origin_s / base)
        packet.stream = copies[packet.stream.index]
        yield float(packet.dts * base), packet
