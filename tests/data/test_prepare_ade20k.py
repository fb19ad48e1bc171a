"""ADE20K in miniature and generated: what comes out, and what is said of each fault."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.miniature import mask_sets
from timewalk.config import ADE20K, ADE20KShapes
from timewalk.data.prepare import archive, prepare
from timewalk.data.prepare.ade20k import CLASSES, FOLDER
from timewalk.data.segmented import MASKS, open_segmented, read_classes
from timewalk.errors import UserError


@pytest.fixture
def target(tmp_path):
    return tmp_path / "datasets" / "set" / "manifest.json"


@pytest.fixture
def ade(tmp_path):
    root = tmp_path / FOLDER
    mask_sets.segmentation_folder(root)
    return root


def index(root, target, **changes):
    return prepare("set", ADE20K(kind="ade20k", root=str(root), **changes), target)


def shapes(target, **changes):
    small = {"train": 6, "test": 4, "height": 40, "width": 56}
    return prepare("set", ADE20KShapes(kind="ade20k_shapes", **(small | changes)), target)


def info(classes):
    rows = [f"{n}\t0.1\t10\t2\t{name}, another name" for n, name in enumerate(classes, start=1)]
    return "\n".join(["Idx\tRatio\tTrain\tVal\tName   ", *rows, ""])


def read(target, split):
    frames = open_segmented(target, split).frames
    return np.stack([read_classes(mask, lookup) for _, mask, lookup in frames])


def test_the_classes_are_the_challenge_s():
    assert (len(CLASSES), len(set(CLASSES))) == (150, 150)
    known = {1: "wall", 13: "person", 21: "car", 44: "signboard", 91: "airplane", 150: "flag"}
    assert {number: CLASSES[number - 1] for number in known} == known


@pytest.mark.parametrize("above", [False, True])
def test_the_challenge_s_layout(ade, target, above):
    about = index(ade.parent if above else ade, target)
    assert (about["kind"], about["layout"], about["classes"]) == (MASKS, "ade20k", CLASSES)
    assert about["counts"] == {"train": 3, "test": 2, "classes": 150}
    assert [warning.split(":")[0] for warning in about["warnings"]] == [
        "the train split has 3 images, the published one 20210",
        "the test split has 2 images, the published one 2000",
    ]
    opened = open_segmented(target, "test")
    assert (opened.title, opened.background, len(opened.classes)) == (
        "ade20k-validation",
        False,
        150,
    )
    ids = np.asarray(Image.open(ade / "annotations/validation/v_1.png"))
    expected = np.where((ids == 0) | (ids == 255), 255, ids.astype(int) - 1)
    np.testing.assert_array_equal(read(target, "test")[0], expected)
    assert set(np.unique(expected)) == {0, 3, 255}


def test_the_list_of_objects_is_checked(ade, target):
    (ade / "objectInfo150.txt").write_text(info(CLASSES))
    assert list(index(ade, target)["inputs"]) == ["objectInfo150.txt"]
    (ade / "objectInfo150.txt").write_text(info(["wall", "house", *CLASSES[2:]]))
    with pytest.raises(
        UserError, match=r"objectInfo150.txt has 'house, another name' for the id 2"
    ):
        index(ade, target)
    (ade / "objectInfo150.txt").write_text(info(CLASSES[:149]))
    with pytest.raises(UserError, match="has 'no class' for the id 150, not 'flag'"):
        index(ade, target)
    (ade / "objectInfo150.txt").write_text(info([*CLASSES, "kite"]))
    with pytest.raises(UserError, match="has 'kite, another name' for the id 151, not 'no class'"):
        index(ade, target)


@pytest.mark.parametrize(
    "names",
    [
        "television, television receiver, television set, tv",
        "television;television receiver;television set",
        "tv ,television receiver",
    ],
)
def test_any_of_a_class_s_names_will_do(ade, target, names):
    rows = [*CLASSES]
    rows[89] = names
    (ade / "objectInfo150.txt").write_text(info(rows))
    assert index(ade, target)["classes"] == CLASSES
    rows[89] = "television, tele vision receiver"
    (ade / "objectInfo150.txt").write_text(info(rows))
    with pytest.raises(UserError, match="for the id 90, not 'television receiver'; restore"):
        index(ade, target)


def test_a_list_of_objects_that_is_no_text(ade, target):
    (ade / "objectInfo150.txt").write_bytes(info(CLASSES).encode("utf-16"))
    with pytest.raises(UserError, match=r"objectInfo150.txt is no UTF-8 text; restore the publi"):
        index(ade, target)


def test_one_image_is_told_as_one(ade, target):
    for kind, suffix in (("images", "jpg"), ("annotations", "png")):
        (ade / kind / "validation" / f"v_2.{suffix}").unlink()
    assert (
        "the test split has 1 image, the published one 2000: its scores are not comparable"
    ) in index(ade, target)["warnings"]


def test_an_image_without_annotation(ade, target):
    (ade / "annotations/training/a_2.png").unlink()
    with pytest.raises(
        UserError, match=r"a_2.jpg has no mask annotations/training/a_2.png: restore"
    ):
        index(ade, target)


def test_an_annotation_of_another_size(ade, target):
    Image.new("L", (50, 40)).save(ade / "annotations/training/a_2.png")
    with pytest.raises(UserError, match=r"annotations/training/a_2.png is 50x40 pixels, its image"):
        index(ade, target)


def test_an_id_beyond_the_list(ade, target):
    Image.new("L", (56, 40), 151).save(ade / "annotations/validation/v_1.png")
    with pytest.raises(UserError, match=r"v_1.png holds the id 151, but classes have the ids 1 to"):
        index(ade, target)


def test_colours_are_the_full_set_s(ade, target):
    Image.new("RGB", (56, 40)).save(ade / "annotations/validation/v_1.png")
    with pytest.raises(
        UserError,
        match=r"holds colours \(mode RGB\) as ADE20K's full set does, not the ids of ADEChallenge",
    ):
        index(ade, target)


@pytest.mark.parametrize("mark", ["index_ade20k.pkl", "images/ADE"])
@pytest.mark.parametrize("inside", [".", FOLDER])
def test_the_full_set_is_told_from_the_challenge_s(tmp_path, target, mark, inside):
    (tmp_path / "full" / inside / mark).mkdir(parents=True)
    with pytest.raises(UserError, match=r"set.root: .* is ADE20K's full set, whose annotations"):
        index(tmp_path / "full", target)


def test_a_missing_set(tmp_path, target):
    with pytest.raises(UserError, match=r"there is no folder .*; get ADE20K's scene parsing from"):
        index(tmp_path / "nowhere", target)


def test_the_archive_is_fetched(tmp_path, ade, target, monkeypatch):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for path in sorted(ade.rglob("*.*g")):
            file.write(path, path.relative_to(tmp_path))
    asked = []

    def fetch(url, part, *_):
        asked.append(url)
        part.write_bytes(packed.getvalue())

    monkeypatch.setattr(archive, "fetch_http", fetch)
    about = index(tmp_path / "fetched", target, url="official")
    assert asked == ["http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"]
    assert list(about["inputs"]) == ["ADEChallengeData2016.zip"]
    assert about["counts"]["train"] == 3
    assert "fetched without a known digest" in about["warnings"][0]


def test_generated_scenes_are_in_the_challenge_s_layout(target):
    about = shapes(target)
    root = target.parent / FOLDER
    files = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*.*g"))]
    stems = {
        "training": [f"ADE_train_{n:08d}" for n in range(1, 7)],
        "validation": [f"ADE_val_{n:08d}" for n in range(1, 5)],
    }
    assert files == [
        f"{kind}/{part}/{stem}.{suffix}"
        for kind, suffix in (("annotations", "png"), ("images", "jpg"))
        for part in stems
        for stem in stems[part]
    ]
    assert about["classes"] == ["background", "disc", "box", "triangle", "ring"]
    assert about["counts"] == {"train": 6, "test": 4, "classes": 5}
    opened = open_segmented(target, "train")
    assert (opened.title, opened.background) == ("ade20k_shapes-training", False)
    # The very same tree is read as the published one.
    assert index(target.parent, target.parent.parent / "m.json")["digest"] == about["digest"]


def test_generated_scenes_hold_every_class_and_sometimes_void(target):
    shapes(target, train=40, classes=6)
    found = read(target, "train")
    assert set(np.unique(found)) == {*range(7), 255}
    with_void = (found == 255).any(axis=(1, 2)).sum()
    assert 10 <= with_void <= 30
    assert (found == 0).mean() > 0.5


def test_generated_scenes_depend_on_the_seed_alone(target, tmp_path):
    first = shapes(target)["digest"]
    assert shapes(tmp_path / "other" / "manifest.json")["digest"] == first
    assert shapes(target, seed=1)["digest"] != first
    before = (target.parent / FOLDER / "images/validation/ADE_val_00000001.jpg").read_bytes()
    shapes(target, seed=1, train=2)
    assert (
        target.parent / FOLDER / "images/validation/ADE_val_00000001.jpg"
    ).read_bytes() == before


def test_a_folder_that_was_not_generated_stays(ade, target):
    target.parent.mkdir(parents=True)
    ade.rename(target.parent / FOLDER)
    with pytest.raises(UserError, match="exists and was not generated"):
        shapes(target)
    assert (target.parent / FOLDER / "images/training/a_1.jpg").is_file()


def test_the_manifest_says_what_zero_is(ade, target):
    index(ade, target)
    about = json.loads(target.read_text())
    assert (about["zero_is_void"], about["parts"]) == (
        True,
        {"train": "training", "test": "validation"},
    )
