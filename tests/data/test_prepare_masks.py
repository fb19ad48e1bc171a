"""Still images with masks in miniature: what comes out, and what is said of each fault."""

import hashlib
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from tests.miniature import mask_sets
from timewalk.artefacts import read_json
from timewalk.check import check
from timewalk.cli import main
from timewalk.config import VOC2012, SegmentationFolder
from timewalk.data.prepare import archive, prepare
from timewalk.data.segmented import MASKS, open_segmented, read_classes
from timewalk.errors import UserError

LAYOUTS = ("official", "packaged")


@pytest.fixture
def target(tmp_path):
    return tmp_path / "datasets" / "set" / "manifest.json"


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "VOC"
    mask_sets.voc2012(root)
    return root


@pytest.fixture
def ade(tmp_path):
    root = tmp_path / "ADE"
    mask_sets.segmentation_folder(root)
    return root


def index_voc(root, target, **changes):
    return prepare("set", VOC2012(kind="voc2012", root=str(root), **changes), target)


def index_folder(root, target, **changes):
    config = SegmentationFolder(kind="segmentation_folder", root=str(root), **changes)
    return prepare("set", config, target)


def rows(target, split):
    lines = (target.parent / f"{split}.txt").read_text().splitlines()
    return [tuple(line.split("\t")) for line in lines]


def tree(root):
    """Digest of every path below a folder, with content and time of change."""
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        digest.update(f"{path}\t{path.stat().st_mtime_ns}\t".encode() + content)
    return digest.hexdigest()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_voc2012(tmp_path, target, layout):
    root = tmp_path / "VOC"
    made = mask_sets.voc2012(root, layout)
    before = tree(root)
    about = index_voc(root, target)
    assert tree(root) == before
    assert about == read_json(target)
    assert about["kind"] == MASKS
    assert about["counts"] == {"train": 3, "test": 2, "classes": 21}
    assert (about["name"], about["layout"], about["void"]) == ("set", "voc2012", True)
    assert (about["classes"][0], about["classes"][15]) == ("background", "person")
    assert about["warnings"] == []
    images = "JPEGImages" if layout == "official" else "images"
    assert rows(target, "train")[2] == (
        f"{images}/2009_01.jpg",
        "SegmentationClassAug/2009_01.png",
    )
    assert rows(target, "test")[0] == (f"{images}/2008_01.jpg", "SegmentationClass/2008_01.png")
    for split in ("train", "test"):
        opened = open_segmented(target, split)
        assert opened.classes == tuple(about["classes"])
        for clip in opened.clips:
            found = read_classes(clip.masks[0], clip.lookup)
            np.testing.assert_array_equal(found, made[clip.name])


def test_the_official_archive_has_no_augmented_masks(tmp_path, target):
    root = tmp_path / "VOCdevkit" / "VOC2012"
    mask_sets.voc2012(root, augmented=False)
    about = index_voc(tmp_path, target, train="train")
    assert about["counts"]["train"] == 2
    assert rows(target, "train")[0] == ("JPEGImages/2007_01.jpg", "SegmentationClass/2007_01.png")
    assert list(about["inputs"]) == [
        "ImageSets/Segmentation/train.txt",
        "ImageSets/Segmentation/val.txt",
    ]
    with pytest.raises(UserError, match=r"SegmentationClassAug is missing, which the list 'trai"):
        index_voc(tmp_path, target)


def test_both_layouts_take_training_masks_from_the_augmented_folder(tmp_path, target):
    for layout in LAYOUTS:
        mask_sets.voc2012(tmp_path / layout, layout)
        index_voc(tmp_path / layout, target, train="train")
        assert [mask for _, mask in rows(target, "train")] == [
            "SegmentationClassAug/2007_01.png",
            "SegmentationClassAug/2007_02.png",
        ]


def test_an_archive_is_fetched_and_its_digest_recorded(tmp_path, target, monkeypatch):
    mask_sets.voc2012(tmp_path / "made" / "VOCdevkit" / "VOC2012", augmented=False)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as file:
        file.add(tmp_path / "made" / "VOCdevkit", "VOCdevkit")
    asked = []

    def fetch(url, part, retries, timeout_s, remedy):
        asked.append(url)
        part.write_bytes(packed.getvalue())

    monkeypatch.setattr(archive, "fetch_http", fetch)
    about = index_voc(tmp_path / "new", target, train="train", url="official")
    assert [url.rsplit("/", 1)[1] for url in asked] == ["VOCtrainval_11-May-2012.tar"]
    digest = hashlib.sha256(packed.getvalue()).hexdigest()
    assert about["inputs"]["VOCtrainval_11-May-2012.tar"] == digest
    assert about["warnings"] == [
        "VOCtrainval_11-May-2012.tar was fetched without a known digest; it has sha256 " + digest
    ]
    index_voc(tmp_path / "new", target, train="train", url="official")
    assert len(asked) == 1


def test_the_official_archive_is_not_fetched_for_trainaug(tmp_path, target, monkeypatch):
    monkeypatch.setattr(archive, "fetch_http", lambda *words: pytest.fail("fetched"))
    with pytest.raises(
        UserError,
        match=r"set\.url: the official archive holds neither the list 'trainaug' nor its masks; "
        "set the key 'train' to 'train'",
    ):
        index_voc(tmp_path / "new", target, url="official")
    assert not (tmp_path / "new").exists()
    with pytest.raises(
        UserError, match="set the key 'url' to 'official' and the key 'train' to 'train', or corr"
    ):
        index_voc(tmp_path / "new", target)


def test_a_digest_needs_an_address():
    raw = {"kind": "voc2012", "root": "x", "sha256": "0" * 64}
    with pytest.raises(UserError, match="has `sha256` but no `url` that it could belong to"):
        check(VOC2012, raw)


def test_a_root_without_voc(tmp_path, target):
    with pytest.raises(
        UserError,
        match=r"set\.root: there is no folder .*nowhere; get Pascal VOC 2012 from .* set the key",
    ):
        index_voc(tmp_path / "nowhere", target)
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match=r"holds no JPEGImages; get Pascal VOC 2012 from"):
        index_voc(tmp_path, target)


def test_faults_of_the_lists_of_voc(voc, target):
    lists = voc / "ImageSets" / "Segmentation"
    (lists / "val.txt").write_text("2008_01\n2007_01\n")
    assert index_voc(voc, target)["warnings"] == [
        "1 images are in both splits: JPEGImages/2007_01.jpg for one"
    ]
    (lists / "val.txt").write_text("2008_01\n2008_09\n")
    with pytest.raises(
        UserError,
        match=r"JPEGImages/2008_09\.jpg is missing; SegmentationClass/2008_09\.png is missing: re",
    ):
        index_voc(voc, target)
    (lists / "val.txt").write_text("2008_01\n2008_01\n")
    with pytest.raises(UserError, match=r"val\.txt names '2008_01' twice"):
        index_voc(voc, target)
    (lists / "val.txt").write_text("\n")
    with pytest.raises(UserError, match=r"val\.txt names no image"):
        index_voc(voc, target)
    (lists / "trainaug.txt").unlink()
    with pytest.raises(
        UserError, match=r"trainaug\.txt is missing \(there are: train, val\); .* correct 'train'"
    ):
        index_voc(voc, target)
    with pytest.raises(UserError, match="test"):
        check(VOC2012, {"kind": "voc2012", "root": "x", "test": "test"})


@pytest.mark.parametrize("slash", ["/", ""])
def test_lists_of_paths_of_images_and_masks(voc, target, slash):
    plain = index_voc(voc, target)
    for split in ("trainaug", "val"):
        listed = voc / "ImageSets" / "Segmentation" / f"{split}.txt"
        listed.write_text(
            "".join(
                f"{slash}JPEGImages/{stem}.jpg {slash}SegmentationClassAug/{stem}.png\n"
                for stem in listed.read_text().split()
            )
        )
    about = index_voc(voc, target)
    assert about["digest"] == plain["digest"]
    assert rows(target, "test")[0] == ("JPEGImages/2008_01.jpg", "SegmentationClass/2008_01.png")


@pytest.mark.parametrize(
    "line", ["/JPEGImages/2008_01.jpg /SegmentationClassAug/2008_02.png", "2008_01  1"]
)
def test_a_line_of_voc_names_one_image(voc, target, line):
    listed = voc / "ImageSets" / "Segmentation" / "val.txt"
    listed.write_text(f"{line}\n")
    with pytest.raises(UserError, match=f"the line '{line}' of .*val.txt names two images, or the"):
        index_voc(voc, target)
    listed.write_text("2008_01\n/JPEGImages/2008_01.jpg\n")
    with pytest.raises(UserError, match=r"/2008_01\.jpg' of .* or the image of another line; "):
        index_voc(voc, target)


def colours(path):
    Image.effect_noise((56, 40), 80).convert("RGB").save(path)


def one_id(number):
    def spoil(path):
        ids = np.array(Image.open(path))
        ids[0, 5] = number
        Image.fromarray(ids).save(path)

    return spoil


FAULTS = {
    "missing image": (
        "JPEGImages/2008_02.jpg",
        lambda path: path.unlink(),
        r"JPEGImages/2008_02\.jpg is missing",
    ),
    "missing mask": (
        "SegmentationClass/2008_02.png",
        lambda path: path.unlink(),
        r"SegmentationClass/2008_02\.png is missing",
    ),
    "mask of colours": (
        "SegmentationClass/2008_02.png",
        colours,
        r"2008_02\.png holds colours \(mode RGB\), not ids: save it as a palette or gray PNG",
    ),
    "mask of deep gray": (
        "SegmentationClass/2008_02.png",
        lambda path: Image.fromarray(np.zeros((40, 56), np.uint16)).save(path),
        r"2008_02\.png holds colours \(mode I;16\), not ids",
    ),
    "mask of another size": (
        "SegmentationClass/2008_02.png",
        lambda path: Image.new("L", (56, 41)).save(path),
        r"2008_02\.png is 56x41 pixels, its image JPEGImages/2008_02\.jpg 56x40",
    ),
    "empty mask": (
        "SegmentationClass/2008_02.png",
        lambda path: path.write_bytes(b""),
        r"2008_02\.png cannot be read \(no image\)",
    ),
    "part of a mask": (
        "SegmentationClass/2008_02.png",
        lambda path: path.write_bytes(path.read_bytes()[:-40]),
        r"2008_02\.png cannot be read \(",
    ),
    "part of an image": (
        "JPEGImages/2008_02.jpg",
        lambda path: path.write_bytes(path.read_bytes()[:-200]),
        r"2008_02\.jpg cannot be read \(",
    ),
    "id beyond the classes": (
        "SegmentationClass/2008_02.png",
        one_id(21),
        r"2008_02\.png holds the id 21, but classes have the ids 0 to 20, void 255",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_voc(voc, target, fault):
    place, spoil, message = FAULTS[fault]
    spoil(voc / place)
    with pytest.raises(UserError, match=message) as error:
        index_voc(voc, target)
    assert str(error.value).startswith(f"labelled.set: in {voc}, ")
    assert str(error.value).endswith(": restore the published files.")
    assert not target.exists()


def test_many_faults_are_counted(voc, target):
    for path in (voc / "SegmentationClassAug").iterdir():
        path.unlink()
    (voc / "SegmentationClass" / "2008_02.png").unlink()
    with pytest.raises(UserError, match=r"; and 1 fault more: restore"):
        index_voc(voc, target)


def test_the_digest_follows_every_file(voc, target):
    digests = {index_voc(voc, target)["digest"]}
    assert index_voc(voc, target)["digest"] in digests
    one_id(3)(voc / "SegmentationClass" / "2008_02.png")
    digests.add(index_voc(voc, target)["digest"])
    colours(voc / "JPEGImages" / "2008_01.jpg")
    digests.add(index_voc(voc, target)["digest"])
    digests.add(index_voc(voc, target, train="train")["digest"])
    assert len(digests) == 4


def test_segmentation_folder(tmp_path, ade, target):
    made = mask_sets.segmentation_folder(tmp_path / "again")
    before = tree(ade)
    about = index_folder(ade, target)
    assert tree(ade) == before
    assert about["counts"] == {"train": 3, "test": 2, "classes": 4}
    assert about["layout"] == "segmentation_folder"
    assert about["classes"] == ["class_0", "class_1", "class_2", "class_3"]
    assert rows(target, "test")[1] == (
        "images/validation/v_2.jpg",
        "annotations/validation/v_2.png",
    )
    opened = open_segmented(target, "test")
    assert opened.split == "validation"
    for clip in opened.clips:
        found = read_classes(clip.masks[0], clip.lookup)
        stored = made[clip.name]
        np.testing.assert_array_equal(found == 255, (stored == 0) | (stored == 255))
        np.testing.assert_array_equal(found[found < 255], stored[found < 255] - 1)


def test_id_zero_as_a_class(ade, target):
    about = index_folder(ade, target, zero_is_void=False)
    assert about["counts"]["classes"] == 5
    clip = open_segmented(target).clips[0]
    assert set(np.unique(read_classes(clip.masks[0], clip.lookup))) == {0, 1, 4, 255}


def test_classes_by_number_and_by_name(tmp_path, ade, target):
    assert len(index_folder(ade, target, classes=150)["classes"]) == 150
    with pytest.raises(
        UserError, match=r"holds the id 4, but classes have the ids 1 to 3, void 255"
    ):
        index_folder(ade, target, classes=3)
    listed = tmp_path / "names.txt"
    listed.write_text("wall\nsky\ntree\nroad\n")
    about = index_folder(ade, target, classes=str(listed))
    assert about["classes"] == ["wall", "sky", "tree", "road"]
    assert list(about["inputs"]) == ["names.txt"]
    listed.write_text("wall\nwall\n")
    with pytest.raises(UserError, match=r"names\.txt names 'wall' twice"):
        index_folder(ade, target, classes=str(listed))
    listed.write_text("".join(f"{number}\n" for number in range(254)))
    with pytest.raises(UserError, match=r"names 254 classes, but masks have ids for 253 at most"):
        index_folder(ade, target, classes=str(listed))
    listed.unlink()
    with pytest.raises(UserError, match=r"names\.txt is missing; restore it or correct 'classes'"):
        index_folder(ade, target, classes=str(listed))
    raw = {"kind": "segmentation_folder", "root": "x", "classes": 0}
    with pytest.raises(UserError, match="classes"):
        check(SegmentationFolder, raw)


def test_a_table_is_no_list_of_classes(tmp_path, ade, target):
    listed = tmp_path / "names.txt"
    listed.write_text("Idx\tName\n1\twall\n")
    with pytest.raises(UserError, match=r"classes: .*names\.txt holds a table, such as 'Idx"):
        index_folder(ade, target, classes=str(listed))


def test_true_is_no_number_of_classes():
    with pytest.raises(UserError, match=r"classes.* is True: Input should be a valid integer"):
        check(SegmentationFolder, {"kind": "segmentation_folder", "root": "x", "classes": True})


@pytest.mark.parametrize("key", ["images", "masks", "train", "test"])
@pytest.mark.parametrize("place", ["/data/images", "../images", "a/../../b"])
def test_folders_lie_below_the_root(key, place):
    raw = {"kind": "segmentation_folder", "root": "x", key: place}
    with pytest.raises(UserError, match=f"{key} is '{place}': name a folder below `root`, neither"):
        check(SegmentationFolder, raw)


def test_linked_sub_folders_are_followed(tmp_path, ade, target):
    before = index_folder(ade, target)
    for kind in ("images", "annotations"):
        folder, other = ade / kind / "training", tmp_path / "other" / kind
        other.mkdir(parents=True)
        for path in list(folder.glob("a_1.*")):
            path.rename(other / path.name)
        (folder / "b").symlink_to(other)
        (other / "up").symlink_to(folder)
    about = index_folder(ade, target)
    assert about["counts"] == before["counts"]
    assert rows(target, "train")[2] == (
        "images/training/b/a_1.jpg",
        "annotations/training/b/a_1.png",
    )


def test_images_and_masks_that_do_not_pair(ade, target):
    (ade / "annotations/validation/v_1.png").rename(ade / "annotations/validation/v_9.png")
    with pytest.raises(
        UserError,
        match=r"images/validation/v_1\.jpg has no mask annotations/validation/v_1\.png; "
        r"annotations/validation/v_9\.png has no image images/validation/v_9\.jpg: restore",
    ):
        index_folder(ade, target)
    Image.new("RGB", (56, 40)).save(ade / "images/training/a_1.png")
    with pytest.raises(UserError, match=r"images/training/a_1\.png has the name of a_1\.jpg"):
        index_folder(ade, target)


def test_sub_folders_belong_to_the_name(ade, target):
    for kind in ("images", "annotations"):
        folder = ade / kind / "training"
        (folder / "b").mkdir()
        for path in list(folder.glob("a_1.*")):
            path.rename(folder / "b" / path.name)
    index_folder(ade, target)
    assert rows(target, "train")[2] == (
        "images/training/b/a_1.jpg",
        "annotations/training/b/a_1.png",
    )


def test_missing_and_empty_folders(tmp_path, ade, target):
    with pytest.raises(
        UserError, match=r"there is no folder .*/images/val; correct the keys 'root', 'images' and"
    ):
        index_folder(ade, target, test="val")
    for path in (ade / "annotations" / "validation").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"annotations/validation holds no image; images/valid"):
        index_folder(ade, target)


def test_masks_of_void_alone_have_no_classes(ade, target):
    for path in ade.rglob("annotations/*/*.png"):
        Image.new("L", (56, 40)).save(path)
    with pytest.raises(UserError, match="masks hold no class, only void"):
        index_folder(ade, target)
    assert index_folder(ade, target, classes=4)["counts"]["classes"] == 4


def test_ids_that_are_never_a_class(ade, target):
    one_id(254)(ade / "annotations" / "training" / "a_1.png")
    with pytest.raises(UserError, match="holds the id 254, but classes have the ids 1 to 253"):
        index_folder(ade, target)


def test_a_name_that_a_list_cannot_hold(ade, target):
    for kind, suffix in (("images", "jpg"), ("annotations", "png")):
        folder = ade / kind / "training"
        (folder / f"a_1.{suffix}").rename(folder / f"a\t1.{suffix}")
    with pytest.raises(UserError, match="has a line break or a tab in its names; rename"):
        index_folder(ade, target)


def test_from_the_command_line(voc, ade, target, capsys):
    assert main(["prepare", "voc2012", str(target), "--root", str(voc)]) == 0
    assert read_json(target)["counts"]["train"] == 3
    assert main(["prepare", "segmentation_folder", str(target), "--root", str(ade)]) == 0
    assert read_json(target)["layout"] == "segmentation_folder"
    assert main(["prepare", "voc2012", str(target), "--root", str(voc), "--subset", "val"]) == 1
    assert "subset" in capsys.readouterr().err
    settings = json.dumps({"kind": "voc2012", "root": str(voc), "train": "train"})
    assert main(["prepare", "mine", str(target), "--settings", settings]) == 0
    assert read_json(target)["name"] == "mine"
