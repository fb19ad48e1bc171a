"""A set of TFRecords on the disk: shards of consecutive videos, whole or absent.

Shards are ``<name>-<shard>-of-<total>.tfrecord``, as TCC's released code names them. They are
written into a hidden folder beside their places and moved when all are there; a repeat of an
interrupted conversion takes up what is finished, one with other settings or sources begins again.
Readers take every file whose name begins with the set's, so the manifest lies in a folder of its
own: ``manifests/<name>.json``.
"""

import math
import os
import re
import shutil
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from timewalk.artefacts import read_json, sha256_file, write_json, write_manifest
from timewalk.data.phase_labels import label_warnings
from timewalk.data.tfrecord import shard_name, write_records
from timewalk.errors import UserError

KIND = "records"


class Encoded(NamedTuple):
    """A video as a record.

    Attributes:
        data: the record's bytes.
        about: what the manifest says of the video: name, frames, sha256 of its source and more.
    """

    data: bytes
    about: dict[str, Any]


Encoder = Callable[[], Encoded]


class _Shard(NamedTuple):
    file: str
    videos: Sequence[Encoder]


class RecordSet:
    """Writes one set of shards.

    Args:
        output: folder of the shards; other sets may lie there.
        name: prefix of the files, by convention ``<data set>_<split>``.
        key: digest of all that decides the content, by which an interrupted conversion is known.

    Raises:
        UserError: a name that is no file's, or shards of that name which no manifest describes.
    """

    def __init__(self, output: Path, name: str, key: str) -> None:
        if not name or name.startswith(".") or Path(name).name != name:
            raise UserError(f"--name: '{name}' cannot begin a file's name; take letters, '_', '-'.")
        self.output, self.name = output, name
        self.manifest = output / "manifests" / f"{name}.json"
        self.work = output / f".{name}.{key[:12]}.part"
        make_folder(output)
        self._before = self._replaced()
        for folder in self._works():
            if folder != self.work and not (folder / "manifest.json").exists():
                shutil.rmtree(folder)

    def write(
        self,
        videos: Sequence[Encoder],
        per_shard: int,
        workers: int,
        inputs: Mapping[str, str],
        parameters: Mapping[str, Any],
        warnings: list[str],
    ) -> dict[str, Any]:
        """Write all shards and the manifest; return the manifest.

        Args:
            videos: a call for each video, in the set's order, run in threads.
            per_shard: videos in a shard.
            workers: threads. The files do not depend on it.
            inputs: digests of the label file and the list.
            parameters: the settings.
            warnings: sentences for the manifest.
        """
        total = math.ceil(len(videos) / per_shard)
        shards = [
            _Shard(
                shard_name(self.name, number, total),
                videos[number * per_shard : (number + 1) * per_shard],
            )
            for number in range(total)
        ]
        make_folder(self.work)
        if not (self.work / "manifest.json").exists():
            self._write_shards(shards, workers)
            self._describe(shards, inputs, parameters, warnings)
        return self._publish()

    def _write_shards(self, shards: list[_Shard], workers: int) -> None:
        todo = [shard for shard in shards if not self._finished(shard)]
        videos = [video for shard in todo for video in shard.videos]
        with closing(in_order(videos, workers)) as encoded:
            for shard in todo:
                made: list[dict[str, Any]] = []
                own = islice(encoded, len(shard.videos))
                write_records(self.work / shard.file, _noting(own, made))
                # Written last: a shard without it is not finished.
                write_json(self.work / f"{shard.file}.json", made)

    def _finished(self, shard: _Shard) -> bool:
        sidecar = self.work / f"{shard.file}.json"
        return sidecar.exists() and (self.work / shard.file).exists()

    def _describe(
        self,
        shards: list[_Shard],
        inputs: Mapping[str, str],
        parameters: Mapping[str, Any],
        warnings: list[str],
    ) -> None:
        made = [read_json(self.work / f"{shard.file}.json") for shard in shards]
        videos = [about for shard in made for about in shard]
        doubts = [(about["name"], about.pop("doubts")) for about in videos]
        files: list[dict[str, Any]] = [
            {
                "file": shard.file,
                "videos": len(shard.videos),
                "bytes": (self.work / shard.file).stat().st_size,
                "sha256": sha256_file(self.work / shard.file),
            }
            for shard in shards
        ]
        write_json(self.work / "before.json", self._before)
        write_manifest(
            self.work / "manifest.json",
            KIND,
            inputs={**inputs, **{about["name"]: about.pop("sha256") for about in videos}},
            parameters=parameters,
            counts={
                "shards": len(files),
                "videos": len(videos),
                "frames": sum(about["frames"] for about in videos),
                "bytes": sum(file["bytes"] for file in files),
            },
            warnings=[*warnings, *label_warnings(doubts)],
            name=self.name,
            shards=files,
            videos=videos,
        )

    def _publish(self) -> dict[str, Any]:
        """Move a complete set into place; a repeat goes on where an interrupted one ended."""
        about = read_json(self.work / "manifest.json")
        files = [shard["file"] for shard in about["shards"]]
        self.manifest.unlink(missing_ok=True)
        for old in self._before:
            if old not in files:
                (self.output / old).unlink(missing_ok=True)
        for file in files:
            if (self.work / file).exists():
                os.replace(self.work / file, self.output / file)
        self.manifest.parent.mkdir(exist_ok=True)
        os.replace(self.work / "manifest.json", self.manifest)
        for folder in self._works():
            shutil.rmtree(folder)
        return dict(about)

    def _replaced(self) -> list[str]:
        """Return the shards of this name that an earlier conversion wrote, finished or not."""
        own: set[str] = set()
        for manifest in (self.manifest, *(work / "manifest.json" for work in self._works())):
            if manifest.exists():
                own.update(shard["file"] for shard in read_json(manifest)["shards"])
        for work in self._works():
            if (work / "before.json").exists():
                own.update(read_json(work / "before.json"))
        shard = re.compile(rf"{re.escape(self.name)}-\d+-of-\d+\.tfrecord")
        found = sorted(path.name for path in self.output.iterdir() if shard.fullmatch(path.name))
        for file in found:
            if file not in own:
                raise UserError(
                    f"{self.output / file} is there already, made by something else: remove it, "
                    "or choose another --name."
                )
        return found

    def _works(self) -> list[Path]:
        mine = re.compile(rf"\.{re.escape(self.name)}\.[0-9a-f]{{12}}\.part")
        return sorted(path for path in self.output.iterdir() if mine.fullmatch(path.name))


def make_folder(path: Path) -> None:
    """Make a folder that a user named, or one within it, where it is not there.

    Raises:
        UserError: it cannot be made, as below a file.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the folder {path} cannot be made ({error.strerror}); name another OUTPUT."
        ) from None


def _noting(encoded: Iterator[Encoded], made: list[dict[str, Any]]) -> Iterator[bytes]:
    for video in encoded:
        made.append(video.about)
        yield video.data


def in_order(calls: Sequence[Encoder], workers: int) -> Generator[Encoded, None, None]:
    """Yield the results of calls in their order; at most two a thread are held at once."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        waiting = iter(calls)
        running = deque(pool.submit(call) for call in islice(waiting, 2 * max(1, workers)))
        try:
            while running:
                yield running.popleft().result()
                running.extend(pool.submit(call) for call in islice(waiting, 1))
        finally:
            for future in running:
                future.cancel()
