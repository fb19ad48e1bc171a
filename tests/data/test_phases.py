"""Videos with phases: what was prepared is read, for evaluations and for training."""

import json
import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from tests.miniature.phase_sets import label_file, records, video
from timewalk.artefacts import read_json, write_json
from timewalk.config import PhaseFrames, PhaseRecords
from timewalk.data import phases
from timewalk.data.clips import open_clips
from timewalk.data.frame_folders import index_frame_folders, open_stores
from timewalk.data.phase_sampling import PhaseSampler
from timewalk.data.phases import PhaseVideos
from timewalk.data.prepare import prepare
from timewalk.data.tfrecord import read_videos
from timewalk.errors import UserError


@pytest.fixture
def manifest(tmp_path):
    """A set: two labelled training videos of actions 1 and 3, two test ones, one unlabelled."""
    classes = {"class_names": ["reach", "pour"]}
    records(
        tmp_path / "raw",
        {
            "toy_train-0-of-2.tfrecord": [video("walk", (0, 0, 1, 1, 1), label=1, **classes)],
            "toy_train-1-of-2.tfrecord": [video("run", (0, 1, 1), first=100, label=3, **classes)],
            "toy_val-0-of-1.tfrecord": [
                video("dip", (0, 1), first=200, **classes),
                video("sit", None, first=150, count=4),
            ],
        },
    )
    settings = {"kind": "phase_records", "root": str(tmp_path / "raw"), "stride": 2}
    prepare("toy", PhaseRecords(**settings), tmp_path / "sets" / "toy" / "manifest.json")
    return tmp_path / "sets" / "toy" / "manifest.json"


@pytest.fixture
def linked(manifest, tmp_path):
    index_frame_folders(manifest, tmp_path / "shards" / "toy" / "folders.json")
    return tmp_path / "shards" / "toy" / "folders.json"


def gray(frames):
    return [round(value) for value in frames.float().mean((1, 2, 3)).tolist()]


def test_both_splits(manifest):
    train, test = (PhaseVideos(manifest, split) for split in ("train", "test"))
    assert [one.name for one in train] == ["walk", "run"]
    assert [one.action for one in train] == [1, 3]
    assert [one.labels.tolist() for one in train] == [[0, 0, 1, 1, 1], [0, 1, 1]]
    assert train[0].labels.dtype == np.int64
    assert [(one.name, one.action, len(one)) for one in test] == [("dip", -1, 2), ("sit", -1, 4)]
    assert test[1].labels is None
    assert (len(train), len(test)) == (2, 2)
    assert (train.name, train.kind, train.classes) == ("toy", "phase_records", ["reach", "pour"])
    assert (train.settings["stride"], train.settings["image_size"]) == (2, None)
    assert train.about["counts"]["unlabelled"] == 1


def test_frames_by_number(manifest):
    run = PhaseVideos(manifest, "train")[1]
    frames = run.frames([2, 0, 2])
    assert frames.shape == (3, 3, 8, 12)
    assert frames.dtype == torch.uint8
    assert gray(frames) == [120, 100, 120]
    assert run.store.times.tolist() == [0, 1, 2]
    assert gray(pickle.loads(pickle.dumps(run)).frames([1])) == [110]


def test_training_reads_the_training_split(linked):
    stores = open_stores(linked)
    assert [store.video for store in stores] == ["walk", "run"]
    assert [store.action for store in stores] == [1, 3]
    assert [store.labels.tolist() for store in stores] == [[0, 0, 1, 1, 1], [0, 1, 1]]
    about = read_json(linked)
    assert (about["kind"], about["counts"]) == ("phase_videos", {"videos": 2, "frames": 8})
    assert about["source"] == "../../sets/toy/manifest.json"


def test_clips_have_labels_steps_and_groups(linked):
    sampler = PhaseSampler(3, context=2, context_step=1, positive_window=2)
    source = open_clips([linked], 3, 1, sampler=sampler, per_video=2)
    assert source.groups() == [1, 1, 3, 3]
    for index in range(4):
        clip = source.clip(index, torch.Generator().manual_seed(index))
        name, length, first, labels = (
            ("walk", 5, 0, [0, 0, 1, 1, 1]) if index < 2 else ("run", 3, 100, [0, 1, 1])
        )
        assert (clip.video, clip.length) == (name, length)
        frames = [
            min(max(frame, 0), length - 1)
            for step in clip.steps.tolist()
            for frame in (step - 1, step)
        ]
        assert gray(clip.frames) == [first + 10 * frame for frame in frames]
        assert clip.labels.tolist() == [labels[frame] for frame in frames]
        assert clip.times.tolist() == frames
        assert clip.steps.shape == (6,)


def test_other_clips_of_such_videos(linked):
    source = open_clips([linked], 2, 1)
    clip = source.clip(3)
    assert (clip.video, clip.steps.tolist(), clip.labels.tolist()) == ("run", [0, 1], [0, 1])
    assert source.groups() == [1, 1, 1, 3]


def test_a_share_is_taken_of_each_action(tmp_path):
    each = [("a", 0), ("b", 0), ("c", 2), ("d", 0), ("e", 2), ("f", 0), ("g", 7)]
    made = [video(name, (0,), label=label) for name, label in each]
    records(tmp_path / "raw", {"x_train-0.tfrecord": made, "x_val-0.tfrecord": [video("z")]})
    manifest, link = tmp_path / "set" / "manifest.json", tmp_path / "folders.json"
    prepare("x", PhaseRecords(kind="phase_records", root=str(tmp_path / "raw")), manifest)
    index_frame_folders(manifest, link)

    def taken(fraction):
        source = open_clips([link], 1, 0, sampling="uniform", fraction=fraction)
        return "".join(source.clip(number).video for number in range(len(source)))

    assert taken(1.0) == "abcdefg"
    assert taken(0.5) == "abcg"
    assert taken(0.01) == "acg"


def test_the_link_hangs_on_the_training_split_alone(manifest, linked, tmp_path):
    before = linked.read_text()
    settings = {"kind": "phase_records", "root": str(tmp_path / "raw"), "stride": 3}
    prepare("toy", PhaseRecords(**settings), manifest)
    assert len(open_stores(linked)) == 2
    index_frame_folders(manifest, linked)
    assert linked.read_text() == before


def test_a_set_that_changed_since_is_noticed(manifest, linked, tmp_path):
    root = tmp_path / "raw"
    records(root, {"toy_train-1-of-2.tfrecord": [video("hop", (0, 1, 1))]})
    prepare("toy", PhaseRecords(kind="phase_records", root=str(root)), manifest)
    with pytest.raises(UserError, match=r"manifest\.json has changed since .*folders stage again"):
        open_stores(linked)


@pytest.mark.parametrize("file", ["test.jsonl", "test.index.npz"])
def test_a_damaged_list_or_index(manifest, file):
    path = manifest.parent / file
    path.write_bytes(path.read_bytes() + b"\n")
    assert len(PhaseVideos(manifest, "train")) == 2
    with pytest.raises(UserError, match=rf"{file} is missing or not the one of .*prepare stage"):
        PhaseVideos(manifest, "test")
    path.unlink()
    with pytest.raises(UserError, match=rf"{file} is missing or not the one of"):
        PhaseVideos(manifest, "test")


def test_records_of_another_size(manifest, tmp_path):
    path = tmp_path / "raw" / "toy_val-0-of-1.tfrecord"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    message = rf"toy_val-0-of-1\.tfrecord is missing or not .*\(it had {size} bytes\): restore"
    with pytest.raises(UserError, match=message):
        PhaseVideos(manifest, "test")


@pytest.mark.parametrize("split", ["train", "test"])
def test_corrected_labels_are_not_read_as_they_were(manifest, tmp_path, split):
    name = {"train": "toy_train-1-of-2.tfrecord", "test": "toy_val-0-of-1.tfrecord"}[split]
    path = tmp_path / "raw" / name
    before, made = path.read_bytes(), list(read_videos(path))
    made[0].frame_labels[1] = 1 - made[0].frame_labels[1]
    records(tmp_path / "raw", {name: made})
    assert len(path.read_bytes()) == len(before)
    with pytest.raises(UserError, match=rf"{name} is not as it was .*run the prepare stage again"):
        PhaseVideos(manifest, split)
    path.write_bytes(before)
    assert len(PhaseVideos(manifest, split)) == 2


def test_a_label_file_that_changed(make_frames, tmp_path):
    path = label_file(tmp_path / "labels.json", {"a": (0.1, 0.2), "b": (0.1, 0.2)})
    frames = {name: make_frames(name, 3, fps=10.0) for name in "ab"}
    settings = {"dataset": "mine", "label_file": str(path), "classes": ["x", "y"], "test": ["b"]}
    manifest = tmp_path / "set" / "manifest.json"
    prepare("set", PhaseFrames(kind="phase_frames", **settings), manifest, frames)
    assert PhaseVideos(manifest, "train")[0].labels.tolist() == [0, 1, 1]
    label_file(path, {"a": (0.2, 0.3), "b": (0.1, 0.2)})
    with pytest.raises(UserError, match=r"labels\.json has changed since .*prepare stage again"):
        PhaseVideos(manifest, "train")
    path.unlink()
    assert PhaseVideos(manifest, "train")[0].labels.tolist() == [0, 1, 1]


def test_a_frame_that_changed_is_noticed_when_it_is_read(manifest, tmp_path):
    store = PhaseVideos(manifest, "train")[1].store
    offset, path = int(store.index.offset[1]), tmp_path / "raw" / "toy_train-1-of-2.tfrecord"
    data = bytearray(path.read_bytes())
    data[offset + 30] ^= 1
    path.write_bytes(data)
    assert store.jpeg(0)
    message = rf"toy_train-1-of-2\.tfrecord at byte {offset}: frame 1 is damaged .*prepare stage"
    with pytest.raises(UserError, match=message):
        store.jpeg(1)


def test_a_file_that_goes_before_it_is_read(manifest, tmp_path):
    store = PhaseVideos(manifest, "train")[1].store
    (tmp_path / "raw" / "toy_train-1-of-2.tfrecord").unlink()
    with pytest.raises(UserError, match=r"toy_train-1-of-2\.tfrecord cannot be read: restore"):
        store.jpeg(0)


def test_few_files_are_kept_open(tmp_path, monkeypatch):
    made = {f"x_train-{k}-of-9.tfrecord": [video(f"v{k}", first=20 * k)] for k in range(9)}
    records(tmp_path / "raw", made | {"x_val-0-of-1.tfrecord": [video("z")]})
    manifest = tmp_path / "set" / "manifest.json"
    prepare("x", PhaseRecords(kind="phase_records", root=str(tmp_path / "raw")), manifest)
    monkeypatch.setattr(phases, "OPEN", 3)
    assert files_open_below(tmp_path) == 0
    videos = PhaseVideos(manifest, "train")
    for _ in range(2):
        assert [gray(one.frames([1]))[0] for one in videos] == [10 + 20 * k for k in range(9)]
        assert files_open_below(tmp_path) == 3
    copy = pickle.loads(pickle.dumps(videos[2]))
    assert gray(copy.frames([0])) == [40]
    del videos, copy
    assert files_open_below(tmp_path) == 0


def files_open_below(folder):
    process = psutil.Process()
    return sum(Path(file.path).is_relative_to(folder) for file in process.open_files())


def test_frames_are_read_in_threads_and_forks(manifest):
    store = PhaseVideos(manifest, "train")[0].store
    expected = [store.jpeg(k) for k in range(5)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(store.jpeg, list(range(5)) * 20)) == expected * 20
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(store.jpeg, range(5)) == expected


def test_another_manifest(manifest):
    write_json(manifest, read_json(manifest) | {"kind": "labelled"})
    with pytest.raises(UserError, match=r"describes 'labelled', but .*'labelled_phases' is needed"):
        PhaseVideos(manifest, "train")


def test_rows_name_files_from_the_root_on(manifest):
    rows = [json.loads(row) for row in (manifest.parent / "test.jsonl").read_text().splitlines()]
    file = "toy_val-0-of-1.tfrecord"
    assert rows == [
        {"name": "dip", "action": -1, "frames": 2, "labelled": True, "file": file},
        {"name": "sit", "action": -1, "frames": 4, "labelled": False, "file": file},
    ]
