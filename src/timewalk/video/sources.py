"""The built-in table of videos, and the reader of the published list."""

import csv
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path

from timewalk.config import VideoConfig, lookup
from timewalk.errors import UserError


@cache
def _table() -> tuple[dict[str, VideoConfig], dict[str, str]]:
    text = files("timewalk.video").joinpath("sources.csv").read_text(encoding="utf-8")
    videos: dict[str, VideoConfig] = {}
    aliases: dict[str, str] = {}
    for row in csv.DictReader(text.splitlines()):
        # `mirror` is a page for people, no file: it stays in the table for the documentation.
        videos[row["key"]] = VideoConfig(
            source=row["address"],
            sha256=row["sha256"] or None,
            duration_s=float(row["duration_s"]) if row["duration_s"] else None,
            licence=row["licence"],
        )
        aliases |= {alias: row["key"] for alias in row["aliases"].split() if alias}
    return videos, aliases


def load_sources() -> dict[str, VideoConfig]:
    """Return the built-in videos by key: the ten Walking Tours."""
    return dict(_table()[0])


def resolve_video(name: str, configured: Mapping[str, VideoConfig]) -> VideoConfig:
    """Return a video of the configuration, or else of the built-in table.

    Raises:
        UserError: unknown name, with the nearest known one.
    """
    videos, aliases = _table()
    known = {**videos, **configured}
    video: VideoConfig = lookup("video", name if name in known else aliases.get(name, name), known)
    return video


def key_of(name: str) -> str:
    """Return the stable lower-case key of a published name: letters, digits and underscores."""
    key = re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_")
    return _table()[1].get(key, key)


def read_list(path: Path) -> dict[str, VideoConfig]:
    """Read a list in the published form: one ``address, name`` a line.

    A missing comma, spaces in names, blank lines and ``#`` comments are accepted.

    Raises:
        UserError: no such file, a line without address or name, or two videos of one name.
    """
    videos: dict[str, VideoConfig] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); name a text file.") from None
    for number, line in enumerate(lines, 1):
        # A comment begins the line or follows a space: addresses may hold a #.
        text = re.sub(r"(^|\s)#.*", "", line).strip()
        if not text:
            continue
        address, _, name = re.sub(r"[\s,]+", " ", text).partition(" ")
        key = key_of(name)
        if "://" not in address or not key:
            raise UserError(f"{path}, line {number}: write 'address, name', not '{text}'.")
        if key in videos:
            raise UserError(f"{path}, line {number}: a second video named '{key}'; rename one.")
        videos[key] = VideoConfig(source=address)
    return videos
