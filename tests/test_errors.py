"""A full disk is told from other faults by what libraries leave of it."""

import errno
import sqlite3

import pytest

from timewalk.errors import DiskFull, UserError, disk_full, out_of_room


def caused(error: Exception, cause: Exception) -> Exception:
    try:
        try:
            raise cause
        except Exception:
            raise error from None  # as a stage does that says it in its own words
    except Exception as raised:
        return raised


FULL = OSError(errno.ENOSPC, "No space left on device", "a.json")
COPY = OSError(errno.ENOSPC, "No space left on device", "from.mp4", None, "to.mp4")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FULL, (errno.ENOSPC, "a.json")),
        (COPY, (errno.ENOSPC, "to.mp4")),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), (errno.EDQUOT, None)),
        (RuntimeError("I/O error: File too large (os error 27)"), (errno.EFBIG, None)),
        (sqlite3.OperationalError("database or disk is full"), (errno.ENOSPC, None)),
        (OSError("1000 requested and 200 written"), (errno.ENOSPC, None)),
        (UserError("x.mp4 gave 3 of 9 frames (No space left on device)"), (errno.ENOSPC, None)),
        (caused(UserError("the server does not answer"), FULL), (errno.ENOSPC, "a.json")),
        (UserError("x.mp4 is missing"), None),
        (OSError(errno.EACCES, "Permission denied", "a.json"), None),
        (RuntimeError("shapes do not fit"), None),
    ],
)
def test_a_full_disk_behind_an_error(error, expected):
    assert out_of_room(error) == expected


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "no room"), (errno.EDQUOT, "quota"), (errno.EFBIG, "ulimit -f")],
)
def test_its_sentence(number, words):
    error = disk_full("a/b.pt", number)
    assert isinstance(error, DiskFull)
    assert str(error).startswith("a/b.pt cannot be written: ")
    assert words in str(error)
    assert "run the same command again" in str(error)
