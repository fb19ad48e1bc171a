"""GOT-10k's layout: what is found, counted and refused."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from timewalk.config.dense import GOT10k, GOT10kShapes
from timewalk.data.generated_tracks import moving_object, write_got10k
from timewalk.data.prepare.tracks import prepare_tracks
from timewalk.data.tracks import LabelledTracks
from timewalk.errors import UserError

NAMES = ("GOT-10k_Val_000001", "GOT-10k_Val_000002")
SIZE, FRAMES = (48, 64), 8


def write(root, subset="val"):
    rngs = np.random.default_rng(0).spawn(len(NAMES))
    videos = {
        name: moving_object(FRAMES, SIZE, i, rng)
        for i, (name, rng) in enumerate(zip(NAMES, rngs, strict=True))
    }
    write_got10k(root, videos, subset=subset)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    root = tmp_path_factory.mktemp("published") / "GOT-10k"
    write(root)
    return root


@pytest.fixture
def root(published, tmp_path):
    return shutil.copytree(published, tmp_path / "GOT-10k")


def prepared(root, subset="val", **keys):
    manifest = root.parent / "set" / "manifest.json"
    config = GOT10k(kind="got10k", root=str(root), subset=subset, **keys)
    return prepare_tracks("got", config, manifest), manifest


def message(root, subset="val"):
    with pytest.raises(UserError) as caught:
        prepared(root, subset)
    text = str(caught.value)
    assert text.startswith("labelled.got")
    assert text.endswith(".")
    assert "\n" not in text
    return text


def lines(path, change):
    """Change a text file's lines: ``change`` gets and returns the list."""
    path.write_text("".join(f"{line}\n" for line in change(path.read_text().splitlines())))


def test_manifest(root):
    about, manifest = prepared(root)
    tracks = LabelledTracks(manifest)
    outside = sum(
        int(((b[:, :2] < 0).any(1) | (b[:, :2] + b[:, 2:] > SIZE[::-1]).any(1)).sum())
        for b in (track.boxes for track in tracks)
    )
    assert outside > 0
    assert about["kind"] == "labelled_tracks"
    assert about["layout"] == "got10k"
    assert about["counts"] == {
        "sequences": 2,
        "frames": 16,
        "boxes": 16,
        "classes": 2,
        "unseen": 2,
        "partly_outside": outside,
    }
    assert about["classes"] == ["green ellipse", "red ellipse"]
    assert about["warnings"] == ["the list names 2 sequences, the published one 180"]
    assert json.loads(manifest.read_text()) == about


def test_the_digest_follows_frames_and_labels(root):
    first = prepared(root)[0]["digest"]
    assert prepared(root)[0]["digest"] == first
    lines(root / "val" / NAMES[0] / "cover.label", lambda rows: [*rows[:-1], "1"])
    second = prepared(root)[0]["digest"]
    frame = root / "val" / NAMES[0] / "00000002.jpg"
    frame.write_bytes(frame.read_bytes() + b"\0")
    assert len({first, second, prepared(root)[0]["digest"]}) == 3


def test_the_folder_above_and_unlisted_sequences(root):
    (root / "val" / "GOT-10k_Val_000009").mkdir()
    config = GOT10k(kind="got10k", root=str(root.parent))
    about = prepare_tracks("got", config, root.parent / "set" / "manifest.json")
    assert about["counts"]["sequences"] == 2


def test_of_test_only_the_first_box_is_there(tmp_path):
    write(tmp_path / "GOT-10k", subset="test")
    about, manifest = prepared(tmp_path / "GOT-10k", "test")
    assert (about["counts"]["boxes"], about["counts"]["frames"], about["classes"]) == (2, 16, [])
    tracks = LabelledTracks(manifest)
    assert not tracks.scored
    assert tracks.sequences[0].boxes.shape == (1, 4)
    assert tracks.sequences[0].cover is None
    assert tracks.sequences[0].object_class is None


def test_the_set_is_not_there(tmp_path):
    assert "holds val/list.txt and val/<sequence>/00000001.jpg" in message(tmp_path / "none")


def test_another_resolution_is_told_and_cuts(root):
    place = root / "val" / NAMES[0] / "meta_info.ini"
    place.write_text(place.read_text().replace("(64, 48)", "(60, 40)"))
    about, manifest = prepared(root)
    assert "1 sequence has frames of another size than meta_info.ini says" in about["warnings"][1]
    track = LabelledTracks(manifest)[NAMES[0]]
    assert (track.size, track.bound) == ((48, 64), (40, 60))


def test_a_box_of_what_is_not_seen_may_be_anything(root):
    place = root / "val" / NAMES[0]
    lines(place / "groundtruth.txt", lambda rows: [*rows[:4], "NaN,NaN,NaN,NaN", *rows[5:]])
    track = LabelledTracks(prepared(root)[1])[NAMES[0]]
    assert track.cover[4] == 0
    assert np.isnan(track.boxes[4]).all()


def box(line):
    return lambda rows: [line, *rows[1:]]


@pytest.mark.parametrize(
    ("file", "change", "expected"),
    [
        ("groundtruth.txt", box("5,5,0,10"), f"begins with a box without area in the frame, so "
         f"'{NAMES[0]}' cannot be tracked"),
        ("groundtruth.txt", box("70,5,10,10"), "begins with a box without area in the frame"),
        ("groundtruth.txt", box("nan,5,10,10"), "line 1 has a number that is not finite"),
        ("groundtruth.txt", box("5,5,10"), "line 1 is '5,5,10', not x,y,w,h"),
        ("groundtruth.txt", box("5 5 10 10"), "line 1 is '5 5 10 10', not x,y,w,h"),
        ("groundtruth.txt", lambda rows: rows[:-1], "has 7 lines, but there are 8 frames"),
        ("groundtruth.txt", lambda rows: [*rows[:2], "5,5,-1,10", *rows[3:]],
         "line 3 has a negative width or height"),
        ("groundtruth.txt", lambda rows: [], "is empty"),
        ("cover.label", lambda rows: rows[1:], "has 7 lines, but there are 8 frames"),
        ("cover.label", lambda rows: ["9", *rows[1:]], "line 1 is '9', not a number from 0 to 8"),
        ("absence.label", lambda rows: ["x", *rows[1:]], "line 1 is 'x', not a number from 0 to 1"),
        ("meta_info.ini", lambda rows: [*rows[:-1], "resolution: 64x48"],
         "has the resolution '64x48', not (width, height)"),
    ],
)  # fmt: skip
def test_faults_of_a_file(root, file, change, expected):
    lines(root / "val" / NAMES[0] / file, change)
    text = message(root)
    assert f"val/{NAMES[0]}/{file} {expected}" in text
    assert text.endswith("restore the published files.")


@pytest.mark.parametrize(
    "file", ["groundtruth.txt", "cover.label", "absence.label", "cut_by_image.label",
             "meta_info.ini", "00000004.jpg"],
)  # fmt: skip
def test_missing_files(root, file):
    (root / "val" / NAMES[1] / file).unlink()
    assert f"val/{NAMES[1]}/{file} is missing" in message(root)


def test_a_missing_sequence_and_list(root):
    shutil.rmtree(root / "val" / NAMES[1])
    assert f"val/{NAMES[1]} is missing" in message(root)
    (root / "val" / "list.txt").unlink()
    assert "list.txt is missing" in message(root)


def test_frames(root):
    place = root / "val" / NAMES[0]
    (place / "00000003.jpg").write_bytes(b"no image")
    Image.new("RGB", (32, 32)).save(place / "00000005.jpg")
    text = message(root)
    assert "00000003.jpg cannot be read (no image)" in text
    assert "00000005.jpg is 32x32 pixels, its sequence's first frame 64x48" in text


def cut_off(path, bytes_left):
    path.write_bytes(path.read_bytes()[:bytes_left])


def test_a_frame_that_breaks_off(root):
    frame = root / "val" / NAMES[0] / "00000003.jpg"
    cut_off(frame, -2)
    text = message(root)
    assert f"val/{NAMES[0]}/00000003.jpg cannot be read (image file is truncated" in text


@pytest.mark.parametrize("item", ["../val", "..", ".", "a/b", "a\\b"])
def test_names_that_lead_elsewhere(root, item):
    lines(root / "val" / "list.txt", lambda rows: [rows[0], item])
    assert message(root) == (
        f"labelled.got: the list {root}/val/list.txt names {item!r}, which is no folder beside "
        "it; restore the published file."
    )


def test_one_sequence_is_told_as_one(root):
    lines(root / "val" / "list.txt", lambda rows: rows[:1])
    warnings = prepared(root)[0]["warnings"]
    assert warnings == ["the list names 1 sequence, the published one 180"]


@pytest.mark.parametrize("mark", ["\u2028", "\u0085"])
def test_names_with_unusual_line_separators(root, mark):
    name = f"a{mark}b"
    (root / "val" / NAMES[0]).rename(root / "val" / name)
    lines(root / "val" / "list.txt", lambda rows: [name, *rows[1:]])
    about = root / "val" / name / "meta_info.ini"
    about.write_text(about.read_text().replace("object_class: ", f"object_class: {mark}x{mark}"))
    manifest = prepared(root)[1]
    tracks = LabelledTracks(manifest)
    assert [track.name for track in tracks] == [name, NAMES[1]]
    assert mark in tracks[name].object_class


def test_generated_in_the_published_layout(tmp_path):
    manifest = tmp_path / "set" / "manifest.json"
    config = GOT10kShapes(kind="got10k_shapes", height=48, width=64, frames=8, sequences=3)
    about = prepare_tracks("got", config, manifest)
    assert about["parameters"]["kind"] == "got10k_shapes"
    assert about["counts"]["sequences"] == 3
    assert about["warnings"] == []
    again = prepare_tracks("got", config, manifest)
    assert again["digest"] == about["digest"]
    other = prepare_tracks("got", config.model_copy(update={"seed": 1}), manifest)
    assert other["digest"] != about["digest"]


def test_generated_does_not_replace_what_is_not(tmp_path):
    (tmp_path / "set" / "GOT-10k").mkdir(parents=True)
    config = GOT10kShapes(kind="got10k_shapes")
    with pytest.raises(UserError, match="exists and was not generated; write the manifest into"):
        prepare_tracks("got", config, tmp_path / "set" / "manifest.json")
