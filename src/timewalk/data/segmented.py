"""Frames with masks of class ids, from still images or from videos: what segmentation is scored on.

One reader for both kinds of labelled set: ``labelled_masks`` (Pascal VOC, folders like ADE20K's; an
image is a clip of one frame) and ``labelled_videos`` (DAVIS, YouTube-VOS, MOSE, VISOR; a clip is
the annotated frames of a video). Ids become classes by a table of 256 entries, at once, so that no
id is renamed twice. Source: TimeT's released code.

Shapes: H and W rows and columns of a stored image, S side of a resized one.
"""

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from timewalk.artefacts import read_json, read_manifest, sha256_file
from timewalk.data.sequences import KIND, VOID, LabelledVideos, read_frame, read_ids
from timewalk.data.sequences import Sequence as Video
from timewalk.errors import UserError

MASKS = "labelled_masks"
"""kind of the manifest of still images with masks"""
USUAL_RESOLUTION = "480p"
UNKNOWN = 254
"""class of ids that a set does not know; never a class of its own"""
BY_INSTANCE = frozenset({"davis2017", "mose", "visor"})
"""layouts whose ids number the objects of one video"""

Frame = tuple[Path, Path, np.ndarray | None]
"""image, mask of ids, and class of each id, if ids are no classes themselves"""


@dataclass(frozen=True)
class SegmentedClip:
    """Frames with a mask each: the annotated ones of a video, or one still image.

    Attributes:
        name: of the video or image.
        frames: image files in order.
        masks: as many masks of ids.
        lookup: uint8 (256,) class of each stored id; None: ids are what they are.
    """

    name: str
    frames: tuple[Path, ...]
    masks: tuple[Path, ...]
    lookup: np.ndarray | None = None


@dataclass(frozen=True)
class SegmentedSet:
    """A prepared set, or the frames of it that were picked.

    Attributes:
        name: the set's name in the configuration.
        kind: its layout, such as `voc2012`.
        split: which part, as the set itself calls it.
        videos: whether clips are videos; else each is one still image.
        classes: name of each class by id, from 0; empty where ids only tell the objects of one
            video apart.
        clips: all clips.
        digest: of the manifest: of the set's content, and of how ids become classes.
        about: the manifest.
        background: whether class 0 is the background, and not a class like the others.
    """

    name: str
    kind: str
    split: str
    videos: bool
    classes: tuple[str, ...]
    clips: tuple[SegmentedClip, ...]
    digest: str
    about: dict[str, Any] = field(repr=False)
    background: bool = True

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def title(self) -> str:
        """Layout and part, such as `voc2012-val`, with all that makes it another set."""
        settings = self.about["parameters"]
        parts = [settings.get("kind", self.kind), *([self.split] if self.split else [])]
        if split := settings.get("split"):
            parts.append(f"{split['part']}{100 * split['share']:g}s{split['seed']}")
        if settings.get("list_file"):
            parts.append("list")
        if isinstance(chosen := settings.get("sequences"), list) and chosen:
            parts.append(f"{len(chosen)}of")
        if settings.get("task") == "unsupervised":
            parts.append("unsupervised")
        if settings.get("resolution", USUAL_RESOLUTION) != USUAL_RESOLUTION:
            parts.append(settings["resolution"].lower())
        return "-".join(parts)

    @property
    def frames(self) -> list[Frame]:
        """Image, mask and table of ids of every frame, clip by clip."""
        return [
            (frame, mask, clip.lookup)
            for clip in self.clips
            for frame, mask in zip(clip.frames, clip.masks, strict=True)
        ]


def open_segmented(manifest: Path, split: Literal["train", "test"] = "test") -> SegmentedSet:
    """Open one split of a set.

    Args:
        manifest: ``manifest.json`` of the prepare stage.
        split: of still images; a set of videos is one split, and is opened as `test`.

    Raises:
        UserError: no masks of ids, no such split, or a list that is not the manifest's.
    """
    about = read_json(manifest)
    kind = about.get("kind") if isinstance(about, dict) else None
    if kind == KIND:
        return _videos(manifest, split)
    return _images(manifest, split)


def _images(manifest: Path, split: str) -> SegmentedSet:
    about = read_manifest(manifest, MASKS)
    root, listed = manifest.parent / about["source"]["root"], manifest.parent / f"{split}.txt"
    if not listed.is_file():
        raise UserError(f"{listed} is missing; run the prepare stage again.")
    if sha256_file(listed) != about["source"]["lists_sha256"][split]:
        raise UserError(f"{listed} is not the one of {manifest}; run the prepare stage again.")
    rows = [line.split("\t") for line in listed.read_text(encoding="utf-8").splitlines()]
    classes = tuple(about["classes"])
    zero_is_void = bool(about["parameters"].get("zero_is_void", about.get("zero_is_void")))
    lookup = _class_table(len(classes), zero_is_void)
    # Below the folder that holds them all: stems alone may be the same in two sub-folders.
    above = posixpath.commonpath([posixpath.dirname(image) for image, _ in rows]) if rows else ""
    clips = [
        SegmentedClip(
            PurePosixPath(image).relative_to(above).with_suffix("").as_posix(),
            (root / image,),
            (root / mask,),
            lookup,
        )
        for image, mask in rows
    ]
    if not clips:
        raise UserError(
            f"'{about['name']}' has no image of its {split} split; correct the keys of "
            f"labelled.{about['name']} and prepare it again."
        )
    part = str((about.get("parts") or about["parameters"]).get(split, split))
    return SegmentedSet(
        str(about["name"]),
        str(about["layout"]),
        part,
        False,
        classes,
        tuple(clips),
        sha256_file(manifest),
        about,
        background=bool(about.get("background", not zero_is_void)),
    )


def _class_table(classes: int, zero_is_void: bool) -> np.ndarray:
    table = np.full(256, UNKNOWN, np.uint8)
    table[VOID] = VOID
    first = int(zero_is_void)
    count = min(classes, UNKNOWN - first)
    table[first : first + count] = np.arange(count)
    if zero_is_void:
        table[0] = VOID
    return table


def _videos(manifest: Path, split: str) -> SegmentedSet:
    videos = LabelledVideos(manifest)
    if split == "train":
        raise UserError(
            f"'{videos.name}' is a set of videos and has no training split of its own; name "
            "another labelled set under the evaluation's key 'train_dataset'."
        )
    classes = tuple(videos.about.get("classes", ()))
    if videos.kind == "davis2016":
        classes = ("background", "foreground")
    clips = [_clip(video, videos.kind, classes) for video in videos]
    clips = [clip for clip in clips if clip.frames]
    if not clips:
        raise UserError(
            f"'{videos.name}' has no frame with a mask of ids; choose a subset that has, or "
            "another labelled set."
        )
    return SegmentedSet(
        videos.name,
        videos.kind,
        videos.subset,
        True,
        classes,
        tuple(clips),
        sha256_file(manifest),
        videos.about,
    )


def _clip(video: Video, kind: str, classes: tuple[str, ...]) -> SegmentedClip:
    """Keep the annotated frames of a video, with the classes of its objects."""
    pairs = [(f, m) for f, m in zip(video.frames, video.masks, strict=True) if m is not None]
    if kind == "davis2016":
        # Any shade is the one object; 255 is white here, not void.
        lookup = np.minimum(np.arange(256), 1).astype(np.uint8)
    elif kind == "youtube_vos":
        lookup = np.full(256, UNKNOWN, np.uint8)
        lookup[[0, VOID]] = 0, VOID
        for number, category in video.categories.items():
            lookup[number] = classes.index(category)
    elif kind in BY_INSTANCE and classes:
        lookup = _class_table(len(classes), zero_is_void=False)
    elif kind in BY_INSTANCE:
        return SegmentedClip(video.name, tuple(f for f, _ in pairs), tuple(m for _, m in pairs))
    else:
        raise UserError(
            f"a set of kind '{kind}' has no masks of ids; name one of {', '.join(_known())}, or "
            "of still images with masks, under the key 'dataset'."
        )
    return SegmentedClip(video.name, tuple(f for f, _ in pairs), tuple(m for _, m in pairs), lookup)


def _known() -> list[str]:
    return sorted({"davis2016", "youtube_vos", *BY_INSTANCE})


def picked(segmented: SegmentedSet, frames_per_clip: int | None) -> SegmentedSet:
    """Return a set with so many frames of every video, evenly spread from the first to the last
    annotated one; None, or a shorter video: all of them."""
    if frames_per_clip is None or not segmented.videos:
        return segmented
    clips = []
    for clip in segmented.clips:
        last, count = len(clip.frames) - 1, min(frames_per_clip, len(clip.frames))
        places = np.linspace(0, last, count).round().astype(int).tolist()
        frames = tuple(clip.frames[place] for place in places)
        clips.append(replace(clip, frames=frames, masks=tuple(clip.masks[p] for p in places)))
    return replace(segmented, clips=tuple(clips))


def read_square(path: Path, size: int) -> np.ndarray:
    """Return an image, uint8 RGB (3, S, S), both sides resized (bilinear).

    Raises:
        UserError: it cannot be read.
    """
    image = Image.fromarray(read_frame(path)).resize((size, size), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def read_classes(path: Path, lookup: np.ndarray | None, size: int | None = None) -> np.ndarray:
    """Return a mask's classes, uint8 (H, W), or (S, S) resized (nearest); 255 is void.

    Raises:
        UserError: it cannot be read, holds colours, or an id that its set does not know.
    """
    ids = read_ids(path)
    if lookup is not None:
        classes = lookup[ids]
        if (unknown := ids[classes == UNKNOWN]).size:
            raise UserError(
                f"{path} holds the id {int(unknown[0])}, which is beyond its set's list of classes "
                "and objects; restore the published file, or correct the list."
            )
        ids = classes
    if size is None:
        return ids
    return np.asarray(Image.fromarray(ids).resize((size, size), Image.Resampling.NEAREST))


def read_pair(frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Return an image, uint8 RGB (H, W, 3), and its classes, uint8 (H, W).

    Raises:
        UserError: an unreadable file, an id that its set does not know, or a mask of another size.
    """
    path, mask, lookup = frame
    image, classes = read_frame(path), read_classes(mask, lookup)
    if image.shape[:2] != classes.shape:
        raise UserError(
            f"{mask} is {classes.shape[1]}x{classes.shape[0]} pixels but its image is "
            f"{image.shape[1]}x{image.shape[0]}; restore the published files."
        )
    return image, classes


class Squares(Dataset[Tensor]):
    """Images by number, uint8 (3, S, S)."""

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self.paths, self.size = list(paths), size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(read_square(self.paths[index], self.size))
