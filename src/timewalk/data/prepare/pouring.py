"""Pouring as the authors of TCC publish it: TFRecords of 70 training and 14 validation videos.

Source: TCC's released code.
"""

import logging
import os
from pathlib import Path

from timewalk.addresses import public
from timewalk.artefacts import alone, sha256_file, write_json
from timewalk.config import Pouring
from timewalk.data.prepare.archive import NOTE, RETRIES, TIMEOUT_S, fetched
from timewalk.data.prepare.phase_records import read_splits
from timewalk.data.prepare.phase_videos import START, PhaseSet, count_warning
from timewalk.data.tfrecord import read_records
from timewalk.errors import UserError
from timewalk.transfer import discard, fetch_http

log = logging.getLogger(__name__)

HOST = "https://storage.googleapis.com/tcc-pouring"
FILES = {
    "train": ("pouring_train-0-of-2.tfrecord", "pouring_train-1-of-2.tfrecord"),
    "test": ("pouring_val-0-of-1.tfrecord",),
}
VIDEOS = (70, 14)
PHASES = [
    START,
    "hand touches bottle",
    "liquid starts exiting",
    "pouring complete",
    "bottle back on table",
]


def find_pouring(name: str, config: Pouring) -> PhaseSet:
    """Return the videos of both splits, after their files were fetched where `url` says so.

    Raises:
        UserError: a file is missing or cannot be fetched, or what records may be at fault in.
    """
    root = Path(config.root)
    listed = [file for files in FILES.values() for file in files]
    if config.url is not None:
        _fetch_missing(name, HOST if config.url == "official" else config.url, root, listed)
    if missing := [file for file in listed if not (root / file).is_file()]:
        raise UserError(
            f"labelled.{name}: {root / missing[0]} is missing; put the published files there, or "
            "set `url: official` to fetch them."
        )
    files = {split: [root / file for file in of_split] for split, of_split in FILES.items()}
    found = read_splits(name, root, files, PHASES)
    counts = (len(found.splits["train"]), len(found.splits["test"]))
    found.warnings += count_warning("Pouring", counts, VIDEOS)
    found.warnings += [
        f"{file} was fetched, and no digest of it is published; it has sha256 {digest}"
        for file, digest in sorted(fetched(root).items())
    ]
    return found


def _fetch_missing(name: str, host: str, root: Path, files: list[str]) -> None:
    with alone(root, root / ".lock"):
        for file in files:
            if not (root / file).is_file():
                _fetch(name, f"{host.rstrip('/')}/{file}", root / file)


def _fetch(name: str, address: str, target: Path) -> None:
    """Fetch one file; it gets its name only when all its checksums are right."""
    part = target.with_name(f".{target.name}.part")
    log.info("labelled.%s: fetching %s", name, public(address))
    fetch_http(address, part, RETRIES, TIMEOUT_S, f"put {target.name} into {target.parent}")
    try:
        for _ in read_records(part):
            pass
    except UserError:
        discard(part)
        raise UserError(
            f"labelled.{name}: the file from {public(address)} is no whole TFRecord; correct 'url' "
            "or run again."
        ) from None
    write_json(target.parent / NOTE, {**fetched(target.parent), target.name: sha256_file(part)})
    os.replace(part, target)
    discard(part)
