import gzip
import struct

import numpy as np
import pytest
from PIL import Image

from timewalk.artefacts import read_json
from timewalk.config import ArrayLabels, FolderLabels, ShotLabels
from timewalk.data.prepare import prepare
from timewalk.data.prepare.arrays import read_idx
from timewalk.data.prepare.base import read_list
from timewalk.errors import UserError


@pytest.fixture
def target(tmp_path):
    return tmp_path / "data" / "datasets" / "pets" / "manifest.json"


@pytest.fixture
def tree(tmp_path):
    """Two classes in both splits: 3 + 2 training images, 1 + 1 test images."""
    counts = {"train/cat": 3, "train/dog": 2, "val/cat": 1, "val/dog": 1}
    for number, (folder, count) in enumerate(counts.items()):
        (tmp_path / "images" / folder).mkdir(parents=True)
        for i in range(count):
            picture = Image.new("RGB", (20 + number, 30), (number * 50, i * 40, 0))
            picture.save(tmp_path / "images" / folder / f"{i}.{'png' if i % 2 else 'JPG'}", "PNG")
    return tmp_path / "images"


def folder_config(tree, **changes):
    return FolderLabels(kind="folder", root=str(tree), resize=32, crop=24, **changes)


def run(tree, target, **changes):
    return prepare("pets", folder_config(tree, **changes), target)


def test_a_folder(tree, target):
    about = run(tree, target)
    assert about == read_json(target)
    assert about["classes"] == ["cat", "dog"]
    assert about["counts"] == {"classes": 2, "train": 5, "test": 2, "skipped": 0}
    assert about["images_per_class"] == {
        "train": {"cat": 3, "dog": 2},
        "test": {"cat": 1, "dog": 1},
    }
    assert about["warnings"] == []
    labels, files = read_list(target.parent / "train.txt")
    assert labels == [0, 0, 0, 1, 1]
    assert files[:2] == ["train/cat/0.JPG", "train/cat/1.png"]
    root = target.parent / about["source"]["root"]
    assert all((root / file).is_file() for file in files)


def test_the_same_set_gives_the_same_bytes(tree, target):
    run(tree, target)
    before = {path.name: path.read_bytes() for path in target.parent.iterdir()}
    run(tree, target)
    assert {path.name: path.read_bytes() for path in target.parent.iterdir()} == before


def test_the_digest_follows_the_pictures(tree, target):
    before = run(tree, target)["digest"]
    Image.new("RGB", (20, 30), "white").save(tree / "val" / "dog" / "0.JPG", "PNG")
    assert run(tree, target)["digest"] != before


def test_other_files_are_skipped_and_counted(tree, target):
    (tree / "train" / "cat" / "notes.txt").write_text("x")
    (tree / "train" / "cat" / ".hidden.png").write_text("x")
    about = run(tree, target)
    assert about["counts"]["skipped"] == 2
    assert "2 files are no images" in about["warnings"][0]


def test_classes_of_one_split_only(tree, target):
    (tree / "val" / "owl").mkdir()
    Image.new("L", (30, 30)).save(tree / "val" / "owl" / "0.png")
    (tree / "train" / "ant").mkdir()
    Image.new("L", (30, 30)).save(tree / "train" / "ant" / "0.png")
    about = run(tree, target)
    assert about["classes"] == ["ant", "cat", "dog", "owl"]
    assert about["warnings"] == [
        "1 classes of the test split are not in train: owl",
        "1 classes of the train split are not in test: ant",
    ]


def test_an_empty_label_folder(tree, target):
    (tree / "train" / "emu").mkdir()
    with pytest.raises(UserError, match=r"train/emu is a class without images"):
        run(tree, target)
    assert not target.exists()


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_an_unreadable_image(tree, target, content):
    path = tree / "val" / "cat" / "0.JPG"
    Image.effect_noise((60, 60), 90).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:-900] if content is None else content)
    with pytest.raises(UserError, match=r"val/cat/0\.JPG cannot be read as an image"):
        run(tree, target)


def test_missing_folders(tree, target, tmp_path):
    with pytest.raises(UserError, match=r"labelled\.pets\.root: there is no folder .*nowhere"):
        run(tmp_path / "nowhere", target)
    with pytest.raises(UserError, match=r"no folder .*test; correct the keys"):
        run(tree, target, test="test")
    (tree / "bare").mkdir()
    with pytest.raises(UserError, match=r"bare holds no folders"):
        run(tree, target, test="bare")


def array_config(path):
    return ArrayLabels(kind="arrays", path=str(path), resize=32, crop=32)


def arrays(**changes):
    rng = np.random.default_rng(0)
    return {
        "train_images": rng.integers(0, 256, (6, 8, 9), dtype=np.uint8),
        "train_labels": np.array([0, 1, 2, 0, 1, 2], np.uint8),
        "test_images": rng.integers(0, 256, (3, 8, 9, 3), dtype=np.uint8),
        "test_labels": np.array([2, 1, 0]),
    } | changes


def test_npz(tmp_path, target):
    np.savez(tmp_path / "set.npz", **arrays())
    about = prepare("toy", array_config(tmp_path / "set.npz"), target)
    assert about["counts"] == {"classes": 3, "train": 6, "test": 3, "skipped": 0}
    assert len(about["inputs"]["set.npz"]) == 64


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_images": np.zeros((6, 8, 9), np.float32)}, "train images are float32"),
        ({"test_images": np.zeros((3, 8, 9, 4), np.uint8)}, "test images are uint8"),
        ({"test_labels": np.arange(4)}, "test labels are int64 .4,. for 3 images"),
        ({"train_labels": np.ones(6)}, "train labels are float64"),
        ({"train_labels": np.full(6, -1)}, "empty or negative"),
    ],
)
def test_wrong_arrays(tmp_path, target, changes, words):
    np.savez(tmp_path / "set.npz", **arrays(**changes))
    with pytest.raises(UserError, match=rf"set\.npz: .*{words}|set\.npz: {words}"):
        prepare("toy", array_config(tmp_path / "set.npz"), target)


def test_files_that_are_no_npz(tmp_path, target):
    path = tmp_path / "set.npz"
    with pytest.raises(UserError, match=r"set\.npz is missing"):
        prepare("toy", array_config(path), target)
    path.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(UserError, match=r"set\.npz cannot be read"):
        prepare("toy", array_config(path), target)
    np.savez(path, other=np.zeros(3))
    with pytest.raises(UserError, match="holds no 'train_images'"):
        prepare("toy", array_config(path), target)


def write_idx(path, array):
    raw = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    raw += array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def test_idx(tmp_path, target):
    folder = tmp_path / "idx"
    folder.mkdir()
    content = arrays(test_images=np.zeros((3, 8, 9), np.uint8))
    for split, stem in (("train", "train"), ("test", "t10k")):
        write_idx(folder / f"{stem}-images-idx3-ubyte.gz", content[f"{split}_images"])
        write_idx(folder / f"{stem}-labels-idx1-ubyte", content[f"{split}_labels"])
    about = prepare("mnist", array_config(folder), target)
    assert about["counts"] == {"classes": 3, "train": 6, "test": 3, "skipped": 0}
    assert len(about["inputs"]) == 4
    np.testing.assert_array_equal(
        read_idx(folder / "train-images-idx3-ubyte.gz"), content["train_images"]
    )
    packed = folder / "train-images-idx3-ubyte.gz"
    packed.write_bytes(packed.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz cannot be unpacked"):
        prepare("mnist", array_config(folder), target)
    packed.unlink()
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz is missing"):
        prepare("mnist", array_config(folder), target)


@pytest.mark.parametrize("raw", [b"", b"\0\0\x08", b"\0\0\x0d\x01", b"\0\0\x08\x01\0\0\0\x03ab"])
def test_bytes_that_are_no_idx(tmp_path, raw):
    (tmp_path / "x").write_bytes(raw)
    with pytest.raises(UserError, match="fetch it again"):
        read_idx(tmp_path / "x")


def test_digits(target):
    about = prepare("digits", array_config("digits"), target)
    assert about["counts"] == {"classes": 10, "train": 1198, "test": 599, "skipped": 0}
    assert min(about["images_per_class"]["test"].values()) >= 58
    assert about["source"]["path"] == "images.npz"


def shot_config(cuts, gap=0):
    return ShotLabels(kind="shots", dataset="set", cuts=cuts, gap=gap, resize=32, crop=32)


@pytest.fixture
def videos(make_frames):
    return {"run": make_frames("run", 10), "walk": make_frames("walk", 41)}


def shot_frames(target, split):
    labels, files = read_list(target.parent / f"{split}.txt")
    found = {}
    for label, file in zip(labels, files, strict=True):
        found.setdefault(label, []).append((file.split("/")[0], int(file[-10:-4])))
    return found


def test_shots(videos, target):
    about = prepare("shots", shot_config({"walk": [0.4, 1.0]}), target, videos)
    assert about["classes"] == ["run_0", "walk_0", "walk_1", "walk_2"]
    expected = {0: ("run", 0, 5, 5, 10), 1: ("walk", 0, 5, 5, 10)}
    expected |= {2: ("walk", 10, 18, 18, 25), 3: ("walk", 25, 33, 33, 41)}
    for label, (video, *bounds) in expected.items():
        for split, (start, stop) in (("train", bounds[:2]), ("test", bounds[2:])):
            assert shot_frames(target, split)[label] == [(video, n) for n in range(start, stop)]
    assert "near duplicates" in about["warnings"][0]


def test_a_gap_between_the_halves(videos, target):
    prepare("shots", shot_config({}, gap=4), target, videos)
    assert shot_frames(target, "train")[0] == [("run", n) for n in range(3)]
    assert shot_frames(target, "test")[0] == [("run", n) for n in range(7, 10)]


@pytest.mark.parametrize(
    ("cuts", "gap", "words"),
    [
        ({"walk": [1.0, 0.5]}, 0, r"labelled\.shots\.cuts\.walk is \[1\.0, 0\.5\]"),
        ({"walk": [0.5, 0.5]}, 0, "rising seconds"),
        ({"walk": [99.0]}, 0, "rising seconds"),
        ({"walk": [0.04]}, 0, "shot 0 of 'walk' has 1 frames"),
        ({}, 9, "shot 0 of 'run' has 10 frames, too few .* gap of 9"),
        ({"swim": [1.0]}, 0, "'swim' is no video"),
    ],
)
def test_wrong_cuts(videos, target, cuts, gap, words):
    with pytest.raises(UserError, match=words):
        prepare("shots", shot_config(cuts, gap), target, videos)


def test_shots_without_frames(target):
    with pytest.raises(UserError, match="no frames of the data set 'set'"):
        prepare("shots", shot_config({}), target)
