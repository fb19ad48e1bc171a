import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest

from timewalk.artefacts import read_json, write_json
from timewalk.data import shards
from timewalk.data.folder import FrameIndex
from timewalk.data.shards import open_store, write_shards
from timewalk.data.tfrecord import read_videos
from timewalk.errors import UserError

BOTH = pytest.mark.parametrize("storage", ["tfrecord", "folder"])


@pytest.fixture(autouse=True)
def short_records(monkeypatch):
    monkeypatch.setattr(shards, "FRAMES_PER_RECORD", 16)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "shards" / "set" / "walk.json"


def jpegs(manifest: Path):
    return [path.read_bytes() for path in sorted(manifest.parent.glob("*.jpg"))]


@BOTH
def test_frames_are_copied_byte_for_byte(make_frames, target, storage):
    frames = make_frames()
    about = write_shards(frames, target, storage)
    store = open_store(target)
    assert [store.jpeg(i) for i in range(len(store))] == jpegs(frames)
    np.testing.assert_array_equal(store.times, np.arange(40) / 25)
    assert store.video == about["video"] == "walk"
    total = b"".join(jpegs(frames))
    assert about["counts"] == {"frames": 40, "width": 96, "height": 48, "bytes": len(total)}
    assert about["frames_sha256"] == hashlib.sha256(total).hexdigest()
    assert about == read_json(target)


def test_a_long_video_is_several_records(make_frames, target):
    frames = make_frames()
    write_shards(frames, target, "tfrecord")
    records = list(read_videos(target.with_suffix(".tfrecord")))
    assert [record.name for record in records] == [f"walk-{n:07d}" for n in (0, 16, 32)]
    assert [record.context["start"] for record in records] == [[0], [16], [32]]
    assert [len(record.frames) for record in records] == [16, 16, 8]
    assert all(record.label == -1 for record in records)
    assert [frame for record in records for frame in record.frames] == jpegs(frames)
    times = [time for record in records for (time,) in record.lists["time_us"]]
    assert times == [40_000 * n for n in range(40)]


def test_large_frames_make_shorter_records(make_frames, target, monkeypatch):
    frames = make_frames(count=7)
    monkeypatch.setattr(shards, "BYTES_PER_RECORD", 3 * len(jpegs(frames)[0]) - 100)
    write_shards(frames, target, "tfrecord")
    records = list(read_videos(target.with_suffix(".tfrecord")))
    assert [record.context["start"] for record in records] == [[0], [3], [6]]
    store = open_store(target)
    assert [store.jpeg(i) for i in range(7)] == jpegs(frames)


def test_a_short_video_keeps_its_name(make_frames, target):
    write_shards(make_frames(count=16), target, "tfrecord")
    (record,) = read_videos(target.with_suffix(".tfrecord"))
    assert record.name == "walk"


@BOTH
def test_the_same_frames_give_the_same_bytes(make_frames, target, tmp_path, storage):
    frames = make_frames()
    other = tmp_path / "shards" / "twin" / "walk.json"
    for path in (target, other, target):
        write_shards(frames, path, storage)
    files = sorted(path.name for path in target.parent.iterdir())
    assert files == sorted(path.name for path in other.parent.iterdir())
    for name in files:
        assert (target.parent / name).read_bytes() == (other.parent / name).read_bytes()


def test_another_storage_leaves_nothing_behind(make_frames, target):
    frames = make_frames()
    write_shards(frames, target, "tfrecord")
    write_shards(frames, target, "folder")
    assert sorted(p.name for p in target.parent.iterdir()) == ["walk.index.npz", "walk.json"]


@BOTH
def test_stores_pickle_after_a_read(make_frames, target, storage):
    write_shards(make_frames(), target, storage)
    store = open_store(target)
    first = store.jpeg(7)
    assert pickle.loads(pickle.dumps(store)).jpeg(7) == first


def test_every_flipped_byte_of_a_frame_is_detected(make_frames, target):
    write_shards(make_frames(count=20), target, "tfrecord")
    store, path = open_store(target), target.with_suffix(".tfrecord")
    raw = path.read_bytes()
    offset, length = int(store.index.offset[17]), int(store.index.length[17])
    for position in range(offset, offset + length):
        broken = bytearray(raw)
        broken[position] ^= 0x10
        path.write_bytes(broken)
        message = rf"walk\.tfrecord at byte {offset}: frame 17 .*run the shards stage again"
        with pytest.raises(UserError, match=message):
            store.jpeg(17)
        assert store.jpeg(16)


def test_a_changed_frame_in_a_folder_is_detected(make_frames, target):
    frames = make_frames()
    write_shards(frames, target, "folder")
    store, path = open_store(target), frames.parent / "000003.jpg"
    raw = path.read_bytes()
    for broken in (raw[:-1], raw[:200] + bytes([raw[200] ^ 1]) + raw[201:]):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"000003\.jpg: frame 3"):
            store.jpeg(3)
    path.unlink()
    with pytest.raises(UserError, match=r"000003\.jpg is missing"):
        store.jpeg(3)


def test_damaged_files_are_named_when_opened(make_frames, target):
    write_shards(make_frames(), target, "tfrecord")
    data, index = target.with_suffix(".tfrecord"), target.with_suffix(".index.npz")
    raw = data.read_bytes()
    data.write_bytes(raw[:-5])
    with pytest.raises(UserError, match=rf"walk\.tfrecord has {len(raw) - 5} bytes"):
        open_store(target)
    data.unlink()
    with pytest.raises(UserError, match=r"walk\.tfrecord is missing"):
        open_store(target)
    data.write_bytes(raw)
    index.write_bytes(index.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"walk\.index\.npz is damaged"):
        open_store(target)
    index.unlink()
    with pytest.raises(UserError, match=r"walk\.index\.npz is missing"):
        open_store(target)


def test_a_manifest_of_another_kind(make_frames):
    with pytest.raises(UserError, match="describes 'frames'"):
        open_store(make_frames())


def damage_missing(folder):
    (folder / "000005.jpg").unlink()


def damage_cut(folder):
    path = folder / "000005.jpg"
    path.write_bytes(path.read_bytes()[:-40])


def damage_text(folder):
    (folder / "000005.jpg").write_text("no picture")


def damage_size(folder):
    about = read_json(folder / "manifest.json")
    about["counts"]["width"] = 95
    write_json(folder / "manifest.json", about)


def damage_times(folder):
    np.save(folder / "times.npy", np.arange(39))


@BOTH
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_missing, r"000005\.jpg is missing"),
        (damage_cut, r"000005\.jpg is cut off"),
        (damage_text, r"000005\.jpg is no JPEG"),
        (damage_size, r"000000\.jpg is 96x48 pixels .* 95x48"),
        (damage_times, r"times\.npy holds 39 times .* 40 frames"),
    ],
)
def test_bad_frames_leave_no_manifest(make_frames, target, storage, damage, words):
    frames = make_frames()
    write_shards(frames, target, storage)
    damage(frames.parent)
    with pytest.raises(UserError, match=words):
        write_shards(frames, target, storage)
    assert not target.exists()
    assert not [path for path in target.parent.iterdir() if "part" in path.name]


def test_index_types(make_frames, target):
    write_shards(make_frames(), target, "tfrecord")
    index = FrameIndex.load(target.with_suffix(".index.npz"))
    kinds = [array.dtype for array in (index.offset, index.length, index.crc, index.times)]
    assert kinds == [np.int64, np.int32, np.uint32, np.float64]
