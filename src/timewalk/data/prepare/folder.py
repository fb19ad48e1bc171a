"""Image folders: ``<root>/<split>/<class>/*``, classes numbered by sorted folder name."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from timewalk.config import FolderLabels
from timewalk.data.prepare.base import (
    IMAGE_SUFFIXES,
    Prepared,
    check_image,
    set_digest,
    write_list,
)
from timewalk.errors import UserError


def prepare_folder(name: str, config: FolderLabels, output: Path) -> Prepared:
    """Check every image of both splits and list them beside the manifest.

    Classes are the union of both splits' folders. Files whose suffix is not an image's, and hidden
    files, are skipped and counted.

    Raises:
        UserError: a missing root or split, a class folder without images, an unreadable image.
    """
    root = Path(config.root)
    folders = {"train": _split(name, root, config.train), "test": _split(name, root, config.test)}
    classes = sorted({path.name for folder in folders.values() for path in _classes(name, folder)})
    number = {label: i for i, label in enumerate(classes)}
    labels: dict[str, list[int]] = {}
    items: list[tuple[str, int, str]] = []
    skipped: list[str] = []
    for split, folder in folders.items():
        found = [
            (number[path.name], file)
            for path in _classes(name, folder)
            for file in _images(path, skipped)
        ]
        labels[split] = [label for label, _ in found]
        paths = [file.relative_to(root).as_posix() for _, file in found]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            digests = list(pool.map(check_image, [file for _, file in found]))
        items += zip(paths, labels[split], digests, strict=True)
        write_list(output / f"{split}.txt", labels[split], paths)
    return Prepared(
        classes=classes,
        labels=labels,
        source={"kind": "files", "root": relative_to(root, output)},
        digest=set_digest(items),
        skipped=len(skipped),
        warnings=_skipped_warning(skipped),
    )


def relative_to(path: Path, folder: Path) -> str:
    """Return how ``folder`` names ``path``: an absolute path stays one, so that sets outside the
    project keep their place when the project moves."""
    if path.is_absolute() and not folder.is_absolute():
        return path.as_posix()
    return Path(os.path.relpath(path, folder)).as_posix()


def _split(name: str, root: Path, split: str) -> Path:
    if not root.is_dir():
        raise UserError(f"labelled.{name}.root: there is no folder {root}; correct the path.")
    folder = root / split
    if not folder.is_dir():
        raise UserError(
            f"labelled.{name}: there is no folder {folder}; correct the keys 'train' and 'test'."
        )
    return folder


def _classes(name: str, folder: Path) -> list[Path]:
    found = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not found:
        raise UserError(
            f"labelled.{name}: {folder} holds no folders; images belong into one folder a class."
        )
    return found


def _images(folder: Path, skipped: list[str]) -> list[Path]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    images = [
        path
        for path in files
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    ]
    if not images:
        raise UserError(f"{folder} is a class without images; put some there or remove the folder.")
    kept = set(images)
    skipped += [path.as_posix() for path in files if path not in kept]
    return images


def _skipped_warning(skipped: list[str]) -> list[str]:
    if not skipped:
        return []
    return [f"{len(skipped)} files are no images and were skipped, {skipped[0]} among them"]
