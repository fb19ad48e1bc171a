"""Frames to an mp4 that any player shows: H.264, yuv420p, through a pipe to ffmpeg."""

import subprocess
import tempfile
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np

from timewalk.artefacts import atomic_path
from timewalk.errors import UserError
from timewalk.video.probe import executable

SAME_BYTES = "mbtree=0"
"""x264's option that makes its bytes a function of the frames, besides one thread: its macroblock
tree reads memory that nobody has written (seen with AVX-512, in core 165)."""


def write_mp4(target: Path, frames: Iterable[np.ndarray], fps: float) -> int:
    """Write frames as an mp4; the file is whole or absent.

    An odd last row or column is repeated once: yuv420p holds even sizes only.

    Args:
        target: the file.
        frames: uint8 (H, W, 3), RGB, all of one size.
        fps: frames a second.

    Returns:
        Number of frames written.

    Raises:
        UserError: ffmpeg is missing or refuses.
        ValueError: no frames, or frames that differ in size.
    """
    count, shape = 0, None
    with atomic_path(target) as temporary, tempfile.TemporaryFile() as said:
        process: subprocess.Popen[bytes] | None = None
        try:
            for frame in frames:
                if frame.shape != (shape or frame.shape) or frame.dtype != np.uint8:
                    raise ValueError(f"frame {count} is {frame.dtype} {frame.shape}, not {shape}")
                shape = frame.shape
                even = np.pad(frame, ((0, shape[0] % 2), (0, shape[1] % 2), (0, 0)), mode="edge")
                if process is None:
                    command = _command(even.shape[1], even.shape[0], fps, temporary)
                    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=said)
                assert process.stdin is not None
                process.stdin.write(even.tobytes())
                count += 1
            if process is None:
                raise ValueError(f"{target}: no frames to write")
            assert process.stdin is not None
            process.stdin.close()
        except BrokenPipeError:
            pass  # ffmpeg has ended: its exit status below says so, its last line why
        except BaseException:
            if process is not None:
                process.kill()
                process.wait()
            raise
        if process is not None and process.wait():
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines() or ["no message"]
            raise UserError(
                f"{target} could not be written by ffmpeg ({lines[-1]}): it needs the encoder "
                "libx264 and room on the disk."
            )
    return count


def _command(width: int, height: int, fps: float, target: Path) -> list[str]:
    # As a fraction: 30000/1001 frames a second are not 29.97.
    rate = str(Fraction(fps).limit_denominator(1001))
    given = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", rate]
    made = ["-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p", "-threads", "1"]
    made += ["-x264-params", SAME_BYTES]
    quiet = ["-nostdin", "-loglevel", "error", "-y"]
    return [executable("ffmpeg"), *quiet, *given, "-i", "-", *made, "-bitexact", str(target)]
