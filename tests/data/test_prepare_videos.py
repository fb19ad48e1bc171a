"""Every published layout in miniature: what comes out, and what is said of each fault."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from tests.miniature import video_sets
from timewalk.artefacts import read_json, sha256_file
from timewalk.check import check
from timewalk.config import (
    FBMS59,
    JHMDB,
    MOSE,
    VIP,
    VISOR,
    Davis2016,
    Davis2017,
    MovingShapes,
    SegTrackV2,
    YouTubeVOS,
)
from timewalk.data.labelled import LabelledImages
from timewalk.data.prepare import prepare
from timewalk.data.sequences import LabelledVideos, read_ids, read_joints
from timewalk.errors import UserError

CONFIGS = {
    "davis2016": Davis2016,
    "davis2017": Davis2017,
    "fbms59": FBMS59,
    "jhmdb": JHMDB,
    "mose": MOSE,
    "segtrack_v2": SegTrackV2,
    "vip": VIP,
    "visor": VISOR,
    "youtube_vos": YouTubeVOS,
}


@pytest.fixture
def target(tmp_path):
    return tmp_path / "datasets" / "set" / "manifest.json"


def index(kind, root, target, **changes):
    config = CONFIGS[kind](kind=kind, root=str(root), **changes)
    return prepare("set", config, target)


def opened(kind, root, target, **changes):
    index(kind, root, target, **changes)
    return LabelledVideos(target)


@pytest.fixture
def davis(tmp_path):
    root = tmp_path / "DAVIS"
    video_sets.davis2017(root)
    return root


def test_davis2017(tmp_path, target):
    made = video_sets.davis2017(tmp_path / "DAVIS", frames=4)
    about = index("davis2017", tmp_path / "DAVIS", target)
    assert about == read_json(target)
    assert about["counts"] == {"sequences": 2, "frames": 8, "masks": 8, "objects": 4}
    assert (about["name"], about["layout"], about["subset"]) == ("set", "davis2017", "val")
    assert about["warnings"] == []
    assert list(about["inputs"]) == ["ImageSets/2017/val.txt"]
    for video in LabelledVideos(target):
        assert video.size == (48, 64)
        assert [path.name for path in video.frames] == [f"{i:05d}.jpg" for i in range(4)]
        found = np.stack([read_ids(path, video.size) for path in video.masks])
        np.testing.assert_array_equal(found, made[video.name].ids)


def test_the_folder_above_is_enough(davis, target):
    assert index("davis2017", davis.parent, target)["counts"]["sequences"] == 2


def test_the_order_is_the_lists_and_a_choice_keeps_it(davis, target):
    (davis / "ImageSets" / "2017" / "val.txt").write_text("camel\n\nblackswan\n")
    assert [video.name for video in opened("davis2017", davis, target)] == ["camel", "blackswan"]
    assert len(opened("davis2017", davis, target, sequences=["blackswan"])) == 1
    with pytest.raises(UserError, match=r"set\.sequences: 'cow' is not among the 2 sequences"):
        index("davis2017", davis, target, sequences=["cow"])


def test_the_same_set_gives_the_same_bytes_and_nothing_is_written_into_it(davis, target):
    before = {path: path.stat().st_mtime_ns for path in davis.rglob("*")}
    index("davis2017", davis, target)
    first = {path.name: path.read_bytes() for path in target.parent.iterdir()}
    index("davis2017", davis, target)
    assert {path.name: path.read_bytes() for path in target.parent.iterdir()} == first
    assert {path: path.stat().st_mtime_ns for path in davis.rglob("*")} == before


def test_the_digest_follows_the_masks(davis, target):
    before = index("davis2017", davis, target)["digest"]
    path = davis / "Annotations" / "480p" / "camel" / "00002.png"
    ids = read_ids(path)
    ids[0, 0] = 1 - ids[0, 0]
    Image.fromarray(ids).save(path)
    assert index("davis2017", davis, target)["digest"] != before


def test_a_relative_root_moves_with_the_project(davis, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    target = Path("datasets/set/manifest.json")
    assert index("davis2017", "DAVIS", target)["source"]["root"] == "../../DAVIS"
    assert all(path.is_file() for video in LabelledVideos(target) for path in video.frames)


def test_the_unsupervised_task_has_its_own_masks(davis, target):
    masks = opened("davis2017", davis, target, task="unsupervised")["camel"].masks
    assert masks[0].parent.parent.parent.name == "Annotations_unsupervised"


def test_the_test_sets_have_first_masks_or_none(tmp_path, target):
    root = tmp_path / "DAVIS"
    video_sets.davis2017(root, subset="test-dev")
    folder = root / "Annotations" / "480p" / "camel"
    for path in sorted(folder.iterdir())[1:]:
        path.unlink()
    found = opened("davis2017", root, target, subset="test-dev")["camel"].masks
    assert found[0].name == "00000.png"
    assert found[1:] == (None,) * 4
    (folder / "00000.png").rename(folder / "00003.png")
    with pytest.raises(UserError, match=r"camel/00000\.png is missing, the first annotation"):
        index("davis2017", root, target, subset="test-dev")
    (root / "ImageSets" / "2017").rename(root / "ImageSets" / "2019")
    shutil.rmtree(root / "Annotations_unsupervised")
    bare = opened("davis2017", root, target, subset="test-dev", task="unsupervised")
    assert bare["camel"].masks == (None,) * 5


def noise(path, size=(64, 48), mode="RGB"):
    Image.effect_noise(size, 80).convert(mode).save(path)


def unlink(path):
    path.unlink()


def shorten(path):
    path.write_bytes(path.read_bytes()[:-30])


DAVIS_FAULTS = {
    "missing frame": ("JPEGImages/480p/camel/00002.jpg", unlink, r"camel/00002\.jpg is missing"),
    "missing last frame": (
        "JPEGImages/480p/camel/00004.jpg",
        unlink,
        r"Annotations/480p/camel/00004\.png has no frame",
    ),
    "extra frame": (
        "JPEGImages/480p/camel/00005.jpg",
        noise,
        r"camel/00005\.jpg has no mask in Annotations/480p/camel",
    ),
    "frame of another size": (
        "JPEGImages/480p/camel/00001.jpg",
        lambda path: noise(path, (50, 40)),
        r"camel/00001\.jpg is 50x40 pixels, its sequence's first frame 64x48",
    ),
    "mask of another size": (
        "Annotations/480p/camel/00003.png",
        lambda path: noise(path, (48, 64), "L"),
        r"camel/00003\.png is 48x64 pixels, its sequence's first frame 64x48",
    ),
    "colour mask": (
        "Annotations/480p/camel/00003.png",
        noise,
        r"00003\.png holds colours \(mode RGB\), not ids: save it as a palette or gray PNG",
    ),
    "missing first mask": (
        "Annotations/480p/camel/00000.png",
        unlink,
        r"JPEGImages/480p/camel/00000\.jpg has no mask",
    ),
    "empty mask": (
        "Annotations/480p/camel/00001.png",
        lambda path: path.write_bytes(b""),
        r"camel/00001\.png cannot be read \(no image\)",
    ),
    "part of a first mask": (
        "Annotations/480p/camel/00000.png",
        shorten,
        r"camel/00000\.png cannot be read \(it breaks off\)",
    ),
    "part of a later mask": (
        "Annotations/480p/camel/00003.png",
        shorten,
        r"camel/00003\.png cannot be read \(it breaks off\)",
    ),
    "unreadable frame": (
        "JPEGImages/480p/camel/00001.jpg",
        lambda path: path.write_text("no image"),
        r"camel/00001\.jpg cannot be read \(no image\)",
    ),
    "a frame without a number": (
        "JPEGImages/480p/camel/copy.jpg",
        noise,
        r"camel/copy\.jpg has no frame number for a name",
    ),
    "two frames of one number": (
        "JPEGImages/480p/camel/1.jpg",
        noise,
        r"camel/1\.jpg has the number of 00001\.jpg",
    ),
}


@pytest.mark.parametrize("fault", DAVIS_FAULTS)
def test_faults_of_davis(davis, target, fault):
    place, spoil, message = DAVIS_FAULTS[fault]
    spoil(davis / place)
    with pytest.raises(UserError, match=message) as error:
        index("davis2017", davis, target)
    assert str(error.value).startswith(f"labelled.set: in {davis}, ")
    assert str(error.value).endswith(": restore the published files.")
    assert not target.exists()


def test_many_faults_are_counted(davis, target):
    masks = davis / "Annotations" / "480p" / "camel"
    for number in range(1, 5):
        (masks / f"{number:05d}.png").unlink()
    with pytest.raises(UserError, match=r"00003\.jpg has no mask in .*; and 1 fault more: rest"):
        index("davis2017", davis, target)
    shutil.rmtree(masks)
    with pytest.raises(UserError, match=r"Annotations/480p/camel holds no mask: restore the pub"):
        index("davis2017", davis, target)


def test_missing_folders_and_lists(davis, target, tmp_path):
    with pytest.raises(
        UserError,
        match=r"labelled\.set\.root: there is no folder .*nowhere; get DAVIS 2017 from "
        r"https://davischallenge\.org so that it holds JPEGImages/480p/<sequence>/00000\.jpg",
    ):
        index("davis2017", tmp_path / "nowhere", target)
    with pytest.raises(UserError, match=r"DAVIS holds no JPEGImages/Full-Resolution; get"):
        index("davis2017", davis, target, resolution="Full-Resolution")
    with pytest.raises(UserError, match=r"list .*train\.txt is missing \(there are: val\)"):
        index("davis2017", davis, target, subset="train")
    listed = davis / "ImageSets" / "2017" / "val.txt"
    listed.write_text("camel\ngoat\n")
    with pytest.raises(UserError, match=r"JPEGImages/480p/goat is missing"):
        index("davis2017", davis, target)
    (davis / "JPEGImages" / "480p" / "goat").mkdir()
    with pytest.raises(UserError, match=r"JPEGImages/480p/goat holds no frame"):
        index("davis2017", davis, target)
    listed.write_text("camel\ncamel\n")
    with pytest.raises(UserError, match=r"val\.txt names 'camel' twice"):
        index("davis2017", davis, target)
    listed.write_text("\n")
    with pytest.raises(UserError, match=r"val\.txt names no sequence"):
        index("davis2017", davis, target)
    shutil.rmtree(davis / "Annotations_unsupervised")
    listed.write_text("camel\n")
    with pytest.raises(UserError, match=r"Annotations_unsupervised/480p is missing"):
        index("davis2017", davis, target, task="unsupervised")


@pytest.mark.parametrize("release", ["2016", "2017"])
def test_davis2016_from_either_release(tmp_path, target, release):
    root = tmp_path / "DAVIS"
    made = video_sets.davis2016(root) if release == "2016" else video_sets.davis2017(root, frames=4)
    if release == "2017":
        (root / "ImageSets" / "2017").rename(root / "ImageSets" / "2016")
    videos = opened("davis2016", root, target)
    assert [video.name for video in videos] == ["blackswan", "camel"]
    for video in videos:
        for i in range(len(video.frames)):
            np.testing.assert_array_equal(video.foreground(i), made[video.name].ids[i] > 0)


def test_youtube_vos(tmp_path, target):
    made = video_sets.youtube_vos(tmp_path / "vos")
    videos = opened("youtube_vos", tmp_path / "vos", target)
    assert videos.about["counts"] == {"sequences": 2, "frames": 8, "masks": 8, "objects": 4}
    video = videos["0043f083b5"]
    assert [path.stem for path in video.frames] == ["00000", "00005", "00010", "00015"]
    assert video.categories == {1: "ape", 2: "zebra"}
    np.testing.assert_array_equal(read_ids(video.masks[3]), made[video.name].ids[3])


def test_youtube_vos_with_a_list_of_ones_own(tmp_path, target):
    root = tmp_path / "vos"
    video_sets.youtube_vos(root)
    (tmp_path / "mine.txt").write_text("00a23ccf53\n")
    videos = opened("youtube_vos", root, target, list_file=str(tmp_path / "mine.txt"))
    assert [video.name for video in videos] == ["00a23ccf53"]
    about = read_json(target)
    assert sorted(about["inputs"]) == ["mine.txt", "train/meta.json"]
    assert about["inputs"]["mine.txt"] == sha256_file(tmp_path / "mine.txt")
    (tmp_path / "mine.txt").write_text("zzz\n")
    with pytest.raises(UserError, match=r"list_file: 'zzz' of .*mine\.txt is no sequence of"):
        index("youtube_vos", root, target, list_file=str(tmp_path / "mine.txt"))


def test_lists_of_ones_own_that_cannot_be_read(tmp_path, target):
    root, listed = tmp_path / "vos", tmp_path / "mine.txt"
    video_sets.youtube_vos(root)
    with pytest.raises(UserError, match=r"mine\.txt is missing.*; .* or correct 'list_file'\.$"):
        index("youtube_vos", root, target, list_file=str(listed))
    listed.write_bytes("0043f083b5\n# Küche\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"mine\.txt is no UTF-8 text; save it as UTF-8\.$"):
        index("youtube_vos", root, target, list_file=str(listed))
    listed.write_text("0043f083b5\n", encoding="utf-8-sig")
    videos = opened("youtube_vos", root, target, list_file=str(listed))
    assert [video.name for video in videos] == ["0043f083b5"]


@pytest.mark.parametrize("number", [-1, 0, 254, 255, 300])
def test_an_id_that_no_mask_can_hold(tmp_path, target, number):
    root = tmp_path / "vos"
    video_sets.youtube_vos(root)
    meta = root / "train" / "meta.json"
    known = json.loads(meta.read_text())
    objects = known["videos"]["00a23ccf53"]["objects"]
    objects["253"] = objects["1"]
    meta.write_text(json.dumps(known))
    index("youtube_vos", root, target)
    objects[str(number)] = objects["1"]
    meta.write_text(json.dumps(known))
    with pytest.raises(
        UserError, match=rf"an object of '00a23ccf53' {number}, but masks hold ids from 1 to 253;"
    ):
        index("youtube_vos", root, target)


def test_youtube_vos_valid_has_masks_of_first_appearances(tmp_path, target):
    root = tmp_path / "vos"
    video_sets.youtube_vos(root, subset="valid")
    video = opened("youtube_vos", root, target, subset="valid")["0043f083b5"]
    assert [path is not None for path in video.masks] == [True, False, False, False]
    masks = root / "valid" / "Annotations" / "0043f083b5"
    (masks / "00000.png").rename(masks / "00005.png")
    about = index("youtube_vos", root, target, subset="valid")
    assert about["warnings"] == [
        "1 sequences have no mask of their first frame, 0043f083b5 for one"
    ]
    (masks / "00005.png").unlink()
    with pytest.raises(UserError, match=r"valid/Annotations/0043f083b5 holds no mask"):
        index("youtube_vos", root, target, subset="valid")


def test_faults_of_youtube_vos(tmp_path, target):
    root = tmp_path / "vos"
    video_sets.youtube_vos(root)
    meta = root / "train" / "meta.json"
    known = json.loads(meta.read_text())
    known["videos"]["00a23ccf53"]["objects"].pop("2")
    meta.write_text(json.dumps(known))
    with pytest.raises(
        UserError, match=r"00a23ccf53/00000\.png holds the id 2, which has no category"
    ):
        index("youtube_vos", root, target)
    meta.write_text('{"videos": {"a": {}}}')
    with pytest.raises(UserError, match=r"meta\.json does not list videos with objects"):
        index("youtube_vos", root, target)
    meta.write_text('{"videos":')
    with pytest.raises(UserError, match=r"meta\.json does not list videos with objects"):
        index("youtube_vos", root, target)
    meta.unlink()
    with pytest.raises(UserError, match=r"train/meta\.json is missing; restore"):
        index("youtube_vos", root, target)


def test_a_later_mask_of_youtube_vos_is_decoded_too(tmp_path, target):
    root = tmp_path / "vos"
    video_sets.youtube_vos(root)
    path = root / "train" / "Annotations" / "00a23ccf53" / "00010.png"
    ids = read_ids(path)
    ids[0, 0] = 7
    Image.fromarray(ids).save(path)
    with pytest.raises(
        UserError, match=r"00a23ccf53/00010\.png holds the id 7, which has no category"
    ):
        index("youtube_vos", root, target)
    meta = root / "train" / "meta.json"
    known = json.loads(meta.read_text())
    known["videos"]["00a23ccf53"]["objects"] = {}
    meta.write_text(json.dumps(known))
    with pytest.raises(UserError, match=r"train/meta\.json names no object of '00a23ccf53'"):
        index("youtube_vos", root, target)


def test_classes_are_those_of_the_whole_meta_file(tmp_path, target):
    root = tmp_path / "vos"
    video_sets.youtube_vos(root)
    meta = root / "train" / "meta.json"
    known = json.loads(meta.read_text())
    known["videos"]["00a23ccf53"]["objects"]["1"]["category"] = "lion"
    meta.write_text(json.dumps(known))
    about = index("youtube_vos", root, target, sequences=["0043f083b5"])
    assert about["classes"] == ["background", "ape", "lion", "zebra"]


def test_segtrack_v2_is_the_union_of_its_objects(tmp_path, target):
    made = video_sets.segtrack_v2(tmp_path / "SegTrackv2")
    videos = opened("segtrack_v2", tmp_path, target)
    assert videos.about["counts"] == {"sequences": 2, "frames": 6, "masks": 6, "objects": 3}
    assert "12 of the 14 published sequences are absent" in videos.about["warnings"][0]
    assert len(videos["bmx"].layers) == 1
    for video in videos:
        for i in range(len(video.frames)):
            np.testing.assert_array_equal(video.foreground(i), made[video.name].ids[i] > 0)


def test_faults_of_segtrack_v2(tmp_path, target):
    root = tmp_path / "SegTrackv2"
    video_sets.segtrack_v2(root)
    (root / "GroundTruth" / "bmx" / "2" / "bmx_00019.png").unlink()
    with pytest.raises(UserError, match=r"bmx_00019\.bmp has no mask in GroundTruth/bmx/2"):
        index("segtrack_v2", root, target)


def test_fbms59_masks_have_thresholds_of_their_own(tmp_path, target):
    made = video_sets.fbms59(tmp_path / "FBMS59")
    videos = opened("fbms59", tmp_path, target)
    assert videos.about["counts"]["masks"] == 9
    for video in videos:
        assert [mask is not None for mask in video.masks] == [True, False] * 3
        assert video.foreground(1) is None
        for i in (0, 2, 4):
            ids = made[video.name].ids[i]
            expected = ids == 2 if video.name == "marple2" else ids > 0
            np.testing.assert_array_equal(video.foreground(i), expected)


def test_faults_of_fbms59(tmp_path, target):
    root = tmp_path / "FBMS59"
    video_sets.fbms59(root)
    masks = root / "Testset" / "cars1" / "GroundTruth"
    (masks / "cars1_05.pgm").rename(masks / "cars1_09.pgm")
    with pytest.raises(UserError, match=r"cars1/GroundTruth/cars1_09\.pgm has no frame"):
        index("fbms59", root, target)
    shutil.rmtree(masks)
    with pytest.raises(UserError, match=r"cars1/GroundTruth holds no mask"):
        index("fbms59", root, target)
    masks = root / "Testset" / "dogs01" / "GroundTruth"
    (masks / "dogs01_0001_gt.ppm").rename(masks / "dogs01_gt.ppm")
    with pytest.raises(UserError, match=r"dogs01_gt\.ppm has no frame number"):
        index("fbms59", root, target, sequences=["dogs01"])


def test_jhmdb(tmp_path, target):
    joints = video_sets.jhmdb(tmp_path / "JHMDB")
    videos = opened("jhmdb", tmp_path, target)
    assert [video.name for video in videos] == list(joints)
    assert videos.about["counts"] == {"sequences": 2, "frames": 10, "masks": 0, "objects": 0}
    for video in videos:
        assert video.size == (60, 80)
        assert video.masks == (None,) * 5
        np.testing.assert_allclose(read_joints(video.joints), joints[video.name], atol=1e-12)
    train = opened("jhmdb", tmp_path, target, subset="train")
    assert [video.name for video in train] == [f"{name}_train" for name in joints]


def test_faults_of_jhmdb(tmp_path, target):
    root = tmp_path / "JHMDB"
    name = next(iter(video_sets.jhmdb(root)))
    path = root / "joint_positions" / name / "joint_positions.mat"
    savemat(path, {"pos_img": np.ones((2, 15, 4))})
    with pytest.raises(UserError, match=r"_np1/joint_positions\.mat has joints of 4 frames, not "):
        index("jhmdb", root, target)
    path.unlink()
    with pytest.raises(UserError, match=r"_np1/joint_positions\.mat is missing"):
        index("jhmdb", root, target)
    with pytest.raises(UserError, match=r"splits holds no <class>_test_split3\.txt"):
        index("jhmdb", root, target, split=3)
    (root / "splits" / "walk_test_split2.txt").write_text("a.avi 0\n")
    with pytest.raises(UserError, match=r"JHMDB holds no sequence of this subset; restore"):
        index("jhmdb", root, target, split=2)
    (root / "splits" / "walk_test_split2.txt").write_text("a.avi\n")
    with pytest.raises(UserError, match=r"split2\.txt has the line 'a\.avi', not '<video>\.avi 1'"):
        index("jhmdb", root, target, split=2)


@pytest.mark.parametrize("place", ["Annotations/Category_ids", "Category_ids"])
def test_vip(tmp_path, target, place):
    root = tmp_path / "VIP" / "VIP_Fine"
    made = video_sets.vip(root)
    if place == "Category_ids":
        (root / "Annotations" / "Category_ids").rename(root / "Category_ids")
    videos = opened("vip", tmp_path, target)
    assert videos.about["counts"] == {"sequences": 2, "frames": 8, "masks": 8, "objects": 6}
    for video in videos:
        for i, path in enumerate(video.masks):
            np.testing.assert_array_equal(read_ids(path, video.size), made[video.name].ids[i])


def test_vip_needs_the_first_mask_only(tmp_path, target):
    video_sets.vip(tmp_path / "VIP_Fine")
    masks = sorted((tmp_path / "VIP_Fine/Annotations/Category_ids/videos10").iterdir())
    masks[1].unlink()
    about = index("vip", tmp_path, target)
    assert about["warnings"] == ["1 frames have no mask and are not scored"]
    masks[0].unlink()
    with pytest.raises(
        UserError, match=r"videos10/000000000001\.jpg has no mask, the first annotation"
    ):
        index("vip", tmp_path, target)


def test_generated_videos_are_read_like_davis(tmp_path, target):
    config = MovingShapes(kind="moving_shapes", sequences=2, frames=4, height=48, width=64, seed=3)
    about = prepare("shapes", config, target)
    assert about["counts"] == {"sequences": 2, "frames": 8, "masks": 8, "objects": 4}
    assert about["layout"] == "davis2017"
    assert about["parameters"]["kind"] == "moving_shapes"
    assert prepare("shapes", config, target) == about
    other = prepare("shapes", config.model_copy(update={"seed": 4}), target)
    assert other["digest"] != about["digest"]
    assert [video.name for video in LabelledVideos(target)] == ["shapes_00", "shapes_01"]


def test_images_and_videos_are_not_mixed_up(davis, target):
    index("davis2017", davis, target)
    with pytest.raises(UserError, match=r"describes 'labelled_videos', but a manifest of 'label"):
        LabelledImages(target, "test")


def test_a_digest_needs_an_address():
    raw = {"kind": "davis2017", "root": "x", "sha256": "0" * 64}
    with pytest.raises(UserError, match="has `sha256` but no `url` that it could belong to"):
        check(Davis2017, raw)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_forbidden_frame(davis, target):
    path = davis / "JPEGImages" / "480p" / "camel" / "00001.jpg"
    path.chmod(0)
    with pytest.raises(UserError, match=r"00001\.jpg cannot be read"):
        index("davis2017", davis, target)
