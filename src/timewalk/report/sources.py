"""What a model card says of a run's training data: the manifests that the run names as its inputs.

Three kinds of data sets have manifests of their own: videos (one each, with the frames' size),
folders of images (one for all of them) and still images (likewise). The latter two are read as they
lie on disk, in any size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from timewalk.artefacts import read_json, read_manifest, sha256_file
from timewalk.data.frame_folders import KIND as FOLDERS
from timewalk.report.page import code, number

FILES = {"folders", "images"}
"""names of the workflow's manifests of files on disk"""


@dataclass(frozen=True)
class Source:
    """One manifest of training data.

    Attributes:
        path: of the manifest.
        digest: that it had when the run was trained.
        title: what it is of, as Markdown.
        videos: how many it describes; of still images 0.
        frames: how many; None if the manifest is no longer the one.
        size: of the frames, as text; None where there is none for all.
        state: frames, or why they are not known.
        files: whether the frames are files on disk, not frames of a video that timewalk extracted.
    """

    path: Path
    digest: str
    title: str
    videos: int = 0
    frames: int | None = None
    size: str | None = None
    state: str = ""
    files: bool = False


def read_source(path: Path, digest: str) -> Source:
    """Return what is known of a manifest.

    Args:
        path: of the manifest; it may be gone.
        digest: that it had.

    Raises:
        UserError: it is no manifest of frames.
    """
    title, files = code(path.stem), path.stem in FILES
    if not path.is_file():
        return Source(path, digest, title, state="not here any more", files=files)
    if sha256_file(path) != digest:
        return Source(path, digest, title, state="made again since, differently", files=files)
    kind = read_json(path).get("kind")
    about = read_manifest(path, FOLDERS if kind == FOLDERS else "shards")
    counts = about["counts"]
    videos, size = 1, None
    if kind == FOLDERS:
        videos, title = counts["videos"], _several(counts["videos"], "video") + " in folders"
    elif about["parameters"].get("storage") == "images":
        videos, title = 0, "still images"
    else:
        size = f"{counts['width']} x {counts['height']}"
    frames = counts["frames"]
    return Source(path, digest, title, videos, frames, size, number(frames), size is None)


def data_counts(sources: Sequence[Source]) -> str:
    """Return how much all manifests describe: `2 videos, 1,234 frames`."""
    known = [source.frames for source in sources if source.frames is not None]
    if len(known) < len(sources):
        return f"{_several(len(sources), 'manifest')}, not all of them still there"
    videos = sum(source.videos for source in sources)
    if not videos:
        return _several(sum(known), "still image")
    return f"{_several(videos, 'video')}, {_several(sum(known), 'frame')}"


def _several(count: int, thing: str) -> str:
    return f"{number(count)} {thing}{'' if count == 1 else 's'}"
