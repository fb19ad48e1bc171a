"""Files that are either whole or absent, and the manifests that describe them.

Every stage writes to a temporary name beside its target, flushes and renames, so that a killed
step leaves nothing that looks finished. Each artefact has a manifest: what it is, made from which
inputs by digest, with which parameters and code version, counts and warnings.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from glob import escape
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from timewalk.errors import FULL, DiskFull, UserError, disk_full

log = logging.getLogger(__name__)

FORMAT = 1
ROOM = 1 << 20
"""bytes that a device which is not full takes"""
HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
"""of this machine, in the names of its halves"""


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``target`` (same suffix); on success flush and rename it.

    The path may become a file or a folder. On an exception it is removed. A folder that was there
    goes aside, and comes back if the new one does not take its place: who reads in it never meets
    one that is being emptied.

    Raises:
        DiskFull: instead of whatever else was raised, where the device takes no more.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = _half(target), _half(target)
    try:
        yield temporary
        if temporary.is_dir():
            os.sync()  # once: a video has as many files as frames
            if target.exists():
                os.replace(target, old)
        else:
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())
            _let_others_read(temporary)
        os.replace(temporary, target)
    except DiskFull:
        raise
    except Exception as error:
        # Few libraries say why they could not write, and once the half is removed there is room.
        if number := refusal(temporary / ".room" if temporary.is_dir() else temporary):
            raise disk_full(target, number) from error
        raise
    finally:
        if old.is_dir() and not target.exists():
            os.replace(old, target)
        for path in (temporary, old):
            _remove(path)


def _half(target: Path) -> Path:
    name = f".{target.stem}.{HOST}{uuid.uuid4().hex[:8]}.part{target.suffix}"
    return target.with_name(name)


def _let_others_read(file: Path) -> None:
    """Give a file that only its owner may read, as safetensors writes it, the usual rights here."""
    if file.stat().st_mode & 0o777 == 0o600:
        usual = _half(file)
        usual.touch()
        file.chmod(usual.stat().st_mode)
        usual.unlink()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()


@contextmanager
def alone(target: Path, lock: Path | None = None) -> Iterator[None]:
    """Be the only process that makes an artefact; wait for one that does.

    A killed workflow may have left its job running, and two projects may share a data folder. The
    kernel frees the lock of a process that has died; that of a machine that has died, on a network
    disk, only when the file server forgets the machine.

    Args:
        target: the artefact.
        lock: a file to lock; by default a hidden one beside the artefact.
    """
    lock = lock or target.with_name(f".{target.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with _opened(lock) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("another process makes %s: waiting for it to end", target)
            fcntl.flock(handle, fcntl.LOCK_EX)
            _remove_halves(target)
        except OSError as error:
            log.warning("no lock on %s (%s): let nothing else make it now", target, error.strerror)
        else:
            _remove_halves(target)
        yield


def _opened(lock: Path) -> TextIO:
    try:
        return open(lock, "w")
    except PermissionError:  # another user's, in a folder that both may write
        return open(lock)


def _remove_halves(target: Path) -> None:
    """Remove what killed processes have left of an artefact: a video's frames are gigabytes.

    Only this machine's: on some network disks a lock is known on one machine alone.
    """
    name = f".{escape(target.stem)}.{HOST}????????.part{escape(target.suffix)}"
    for half in target.parent.glob(name):
        _remove(half)


def refusal(file: Path) -> int | None:
    """Append a MiB to a file; return the error number of a device that is full, None of others."""
    try:
        with open(file, "ab") as half:
            half.write(bytes(ROOM))
            half.flush()
            os.fsync(half.fileno())
    except OSError as error:
        return error.errno if error.errno in FULL else None
    return None


def write_text(target: Path, text: str) -> None:
    """Write ``text`` to ``target`` atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: Path, value: Any) -> None:
    """Write ``value`` as readable JSON with sorted keys, atomically."""
    write_text(target, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or damaged one is a :class:`UserError` that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run the stage that makes it.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not valid JSON ({error}); delete it and run its stage again."
        ) from None


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Return the SHA-256 of a JSON value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def version() -> str:
    """Return the installed version of timewalk (``0+unknown`` from a bare source folder)."""
    try:
        return metadata.version("timewalk")
    except metadata.PackageNotFoundError:
        return "0+unknown"


def write_manifest(
    path: Path,
    kind: str,
    *,
    inputs: Mapping[str, str],
    parameters: Mapping[str, Any],
    counts: Mapping[str, float],
    warnings: list[str] | None = None,
    **content: Any,
) -> dict[str, Any]:
    """Write an artefact's manifest and return it.

    Args:
        path: where the JSON goes.
        kind: what the artefact is (``video``, ``blurred-video``, ``frames``, ``shards``, ...).
        inputs: name of each input and its SHA-256.
        parameters: the settings that change the artefact's content, and only those.
        counts: frames, seconds, bytes and the like.
        warnings: sentences that a person should read.
        content: whatever else the next stage needs.
    """
    manifest = {
        "kind": kind,
        "format": FORMAT,
        "timewalk": version(),
        "inputs": dict(inputs),
        "parameters": dict(parameters),
        "counts": dict(counts),
        "warnings": list(warnings or []),
        **content,
    }
    write_json(path, manifest)
    return manifest


def read_manifest(path: Path, kind: str) -> dict[str, Any]:
    """Read a manifest and check that it describes an artefact of ``kind``."""
    manifest = read_json(path)
    found = manifest.get("kind") if isinstance(manifest, dict) else None
    if found != kind:
        raise UserError(f"{path} describes '{found}', but a manifest of '{kind}' is needed here.")
    return manifest
