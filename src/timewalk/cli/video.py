"""Verbs of the stages from raw video to frames."""

import json
import os
from pathlib import Path
from typing import Any

from timewalk.cli.common import Arguments, add_settings, add_verb, read_settings


def add_verbs(verbs: Any) -> None:
    """Add these verbs to the command line."""
    verb = add_verb(verbs, "download", download)
    verb.add_argument("name", help="the video's name")
    verb.add_argument("output", type=Path, help="…/<name>.mp4")
    add_settings(verb, "video", "source and expectations of this video (keys of `videos:`)")
    add_settings(verb, "settings", "keys of `download:`")

    verb = add_verb(verbs, "blur", blur)
    verb.add_argument("video", type=Path)
    verb.add_argument("output", type=Path, help="…/<name>.mp4")
    add_settings(verb, "settings", "keys of `blur:`")
    verb.add_argument("--workers", type=int, default=1, help="processes")

    verb = add_verb(verbs, "frames", frames)
    verb.add_argument("video", type=Path)
    verb.add_argument("folder", type=Path)
    add_settings(verb, "settings", "keys of a data set's `frames:`")
    verb.add_argument(
        "--blur", type=read_settings, default=None, help="keys of `blur:`; none: no blur"
    )
    verb.add_argument("--start", type=float, default=0.0, help="first second of the content")
    verb.add_argument("--end", type=float, default=None, help="last second of the content")
    verb.add_argument("--workers", type=int, default=1, help="processes")


def download(arguments: Arguments) -> None:
    """Fetch a video, check it, and write it with its manifest."""
    from timewalk.artefacts import alone
    from timewalk.check import check
    from timewalk.config import DownloadConfig, VideoConfig
    from timewalk.video.download import download as call

    video = check(VideoConfig, arguments.video, f"videos.{arguments.name}")
    transfer = json.loads(os.environ.get("TIMEWALK_DOWNLOAD", "{}"))
    settings = check(DownloadConfig, {**transfer, **arguments.settings}, "download")
    with alone(arguments.output):
        call(arguments.name, video, arguments.output, settings)


def blur(arguments: Arguments) -> None:
    """Blur the faces of a video. Faces only; misses happen: look at the contact sheet."""
    from timewalk.artefacts import alone
    from timewalk.check import check
    from timewalk.config import BlurConfig
    from timewalk.video.blur import blur_video

    settings = check(BlurConfig, arguments.settings, "blur")
    with alone(arguments.output):
        blur_video(arguments.video, arguments.output, settings, arguments.workers)


def frames(arguments: Arguments) -> None:
    """Extract frames of a video, blurred on the way if asked."""
    from timewalk.artefacts import alone
    from timewalk.check import check
    from timewalk.config import BlurConfig, FramesConfig
    from timewalk.video.frames import extract_frames

    settings = check(FramesConfig, arguments.settings, "frames")
    blur = None if arguments.blur is None else check(BlurConfig, arguments.blur, "blur")
    with alone(arguments.folder):
        extract_frames(
            arguments.video,
            arguments.folder,
            settings,
            blur=blur,
            workers=arguments.workers,
            start_s=arguments.start,
            end_s=arguments.end,
        )
