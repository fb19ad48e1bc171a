"""The one exception that a user is meant to read."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake or a fault that the user can mend.

    The message is one sentence: the file or key, what is wrong, what to do.
    The command line prints it without a traceback and exits with 1.
    """


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
