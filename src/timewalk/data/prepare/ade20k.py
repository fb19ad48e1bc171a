"""ADE20K's scene parsing: the archive of the challenge of 2016, or generated scenes in its layout.

Source: ADE20K. ``images/{training,validation}/<image>.jpg`` and
``annotations/{training,validation}/<image>.png``, paired by name; id 0 is no class ("other"), ids 1
to 150 are the classes.
"""

import re
from pathlib import Path

import numpy as np
from PIL import Image

from timewalk.config import ADE20K, ADE20KShapes, SegmentationFolder
from timewalk.data.generated_scenes import CLASSES as SHAPES
from timewalk.data.generated_scenes import draw_scene
from timewalk.data.prepare.archive import located
from timewalk.data.prepare.generated import check_place, generating
from timewalk.data.prepare.segmentation_folder import find_segmentation_folder
from timewalk.data.prepare.stills import MaskLayout
from timewalk.data.prepare.videos import Archive, Source
from timewalk.errors import UserError

FOLDER = "ADEChallengeData2016"
PARTS = {"train": "training", "test": "validation"}
"""the set's own names of the splits"""
COUNTS = {"train": 20210, "test": 2000}
NAMES = "objectInfo150.txt"
FULL = ("index_ade20k.pkl", "index_ade20k.mat", "images/ADE")
"""what the full set has and the challenge's has not"""
COLOURED = f"holds colours (mode {{}}) as ADE20K's full set does, not the ids of {FOLDER}"
OFFICIAL = Source(
    "ADE20K's scene parsing",
    "http://sceneparsing.csail.mit.edu",
    "images/{training,validation} and annotations/{training,validation}",
    needed=tuple(f"{kind}/{part}" for kind in ("images", "annotations") for part in PARTS.values()),
    inside=(FOLDER,),
    archives=(Archive(f"http://data.csail.mit.edu/places/ADEchallenge/{FOLDER}.zip", ""),),
)
# fmt: off
CLASSES = [
    "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass",
    "cabinet", "sidewalk", "person", "earth", "door", "table", "mountain", "plant", "curtain",
    "chair", "car", "water", "painting", "sofa", "shelf", "house", "sea", "mirror", "rug", "field",
    "armchair", "seat", "fence", "desk", "rock", "wardrobe", "lamp", "bathtub", "railing",
    "cushion", "base", "box", "column", "signboard", "chest of drawers", "counter", "sand", "sink",
    "skyscraper", "fireplace", "refrigerator", "grandstand", "path", "stairs", "runway", "case",
    "pool table", "pillow", "screen door", "stairway", "river", "bridge", "bookcase", "blind",
    "coffee table", "toilet", "flower", "book", "hill", "bench", "countertop", "stove", "palm",
    "kitchen island", "computer", "swivel chair", "boat", "bar", "arcade machine", "hovel", "bus",
    "towel", "light", "truck", "tower", "chandelier", "awning", "streetlight", "booth",
    "television receiver", "airplane", "dirt track", "apparel", "pole", "land", "bannister",
    "escalator", "ottoman", "bottle", "buffet", "poster", "stage", "van", "ship", "fountain",
    "conveyer belt", "canopy", "washer", "plaything", "swimming pool", "stool", "barrel", "basket",
    "waterfall", "tent", "bag", "minibike", "cradle", "oven", "ball", "food", "step", "tank",
    "trade name", "microwave", "pot", "animal", "bicycle", "lake", "dishwasher", "screen",
    "blanket", "sculpture", "hood", "sconce", "vase", "traffic light", "tray", "ashcan", "fan",
    "pier", "crt screen", "plate", "monitor", "bulletin board", "shower", "radiator", "glass",
    "clock", "flag",
]
# fmt: on


def find_ade20k(name: str, config: ADE20K) -> MaskLayout:
    """Return the images and masks of both splits, fetched where they are missing and have a url.

    Raises:
        UserError: the set is missing or cannot be fetched, is ADE20K's full set, has an image or
            mask without its partner, or names other classes.
    """
    root = Path(config.root)
    for place in (root, *(root / folder for folder in OFFICIAL.inside)):
        if any((place / item).exists() for item in FULL):
            raise UserError(
                f"labelled.{name}.root: {place} is ADE20K's full set, whose annotations are "
                f"colours; get the one of the scene parsing challenge, {FOLDER}, from "
                f"{OFFICIAL.page}."
            )
    return _layout(name, located(name, config, OFFICIAL), CLASSES)


def unusual_counts(layout: MaskLayout) -> list[str]:
    """Return warnings for splits that have not as many images as the published ones."""
    return [
        f"the {split} split has {len(pairs)} {'image' if len(pairs) == 1 else 'images'}, the "
        f"published one {COUNTS[split]}: its scores are not comparable"
        for split, pairs in layout.pairs.items()
        if len(pairs) != COUNTS[split]
    ]


def generate_ade20k(name: str, config: ADE20KShapes, manifest: Path) -> MaskLayout:
    """Write generated scenes in ADE20K's layout beside the manifest, and return what they are.

    The background is the first class, id 1, and the shapes' classes follow. In some images there
    is void, id 0: the outlines of the shapes, or a rectangle.

    Raises:
        UserError: a folder that was not generated stands in their place.
    """
    root = manifest.parent / FOLDER
    check_place(name, root, manifest, config.kind)
    with generating(root, config.kind) as folder:
        rngs = np.random.default_rng(config.seed).spawn(len(PARTS))
        for (split, part), rng in zip(PARTS.items(), rngs, strict=True):
            images, masks = folder / "images" / part, folder / "annotations" / part
            images.mkdir(parents=True)
            masks.mkdir(parents=True)
            for number, drawn in enumerate(rng.spawn(getattr(config, split)), start=1):
                image, ids = _scene(config, drawn)
                stem = f"ADE_{'val' if split == 'test' else split}_{number:08d}"
                Image.fromarray(image).save(images / f"{stem}.jpg", quality=95)
                Image.fromarray(ids).save(masks / f"{stem}.png")
    return _layout(name, root, ["background", *SHAPES[: config.classes]])


def _layout(name: str, root: Path, classes: list[str]) -> MaskLayout:
    folders = SegmentationFolder(kind="segmentation_folder", root=str(root), classes=len(classes))
    layout = find_segmentation_folder(name, folders)
    layout.classes, layout.parts, layout.coloured = classes, PARTS, COLOURED
    if (listed := root / NAMES).is_file():
        _check_names(name, listed, classes)
        layout.lists.append(listed)
    return layout


def _check_names(name: str, listed: Path, classes: list[str]) -> None:
    """Compare each class with the list's: `<id> <3 numbers> <name>, <name>`, names in any order."""
    try:
        text = listed.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(
            f"labelled.{name}: {listed} is no UTF-8 text; restore the published file."
        ) from None
    rows = [line.split(maxsplit=4) for line in text.splitlines()]
    found = {row[0]: row[4].strip() for row in rows if len(row) == 5}
    found.pop("Idx", None)
    expected = {str(number): label for number, label in enumerate(classes, start=1)}
    for number in expected | found:
        label, names = expected.get(number, "no class"), found.get(number, "no class")
        if label not in [word.strip() for word in re.split("[,;]", names)]:
            raise UserError(
                f"labelled.{name}: {listed} has {names!r} for the id {number}, not {label!r}; "
                "restore the published file."
            )


def _scene(config: ADE20KShapes, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return an image and its ids, of which 0 is void."""
    size = (config.height, config.width)
    scene = draw_scene(size, rng, int(rng.integers(1, config.objects + 1)), config.classes)
    ids = scene.ids + np.uint8(1)
    void = rng.integers(4)
    if void == 0:
        ids[_borders(ids)] = 0
    elif void == 1:
        top, left = (int(rng.integers(side - side // 8)) for side in size)
        ids[top : top + size[0] // 8, left : left + size[1] // 8] = 0
    return scene.image, ids


def _borders(ids: np.ndarray) -> np.ndarray:
    """Return where the next pixel to the right or below has another id, bool (H, W)."""
    right, below = (np.diff(ids.astype(int), axis=axis) != 0 for axis in (1, 0))
    return np.pad(right, ((0, 0), (0, 1))) | np.pad(below, ((0, 1), (0, 0)))
