"""What evaluations read of labelled videos, and generated motion."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from tests.miniature import video_sets
from timewalk.artefacts import sha256_file
from timewalk.config import Davis2017
from timewalk.data.generated import davis_palette, moving_shapes, save_ids, write_davis
from timewalk.data.prepare import prepare
from timewalk.data.sequences import (
    LabelledVideos,
    Sequence,
    read_frame,
    read_ids,
    read_joints,
)
from timewalk.errors import UserError


@pytest.fixture
def manifest(tmp_path):
    video_sets.davis2017(tmp_path / "DAVIS", frames=3)
    path = tmp_path / "set" / "manifest.json"
    prepare("davis", Davis2017(kind="davis2017", root=str(tmp_path / "DAVIS")), path)
    return path


def test_the_sequences_of_a_set(manifest, tmp_path):
    videos = LabelledVideos(manifest)
    assert len(videos) == 2
    assert (videos.name, videos.kind, videos.subset) == ("davis", "davis2017", "val")
    assert videos.root.resolve() == tmp_path / "DAVIS"
    assert [video.name for video in videos] == ["blackswan", "camel"]
    assert videos["camel"] is videos.sequences[1]
    assert len(videos["camel"].frames) == len(videos["camel"].masks) == 3
    with pytest.raises(UserError, match=r"davis has no sequence 'camels'; did you mean 'camel'"):
        videos["camels"]


def test_a_list_that_is_not_the_manifests(manifest):
    rows = (manifest.parent / "sequences.jsonl").read_text().splitlines()
    assert json.loads(rows[0])["size"] == [48, 64]
    (manifest.parent / "sequences.jsonl").write_text(rows[0] + "\n")
    with pytest.raises(UserError, match=r"sequences\.jsonl is missing or not the one of .*; run"):
        LabelledVideos(manifest)
    (manifest.parent / "sequences.jsonl").unlink()
    with pytest.raises(UserError, match=r"sequences\.jsonl is missing or not the one of"):
        LabelledVideos(manifest)


def test_a_manifest_of_another_kind(tmp_path):
    (tmp_path / "manifest.json").write_text('{"kind": "labelled"}')
    with pytest.raises(UserError, match=r"describes 'labelled', but a manifest of 'labelled_vid"):
        LabelledVideos(tmp_path / "manifest.json")


@pytest.mark.parametrize("mode", ["P", "L"])
def test_all_ids_survive(tmp_path, mode):
    ids = np.arange(256, dtype=np.uint8).reshape(16, 16)
    if mode == "P":
        save_ids(tmp_path / "ids.png", ids)
    else:
        Image.fromarray(ids).save(tmp_path / "ids.png")
    with Image.open(tmp_path / "ids.png") as image:
        assert image.mode == mode
    found = read_ids(tmp_path / "ids.png", (16, 16))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, ids)


def test_one_bit_masks_are_ids(tmp_path):
    Image.fromarray(np.eye(8, dtype=bool)).save(tmp_path / "ids.png")
    np.testing.assert_array_equal(read_ids(tmp_path / "ids.png"), np.eye(8))


def test_masks_that_are_no_ids(tmp_path):
    path = tmp_path / "mask.png"
    Image.new("RGB", (6, 4)).save(path)
    with pytest.raises(UserError, match=r"mask\.png holds colours \(mode RGB\), not ids: save"):
        read_ids(path)
    Image.new("L", (6, 4)).save(path)
    with pytest.raises(UserError, match=r"mask\.png is 6x4 pixels, not 4x6 as its sequence"):
        read_ids(path, (6, 4))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match=r"mask\.png cannot be read \(.+\); restore"):
        read_ids(path)
    path.unlink()
    with pytest.raises(UserError, match=r"mask\.png cannot be read \(it is missing\)"):
        read_ids(path)


def test_frames_are_rgb(tmp_path):
    path = tmp_path / "frame.png"
    Image.new("L", (6, 4), 7).save(path)
    frame = read_frame(path, (4, 6))
    assert frame.shape == (4, 6, 3)
    assert frame.dtype == np.uint8
    assert (frame == 7).all()
    with pytest.raises(UserError, match=r"frame\.png is 6x4 pixels, not 9x8"):
        read_frame(path, (8, 9))


def test_frames_of_16_bits_are_scaled(tmp_path):
    path = tmp_path / "grey.png"
    levels = np.array([[0, 255, 256, 257], [0x1234, 0x7FFF, 0x8000, 65535]], np.uint16)
    Image.fromarray(levels).save(path)
    frame = read_frame(path)
    assert (frame.shape, frame.dtype) == ((2, 4, 3), np.uint8)
    assert frame[..., 0].tolist() == [[0, 0, 1, 1], [0x12, 0x7F, 0x80, 255]]
    assert (frame == frame[..., :1]).all()


def test_names_with_unusual_line_separators_survive(manifest):
    rows = (manifest.parent / "sequences.jsonl").read_text().replace("camel", "ca\u2028mel")
    (manifest.parent / "sequences.jsonl").write_text(rows)
    about = json.loads(manifest.read_text())
    about["source"]["list_sha256"] = sha256_file(manifest.parent / "sequences.jsonl")
    manifest.write_text(json.dumps(about))
    assert [video.name for video in LabelledVideos(manifest)] == ["blackswan", "ca\u2028mel"]


def test_joints_count_pixels_from_0(tmp_path):
    path = tmp_path / "joint_positions.mat"
    positions = np.random.default_rng(0).uniform(1, 300, (2, 15, 7))
    savemat(path, {"pos_img": positions})
    found = read_joints(path)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, positions - 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"pos_img": np.ones((2, 13, 4))}, r"no finite `pos_img` .*, but \(2, 13, 4\)"),
        ({"pos_img": np.full((2, 15, 4), np.nan)}, r"no finite `pos_img` of shape \(2, 15, n\)"),
        ({"viewpoint": 1.0}, r"no finite `pos_img`"),
        (None, r"joints\.mat cannot be read as a \.mat file"),
    ],
)
def test_files_that_hold_no_joints(tmp_path, content, message):
    path = tmp_path / "joints.mat"
    if content is None:
        path.write_bytes(b"no matrix" * 40)
    else:
        savemat(path, content)
    with pytest.raises(UserError, match=message):
        read_joints(path)


def test_the_foreground_is_an_id_not_a_brightness(tmp_path):
    """Id 22 of DAVIS's palette is nearly black, and background may have any colour."""
    ids = np.array([[0, 1], [22, 255]], np.uint8)
    save_ids(tmp_path / "0.png", ids)
    path = tmp_path / "0.png"
    video = Sequence("a", (path,), (path,), (2, 2))
    np.testing.assert_array_equal(video.foreground(0), ids > 0)


def test_the_foreground_of_several_files(tmp_path):
    parts = np.array([[[1, 0, 0]], [[0, 0, 1]]], np.uint8) * 255
    paths = []
    for number, part in enumerate(parts):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(part).convert("RGB").save(paths[-1])
    video = Sequence("a", (paths[0],), (paths[0],), (1, 3), layers=((paths[1],),))
    np.testing.assert_array_equal(video.foreground(0), [[True, False, True]])
    bare = Sequence("a", (paths[0],), (None,), (1, 3))
    assert bare.foreground(0) is None


def test_thresholds_and_white_background(tmp_path):
    path = tmp_path / "0.png"
    Image.fromarray(np.array([[25, 26, 200, 253]], np.uint8)).save(path)
    video = Sequence("a", (path,), (path,), (1, 4), above=0.1)
    np.testing.assert_array_equal(video.foreground(0), [[False, True, True, True]])
    white = Sequence("a", (path,), (path,), (1, 4), above=0.1, white_is_background=True)
    np.testing.assert_array_equal(white.foreground(0), [[False, True, True, False]])


def test_shapes_move_as_their_centres_say():
    video = moving_shapes(20, (60, 80), 1, np.random.default_rng(1))
    assert video.frames.shape == (20, 60, 80, 3)
    steps = np.abs(np.diff(video.centres[:, 0], axis=0))
    assert steps.max() <= 3
    assert (steps.sum(axis=1) > 0).all()
    rows, columns = (np.array([place.mean() for place in axis]) for axis in _places(video.ids))
    np.testing.assert_allclose(columns, video.centres[:, 0, 0], atol=1e-9)
    np.testing.assert_allclose(rows, video.centres[:, 0, 1], atol=1e-9)
    assert len({int((ids > 0).sum()) for ids in video.ids}) == 1


def _places(ids):
    found = [np.nonzero(frame) for frame in ids]
    return [place[0] for place in found], [place[1] for place in found]


def test_shapes_carry_their_texture_along():
    video = moving_shapes(6, (60, 80), 1, np.random.default_rng(2))

    def patch(t):
        x, y = video.centres[t, 0]
        return video.frames[t, y - 3 : y + 4, x - 3 : x + 4]

    for t in range(1, 6):
        np.testing.assert_array_equal(patch(t), patch(0))
    outside = (video.ids == 0).all(axis=0)
    assert (video.frames[:, outside] == video.frames[0, outside]).all()
    assert video.frames[0].std() > 20


@settings(max_examples=30, deadline=None)
@given(
    frames=st.integers(1, 40),
    size=st.tuples(st.integers(16, 70), st.integers(16, 70)),
    objects=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_shapes_stay_inside_and_never_jump(frames, size, objects, seed):
    video = moving_shapes(frames, size, objects, np.random.default_rng(seed))
    assert video.ids.shape == (frames, *size)
    assert video.ids.max() <= objects
    extent = np.array([size[1], size[0]])
    assert (video.centres - video.radii >= 0).all()
    assert (video.centres + video.radii < extent).all()
    assert np.abs(np.diff(video.centres, axis=0)).max(initial=0) <= 3


@pytest.mark.parametrize("seed", range(5))
def test_every_object_is_seen_in_the_first_frame(seed):
    video = moving_shapes(4, (48, 64), 4, np.random.default_rng(seed))
    assert set(np.unique(video.ids[0])) == {0, 1, 2, 3, 4}


def test_the_palette_of_davis():
    palette = np.array(davis_palette()).reshape(256, 3)
    assert palette[1].tolist() == [128, 0, 0]
    assert palette[9].tolist() == [191, 0, 0]
    assert palette[22].tolist() == [22, 22, 22]
    assert palette[255].tolist() == [255, 255, 255]


def test_a_set_written_again_is_the_same(tmp_path):
    video = moving_shapes(3, (40, 48), 2, np.random.default_rng(0))
    for _ in range(2):
        write_davis(tmp_path / "DAVIS", {"a": video})
        files = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
        assert len(files) == 6
    write_davis(tmp_path / "DAVIS", {"b": video})
    assert not (tmp_path / "DAVIS" / "JPEGImages" / "480p" / "a").exists()


def test_shade_takes_light_and_leaves_the_masks():
    plain, shaded = (
        moving_shapes(24, (48, 64), 2, np.random.default_rng(3), shade=shade)
        for shade in (0.0, 0.75)
    )
    np.testing.assert_array_equal(plain.ids, shaded.ids)
    light = shaded.frames.mean((1, 2, 3)) / plain.frames.mean((1, 2, 3))
    assert light.max() <= 1
    assert 0.2 < light.min() < 0.35, "three quarters are lost at the darkest"
    assert light.max() > 0.9, "and come again"
    dark = light.argmin()
    np.testing.assert_allclose(shaded.frames[dark], light[dark] * plain.frames[dark], atol=1.5)
