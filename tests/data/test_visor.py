"""VISOR's archives become the structure of DAVIS, by links; the archives stay as they are."""

import os
import shutil
import zipfile

import numpy as np
import pytest

from tests.data.test_prepare_masks import tree
from tests.miniature import video_sets
from timewalk.artefacts import read_json
from timewalk.check import check
from timewalk.cli import main
from timewalk.config import VISOR
from timewalk.data.prepare import prepare, visor
from timewalk.data.prepare.visor import convert_visor
from timewalk.data.sequences import LabelledVideos, read_ids
from timewalk.errors import UserError

PLACES = {"P01_01": "train/P01", "P02_07": "val"}


def pack(folder, target, nested=""):
    """Write the files of a folder as an archive, maybe below a folder in it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w") as file:
        for path in sorted(folder.iterdir()):
            file.write(path, f"{nested}{path.name}")


@pytest.fixture
def packed(tmp_path):
    """Archives of two videos, of frames and of masks; one is below a participant's folder."""
    made = video_sets.visor(tmp_path / "made")
    root = tmp_path / "archives"
    for name, place in PLACES.items():
        frames, masks = (
            tmp_path / "made" / kind / "480p" / name for kind in ("JPEGImages", "Annotations")
        )
        nested = f"{name}/" if place == "val" else ""
        pack(frames, root / "rgb_frames" / place / f"{name}.zip", nested)
        pack(masks, root / "masks" / place / f"{name}.zip")
    return root, made


def test_archives_become_the_structure_of_davis(packed, tmp_path):
    root, made = packed
    before, output = tree(root), tmp_path / "out"
    about = convert_visor(root, output)
    assert tree(root) == before
    assert about["counts"] == {"archives": 4, "frames": 6, "masks": 6}
    assert about["warnings"] == []
    assert sorted(about["inputs"]) == [
        "masks/train/P01/P01_01.zip",
        "masks/val/P02_07.zip",
        "rgb_frames/train/P01/P01_01.zip",
        "rgb_frames/val/P02_07.zip",
    ]
    frame = output / "VISOR_2022/JPEGImages/480p/P02_07/P02_07_frame_0000000070.jpg"
    cached = output / "cache/rgb_frames/val/P02_07.zip/P02_07" / frame.name
    assert frame.samefile(cached)
    target = tmp_path / "datasets" / "manifest.json"
    for subset, name in (("train", "P01_01"), ("val", "P02_07")):
        config = VISOR(kind="visor", root=str(output), subset=subset)
        assert prepare("x", config, target)["counts"]["sequences"] == 1
        video = LabelledVideos(target)[name]
        for path, ids in zip(video.masks, made[name].ids, strict=True):
            np.testing.assert_array_equal(read_ids(path, video.size), ids)


def test_what_is_unpacked_is_not_unpacked_again(packed, tmp_path, monkeypatch):
    root, _ = packed
    first = convert_visor(root, tmp_path / "out")
    before = tree(tmp_path / "out" / "cache")
    monkeypatch.setattr(visor, "unpack", lambda *words: pytest.fail("unpacked again"))
    assert convert_visor(root, tmp_path / "out") == first
    assert tree(tmp_path / "out" / "cache") == before


def test_it_goes_on_after_a_kill(packed, tmp_path, monkeypatch):
    root, _ = packed
    unpack, calls = visor.unpack, []

    def killed(archive, folder):
        calls.append(archive.name)
        unpack(archive, folder)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(visor, "unpack", killed)
    with pytest.raises(KeyboardInterrupt):
        convert_visor(root, tmp_path / "out")
    about = convert_visor(root, tmp_path / "out")
    assert len(calls) == 5
    assert about["counts"]["frames"] == 6
    assert not list((tmp_path / "out").rglob(".*.part"))


def test_copies_where_links_fail(packed, tmp_path, monkeypatch):
    def refuse(*words):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    convert_visor(packed[0], tmp_path / "out", "1080p")
    frame = tmp_path / "out/VISOR_2022/JPEGImages/1080p/P01_01/P01_01_frame_0000000070.jpg"
    cached = tmp_path / "out/cache/rgb_frames/train/P01/P01_01.zip" / frame.name
    assert not frame.samefile(cached)
    assert frame.read_bytes() == cached.read_bytes()
    assert convert_visor(packed[0], tmp_path / "out", "1080p")["counts"]["frames"] == 6


def test_frames_without_masks_are_told(packed, tmp_path):
    root, _ = packed
    shutil.rmtree(root / "masks" / "val")
    shutil.rmtree(root / "rgb_frames" / "train")
    about = convert_visor(root, tmp_path / "out")
    assert about["warnings"] == [
        "1 videos have no masks: P02_07",
        "1 videos have no frames: P01_01",
    ]


def test_an_archive_of_equal_size_is_told_by_its_digest(packed, tmp_path, monkeypatch):
    root, _ = packed
    first = convert_visor(root, tmp_path / "out")
    path = root / "masks" / "val" / "P02_07.zip"
    read = []
    digest = visor.sha256_file
    monkeypatch.setattr(visor, "sha256_file", lambda file: read.append(file.name) or digest(file))
    os.utime(path, (1, 1))
    for _ in range(2):
        assert convert_visor(root, tmp_path / "out") == first
    assert read == ["P02_07.zip"]
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"P02_07\.zip has changed since it was unpacked into"):
        convert_visor(root, tmp_path / "out")


def test_a_list_of_other_videos_is_never_replaced(packed, tmp_path):
    root, _ = packed
    listed = tmp_path / "out/VISOR_2022/ImageSets/2022/val.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("mine\n")
    with pytest.raises(UserError, match=r"2022/val\.txt lists other videos than these archives ho"):
        convert_visor(root, tmp_path / "out")
    assert [path.name for path in listed.parent.iterdir()] == ["val.txt"]
    assert listed.read_text() == "mine\n"


def test_a_video_belongs_to_one_list(packed, tmp_path):
    root, _ = packed
    again = root / "more" / "train" / "P02_07.zip"
    again.parent.mkdir(parents=True)
    shutil.copy(root / "rgb_frames" / "val" / "P02_07.zip", again)
    with pytest.raises(
        UserError, match="frames of P02_07 lie below both a folder 'train' and a folder 'val'"
    ):
        convert_visor(root, tmp_path / "out")


def test_the_given_folder_may_name_the_list(packed, tmp_path):
    root, _ = packed
    convert_visor(root / "rgb_frames" / "val", tmp_path / "out")
    lists = tmp_path / "out/VISOR_2022/ImageSets/2022"
    assert [path.name for path in lists.iterdir()] == ["val.txt"]
    assert (lists / "val.txt").read_text() == "P02_07\n"
    # Folders inside say more than the name of the whole.
    root.rename(tmp_path / "test")
    convert_visor(tmp_path / "test", tmp_path / "other")
    lists = tmp_path / "other/VISOR_2022/ImageSets/2022"
    assert sorted(path.name for path in lists.iterdir()) == ["train.txt", "val.txt"]


@pytest.mark.parametrize("level", ["../../../esc", "a/b", "a/", "..", ".hidden", ""])
def test_the_level_is_one_folder(packed, tmp_path, level):
    message = r"level is '.*': write the plain name of one folder\."
    with pytest.raises(UserError, match="visor." + message):
        convert_visor(packed[0], tmp_path / "out", level)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=message):
        check(VISOR, {"kind": "visor", "root": "x", "level": level})


def test_faults_of_the_archives(packed, tmp_path):
    root, _ = packed
    output = tmp_path / "out"
    convert_visor(root, output)
    path = root / "masks" / "val" / "P02_07.zip"
    pack(root / "masks" / "val", path)
    with pytest.raises(UserError, match=r"P02_07\.zip has changed since it was unpacked into .*P0"):
        convert_visor(root, output)
    path.write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"P02_07\.zip cannot be unpacked \(it is neither a zip"):
        convert_visor(root, tmp_path / "other")
    with pytest.raises(UserError, match=r"nowhere holds no zip archive; name the folder of VISOR"):
        convert_visor(tmp_path / "nowhere", output)


def test_archives_of_polygons(packed, tmp_path):
    root, _ = packed
    polygons = root / "dense" / "train" / "P05_01_interpolations.zip"
    polygons.parent.mkdir(parents=True)
    with zipfile.ZipFile(polygons, "w") as file:
        file.writestr("P05_01_interpolations.json", "{}")
    about = convert_visor(root, tmp_path / "out")
    assert about["warnings"] == [
        "1 archives hold neither frames nor masks: dense/train/P05_01_interpolations.zip"
    ]
    assert (tmp_path / "out/VISOR_2022/ImageSets/2022/train.txt").read_text() == "P01_01\n"
    with pytest.raises(UserError, match=r"archives of .*dense hold no \.jpg frame and no \.png"):
        convert_visor(root / "dense", tmp_path / "other")


def test_the_output_may_lie_among_the_archives(packed):
    root, _ = packed
    for _ in range(2):
        about = convert_visor(root, root / "out")
        assert about["counts"] == {"archives": 4, "frames": 6, "masks": 6}


def test_the_archives_may_lie_in_the_output(packed):
    root, _ = packed
    for archives in (root, root.parent):
        for _ in range(2):
            about = convert_visor(archives, root.parent)
            assert about["counts"]["archives"] == 4


def test_names_outside_the_folder_are_refused(tmp_path):
    path = tmp_path / "archives" / "P01_01.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("../evil.jpg", "x")
    with pytest.raises(UserError, match=r"holds '\.\./evil\.jpg', which is no plain file inside"):
        convert_visor(path.parent, tmp_path / "out")
    assert not list(tmp_path.rglob("evil.jpg"))


def test_two_files_of_one_name(packed, tmp_path):
    root, _ = packed
    double = tmp_path / "double" / "P01_01.zip"
    double.parent.mkdir()
    with zipfile.ZipFile(double, "w") as file:
        file.writestr("a/1.jpg", "x")
        file.writestr("b/1.jpg", "y")
    with pytest.raises(UserError, match=r"holds two files of one name, a/1\.jpg and b/1\.jpg"):
        convert_visor(double.parent, tmp_path / "out")
    frames = tmp_path / "made" / "JPEGImages" / "480p"
    other = frames / "P01_01" / "P01_01_frame_0000000070.jpg"
    other.write_bytes(other.read_bytes() + b"0")
    pack(frames / "P01_01", root / "val" / "P01_01.zip")
    with pytest.raises(UserError, match=r"0000000070\.jpg is in the way of the same name of"):
        convert_visor(root, tmp_path / "two")


def test_from_the_command_line(packed, tmp_path):
    assert main(["visor", str(packed[0]), str(tmp_path / "out")]) == 0
    assert read_json(tmp_path / "out" / "manifest.json")["kind"] == "visor"
