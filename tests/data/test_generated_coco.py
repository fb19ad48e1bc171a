"""Generated scenes in COCO's layout, as the official library reads them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from timewalk.artefacts import read_json
from timewalk.config import COCOShapes
from timewalk.data.generated_coco import CATEGORY_IDS, outlines, write_coco
from timewalk.data.object_masks import fill_polygon

CONFIG = COCOShapes(kind="coco_shapes", train=9, test=5, height=64, width=80, classes=6)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco") / "COCO"
    write_coco(folder, CONFIG)
    return folder


def content(root, split="train2017"):
    return read_json(root / "annotations" / f"instances_{split}.json")


def test_the_layout(root):
    assert sorted(path.name for path in root.iterdir()) == ["annotations", "train2017", "val2017"]
    assert len(list((root / "train2017").iterdir())) == 9
    assert (root / "val2017" / "000000000005.jpg").is_file()


def test_numbers_of_categories_have_gaps(root):
    assert [row["id"] for row in content(root)["categories"]] == list(CATEGORY_IDS)
    assert np.diff(CATEGORY_IDS).max() > 1


def test_the_first_image_has_no_annotation_and_the_fourth_a_crowd(root):
    rows = content(root)["annotations"]
    assert not [row for row in rows if row["image_id"] == 1]
    crowds = [row for row in rows if row["iscrowd"]]
    assert crowds
    assert all(row["image_id"] % 4 == 0 for row in crowds)
    assert all(isinstance(row["segmentation"]["counts"], list) for row in crowds)
    assert all(isinstance(row["segmentation"], list) for row in rows if not row["iscrowd"])


def test_the_official_library_agrees_on_area_and_box(root):
    official = pytest.importorskip("pycocotools.coco")
    from pycocotools import mask as masks

    for split in ("train2017", "val2017"):
        read = official.COCO(str(root / "annotations" / f"instances_{split}.json"))
        for row in read.anns.values():
            runs = read.annToRLE(row)
            assert masks.area(runs) == row["area"]
            assert masks.toBbox(runs).tolist() == row["bbox"]


def test_the_same_seed_gives_the_same_files(root, tmp_path):
    write_coco(tmp_path / "again", CONFIG)
    for path in sorted(root.rglob("*.*")):
        assert (tmp_path / "again" / path.relative_to(root)).read_bytes() == path.read_bytes()
    write_coco(tmp_path / "other", CONFIG.model_copy(update={"seed": 1}))
    assert content(tmp_path / "other") != content(root)


def test_the_test_images_do_not_depend_on_the_training_images(root, tmp_path):
    write_coco(tmp_path / "more", CONFIG.model_copy(update={"train": 10}))
    more, less = (content(place, "val2017") for place in (tmp_path / "more", root))
    assert more == less


@given(arrays(bool, (7, 8), elements=st.booleans()))
@settings(deadline=None)
def test_outlines_give_back_any_mask_without_holes(mask):
    mask = ndimage.binary_fill_holes(mask)
    again = np.zeros(mask.shape, np.uint8)
    for corners in outlines(mask):
        fill_polygon(again, np.array(corners, np.float64))
    assert (again == mask).all()
