"""MOSE and VISOR in miniature, faults of masks, and every published layout a level too shallow."""

import numpy as np
import pytest

from tests.data.test_prepare_masks import tree
from tests.data.test_prepare_videos import index, noise, opened, unlink
from tests.miniature import video_sets
from timewalk.artefacts import read_json
from timewalk.cli import main
from timewalk.data.sequences import read_ids
from timewalk.errors import UserError


@pytest.fixture
def target(tmp_path):
    return tmp_path / "datasets" / "set" / "manifest.json"


def test_mose(tmp_path, target):
    made = video_sets.mose(tmp_path / "MOSE")
    videos = opened("mose", tmp_path, target)
    assert videos.about["counts"] == {"sequences": 2, "frames": 6, "masks": 6, "objects": 4}
    assert videos.subset == "train"
    for video in videos:
        for path, ids in zip(video.masks, made[video.name].ids, strict=True):
            np.testing.assert_array_equal(read_ids(path, video.size), ids)


MASKS_FAULTS = {
    "unequal counts: a mask less": (
        "00002.png",
        unlink,
        r"JPEGImages/4e5f6a7b/00002\.jpg has no mask in train/Annotations/4e5f6a7b",
    ),
    "unequal counts: a mask more": (
        "00003.png",
        noise,
        r"Annotations/4e5f6a7b/00003\.png has no frame in train/JPEGImages/4e5f6a7b",
    ),
    "unreadable mask": (
        "00001.png",
        lambda path: path.write_text("no image"),
        r"4e5f6a7b/00001\.png cannot be read \(no image\)",
    ),
    "mask of colours": (
        "00001.png",
        noise,
        r"4e5f6a7b/00001\.png holds colours \(mode RGB\), not ids: save it as a palette or gray",
    ),
}


@pytest.mark.parametrize("make", [video_sets.mose, video_sets.youtube_vos])
@pytest.mark.parametrize("fault", MASKS_FAULTS)
def test_faults_of_masks(tmp_path, target, make, fault):
    name, spoil, message = MASKS_FAULTS[fault]
    make(tmp_path / "set", ("0a1b2c3d", "4e5f6a7b"), 3)
    step = 5 if make is video_sets.youtube_vos else 1
    stem = f"{step * int(name[:5]):05d}"
    spoil(tmp_path / "set" / "train" / "Annotations" / "4e5f6a7b" / f"{stem}.png")
    with pytest.raises(UserError, match=message.replace(name[:5], stem)):
        index(make.__name__, tmp_path / "set", target)


@pytest.mark.parametrize("make", [video_sets.mose, video_sets.youtube_vos])
def test_an_empty_folder_of_masks_is_one_fault(tmp_path, target, make):
    make(tmp_path / "set", ("0a1b2c3d", "4e5f6a7b"), 3)
    masks = tmp_path / "set" / "train" / "Annotations" / "4e5f6a7b"
    for path in masks.iterdir():
        path.unlink()
    message = r"in .*set, train/Annotations/4e5f6a7b holds no mask: restore the published files\.$"
    with pytest.raises(UserError, match=message):
        index(make.__name__, tmp_path / "set", target)


def test_faults_of_mose(tmp_path, target):
    root = tmp_path / "MOSE"
    video_sets.mose(root)
    (root / "train" / "JPEGImages" / "4e5f6a7b").rename(root / "elsewhere")
    with pytest.raises(
        UserError, match=r"train/Annotations/4e5f6a7b has no folder of frames in train/JPEGImages"
    ):
        index("mose", root, target)
    with pytest.raises(UserError, match=r"nowhere; get MOSE from https://henghuiding\.github\.io"):
        index("mose", tmp_path / "nowhere", target)
    with pytest.raises(UserError, match=r"MOSE has no stable public address; get it from"):
        index("mose", tmp_path / "nowhere", target, url="official")


@pytest.mark.parametrize("subset", [None, "val"])
def test_visor(tmp_path, target, subset):
    made = video_sets.visor(tmp_path / "VISOR_2022", subset=subset)
    videos = opened("visor", tmp_path, target, subset=subset)
    assert videos.about["counts"] == {"sequences": 2, "frames": 6, "masks": 6, "objects": 4}
    for video in videos:
        assert [path.stem[-4:] for path in video.frames] == ["0070", "0210", "0350"]
        for path, ids in zip(video.masks, made[video.name].ids, strict=True):
            np.testing.assert_array_equal(read_ids(path, video.size), ids)


def test_faults_of_visor(tmp_path, target):
    root = tmp_path / "VISOR_2022"
    video_sets.visor(root)
    masks = root / "Annotations" / "480p"
    mask = masks / "P01_01" / "P01_01_frame_0000000210.png"
    mask.rename(mask.with_name("P01_01_frame_0000000211.png"))
    with pytest.raises(
        UserError,
        match=r"0211\.png has no frame in JPEGImages/480p/P01_01; .*0210\.jpg has no mask in Anno",
    ):
        index("visor", root, target)
    (masks / "P03_01").mkdir()
    with pytest.raises(UserError, match=r"P03_01 has no folder of frames in JPEGImages/480p"):
        index("visor", root, target)
    with pytest.raises(UserError, match=r"train\.txt is missing \(there are: val\)"):
        index("visor", root, target, subset="train")
    with pytest.raises(UserError, match=r"holds no JPEGImages/1080p; get VISOR"):
        index("visor", root, target, level="1080p")


PUBLISHED = {
    "davis2016": (video_sets.davis2016, "JPEGImages/480p/camel"),
    "davis2017": (video_sets.davis2017, "JPEGImages/480p/camel"),
    "fbms59": (video_sets.fbms59, "Testset/dogs01"),
    "jhmdb": (video_sets.jhmdb, "Rename_Images/wave/Boy_wave_u_cm"),
    "mose": (video_sets.mose, "train/JPEGImages/4e5f6a7b"),
    "segtrack_v2": (video_sets.segtrack_v2, "JPEGImages/birdfall"),
    "vip": (video_sets.vip, "Images/videos12"),
    "visor": (video_sets.visor, "JPEGImages/480p/P02_07"),
    "youtube_vos": (video_sets.youtube_vos, "train/JPEGImages/00a23ccf53"),
}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_a_set_one_level_too_shallow_is_refused_and_stays_whole(tmp_path, target, kind):
    make, video = PUBLISHED[kind]
    root = tmp_path / "set"
    make(root)
    for path in list((root / video).iterdir()):
        path.rename(root / video / ".." / path.name)
    (root / video).rmdir()
    before = tree(tmp_path / "set")
    with pytest.raises(UserError, match=r"is missing|in no seq|holds no frame|has no f"):
        index(kind, root, target)
    assert tree(tmp_path / "set") == before
    with pytest.raises(UserError, match="holds no "):
        index(kind, root / video.split("/")[0], target)
    assert tree(tmp_path / "set") == before


@pytest.mark.parametrize("kind", ["davis2017", "youtube_vos", "mose"])
def test_from_the_command_line(tmp_path, target, kind):
    PUBLISHED[kind][0](tmp_path / "set")
    words = ["prepare", kind, str(target), "--root", str(tmp_path / "set")]
    assert main(words) == 0
    assert read_json(target)["layout"] == kind
    assert main([*words, "--subset", "nothing"]) == 1


def test_visor_from_the_command_line(tmp_path, target):
    video_sets.visor(tmp_path / "set")
    words = ["prepare", "visor", str(target), "--root", str(tmp_path / "set")]
    assert main([*words, "--subset", "val"]) == 0
    assert read_json(target)["subset"] == "val"
