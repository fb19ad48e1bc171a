"""Still images with masks, checked and indexed in place: one manifest whatever the layout is.

``manifest.json`` (kind `labelled_masks`) names the classes; ``train.txt`` and ``test.txt`` beside
it have `image<TAB>mask` a line, relative to the set's root.
:func:`timewalk.data.segmented.open_segmented` reads them. To add a layout: its keys in
``config/labelled.py``, its file here with a `find`, and its line below.
"""

import logging
from pathlib import Path
from typing import Any

from timewalk.artefacts import sha256_file, write_manifest, write_text
from timewalk.config import ADE20K, VOC2012, ADE20KShapes, MaskedImages, SegmentationFolder
from timewalk.data.prepare import ade20k
from timewalk.data.prepare.archive import fetch_archives, fetched, unverified
from timewalk.data.prepare.base import check_output
from timewalk.data.prepare.folder import relative_to
from timewalk.data.prepare.segmentation_folder import find_segmentation_folder
from timewalk.data.prepare.stills import MaskLayout, check_pairs
from timewalk.data.prepare.videos import missing
from timewalk.data.prepare.voc2012 import OFFICIAL, check_fetch, find_voc2012
from timewalk.data.segmented import MASKS
from timewalk.errors import UserError

log = logging.getLogger(__name__)


def prepare_masks(name: str, config: MaskedImages, manifest: Path) -> dict[str, Any]:
    """Check a set of images with masks and write its manifest and lists.

    Args:
        name: the set's name in the configuration, for messages.
        config: which layout, and where.
        manifest: ``manifest.json`` to write; the lists go beside it.

    Returns:
        The manifest.

    Raises:
        UserError: names the file or key, what is wrong with it and what to do.
    """
    archives: dict[str, str] = {}
    warnings: list[str] = []
    if isinstance(config, VOC2012):
        layout = _voc2012(name, config)
        archives = fetched(Path(config.root))
        warnings = unverified(OFFICIAL, config, archives)
    elif isinstance(config, ADE20K):
        layout = ade20k.find_ade20k(name, config)
        archives = fetched(Path(config.root))
        warnings = unverified(ade20k.OFFICIAL, config, archives) + ade20k.unusual_counts(layout)
    elif isinstance(config, ADE20KShapes):
        layout = ade20k.generate_ade20k(name, config, manifest)
    else:
        assert isinstance(config, SegmentationFolder)
        layout = find_segmentation_folder(name, config)
    check_output(name, layout.root, manifest)
    classes, digest = check_pairs(name, layout)
    warnings += _shared(layout)
    for warning in warnings:
        log.warning("labelled.%s: %s", name, warning)
    lists = {split: manifest.parent / f"{split}.txt" for split in layout.pairs}
    for split, path in lists.items():
        _write_list(path, layout, split)
    counts = {split: len(pairs) for split, pairs in layout.pairs.items()}
    parameters = config.model_dump(mode="json")
    return write_manifest(
        manifest,
        MASKS,
        inputs={_place(path, layout): sha256_file(path) for path in layout.lists} | archives,
        parameters=parameters,
        counts={**counts, "classes": len(classes)},
        warnings=warnings,
        name=name,
        layout=parameters["kind"],
        classes=classes,
        void=True,
        zero_is_void=layout.zero_is_void,
        parts=layout.parts,
        source={
            "root": relative_to(layout.root, manifest.parent),
            "lists_sha256": {split: sha256_file(path) for split, path in lists.items()},
        },
        digest=digest,
    )


def _voc2012(name: str, config: VOC2012) -> MaskLayout:
    layout = find_voc2012(name, config)
    if layout is None and config.url is not None:
        check_fetch(name, config)
        fetch_archives(name, config, OFFICIAL)
        layout = find_voc2012(name, config)
    if layout is None:
        missing(name, Path(config.root), OFFICIAL, " and the key 'train' to 'train'")
    return layout


def _shared(layout: MaskLayout) -> list[str]:
    """Warn of images that are trained on and scored."""
    train, test = ({image for image, _ in layout.pairs[key]} for key in ("train", "test"))
    if not (both := sorted(train & test)):
        return []
    return [f"{len(both)} images are in both splits: {_place(both[0], layout)} for one"]


def _place(path: Path, layout: MaskLayout) -> str:
    inside = path.is_relative_to(layout.root)
    return path.relative_to(layout.root).as_posix() if inside else path.name


def _write_list(target: Path, layout: MaskLayout, split: str) -> None:
    rows = ["\t".join(_place(path, layout) for path in pair) for pair in layout.pairs[split]]
    for row in rows:
        if row.count("\t") > 1 or len(row.splitlines()) > 1:
            raise UserError(f"{row!r} has a line break or a tab in its names; rename the files.")
    write_text(target, "".join(f"{row}\n" for row in rows))
