"""Segmentation by the nearest training patches: numbers, interruptions, refusals."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from tests.evaluation.coloured_masks import (
    CLASSES,
    COLOURS,
    SIDE,
    VOID,
    MeanColours,
    a_run,
    change,
    class_maps,
    write_set,
)
from tests.miniature import video_sets
from timewalk.config import Davis2017
from timewalk.data.prepare import prepare
from timewalk.errors import UserError
from timewalk.evaluation import dense_retrieval
from timewalk.evaluation.base import Inputs
from timewalk.evaluation.dense_retrieval import Config, evaluate

CPU = torch.device("cpu")
KEYS = {
    **{"dataset": "colours", "image_size": SIDE, "map_size": 8, "memory_size": 10_000},
    **{"augmentation_passes": 0, "neighbours": 5},
}


@pytest.fixture
def encoder(monkeypatch):
    found = MeanColours()
    monkeypatch.setattr(dense_retrieval, "load_encoder", lambda run: found)
    return found


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("set") / "a", class_maps(9, 0), class_maps(3, 1))


@pytest.fixture
def run(encoder, tmp_path):
    """Return a function that evaluates on a set into a folder below tmp_path."""

    def go(manifest, folder="out", train=None, source=None, **keys):
        inputs = Inputs(source or a_run(tmp_path / "run"), manifest, CPU, train_dataset=train)
        return evaluate(inputs, Config(**(KEYS | keys)), tmp_path / folder)

    return go


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_it_finds_colours_perfectly(run, shared, tmp_path, encoder):
    result = run(shared)
    assert result.protocol == "dense_retrieval-voc2012-val-from_train-64px-m8-mem10000-aug0-k5"
    names = ("miou", "miou_without_background", "miou_fixed", "pixel_accuracy")
    assert result.metrics == {**dict.fromkeys(names, 100.0), "memory_patches": 9 * 64}
    assert result.samples == 3
    files = ["classes.csv", "sheet.png"]
    assert [path.name for path in result.artefacts] == files
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == files
    assert [row["name"] for row in rows_of(tmp_path / "out" / "classes.csv")] == list(CLASSES)


def test_published_settings_are_not_in_the_name(run, shared):
    keys = {"memory_size": 10_240_000, "augmentation_passes": 2, "neighbours": 30}
    result = run(shared, **keys, map_size=64)
    assert result.protocol == "dense_retrieval-voc2012-val-from_train-64px-m64"
    assert result.metrics["memory_patches"] == 2 * 9 * 64
    assert result.metrics["miou"] > 60  # blocks of two cells' colours, enlarged, blur the borders


def test_scores_by_hand(run, tmp_path):
    test = np.zeros((1, 8, 8), np.uint8)
    test[0, :2] = 1
    test[0, 7] = VOID
    manifest = write_set(tmp_path / "set", class_maps(4, 0), test)
    pixels = np.array(Image.open(tmp_path / "set" / "test0.png"))
    pixels[16:24] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "set" / "test0.png")
    metrics = run(manifest).metrics
    rose, background = 16 / 24, 32 / 40
    assert metrics["miou"] == pytest.approx(100 * (rose + background) / 2)
    assert metrics["miou_fixed"] == pytest.approx(100 * (rose + background) / 4)
    assert metrics["pixel_accuracy"] == pytest.approx(100 * 48 / 56)


def test_void_stays_out_of_the_memory(run, tmp_path):
    """A training image that is half void, half sky by mistake: only the latter is remembered."""
    train = class_maps(2, 0)
    train[1] = VOID
    train[1, :2] = 2
    result = run(write_set(tmp_path / "set", train, class_maps(2, 1)))
    assert result.metrics["memory_patches"] == 64 + 16
    assert result.metrics["miou"] == 100


def test_matching_can_only_rename(run, tmp_path):
    """Roses and leaves are exchanged in training: without matching they are wrong."""
    train, test = class_maps(4, 0), class_maps(2, 1)
    manifest = write_set(tmp_path / "set", train, test)
    for number, cells in enumerate(train):
        swapped = np.array([0, 2, 1, 3], np.uint8)[cells].repeat(8, 0).repeat(8, 1)
        Image.fromarray(swapped).save(tmp_path / "set" / f"train{number}_mask.png")
    plain, matched = run(manifest, "plain"), run(manifest, "matched", matching="hungarian")
    assert plain.metrics["miou"] == pytest.approx(50)
    assert matched.metrics["miou"] == 100
    assert matched.protocol == plain.protocol.replace("retrieval", "retrieval-hungarian")


def test_the_memory_is_capped(run, shared):
    result = run(shared, memory_size=9 * 20 + 5)
    assert result.metrics["memory_patches"] == 9 * 20
    assert result.metrics["miou"] == 100  # all classes are in every image
    with pytest.raises(UserError, match=r"memory_size is 17 but 2 passes over 9 .* need 18 at lea"):
        run(shared, memory_size=17, augmentation_passes=2)


@pytest.mark.parametrize("stage", ["memory", "scores"])
def test_going_on_is_bit_exact(run, shared, tmp_path, monkeypatch, encoder, stage):
    keys = {"augmentation_passes": 2, "map_size": 32, "memory_size": 600}
    monkeypatch.setattr(dense_retrieval, "PART", 2)
    whole = run(shared, "whole", **keys)
    seen, limit = encoder.images, {"memory": 9, "scores": 20}[stage]
    forward = MeanColours.forward

    def breaks(self, images):
        if self.images - seen >= limit:
            raise KeyboardInterrupt
        return forward(self, images)

    monkeypatch.setattr(MeanColours, "forward", breaks)
    with pytest.raises(KeyboardInterrupt):
        run(shared, "broken", **keys)
    monkeypatch.setattr(MeanColours, "forward", forward)
    assert run(shared, "broken", **keys).metrics == whole.metrics
    assert encoder.images - seen == 18 + 3 + 3  # the sheet looks again
    for name in ("classes.csv", "sheet.png"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "broken" / "work").exists()


@pytest.fixture
def interrupted(run, monkeypatch):
    """Return a function that evaluates as `run` and breaks off when all images are scored."""

    def breaks(*args):
        raise KeyboardInterrupt

    def go(*args, **keys):
        with monkeypatch.context() as patch:
            patch.setattr(dense_retrieval, "matched_scores", breaks)
            with pytest.raises(KeyboardInterrupt):
                run(*args, **keys)

    return go


MEMORY, SCORES, SHEET = 9, 3, 3
"""images that the encoder sees for each"""


@pytest.mark.parametrize(
    ("keys", "again"),
    [
        ({}, 0),
        ({"runs": ["random"], "pictures": 3}, 0),
        ({"matching": "hungarian"}, 0),
        ({"neighbours": 3}, SCORES),
        ({"temperature": 0.1}, SCORES),
        ({"map_size": 16}, SCORES),
        ({"memory_size": 9 * 20}, MEMORY + SCORES),
        ({"seed": 3}, MEMORY + SCORES),
    ],
)
def test_what_other_settings_do_again(run, interrupted, shared, tmp_path, encoder, keys, again):
    interrupted(shared)
    assert encoder.images == MEMORY + SCORES
    found = run(shared, **keys).metrics
    assert encoder.images == MEMORY + SCORES + again + SHEET
    assert found == run(shared, "fresh", **keys).metrics


def test_the_same_tensors_used_in_another_way(run, interrupted, shared, tmp_path, encoder):
    interrupted(shared)
    run(shared, source=a_run(tmp_path / "other", architecture={"heads": 6}))
    assert encoder.images == 2 * (MEMORY + SCORES) + SHEET


def test_other_classes_begin_anew(run, interrupted, tmp_path, encoder):
    manifest = write_set(tmp_path / "set", class_maps(9, 0), class_maps(3, 1))
    interrupted(manifest)
    change(manifest, classes=CLASSES[1:], parameters={"zero_is_void": True})
    metrics = run(manifest).metrics
    assert encoder.images == 2 * (MEMORY + SCORES) + SHEET
    assert metrics["miou_without_background"] is None
    assert [row["name"] for row in rows_of(tmp_path / "out" / "classes.csv")] == list(CLASSES[1:])


def test_a_class_at_void_pixels_only_is_drawn(run, tmp_path, monkeypatch):
    """Without matching it keeps its name in the picture."""
    test = np.zeros((1, 8, 8), np.uint8)
    test[0, :2] = 1
    test[0, 7] = VOID
    manifest = write_set(tmp_path / "set", class_maps(4, 0), test)
    pixels = np.array(Image.open(tmp_path / "set" / "test0.png"))
    pixels[56:] = COLOURS[3]
    Image.fromarray(pixels).save(tmp_path / "set" / "test0.png")
    drawn = []

    def save_sheet(folder, scored, places, truth, maps, names):
        drawn.append(maps)
        return folder / "sheet.png"

    monkeypatch.setattr(dense_retrieval, "save_sheet", save_sheet)
    run(manifest)
    run(manifest, matching="hungarian")
    assert [maps[0, 7].tolist() for maps in drawn] == [[3] * 8, [0] * 8]


def test_few_images_are_enlarged_at_a_time(run, shared, monkeypatch):
    whole = run(shared, map_size=24).metrics
    sizes, real = [], dense_retrieval.enlarged

    def noted(maps, size):
        sizes.append(len(maps))
        return real(maps, size)

    monkeypatch.setattr(dense_retrieval, "enlarged", noted)
    monkeypatch.setattr(dense_retrieval, "ENLARGED", 2 * 4 * 24 * 24)
    assert run(shared, "few", map_size=24).metrics == whole
    assert sizes == [2, 1, 1, 1, 1]  # three images are scored, then drawn one by one


def test_half_precision(run, shared):
    whole, half = run(shared, "a"), run(shared, "b", features="float16")
    assert half.metrics == whole.metrics
    assert half.protocol == f"{whole.protocol}-float16"


def test_precision_and_seed_are_in_the_name(run, shared):
    whole, other = run(shared, "a"), run(shared, "b", precision="bf16", seed=3)
    assert other.protocol == f"{whole.protocol.replace('-m8', '-m8-bf16')}-seed3"


def test_foreground_only_and_videos(run, tmp_path):
    manifests = {}
    for subset, frames in (("val", 5), ("train", 3)):  # shots of the same animals
        root = tmp_path / subset
        video_sets.davis2017(root, subset=subset, frames=frames)
        manifests[subset] = tmp_path / f"davis_{subset}" / "manifest.json"
        config = Davis2017(kind="davis2017", root=str(root), subset=subset)
        prepare(f"davis_{subset}", config, manifests[subset])
    davis, train = manifests["val"], manifests["train"]
    with pytest.raises(UserError, match=r"only number the objects .* set foreground_only: true"):
        run(davis, train=train)
    with pytest.raises(UserError, match=r"no training split of its own; .* 'train_dataset'"):
        run(davis, foreground_only=True)
    result = run(davis, train=train, foreground_only=True, frames_per_clip=2, map_size=64)
    assert result.samples == 4
    assert "-davis2017-val-from_train-64px-m64-f2-fg-" in result.protocol
    assert result.metrics["miou"] > 60


def test_a_class_that_cannot_be_learnt_scores_nothing(run, tmp_path, caplog):
    maps = class_maps(4, 0)
    lacking = np.where(maps == 3, 0, maps)
    result = run(write_set(tmp_path / "lacking", lacking, maps))
    assert "scored on sky, of which 'colours' has no pixel to learn from" in caplog.text
    with (tmp_path / "out" / "classes.csv").open() as file:
        scores = {row["name"]: float(row["iou"]) for row in csv.DictReader(file)}
    assert scores["sky"] == 0
    assert scores["rose"] > 90
    assert result.metrics["miou"] < 76


def test_bad_sets(run, tmp_path):
    maps = class_maps(4, 0)
    blank = np.full_like(maps, VOID)
    for train, test, split in ((blank, maps, "train"), (maps, blank, "val")):
        with pytest.raises(UserError, match=f"every pixel of the {split} split of 'colours' is"):
            run(write_set(tmp_path / f"void{split}", train, test), f"void{split}_out")
    with pytest.raises(UserError, match=r"train0_mask.png holds the id 9, which is beyond"):
        run(write_set(tmp_path / "beyond", np.where(maps == 3, 9, maps), maps))
    with pytest.raises(UserError, match=r"'colours' has no image of its train split"):
        run(write_set(tmp_path / "empty", maps[:0], maps))
    manifest = write_set(tmp_path / "unpaired", maps, maps)
    (tmp_path / "unpaired" / "test2_mask.png").unlink()
    with pytest.raises(UserError, match=r"test2_mask.png cannot be read \(it is missing\)"):
        run(manifest, "unpaired_out")


def test_bad_numbers(run, shared, encoder, monkeypatch):
    with pytest.raises(UserError, match=r"image_size is 60 but .* multiples of 8 .* set it to 56"):
        run(shared, image_size=60)
    encoder.multiple = 1
    with pytest.raises(UserError, match=r"image_size is 60, which the encoder's 7x7 cells do not"):
        run(shared, image_size=60)
    forward = MeanColours.forward
    monkeypatch.setattr(
        MeanColours, "forward", lambda self, x: forward(self, x * torch.tensor(torch.nan))
    )
    with pytest.raises(UserError, match=r"not finite for images of 'colours'; train it again"):
        run(shared)


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_real_encoders(run_of, shared, tmp_path, name):
    result = evaluate(Inputs(run_of(name), shared, CPU), Config(**KEYS), tmp_path / "out")
    cells = {"vit": 64, "resnet": 16}[name]
    assert result.metrics["memory_patches"] == 9 * cells
    assert 0 < result.metrics["miou"] <= 100


def test_another_training_set(run, shared, tmp_path):
    maps = class_maps(5, 7)
    other = write_set(tmp_path / "other", maps, maps, name="more", layout="cityscapes")
    assert "-voc2012-val-from_cityscapes-train-64px-" in run(shared, train=other).protocol
