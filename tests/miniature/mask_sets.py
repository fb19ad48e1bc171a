"""Published layouts of still images with masks in miniature.

Each function writes a set below ``root`` and returns the class ids of every mask by name, uint8
(H, W), as they are stored.
"""

from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from timewalk.data.generated import moving_shapes, save_ids

Masks = dict[str, np.ndarray]


def voc2012(
    root: Path,
    layout: Literal["official", "packaged"] = "official",
    augmented: bool = True,
    size: tuple[int, int] = (40, 56),
    seed: int = 0,
) -> Masks:
    """Pascal VOC: two training images, one more in `trainaug`, two of `val`; void at borders."""
    names = {"train": ["2007_01", "2007_02"], "val": ["2008_01", "2008_02"]}
    if augmented:
        names["trainaug"] = ["2007_01", "2007_02", "2009_01"]
    official = layout == "official"
    lists = root / ("ImageSets/Segmentation" if official else "sets")
    lists.mkdir(parents=True)
    for split, stems in names.items():
        (lists / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
    stems = sorted({stem for part in names.values() for stem in part})
    made = _made(stems, size, classes=[15, 8], seed=seed)
    images = root / ("JPEGImages" if official else "images")
    for stem, (image, ids) in made.items():
        _save(images / f"{stem}.jpg", image)
        if stem in names["val"] or (official and stem in names["train"]):
            _save_ids(root / "SegmentationClass" / f"{stem}.png", ids)
        if augmented and stem in names["trainaug"]:
            _save(root / "SegmentationClassAug" / f"{stem}.png", ids)
    return {stem: ids for stem, (_, ids) in made.items()}


def segmentation_folder(root: Path, size: tuple[int, int] = (40, 56), seed: int = 0) -> Masks:
    """ADE20K's layout: three training images, two of validation; ids 1 to 4, and 0 for no class."""
    names = {"training": ["a_1", "a_2", "a_3"], "validation": ["v_1", "v_2"]}
    found = {}
    for split, stems in names.items():
        for stem, (image, ids) in _made(stems, size, classes=[1, 4], seed=seed).items():
            _save(root / "images" / split / f"{stem}.jpg", image)
            _save(root / "annotations" / split / f"{stem}.png", ids)
            found[stem] = ids
    return found


def _made(
    stems: list[str], size: tuple[int, int], classes: list[int], seed: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return a picture and its ids by name: two shapes of two classes, with a void border."""
    table = np.array([0, *classes], np.uint8)
    made = {}
    for stem, rng in zip(stems, np.random.default_rng(seed).spawn(len(stems)), strict=True):
        video = moving_shapes(1, size, 2, rng)
        ids = table[video.ids[0]]
        ids[:, 0] = 255
        made[stem] = video.frames[0], ids
    return made


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)


def _save_ids(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_ids(path, ids)
