"""Labelled sets, checked and indexed in place: one manifest whatever the set is made of.

``manifest.json`` (kind `labelled`) names the classes, the splits with their counts, and the list
of images beside it: ``<split>.txt`` with one `label<TAB>path` a line, or the arrays themselves.
Nothing is copied but sets that exist only inside a package. Videos and images with masks have
manifests of their own kinds (``published.py``, ``masks.py``), and so have videos with phases
(``phases.py``), images with objects (``objects.py``) and videos of boxes (``tracks.py``).
"""

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timewalk.artefacts import write_manifest
from timewalk.config import (
    ArrayLabels,
    BoxVideos,
    FolderLabels,
    Labelled,
    MaskedImages,
    ObjectImages,
    PhaseLabels,
    VideoLabels,
)
from timewalk.data.prepare.arrays import prepare_arrays
from timewalk.data.prepare.base import Prepared, check_output
from timewalk.data.prepare.folder import prepare_folder
from timewalk.data.prepare.masks import prepare_masks
from timewalk.data.prepare.published import prepare_videos
from timewalk.data.prepare.shots import prepare_shots
from timewalk.errors import UserError

log = logging.getLogger(__name__)


def prepare(
    name: str, config: Labelled, manifest: Path, frames: Mapping[str, Path] | None = None
) -> dict[str, Any]:
    """Check a labelled set and write its manifest.

    Args:
        name: the set's name in the configuration, for messages.
        config: where images and labels come from.
        manifest: ``manifest.json`` to write; lists of images go beside it.
        frames: for shots and `phase_frames`, each video's manifest of frames.

    Returns:
        The manifest.

    Raises:
        UserError: names the file or key, what is wrong with it and what to do.
    """
    if isinstance(config, VideoLabels):
        return prepare_videos(name, config, manifest)
    if isinstance(config, MaskedImages):
        return prepare_masks(name, config, manifest)
    if isinstance(config, ObjectImages):
        from timewalk.data.prepare.objects import prepare_objects

        return prepare_objects(name, config, manifest)
    if isinstance(config, BoxVideos):
        from timewalk.data.prepare.tracks import prepare_tracks

        return prepare_tracks(name, config, manifest)
    if isinstance(config, PhaseLabels):
        # Here, because modules that it needs import parts of this package.
        from timewalk.data.prepare.phases import prepare_phases

        return prepare_phases(name, config, manifest, frames or {})
    if isinstance(config, FolderLabels):
        check_output(name, Path(config.root), manifest)
        prepared = prepare_folder(name, config, manifest.parent)
    elif isinstance(config, ArrayLabels):
        prepared = prepare_arrays(name, config, manifest.parent)
    else:
        prepared = prepare_shots(name, config, manifest.parent, frames or {})
    warnings = prepared.warnings + _absent(prepared)
    for warning in warnings:
        log.warning("labelled.%s: %s", name, warning)
    return write_manifest(
        manifest,
        "labelled",
        inputs=prepared.inputs,
        parameters=config.model_dump(mode="json"),
        counts=_counts(name, prepared),
        warnings=warnings,
        name=name,
        classes=prepared.classes,
        images_per_class=_per_class(prepared),
        source=prepared.source,
        digest=prepared.digest,
    )


def _counts(name: str, prepared: Prepared) -> dict[str, int]:
    counts = {split: len(numbers) for split, numbers in prepared.labels.items()}
    for split, count in counts.items():
        if count == 0:
            raise UserError(f"labelled.{name}: the {split} split has no image; add some.")
    return {"classes": len(prepared.classes), **counts, "skipped": prepared.skipped}


def _per_class(prepared: Prepared) -> dict[str, dict[str, int]]:
    counted = {split: Counter(numbers) for split, numbers in prepared.labels.items()}
    return {
        split: {label: counts[i] for i, label in enumerate(prepared.classes)}
        for split, counts in counted.items()
    }


def _absent(prepared: Prepared) -> list[str]:
    """Warn of classes that are tested but never trained, and the reverse."""
    seen = {split: set(numbers) for split, numbers in prepared.labels.items()}
    warnings = []
    for has, lacks in (("test", "train"), ("train", "test")):
        names = [prepared.classes[i] for i in sorted(seen[has] - seen[lacks])]
        if names:
            shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
            warnings.append(f"{len(names)} classes of the {has} split are not in {lacks}: {shown}")
    return warnings
