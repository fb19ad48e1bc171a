"""Whole images through a segmentation network: scores, modes, resuming, what is refused."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from torch import nn

from tests.evaluation.coloured_masks import COLOURS, VOID, a_run, change
from tests.miniature import video_sets
from timewalk.artefacts import sha256_file
from timewalk.config import Davis2016
from timewalk.data.generated import save_ids
from timewalk.data.prepare import prepare
from timewalk.data.segmented import open_segmented
from timewalk.encoders.base import IMAGENET_MEAN, IMAGENET_STD
from timewalk.errors import UserError
from timewalk.evaluation import ade20k
from timewalk.evaluation.ade20k import Config, confusion, evaluate
from timewalk.evaluation.base import Inputs
from timewalk.metrics import segmentation

CPU = torch.device("cpu")
CLASSES = ("wall", "rose", "leaf", "sky")
KEYS = {
    **{"kind": "ade20k", "dataset": "scenes", "network": "upernet"},
    **{"crop": 32, "stride": 21, "short_side": 48, "long_side": 96},
}
CARD = {
    **{"title": "upernet-160k", "dataset": "scenes", "classes": list(CLASSES)},
    **{"sha256": "0", "architecture": {"kind": "segmenter"}, "name": "upernet"},
    "sizes": {"crop": 512, "short_side": 512, "long_side": 2048},
    **{"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
}


class SeesColours(nn.Module):
    """One-hot logits of the class whose colour a pixel has; remembers what it has seen."""

    stride = 1.0

    def __init__(self, classes=4):
        super().__init__()
        self.keys = {"classes": classes}
        self.encoder = SimpleNamespace(mean=IMAGENET_MEAN, std=IMAGENET_STD)
        self.seen = []

    def forward(self, images):
        self.seen.append(tuple(images.shape))
        mean, std = (torch.tensor(x)[:, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD))
        pixels = ((images * std + mean) * 255).permute(0, 2, 3, 1)
        distance = (pixels[..., None, :] - torch.from_numpy(COLOURS).float()).abs().sum(-1)
        nearest = distance.argmin(-1)
        return nn.functional.one_hot(nearest, len(COLOURS)).permute(0, 3, 1, 2).float()


class Random(SeesColours):
    """Logits of cells of four pixels, of the mean colour and where a cell is in its window."""

    stride = 4.0

    def forward(self, images):
        cells = nn.functional.avg_pool2d(images, 4, ceil_mode=True)
        waves = torch.linspace(1, 9, 12).reshape(4, 3)[: self.keys["classes"]]
        rows = torch.arange(cells.shape[2])[:, None] / 3
        return torch.sin(torch.einsum("kc,bchw->bkhw", waves, cells) + rows)


def blocks(count, seed=0, shape=(48, 80), classes=4):
    """Return masks of blocks of 16 pixels."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, classes, (count, shape[0] // 16, shape[1] // 16)).astype(np.uint8)
    return list(cells.repeat(16, axis=1).repeat(16, axis=2))


def write_scenes(folder, masks, images=None, classes=CLASSES):
    """Write a prepared set whose test split has these masks (255: void) and images, which show
    the masks where they are not given."""
    folder.mkdir(parents=True)
    rows = []
    for number, mask in enumerate(masks):
        shown = mask if images is None else images[number]
        pixels = COLOURS[np.where(shown == VOID, 0, shown)]
        Image.fromarray(pixels).save(folder / f"{number}.png")
        save_ids(folder / f"{number}_mask.png", mask)
        rows.append(f"{number}.png\t{number}_mask.png\n")
    for split in ("train", "test"):
        (folder / f"{split}.txt").write_text("".join(rows))
    lists = {split: sha256_file(folder / f"{split}.txt") for split in ("train", "test")}
    about = {
        **{"kind": "labelled_masks", "format": 1, "name": "scenes", "layout": "ade20k"},
        **{"classes": list(classes), "void": True, "background": False},
        "source": {"root": ".", "lists_sha256": lists},
        "parameters": {"kind": "ade20k", "train": "training", "test": "validation"},
        **{"counts": {}, "digest": "0"},
    }
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps(about))
    return manifest


@pytest.fixture
def score(monkeypatch, tmp_path):
    """Return a function that evaluates a network on a set into a folder below tmp_path."""

    def go(manifest, network=None, folder="out", card=CARD, workers=0, **keys):
        found = network or SeesColours()
        monkeypatch.setattr(ade20k, "load_network", lambda folder, kind: (found.eval(), card))
        paths = {"run": a_run(tmp_path / "run"), "network": tmp_path / "network"}
        inputs = Inputs(**paths, dataset=manifest, device=CPU, workers=workers)
        return evaluate(inputs, Config(**(KEYS | keys)), tmp_path / folder)

    return go


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("test", ["slide", "whole", "multi_scale"])
def test_the_truth_scores_100(score, tmp_path, test):
    masks = blocks(5)
    masks[1][:16] = VOID
    # One size, the stored one: no other keeps the edges of one-hot logits.
    manifest = write_scenes(tmp_path / "set", masks)
    result = score(manifest, test=test, ratios=[1.0])
    assert result.metrics == {"miou": 100.0, "macc": 100.0, "aacc": 100.0}
    assert result.samples == 5
    ends = {"multi_scale": "-c32-s21-1", "slide": "-c32-s21", "whole": ""}
    assert result.protocol == (
        f"ade20k-upernet-160k-ade20k-validation-{test}-48px-long96{ends[test]}"
    )


def test_the_published_protocol_has_no_marks(score, tmp_path):
    manifest = write_scenes(tmp_path / "set", blocks(1, shape=(512, 528)))
    keys = {"crop": 512, "stride": 341, "short_side": 512, "long_side": 2048}
    assert score(manifest, **keys).protocol == "ade20k-upernet-160k-ade20k-validation-slide"


def test_a_shifted_prediction_scores_what_was_counted_by_hand(score, tmp_path):
    truth = np.zeros((48, 80), np.uint8)
    truth[:, 40:] = 1
    shown = np.zeros_like(truth)
    shown[:, 44:] = 1
    result = score(write_scenes(tmp_path / "set", [truth], [shown]))
    # Of 40 columns each, 4 of class 1 are taken for class 0; classes 2 and 3 are nowhere.
    assert result.metrics["miou"] == pytest.approx(100 * (40 / 44 + 36 / 40) / 2)
    assert result.metrics["macc"] == pytest.approx(100 * (1 + 36 / 40) / 2)
    assert result.metrics["aacc"] == pytest.approx(100 * 76 / 80)
    rows = rows_of(tmp_path / "out" / "classes.csv")
    assert [row["name"] for row in rows] == list(CLASSES)
    assert rows[1] == {
        **{"class": "1", "name": "rose", "iou": "90", "accuracy": "90"},
        **{"true_pixels": str(48 * 40), "predicted_pixels": str(48 * 36)},
    }
    assert rows[2]["iou"] == rows[2]["accuracy"] == ""


def test_shifts_of_blocks_agree_with_the_plain_confusion_matrix(score, tmp_path):
    masks = blocks(4, seed=3)
    masks[2][20:30, 30:60] = VOID
    images = [np.roll(np.where(mask == VOID, 1, mask), 5, axis=1) for mask in masks]
    result = score(write_scenes(tmp_path / "set", masks, images))
    pairs = zip(masks, images, strict=True)
    matrix = sum(segmentation.confusion(truth.astype(int), found, 4) for truth, found in pairs)
    expected = segmentation.scores(matrix)
    assert result.metrics["miou"] == pytest.approx(100 * expected.mean_iou)
    assert result.metrics["macc"] == pytest.approx(100 * expected.mean_accuracy)
    assert result.metrics["aacc"] == pytest.approx(100 * expected.overall_accuracy)


@given(st.integers(1, 9), st.integers(0, 2**20))
def test_the_confusion_matrix_is_that_of_the_metrics(classes, seed):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, (7, 9)).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.3] = VOID
    predicted = rng.integers(0, classes, truth.shape).astype(np.uint8)
    found = confusion(torch.from_numpy(truth), torch.from_numpy(predicted), classes)
    assert np.array_equal(found, segmentation.confusion(truth.astype(int), predicted, classes))


def test_images_of_any_shape_are_scored_at_their_own_size(score, tmp_path):
    # An image shorter than a window after the long side's bound, and one many times the scale.
    large = blocks(1, shape=(64, 96))[0].repeat(5, axis=0).repeat(5, axis=1)
    masks = [*blocks(1, shape=(16, 96)), large, *blocks(1, shape=(48, 32))]
    network = SeesColours()
    result = score(write_scenes(tmp_path / "set", masks), network)
    assert {shape[2:] for shape in network.seen} == {(16, 32), (32, 32)}
    assert result.metrics["aacc"] > 95
    total = sum(int(row["true_pixels"]) for row in rows_of(tmp_path / "out" / "classes.csv"))
    assert total == sum(mask.size for mask in masks)


def test_windows_of_several_images_pass_together(score, tmp_path):
    network = SeesColours()
    # 48 x 80: two rows of windows, four columns.
    score(write_scenes(tmp_path / "set", blocks(3)), network, batch_size=12)
    assert [shape[0] for shape in network.seen] == [12, 4, 8]


def test_multi_scale_sees_every_size_and_its_mirror(score, tmp_path):
    manifest = write_scenes(tmp_path / "set", blocks(1))
    network = SeesColours()
    score(manifest, network, test="multi_scale", crop=256, stride=256, ratios=[0.5, 1.0, 2.0])
    # The shorter side never falls below 48; batches are of one size.
    assert network.seen == [(4, 3, 48, 80), (2, 3, 96, 160)]
    network = SeesColours()
    score(manifest, network, test="multi_scale", crop=256, stride=256, ratios=[2.0], flip=False)
    assert network.seen == [(1, 3, 96, 160)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_evaluation_goes_on_to_the_same_result(score, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(ade20k, "PART", 3)
    manifest = write_scenes(tmp_path / "set", blocks(8, seed=1))
    whole = score(manifest, Random(), folder="whole", pictures=3)

    class Killed(Random):
        def forward(self, images):
            self.seen.append(len(images))
            if len(self.seen) > 4:
                raise KeyboardInterrupt
            return super().forward(images)

    with pytest.raises(KeyboardInterrupt):
        score(manifest, Killed(), folder="cut", workers=workers, pictures=3)
    assert json.loads((tmp_path / "cut" / "work" / "counts.json").read_text())["done"] == 3
    again = score(manifest, Random(), folder="cut", workers=workers, pictures=3)
    assert again.metrics == whole.metrics
    for name in ("classes.csv", "sheet.png"):
        both = [(tmp_path / folder / name).read_bytes() for folder in ("whole", "cut")]
        assert both[0] == both[1]
    assert not (tmp_path / "cut" / "work").exists()


def test_what_is_half_done_with_other_settings_is_not_used(score, tmp_path, monkeypatch):
    monkeypatch.setattr(ade20k, "PART", 1)
    manifest = write_scenes(tmp_path / "set", blocks(2))

    class Killed(SeesColours):
        def forward(self, images):
            if len(self.seen) == 1:
                raise KeyboardInterrupt
            return super().forward(images)

    with pytest.raises(KeyboardInterrupt):
        score(manifest, Killed())
    network = SeesColours()
    result = score(manifest, network, test="whole")
    assert (len(network.seen), result.samples) == (2, 2)


def test_the_sheet_shows_input_truth_and_prediction(score, tmp_path):
    manifest = write_scenes(tmp_path / "set", blocks(6))
    result = score(manifest, pictures=2)
    assert [path.name for path in result.artefacts] == ["classes.csv", "sheet.png"]
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        # 48 x 80 becomes 224 x 373; gaps and a legend between and below.
        assert sheet.width == 3 * 373 + 2 * 4
        assert sheet.height > 2 * 224
    assert score(manifest, folder="none", pictures=0).artefacts[1:] == []


def test_a_network_of_another_set_is_named_in_the_protocol(score, tmp_path):
    manifest = write_scenes(tmp_path / "set", blocks(1))
    result = score(manifest, card=CARD | {"dataset": "photos"}, precision="bf16", test="whole")
    assert result.protocol == (
        "ade20k-upernet-160k-ade20k-validation-from_photos-whole-48px-long96-bf16"
    )


def test_images_without_annotation_count_nothing(score, tmp_path, caplog):
    masks = [*blocks(2), np.full((48, 80), VOID, np.uint8)]
    result = score(write_scenes(tmp_path / "set", masks))
    assert result.metrics["aacc"] == 100
    assert "1 of 3 images have no pixel of a class" in caplog.text


def test_a_set_of_void_alone_is_refused(score, tmp_path):
    manifest = write_scenes(tmp_path / "set", [np.full((48, 80), VOID, np.uint8)])
    with pytest.raises(UserError, match="every pixel of the validation split of 'scenes' is void"):
        score(manifest)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_id_beyond_the_list_is_refused(score, tmp_path, workers):
    mask = blocks(1)[0]
    mask[3, 3] = 9
    manifest = write_scenes(tmp_path / "set", [mask], [np.zeros_like(mask)])
    with pytest.raises(UserError, match=r"^\S+0_mask.png holds the id 9, which is beyond"):
        score(manifest, workers=workers)


def test_a_mask_of_another_size_is_refused(score, tmp_path):
    manifest = write_scenes(tmp_path / "set", blocks(1))
    save_ids(tmp_path / "set" / "0_mask.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(
        UserError, match=r"0_mask\.png is 8x8 pixels but its image is 80x48; restore"
    ):
        score(manifest)


def test_another_number_of_classes_is_refused(score, tmp_path):
    manifest = write_scenes(tmp_path / "set", blocks(1), classes=(*CLASSES, "sea"))
    with pytest.raises(
        UserError, match=r"network\.json tells 4 classes apart but 'scenes' has 5; name the set of"
    ):
        score(manifest)
    change(manifest, classes=[])
    with pytest.raises(UserError, match="only number the objects of each video"):
        score(manifest)


def test_videos_with_classes_are_scored_frame_by_frame(score, tmp_path):
    video_sets.davis2016(tmp_path / "davis")
    manifest = tmp_path / "set" / "manifest.json"
    config = Davis2016(kind="davis2016", root=str(tmp_path / "davis"), subset="val")
    prepare("davis", config, manifest)
    network = Random(classes=2)
    result = score(manifest, network, card=CARD | {"classes": ["background", "foreground"]})
    assert result.samples == len(open_segmented(manifest).frames) > 3
    assert result.protocol.startswith("ade20k-upernet-160k-davis2016-val-from_scenes-slide")


def test_other_names_of_classes_are_told(score, tmp_path, caplog):
    manifest = write_scenes(tmp_path / "set", blocks(1), classes=("a", "b", "c", "d"))
    score(manifest)
    assert "'scenes' has other names of classes than" in caplog.text


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"stride": 33}, "stride 33 leaves pixels between windows of 32"),
        ({"long_side": 40}, "long_side is less than short_side"),
        ({"test": "windows"}, "slide"),
        ({"ratios": []}, "at least 1"),
    ],
)
def test_keys_that_mean_nothing_are_refused(keys, message):
    with pytest.raises(ValidationError, match=message):
        Config(**(KEYS | keys))


def test_sizes_are_those_of_the_fine_tuning_unless_they_are_given(score, tmp_path):
    manifest = write_scenes(tmp_path / "set", blocks(1))
    card = CARD | {"sizes": {"crop": 32, "short_side": 48, "long_side": 96}}
    none = dict.fromkeys(("crop", "stride", "short_side", "long_side"))
    plain, given, other = SeesColours(), SeesColours(), SeesColours()
    title = "ade20k-upernet-160k-ade20k-validation-slide"
    assert score(manifest, plain, "plain", card, **none).protocol == title
    assert score(manifest, given, "given", card).protocol == title
    assert plain.seen == given.seen
    assert {size[-2:] for size in plain.seen} == {(32, 32)}
    assert score(manifest, other, "other", card, **none | {"crop": 40}).protocol == (
        f"{title}-c40-s26"
    )
    with pytest.raises(UserError, match=r"an evaluation of upernet: .*stride 40 leaves pixels"):
        score(manifest, card=card, **none | {"stride": 40})
