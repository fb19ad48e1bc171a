"""Whose a run, a model or a version in a store is: which folder of results wrote it.

Several folders may write to one server, each from several machines. What decides is a number that
a folder keeps in a file, with its inode number beside it: a move on one disk takes both along, and
a copy has another inode, so that it makes a number of its own. The device is not asked: machines
give one network disk different numbers.
"""

import getpass
import logging
import os
import socket
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from timewalk.artefacts import read_json, write_json

log = logging.getLogger(__name__)

FILE = ".mlflow-owner"
OWNER, RESULTS = "timewalk.owner", "timewalk.results"
"""tags: the number that decides, and ``user@host:folder`` for people"""


class Owner(NamedTuple):
    """A folder of results that writes into a store.

    Attributes:
        name: who and where: ``user@host:folder``.
        number: of the folder; None where it cannot be written, or nobody else writes there.
        alone: whether nobody else writes there. A folder may move, and its store with it.
    """

    name: str
    number: str | None
    alone: bool

    @property
    def tags(self) -> dict[str, str]:
        """What this folder writes has these tags."""
        return {RESULTS: self.name} | ({OWNER: self.number} if self.number else {})

    def has(self, tags: Mapping[str, str]) -> bool:
        """Return whether what has these tags was written by this folder."""
        if self.alone:
            return True
        if self.number is None:
            return OWNER not in tags and tags.get(RESULTS) == self.name
        return tags.get(OWNER) == self.number

    def inherits(self, tags: Mapping[str, str]) -> bool:
        """Return whether what has these tags was written by a version that knew no numbers, and
        maybe by this folder: nothing says that it was another."""
        known = self.alone or self.number is None or OWNER in tags
        return not known and tags.get(RESULTS, self.name) == self.name

    def succeeds(self, tags: Mapping[str, str]) -> bool:
        """Return whether what has these tags was written by a folder of this user and machine that
        is gone, or is another one now: it was moved to another disk."""
        who, _, folder = tags.get(RESULTS, "").partition(":")
        if self.alone or self.number is None or who != self.name.partition(":")[0]:
            return False
        if not Path(folder).is_dir():
            return True
        return OWNER in tags and number_of(Path(folder)) != tags[OWNER]


def owner_of(results: Path, remote: bool) -> Owner:
    """Return a folder of results as what it writes names it; before it first writes to a server,
    it gets a number. Call it under the mirror's lock.

    Args:
        results: the folder.
        remote: whether others may write to the store too.
    """
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    name = f"{user}@{socket.gethostname()}:{results.resolve()}"
    return Owner(name, _numbered(results), False) if remote else Owner(name, None, True)


def number_of(results: Path) -> str | None:
    """Return the number of a folder of results; None: it has none, or that of another folder."""
    if not (file := results / FILE).is_file():
        return None
    found = read_json(file)
    return str(found["number"]) if found["inode"] == results.stat().st_ino else None


def _numbered(results: Path) -> str | None:
    """Return the number of a folder, which gets one where it has none and can be written."""
    if number := number_of(results):
        return number
    if not os.access(results, os.W_OK):
        log.warning("%s cannot be written: older runs of it in MLflow stay as they are", results)
        return None
    write_json(results / FILE, {"number": uuid.uuid4().hex, "inode": results.stat().st_ino})
    return number_of(results)
