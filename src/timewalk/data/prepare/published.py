"""Labelled videos, checked and indexed in place: one manifest whatever the layout is.

``manifest.json`` (kind `labelled_videos`) is small; ``sequences.jsonl`` beside it names every file
(:class:`timewalk.data.sequences.LabelledVideos` reads both). To add a layout: its keys in
``config/labelled.py``, its file here with a `source` and a `find`, and its line below.
"""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from timewalk.artefacts import sha256_file, write_manifest
from timewalk.config import Davis2017, MovingShapes, PublishedVideos, VideoLabels
from timewalk.data.generated import SHAPES, moving_shapes, write_davis
from timewalk.data.prepare.archive import fetched, located, unverified
from timewalk.data.prepare.base import check_output
from timewalk.data.prepare.davis import (
    find_davis2016,
    find_davis2017,
    source_davis2016,
    source_davis2017,
)
from timewalk.data.prepare.folder import relative_to
from timewalk.data.prepare.foreground import (
    find_fbms59,
    find_segtrack_v2,
    source_fbms59,
    source_segtrack_v2,
)
from timewalk.data.prepare.generated import check_place, generating
from timewalk.data.prepare.jhmdb import find_jhmdb, source_jhmdb
from timewalk.data.prepare.mose import find_mose, source_mose
from timewalk.data.prepare.videos import (
    Layout,
    Source,
    check_layout,
    counts,
    write_index,
)
from timewalk.data.prepare.vip import find_vip, source_vip
from timewalk.data.prepare.visor import find_visor, source_visor
from timewalk.data.prepare.youtube_vos import find_youtube_vos, source_youtube_vos
from timewalk.data.sequences import KIND, LIST

log = logging.getLogger(__name__)


class Kind(NamedTuple):
    """A layout: where its set is, and how its sequences are found below a root."""

    source: Callable[[Any], Source]
    find: Callable[[str, Any, Path], Layout]


KINDS = {
    "davis2016": Kind(source_davis2016, find_davis2016),
    "davis2017": Kind(source_davis2017, find_davis2017),
    "fbms59": Kind(source_fbms59, find_fbms59),
    "jhmdb": Kind(source_jhmdb, find_jhmdb),
    "mose": Kind(source_mose, find_mose),
    "segtrack_v2": Kind(source_segtrack_v2, find_segtrack_v2),
    "vip": Kind(source_vip, find_vip),
    "visor": Kind(source_visor, find_visor),
    "youtube_vos": Kind(source_youtube_vos, find_youtube_vos),
}


def prepare_videos(name: str, config: VideoLabels, manifest: Path) -> dict[str, Any]:
    """Check a set of labelled videos and write its manifest and list.

    Args:
        name: the set's name in the configuration, for messages.
        config: which layout, and where.
        manifest: ``manifest.json`` to write; ``sequences.jsonl`` goes beside it.

    Returns:
        The manifest.

    Raises:
        UserError: names the file or key, what is wrong with it and what to do.
    """
    parameters, classes = config.model_dump(mode="json"), None
    if isinstance(config, MovingShapes):
        # Objects of one number share a tint: ids mean the same in all videos.
        classes = ["background", *SHAPES[: config.objects]]
        config = _generate(name, config, manifest)
    assert isinstance(config, PublishedVideos)
    kind = str(config.model_dump()["kind"])
    source = KINDS[kind].source(config)
    place = Path(config.root)
    root = located(name, config, source)
    check_output(name, root, manifest)
    layout = KINDS[kind].find(name, config, root)
    checked = check_layout(name, layout)
    archives = fetched(place)
    warnings = layout.warnings + unverified(source, config, archives)
    for warning in warnings:
        log.warning("labelled.%s: %s", name, warning)
    digest = hashlib.sha256("".join(one.digest for one in checked).encode()).hexdigest()
    list_sha256 = write_index(manifest.parent / LIST, checked, root)
    return write_manifest(
        manifest,
        KIND,
        inputs={_place(path, root): sha256_file(path) for path in layout.lists} | archives,
        parameters=parameters,
        counts=counts(checked),
        warnings=warnings,
        name=name,
        layout=kind,
        subset=layout.subset,
        classes=classes or layout.classes,
        source={"root": relative_to(root, manifest.parent), "list_sha256": list_sha256},
        digest=digest,
        **({"split": layout.split} if layout.split else {}),
    )


def _place(path: Path, root: Path) -> str:
    # A list of one's own may be anywhere.
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _generate(name: str, config: MovingShapes, manifest: Path) -> Davis2017:
    """Write the generated videos anew and return how to read them.

    Raises:
        UserError: a folder that was not generated stands in their place.
    """
    root = manifest.parent / "DAVIS"
    check_place(name, root, manifest, config.kind)
    rngs = np.random.default_rng(config.seed).spawn(config.sequences)
    shape = (config.frames, (config.height, config.width), config.objects)
    videos = {
        f"shapes_{i:02d}": moving_shapes(*shape, rng, config.clutter, config.shade)
        for i, rng in enumerate(rngs)
    }
    with generating(root, config.kind) as folder:
        write_davis(folder, videos)
    return Davis2017(kind="davis2017", root=str(root))
