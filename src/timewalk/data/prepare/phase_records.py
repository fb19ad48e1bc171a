"""TFRecords of the TCC tools, indexed where they are: ``<dataset>_<split>-<n>-of-<m>.tfrecord``.

Source: TCC's released code: a video a record, files in the order of their names. Both checksums of
every record are verified here, once; later a frame is read by offset and verified by a checksum of
its own.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from timewalk.artefacts import sha256_file
from timewalk.config import PhaseRecords
from timewalk.data.prepare.phase_videos import (
    SPLITS,
    CheckedVideo,
    FoundVideo,
    PhaseSet,
    check_labels,
    check_names,
    check_video,
)
from timewalk.data.protobuf import WireError, jpeg_spans
from timewalk.data.tfrecord import HEADER_BYTES, VideoRecord, decode_video, read_records
from timewalk.errors import UserError

SHARD = re.compile(r"(?P<name>.*)-(?P<shard>\d+)-of-(?P<total>\d+)\.tfrecord")


def find_phase_records(name: str, config: PhaseRecords) -> PhaseSet:
    """Return the videos of both splits.

    Raises:
        UserError: no file of a split, a shard that is missing, a file in both splits; a damaged
            file, a record that is no video, a frame that cannot be decoded; a label that is no
            class; two videos of one name; records that name different classes.
    """
    root = Path(config.root)
    if not root.is_dir():
        raise UserError(f"labelled.{name}.root: there is no folder {root}; correct the path.")
    patterns = {"train": config.train, "test": config.test}
    files = {split: _files(name, root, split, pattern) for split, pattern in patterns.items()}
    if twice := sorted(set(files["train"]) & set(files["test"])):
        raise UserError(
            f"labelled.{name}: {twice[0]} fits both 'train' and 'test'; make the patterns differ."
        )
    return read_splits(name, root, files, config.classes)


def read_splits(
    name: str, root: Path, files: dict[str, list[Path]], classes: list[str] | None
) -> PhaseSet:
    """Return the videos of some files, in the order of the files.

    Args:
        name: the set's name, for messages.
        root: folder of the files.
        files: of `train` and of `test`.
        classes: names of the phases; None: as the records say.
    """
    said: dict[tuple[str, ...], str] = {}
    splits: dict[str, list[CheckedVideo]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        for path in files[split]:
            for record, checked in _videos(name, path):
                splits[split].append(checked)
                if record.class_names:
                    said.setdefault(tuple(record.class_names), record.name)
        check_names(name, split, (item.video for item in splits[split]))
    if classes is None:
        classes = _agreed(name, said)
    for item in (item for split in SPLITS for item in splits[split]):
        check_labels(name, item.video, classes)
    inputs = {
        path.relative_to(root).as_posix(): sha256_file(path)
        for split in SPLITS
        for path in files[split]
    }
    return PhaseSet(root, splits, classes, inputs)


def _files(name: str, root: Path, split: str, pattern: str) -> list[Path]:
    found = [path for path in root.glob(pattern) if path.is_file() and path.name[0] != "."]
    if not found:
        raise UserError(
            f"labelled.{name}.{split}: no file in {root} fits '{pattern}'; correct the pattern, or "
            "the key 'root'."
        )
    _refuse_missing(name, found)
    return sorted(found, key=str)


def _refuse_missing(name: str, files: list[Path]) -> None:
    """Refuse a set of which a shard is missing, as a broken copy leaves it, or that is two sets."""
    shards: dict[tuple[Path, str, str], set[int]] = {}
    for path in files:
        if match := SHARD.fullmatch(path.name):
            key = (path.parent, match["name"], match["total"])
            shards.setdefault(key, set()).add(int(match["shard"]))
    totals: dict[tuple[Path, str], str] = {}
    for folder, stem, total in shards:
        if (other := totals.setdefault((folder, stem), total)) != total:
            raise UserError(
                f"labelled.{name}: {folder} holds {stem}-*-of-{other}.tfrecord and "
                f"{stem}-*-of-{total}.tfrecord, two conversions of one set; remove the older files."
            )
    for (folder, stem, total), found in shards.items():
        for shard in sorted(set(range(int(total))) - found):
            path = folder / f"{stem}-{str(shard).zfill(len(total))}-of-{total}.tfrecord"
            if not path.is_file():
                raise UserError(f"labelled.{name}: {path} is missing; restore it.")


def _videos(name: str, path: Path) -> Iterator[tuple[VideoRecord, CheckedVideo]]:
    for offset, data in read_records(path):
        try:
            record = decode_video(data)
        except WireError as error:
            raise UserError(
                f"labelled.{name}: the record at byte {offset} of {path} is not a video of the TCC "
                f"tools: {error}; restore the file, or correct the pattern."
            ) from None
        base = offset + HEADER_BYTES
        labels = record.frame_labels
        video = FoundVideo(
            name=record.name,
            files=[path],
            times=np.arange(len(record.frames)),
            labels=None if labels is None else np.array(labels, np.int64),
            action=record.label,
            offsets=[base + start for start, _ in jpeg_spans(data)],
        )
        yield record, check_video(name, video, record.frames)


def _agreed(name: str, said: dict[tuple[str, ...], str]) -> list[str]:
    """Return the classes that the records name; none if they name none."""
    if len(said) > 1:
        (first, one), (second, other), *_ = said.items()
        raise UserError(
            f"labelled.{name}: '{one}' has the phases {', '.join(first)}, but '{other}' has "
            f"{', '.join(second)}; name the right ones under the key 'classes'."
        )
    return list(next(iter(said), ()))
