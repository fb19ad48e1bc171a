"""The one exception that a user is meant to read, and how a full disk is told from other faults."""

import difflib
import errno
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

FULL = {
    errno.ENOSPC: "no room is left on its device",
    errno.EDQUOT: "the quota of its device is used up",
    errno.EFBIG: "files may not be that large here (ulimit -f)",
    errno.EROFS: "its device is read-only",
}
"""error numbers of a device that takes no more, in words"""
SAID = {
    errno.ENOSPC: r"No space left on device|database or disk is full|requested and \d+ written",
    errno.EDQUOT: "Disk quota exceeded",
    errno.EFBIG: "File too large",
    errno.EROFS: "Read-only file system|attempt to write a readonly database",
}
"""what is left of these numbers in the messages of safetensors, SQLite, NumPy, ffmpeg, yt-dlp"""


class UserError(Exception):
    """A mistake or a fault that the user can mend.

    The message is one sentence: the file or key, what is wrong, what to do.
    The command line prints it without a traceback and exits with 1.
    """


class DiskFull(UserError):
    """A device that takes no more; with room there the same command goes on."""


def disk_full(place: str | Path, number: int = errno.ENOSPC) -> DiskFull:
    """Return the sentence about what cannot be written, given one of the numbers in ``FULL``."""
    remedy = "make it writable" if number == errno.EROFS else "free some room there"
    return DiskFull(
        f"{place} cannot be written: {FULL[number]}; {remedy} and run the same command again: what "
        "is finished is kept."
    )


def out_of_room(error: BaseException) -> tuple[int, str | None] | None:
    """Look for a full disk behind an error; return its number and the file, if one is named."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in FULL:
            file = cause.filename2 or cause.filename
            return cause.errno, None if file is None else str(file)
        for number, words in SAID.items():
            if re.search(words, str(cause)):
                return number, None
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def reason(error: BaseException) -> str:
    """Return the first line of what a library says is wrong, short enough for a sentence."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0].strip().rstrip(".")[:200]


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` or the list of known words, for a message's end."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(known)}" if known else ""
