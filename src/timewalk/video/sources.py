"""The built-in table of videos, and the reader of the published list."""

import csv
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path

from timewalk.config import VideoConfig, lookup


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
    """
    videos = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        address, _, name = re.sub(r"[\s,]+", " ", text).partition(" ")
        videos[key_of(name or Path(address).stem)] = VideoConfig(source=address)
    return videos
