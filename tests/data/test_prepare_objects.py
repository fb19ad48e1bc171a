"""COCO in miniature: what comes out, and what is said of each fault."""

import json
import zipfile

import numpy as np
import pytest
from PIL import Image, ImageFile

from timewalk.artefacts import read_json
from timewalk.check import check
from timewalk.config import COCO, COCOShapes
from timewalk.data.generated_coco import write_coco
from timewalk.data.object_masks import mask_to_runs
from timewalk.data.objects import OBJECTS, LabelledObjects
from timewalk.data.prepare import archive, prepare
from timewalk.errors import UserError

SHAPES = COCOShapes(kind="coco_shapes", train=6, test=4, height=32, width=48, objects=2)
VAL = "annotations/instances_val2017.json"


@pytest.fixture
def target(tmp_path):
    return tmp_path / "datasets" / "set" / "manifest.json"


@pytest.fixture
def root(tmp_path):
    write_coco(tmp_path / "COCO", SHAPES)
    return tmp_path / "COCO"


def index(root, target, **changes):
    return prepare("set", COCO(kind="coco", root=str(root), **changes), target)


@pytest.fixture
def change(root):
    """Return a function that changes the content of a file of annotations."""

    def apply(how, split="val"):
        path = root / "annotations" / f"instances_{split}2017.json"
        content = read_json(path)
        how(content)
        path.write_text(json.dumps(content))

    return apply


def refused(root, target):
    with pytest.raises(UserError) as error:
        index(root, target)
    assert not target.exists()
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_set_as_published(root, target):
    about = index(root, target)
    assert (about["kind"], about["layout"]) == (OBJECTS, "coco")
    assert about["classes"] == ["disc", "box", "triangle", "ring"]
    assert about["category_ids"] == [1, 2, 4, 7]
    counts = about["counts"]
    # Of the training images the first has no object; the fourth's only one may be a crowd.
    assert counts["train"] == 6 - counts["train_images_not_trained_on"]
    assert counts["train_images"] == 6
    assert counts["train_without_objects"] == 1
    assert (counts["test"], counts["test_crowd"], counts["classes"]) == (4, 1, 4)
    assert sorted(about["inputs"]) == ["annotations/instances_train2017.json", VAL]
    assert read_json(target) == about


def test_another_set_than_the_published_one_is_a_warning(root, target):
    warnings = index(root, target)["warnings"]
    assert "4 classes were found; COCO 2017 has 80" in warnings
    assert (
        "4 images were found in val2017; COCO 2017 has 5000: scores on a part are not comparable"
        in warnings
    )
    assert sum("train2017; COCO 2017 has 118287" in warning for warning in warnings) == 1


def test_generated_ones_are_only_warned_of_what_is_not_trained_on(target):
    about = prepare("set", SHAPES, target)
    assert about["warnings"] == [
        "1 image has no object that can be trained on (train2017); it is not trained on"
    ]


def test_generated_ones_are_made_anew_but_nothing_of_ones_own_is_replaced(target):
    digest = prepare("set", SHAPES, target)["digest"]
    assert prepare("set", SHAPES, target)["digest"] == digest
    other = SHAPES.model_copy(update={"seed": 3})
    assert prepare("set", other, target)["digest"] != digest
    target.unlink()
    (target.parent / "COCO" / "generated.txt").unlink()
    with pytest.raises(UserError, match="COCO exists and was not generated; write the manifest"):
        prepare("set", SHAPES, target)


def test_the_digest_is_of_the_content(root, target):
    before = index(root, target)["digest"]
    assert index(root, target)["digest"] == before
    path = root / "val2017" / "000000000002.jpg"
    Image.open(path).save(path, quality=60)
    assert index(root, target)["digest"] != before


def test_rows_may_come_in_any_order(root, target, change):
    before = index(root, target)
    change(lambda content: content["images"].reverse())
    change(lambda content: content["categories"].reverse())
    change(lambda content: content["annotations"].reverse())
    after = index(root, target)
    assert after["classes"] == before["classes"]
    images = [image.image_id for image in LabelledObjects(target, "test")]
    assert images == [1, 2, 3, 4]


def test_the_folder_above(root, target, tmp_path):
    root.rename(tmp_path / "coco")
    assert index(tmp_path, target)["source"]["root"] == "../../coco"


def test_a_missing_set(tmp_path, target):
    message = refused(tmp_path / "none", target)
    assert message == (
        f"labelled.set.root: there is no folder {tmp_path / 'none'}; get COCO 2017 from "
        "https://cocodataset.org so that it holds train2017, val2017 and "
        "annotations/instances_{train,val}2017.json, or set the key 'url' to 'official', or "
        "correct the path."
    )
    (tmp_path / "none" / "train2017").mkdir(parents=True)
    assert "none holds no val2017; get COCO 2017" in refused(tmp_path / "none", target)


def test_the_official_archives(root, target, tmp_path, monkeypatch):
    def fetch(url, part, *_):
        folder = {"train2017.zip": "train2017", "val2017.zip": "val2017"}
        place = folder.get(url.rpartition("/")[2], "annotations")
        with zipfile.ZipFile(part, "w") as packed:
            for path in sorted((root / place).iterdir()):
                packed.write(path, f"{place}/{path.name}")

    monkeypatch.setattr(archive, "fetch_http", fetch)
    about = index(tmp_path / "fetched", target, url="official")
    assert len([file for file in about["inputs"] if file.endswith(".zip")]) == 3
    assert about["counts"]["test"] == 4


def test_a_missing_or_damaged_file_of_annotations(root, target):
    path = root / VAL
    path.write_text('{"images": [')
    assert f"labelled.set: {path} is not valid JSON (Expecting" in refused(root, target)
    path.write_bytes(b'{"images": "\xff"}')
    assert f"{path} is not valid JSON ('utf-" in refused(root, target)
    path.write_text("[]")
    assert f"{path} has no list 'images'; restore" in refused(root, target)
    path.unlink()
    assert refused(root, target) == f"labelled.set: {path} is missing; restore the published file."


@pytest.mark.parametrize("key", ["bbox", "area", "image_id", "category_id", "segmentation", "id"])
def test_a_row_without_what_it_needs(root, target, change, key):
    change(lambda content: content["annotations"][1].pop(key))
    place = f"row 1 of 'annotations' in {root / VAL} has no '{key}' of the right kind; restore"
    assert place in refused(root, target)


def test_a_class_beyond_the_list(root, target, change):
    change(lambda content: content["annotations"][0].update(category_id=91))
    assert refused(root, target) == (
        f"labelled.set: in {root}, annotation 1 of {VAL} has the category 91, which is not in the "
        "list of 4: restore the published files."
    )


def test_the_class_0_is_no_class(root, target, change):
    change(lambda content: content["annotations"][0].update(category_id=0))
    assert "has the category 0, which is not in the list of 4: restore" in refused(root, target)


def test_an_unknown_image_and_what_is_there_twice(root, target, change):
    change(lambda content: content["annotations"][0].update(image_id=99))
    message = refused(root, target)
    assert f"annotation 1 of {VAL} refers to the image 99, which is not listed" in message
    change(lambda content: content["annotations"][0].update(image_id=2, id=2))
    assert f"annotation 2 of {VAL} is there twice" in refused(root, target)
    change(lambda content: content["annotations"][0].update(id=1))
    change(lambda content: content["images"].append(content["images"][0]))
    assert f"{VAL} has the image 1 twice" in refused(root, target)
    change(lambda content: content["images"].pop())
    change(lambda content: content["categories"].append({"id": 7, "name": "loop"}))
    assert f"{VAL} has the category 7 twice" in refused(root, target)


def test_splits_of_different_classes(root, target, change):
    change(lambda content: content["categories"][0].update(name="circle"), "train")
    assert refused(root, target) == (
        f"labelled.set: the files in {root / 'annotations'} list different categories, 1 is "
        "'circle' for training and 'disc' in the test; restore the published files."
    )
    change(lambda content: content["categories"][0].update(name="disc"), "train")
    change(lambda content: content["categories"].append({"id": 9, "name": "loop"}))
    assert "categories, 9 is nothing for training and 'loop' in the test; restore" in refused(
        root, target
    )


def test_faulty_images(root, target, change):
    (root / "val2017" / "000000000001.jpg").unlink()
    (root / "val2017" / "000000000002.jpg").write_text("text")
    change(lambda content: content["images"][2].update(width=50))
    assert refused(root, target) == (
        f"labelled.set: in {root}, val2017/000000000001.jpg is missing; "
        "val2017/000000000002.jpg cannot be read (no image); val2017/000000000003.jpg is 48x32 "
        f"pixels, but 50x32 in {VAL}: restore the published files."
    )


@pytest.mark.parametrize("keep", [-2, 1000])
def test_an_image_that_breaks_off(root, target, keep):
    path = root / "train2017" / "000000000003.jpg"
    path.write_bytes(path.read_bytes()[:keep])
    message = "train2017/000000000003.jpg cannot be read (image file is truncated"
    assert message in refused(root, target)


def test_bytes_behind_an_image(root, target):
    for number, behind in ((1, 40), (2, 400)):
        path = root / "val2017" / f"{number:012d}.jpg"
        path.write_bytes(path.read_bytes() + b"\0" * behind)
    assert index(root, target)["counts"]["test"] > 0


def test_a_png_that_breaks_off(root, target, change):
    path = root / "val2017" / "000000000001.jpg"
    Image.open(path).save(path, format="PNG")
    index(root, target)
    target.unlink()
    path.write_bytes(path.read_bytes()[:-30])
    assert "val2017/000000000001.jpg cannot be read (" in refused(root, target)


def test_whole_images_are_not_decoded(root, target, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    assert index(root, target)["counts"]["test"] > 0


@pytest.mark.parametrize(
    "name", ["/etc/000000000001.jpg", "../val2017/000000000001.jpg", "a/../../b.jpg", "", ".",
             "a\\b.jpg", "a\0.jpg", "\ud800.jpg"],
)  # fmt: skip
def test_file_names_that_lead_elsewhere(root, target, change, name):
    change(lambda content: content["images"][0].update(file_name=name))
    assert refused(root, target) == (
        f"labelled.set: row 0 of 'images' in {root / VAL} has the file name {name!r}, which is no "
        "path below its folder; restore the published file."
    )


@pytest.mark.parametrize("name", ["000000000002.jpg", "./000000000002.jpg"])
def test_a_file_of_two_images(root, target, change, name):
    change(lambda content: content["images"][0].update(file_name=name))
    message = f"{VAL} names the file '000000000002.jpg' for 2 images"
    assert message in refused(root, target)


def test_annotations_that_are_nested_too_deep(root, target):
    path = root / VAL
    path.write_text('{"images": ' + "[" * 200_000 + "]" * 200_000 + "}")
    assert refused(root, target) == (
        f"labelled.set: {path} is nested too deep for annotations; restore the published file."
    )
    path.write_text('{"images": ' + "9" * 5000 + "}")
    assert f"{path} is not valid JSON (Exceeds the limit" in refused(root, target)


@pytest.mark.parametrize(
    ("key", "row", "what"),
    [
        ("images", {"height": 0}, "has a height or width that is not from 1 to 2147483647"),
        ("images", {"width": 10**12}, "has a height or width that is not from 1 to 2147483647"),
        ("images", {"width": True}, "has no 'width' of the right kind"),
        ("images", {"id": 10**30}, "has an 'id' of more than 64 bits"),
        ("annotations", {"id": -(10**30)}, "has an 'id' of more than 64 bits"),
        ("annotations", {"area": "9"}, "has no 'area' of the right kind"),
        ("annotations", {"area": False}, "has no 'area' of the right kind"),
        ("annotations", {"category_id": True}, "has no 'category_id' of the right kind"),
        ("annotations", {"category_id": 1.0}, "has no 'category_id' of the right kind"),
        ("categories", {"name": 3}, "has no 'name' of the right kind"),
    ],
)
def test_values_of_another_kind_or_size(root, target, change, key, row, what):
    change(lambda content: content[key][0].update(row))
    assert f"row 0 of '{key}' in {root / VAL} {what}; restore" in refused(root, target)


@pytest.mark.parametrize("mark", [2, -1, 0.5, 1.0, "0", "1", None, []])
def test_marks_of_crowds(root, target, change, mark):
    change(lambda content: content["annotations"][0].update(iscrowd=mark))
    what = f"annotation 1 of {VAL} has {mark!r} for 'iscrowd', which is 0 or 1"
    assert what in refused(root, target)


def test_marks_of_crowds_that_will_do(root, target, change):
    change(lambda content: content["annotations"][0].update(iscrowd=True))
    change(lambda content: content["annotations"][1].update(iscrowd=False))
    change(lambda content: content["annotations"][2].pop("iscrowd"))
    index(root, target)
    crowd = [mark for image in LabelledObjects(target, "test") for mark in image.crowd.tolist()]
    assert crowd[:3] == [True, False, False]


@pytest.mark.parametrize("area", [-1, -0.5, float("nan"), float("inf"), 1e300, 10**400])
def test_areas_that_cannot_be(root, target, change, area):
    change(lambda content: content["annotations"][0].update(area=area))
    what = f"annotation 1 of {VAL} has an area that is no number from 0 to 230400"
    assert what in refused(root, target)


@pytest.mark.parametrize(
    "box",
    [[1, 2, 3], [1, 2, 3, float("nan")], [1, 2, 3, "4"], [1, 2, 3, None], [1, 2, 3, True],
     [1, 2, 3, 10**400], [1e300, 2, 3, 4], [481, 2, 3, 4], [0, -480.5, 3, 4]],
)  # fmt: skip
def test_a_box_of_no_numbers(root, target, change, box):
    change(lambda content: content["annotations"][0].update(bbox=box))
    message = f"annotation 1 of {VAL} has a box that is not four numbers from -480 to 480"
    assert message in refused(root, target)


@pytest.mark.parametrize(
    "polygon",
    [[1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, float("inf")], 3, ["a"], ["1", "2"] * 3,
     [1, 2, 3, 4, 5, True], [1, 2, 3, 4, 5, 10**400], [1, 2, 3, 4, 5, 480.5], [[1, 2]] * 3],
)  # fmt: skip
def test_a_polygon_of_no_numbers(root, target, change, polygon):
    change(lambda content: content["annotations"][0].update(segmentation=[polygon]))
    message = f"annotation 1 of {VAL} has a polygon that is no list of x and y from -480 to 480"
    assert message in refused(root, target)


def test_a_flat_polygon_is_one_fault(root, target, change):
    change(lambda content: content["annotations"][0].update(segmentation=[1, 2, 9, 2, 5, 8]))
    assert refused(root, target) == (
        f"labelled.set: in {root}, annotation 1 of {VAL} has a polygon that is no list of x and y "
        "from -480 to 480: restore the published files."
    )


def test_corners_as_far_away_as_they_may_be(root, target, change):
    far = [[-480, -480.0, 480, 0, 0, 480]]
    change(lambda content: content["annotations"][0].update(segmentation=far))
    assert index(root, target)["counts"]["test"] > 0


@pytest.mark.parametrize(
    ("runs", "what"),
    [
        ({"counts": [10, 20], "size": [32, 48]}, "runs that do not fill its image of 48x32"),
        ({"counts": [1536], "size": [48, 32]}, "runs that do not fill its image of 48x32"),
        ({"counts": [1537, -1], "size": [32, 48]}, "runs that are no lengths"),
        ({"counts": "1~", "size": [32, 48]}, "runs that are no lengths"),
        ({"counts": [36.5, 1500], "size": [32, 48]}, "runs that are no lengths"),
        ({"counts": ["36", "1500"], "size": [32, 48]}, "runs that are no lengths"),
        ({"counts": [True, 1535], "size": [32, 48]}, "runs that are no lengths"),
        ({"counts": 1536, "size": [32, 48]}, "runs that are no lengths"),
        ({"counts": [10**400], "size": [32, 48]}, "runs that do not fill its image of 48x32"),
        ({"size": [32, 48]}, "runs that are no lengths"),
    ],
)
def test_faulty_runs(root, target, change, runs, what):
    change(lambda content: content["annotations"][0].update(segmentation=runs))
    assert f"annotation 1 of {VAL} has {what}" in refused(root, target)


def test_compressed_runs(root, target, change):
    official = pytest.importorskip("pycocotools.mask")
    mask = np.zeros((32, 48), np.uint8)
    mask[3:9, 20:31] = 1
    text = official.encode(np.asfortranarray(mask))["counts"].decode()
    runs = {"counts": text, "size": [32, 48]}
    change(lambda content: content["annotations"][0].update(segmentation=runs))
    index(root, target)
    (found,) = LabelledObjects(target, "test")[1].masks()[:1]
    assert mask_to_runs(found) == mask_to_runs(mask)


def unusual(content):
    """Leave one image, with everything that real annotations have."""
    triangle = [[1.0, 1.0, 9.0, 1.0, 1.0, 9.0]]
    rows = [
        {"bbox": [1, 1, 8, 8], "segmentation": [*triangle, [1.0, 1.0, 2.0, 2.0]]},
        {"bbox": [5, 5, 0, 4], "segmentation": triangle},
        {"bbox": [40, 20, 30, 30], "segmentation": triangle},
        {"bbox": [60, 20, 5, 5], "segmentation": triangle},
        {"bbox": [2, 2, 0.5, 3], "segmentation": triangle},
        {"bbox": [2, 2, 9, 9], "segmentation": []},
    ]
    content["images"] = content["images"][:1]
    content["annotations"] = [
        {"id": number, "image_id": 1, "category_id": 2, "area": 9, "iscrowd": 0, **row}
        for number, row in enumerate(rows)
    ]


def test_what_is_unusual_is_counted(root, target, change):
    for split in ("train", "val"):
        change(unusual, split)
    about = index(root, target)
    for split in ("train", "test"):
        counts = {key: about["counts"][f"{split}_{key}"] for key in ("objects", "empty_boxes")}
        assert counts == {"objects": 6, "empty_boxes": 1}
        # Not the fourth, of which nothing is inside.
        assert about["counts"][f"{split}_boxes_beyond_image"] == 1
        assert about["counts"][f"{split}_boxes_too_small"] == 2
        assert about["counts"][f"{split}_short_polygons"] == 1
        assert about["counts"][f"{split}_without_outline"] == 1
    warnings = about["warnings"]
    assert warnings == [
        "1 box is empty (train2017); it is not trained on",
        "1 box reaches beyond its image by more than a pixel (train2017); it is cut to the image "
        "in training",
        "2 boxes have less than a pixel of a side inside their images (train2017); they are not "
        "trained on",
        "1 polygon has fewer than three corners (train2017); it is not trained on",
        "1 object has no mask (train2017); it is not trained on",
        "1 box is empty (val2017); it is kept as it is",
        "1 box reaches beyond its image by more than a pixel (val2017); it is kept as it is",
        "2 boxes have less than a pixel of a side inside their images (val2017); they are kept as "
        "they are",
        "1 polygon has fewer than three corners (val2017); it is kept as it is",
        "1 object has no mask (val2017); it is kept as it is",
        "4 classes were found; COCO 2017 has 80",
        "1 image was found in train2017; COCO 2017 has 118287: scores on a part are not comparable",
        "1 image was found in val2017; COCO 2017 has 5000: scores on a part are not comparable",
    ]
    (image,) = LabelledObjects(target, "train")
    assert image.trainable.tolist() == [True, False, True, False, False, False]
    assert image.boxes[2].tolist() == [40, 20, 70, 50]
    assert image.masks()[0].sum() > 0
    assert image.masks()[5].sum() == 0


def test_nothing_to_train_on(root, target, change):
    change(lambda content: content.update(annotations=[]), "train")
    message = "instances_train2017.json has no image with an object to train on; restore"
    assert message in refused(root, target)
    change(lambda content: content.update(annotations=[], images=[]))
    change(lambda content: content.update(images=[]), "train")
    assert "has no image with an object to train on" in refused(root, target)


def test_the_manifest_is_not_written_into_the_set(root):
    with pytest.raises(UserError, match="would be written into the set itself"):
        index(root, root / "prepared" / "manifest.json")


def test_the_config_is_checked():
    with pytest.raises(UserError, match="height"):
        check(COCOShapes, {"kind": "coco_shapes", "height": 8})
