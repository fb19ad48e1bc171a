"""Files that are either whole or absent, and the manifests that describe them.

Every stage writes to a temporary name beside its target, flushes and renames, so that a killed
step leaves nothing that looks finished. Each artefact has a manifest: what it is, made from which
inputs by digest, with which parameters and code version, counts and warnings.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from timewalk.errors import UserError

FORMAT = 1


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``target`` (same suffix); on success flush and rename it.

    The path may become a file or a folder. On an exception it is removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}.{uuid.uuid4().hex[:8]}.part{target.suffix}")
    try:
        yield temporary
        if temporary.is_dir():
            if target.exists():
                shutil.rmtree(target)
        else:
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())
        os.replace(temporary, target)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


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
