"""A full disk: one sentence, whatever the library said, and a log that does not stop the work."""

import errno
import io
import logging
import sys
import tempfile
import uuid
from argparse import Namespace
from pathlib import Path
from typing import TextIO

from timewalk.artefacts import refusal
from timewalk.errors import FULL, DiskFull, UserError, disk_full, out_of_room, reason

log = logging.getLogger(__name__)

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

WRITTEN = ("output", "manifest", "stamp", "results", "folder", "run")
"""names of arguments; the first that a verb has is what it writes"""
SHARED_MEMORY = Path("/dev/shm")
"""through which loader processes hand over batches"""


def sentence(error: BaseException, arguments: Namespace) -> DiskFull | None:
    """Return the sentence about a full disk if that is behind an error, else None.

    Args:
        error: that ended a verb.
        arguments: of the verb.
    """
    if isinstance(error, DiskFull):
        found = error
    elif known := out_of_room(error):
        place = known[1] or _full_place(arguments) or _written(arguments)
        found = disk_full(place, known[0])
    elif "out of shared memory" in str(error):
        found = DiskFull(
            f"{SHARED_MEMORY} has no room for the batches that loader processes hand over: give "
            "the job or container more of it (docker: --shm-size), or --threads 1, and run the "
            "same command again: what is finished is kept."
        )
    elif not isinstance(error, UserError) and _refusal(_written(arguments)) in NO_ROOM:
        found = disk_full(_written(arguments), errno.ENOSPC)
    else:
        return None
    cause = error.__cause__ or error
    log.info("the disk is full: %s: %s", type(cause).__name__, reason(cause))
    return found


def _written(arguments: Namespace) -> Path:
    """Return what a verb writes."""
    return next(
        (value for key in WRITTEN if isinstance(value := getattr(arguments, key, None), Path)),
        Path(),
    )


def _full_place(arguments: Namespace) -> Path | None:
    """Return the first device that takes no more, of those to which anything is written."""
    places = (_written(arguments), Path(tempfile.gettempdir()), SHARED_MEMORY)
    return next((place for place in places if _refusal(place)), None)


def _refusal(place: Path) -> int | None:
    """Return the number of the error with which the device of a path takes no MiB more."""
    folder = next(path for path in (place, *place.absolute().parents) if path.is_dir())
    file = folder / f".{uuid.uuid4().hex[:8]}.room"
    try:
        return refusal(file)
    finally:
        if file.exists():  # on a read-only device even the removal of nothing fails
            file.unlink()


class _Lossy(io.FileIO):
    """A stream that loses what a full disk does not take, instead of failing the work."""

    def write(self, data: object) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError as error:
            if error.errno not in FULL:
                raise
            return memoryview(data).nbytes  # type: ignore[arg-type]


def lossy(descriptor: int) -> TextIO:
    """Return a text stream, flushed after each line, that never fails for lack of room."""
    raw = _Lossy(descriptor, "w", closefd=False)
    encoding, errors = sys.stderr.encoding, "backslashreplace"
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, line_buffering=True)
