"""Frames of a video as JPEG files: every one, or at a rate; in presentation order, upright.

Written into a hidden folder beside the target, blurred there if asked, counted, and only then
renamed: no unblurred frame ever has its final name.
"""

import hashlib
import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import ffmpeg
import numpy as np
from PIL import Image
from tqdm import tqdm

from timewalk.artefacts import atomic_path, read_json, sha256_file, write_json, write_manifest
from timewalk.config import BlurConfig, FramesConfig
from timewalk.errors import UserError
from timewalk.video.probe import BLANK_STD, VideoInfo, executable, open_video, probe

log = logging.getLogger(__name__)

SLACK = 1e-3
"""seconds; clocks of containers are rounded: in Matroska 1/30 s is 0.033"""
LOG_EVERY_S = 30.0
"""seconds between two lines of a log"""
LOOKED_AT = 256
"""frames looked at for near-constant ones"""


def extract_frames(
    video: Path,
    folder: Path,
    settings: FramesConfig,
    *,
    blur: BlurConfig | None = None,
    workers: int = 1,
    start_s: float = 0.0,
    end_s: float | None = None,
) -> dict[str, Any]:
    """Write ``folder/000000.jpg …``, ``times.npy`` and ``manifest.json``; return the manifest.

    Without a rate each frame of the video appears once. With `fps` the first frame at or after
    each multiple of 1/fps (from ``start_s``) is kept: none twice, none moved.

    Args:
        video: any file that ffmpeg reads.
        folder: replaced as a whole.
        settings: rate, size, quality.
        blur: if given, faces are blurred before the folder gets its name.
        workers: processes of the blur.
        start_s: first second of the content.
        end_s: its last second; None: the video's end.

    Raises:
        UserError: not a video, damaged on the way, or nothing in the range.
    """
    info = probe(video)
    times = source_times(video)
    if settings.fps is not None and settings.fps > info.fps + 1e-6:
        raise UserError(
            f"{video} has {info.fps:g} frames a second, frames.fps asks for {settings.fps:g}; "
            "lower it, or set it to null for every frame."
        )
    chosen = choose(times, settings.fps, start_s, end_s or np.inf)
    if len(chosen) == 0:
        raise UserError(
            f"{video} lasts {info.duration_s:.1f} s and has no frame between start_s {start_s} "
            f"and end_s {end_s}; correct them."
        )
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        _extract(video, temporary, settings, chosen, times, info, start_s)
        np.save(temporary / "times.npy", times[chosen])
        report = _blur(temporary, blur, workers)
        _describe(video, temporary, settings, info, chosen, report, (start_s, end_s))
    return dict(read_json(folder / "manifest.json"))


def source_times(video: Path) -> np.ndarray:
    """Return the time of each frame in seconds from the first, float64, in presentation order.

    Raises:
        UserError: there are frames that nothing can show, as after a cut without encoding: numbers
            of frames would not hold.
    """
    with open_video(video) as container:
        stream = container.streams.video[0]
        packets = [p for p in container.demux(stream) if p.size and not p.is_discard]
        stamps = [p.pts if p.pts is not None else p.dts for p in packets]
        lost = sum(stamp is None for stamp in stamps)
        if 0 < lost < len(stamps):
            raise UserError(
                f"{video}: {lost} of {len(stamps)} frames have no time and cannot be decoded (was "
                "it cut without encoding?); encode it again with ffmpeg, and name the new file."
            )
        ticks = np.sort(np.array([s if s is not None else n for n, s in enumerate(stamps)]))
        return (ticks - ticks[0]) * float(stream.time_base)


def choose(times: np.ndarray, fps: float | None, start_s: float, end_s: float) -> np.ndarray:
    """Return the numbers of the frames to keep.

    Args:
        times: (T,) seconds, rising.
        fps: frames a second, or None for all.
        start_s: first second.
        end_s: last second, exclusive.
    """
    inside = np.flatnonzero((times >= start_s - SLACK) & (times < end_s - SLACK))
    if fps is None or len(inside) == 0:
        return inside
    place = np.floor((times[inside] - start_s + SLACK) * fps)
    return inside[np.diff(place, prepend=-1) > 0]


def _extract(
    video: Path,
    folder: Path,
    settings: FramesConfig,
    chosen: np.ndarray,
    times: np.ndarray,
    info: VideoInfo,
    start_s: float,
) -> None:
    # What comes long after the content's end is not decoded; the minute covers streams that do
    # not begin together.
    until = float(times[chosen[-1]]) + 60
    limit = {"to": until} if until < times[-1] else {}
    stream = ffmpeg.input(str(video.absolute()), **limit).video
    if len(chosen) < len(times):
        stream = stream.filter("setpts", "PTS-STARTPTS")
        stream = stream.filter("select", _expression(chosen, settings.fps, start_s))
    if settings.short_side is not None and settings.short_side < min(info.width, info.height):
        w, h = (-2, settings.short_side) if info.width >= info.height else (settings.short_side, -2)
        stream = stream.filter("scale", w, h, flags="bicubic")
    # Files need an order, no times: those of a variable rate would collide in the encoder's clock,
    # and the video's own clock may tick too slowly to count its frames at any other rate.
    stream = (
        stream.filter("settb", "1/25")
        .filter("setpts", "N")
        .output(
            str(folder.absolute()).replace("%", "%%") + "/%06d.jpg",
            **{
                "fps_mode": "passthrough",
                "enc_time_base": "1:25",
                "q:v": settings.quality,
                "start_number": 0,
            },
        )
    )
    command = stream.global_args("-nostdin", "-v", "error", "-progress", "pipe:1").compile(
        cmd=executable("ffmpeg")
    )
    errors = _run(command, len(chosen))
    found = len(list(folder.glob("*.jpg")))
    if found != len(chosen) or errors:
        reason = f" ({errors})" if errors else ""
        raise UserError(
            f"{video} gave {found} of {len(chosen)} frames{reason}: it is damaged; fetch it again, "
            "or cut it with start_s and end_s."
        )


def _expression(chosen: np.ndarray, fps: float | None, start_s: float) -> str:
    """Return ffmpeg's condition for the same choice as :func:`choose`, of frame number and time."""
    inside = f"between(n,{chosen[0]},{chosen[-1]})"
    if fps is None:
        return inside
    now, before = (f"floor(({t}-{start_s}+{SLACK})*{fps})" for t in ("t", "prev_selected_t"))
    return f"{inside}*(isnan(prev_selected_t)+gt({now},{before}))"


def _run(command: list[str], total: int) -> str:
    """Run ffmpeg; return the last line of its errors."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            _follow(process, total)
            process.wait()
        finally:
            process.kill()  # an interrupt must not leave it writing
            process.wait()
        errors.seek(0)
        lines = [line.strip() for line in errors if line.strip()]
    if process.returncode and not lines:
        return f"ffmpeg ended with {process.returncode}"
    return lines[-1] if lines else ""


def _follow(process: "subprocess.Popen[str]", total: int) -> None:
    """Show ffmpeg's progress: a bar on a terminal, else a line now and then."""
    assert process.stdout is not None
    last = time.monotonic()
    with tqdm(total=total, unit="frame", disable=not sys.stderr.isatty()) as bar:
        done = 0
        for line in process.stdout:
            key, _, value = line.strip().partition("=")
            if key != "frame" or not value.isdigit():
                continue
            bar.update(int(value) - done)
            done = int(value)
            if bar.disable and time.monotonic() - last > LOG_EVERY_S:
                log.info("%d of %d frames", done, total)
                last = time.monotonic()


def _blur(folder: Path, blur: BlurConfig | None, workers: int) -> dict[str, Any] | None:
    if blur is None or blur.what == "off":
        return None
    from timewalk.video.blur import blur_frames

    report: dict[str, Any] = blur_frames(folder, blur, workers)
    write_json(folder / "blur.json", report)
    return report


def _describe(
    video: Path,
    folder: Path,
    settings: FramesConfig,
    info: VideoInfo,
    chosen: np.ndarray,
    report: dict[str, Any] | None,
    span: tuple[float, float | None],
) -> None:
    files = sorted(folder.glob("*.jpg"))
    with av.open(str(files[0])) as first:
        width, height = first.streams.video[0].width, first.streams.video[0].height
    warnings = ["the video has a variable frame rate"] if info.variable_frame_rate else []
    blank = _blank_share(files)
    if blank:
        warnings.append(f"{blank:.0%} of the sampled frames are near-constant")
    summary = report and {key: report[key] for key in ("frames", "frames_with_faces", "faces")}
    write_manifest(
        folder / "manifest.json",
        "frames",
        inputs={video.name: sha256_file(video)},
        parameters={
            "frames": settings.model_dump(mode="json"),
            "start_s": span[0],
            "end_s": span[1],
            "blur": report and report["settings"],
        },
        counts={
            "frames": len(files),
            "width": width,
            "height": height,
            "bytes": sum(file.stat().st_size for file in files),
        },
        warnings=warnings,
        times_sha256=sha256_file(folder / "times.npy"),
        frames_sha256=_digest(files),
        blank_share=blank,
        source_frames=[int(chosen[0]), int(chosen[-1])],
        source_fps=info.fps,
        blur=summary,
    )


def _digest(files: list[Path]) -> str:
    """Return the SHA-256 over the SHA-256 of each file, in order."""
    return hashlib.sha256("".join(map(sha256_file, files)).encode()).hexdigest()


def _blank_share(files: list[Path]) -> float:
    """Return the share of near-constant frames among evenly spaced ones."""
    some = [files[n] for n in np.unique(np.linspace(0, len(files) - 1, LOOKED_AT).astype(int))]
    blank = 0
    for file in some:
        with Image.open(file) as image:
            image.draft("L", (160, 90))  # decodes at an eighth of the size where that suffices
            blank += bool(np.asarray(image.convert("L")).std() < BLANK_STD)
    return blank / len(some)
