"""A set cut into two parts: sizes, the same for the same names, in training and evaluation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.miniature import video_sets
from timewalk.check import check
from timewalk.cli import main
from timewalk.config import MOSE, DatasetConfig, Split, YouTubeVOS
from timewalk.data.frame_folders import index_frame_folders, open_stores
from timewalk.data.prepare import prepare
from timewalk.data.sequences import LabelledVideos
from timewalk.data.splits import part_of, record
from timewalk.errors import UserError

VIDEOS = tuple(f"{number:010x}" for number in range(10))


def split(part, share=0.8, seed=1):
    return Split(part=part, share=share, seed=seed)


def test_the_size_of_the_published_split():
    names = [f"{number:010x}" for number in range(3471)]
    train, val = (part_of(names, split(part), "split") for part in ("train", "val"))
    assert (len(train), len(val)) == (2776, 695)
    assert set(train) | set(val) == set(names)


def test_the_draw_stays_what_it_is():
    order = np.random.RandomState(1).permutation(10)
    assert order.tolist() == [2, 9, 6, 4, 0, 3, 1, 7, 8, 5]
    assert part_of("abcdefghij", split("val"), "split") == ["f", "i"]
    assert part_of("jihgfedcba", split("val"), "split") == ["f", "i"]
    assert part_of("abcdefghij", split("val", seed=2), "split") != ["f", "i"]


def test_a_share_is_not_rounded_off_by_the_machine():
    names = [str(number) for number in range(100)]
    assert len(part_of(names, split("train", 0.29), "split")) == 29


@given(
    names=st.sets(st.text(max_size=8), min_size=2, max_size=60),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32 - 1),
)
def test_parts_are_disjoint_and_together_everything(names, share, seed):
    count = len(names)
    if not 1 <= int(share * count + 1e-9) < count:
        with pytest.raises(UserError, match="leaves one of the parts empty"):
            part_of(names, split("train", share, seed), "split")
        return
    train, val = (part_of(names, split(part, share, seed), "split") for part in ("train", "val"))
    assert sorted(train + val) == sorted(names)
    assert train == sorted(train)


def test_too_few_videos():
    with pytest.raises(UserError, match=r"^labelled\.x\.split: 0\.8 of 1 videos leaves one of"):
        part_of(["a"], split("train"), "labelled.x.split")


def test_the_record_tells_whether_two_parts_belong_together():
    one, two = record(VIDEOS, split("train")), record(reversed(VIDEOS), split("val"))
    assert one == {**two, "part": "train"}
    assert record(VIDEOS[1:], split("train"))["names_sha256"] != one["names_sha256"]
    assert (one["share"], one["seed"], one["names"]) == (0.8, 1, 10)


SETS = {
    "mose": (video_sets.mose, MOSE),
    "youtube_vos": (video_sets.youtube_vos, YouTubeVOS),
}


@pytest.mark.parametrize("kind", SETS)
def test_training_and_evaluation_have_the_same_parts(tmp_path, kind):
    make, model = SETS[kind]
    make(tmp_path / "set", VIDEOS, 1)
    scored, trained = {}, {}
    for part in ("train", "val"):
        target = tmp_path / part / "manifest.json"
        config = model(kind=kind, root=str(tmp_path / "set"), split=split(part))
        about = prepare("x", config, target)
        scored[part] = [video.name for video in LabelledVideos(target)]
        folders = tmp_path / part / "folders.json"
        images = tmp_path / "set" / "train" / "JPEGImages"
        indexed = index_frame_folders(images, folders, split=split(part))
        trained[part] = [store.video for store in open_stores(folders)]
        assert indexed["parameters"]["split"] == about["split"] == record(VIDEOS, split(part))
        assert about["parameters"]["split"] == {"share": 0.8, "seed": 1, "part": part}
    assert scored == trained
    assert sorted(scored["train"] + scored["val"]) == list(VIDEOS)
    assert len(scored["val"]) == 2


def test_without_a_split_nothing_is_recorded(tmp_path):
    video_sets.mose(tmp_path / "set")
    config = MOSE(kind="mose", root=str(tmp_path / "set"))
    assert "split" not in prepare("x", config, tmp_path / "manifest.json")
    about = index_frame_folders(tmp_path / "set/train/JPEGImages", tmp_path / "folders.json")
    assert about["parameters"] == {}


def test_a_folder_that_the_meta_file_does_not_know_would_shift_the_parts(tmp_path):
    video_sets.youtube_vos(tmp_path / "vos", VIDEOS, 1)
    (tmp_path / "vos/train/JPEGImages/ffff").mkdir()
    config = YouTubeVOS(kind="youtube_vos", root=str(tmp_path / "vos"), split=split("val"))
    with pytest.raises(UserError, match=r"JPEGImages/ffff is not in train/meta\.json"):
        prepare("x", config, tmp_path / "manifest.json")


def empty(folder):
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("lost", [0, 3])
@pytest.mark.parametrize("kind", SETS)
def test_an_empty_folder_of_either_part_would_shift_the_parts(tmp_path, kind, lost, part):
    make, model = SETS[kind]
    make(tmp_path / "set", VIDEOS, 1)
    images = tmp_path / "set" / "train" / "JPEGImages"
    empty(images / VIDEOS[lost])
    config = model(kind=kind, root=str(tmp_path / "set"), split=split(part))
    message = rf"in .*set, train/JPEGImages/{VIDEOS[lost]} holds no frame: restore the published"
    with pytest.raises(UserError, match=message):
        prepare("x", config, tmp_path / "manifest.json")
    with pytest.raises(UserError, match=rf"JPEGImages/{VIDEOS[lost]} holds no frame of its own"):
        index_frame_folders(images, tmp_path / "folders.json", split=split(part))
    assert not (tmp_path / "folders.json").exists()


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("kind", SETS)
def test_a_missing_folder_of_either_part_would_shift_the_parts(tmp_path, kind, part):
    make, model = SETS[kind]
    make(tmp_path / "set", VIDEOS, 1)
    for lost in (VIDEOS[0], VIDEOS[3]):
        folder = tmp_path / "set" / "train" / "JPEGImages" / lost
        empty(folder)
        folder.rmdir()
    config = model(kind=kind, root=str(tmp_path / "set"), split=split(part))
    message = {
        "youtube_vos": rf"JPEGImages/{VIDEOS[0]} is missing; .*/{VIDEOS[3]} is missing: restore",
        "mose": rf"Annotations/{VIDEOS[0]} has no folder of frames in train/JPEGImages; .*{lost}",
    }
    with pytest.raises(UserError, match=message[kind]):
        prepare("x", config, tmp_path / "manifest.json")


def test_folders_of_another_number_are_told_by_the_digest(tmp_path):
    video_sets.mose(tmp_path / "set", VIDEOS, 1)
    images = tmp_path / "set" / "train" / "JPEGImages"
    config = MOSE(kind="mose", root=str(tmp_path / "set"), split=split("val"))
    scored = prepare("x", config, tmp_path / "manifest.json")
    (images / VIDEOS[0]).rename(tmp_path / "elsewhere")
    trained = index_frame_folders(images, tmp_path / "folders.json", split=split("train"))
    digests = [about["names_sha256"] for about in (trained["parameters"]["split"], scored["split"])]
    assert digests[0] != digests[1]


def test_folders_of_too_few_videos(tmp_path):
    video_sets.mose(tmp_path / "set", VIDEOS[:1], 1)
    images = tmp_path / "set" / "train" / "JPEGImages"
    with pytest.raises(UserError, match=r"data set's key 'split': 0\.8 of 1 videos leaves"):
        index_frame_folders(images, tmp_path / "folders.json", split=split("val"))


def test_from_the_command_line(tmp_path, capsys):
    video_sets.mose(tmp_path / "set", VIDEOS, 1)
    words = ["folders", str(tmp_path / "set/train/JPEGImages"), str(tmp_path / "folders.json")]
    assert main([*words, "--split", '{"part": "val"}']) == 0
    assert len(open_stores(tmp_path / "folders.json")) == 2
    assert main([*words, "--split", "null"]) == 0
    assert len(open_stores(tmp_path / "folders.json")) == 10
    assert main([*words, "--split", '{"share": 0.5}']) == 1
    assert "split.part" in capsys.readouterr().err


def test_keys_that_exclude_each_other():
    part = {"part": "val"}
    vos = {"kind": "youtube_vos", "root": "x", "list_file": "y", "split": part}
    with pytest.raises(UserError, match="has both `split` and `list_file`; keep one"):
        check(YouTubeVOS, vos)
    assert check(DatasetConfig, {"folders": "x", "split": part}).split == split("val")
    for key, value in (("list", "x"), ("images", "x"), ("videos", ["x"])):
        with pytest.raises(UserError, match=f"`split` means nothing for `{key}`; leave it out"):
            check(DatasetConfig, {key: value, "split": part})


@pytest.mark.parametrize("wrong", [{"share": 0}, {"share": 1}, {"seed": -1}, {"part": "test"}])
def test_values_out_of_range(wrong):
    with pytest.raises(ValidationError):
        Split(**{"part": "val", **wrong})
