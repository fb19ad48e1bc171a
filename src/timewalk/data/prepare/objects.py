"""Still images with a box, a mask and a class for every object, checked and indexed in place.

``manifest.json`` (kind `labelled_objects`) names classes, counts and what is unusual; a folder of
arrays a split beside it, ``train`` and ``test``, is what :class:`timewalk.data.objects
.LabelledObjects` reads. The images of the training split are those with something to train on.
"""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timewalk.artefacts import sha256_file, write_manifest
from timewalk.config import COCO, COCOShapes, ObjectImages
from timewalk.data.generated_coco import write_coco
from timewalk.data.object_index import IndexBuilder, ObjectIndex, index_digest
from timewalk.data.objects import OBJECTS, SPLITS
from timewalk.data.prepare.archive import fetched, located, unverified
from timewalk.data.prepare.base import check_output
from timewalk.data.prepare.coco import (
    CLASSES,
    IMAGES,
    OFFICIAL,
    Category,
    Tally,
    add_images,
    annotations_file,
    read_instances,
)
from timewalk.data.prepare.folder import relative_to
from timewalk.data.prepare.generated import check_place, generating
from timewalk.data.prepare.videos import Faults
from timewalk.errors import UserError

log = logging.getLogger(__name__)

UNUSUAL = {
    "images_not_trained_on": (
        "image has no object that can be trained on",
        "images have no object that can be trained on",
    ),
    "empty_boxes": ("box is empty", "boxes are empty"),
    "boxes_beyond_image": (
        "box reaches beyond its image by more than a pixel",
        "boxes reach beyond their images by more than a pixel",
    ),
    "boxes_too_small": (
        "box has less than a pixel of a side inside its image",
        "boxes have less than a pixel of a side inside their images",
    ),
    "short_polygons": (
        "polygon has fewer than three corners",
        "polygons have fewer than three corners",
    ),
    "without_outline": ("object has no mask", "objects have no mask"),
}
"""counts that a warning tells of, in the words for one and for more"""
IRRELEVANT = ("test", "images_not_trained_on")


def prepare_objects(name: str, config: ObjectImages, manifest: Path) -> dict[str, Any]:
    """Check a set of images with objects and write its manifest and index.

    Args:
        name: the set's name in the configuration, for messages.
        config: which layout, and where.
        manifest: ``manifest.json`` to write; the index goes beside it.

    Returns:
        The manifest.

    Raises:
        UserError: names the file or key, what is wrong with it and what to do.
    """
    if isinstance(config, COCOShapes):
        root, archives, warnings = _generate(name, config, manifest), {}, []
    else:
        assert isinstance(config, COCO)
        root = located(name, config, OFFICIAL)
        archives = fetched(Path(config.root))
        warnings = unverified(OFFICIAL, config, archives)
    check_output(name, root, manifest)
    categories, tallies = _index(name, root, manifest.parent)
    digest = hashlib.sha256()
    files = {split: annotations_file(root, split) for split in SPLITS}
    inputs = {path.relative_to(root).as_posix(): sha256_file(path) for path in files.values()}
    digest.update("".join(inputs.values()).encode())
    for tally in tallies.values():
        digest.update("".join(tally.lines).encode())
    warnings += _unusual(tallies)
    if isinstance(config, COCO):
        warnings += _incomplete(categories, tallies)
    for warning in warnings:
        log.warning("labelled.%s: %s", name, warning)
    parameters = config.model_dump(mode="json")
    return write_manifest(
        manifest,
        OBJECTS,
        inputs=inputs | archives,
        parameters=parameters,
        counts=_counts(len(categories), tallies),
        warnings=warnings,
        name=name,
        layout="coco",
        classes=[category.name for category in categories],
        category_ids=[category.number for category in categories],
        source={
            "root": relative_to(root, manifest.parent),
            "annotations": {
                split: path.relative_to(root).as_posix() for split, path in files.items()
            },
            "index_sha256": {split: index_digest(manifest.parent / split) for split in SPLITS},
        },
        digest=digest.hexdigest(),
    )


def _index(name: str, root: Path, folder: Path) -> tuple[list[Category], dict[str, Tally]]:
    """Check both splits and write their arrays; return the classes and what was found."""
    faults, tallies = Faults(name, root), {}
    classes: dict[str, list[Category]] = {}
    indexes: dict[str, ObjectIndex] = {}
    for split in SPLITS:
        found = read_instances(name, root, split, faults)
        builder = IndexBuilder()
        tallies[split] = add_images(found, builder, training=split == "train", faults=faults)
        classes[split], indexes[split] = found.categories, builder.build()
    faults.stop()
    for split, index in indexes.items():
        if not len(index):
            learn = " with an object to train on" if split == "train" else ""
            raise UserError(
                f"labelled.{name}: {annotations_file(root, split)} has no image{learn}; restore "
                "the published file."
            )
    if classes["train"] != classes["test"]:
        raise UserError(
            f"labelled.{name}: the files in {root / 'annotations'} list different categories, "
            f"{_difference(classes)}; restore the published files."
        )
    for split, index in indexes.items():
        index.save(folder / split)
    return classes["train"], tallies


def _difference(classes: Mapping[str, list[Category]]) -> str:
    """Say which is the first category that the splits do not share."""
    first, *_ = sorted({*classes["train"]} ^ {*classes["test"]})
    named = {
        split: next((repr(c.name) for c in found if c.number == first.number), "nothing")
        for split, found in classes.items()
    }
    return f"{first.number} is {named['train']} for training and {named['test']} in the test"


def _counts(classes: int, tallies: Mapping[str, Tally]) -> dict[str, int]:
    """Return the images of each split and what else was counted."""
    train = tallies["train"].counts
    counts = {
        "train": train["images"] - train["images_not_trained_on"],
        "test": tallies["test"].counts["images"],
        "classes": classes,
    }
    for split, tally in tallies.items():
        for key in ("images", "objects", "crowd", "without_objects", *UNUSUAL):
            if (split, key) != IRRELEVANT:
                counts[f"{split}_{key}"] = tally.counts[key]
    return counts


def _unusual(tallies: Mapping[str, Tally]) -> list[str]:
    """Say what a split has that other sets do not, and what is done with it."""
    return [
        _sentence(key, tally.counts[key], split)
        for split, tally in tallies.items()
        for key in UNUSUAL
        if tally.counts[key] and (split, key) != IRRELEVANT
    ]


def _sentence(key: str, count: int, split: str) -> str:
    who = "it is" if count == 1 else "they are"
    done = "cut to the image in training" if key == "boxes_beyond_image" else "not trained on"
    if split == "test":
        done = f"kept as {who}"
    return f"{count} {UNUSUAL[key][count > 1]} ({SPLITS[split]}); {who} {done}"


def _incomplete(categories: list[Category], tallies: Mapping[str, Tally]) -> list[str]:
    """Warn of another set than the published one."""
    warnings = []
    if len(categories) != CLASSES:
        found = "1 class was" if len(categories) == 1 else f"{len(categories)} classes were"
        warnings.append(f"{found} found; COCO 2017 has {CLASSES}")
    for split, tally in tallies.items():
        if (count := tally.counts["images"]) != IMAGES[split]:
            found = "1 image was" if count == 1 else f"{count} images were"
            warnings.append(
                f"{found} found in {SPLITS[split]}; COCO 2017 has {IMAGES[split]}: scores on a "
                "part are not comparable"
            )
    return warnings


def _generate(name: str, config: COCOShapes, manifest: Path) -> Path:
    """Write the generated images anew and return their folder.

    Raises:
        UserError: a folder that was not generated stands in their place.
    """
    root = manifest.parent / "COCO"
    check_place(name, root, manifest, config.kind)
    with generating(root, config.kind) as folder:
        write_coco(folder, config)
    return root
