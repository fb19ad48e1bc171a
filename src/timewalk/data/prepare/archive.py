"""Published archives: fetched with resume, checked, and unpacked without leaving their folder.

Only a root that does not hold the set is written to. The partial file grows in it under a hidden
name and survives a kill; what was unpacked gets its place at the end. ``.fetched.json`` keeps the
archives' digests for the manifest.
"""

import logging
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from timewalk.addresses import public
from timewalk.artefacts import alone, read_json, sha256_file, write_json
from timewalk.config import PublishedSet
from timewalk.data.prepare.videos import Archive, Source, find_root, missing
from timewalk.errors import UserError, reason
from timewalk.transfer import discard, fetch_http

log = logging.getLogger(__name__)

NOTE = ".fetched.json"
RETRIES = 20
TIMEOUT_S = 30.0
ENCRYPTED = 1
"""bit of a zip entry's flags"""
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError)


def fetch_archives(name: str, config: PublishedSet, source: Source) -> None:
    """Fetch and unpack a set into its root.

    Args:
        name: the set's name in the configuration, for messages.
        config: `root`, `url` and `sha256`.
        source: the archives at its authors' address.

    Raises:
        UserError: no address is known, or it does not answer; another digest than the expected;
            a damaged archive, or one with names outside its folder; something is in the way.
    """
    root = Path(config.root)
    archives = _archives(name, config, source)
    with alone(root, root / ".lock"):
        if find_root(root, source) is not None:  # another job was quicker
            return
        for archive in archives:
            if not (archive.holds and (root / archive.holds).is_dir()):
                _fetch(name, archive, root)


def located(name: str, config: PublishedSet, source: Source) -> Path:
    """Return the folder of a set's layout, its archives fetched where it is missing and has a url.

    Raises:
        UserError: the set is missing, or cannot be fetched.
    """
    place = Path(config.root)
    root = find_root(place, source)
    if root is None and config.url is not None:
        fetch_archives(name, config, source)
        root = find_root(place, source)
    if root is None:
        missing(name, place, source)
    return root


def fetched(root: Path) -> dict[str, str]:
    """Return the digest of each archive that was fetched into a root, by file name."""
    note = root / NOTE
    return dict(read_json(note)) if note.is_file() else {}


def unverified(source: Source, config: PublishedSet, found: dict[str, str]) -> list[str]:
    """Return warnings for archives that were fetched without a digest to check them by."""
    known = {config.sha256, *(archive.sha256 for archive in source.archives)}
    return [
        f"{file} was fetched without a known digest; it has sha256 {digest}"
        for file, digest in sorted(found.items())
        if digest not in known
    ]


def _archives(name: str, config: PublishedSet, source: Source) -> Iterable[Archive]:
    assert config.url is not None
    if config.url != "official":
        return [Archive(config.url, "", config.sha256)]
    if not source.archives:
        raise UserError(
            f"labelled.{name}.url: {source.title} has no stable public address; get it from "
            f"{source.page} so that the root holds {source.tree}."
        )
    if config.sha256 is None:
        return source.archives
    if len(source.archives) > 1:
        raise UserError(
            f"labelled.{name}.sha256: {source.title} comes in {len(source.archives)} archives; "
            "leave the key out."
        )
    return [Archive(item.url, item.holds, config.sha256) for item in source.archives]


def _fetch(name: str, archive: Archive, root: Path) -> None:
    file = Path(urlsplit(archive.url).path).name or "archive"
    part = root / f".{file}.part"
    remedy = f"unpack the archive into {root} yourself"
    log.info("labelled.%s: fetching %s", name, public(archive.url))
    fetch_http(archive.url, part, RETRIES, TIMEOUT_S, remedy)
    digest = sha256_file(part)
    if archive.sha256 and digest != archive.sha256:
        discard(part)
        raise UserError(
            f"labelled.{name}: the file from {public(archive.url)} has sha256 {digest}, not "
            f"{archive.sha256}: it is another file; correct 'url' or 'sha256'."
        )
    try:
        unpack(part, root)
    except DAMAGED as error:
        discard(part)
        raise UserError(
            f"labelled.{name}: the file from {public(archive.url)} cannot be unpacked "
            f"({reason(error)}); correct 'url', run again, or {remedy}."
        ) from None
    write_json(root / NOTE, {**fetched(root), file: digest})
    discard(part)


def unpack(archive: Path, root: Path) -> None:
    """Unpack a zip or tar archive into a folder.

    Everything is unpacked beside its place first, so that a kill leaves nothing that looks whole.

    Raises:
        UserError: a name outside the folder, a link or a device, or what is to be unpacked is
            there already.
        tarfile.ReadError: neither zip nor tar.
        zipfile.BadZipFile: a damaged or an encrypted zip archive.
    """
    temporary = root / f"{archive.name}.unpacked"
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    try:
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, temporary)
        elif tarfile.is_tarfile(archive):
            _unpack_tar(archive, temporary)
        else:
            raise tarfile.ReadError("it is neither a zip nor a tar archive")
        entries = sorted(path for path in temporary.iterdir() if path.name != "__MACOSX")
        for entry in entries:
            if (root / entry.name).exists():
                raise UserError(
                    f"{root / entry.name} is in the way of what {archive.name} holds; choose "
                    "another root, or unpack the archive yourself."
                )
        for entry in entries:
            entry.rename(root / entry.name)
    finally:
        shutil.rmtree(temporary)


def _unpack_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as packed:
        for item in packed.infolist():
            kind = stat.S_IFMT(item.external_attr >> 16)
            plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
            _check_name(archive, item.filename, plain)
            if item.flag_bits & ENCRYPTED:
                raise zipfile.BadZipFile("it is encrypted")
        packed.extractall(folder)


def _unpack_tar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as packed:
        for item in packed:
            _check_name(archive, item.name, item.isfile() or item.isdir())
        packed.extractall(folder, filter="data")


def _check_name(archive: Path, name: str, plain: bool) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if not plain or path.is_absolute() or ".." in path.parts:
        raise UserError(
            f"{archive} holds {name!r}, which is no plain file inside its folder; it is not "
            "unpacked: take the archive from its authors."
        )
