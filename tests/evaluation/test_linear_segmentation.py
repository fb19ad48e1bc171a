"""A head on patch features: what it learns, how it goes on, what it refuses."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F

from tests.evaluation.coloured_masks import (
    CELLS,
    CLASSES,
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
from timewalk.evaluation import linear_segmentation
from timewalk.evaluation.base import Inputs
from timewalk.evaluation.linear_segmentation import (
    Config,
    evaluate,
    order,
    pixel_loss,
)
from timewalk.evaluation.segmentation_heads import FCNHead

CPU = torch.device("cpu")
KEYS = {
    **{"dataset": "colours", "image_size": SIDE, "map_size": CELLS, "epochs": 6},
    **{"batch_size": 4, "learning_rate": 0.5},
}


@pytest.fixture
def encoder(monkeypatch):
    found = MeanColours()
    monkeypatch.setattr(linear_segmentation, "load_encoder", lambda run: found)
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


def narrow(monkeypatch):
    monkeypatch.setattr(FCNHead.__init__, "__defaults__", (8,))


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_it_segments_colours_perfectly(run, shared, tmp_path, encoder):
    result = run(shared)
    assert (
        result.protocol == "linear_segmentation-linear-voc2012-val-from_train-64px-m8-6ep-b4-lr0.5"
    )
    assert result.samples == 3
    perfect = dict.fromkeys(("miou", "miou_without_background", "miou_fixed"), 100.0)
    assert {**result.metrics, "best_epoch": None} == {
        **perfect,
        **{"pixel_accuracy": 100.0, "miou_best": 100.0, "best_epoch": None},
    }
    assert encoder.images == 9 + 3  # each image once, whatever the epochs
    out = tmp_path / "out"
    names = ["curve.csv", "classifier.safetensors", "classes.csv", "sheet.png"]
    assert [path.name for path in result.artefacts] == names
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    curve = rows_of(out / "curve.csv")
    assert float(curve[-1]["train_loss"]) < float(curve[0]["train_loss"])
    assert [row["name"] for row in rows_of(out / "classes.csv")] == list(CLASSES)
    assert load_file(out / "classifier.safetensors")["classifier.weight"].shape == (4, 3, 1, 1)


def test_the_curve_is_a_loop_by_hand(run, shared, tmp_path):
    """No shuffling, steps of the learning rate, momentum and decay, the mean over pixels."""
    run(shared, epochs=3, decay_epochs=2, seed=5)
    torch.manual_seed(5)
    head = torch.nn.Conv2d(3, 4, 1)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.5, momentum=0.9, weight_decay=1e-4)
    ids = class_maps(9, 0)
    pixels = np.array([(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)], np.float32)[ids]
    x = torch.from_numpy((pixels - MeanColours.mean) / MeanColours.std).float().permute(0, 3, 1, 2)
    y = torch.from_numpy(ids).long()
    losses, rates = [], [0.5, 0.5, 0.05]
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        summed = 0.0
        for features, classes in zip(x.split(4), y.split(4), strict=True):
            loss = F.cross_entropy(head(features), classes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            summed += float(loss.detach()) * len(classes)
        losses.append(summed / 9)
    curve = rows_of(tmp_path / "out" / "curve.csv")
    assert [float(row["learning_rate"]) for row in curve] == pytest.approx(rates)
    assert [float(row["train_loss"]) for row in curve] == pytest.approx(losses, rel=1e-5)
    saved = load_file(tmp_path / "out" / "classifier.safetensors")
    torch.testing.assert_close(saved["classifier.weight"], head.weight.detach())


def test_scores_by_hand(run, encoder, tmp_path):
    """Void pixels do not count, and a class that the truth has not lowers only `miou_fixed`."""
    test = np.zeros((1, 8, 8), np.uint8)
    test[0, :2] = 1
    test[0, 7] = VOID
    manifest = write_set(tmp_path / "set", class_maps(4, 0), test)
    # A quarter of the true background looks like a rose.
    pixels = np.array(Image.open(tmp_path / "set" / "test0.png"))
    pixels[16:24] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "set" / "test0.png")
    metrics = run(manifest, epochs=20).metrics
    rose, background = 16 / 24, 32 / 40
    assert metrics["miou"] == pytest.approx(100 * (rose + background) / 2)
    assert metrics["miou_without_background"] == pytest.approx(100 * rose)
    assert metrics["miou_fixed"] == pytest.approx(100 * (rose + background) / 4)
    assert metrics["pixel_accuracy"] == pytest.approx(100 * 48 / 56)
    table = rows_of(tmp_path / "out" / "classes.csv")
    assert [row["iou"] for row in table] == ["80", "66.6667", "", ""]
    assert [row["true_pixels"] for row in table] == ["40", "16", "0", "0"]


def test_the_fcn_head_learns(run, shared, monkeypatch):
    narrow(monkeypatch)
    result = run(shared, head="fcn", epochs=30, learning_rate=0.05)
    name = "linear_segmentation-fcn-voc2012-val-from_train-64px-m8-30ep-b4-lr0.05"
    assert result.protocol == name
    assert result.metrics["miou"] > 80  # chance: below 20


def test_void_in_the_loss():
    logits = torch.zeros(1, 4, 2, 2)
    classes = torch.tensor([[[0, 1], [VOID, VOID]]], dtype=torch.uint8)
    loss, pixels = pixel_loss(logits, classes)
    assert (float(loss), pixels) == (pytest.approx(2 * np.log(4)), 2)
    loss, pixels = pixel_loss(logits, torch.full_like(classes, VOID))
    assert (float(loss), pixels) == (0.0, 0)


def test_order():
    config = Config(dataset="x")
    assert order(5, config, 3).tolist() == [0, 1, 2, 3, 4]
    shuffled = Config(dataset="x", shuffle=True)
    orders = [tuple(order(20, shuffled, epoch).tolist()) for epoch in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[2]) == list(range(20))


@pytest.mark.parametrize("keys", [{}, {"shuffle": True, "head": "fcn"}, {"augment": True}])
def test_going_on_is_bit_exact(run, shared, tmp_path, monkeypatch, keys):
    narrow(monkeypatch)
    whole = run(shared, "whole", **keys)
    monkeypatch.setattr(linear_segmentation, "CHECKPOINT_SECONDS", 0.0)
    real, calls = linear_segmentation.train_epoch, []

    def breaks(*args):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(1)
        return real(*args)

    monkeypatch.setattr(linear_segmentation, "train_epoch", breaks)
    with pytest.raises(KeyboardInterrupt):
        run(shared, "broken", **keys)
    monkeypatch.setattr(linear_segmentation, "train_epoch", real)
    assert run(shared, "broken", **keys).metrics == whole.metrics
    for name in ("curve.csv", "classes.csv", "classifier.safetensors", "sheet.png"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "broken" / "work").exists()


def test_features_go_on(run, shared, encoder, monkeypatch):
    from timewalk.evaluation import feature_file

    whole = run(shared, "whole").metrics
    monkeypatch.setattr(feature_file, "PART", 2)
    monkeypatch.setattr(feature_file, "NOTE_SECONDS", 0.0)
    forward, start = MeanColours.forward, encoder.images

    def breaks(self, images):
        if self.images - start >= 3 + 4:
            raise KeyboardInterrupt
        return forward(self, images)

    monkeypatch.setattr(MeanColours, "forward", breaks)
    with pytest.raises(KeyboardInterrupt):
        run(shared, "broken")
    monkeypatch.setattr(MeanColours, "forward", forward)
    assert run(shared, "broken").metrics == whole
    assert encoder.images - start == 12


def test_another_encoder_begins_anew(run, shared, tmp_path, monkeypatch, caplog):
    real = linear_segmentation.fit

    def breaks(probe, stream, steps, score, config, work, key):
        probe.save(work, key)
        raise KeyboardInterrupt

    monkeypatch.setattr(linear_segmentation, "fit", breaks)
    with pytest.raises(KeyboardInterrupt):
        run(shared)
    monkeypatch.setattr(linear_segmentation, "fit", real)
    run(shared, seed=3)
    assert "belongs to other settings" in caplog.text
    (tmp_path / "out" / "work").mkdir()
    (tmp_path / "out" / "work" / "checkpoint.pt").write_bytes(b"half")
    with pytest.raises(UserError, match=r"checkpoint\.pt cannot be read .*delete it to start"):
        run(shared)


@pytest.fixture
def interrupted(run, monkeypatch):
    """Return a function that evaluates as `run` and breaks off after the fourth epoch."""

    def go(*args, **keys):
        real = linear_segmentation.train_epoch

        def breaks(probe, *rest):
            if len(probe.rows) == 4:
                raise KeyboardInterrupt
            return real(probe, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(linear_segmentation, "CHECKPOINT_SECONDS", 0.0)
            patch.setattr(linear_segmentation, "train_epoch", breaks)
            with pytest.raises(KeyboardInterrupt):
                run(*args, **keys)

    return go


def test_the_same_tensors_used_in_another_way(run, interrupted, shared, tmp_path, encoder, caplog):
    interrupted(shared)
    assert encoder.images == 12
    run(shared, source=a_run(tmp_path / "other", architecture={"heads": 6}))
    assert encoder.images == 24
    assert "belongs to other settings" in caplog.text


def test_other_classes_begin_anew(run, interrupted, tmp_path, encoder, caplog):
    manifest = write_set(tmp_path / "set", class_maps(9, 0), class_maps(3, 1))
    interrupted(manifest)
    change(manifest, classes=CLASSES[1:], parameters={"zero_is_void": True})
    result = run(manifest)
    assert encoder.images == 24
    assert "belongs to other settings" in caplog.text
    assert result.metrics["miou_without_background"] is None
    assert [row["name"] for row in rows_of(tmp_path / "out" / "classes.csv")] == list(CLASSES[1:])


def test_runs_and_pictures_keep_what_is_done(run, interrupted, shared, encoder, monkeypatch):
    interrupted(shared)
    real, epochs = linear_segmentation.train_epoch, []

    def counted(probe, *rest):
        epochs.append(len(probe.rows))
        return real(probe, *rest)

    monkeypatch.setattr(linear_segmentation, "train_epoch", counted)
    run(shared, runs=["random"], pictures=1)
    assert (epochs, encoder.images) == ([4, 5], 12)


def test_augmented_epochs_see_other_crops(run, shared, encoder):
    result = run(shared, augment=True, epochs=2, val_freq=5)
    assert encoder.images == 3 + 2 * 9
    assert result.protocol.endswith("-64px-m8-aug-2ep-b4-lr0.5")
    assert result.metrics["best_epoch"] in (1, 2)


def test_half_precision_file(run, shared):
    whole, half = run(shared, "a"), run(shared, "b", features="float16")
    assert half.metrics["miou"] == whole.metrics["miou"] == 100
    assert half.protocol == f"{whole.protocol}-float16"


def test_precision_and_seed_are_in_the_name(run, shared):
    whole, other = run(shared, "a"), run(shared, "b", precision="bf16", seed=3)
    assert other.protocol == f"{whole.protocol.replace('-m8', '-m8-bf16')}-seed3"


def test_foreground_only(run, tmp_path):
    maps = class_maps(6, 0)
    result = run(write_set(tmp_path / "set", maps, maps[:2]), foreground_only=True)
    assert "-fg" in result.protocol
    assert [row["name"] for row in rows_of(tmp_path / "out" / "classes.csv")] == [
        "background",
        "foreground",
    ]


def test_another_training_set(run, shared, tmp_path):
    maps = class_maps(5, 7)
    other = write_set(tmp_path / "other", maps, maps, name="more", layout="cityscapes")
    assert "-voc2012-val-from_cityscapes-train-64px-" in run(shared, train=other).protocol
    strange = write_set(tmp_path / "strange", maps, maps, classes=[*CLASSES, "sea"], name="strange")
    with pytest.raises(UserError, match=r"different classes; correct the key 'train_dataset'"):
        run(shared, train=strange)


def test_videos(run, tmp_path):
    manifests = {}
    for subset, seed in (("val", 0), ("train", 1)):
        root = tmp_path / subset
        video_sets.davis2017(root, subset=subset, seed=seed)
        manifests[subset] = tmp_path / f"davis_{subset}" / "manifest.json"
        config = Davis2017(kind="davis2017", root=str(root), subset=subset)
        prepare(f"davis_{subset}", config, manifests[subset])
    davis, train = manifests["val"], manifests["train"]
    with pytest.raises(UserError, match=r"only number the objects .* set foreground_only: true"):
        run(davis, train=train)
    with pytest.raises(UserError, match=r"no training split of its own; .* 'train_dataset'"):
        run(davis, foreground_only=True)
    with pytest.raises(
        UserError, match=r"9 other images of 'davis_val' are learnt from and scored"
    ):
        run(davis, train=davis, foreground_only=True)
    result = run(davis, train=train, foreground_only=True, frames_per_clip=3)
    assert result.samples == 6
    assert "-linear-davis2017-val-from_train-64px-m8-f3-fg-" in result.protocol


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
            run(write_set(tmp_path / f"void{split}", train, test))
    beyond = np.where(maps == 3, 9, maps)
    with pytest.raises(UserError, match=r"train0_mask.png holds the id 9, which is beyond"):
        run(write_set(tmp_path / "beyond", beyond, maps))
    with pytest.raises(UserError, match=r"'colours' has no image of its train split"):
        run(write_set(tmp_path / "empty", maps[:0], maps))
    manifest = write_set(tmp_path / "unpaired", maps, maps)
    (tmp_path / "unpaired" / "train2_mask.png").unlink()
    with pytest.raises(UserError, match=r"train2_mask.png cannot be read \(it is missing\)"):
        run(manifest)


def test_bad_numbers(run, shared, encoder, monkeypatch):
    with pytest.raises(UserError, match=r"image_size is 60 but .* multiples of 8 .* set it to 56"):
        run(shared, image_size=60)
    with pytest.raises(UserError, match=r"loss is not finite in epoch \d+; lower its learning_rat"):
        run(shared, learning_rate=1e30)
    forward = MeanColours.forward
    monkeypatch.setattr(
        MeanColours, "forward", lambda self, x: forward(self, x * torch.tensor(torch.nan))
    )
    with pytest.raises(UserError, match=r"not finite for images 1 to 3; train it again"):
        run(shared, "nan")


def test_a_full_disk(run, shared, monkeypatch):
    from timewalk.evaluation import feature_file

    class Full:
        free = 100

    monkeypatch.setattr(feature_file.shutil, "disk_usage", lambda path: Full)
    with pytest.raises(UserError, match=r"GB for the features of 3 images but 0.0 GB are free; se"):
        run(shared)


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_real_encoders(run_of, shared, tmp_path, name):
    inputs = Inputs(run_of(name), shared, CPU)
    config = Config(**(KEYS | {"epochs": 2, "precision": "bf16"}))
    result = evaluate(inputs, config, tmp_path / "out")
    assert 0 <= result.metrics["miou"] <= 100
