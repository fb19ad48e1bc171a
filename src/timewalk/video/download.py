"""A video from its source to ``data/videos/``: fetched with resume, checked, then renamed.

Sources: YouTube and whatever else yt-dlp knows, a plain http(s) address, a file inside an
installed package, a path. Bytes are kept as they come, whatever the container, so that a
published digest can be checked. What is fetched grows in ``.<name>.part`` beside the target and
survives a kill; only a checked file gets its name.
"""

import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from timewalk.addresses import public
from timewalk.artefacts import read_json, sha256_file, sha256_json, write_json, write_manifest
from timewalk.config import DownloadConfig, VideoConfig, package_file
from timewalk.errors import UserError
from timewalk.transfer import Unreachable, discard, fetch_http, identity, sidecar
from timewalk.video.probe import VideoInfo, blank_share, check_decodes, probe

log = logging.getLogger(__name__)

REMEDY = "bring the file and name its path as source"
FPS_TOLERANCE = 0.02
"""share by which a rate may differ from the announced one, which is rounded"""
VIDEO_SUFFIXES = {".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".ogv"}


def download(
    name: str, video: VideoConfig, output: Path, settings: DownloadConfig
) -> dict[str, Any]:
    """Fetch and check a video; write ``output`` and its manifest ``output.with_suffix(".json")``.

    A file that is already there and has the wanted digest is not fetched again.

    Args:
        name: the video's key.
        video: where it comes from and what is expected.
        output: ``…/<name>.mp4``.
        settings: transfer and checks.

    Raises:
        UserError: not to be had, or not what is expected; nothing gets the target's name.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_name(f".{name}.part")
    warnings: list[str] = []
    if _already_there(output, video):
        log.info("%s is there and has the wanted digest", output)
        origin: dict[str, Any] = read_json(_origin_path(output))["origin"]
        found = output
    else:
        origin = _fetch(name, video, part, settings, warnings)
        found = part
    digest = sha256_file(found)
    if video.sha256 and digest != video.sha256:
        discard(part)
        raise UserError(
            f"{name}: the file from {public(video.source)} has sha256 {digest}, not "
            f"{video.sha256}: it is another file; correct videos.{name}.source or .sha256."
        )
    info, blank = _check(name, video, found, settings, origin, warnings)
    note = {"asked": identity(video.source), "sha256": digest, "origin": origin}
    write_json(_origin_path(output), note)  # first: a kill between the two costs no second fetch
    if found == part:
        with open(part, "rb") as handle:
            os.fsync(handle.fileno())
        part.replace(output)
        sidecar(part).unlink(missing_ok=True)
    for warning in warnings:
        log.warning("%s", warning)
    return write_manifest(
        output.with_suffix(".json"),
        "video",
        inputs={},
        parameters={"source": public(video.source), "max_height": settings.max_height},
        counts={"frames": info.frames, "seconds": info.duration_s, "bytes": output.stat().st_size},
        warnings=warnings,
        sha256=digest,
        video=info.as_json(),
        blank_share=blank,
        licence=video.licence,
        origin=origin,
    )


def _origin_path(output: Path) -> Path:
    """Return the hidden note of what was fetched: a workflow deletes the manifest to renew it."""
    return output.with_name(f".{output.stem}.origin.json")


def _already_there(output: Path, video: VideoConfig) -> bool:
    note = _origin_path(output)
    if not (output.exists() and note.exists()):
        return False
    about = read_json(note)
    wanted = video.sha256 or about["sha256"]
    # A digest names the bytes; without one the same address is all there is to go by.
    known = bool(video.sha256) or about["asked"] == identity(video.source)
    return bool(known and about["sha256"] == wanted and sha256_file(output) == wanted)


def _scrubbed(text: str, source: str) -> str:
    """Return one line of a foreign message without the secrets of the addresses in it."""
    parts = urlsplit(source)
    lines = [line.removeprefix("ERROR: ").strip() for line in text.splitlines()]
    line = next((line for line in lines if line), "no reason given")
    line = re.sub(r"https?://[^\s'\"<>;,)\]]+", lambda found: public(found[0]), line)
    if parts.query and parts.query not in public(source):
        line = line.replace(parts.query, "…")
    return line


class _ScrubbedLog:
    """What yt-dlp writes its messages to."""

    def __init__(self, source: str) -> None:
        self._source = source

    def debug(self, text: str) -> None:
        log.debug("%s", _scrubbed(text, self._source))

    def warning(self, text: str) -> None:
        log.warning("%s", _scrubbed(text, self._source))

    def error(self, text: str) -> None:
        log.error("%s", _scrubbed(text, self._source))


def _fetch(
    name: str, video: VideoConfig, part: Path, settings: DownloadConfig, warnings: list[str]
) -> dict[str, Any]:
    try:
        return _fetch_from(name, video.source, part, settings)
    except Unreachable as error:
        if video.mirror is None:
            raise
        warnings.append(f"taken from the mirror {public(video.mirror)}: {error}")
        return _fetch_from(name, video.mirror, part, settings)


def _fetch_from(name: str, source: str, part: Path, settings: DownloadConfig) -> dict[str, Any]:
    parts = urlsplit(source)
    if source.startswith("package:"):
        _copy(package_file(source, f"videos.{name}.source"), part)
    elif parts.scheme in ("http", "https"):
        if Path(parts.path).suffix.lower() in VIDEO_SUFFIXES:
            fetch_http(source, part, settings.retries, settings.timeout_s, REMEDY)
        else:
            return _fetch_ytdlp(name, source, part, settings)
    else:
        path = Path(unquote(parts.path)) if parts.scheme == "file" else Path(source).expanduser()
        if not path.is_file():
            raise UserError(f"videos.{name}.source: the file {path} is missing; correct the path.")
        _copy(path, part)
    return {"source": public(source)}


def _copy(source: Path, part: Path) -> None:
    discard(part)
    shutil.copyfile(source, part)


def ytdlp_options(
    folder: Path, settings: DownloadConfig, cookies: Path | None, logger: Any = log
) -> dict[str, Any]:
    """Return the options for yt-dlp: resumable, one video, nothing shared between jobs."""
    height = settings.max_height
    return {
        "format": f"bv*[height<={height}][ext=mp4]+ba[ext=m4a]/bv*[height<={height}]+ba/b",
        "format_sort": [f"res:{height}", "fps", "ext:mp4"],
        "merge_output_format": "mp4/mkv",
        "outtmpl": str(folder / "video.%(ext)s"),
        "continuedl": True,
        "overwrites": False,
        "retries": settings.retries,
        "fragment_retries": settings.retries,
        "file_access_retries": 3,
        "socket_timeout": settings.timeout_s,
        "concurrent_fragment_downloads": 4,
        "noplaylist": True,
        "ignoreerrors": False,
        "quiet": True,
        "noprogress": not sys.stderr.isatty(),
        "logger": logger,
        **({"cookiefile": str(cookies)} if cookies else {}),
    }


def _fetch_ytdlp(name: str, source: str, part: Path, settings: DownloadConfig) -> dict[str, Any]:
    """Fetch with yt-dlp into a folder of its own, which a killed download goes on in."""
    import yt_dlp

    key = sha256_json([identity(source), settings.max_height])
    fetched = read_json(sidecar(part)) if part.exists() and sidecar(part).exists() else {}
    if fetched.get("ytdlp") == key:
        return dict(fetched["origin"])  # a check refused it; the configuration has changed since
    folder = _ytdlp_folder(part, key)
    with _private_cookies(name, settings) as cookies:
        options = ytdlp_options(folder, settings, cookies, _ScrubbedLog(source))
        try:
            with yt_dlp.YoutubeDL(options) as client:
                about = client.extract_info(source, download=True)
        except yt_dlp.utils.DownloadError as error:
            reason = _scrubbed(str(error), source)
            raise Unreachable(
                f"{public(source)}: {reason}; if it asks for a sign-in set download.cookies, if "
                "formats are missing install deno, or bring the file and name its path as source."
            ) from None
    files = [file for file in folder.glob("video.*") if file.suffix not in (".part", ".ytdl")]
    if len(files) != 1:
        raise UserError(f"{name}: yt-dlp left {len(files)} files in {folder}; delete it and retry.")
    fields = ("id", "format_id", "vcodec", "height", "fps", "title", "extractor", "upload_date")
    origin = {
        "source": public(source),
        "duration_s": about.get("duration"),
        "yt_dlp": yt_dlp.version.__version__,
        **{field: _plain(about.get(field), source) for field in fields},
    }
    discard(part)
    write_json(sidecar(part), {"ytdlp": key, "origin": origin})
    files[0].replace(part)
    shutil.rmtree(folder)
    return origin


def _plain(value: Any, source: str) -> Any:
    return _scrubbed(value, source) if isinstance(value, str) else value


def _ytdlp_folder(part: Path, key: str) -> Path:
    """Return the folder of one source: yt-dlp would go on with whatever partial file it finds."""
    folder = part.with_name(f"{part.stem}.{key[:12]}.ytdlp")
    for other in part.parent.glob(f"{part.stem}.*.ytdlp"):
        if other != folder:
            shutil.rmtree(other)
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def _private_cookies(name: str, settings: DownloadConfig) -> Iterator[Path | None]:
    """Yield a private copy of the cookie file: yt-dlp writes into the one it is given."""
    if settings.cookies is None:
        yield None
        return
    source = Path(settings.cookies).expanduser()
    if not source.is_file():
        raise UserError("download.cookies: that file is missing; correct the path.")
    with tempfile.TemporaryDirectory(prefix="timewalk-") as folder:
        copy = Path(folder) / "cookies.txt"
        copy.touch(mode=0o600)
        copy.write_bytes(source.read_bytes())
        yield copy


def _check(
    name: str,
    video: VideoConfig,
    file: Path,
    settings: DownloadConfig,
    origin: dict[str, Any],
    warnings: list[str],
) -> tuple[VideoInfo, float]:
    """Check what came; name the video, not the hidden file, in what is wrong."""
    try:
        info = probe(file)
        check_decodes(file, info)
    except UserError as error:
        text = str(error).replace(str(file), f"{name} ({public(video.source)})")
        discard(file.with_name(f".{name}.part"))
        raise UserError(text) from None
    _check_announced(name, file, info, origin)
    if (height := origin.get("height") or settings.max_height) < settings.max_height:
        warnings.append(
            f"{name} is had with {height} lines at most; download.max_height allows "
            f"{settings.max_height}"
        )
    expected = video.duration_s or origin.get("duration_s")
    if expected and abs(expected - info.duration_s) > settings.duration_tolerance_s:
        if not video.duration_s:  # no setting to correct: what came is not what was published
            discard(file.with_name(f".{name}.part"))
        raise UserError(
            f"{name} lasts {info.duration_s:.1f} s, not {expected:.1f} s: it is not the expected "
            f"video, or not all of it; correct videos.{name}.duration_s or the source."
        )
    if video.start_s >= (video.end_s or info.duration_s) or video.start_s >= info.duration_s:
        raise UserError(
            f"{name} lasts {info.duration_s:.1f} s: nothing lies between videos.{name}.start_s "
            f"{video.start_s} and its end; correct them."
        )
    blank = blank_share(file, info, video.start_s, video.end_s)
    limit = settings.max_blank_share if video.max_blank_share is None else video.max_blank_share
    if blank.share > limit:
        where = (
            f", from second {blank.from_s:.0f} on to the end" if blank.from_s is not None else ""
        )
        raise UserError(
            f"{name}: {blank.share:.0%} of the sampled frames show nothing{where}; set "
            f"videos.{name}.end_s to the end of the content, or raise max_blank_share."
        )
    if blank.share:
        warnings.append(f"{blank.share:.0%} of the sampled frames are near-constant")
    return info, blank.share


def _check_announced(name: str, file: Path, info: VideoInfo, origin: dict[str, Any]) -> None:
    """Compare the picture with the format that yt-dlp chose."""
    height, fps = origin.get("height"), origin.get("fps")
    wrong = bool(height) and height not in (info.height, info.width)  # or it is turned
    if wrong or (fps and abs(info.fps - fps) > FPS_TOLERANCE * fps):
        discard(file.with_name(f".{name}.part"))
        raise UserError(
            f"{name} came with {info.height} lines and {info.fps:g} frames a second, not with the "
            f"{height} and {fps} of the chosen format: it is not the expected video; fetch it "
            f"again, or bring the file and name its path in videos.{name}.source."
        )
