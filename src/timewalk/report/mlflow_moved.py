"""Addresses in a store whose folder was moved, copied or renamed.

MLflow keeps the place of artefacts as whole addresses: of an experiment, of each run and model, of
each version. Our own store has them all below ``<results>/mlartifacts``, beside its file, so that
one which names another folder has been moved here, or is a copy.
"""

import fcntl
import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from timewalk.errors import UserError

log = logging.getLogger(__name__)

STORE, ARTEFACTS = "mlflow.db", "mlartifacts"
"""our own store in a folder of results, and the folder of its artefacts"""
LOCK = ".lock"
"""in the latter: who holds it writes into the store"""
WAIT_S = 60.0
"""for a server that writes into the store"""


def follow(store: Path) -> None:
    """Let all addresses of our own store lead to where it is now, in one transaction.

    Args:
        store: SQLite file; none there: nothing happens.

    Raises:
        UserError: it is no SQLite file.
    """
    if not store.is_file():
        return
    here = artefacts_of(store.parent)
    with _opened(store) as base:
        if not _elsewhere(base, here):
            return
        base.execute("BEGIN IMMEDIATE")
        for there in _elsewhere(base, here):
            _rewrite(base, there, here)
            log.info("%s was below %s: its addresses follow", store, there)
        base.execute("COMMIT")


def _named_elsewhere(store: Path) -> list[str]:
    with _opened(store) as base:
        return _elsewhere(base, artefacts_of(store.parent))


@contextmanager
def _opened(store: Path) -> Iterator[sqlite3.Connection]:
    """Yield a store; what is no SQLite file is refused."""
    try:
        with closing(sqlite3.connect(store, timeout=WAIT_S, isolation_level=None)) as base:
            yield base
    except sqlite3.OperationalError:
        raise  # busy, or its disk is full
    except sqlite3.DatabaseError as error:
        raise UserError(
            f"{store} is no store of MLflow's ({error}): delete it and {ARTEFACTS} beside it, and "
            f"build both again with `timewalk mlflow {store.parent}`."
        ) from None


def follow_if_free(store: Path) -> None:
    """Do as :func:`follow`, unless we may not write there or a mirror writes: who only looks at a
    store neither fails for that nor waits.

    Args:
        store: SQLite file.

    Raises:
        UserError: it is no SQLite file.
    """
    folder = store.parent / ARTEFACTS
    if not all(os.access(path, os.W_OK) for path in (store, store.parent)):
        for there in _named_elsewhere(store):
            log.warning(
                "pictures still point to %s, and %s cannot be written: its owner calls `timewalk "
                "mlflow %s`",
                there,
                store,
                store.parent,
            )
        return
    folder.mkdir(exist_ok=True)
    # For reading: the file may be another user's, in a folder that both may write.
    handle = os.open(folder / LOCK, os.O_RDONLY | os.O_CREAT, 0o666)
    try:
        if _locked(handle):
            follow(store)
        else:
            log.warning("a mirror writes into %s: pictures may point to where it was", store)
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    """Return whether a lock is ours now; a disk that knows no locks counts as free."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning("no lock on %s (%s)", LOCK, error.strerror)
    return True


def is_ours(location: str) -> bool:
    """Return whether an address is that of the artefacts of an own store, wherever it was."""
    return location.startswith("file:///") and location.endswith(f"/{ARTEFACTS}")


def artefacts_of(results: Path) -> str:
    """Return the address of the folder where our own store keeps artefacts."""
    return (results / ARTEFACTS).resolve().as_uri()


def _elsewhere(base: sqlite3.Connection, here: str) -> list[str]:
    """Return the addresses of our artefacts that experiments name and that are not here."""
    if "experiments" not in _tables(base):
        return []
    named = base.execute("SELECT DISTINCT artifact_location FROM experiments")
    found = [location for (location,) in named if location]
    return [location for location in found if is_ours(location) and location != here]


def _rewrite(base: sqlite3.Connection, there: str, here: str) -> None:
    """Rewrite whatever is an address, or below it, in any column of any table."""
    start = f"{there}/"
    for table in _tables(base):
        for column in _columns(base, table):
            base.execute(
                f'UPDATE "{table}" SET "{column}" = ? || substr("{column}", ?) '
                f'WHERE "{column}" = ? OR substr("{column}", 1, ?) = ?',
                (here, len(there) + 1, there, len(start), start),
            )


def _tables(base: sqlite3.Connection) -> list[str]:
    found = base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    return [name for (name,) in found if not name.startswith("sqlite_")]


def _columns(base: sqlite3.Connection, table: str) -> Iterator[str]:
    """Yield the columns that hold text."""
    for _, name, kind, *_ in base.execute(f'PRAGMA table_info("{table}")').fetchall():
        if any(word in kind.upper() for word in ("CHAR", "TEXT")):
            yield name
