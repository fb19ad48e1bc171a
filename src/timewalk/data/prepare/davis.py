"""DAVIS 2016 and 2017, by their lists, paired by name.

``JPEGImages/<resolution>/<sequence>/00000.jpg``, ``Annotations[_unsupervised]/...png``,
``ImageSets/<year>/<subset>.txt``. Source: DAVIS 2016 and DAVIS 2017. Frames are numbered from 0
without gaps; every one is annotated, but in the test sets only the first.
"""

from pathlib import Path
from typing import Literal

from timewalk.config import Davis2016, Davis2017
from timewalk.data.prepare.videos import (
    Archive,
    Faults,
    Layout,
    Source,
    by_number,
    choose,
    folder_frames,
    images_in,
    pair,
    read_names,
)
from timewalk.data.sequences import Sequence

TEST = ("test-dev", "test-challenge")
HOST = "https://data.vision.ee.ethz.ch/csergi/share/davis"
# As listed by TensorFlow Datasets, video/davis/checksums.tsv.
SHA256 = {
    "DAVIS-2017-trainval-480p.zip": (
        "e3d0b5b77c3d031b000a19e0e25e3e2cac65d183755601bc2cf066df1a2aa492"
    ),
    "DAVIS-2017-trainval-Full-Resolution.zip": (
        "519494b320e7a333b98188e0f44e028f379c3312a1fc1a3e8bddd64b2c9ecfaf"
    ),
}
Annotated = Literal["every", "first", "none"]


def source_davis2017(config: Davis2017) -> Source:
    """Return where DAVIS 2017 is; each combination of subset and task has its own archive."""
    test, unsupervised = config.subset in TEST, config.task == "unsupervised"
    year, task = ("2019" if test and unsupervised else "2017"), "Unsupervised-" * unsupervised
    subset = config.subset if test else "trainval"
    file = f"DAVIS-{year}-{task}{subset}-{config.resolution}.zip"
    return _source("DAVIS 2017", config.resolution, Archive(f"{HOST}/{file}", "", SHA256.get(file)))


def source_davis2016(config: Davis2016) -> Source:
    """Return where DAVIS 2016 is."""
    url = "https://graphics.ethz.ch/Downloads/Data/Davis/DAVIS-data.zip"
    return _source("DAVIS 2016", config.resolution, Archive(url, ""))


def _source(title: str, resolution: str, archive: Archive) -> Source:
    return Source(
        title,
        "https://davischallenge.org",
        f"JPEGImages/{resolution}/<sequence>/00000.jpg, Annotations/{resolution}/<sequence>/"
        "00000.png and ImageSets",
        needed=(f"JPEGImages/{resolution}", "ImageSets"),
        inside=("DAVIS",),
        archives=(archive,),
    )


def find_davis2017(name: str, config: Davis2017, root: Path) -> Layout:
    """Return the sequences of a subset; the unsupervised test sets have no masks.

    Raises:
        UserError: a missing folder, list, frame or mask.
    """
    test, unsupervised = config.subset in TEST, config.task == "unsupervised"
    year = "2019" if test and unsupervised else "2017"
    masks = "Annotations_unsupervised" if unsupervised else "Annotations"
    annotated: Annotated = "every"
    if test:
        annotated = "none" if unsupervised else "first"
    path = root / "ImageSets" / year / f"{config.subset}.txt"
    videos = _sequences(name, config, root, masks, read_names(name, path), annotated)
    return Layout(root, config.subset, videos, [path])


def find_davis2016(name: str, config: Davis2016, root: Path) -> Layout:
    """Return the sequences of DAVIS 2016, from its own release or from that of DAVIS 2017.

    Raises:
        UserError: a missing folder, list, frame or mask.
    """
    path = root / "ImageSets" / "2016" / f"{config.subset}.txt"
    by_frame = root / "ImageSets" / config.resolution / f"{config.subset}.txt"
    if by_frame.is_file() and not path.is_file():
        # One line a frame: /JPEGImages/480p/bear/00000.jpg /Annotations/480p/bear/00000.png
        path = by_frame
        rows = read_names(name, path)
        names = list(dict.fromkeys(Path(row.split()[0]).parent.name for row in rows))
    else:
        names = read_names(name, path)
    videos = _sequences(name, config, root, "Annotations", names, "every")
    return Layout(root, config.subset, videos, [path], ids=False)


def _sequences(
    name: str,
    config: Davis2016 | Davis2017,
    root: Path,
    masks: str,
    names: list[str],
    annotated: Annotated,
) -> list[Sequence]:
    faults = Faults(name, root)
    folder = root / masks / config.resolution
    if annotated != "none" and not folder.is_dir():
        faults.add(folder, "is missing")
        faults.stop()
    images = root / "JPEGImages" / config.resolution
    chosen = choose(name, config, names)
    videos = [_sequence(item, images / item, folder / item, annotated, faults) for item in chosen]
    faults.stop()
    return videos


def _sequence(
    item: str, place: Path, folder: Path, annotated: Annotated, faults: Faults
) -> Sequence:
    frames = folder_frames(place, [".jpg"], faults)
    for number in sorted(set(range(max(frames, default=0) + 1)) - set(frames)) if frames else []:
        faults.add(place / f"{number:05d}.jpg", "is missing")
    if annotated == "none":
        return Sequence(item, tuple(frames.values()), (None,) * len(frames), (0, 0))
    masks = by_number(images_in(folder, [".png"]), faults)
    images, paired = pair(frames, masks, faults, every=annotated == "every", folder=folder)
    if annotated == "first" and masks and paired and paired[0] is None:
        faults.add(folder / f"{images[0].stem}.png", "is missing, the first annotation")
    return Sequence(item, images, paired, (0, 0))
