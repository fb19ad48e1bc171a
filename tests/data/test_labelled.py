import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from timewalk.config import ArrayLabels, FolderLabels, ShotLabels
from timewalk.data.labelled import LabelledImages, to_rgb, transform
from timewalk.data.prepare import prepare
from timewalk.errors import UserError


def noise(width, height, mode="RGB"):
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    pixels = np.random.default_rng(width).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(pixels)


@given(
    width=st.integers(1, 320),
    height=st.integers(1, 320),
    short_side=st.integers(1, 40),
    crop=st.integers(1, 45),
)
@example(width=300, height=21, short_side=33, crop=28)
@example(width=33, height=40, short_side=33, crop=38)
def test_the_transform_is_the_usual_one(width, height, short_side, crop):
    usual = transforms.Compose(
        [
            transforms.Resize(short_side, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(crop),
        ]
    )
    image = noise(width, height)
    assert np.array_equal(transform(image, short_side, crop), usual(image))


def test_modes():
    grey = noise(8, 8, "L")
    assert np.array_equal(to_rgb(grey), np.stack([np.asarray(grey)] * 3, -1))
    deep = Image.fromarray(np.array([[0, 256 * 7, 65535]], np.uint16))
    assert np.asarray(to_rgb(deep))[0, :, 0].tolist() == [0, 7, 255]
    assert to_rgb(noise(8, 8).convert("P")).mode == "RGB"
    assert to_rgb(noise(8, 8).convert("RGBA")).mode == "RGB"


@pytest.fixture
def folder_set(tmp_path):
    root = tmp_path / "images"
    for split, count in (("train", 3), ("val", 2)):
        for label in ("cat", "dog"):
            (root / split / label).mkdir(parents=True)
            for i in range(count):
                noise(30 + i, 40, "L" if i else "RGB").save(root / split / label / f"{i}.png")
    config = FolderLabels(kind="folder", root=str(root), resize=24, crop=16)
    prepare("pets", config, tmp_path / "set" / "manifest.json")
    return tmp_path / "set" / "manifest.json"


def test_a_folder(folder_set, tmp_path):
    images = LabelledImages(folder_set, "train")
    assert (len(images), images.classes, images.name) == (6, ["cat", "dog"], "pets")
    assert [images[i][1] for i in range(6)] == images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    pixels, _ = images[4]
    assert (pixels.shape, pixels.dtype) == ((3, 16, 16), torch.uint8)
    source = Image.open(tmp_path / "images" / "train" / "dog" / "1.png")
    expected = np.asarray(transform(source, 24, 16)).transpose(2, 0, 1)
    assert np.array_equal(pixels, expected)
    assert len(LabelledImages(folder_set, "test")) == 4


def test_an_image_that_vanished(folder_set, tmp_path):
    (tmp_path / "images" / "train" / "cat" / "0.png").unlink()
    with pytest.raises(UserError, match=r"train/cat/0\.png cannot be read"):
        LabelledImages(folder_set, "train")[0]


def test_a_list_that_changed(folder_set):
    path = folder_set.parent / "train.txt"
    path.write_text(path.read_text() + "0\tmore.png\n")
    with pytest.raises(UserError, match=r"says 6 train images .* prepare stage again"):
        LabelledImages(folder_set, "train")
    path.unlink()
    with pytest.raises(UserError, match=r"train\.txt is missing"):
        LabelledImages(folder_set, "train")


def test_arrays(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    labels = np.array([0, 1, 1, 0])
    split = {"train_images": images, "train_labels": labels}
    np.savez(tmp_path / "x.npz", **split, test_images=images[:1, ..., 0], test_labels=labels[:1])
    config = ArrayLabels(kind="arrays", path=str(tmp_path / "x.npz"), resize=32, crop=32)
    prepare("toy", config, tmp_path / "set" / "manifest.json")
    train = LabelledImages(tmp_path / "set" / "manifest.json", "train")
    for i in range(4):  # no resize: the very pixels
        assert np.array_equal(train[i][0], images[i].transpose(2, 0, 1))
    grey, label = LabelledImages(tmp_path / "set" / "manifest.json", "test")[0]
    assert np.array_equal(grey, np.stack([images[0, ..., 0]] * 3))
    assert label == 0


def test_shots(make_frames, tmp_path):
    config = ShotLabels(kind="shots", dataset="set", resize=48, crop=48)
    manifest = tmp_path / "set" / "manifest.json"
    prepare("shots", config, manifest, {"walk": make_frames(count=7)})
    train, test = (LabelledImages(manifest, split) for split in ("train", "test"))
    assert (len(train), len(test), train.classes) == (4, 3, ["walk_0"])
    assert test[2][0].shape == (3, 48, 48)
