"""A file from an http(s) address, fetched with resume.

What is fetched grows in a partial file beside its target and survives a kill; a note beside that
says which address and version it is the beginning of. Secrets of an address (user, password,
query) are neither logged nor written.
"""

import base64
import errno
import hashlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

from timewalk.addresses import public
from timewalk.artefacts import read_json, sha256_json, write_json
from timewalk.errors import UserError, disk_full, out_of_room

log = logging.getLogger(__name__)

CHUNK = 1 << 20
DISK = {errno.EACCES, errno.EPERM, errno.EROFS}
"""faults of our own disk beside a full one, which no further try mends"""


class Unreachable(UserError):
    """The source did not answer, or broke off more often than allowed."""


def cache_folder() -> Path:
    """Return where fetched weights are kept: ``TIMEWALK_CACHE``, else in the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "timewalk"
    return Path(os.environ.get("TIMEWALK_CACHE", default)) / "weights"


def local_copy(address: str) -> Path:
    """Return where the file at an address is kept once it was fetched."""
    name = Path(urlsplit(address).path).name or "weights"
    return cache_folder() / f"{hashlib.sha256(address.encode()).hexdigest()[:12]}-{name}"


def identity(source: str) -> str:
    """Return what tells sources apart, their queries included, without showing them."""
    parts = urlsplit(source)
    return sha256_json(urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])))


def sidecar(part: Path) -> Path:
    """Return the note beside a partial file."""
    return part.with_name(part.name + ".json")


def discard(part: Path) -> None:
    """Remove a partial file and its note."""
    part.unlink(missing_ok=True)
    sidecar(part).unlink(missing_ok=True)


def fetch_http(address: str, part: Path, retries: int, timeout_s: float, remedy: str) -> None:
    """Fetch a file into ``part``, going on where the last try broke off.

    Args:
        address: http(s) address, maybe with user and password.
        part: where it grows; a note beside it says what it is the beginning of.
        retries: how often a broken transfer is taken up again.
        timeout_s: seconds without a byte after which a connection counts as broken.
        remedy: how else the file may come, for messages.

    Raises:
        Unreachable: refused, or broken off too often; what came is kept.
        UserError: the file cannot be written.
    """
    for attempt in range(retries + 1):
        try:
            if _fetch_rest(address, part, timeout_s):
                return
            reason = "the transfer broke off"
        except HTTPError as error:
            if error.code < 500 and error.code not in (408, 416, 429):
                raise Unreachable(
                    f"{public(address)} answers {error.code} {error.reason}: correct the address, "
                    f"or {remedy}."
                ) from None
            if error.code == 416:
                if _is_all(part, error.headers.get("Content-Range") or ""):
                    return
                discard(part)  # what is there is no beginning of what is served now
            reason = f"the server answers {error.code}"
        except (URLError, HTTPException, OSError) as error:
            if full := out_of_room(error):
                raise disk_full(part, full[0]) from None
            if getattr(error, "errno", None) in DISK:
                raise UserError(
                    f"{part} cannot be written ({error}): mend the permissions of its folder."
                ) from None
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        log.warning("%s: %s (try %d of %d)", public(address), reason, attempt + 1, retries + 1)
        if attempt < retries:
            time.sleep(min(30.0, 0.1 * 2**attempt))
    raise Unreachable(
        f"{public(address)} cannot be fetched ({reason}); what came is kept: run again, or "
        f"{remedy}."
    )


def _is_all(part: Path, content_range: str) -> bool:
    """Return whether a server without more to send has no more than ``part`` holds."""
    total = content_range.rpartition("/")[2]
    return part.exists() and total.isdigit() and int(total) == part.stat().st_size


def make_request(address: str, headers: Mapping[str, str] | None = None) -> Request:
    """Return a request; user and password of the address go into a header."""
    parts = urlsplit(address)
    login, _, host = parts.netloc.rpartition("@")
    request = Request(urlunsplit(parts._replace(netloc=host)), headers=dict(headers or {}))
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
        tag = read_json(sidecar(part)).get("tag")
        if tag:
            headers["If-Range"] = tag
    with urlopen(make_request(address, headers), timeout=timeout_s) as answer:
        resumed = answer.status == 206 and _range_start(answer) == have
        start = have if resumed else 0
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else None
        tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        write_json(sidecar(part), {"source": identity(address), "tag": tag})
        with (
            open(part, "ab" if resumed else "wb") as file,
            _progress(part.name, start, total) as bar,
        ):
            # What came is written at once: a connection that hangs must not cost it.
            while chunk := answer.read1(CHUNK):
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
    note = sidecar(part)
    about = read_json(note) if note.exists() else {}
    if about.get("source") != identity(address) or not about.get("tag"):
        discard(part)
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
