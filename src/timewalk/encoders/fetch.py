"""Weights from an address: fetched once, checked, kept in a cache.

A file is fetched to a temporary name and renamed when it is whole: a cache never holds half a file.
"""

import logging
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from timewalk.addresses import public
from timewalk.artefacts import atomic_path
from timewalk.errors import UserError
from timewalk.transfer import cache_folder as cache_folder
from timewalk.transfer import local_copy

log = logging.getLogger(__name__)

TIMEOUT_S = 30.0


def fetch(address: str) -> Path:
    """Return the local copy of a file at an http(s) address, fetched if it is not there.

    Raises:
        UserError: the address does not answer, or the transfer breaks off.
    """
    path = local_copy(address)
    if path.exists():
        return path
    log.info("fetching %s", path.name.partition("-")[2])
    request = urllib.request.Request(address, headers={"User-Agent": "timewalk"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            expected = int(answer.headers.get("Content-Length", -1))
            with atomic_path(path) as temporary:
                with open(temporary, "wb") as file, _bar(expected) as bar:
                    shutil.copyfileobj(_Counted(answer.read, bar), file)
                found = temporary.stat().st_size
                if expected not in (-1, found):
                    raise UserError(
                        f"encoder.weights: {public(address)} broke off after {found} of "
                        f"{expected} bytes; run again, or fetch the file and name its path."
                    )
    except (urllib.error.URLError, OSError) as error:
        raise UserError(
            f"encoder.weights: {public(address)} cannot be fetched ({error}); correct the address, "
            "or fetch the file elsewhere and name its path."
        ) from None
    return path


def _bar(total: int) -> "tqdm[None]":
    hidden = not sys.stderr.isatty()
    return tqdm(total=total, unit="B", unit_scale=True, disable=hidden)


class _Counted:
    """A stream that moves a bar."""

    def __init__(self, read: Callable[[int], bytes], bar: "tqdm[None]") -> None:
        self._read, self._bar = read, bar

    def read(self, size: int = 1 << 20, /) -> bytes:
        """Return the next bytes."""
        data = self._read(size)
        self._bar.update(len(data))
        return data
