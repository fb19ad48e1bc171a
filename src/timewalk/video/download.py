"""A video from its source to ``data/videos/``: fetched with resume, checked, then renamed.

Sources: YouTube and whatever else yt-dlp knows, a plain http(s) address, a file inside an
installed package, a path. Bytes are kept as they come, whatever the container, so that a
published digest can be checked. What is fetched grows in ``.<name>.part`` beside the target and
survives a kill; only a checked file gets its name.
"""

import base64
import errno
import logging
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

from timewalk.artefacts import read_json, sha256_file, sha256_json, write_json, write_manifest
from timewalk.config import DownloadConfig, VideoConfig, package_file
from timewalk.errors import UserError
from timewalk.video.probe import VideoInfo, blank_share, check_decodes, probe

log = logging.getLogger(__name__)

CHUNK = 1 << 20
VIDEO_SUFFIXES = {".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".ogv"}


DISK = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG}
"""faults of our own disk, which no further try mends"""


class Unreachable(UserError):
    """The source did not answer, or broke off more often than `download.retries` allows."""


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
        _discard(part)
        raise UserError(
            f"{name}: the file from {public(video.source)} has sha256 {digest}, not "
            f"{video.sha256}: it is another file; correct videos.{name}.source or .sha256."
        )
    info, blank = _check(name, video, found, settings, origin.get("duration_s"), warnings)
    note = {"asked": identity(video.source), "sha256": digest, "origin": origin}
    write_json(_origin_path(output), note)  # first: a kill between the two costs no second fetch
    if found == part:
        part.replace(output)
        _sidecar(part).unlink(missing_ok=True)
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


def identity(source: str) -> str:
    """Return what tells sources apart, their queries included, without showing them."""
    parts = urlsplit(source)
    return sha256_json(urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])))


def public(source: str) -> str:
    """Return a source without what may be secret: user, password, any query but a video's id."""
    parts = urlsplit(source)
    if parts.scheme not in ("http", "https"):
        return source
    host = parts.netloc.rpartition("@")[2]
    query = parts.query if parts.query.startswith("v=") and "&" not in parts.query else ""
    return urlunsplit((parts.scheme, host, parts.path, query, ""))


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
            _fetch_http(source, part, settings)
        else:
            return _fetch_ytdlp(name, source, part, settings)
    else:
        path = Path(unquote(parts.path)) if parts.scheme == "file" else Path(source).expanduser()
        if not path.is_file():
            raise UserError(f"videos.{name}.source: the file {path} is missing; correct the path.")
        _copy(path, part)
    return {"source": public(source)}


def _copy(source: Path, part: Path) -> None:
    _discard(part)
    shutil.copyfile(source, part)


def _sidecar(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _sidecar(part).unlink(missing_ok=True)


def _fetch_http(address: str, part: Path, settings: DownloadConfig) -> None:
    """Fetch a file, going on where the last try broke off, as often as `retries` allows."""
    for attempt in range(settings.retries + 1):
        try:
            if _fetch_rest(address, part, settings.timeout_s):
                return
            reason = "the transfer broke off"
        except HTTPError as error:
            if error.code < 500 and error.code not in (408, 416, 429):
                raise Unreachable(
                    f"{public(address)} answers {error.code} {error.reason}: correct the address, "
                    "or bring the file and name its path as source."
                ) from None
            if error.code == 416:
                if _is_all(part, error.headers.get("Content-Range") or ""):
                    return
                _discard(part)  # what is there is no beginning of what is served now
            reason = f"the server answers {error.code}"
        except (URLError, HTTPException, OSError) as error:
            if getattr(error, "errno", None) in DISK:
                raise UserError(
                    f"{part} cannot be written ({error}): free the disk or mend its permissions."
                ) from None
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        log.warning(
            "%s: %s (try %d of %d)", public(address), reason, attempt + 1, settings.retries + 1
        )
        if attempt < settings.retries:
            time.sleep(min(30.0, 0.1 * 2**attempt))
    raise Unreachable(
        f"{public(address)} cannot be fetched ({reason}); what came is kept: run again, or bring "
        "the file and name its path as source."
    )


def _is_all(part: Path, content_range: str) -> bool:
    """Return whether a server without more to send has no more than ``part`` holds."""
    total = content_range.rpartition("/")[2]
    return part.exists() and total.isdigit() and int(total) == part.stat().st_size


def _request(address: str, headers: dict[str, str]) -> Request:
    """Return a request; user and password of the address go into a header."""
    parts = urlsplit(address)
    login, _, host = parts.netloc.rpartition("@")
    request = Request(urlunsplit(parts._replace(netloc=host)), headers=headers)
    if login:
        code = base64.b64encode(unquote(login).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {code}")
    return request


def _fetch_rest(address: str, part: Path, timeout_s: float) -> bool:
    """Append what is missing to ``part``; return whether the file is complete."""
    have = _resumable(address, part)
    headers = {"User-Agent": "timewalk", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-"}
        tag = read_json(_sidecar(part)).get("tag")
        if tag:
            headers["If-Range"] = tag
    with urlopen(_request(address, headers), timeout=timeout_s) as answer:
        resumed = answer.status == 206 and _range_start(answer) == have
        start = have if resumed else 0
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else None
        tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        write_json(_sidecar(part), {"source": identity(address), "tag": tag})
        with (
            open(part, "ab" if resumed else "wb") as file,
            _progress(part.name, start, total) as bar,
        ):
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                bar(len(chunk))
    return total is None or part.stat().st_size >= total


def _range_start(answer: HTTPResponse) -> int:
    _, _, span = (answer.headers.get("Content-Range") or "").partition("bytes ")
    first = span.partition("-")[0]
    return int(first) if first.isdigit() else -1


def _resumable(address: str, part: Path) -> int:
    """Return how many bytes of this address are there; those of another one are dropped.

    Without an ETag or a date nobody can tell whether the file was replaced meanwhile.
    """
    if not part.exists():
        return 0
    sidecar = _sidecar(part)
    about = read_json(sidecar) if sidecar.exists() else {}
    if about.get("source") != identity(address) or not about.get("tag"):
        _discard(part)
        return 0
    return part.stat().st_size


@contextmanager
def _progress(name: str, start: int, total: int | None) -> Iterator[Any]:
    """Yield a function that takes counts of bytes: a bar on a terminal, else a line each 30 s."""
    last = time.monotonic()
    with tqdm(
        total=total,
        initial=start,
        unit="B",
        unit_scale=True,
        desc=name,
        disable=not sys.stderr.isatty(),
    ) as bar:
        done = start

        def update(count: int) -> None:
            nonlocal done, last
            done += count
            bar.update(count)
            if bar.disable and time.monotonic() - last > 30:
                log.info("%s: %.0f MB of %.0f", name, done / 1e6, (total or 0) / 1e6)
                last = time.monotonic()

        yield update


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
    fetched = read_json(_sidecar(part)) if part.exists() and _sidecar(part).exists() else {}
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
    _discard(part)
    write_json(_sidecar(part), {"ytdlp": key, "origin": origin})
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
    published_s: float | None,
    warnings: list[str],
) -> tuple[VideoInfo, float]:
    """Check what came; name the video, not the hidden file, in what is wrong."""
    try:
        info = probe(file)
        check_decodes(file, info)
    except UserError as error:
        text = str(error).replace(str(file), f"{name} ({public(video.source)})")
        _discard(file.with_name(f".{name}.part"))
        raise UserError(text) from None
    expected = video.duration_s or published_s
    if expected and abs(expected - info.duration_s) > settings.duration_tolerance_s:
        if not video.duration_s:  # no setting to correct: what came is not what was published
            _discard(file.with_name(f".{name}.part"))
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
