"""Penn Action as published, with phases from a label file.

``frames/<id>/000001.jpg`` and ``labels/<id>.mat`` with `action`, `train` and `nframes`. Actions,
key events and numbers of videos are those of TCC and its released code. The authors of TCC
published no labels of phases; whoever has some writes them as their tools read them.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from timewalk.artefacts import sha256_file
from timewalk.config import PennAction
from timewalk.data.phase_labels import doubts, labels_at, segments_of_video
from timewalk.data.prepare.archive import fetched, located, unverified
from timewalk.data.prepare.phase_videos import (
    SPLITS,
    START,
    CheckedVideo,
    FoundVideo,
    PhaseSet,
    check_video,
    count_warning,
    read_files,
    read_labels,
)
from timewalk.data.prepare.videos import Faults, Source
from timewalk.data.sequences import read_mat
from timewalk.errors import UserError, nearest

FPS = 20
ALL = "all"
SOURCE = Source(
    "Penn Action",
    "http://dreamdragon.github.io/PennAction/",
    "frames/0001/000001.jpg and labels/0001.mat",
    needed=("frames", "labels"),
    inside=("Penn_Action",),
)


class Action(NamedTuple):
    """An action: key events between start and end, and numbers of training and test videos."""

    events: tuple[str, ...]
    counts: tuple[tuple[int, int], ...]


# Where the published code and the paper disagree, both numbers; bench_press: the code repeats
# baseball_swing's.
ACTIONS = {
    "baseball_pitch": Action(
        ("knee fully up", "arm fully stretched out", "ball release"), ((103, 63),)
    ),
    "baseball_swing": Action(("bat swung back fully", "bat hits ball"), ((113, 57),)),
    "bench_press": Action(("bar fully down",), ((69, 71),)),
    "bowling": Action(("ball swung fully back", "ball release"), ((134, 84), (134, 85))),
    "clean_and_jerk": Action(
        ("bar at hip", "fully squatting", "standing", "begin thrusting", "beginning balance"),
        ((40, 42),),
    ),
    "golf_swing": Action(("stick swung fully back", "stick hits ball"), ((87, 77),)),
    "jumping_jacks": Action(
        (
            "hands at shoulder (going up)",
            "hands above head",
            "hands at shoulders (going down)",
        ),
        ((56, 56),),
    ),
    "pullups": Action(("chin above bar",), ((98, 100), (98, 101))),
    "pushups": Action(("head at floor",), ((102, 105),)),
    "situp": Action(("abs fully crunched",), ((50, 50),)),
    "squats": Action(
        ("hips at knees (going down)", "hips at floor", "hips at knee (going up)"),
        ((114, 115), (114, 116)),
    ),
    "tennis_forehand": Action(("racket swung fully back", "racket touches ball"), ((79, 74),)),
    "tennis_serve": Action(
        ("ball released from hand", "racket swung fully back", "ball touches racket"),
        ((115, 68), (115, 69)),
    ),
}
LEFT_OUT = ("jumping_rope", "strumming_guitar")
# Names are written in more than one way.
ALIASES = {
    "bowl": "bowling",
    "jump_rope": "jumping_rope",
    "pull_ups": "pullups",
    "pullup": "pullups",
    "push_ups": "pushups",
    "pushup": "pushups",
    "sit_ups": "situp",
    "situps": "situp",
    "squat": "squats",
    "strum_guitar": "strumming_guitar",
}


def phases_of(action: str) -> list[str]:
    """Return the names of an action's phases: the event that each begins with."""
    return [START, *ACTIONS[action].events]


def find_penn_action(name: str, config: PennAction) -> PhaseSet:
    """Return the videos of one action or of all.

    Raises:
        UserError: the set is missing or cannot be fetched; annotations that cannot be read, of an
            unknown action, or without frames; a label file without one of the videos.
    """
    place = Path(config.root)
    root = located(name, config, SOURCE)
    archives = fetched(place)
    wanted: list[str] = list(ACTIONS) if config.action == ALL else [config.action]
    listed = _listed(name, root, wanted)
    inputs = dict(archives)
    if config.label_file is not None:
        inputs["label_file"] = _label(name, config.label_file, listed)
    splits: dict[str, list[CheckedVideo]] = {
        split: [check_video(name, item.video, read_files(item.video)) for item in listed[split]]
        for split in SPLITS
    }
    warnings = [*_counts(wanted, listed), *_other_lengths(listed)]
    if config.label_file is None:
        warnings.append(
            "no 'label_file' is named: the videos have no labels, so that they train, and only "
            "evaluations that need no labels read them"
        )
    several = config.action == ALL
    return PhaseSet(
        root,
        splits,
        [] if several else phases_of(config.action),
        inputs,
        warnings + unverified(SOURCE, config, archives),
        {action: phases_of(action) for action in wanted},
    )


class _Listed(NamedTuple):
    action: str
    nframes: int
    video: FoundVideo


def _listed(name: str, root: Path, wanted: list[str]) -> dict[str, list[_Listed]]:
    """Return the videos of some actions by split, in the order of their numbers."""
    faults = Faults(name, root)
    found: dict[str, list[_Listed]] = {split: [] for split in SPLITS}
    for path in sorted((root / "labels").glob("*.mat")):
        about = _annotation(path)
        if about.action not in wanted:
            continue
        frames = sorted((root / "frames" / path.stem).glob("*.jpg"))
        if not frames:
            faults.add(f"frames/{path.stem}", "is missing or holds no .jpg")
        video = FoundVideo(path.stem, frames, np.arange(len(frames)) / FPS)
        video.action = list(ACTIONS).index(about.action)
        found["train" if about.train else "test"].append(
            _Listed(about.action, about.nframes, video)
        )
    faults.stop()
    return found


class _Annotation(NamedTuple):
    action: str
    train: bool
    nframes: int


def _annotation(path: Path) -> _Annotation:
    fields = ("action", "train", "nframes")
    content = read_mat(path, fields)
    values = {key: np.ravel(content.get(key, ())) for key in fields}
    if any(value.size != 1 for value in values.values()):
        raise UserError(
            f"{path} does not hold one `action`, one `train` and one `nframes`; restore the "
            "published file."
        )
    action = str(values["action"][0]).strip()
    action = ALIASES.get(action, action)
    if action not in (*ACTIONS, *LEFT_OUT):
        raise UserError(
            f"{path} is of the unknown action '{action}'{nearest(action, ACTIONS)}; restore the "
            "published file."
        )
    return _Annotation(action, int(values["train"][0]) > 0, int(values["nframes"][0]))


def _label(name: str, label_file: str, listed: dict[str, list[_Listed]]) -> str:
    """Give each video its labels, at the published frame rate; return the file's digest."""
    path = Path(label_file)
    annotated = read_labels(name, path)
    for item in (item for split in SPLITS for item in listed[split]):
        video, phases = item.video, len(phases_of(item.action))
        segments = segments_of_video(annotated, video.name, phases, path, key=None)
        video.doubts = doubts(segments, video.times)
        video.labels = labels_at(segments, video.times, f"{path}, '{video.name}'")
    return sha256_file(path)


def _counts(wanted: list[str], listed: dict[str, list[_Listed]]) -> list[str]:
    warnings, absent = [], []
    for action in wanted:
        train, test = (sum(x.action == action for x in listed[split]) for split in SPLITS)
        title = f"Penn Action's {action}"
        if train or test:
            warnings += count_warning(title, (train, test), *ACTIONS[action].counts)
        else:
            absent.append(action)
    if absent:
        warnings.append(f"there is no video of {', '.join(absent)}")
    return warnings


def _other_lengths(listed: dict[str, list[_Listed]]) -> list[str]:
    every = [item for split in SPLITS for item in listed[split]]
    other = [item for item in every if item.nframes != len(item.video.files)]
    if not other:
        return []
    first = other[0]
    return [
        f"{len(other)} of {len(every)} videos have another number of frames than their annotation "
        f"says, the first '{first.video.name}' with {len(first.video.files)} instead of "
        f"{first.nframes}"
    ]
