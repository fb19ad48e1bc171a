"""Every published layout of labelled videos in miniature, with content that really moves.

Each function writes a set below ``root`` and returns the videos by name, so that tests know the
motion: :class:`timewalk.data.generated.Moving` has frames, ids and centres.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from timewalk.data.generated import (
    Moving,
    moving_shapes,
    save_ids,
    write_davis,
    write_frames,
    write_masks,
)

Videos = dict[str, Moving]
NAMES = ("blackswan", "camel")


def videos(
    names: Sequence[str], frames: int, size: tuple[int, int], objects: int, seed: int
) -> Videos:
    """Return a video of moving shapes for each name."""
    rngs = np.random.default_rng(seed).spawn(len(names))
    return {
        name: moving_shapes(frames, size, objects, rng)
        for name, rng in zip(names, rngs, strict=True)
    }


def davis2017(
    root: Path,
    sequences: Sequence[str] = NAMES,
    frames: int = 5,
    size: tuple[int, int] = (48, 64),
    objects: int = 2,
    subset: str = "val",
    seed: int = 0,
) -> Videos:
    """DAVIS 2017: ``JPEGImages``, ``Annotations``, ``Annotations_unsupervised``, ``ImageSets``."""
    made = videos(sequences, frames, size, objects, seed)
    write_davis(root, made, subset=subset)
    return made


def davis2016(
    root: Path,
    sequences: Sequence[str] = NAMES,
    frames: int = 4,
    size: tuple[int, int] = (48, 64),
    subset: str = "val",
    seed: int = 0,
) -> Videos:
    """DAVIS 2016's own release: masks of 0 and 255, a list of all frames."""
    made = videos(sequences, frames, size, 2, seed)
    lines = []
    for name, video in made.items():
        write_frames(root / "JPEGImages" / "480p" / name, video.frames)
        folder = root / "Annotations" / "480p" / name
        folder.mkdir(parents=True)
        for number, ids in enumerate(video.ids):
            _save_gray(folder / f"{number:05d}.png", ids > 0)
            stem = f"480p/{name}/{number:05d}"
            lines.append(f"/JPEGImages/{stem}.jpg /Annotations/{stem}.png\n")
    (root / "ImageSets" / "480p").mkdir(parents=True)
    (root / "ImageSets" / "480p" / f"{subset}.txt").write_text("".join(lines))
    return made


def youtube_vos(
    root: Path,
    sequences: Sequence[str] = ("0043f083b5", "00a23ccf53"),
    frames: int = 4,
    size: tuple[int, int] = (48, 64),
    subset: str = "train",
    seed: int = 0,
) -> Videos:
    """YouTube-VOS: frame numbers in steps of 5; all masks in train, else only the first."""
    made = videos(sequences, frames, size, 2, seed)
    meta: dict[str, dict] = {"videos": {}}
    for name, video in made.items():
        images, masks = (root / subset / kind / name for kind in ("JPEGImages", "Annotations"))
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        for i in range(frames):
            Image.fromarray(video.frames[i]).save(images / f"{5 * i:05d}.jpg", quality=95)
            if subset == "train" or i == 0:
                save_ids(masks / f"{5 * i:05d}.png", video.ids[i])
        meta["videos"][name] = {
            "objects": {
                "1": {"category": "ape", "frames": ["00000"]},
                "2": {"category": "zebra", "frames": ["00000"]},
            }
        }
    (root / subset / "meta.json").write_text(json.dumps(meta))
    return made


def mose(
    root: Path,
    sequences: Sequence[str] = ("0a1b2c3d", "4e5f6a7b"),
    frames: int = 3,
    size: tuple[int, int] = (48, 64),
    seed: int = 0,
) -> Videos:
    """MOSE: the training part, every frame annotated."""
    made = videos(sequences, frames, size, 2, seed)
    for name, video in made.items():
        write_frames(root / "train" / "JPEGImages" / name, video.frames)
        write_masks(root / "train" / "Annotations" / name, video.ids)
    return made


def visor(
    root: Path,
    sequences: Sequence[str] = ("P01_01", "P02_07"),
    frames: int = 3,
    size: tuple[int, int] = (48, 64),
    subset: str | None = "val",
    level: str = "480p",
    seed: int = 0,
) -> Videos:
    """VISOR in the structure of DAVIS: names and numbers as in the videos, with gaps."""
    made = videos(sequences, frames, size, 2, seed)
    for name, video in made.items():
        write_visor(
            root / "JPEGImages" / level / name, root / "Annotations" / level / name, name, video
        )
    if subset is not None:
        (root / "ImageSets" / "2022").mkdir(parents=True)
        listed = root / "ImageSets" / "2022" / f"{subset}.txt"
        listed.write_text("".join(f"{name}\n" for name in made))
    return made


def write_visor(images: Path, masks: Path, name: str, video: Moving) -> None:
    """Write a video's frames and masks under VISOR's names."""
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    for i in range(len(video.frames)):
        stem = f"{name}_frame_{140 * i + 70:010d}"
        Image.fromarray(video.frames[i]).save(images / f"{stem}.jpg", quality=95)
        save_ids(masks / f"{stem}.png", video.ids[i])


def segtrack_v2(
    root: Path,
    sequences: Sequence[str] = ("birdfall", "bmx"),
    frames: int = 3,
    size: tuple[int, int] = (48, 64),
    seed: int = 0,
) -> Videos:
    """SegTrack v2: `bmx` has a folder for each of two objects, the others one mask a frame."""
    made = videos(sequences, frames, size, 2, seed)
    (root / "ImageSets").mkdir(parents=True)
    (root / "ImageSets" / "all.txt").write_text("".join(f"*{name}\n" for name in made))
    for name, video in made.items():
        images, masks = root / "JPEGImages" / name, root / "GroundTruth" / name
        images.mkdir(parents=True)
        for i in range(frames):
            stem = f"{name}_{i + 18:05d}"
            Image.fromarray(video.frames[i]).save(images / f"{stem}.bmp")
            parts = {"1": video.ids[i] == 1, "2": video.ids[i] == 2} if name == "bmx" else {}
            for part, inside in (parts or {"": video.ids[i] > 0}).items():
                (masks / part).mkdir(parents=True, exist_ok=True)
                _save_gray(masks / part / f"{stem}.png", inside, colours=True)
    return made


def fbms59(
    root: Path,
    sequences: Sequence[str] = ("cars1", "marple2", "dogs01"),
    frames: int = 6,
    size: tuple[int, int] = (48, 64),
    subset: str = "Testset",
    seed: int = 0,
) -> Videos:
    """FBMS-59: the first, third and fifth frame annotated; `dogs01` as .ppm, the others .pgm."""
    made = videos(sequences, frames, size, 2, seed)
    for name, video in made.items():
        masks = root / subset / name / "GroundTruth"
        masks.mkdir(parents=True)
        for i in range(frames):
            image = Image.fromarray(video.frames[i])
            image.save(root / subset / name / f"{name}_{i + 1:02d}.jpg", quality=95)
        for i in range(0, frames, 2):
            if name == "dogs01":
                # White is the background; each object has a colour of its own.
                values = np.array([255, 90, 160], np.uint8)[video.ids[i]]
                picture = Image.fromarray(np.repeat(values[..., None], 3, axis=2))
                picture.save(masks / f"{name}_{i + 1:04d}_gt.ppm")
                picture.save(masks / f"PROB_{name}_{i + 1:04d}_gt.ppm")
            else:
                # Of marple2 only the brighter object is above its threshold of 0.4.
                values = np.array([0, 70, 200], np.uint8)[video.ids[i]]
                Image.fromarray(values).save(masks / f"{name}_{i + 1:02d}.pgm")
    return made


def jhmdb(
    root: Path,
    sequences: Sequence[str] = ("walk/April_09_walk_f_nm_np1", "wave/Boy_wave_u_cm"),
    frames: int = 5,
    size: tuple[int, int] = (60, 80),
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """JHMDB: 15 joints that move with the shapes; the first split, one video more for training.

    Returns the joints, (2, 15, n) in pixels from 0, of every test video.
    """
    made = videos(sequences, frames, size, 3, seed)
    found = {}
    for name, video in made.items():
        joints = _joints(video)
        _write_jhmdb(root, name, video, joints, side=2)
        _write_jhmdb(root, f"{name}_train", video, joints, side=1)
        found[name] = joints
    return found


def _joints(video: Moving) -> np.ndarray:
    """Return five points fixed to each of three shapes: centre, and half-way to its four ends."""
    places = np.array([(0, 0), (-0.5, 0), (0.5, 0), (0, -0.5), (0, 0.5)])
    offsets = video.radii[:, None, :] * places[None]
    points = video.centres[:, :, None, :] + offsets[None]
    return points.reshape(len(points), -1, 2).transpose(2, 1, 0).astype(np.float64)


def _write_jhmdb(root: Path, name: str, video: Moving, joints: np.ndarray, side: int) -> None:
    label, clip = name.split("/")
    folder = root / "Rename_Images" / name
    folder.mkdir(parents=True)
    for number, frame in enumerate(video.frames):
        Image.fromarray(frame).save(folder / f"{number + 1:05d}.png")
    (root / "joint_positions" / name).mkdir(parents=True)
    savemat(root / "joint_positions" / name / "joint_positions.mat", {"pos_img": joints + 1})
    (root / "splits").mkdir(exist_ok=True)
    with open(root / "splits" / f"{label}_test_split1.txt", "a") as file:
        file.write(f"{clip}.avi {side}\n")


def vip(
    root: Path,
    sequences: Sequence[str] = ("videos10", "videos12"),
    frames: int = 4,
    size: tuple[int, int] = (56, 72),
    subset: str = "val",
    seed: int = 0,
) -> Videos:
    """VIP: gray ids of body parts (here the shapes' numbers), frame numbers in steps of 25."""
    made = videos(sequences, frames, size, 3, seed)
    (root / "lists").mkdir(parents=True, exist_ok=True)
    (root / "lists" / f"{subset}_videos.txt").write_text("".join(f"{name}\n" for name in made))
    for name, video in made.items():
        images, masks = root / "Images" / name, root / "Annotations" / "Category_ids" / name
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        for i in range(frames):
            stem = f"{25 * i + 1:012d}"
            Image.fromarray(video.frames[i]).save(images / f"{stem}.jpg", quality=95)
            Image.fromarray(video.ids[i]).save(masks / f"{stem}.png")
    return made


def _save_gray(path: Path, inside: np.ndarray, colours: bool = False) -> None:
    gray = np.where(inside, 255, 0).astype(np.uint8)
    Image.fromarray(np.repeat(gray[..., None], 3, axis=2) if colours else gray).save(path)
