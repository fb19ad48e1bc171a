"""SegTrack v2 and FBMS-59: short videos whose objects are scored as one foreground.

Source: SegTrack v2 and FBMS-59, prepared after Motion Grouping, with the differences that
docs/evaluations/foreground_segmentation.md names. SegTrack v2 has a mask for every frame, of the
whole foreground or in one folder an object; FBMS-59 has a few gray masks a video, of which the
values above a threshold are foreground. Masks are paired with frames by name.
"""

from pathlib import Path

from timewalk.config import FBMS59, PublishedVideos, SegTrackV2
from timewalk.data.prepare.videos import (
    Archive,
    Faults,
    Layout,
    Source,
    by_number,
    choose,
    folders_in,
    images_in,
    last_number,
    pair,
)
from timewalk.data.sequences import Sequence

# fmt: off
SEGTRACK = [
    "bird_of_paradise", "birdfall", "bmx", "cheetah", "drift", "frog", "girl", "hummingbird",
    "monkey", "monkeydog", "parachute", "penguin", "soldier", "worm",
]
FBMS_TEST = [
    "camel01", "cars1", "cars10", "cars4", "cars5", "cats01", "cats03", "cats06", "dogs01",
    "dogs02", "farm01", "giraffes01", "goats01", "horses02", "horses04", "horses05", "lion01",
    "marple12", "marple2", "marple4", "marple6", "marple7", "marple9", "people03", "people1",
    "people2", "rabbits02", "rabbits03", "rabbits04", "tennis",
]
# fmt: on
ABOVE = 0.1
ABOVE_OF = {"marple7": 0.05, "marple2": 0.4}
"""share of white above which an FBMS-59 mask is foreground"""


def source_segtrack_v2(config: SegTrackV2) -> Source:
    """Return where SegTrack v2 is."""
    page = "https://web.engr.oregonstate.edu/~lif/SegTrack2"
    return Source(
        "SegTrack v2",
        f"{page}/dataset.html",
        "JPEGImages/<sequence>/<frame>.png and GroundTruth/<sequence>[/<object>]/<frame>.png",
        needed=("JPEGImages", "GroundTruth"),
        inside=("SegTrackv2",),
        archives=(Archive(f"{page}/SegTrackv2.zip", ""),),
    )


def source_fbms59(config: FBMS59) -> Source:
    """Return where FBMS-59 is; each subset has its own archive."""
    subset = config.subset
    url = "https://lmb.informatik.uni-freiburg.de/resources/datasets"
    return Source(
        "FBMS-59",
        f"{url}/moseg.en.html",
        f"{subset}/<sequence>/<sequence>_01.jpg and {subset}/<sequence>/GroundTruth",
        needed=(subset,),
        inside=("FBMS59", "FBMS-59", "FBMS"),
        archives=(Archive(f"{url}/fbms/FBMS_{subset}.zip", ""),),
    )


def find_segtrack_v2(name: str, config: SegTrackV2, root: Path) -> Layout:
    """Return the sequences, each folder of `JPEGImages` one.

    Raises:
        UserError: a frame or mask without its partner.
    """
    faults = Faults(name, root)
    videos = []
    found = folders_in(root / "JPEGImages")
    for path in images_in(root / "JPEGImages"):
        faults.add(path, "is in no sequence's folder")
    for item in choose(name, config, found):
        frames = {path.stem: path for path in images_in(root / "JPEGImages" / item)}
        folder = root / "GroundTruth" / item
        parts = [folder / part for part in folders_in(folder)] or [folder]
        layers = []
        for part in parts:
            masks = {path.stem: path for path in images_in(part)}
            images, paired = pair(frames, masks, faults, every=True, folder=part)
            layers.append(paired)
        if not frames:
            faults.add(root / "JPEGImages" / item, "holds no frame")
        videos.append(Sequence(item, images, layers[0], (0, 0), layers=tuple(layers[1:])))
    faults.stop()
    return Layout(root, "", videos, ids=False, warnings=_absent(config, found, SEGTRACK))


def find_fbms59(name: str, config: FBMS59, root: Path) -> Layout:
    """Return the sequences, each folder of the subset one.

    Raises:
        UserError: a sequence without frames or masks, or a mask without a frame.
    """
    faults = Faults(name, root)
    videos = []
    found = folders_in(root / config.subset)
    for item in choose(name, config, found):
        folder = root / config.subset / item
        frames = by_number(images_in(folder, [".jpg"]), faults, last_number)
        if not frames:
            faults.add(folder, "holds no frame")
        truth = folder / "GroundTruth"
        coloured = [path for path in images_in(truth, [".ppm"]) if "PROB" not in path.name]
        if coloured:
            masks = by_number(coloured, faults, _second_field)
        else:
            masks = by_number(images_in(truth, [".pgm"]), faults, last_number)
        images, paired = pair(frames, masks, faults, every=False, folder=truth)
        above = ABOVE_OF.get(item, ABOVE)
        white = bool(coloured)
        videos.append(
            Sequence(item, images, paired, (0, 0), above=above, white_is_background=white)
        )
    faults.stop()
    published = FBMS_TEST if config.subset == "Testset" else []
    return Layout(
        root, config.subset, videos, ids=False, warnings=_absent(config, found, published)
    )


def _second_field(path: Path) -> str:
    """Return the frame number of a name such as `camel01_0001_gt.ppm`."""
    return [*path.stem.split("_"), ""][1]


def _absent(config: PublishedVideos, found: list[str], published: list[str]) -> list[str]:
    absent = [item for item in published if item not in found]
    if not absent or config.sequences:
        return []
    return [f"{len(absent)} of the {len(published)} published sequences are absent: {absent[0]}"]
