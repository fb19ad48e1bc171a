"""The reader of images with objects."""

import pickle

import numpy as np
import pytest
from PIL import Image

from timewalk.artefacts import read_json
from timewalk.config import COCOShapes
from timewalk.data.objects import LabelledObjects, sides_inside
from timewalk.data.prepare import prepare
from timewalk.errors import UserError

CONFIG = COCOShapes(kind="coco_shapes", train=9, test=5, height=48, width=64)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    manifest = tmp_path_factory.mktemp("objects") / "shapes" / "manifest.json"
    prepare("shapes", CONFIG, manifest)
    return manifest


@pytest.fixture
def manifest(tmp_path):
    prepare("shapes", CONFIG, tmp_path / "shapes" / "manifest.json")
    return tmp_path / "shapes" / "manifest.json"


def test_a_split(prepared):
    test = LabelledObjects(prepared, "test")
    assert (test.name, test.kind, test.title) == ("shapes", "coco", "coco_shapes-val2017")
    assert test.classes == ("disc", "box", "triangle", "ring")
    assert test.category_ids == (1, 2, 4, 7)
    assert len(test) == 5
    assert test.annotations == prepared.parent / "COCO/annotations/instances_val2017.json"


def test_every_object_is_the_one_of_the_annotations(prepared):
    test = LabelledObjects(prepared, "test")
    content = read_json(test.annotations)
    for image in test:
        rows = [row for row in content["annotations"] if row["image_id"] == image.image_id]
        labels = [test.category_ids[label] for label in image.classes]
        assert labels == [row["category_id"] for row in rows]
        assert image.areas.tolist() == [row["area"] for row in rows]
        assert image.crowd.tolist() == [bool(row["iscrowd"]) for row in rows]
        for box, row in zip(image.boxes, rows, strict=True):
            x, y, width, height = row["bbox"]
            assert box.tolist() == [x, y, x + width, y + height]


def test_masks_fill_their_boxes(prepared):
    for image in LabelledObjects(prepared, "test"):
        masks = image.masks()
        assert masks.dtype == np.uint8
        assert masks.shape == (len(image.boxes), 48, 64)
        assert masks.sum(axis=(1, 2)).tolist() == image.areas.tolist()
        for mask, (left, top, right, bottom) in zip(masks, image.boxes.astype(int), strict=True):
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            assert (rows[0], rows[-1] + 1) == (top, bottom)
            assert (columns[0], columns[-1] + 1) == (left, right)


def test_images_without_annotation_are_scored_but_not_trained_on(prepared):
    first = LabelledObjects(prepared, "test")[0]
    assert first.image_id == 1
    assert first.boxes.shape == (0, 4)
    assert first.masks().shape == (0, 48, 64)
    assert first.trainable.shape == (0,)
    assert all(image.trainable.any() for image in LabelledObjects(prepared, "train"))


def test_crowds_are_not_trainable(prepared):
    images = list(LabelledObjects(prepared, "test"))
    assert any(image.crowd.any() for image in images)
    for image in images:
        assert (image.trainable == ~image.crowd).all()


def test_what_of_a_box_is_inside_its_image():
    boxes = np.array([[0, 0, 5, 3], [-4, 0, 2, 9], [8, 0, 12, 9], [3, 3, 3, 5], [4, 4, 2, 2]])
    assert sides_inside(boxes, (6, 7)).tolist() == [3, 2, -0, 0, -2]


def test_pixels(prepared, manifest):
    image = LabelledObjects(prepared, "test")[1]
    assert image.read().shape == (48, 64, 3)
    broken = LabelledObjects(manifest, "test")[1]
    Image.new("RGB", (20, 10)).save(broken.path)
    with pytest.raises(UserError, match=r"jpg is 20x10 pixels, but its set states 64x48; restore"):
        broken.read()
    broken.path.unlink()
    with pytest.raises(UserError, match=r"jpg cannot be read \(it is missing\); restore"):
        broken.read()


def test_beyond_the_last_image(prepared):
    test = LabelledObjects(prepared, "test")
    with pytest.raises(IndexError):
        test[5]


def test_an_index_that_is_not_the_manifests(manifest):
    np.save(manifest.parent / "test" / "areas.npy", np.zeros(3, np.float32))
    with pytest.raises(UserError, match=r"test is not the index of .*manifest.json; run the prep"):
        LabelledObjects(manifest, "test")
    (manifest.parent / "train" / "runs.npy").unlink()
    with pytest.raises(UserError, match="train is incomplete; run the prepare stage again"):
        LabelledObjects(manifest, "train")


def test_annotations_of_the_test_that_are_not_those_that_were_prepared(manifest):
    path = LabelledObjects(manifest, "test").annotations
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(
        UserError,
        match=r"instances_val2017.json has changed since it was prepared; restore it or run the "
        "prepare stage again",
    ):
        LabelledObjects(manifest, "test")
    path.unlink()
    with pytest.raises(UserError, match=r"val2017.json is missing; restore it or run the prepare"):
        LabelledObjects(manifest, "test")
    # What is trained on is in the index alone.
    assert len(LabelledObjects(manifest, "train")) > 0
    prepare("shapes", CONFIG, manifest)
    assert len(LabelledObjects(manifest, "test")) == 5


def test_a_worker_maps_the_index_anew(prepared):
    train = LabelledObjects(prepared, "train")
    assert len(pickle.dumps(train)) < 4000
    again = pickle.loads(pickle.dumps(train))
    assert (again[2].boxes == train[2].boxes).all()
