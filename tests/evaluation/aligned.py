"""Videos whose frames say their number by their grey level, and files that show them."""

import av
import numpy as np
from PIL import Image, ImageSequence

from timewalk.config import PhaseRecords
from timewalk.data.phases import PhaseVideos
from timewalk.data.prepare import prepare
from timewalk.data.record_writer import jpeg_of
from timewalk.data.tfrecord import VideoRecord, write_videos
from timewalk.evaluation.alignment import Video
from timewalk.evaluation.phase_sequences import (
    PhaseEmbeddings,
    PhaseSequence,
    save_phase_embeddings,
)

DARKEST, STEP = 10, 12
"""grey level of frame 0, and from one frame to the next: compression changes a level by less"""


def grey(number, side=16):
    return np.full((side, side, 3), DARKEST + STEP * number, np.uint8)


def number_of(pixels):
    """The number of a frame from the pixels of a picture."""
    return round((float(pixels.mean()) - DARKEST) / STEP)


def video(values, name="video", labels=None, action=0):
    """A video whose embeddings are numbers, here a column each."""
    embeddings = np.array(values, np.float32).reshape(len(values), -1)
    of_frames = None if labels is None else np.array(labels, np.int64)
    return Video(name, embeddings, of_frames, action, grey)


def pages_of(path):
    """The pictures of an mp4 or gif, uint8 (H, W, 3) each, and the seconds from one to the next."""
    if path.suffix == ".gif":
        with Image.open(path) as file:
            frames = [np.asarray(x.convert("RGB")) for x in ImageSequence.Iterator(file)]
            return frames, file.info["duration"] / 1000
    with av.open(str(path)) as file:
        rate = file.streams.video[0].average_rate
        return [x.to_ndarray(format="rgb24") for x in file.decode(video=0)], float(1 / rate)


def numbers_on(page, sheet, cells):
    """The frame numbers that the cells of a page show, from the middle of each."""
    found = []
    for cell in range(cells):
        top, left = sheet.corner(cell)
        inner = slice(sheet.cell // 4, 3 * sheet.cell // 4)
        found.append(number_of(page[top:, left:][inner, inner]))
    return found


def write_set(folder, lengths=(6, 9, 12, 5), actions=(0, 0, 0, 0), side=16, labelled=True):
    """Prepare a set whose test split has videos of these lengths; return its manifest."""
    root = folder / "records"
    for split in ("train", "val"):
        videos = [
            VideoRecord(
                f"{split}{number}",
                [jpeg_of(grey(n, side)) for n in range(length)],
                label=action,
                class_names=["first", "second"],
                frame_labels=[2 * n // length for n in range(length)] if labelled else None,
            )
            for number, (length, action) in enumerate(zip(lengths, actions, strict=True))
        ]
        root.mkdir(parents=True, exist_ok=True)
        write_videos(root / f"grey_{split}-0-of-1.tfrecord", videos)
    manifest = folder / "set" / "manifest.json"
    prepare("grey", PhaseRecords(kind="phase_records", root=str(root)), manifest)
    return manifest


def progress(length):
    """Embeddings (length, 2) that run from (0, 1) to (1, 1)."""
    return np.stack([np.linspace(0, 1, length), np.ones(length)], axis=1).astype(np.float32)


def write_embeddings(
    path, manifest, split="test", steps=None, vectors=progress, save=None, **about
):
    """Write embeddings of a split that say how far a video has gone; return the path."""
    about = {"split": split} | about
    videos = []
    for video in PhaseVideos(manifest, split):
        kept = np.arange(len(video)) if steps is None else np.arange(len(video))[steps]
        labels = None if video.labels is None else video.labels[kept]
        frames = None
        if save:
            frames = video.frames(kept.tolist()).permute(0, 2, 3, 1).numpy() / 127.5 - 1
        found = vectors(len(video))[kept]
        videos.append(PhaseSequence(video.name, found, labels, kept, video.action, frames))
    path.parent.mkdir(parents=True, exist_ok=True)
    (save or save_phase_embeddings)(path, PhaseEmbeddings(videos, ["a", "b"], about))
    return path
