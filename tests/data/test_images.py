"""Image folders as a training source: every image once, as it is, whatever its format."""

import numpy as np
import pytest
import torch
from PIL import Image

from timewalk.artefacts import read_manifest
from timewalk.data.clips import open_clips
from timewalk.data.images import index_images
from timewalk.errors import UserError

SOLID = (200, 100, 50)


def picture(mode, size=(20, 12)):
    if mode == "I;16":
        return Image.fromarray(np.full(size[::-1], 200 << 8, np.uint16))
    image = Image.new("RGB", size, SOLID)
    return (
        image.convert("P", palette=Image.Palette.ADAPTIVE) if mode == "P" else image.convert(mode)
    )


FORMATS = {
    "a/one.jpg": "RGB",
    "a/two.JPEG": "CMYK",
    "b/deep/three.png": "RGBA",
    "b/four\u2028.png": "I;16",
    "b/five.gif": "P",
    "six.webp": "RGB",
    "seven.png": "L",
}


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "stills ü"
    for number, (name, mode) in enumerate(FORMATS.items()):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(mode, (20 + number, 12)).save(path)
    (root / "notes.txt").write_text("no image")
    (root / ".hidden.png").write_bytes(b"no image either")
    (root / ".cache").mkdir()
    (root / ".cache" / "x.png").write_bytes(b"nor this")
    return root


def test_every_image_is_a_clip_of_one_frame(folder, tmp_path):
    manifest = tmp_path / "shards" / "stills" / "images.json"
    index_images(folder, manifest, workers=2)
    clips = open_clips([manifest], 1, 0)
    assert len(clips) == len(FORMATS)
    seen = {}
    for number, name in enumerate(sorted(FORMATS)):
        clip = clips.clip(number)
        assert (clip.video, clip.start, clip.times.tolist()) == ("stills", number, [0.0])
        assert clip.frames.shape[:3] == (1, 3, 12)
        assert clip.frames.dtype == torch.uint8
        seen[name] = clip.frames
    for name, frames in seen.items():
        expected = SOLID
        if FORMATS[name] == "L":
            expected = (picture("L").getpixel((0, 0)),) * 3
        if FORMATS[name] == "I;16":
            expected = (200,) * 3
        colour = frames[0].float().mean((1, 2))
        assert (colour - torch.tensor(expected)).abs().max() < 6, name


def test_links_are_followed_but_not_in_circles(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "elsewhere" / "x.png")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "a" / "circle").symlink_to(folder)
    manifest = tmp_path / "shards" / "stills" / "images.json"
    found = index_images(folder, manifest)
    assert found["counts"]["frames"] == len(FORMATS) + 1
    assert "linked/x.png" in manifest.with_suffix(".txt").read_text()


def test_the_manifest_hangs_on_the_content_alone(folder, tmp_path):
    manifests = []
    for name in ("one", "two"):
        path = tmp_path / name / "stills" / "images.json"
        index_images(folder, path, workers=1 if name == "one" else 3)
        manifests.append(path)
    one, two = (read_manifest(path, "shards") for path in manifests)
    assert one == two
    assert one["counts"]["frames"] == len(FORMATS)
    Image.new("RGB", (20, 12), "black").save(folder / "a" / "one.jpg")
    index_images(folder, manifests[0])
    assert read_manifest(manifests[0], "shards")["inputs"] != two["inputs"]
    with pytest.raises(UserError, match=r"one\.jpg: frame 0 .* run the images stage again"):
        open_clips([manifests[1]], 1, 0).clip(0)


def test_images_that_cannot_be_read_are_counted_and_named(folder, tmp_path):
    whole = (folder / "a" / "one.jpg").read_bytes()
    (folder / "a" / "one.jpg").write_bytes(whole[:100])
    (folder / "zero.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"2 of 8 images: .*one\.jpg .*zero\.png"):
        index_images(folder, tmp_path / "x" / "images.json")
    assert not (tmp_path / "x").exists()


def test_what_is_no_folder_of_images_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="is no folder: correct the data set's key 'images'"):
        index_images(tmp_path / "absent", tmp_path / "images.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no image"):
        index_images(tmp_path / "empty", tmp_path / "images.json")


def test_a_removed_image_and_a_removed_list_are_named(folder, tmp_path):
    manifest = tmp_path / "shards" / "stills" / "images.json"
    index_images(folder, manifest)
    (folder / "six.webp").unlink()
    with pytest.raises(UserError, match=r"six\.webp cannot be read: restore it"):
        open_clips([manifest], 1, 0).clip(len(FORMATS) - 1)
    manifest.with_suffix(".txt").unlink()
    with pytest.raises(UserError, match=r"images\.txt is missing or damaged"):
        open_clips([manifest], 1, 0)


def test_clips_of_several_frames_are_refused(folder, tmp_path):
    manifest = tmp_path / "shards" / "stills" / "images.json"
    index_images(folder, manifest)
    with pytest.raises(UserError, match=r"'stills' holds still images, but a clip .* 8 frames"):
        open_clips([manifest], 8, 1)
