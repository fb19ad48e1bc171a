"""Pascal VOC 2012's segmentation, from the official archive or as "voc_data".

Source: Pascal VOC, and TimeT for the second layout. Official: ``JPEGImages``,
``SegmentationClass``, ``ImageSets/Segmentation/<list>.txt``; voc_data: ``images``,
``SegmentationClass``, ``SegmentationClassAug``, ``sets/<list>.txt``. The training lists' masks are
those of ``SegmentationClassAug``, in the official layout only where that folder is there. A list
names an image by its stem, or by the paths of image and mask, whose stem is taken.
"""

from pathlib import Path, PurePosixPath

from timewalk.config import VOC2012
from timewalk.data.prepare.stills import MaskLayout
from timewalk.data.prepare.videos import Archive, Source, find_root, read_names
from timewalk.errors import UserError

# fmt: off
CLASSES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
]
# fmt: on
OFFICIAL = Source(
    "Pascal VOC 2012",
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2012",
    "JPEGImages, SegmentationClass and ImageSets/Segmentation (or images, SegmentationClass, "
    "SegmentationClassAug and sets)",
    needed=("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"),
    inside=("VOCdevkit/VOC2012", "VOC2012"),
    archives=(
        Archive("http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar", ""),
    ),
)
PACKAGED = Source(
    OFFICIAL.title,
    OFFICIAL.page,
    OFFICIAL.tree,
    needed=("images", "SegmentationClass", "sets"),
    inside=("voc_data",),
)


def find_voc2012(name: str, config: VOC2012) -> MaskLayout | None:
    """Return the images and masks of both splits; None where the root holds neither layout.

    Raises:
        UserError: a missing list or folder of masks, or a list's line that names no one image.
    """
    place = Path(config.root)
    if (root := find_root(place, OFFICIAL)) is not None:
        images, lists = root / "JPEGImages", root / "ImageSets" / "Segmentation"
    elif (root := find_root(place, PACKAGED)) is not None:
        images, lists = root / "images", root / "sets"
    else:
        return None
    plain, augmented = root / "SegmentationClass", root / "SegmentationClassAug"
    if config.train == "train" and lists.name == "Segmentation" and not augmented.is_dir():
        augmented = plain
    if not augmented.is_dir():
        raise UserError(
            f"labelled.{name}: {augmented} is missing, which the list '{config.train}' needs and "
            "the official archive does not hold; add the augmented masks, or set the key 'train' "
            "to 'train' for the official layout."
        )
    layout = MaskLayout(root, CLASSES)
    for key, masks in (("train", augmented), ("test", plain)):
        listed = lists / f"{getattr(config, key)}.txt"
        stems = _stems(name, listed, key)
        layout.pairs[key] = [(images / f"{stem}.jpg", masks / f"{stem}.png") for stem in stems]
        layout.lists.append(listed)
    return layout


def check_fetch(name: str, config: VOC2012) -> None:
    """Refuse to fetch an archive that is known not to hold the training list.

    Raises:
        UserError: the official address, and the list `trainaug`.
    """
    if config.url == "official" and config.train == "trainaug":
        raise UserError(
            f"labelled.{name}.url: the official archive holds neither the list 'trainaug' nor its "
            "masks; set the key 'train' to 'train', or bring a root that holds both."
        )


def _stems(name: str, listed: Path, key: str) -> list[str]:
    """Return the stems of a list with `<stem>`, or `<path of image> <path of mask>`, a line."""
    found: dict[str, str] = {}
    for line in read_names(name, listed, key, "image"):
        files = [PurePosixPath(word).name for word in line.split()]
        stem, *others = [file.removesuffix(".jpg").removesuffix(".png") for file in files]
        if set(others) - {stem} or found.setdefault(stem, line) != line:
            raise UserError(
                f"labelled.{name}: the line {line!r} of {listed} names two images, or the image of "
                "another line; write the name of one image a line."
            )
    return list(found)
