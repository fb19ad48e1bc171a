"""Errors of loader workers as the user is meant to read them."""

from collections.abc import Iterator
from contextlib import contextmanager

from timewalk.errors import UserError


@contextmanager
def plain_errors() -> Iterator[None]:
    """Cut off the worker's traceback that torch puts before a :class:`UserError`'s sentence."""
    try:
        yield
    except UserError as error:
        sentence = str(error).strip().rpartition("UserError: ")[2]
        raise UserError(sentence) from None
