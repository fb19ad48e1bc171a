"""Frames with masks of class ids: one reader of images and videos."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.miniature import video_sets
from timewalk.artefacts import sha256_file, write_manifest
from timewalk.config import FBMS59, Davis2016, Davis2017, MovingShapes, YouTubeVOS
from timewalk.data.generated import save_ids
from timewalk.data.prepare import prepare
from timewalk.data.segmented import (
    Squares,
    open_segmented,
    picked,
    read_classes,
    read_square,
)
from timewalk.errors import UserError


def davis(tmp_path, **options):
    made = video_sets.davis2017(tmp_path / "DAVIS", **options)
    path = tmp_path / "set" / "manifest.json"
    prepare("davis", Davis2017(kind="davis2017", root=str(tmp_path / "DAVIS")), path)
    return path, made


def images(tmp_path, ids, classes=3, **parameters):
    """Write a set of still images by hand, one a mask."""
    lines = []
    for number, mask in enumerate(ids):
        mask = np.asarray(mask, np.uint8)
        Image.new("RGB", mask.shape[::-1], (number, 0, 0)).save(tmp_path / f"{number}.png")
        save_ids(tmp_path / f"{number}-mask.png", mask)
        lines.append(f"{number}.png\t{number}-mask.png\n")
    (tmp_path / "train.txt").write_text(lines[0])
    (tmp_path / "test.txt").write_text("".join(lines[1:]))
    write_manifest(
        tmp_path / "manifest.json",
        "labelled_masks",
        inputs={},
        parameters={"train": "trainaug", "test": "val", **parameters},
        counts={"train": 1, "test": len(lines) - 1, "classes": classes},
        name="voc",
        layout="voc2012",
        classes=["background", "cat", "dog"][:classes],
        void=True,
        source={
            "root": ".",
            "lists_sha256": {s: sha256_file(tmp_path / f"{s}.txt") for s in ("train", "test")},
        },
        digest="0",
    )
    return tmp_path / "manifest.json"


def test_objects_of_davis_are_ids_of_their_video(tmp_path):
    manifest, made = davis(tmp_path, frames=5)
    found = open_segmented(manifest)
    assert (found.videos, found.classes, found.split, len(found)) == (True, (), "val", 2)
    assert [clip.name for clip in found.clips] == ["blackswan", "camel"]
    frame, mask, lookup = found.frames[6]
    np.testing.assert_array_equal(read_classes(mask, lookup), made["camel"].ids[1])
    assert read_square(frame, 16).shape == (3, 16, 16)
    assert Squares([frame], 16)[0].tolist() == read_square(frame, 16).tolist()


@given(frames=st.integers(1, 9), asked=st.integers(1, 12))
def test_picked_frames_are_spread_from_end_to_end(tmp_path_factory, frames, asked):
    from dataclasses import replace

    from timewalk.data.segmented import SegmentedClip, SegmentedSet

    paths = tuple(tmp_path_factory.getbasetemp() / f"{i}" for i in range(frames))
    clip = SegmentedClip("a", paths, paths)
    whole = SegmentedSet("s", "davis2017", "val", True, (), (clip,), "0", {})
    taken = [int(path.name) for path, _, _ in picked(whole, asked).frames]
    assert len(taken) == min(frames, asked) == len(set(taken))
    assert taken == sorted(taken)
    assert taken[0] == 0
    assert taken[-1] == (frames - 1 if asked > 1 else 0)
    assert picked(whole, None) is whole
    assert picked(replace(whole, videos=False), asked).frames == whole.frames


def test_categories_are_classes_over_all_videos_of_the_file(tmp_path):
    root = tmp_path / "YouTubeVOS"
    made = video_sets.youtube_vos(root)
    meta = root / "train" / "meta.json"
    about = json.loads(meta.read_text())
    first, second = made
    about["videos"][second]["objects"] = {"1": {"category": "zebra"}, "2": {"category": "bear"}}
    meta.write_text(json.dumps(about))
    config = YouTubeVOS(kind="youtube_vos", root=str(root), sequences=[second])
    manifest = tmp_path / "set" / "manifest.json"
    prepare("ytvos", config, manifest)
    found = open_segmented(manifest)
    # `ape` is of the other video alone, and counts all the same.
    assert found.classes == ("background", "ape", "bear", "zebra")
    _, mask, lookup = found.frames[0]
    ids = made[second].ids[0]
    # 1 becomes 3 and 2 stays 2: nothing is renamed twice.
    np.testing.assert_array_equal(read_classes(mask, lookup), np.array([0, 3, 2])[ids])
    assert first not in {clip.name for clip in found.clips}


def test_an_object_that_no_list_names_is_refused(tmp_path):
    root = tmp_path / "YouTubeVOS"
    made = video_sets.youtube_vos(root)
    manifest = tmp_path / "set" / "manifest.json"
    prepare("ytvos", YouTubeVOS(kind="youtube_vos", root=str(root)), manifest)
    _, mask, lookup = open_segmented(manifest).frames[0]
    ids = next(iter(made.values())).ids[0].copy()
    ids[0, 0] = 9
    save_ids(mask, ids)
    with pytest.raises(UserError, match=r"00000\.png holds the id 9, which is beyond"):
        read_classes(mask, lookup)


def test_white_is_the_object_of_davis_2016(tmp_path):
    made = video_sets.davis2016(tmp_path / "DAVIS")
    manifest = tmp_path / "set" / "manifest.json"
    prepare("davis", Davis2016(kind="davis2016", root=str(tmp_path / "DAVIS")), manifest)
    found = open_segmented(manifest)
    assert found.classes == ("background", "foreground")
    _, mask, lookup = found.frames[0]
    np.testing.assert_array_equal(read_classes(mask, lookup), made["blackswan"].ids[0] > 0)


def test_generated_shapes_have_classes(tmp_path):
    config = MovingShapes(kind="moving_shapes", sequences=1, frames=3, objects=2)
    prepare("shapes", config, tmp_path / "manifest.json")
    assert open_segmented(tmp_path / "manifest.json").classes == ("background", "red", "green")


def test_sets_without_ids_and_without_a_training_split_are_refused(tmp_path):
    video_sets.fbms59(tmp_path / "FBMS")
    prepare("fbms", FBMS59(kind="fbms59", root=str(tmp_path / "FBMS")), tmp_path / "a.json")
    with pytest.raises(UserError, match=r"'fbms59' has no masks of ids; name one of davis2016"):
        open_segmented(tmp_path / "a.json")
    manifest, _ = davis(tmp_path)
    with pytest.raises(UserError, match=r"'davis' is a set of videos .*'train_dataset'"):
        open_segmented(manifest, "train")


def test_still_images(tmp_path):
    manifest = images(tmp_path, [[[0, 1]], [[2, 255]], [[1, 1]]])
    found = open_segmented(manifest)
    assert (found.videos, found.split, found.title) == (False, "val", "voc2012-val")
    assert found.classes == ("background", "cat", "dog")
    assert [clip.name for clip in found.clips] == ["1", "2"]
    assert [read_classes(mask, table).tolist() for _, mask, table in found.frames] == [
        [[2, 255]],
        [[1, 1]],
    ]
    assert [clip.name for clip in open_segmented(manifest, "train").clips] == ["0"]


def test_zero_may_be_void(tmp_path):
    manifest = images(tmp_path, [[[0]], [[0, 1, 3, 255]]], zero_is_void=True)
    _, mask, table = open_segmented(manifest).frames[0]
    assert read_classes(mask, table).tolist() == [[255, 0, 2, 255]]


@pytest.mark.parametrize(("zero_is_void", "beyond"), [(False, 3), (True, 4)])
def test_an_id_beyond_the_classes_is_refused(tmp_path, zero_is_void, beyond):
    manifest = images(tmp_path, [[[0]], [[1, beyond]]], zero_is_void=zero_is_void)
    _, mask, table = open_segmented(manifest).frames[0]
    with pytest.raises(UserError, match=rf"1-mask\.png holds the id {beyond}, which is beyond"):
        read_classes(mask, table)


def test_masks_are_resized_to_the_nearest(tmp_path):
    manifest = images(tmp_path, [[[0]], [[0, 0, 2, 2], [0, 0, 2, 2], [1, 1, 1, 1], [1, 1, 1, 1]]])
    _, mask, table = open_segmented(manifest).frames[0]
    assert read_classes(mask, table, 2).tolist() == [[0, 2], [1, 1]]


def test_a_changed_list_is_refused(tmp_path):
    manifest = images(tmp_path, [[[0]], [[1]]])
    (tmp_path / "test.txt").write_bytes((tmp_path / "train.txt").read_bytes())
    with pytest.raises(UserError, match=r"test\.txt is not the one of"):
        open_segmented(manifest)
    (tmp_path / "test.txt").unlink()
    with pytest.raises(UserError, match=r"test\.txt is missing; run the prepare stage again"):
        open_segmented(manifest)


def test_generated_videos_replace_only_generated_ones(tmp_path):
    video_sets.davis2017(tmp_path / "DAVIS")
    before = sorted(path for path in (tmp_path / "DAVIS").rglob("*"))
    config = MovingShapes(kind="moving_shapes", sequences=1, frames=3)
    with pytest.raises(UserError, match=r"DAVIS exists and was not generated; write the manifest"):
        prepare("shapes", config, tmp_path / "manifest.json")
    assert sorted(path for path in (tmp_path / "DAVIS").rglob("*")) == before
    manifest = tmp_path / "set" / "manifest.json"
    first = prepare("shapes", config, manifest)
    manifest.unlink()
    assert prepare("shapes", config, manifest)["digest"] == first["digest"]


def test_nothing_is_written_into_a_set(tmp_path):
    root = tmp_path / "DAVIS"
    video_sets.davis2017(root)
    config = Davis2017(kind="davis2017", root=str(root))
    for folder in (root, root / "ImageSets"):
        with pytest.raises(UserError, match=r"manifest\.json would be written into the set itself"):
            prepare("davis", config, folder / "manifest.json")
