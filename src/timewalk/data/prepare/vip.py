"""VIP (Video Instance-level Parsing): body parts and garments as gray ids.

``Images/<video>/*.jpg``, ``Annotations/Category_ids/<video>/*.png`` (or ``Category_ids`` itself
below the root) and ``lists/<subset>_videos.txt``. Source: VIP. Frames without a mask are kept, but
the first needs one.
"""

from pathlib import Path

from timewalk.config import VIP
from timewalk.data.prepare.videos import (
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


def source_vip(config: VIP) -> Source:
    """Return where VIP is."""
    return Source(
        "VIP (the part VIP_Fine)",
        "http://sysu-hcp.net/lip",
        "Images/<video>/<frame>.jpg, Annotations/Category_ids/<video>/<frame>.png and "
        f"lists/{config.subset}_videos.txt",
        needed=("Images", "lists"),
        inside=("VIP_Fine", "VIP/VIP_Fine"),
    )


def find_vip(name: str, config: VIP, root: Path) -> Layout:
    """Return the sequences of a subset.

    Raises:
        UserError: a missing list, frame or first mask, or a mask without a frame.
    """
    path = root / "lists" / f"{config.subset}_videos.txt"
    masks = root / "Annotations" / "Category_ids"
    if not masks.is_dir():
        masks = root / "Category_ids"
    faults = Faults(name, root)
    videos = []
    for item in choose(name, config, read_names(name, path)):
        frames = folder_frames(root / "Images" / item, [".jpg"], faults)
        truth = by_number(images_in(masks / item, [".png"]), faults)
        images, paired = pair(frames, truth, faults, every=False, folder=masks / item)
        if truth and paired and paired[0] is None:
            faults.add(images[0], "has no mask, the first annotation")
        videos.append(Sequence(item, images, paired, (0, 0)))
    faults.stop()
    bare = sum(mask is None for video in videos for mask in video.masks)
    warnings = [f"{bare} frames have no mask and are not scored"] if bare else []
    return Layout(root, config.subset, videos, [path], warnings=warnings)
