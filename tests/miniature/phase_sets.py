"""Tiny sets of videos with phases, in the layouts that they are published in."""

import io
import json

import numpy as np
from PIL import Image
from scipy.io import savemat

from timewalk.data.tfrecord import VideoRecord, write_videos


def jpeg(value, size=(12, 8)):
    """Return a picture of one gray value."""
    data = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(data, "JPEG", quality=95)
    return data.getvalue()


def video(name, labels=(0, 0, 1), first=0, count=None, **about):
    """Return a record whose frame k is of the gray value ``first`` + 10 k."""
    count = len(labels) if count is None else count
    frames = [jpeg(first + 10 * number) for number in range(count)]
    return VideoRecord(name, frames, frame_labels=labels and list(labels), **about)


def records(root, files):
    """Write TFRecords: videos by file name."""
    root.mkdir(parents=True, exist_ok=True)
    for name, videos in files.items():
        write_videos(root / name, videos)


def pouring(root):
    """Write files named as Pouring's, with five videos."""
    records(
        root,
        {
            "pouring_train-0-of-2.tfrecord": [video("b", (0, 1, 2, 3, 4)), video("c", (0, 4))],
            "pouring_train-1-of-2.tfrecord": [video("a", (0, 2), first=90)],
            "pouring_val-0-of-1.tfrecord": [video("d", (0, 1)), video("e", (3, 4))],
        },
    )


PENN = {
    "0001": ("baseball_pitch", 1, 4),
    "0002": ("baseball_pitch", -1, 3),
    "0003": ("bowl", 1, 3),
    "0004": ("bowl", 0, 2),
    "0005": ("strum_guitar", 1, 2),
}


def penn_action(root, videos=None):
    """Write Penn Action's layout; (action, train, frames) by number."""
    for number, (action, train, count) in (videos or PENN).items():
        folder = root / "frames" / number
        folder.mkdir(parents=True)
        for frame in range(count):
            (folder / f"{frame + 1:06d}.jpg").write_bytes(jpeg(10 * frame))
        labels = root / "labels"
        labels.mkdir(exist_ok=True)
        content = {"action": action, "train": train, "nframes": count, "x": np.zeros((count, 13))}
        savemat(labels / f"{number}.mat", content)


def label_file(path, videos):
    """Write a label file of one annotator; ends of the phases in seconds by video."""
    annotated = {}
    for name, ends in videos.items():
        starts = [0, *ends[:-1]]
        times = zip(starts, ends, strict=True)
        annotated[name] = {
            "ann": {str(k): [1e6 * start, 1e6 * end] for k, (start, end) in enumerate(times)}
        }
    path.write_text(json.dumps(annotated))
    return path
