"""Folders of images as videos: found at any depth or listed, in order, never changed on disk."""

import hashlib
import pickle

import numpy as np
import pytest
from PIL import Image

from tests.miniature.video_sets import fbms59
from timewalk.artefacts import read_manifest
from timewalk.config import FBMS59, Split
from timewalk.data import frame_folders
from timewalk.data.clips import open_clips
from timewalk.data.frame_folders import index_frame_folders, open_stores
from timewalk.data.prepare import prepare
from timewalk.errors import UserError

VIDEOS = {
    "a b/küche": ["10.png", "2.png", "0.png", "1.x.png"],
    "deep/er/walk": ["frame_01.jpg", "frame_00.JPG", "frame_02.jpeg"],
    "zoo": ["00000.jpg", "00005.jpg"],
}
ORDER = {
    "a b/küche": ["0.png", "1.x.png", "2.png", "10.png"],
    "deep/er/walk": ["frame_00.JPG", "frame_01.jpg", "frame_02.jpeg"],
    "zoo": ["00000.jpg", "00005.jpg"],
}


def frame(path, value=0, size=(12, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)


@pytest.fixture
def root(tmp_path):
    """Each frame as bright as ten times its place in its video, each video of its own size."""
    root = tmp_path / "my vidéos"
    for number, (video, names) in enumerate(ORDER.items()):
        for place, name in enumerate(names):
            frame(root / video / name, 10 * place, (12 + number, 8))
    (root / "zoo" / "notes.txt").write_text("no frame")
    (root / "zoo" / "._00000.jpg").write_bytes(b"no frame either")
    (root / ".cache").mkdir()
    (root / ".cache" / "0.jpg").write_bytes(b"nor this")
    return root


@pytest.fixture
def manifest(tmp_path):
    return tmp_path / "data" / "shards" / "mine" / "folders.json"


def listed(root, text, name="list.txt", **how):
    path = root / name
    path.write_text(text, **how)
    return path


LINES = "".join(f"{video} {len(names)}\n" for video, names in VIDEOS.items())


def on_disk(root):
    """Digest of every path below a folder, with content and time of change."""
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        digest.update(f"{path}\t{path.stat().st_mtime_ns}\t".encode() + content)
    return digest.hexdigest()


def test_each_folder_is_a_video_in_the_order_of_its_numbers(root, manifest):
    before = on_disk(root)
    about = index_frame_folders(root, manifest, workers=2)
    assert on_disk(root) == before
    assert about["counts"]["videos"] == 3
    assert about["counts"]["frames"] == 9
    assert about["warnings"] == []
    stores = open_stores(manifest)
    assert [store.video for store in stores] == sorted(VIDEOS)
    for number, (store, names) in enumerate(zip(stores, ORDER.values(), strict=True)):
        assert len(store) == len(names)
        assert store.times.tolist() == list(range(len(names)))
        assert [store.where(k).rsplit("/", 1)[1] for k in range(len(names))] == names
        clip = open_clips([manifest], 1, 0).clip(sum(map(len, list(ORDER.values())[:number])) + 1)
        assert clip.frames.shape == (1, 3, 8, 12 + number)
        assert abs(clip.frames.float().mean().item() - 10) < 2
        assert (clip.video, clip.start, clip.times.tolist()) == (store.video, 1, [1.0])


def test_clips_stay_within_their_video(root, manifest):
    index_frame_folders(root, manifest)
    source = open_clips([manifest], 2, 1, shrink=True)
    assert source.counts() == [3, 2, 1]
    clips = [source.clip(k) for k in range(len(source))]
    assert [(clip.video, clip.start) for clip in clips] == [
        ("a b/küche", 0),
        ("a b/küche", 1),
        ("a b/küche", 2),
        ("deep/er/walk", 0),
        ("deep/er/walk", 1),
        ("zoo", 0),
    ]
    assert clips[2].frames.float().mean((1, 2, 3)).round().tolist() == [20, 30]


def test_a_list_says_which_folders_and_in_which_order(root, manifest):
    text = f"\n zoo/\t2 \r\n{root / 'deep/er/walk'} 3\na b/küche   4"
    about = index_frame_folders(listed(root, text, encoding="utf-8-sig"), manifest)
    assert about["counts"]["frames"] == 9
    stores = open_stores(manifest)
    assert [store.video for store in stores] == ["zoo", str(root / "deep/er/walk"), "a b/küche"]
    assert [len(store) for store in stores] == [2, 3, 4]
    assert stores[1].jpeg(0) == (root / "deep/er/walk/frame_00.JPG").read_bytes()


def test_a_list_and_a_root_of_the_same_videos_agree(root, tmp_path):
    one, two = (tmp_path / name / "x" / "folders.json" for name in ("one", "two"))
    index_frame_folders(root, one)
    index_frame_folders(listed(root, LINES), two, workers=3)
    assert read_manifest(one, "frame_folders") == read_manifest(two, "frame_folders")


@pytest.mark.parametrize("nested", [False, True])
def test_a_tree_one_level_too_shallow_is_refused_and_nothing_is_changed(tmp_path, manifest, nested):
    root = tmp_path / "one video"
    for number in range(3):
        frame(root / f"{number:05d}.jpg", number)
    if nested:
        frame(root / "a" / "00000.jpg")
    before = on_disk(tmp_path)
    with pytest.raises(UserError, match=r"one video holds images itself, .* name the folder above"):
        index_frame_folders(root, manifest)
    assert on_disk(tmp_path) == before


def test_a_tree_without_a_level_of_classes_is_read_as_it_is(tmp_path, manifest):
    root = tmp_path / "videos"
    for number in range(3):
        frame(root / "a" / f"{number:05d}.jpg", number)
    before = on_disk(tmp_path / "videos")
    about = index_frame_folders(root, manifest)
    assert (about["counts"]["videos"], about["counts"]["frames"]) == (1, 3)
    assert on_disk(tmp_path / "videos") == before


@pytest.mark.parametrize(
    "place", ["clip.avi", "cat/clip.x.MP4", "deep/er/clip.mkv", "a/clip.ogv", "b.ts"]
)
@pytest.mark.parametrize("alone", [True, False])
def test_video_files_are_refused_and_nothing_is_changed(tmp_path, manifest, place, alone):
    path = tmp_path / "set" / place
    path.parent.mkdir(parents=True)
    path.write_bytes(b"a video")
    if not alone:
        frame(tmp_path / "set" / "cat" / "clip" / "00000.jpg")
    before = on_disk(tmp_path)
    with pytest.raises(
        UserError, match=rf"set/{place} is a video file, .* name such files under 'videos:'"
    ):
        index_frame_folders(tmp_path / "set", manifest)
    assert on_disk(tmp_path) == before


def test_images_beside_folders_with_images_are_refused(root, manifest):
    frame(root / "deep" / "cover.png")
    before = on_disk(root.parent)
    with pytest.raises(UserError, match=r"deep holds images and so does .*deep/er/walk below it"):
        index_frame_folders(root, manifest)
    assert on_disk(root.parent) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("zoo 2\nzoo2 4", r"list\.txt, line 2: there is no folder .*zoo2; correct or remove"),
        ("\n\nzoo 3", r"list\.txt, line 3: .*zoo holds 2 frames, but the list says 3"),
        ("zoo", r"line 1: 'zoo' is not '<directory> <number of frames>'"),
        ("2", r"line 1: '2' is not '<directory>"),
        ("zoo two", r"line 1: 'zoo two' is not"),
        ("zoo -2", r"line 1: 'zoo -2' is not"),
        ("zoo 2\ndeep/../zoo/ 2", r"line 2: .* is in line 1 already"),
        ("deep 0", r"line 1: .*deep holds no frames; remove the line"),
        (" \n", r"list\.txt names no video"),
    ],
)
def test_lists_that_do_not_agree_with_the_folders(root, manifest, text, message):
    before = on_disk(root / "zoo")
    with pytest.raises(UserError, match=message):
        index_frame_folders(listed(root, text), manifest)
    assert on_disk(root / "zoo") == before
    assert not manifest.parent.exists()


def test_a_list_in_another_encoding_is_one_sentence(root, manifest):
    with pytest.raises(UserError, match=r"list\.txt is no UTF-8 text"):
        index_frame_folders(listed(root, "küche 4", encoding="latin-1"), manifest)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cover.jpg", r"zoo: 'cover\.jpg' does not begin with its number as the other frames do"),
        ("5.png", r"zoo: '(00005\.jpg|5\.png)' and '.*' have the same number"),
    ],
)
def test_frames_without_a_clear_order_are_refused(root, manifest, name, message):
    frame(root / "zoo" / name)
    with pytest.raises(UserError, match=message):
        index_frame_folders(root, manifest)


def test_unpadded_numbers_within_names_are_warned_of(root, manifest):
    for number in (1, 2, 10):
        frame(root / "far" / f"img_{number}.jpg")
    (warning,) = index_frame_folders(root, manifest)["warnings"]
    assert warning.startswith("1 of 4 videos, the first 'far', are taken in the order of")
    where = open_stores(manifest)[2].where(1)
    assert where.endswith("img_10.jpg")


def test_frames_of_another_size_are_named(root, manifest):
    frame(root / "zoo" / "00010.jpg", size=(14, 9))
    with pytest.raises(UserError, match=r"00010\.jpg is 14x9 pixels but .* first frame is 14x8"):
        index_frame_folders(root, manifest)


def test_frames_that_cannot_be_read_are_counted_and_the_first_named(root, manifest, monkeypatch):
    monkeypatch.setattr(frame_folders, "FRAMES_AT_ONCE", 2)
    for name in ("1.jpg", "2.jpg", "3.jpg", "4.jpg"):
        (root / "zoo" / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"4 of 13 frames: .*1\.jpg .*2\.jpg .*3\.jpg") as caught:
        index_frame_folders(root, manifest)
    assert "4.jpg" not in str(caught.value)


def test_blocks_of_frames_change_nothing(root, tmp_path, monkeypatch):
    one, two = (tmp_path / name / "x" / "folders.json" for name in ("one", "two"))
    index_frame_folders(root, one)
    monkeypatch.setattr(frame_folders, "FRAMES_AT_ONCE", 2)
    index_frame_folders(root, two, workers=4)
    assert one.read_bytes() == two.read_bytes()


def test_what_holds_no_video_is_one_sentence(tmp_path, manifest):
    with pytest.raises(UserError, match=r"is neither a folder nor a file: .* 'folders' or 'list'"):
        index_frame_folders(tmp_path / "absent", manifest)
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    with pytest.raises(UserError, match="empty has no folder of images"):
        index_frame_folders(tmp_path / "empty", manifest)


@pytest.mark.parametrize("above", ["", "train"])
@pytest.mark.parametrize("masks", ["Annotations", "Annotations_unsupervised"])
def test_a_published_root_with_masks_is_refused(tmp_path, manifest, above, masks):
    root = tmp_path / "set"
    frame(root / above / "JPEGImages" / "walk" / "00000.jpg")
    frame(root / above / masks / "walk" / "00000.png")
    images = root / above / "JPEGImages"
    with pytest.raises(UserError, match=rf"{masks}/walk for one, and the masks would") as caught:
        index_frame_folders(root, manifest)
    assert str(caught.value).endswith(f"name the frames' folder, {images}.")
    assert index_frame_folders(images, manifest)["counts"]["videos"] == 1


def test_a_folder_without_frames_is_refused_with_a_split_only(root, manifest):
    (root / "deep" / "lost" / "deeper").mkdir(parents=True)
    (root / "zoo" / "notes").mkdir()
    part = Split(part="train", share=0.5)
    with pytest.raises(UserError, match=r"deep/lost holds no frame of its own, so that the key"):
        index_frame_folders(root, manifest, split=part)
    assert not manifest.parent.exists()
    assert index_frame_folders(root, manifest)["counts"]["videos"] == 3
    (root / "deep" / "lost" / "deeper").rmdir()
    (root / "deep" / "lost").rmdir()
    about = index_frame_folders(root, manifest, split=part)
    assert (about["counts"]["videos"], about["parameters"]["split"]["names"]) == (1, 3)


def test_what_changed_after_indexing_is_noticed(root, manifest):
    index_frame_folders(root, manifest)
    frame(root / "zoo" / "00005.jpg", 200, (14, 8))
    (root / "zoo" / "00000.jpg").unlink()
    store = open_stores(manifest)[2]
    with pytest.raises(UserError, match=r"00005\.jpg: frame 1 .* run the folders stage again"):
        store.jpeg(1)
    with pytest.raises(UserError, match=r"00000\.jpg cannot be read: restore it"):
        store.jpeg(0)
    manifest.with_suffix(".txt").write_text("other\n")
    with pytest.raises(UserError, match=r"folders\.txt is missing or damaged"):
        open_stores(manifest)


def test_names_that_are_no_utf8_and_links(root, manifest):
    odd = root / b"od\xffd".decode("utf-8", "surrogateescape")
    try:
        frame(odd / "0.png")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (root / "zoo" / "circle").symlink_to(root)
    assert index_frame_folders(root, manifest)["counts"]["videos"] == 4
    by_name = {store.video: store for store in open_stores(manifest)}
    assert by_name[odd.name].jpeg(0) == (odd / "0.png").read_bytes()


def test_stores_can_be_sent_to_other_processes(root, manifest):
    index_frame_folders(root, manifest)
    stores = open_stores(manifest)
    again = pickle.loads(pickle.dumps(stores))
    assert again[0].listing is again[2].listing
    assert [a.jpeg(1) for a in again] == [b.jpeg(1) for b in stores]
    assert np.array_equal(again[1].times, stores[1].times)


def test_the_users_own_list_is_not_replaced(root):
    source = listed(root, LINES)
    before = source.read_bytes()
    with pytest.raises(UserError, match=r"list\.txt would be replaced by the list of frames"):
        index_frame_folders(source, source.with_suffix(".json"))
    assert source.read_bytes() == before


def test_the_frames_of_a_labelled_set_are_videos_without_its_masks(tmp_path, manifest):
    made = fbms59(tmp_path / "FBMS")
    settings = FBMS59(kind="fbms59", root=str(tmp_path / "FBMS"))
    prepare("fbms", settings, tmp_path / "sets" / "manifest.json")
    index_frame_folders(tmp_path / "sets" / "manifest.json", manifest)
    stores = open_stores(manifest)
    names = sorted(made)
    assert [store.video for store in stores] == [f"Testset/{name}" for name in names]
    assert [len(store) for store in stores] == [6] * len(names)
    clip = open_clips([manifest], 6, 1, sampling="dense").clip(1)
    shown = clip.frames.permute(0, 2, 3, 1).numpy().astype(int)
    own, other = (np.abs(shown - made[names[k]].frames).mean() for k in (1, 0))
    assert own < 8 < other, "JPEG changes little"
