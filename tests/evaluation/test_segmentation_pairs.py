"""Names of protocols, and images with masks as they are learnt from."""

from dataclasses import replace

import pytest
from PIL import Image

from tests.evaluation.coloured_masks import class_maps, write_set
from timewalk.data.segmented import open_segmented
from timewalk.errors import UserError
from timewalk.evaluation.segmentation_config import SegmentationConfig
from timewalk.evaluation.segmentation_pairs import RandomPairs, title


@pytest.fixture
def manifest(tmp_path):
    return write_set(tmp_path / "set", class_maps(4, 0), class_maps(2, 1))


def config(**keys):
    return SegmentationConfig(kind="some", dataset="colours", **keys)


def test_title(manifest):
    scored, train = (open_segmented(manifest, split) for split in ("test", "train"))
    assert title(config(), scored) == "voc2012-val-224px-m112"
    assert title(config(), scored, train) == "voc2012-val-from_train-224px-m112"
    videos = replace(train, kind="davis2017", split="train", videos=True)
    keys = {"image_size": 64, "map_size": 32, "foreground_only": True, "precision": "bf16"}
    name = "voc2012-val-from_davis2017-train-64px-m32-f4-fg-bf16"
    assert title(config(**keys), scored, videos) == name
    assert title(config(frames_per_clip=None), videos) == "davis2017-train-224px-m112-fall"


def test_masks_of_another_size_than_their_image(manifest):
    path = manifest.parent / "train1_mask.png"
    Image.open(path).resize((32, 64)).save(path)
    pairs = RandomPairs(open_segmented(manifest, "train").frames, 64, 8, False, seed=0)
    pairs[0, 0]
    with pytest.raises(UserError, match=r"train1_mask.png is 32x64 pixels but its image is 64x64"):
        pairs[0, 1]
