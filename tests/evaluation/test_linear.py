import csv
import json
import math
import shutil

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torchvision.transforms.functional import resized_crop

from timewalk.artefacts import sha256_file
from timewalk.data.labelled import LabelledImages, RandomCrops, to_rgb
from timewalk.data.seeds import generator
from timewalk.data.views import random_window
from timewalk.encoders import load_encoder
from timewalk.encoders.vit import probe_features
from timewalk.errors import UserError
from timewalk.evaluation import linear
from timewalk.evaluation.base import Inputs
from timewalk.evaluation.embed import Extractor, compute_features
from timewalk.evaluation.linear import Config, epoch_order, evaluate, places, score, summary

CPU = torch.device("cpu")


def config(**changes):
    base = {"dataset": "colours", "n_last_blocks": 2, "epochs": 4, "batch_size": 7}
    return Config(**(base | {"learning_rate": 2.0} | changes))


@pytest.fixture
def probe(run_of, set_of, tmp_path):
    """Return a function that evaluates into a folder below tmp_path."""

    def run(encoder="vit", classes=6, folder="linear", workers=0, **changes):
        inputs = Inputs(run_of(encoder), set_of(classes), CPU, workers=workers)
        return evaluate(inputs, config(**changes), tmp_path / folder)

    return run


def curve(folder):
    with (folder / "curve.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("encoder", ["vit", "resnet"])
@pytest.mark.parametrize("cached", [False, True])
def test_it_learns_colours(probe, tmp_path, encoder, cached):
    result = probe(encoder, cached=cached, epochs=8)
    blocks = {"vit": "n2", "resnet": "pooled"}[encoder]
    assert result.protocol == f"linear-{blocks}-{'cached' if cached else 'aug'}-8ep"
    assert result.samples == 18
    assert result.metrics["top1_best"] >= 80  # chance: 17
    assert result.metrics["top5_final"] >= result.metrics["top1_final"]
    rows = curve(tmp_path / "linear")
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert [path.name for path in result.artefacts] == ["curve.csv", "classifier.safetensors"]
    assert sorted(p.name for p in (tmp_path / "linear").iterdir()) == [
        "classifier.safetensors",
        "curve.csv",
    ]


def test_usual_epochs_are_not_in_the_name():
    assert linear.protocol("n4", Config(dataset="x")) == "linear-n4-aug"
    assert linear.protocol("n1avg", Config(dataset="x", cached=True)) == "linear-n1avg-cached"


def test_the_schedule(probe, tmp_path):
    probe(cached=True, epochs=5, val_freq=2, learning_rate=0.5)
    rows = curve(tmp_path / "linear")
    base = 0.5 * 7 / 256
    expected = [base / 2 * (1 + math.cos(math.pi * epoch / 5)) for epoch in range(5)]
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx(expected)
    assert [bool(row["top1"]) for row in rows] == [True, False, True, False, True]


def test_cached_is_the_definition(probe, run_of, set_of, tmp_path):
    """A loop with momentum by hand comes to the same classifier."""
    result = probe(cached=True, epochs=3, seed=5)
    encoder = load_encoder(run_of("vit"))
    extractor = Extractor(encoder, CPU, features=lambda x: probe_features(encoder, x, 2, False))
    data = {}
    for split in ("train", "test"):
        images = LabelledImages(set_of(6), split)
        data[split] = compute_features(extractor, images, 8, 0), images.labels
    features, labels = data["train"]
    assert features.shape == (36, 48)
    torch.manual_seed(5)
    weight, bias = torch.empty(6, 48).normal_(std=0.01), torch.zeros(6)
    speed = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for epoch in range(3):
        rate = 2.0 * 7 / 256 / 2 * (1 + math.cos(math.pi * epoch / 3))
        for part in epoch_order(36, 5, epoch).split(7):
            error = (features[part] @ weight.T + bias).softmax(1) - F.one_hot(labels[part], 6)
            gradients = error.T @ features[part] / len(part), error.mean(0)
            for value, own, gradient in zip((weight, bias), speed, gradients, strict=True):
                own.mul_(0.9).add_(gradient)
                value.sub_(rate * own)
    found = load_file(tmp_path / "linear" / "classifier.safetensors")
    torch.testing.assert_close(found["weight"], weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found["bias"], bias, rtol=1e-3, atol=1e-4)
    images, truth = data["test"]
    right = (images @ weight.T + bias).argmax(1) == truth
    assert result.metrics["top1_final"] == pytest.approx(100 * right.float().mean().item())


def files(folder):
    return {path.name: sha256_file(path) for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("cached", [False, True])
def test_interrupted_is_as_never_interrupted(probe, tmp_path, monkeypatch, cached):
    whole = probe(folder="whole", cached=cached)
    monkeypatch.setattr(linear, "CHECKPOINT_SECONDS", 0.0)
    train_epoch, begun = linear.train_epoch, []

    def stopping(state, batches, rate):
        begun.append(len(state.rows))
        if len(begun) == 3:
            next(batches)
            raise KeyboardInterrupt
        return train_epoch(state, batches, rate)

    monkeypatch.setattr(linear, "train_epoch", stopping)
    with pytest.raises(KeyboardInterrupt):
        probe(folder="parts", cached=cached)
    assert (tmp_path / "parts" / "work" / "checkpoint.pt").is_file()
    assert not (tmp_path / "parts" / "classifier.safetensors").exists()

    def never(*arguments):
        raise AssertionError("features were computed again")

    monkeypatch.setattr(linear, "compute_features", never)
    resumed = probe(folder="parts", cached=cached)
    assert begun == [0, 1, 2, 2, 3]
    assert resumed.metrics == whole.metrics
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_work_of_other_settings_is_not_used(probe, tmp_path, monkeypatch):
    expected = probe(folder="fresh", seed=1).metrics
    monkeypatch.setattr(linear, "CHECKPOINT_SECONDS", 0.0)
    remove = linear.shutil.rmtree
    monkeypatch.setattr(linear.shutil, "rmtree", lambda *a, **k: None)
    probe(folder="used", seed=0)
    monkeypatch.setattr(linear.shutil, "rmtree", remove)
    assert (tmp_path / "used" / "work" / "checkpoint.pt").is_file()
    assert probe(folder="used", seed=1).metrics == expected
    assert files(tmp_path / "used") == files(tmp_path / "fresh")


def test_the_same_tensors_used_in_another_way(run_of, set_of, tmp_path, monkeypatch):
    """The number of heads is in no tensor: features are computed again."""
    other = tmp_path / "other"
    shutil.copytree(run_of("vit"), other)
    card = json.loads((other / "encoder.json").read_text())
    card["architecture"]["heads"] = 4
    (other / "encoder.json").write_text(json.dumps(card))

    def run(source, folder="used", **changes):
        inputs = Inputs(source, set_of(6), CPU)
        return evaluate(inputs, config(cached=True, **changes), tmp_path / folder)

    fresh = run(other, "fresh").metrics
    with monkeypatch.context() as patch:
        patch.setattr(linear, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(linear.shutil, "rmtree", lambda *a, **k: None)
        first = run(run_of("vit")).metrics
        patch.setattr(linear, "compute_features", None)
        assert run(run_of("vit"), runs=["vit"]).metrics == first
    assert run(other).metrics == fresh
    assert files(tmp_path / "used") == files(tmp_path / "fresh")


def test_a_damaged_checkpoint_is_one_sentence(probe, tmp_path):
    (tmp_path / "linear" / "work").mkdir(parents=True)
    (tmp_path / "linear" / "work" / "checkpoint.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"checkpoint\.pt cannot be read .*delete it"):
        probe()


def test_workers_change_nothing(probe, tmp_path):
    alone, helped = probe(folder="alone"), probe(folder="helped", workers=2)
    assert alone.metrics == helped.metrics
    assert files(tmp_path / "alone") == files(tmp_path / "helped")


def test_seeds_change_the_result(probe, tmp_path):
    probe(folder="a", seed=0)
    probe(folder="b", seed=1)
    assert files(tmp_path / "a") != files(tmp_path / "b")


def test_crops_are_torchvisions(set_of):
    images = LabelledImages(set_of(6), "train")
    crops = RandomCrops(images, seed=3)
    flipped = 0
    for index in range(len(images)):
        pixels, label = crops[2, index]
        assert (pixels.shape, pixels.dtype) == ((3, 16, 16), torch.uint8)
        assert label == images.labels[index]
        image = to_rgb(images.open(index))
        window = random_window(image.height, image.width, (0.08, 1.0), generator(3, 2, index))
        box = (window.top, window.left, window.height, window.width)
        expected = torch.from_numpy(_array(resized_crop(image, *box, [16, 16])))
        turned = pixels.equal(expected.flip(-1))
        assert turned or pixels.equal(expected)
        flipped += turned
    assert 0.2 < flipped / len(images) < 0.8
    assert not crops[0, 0][0].equal(crops[1, 0][0])
    assert crops[1, 0][0].equal(RandomCrops(images, seed=3)[1, 0][0])


def _array(image):
    import numpy as np

    return np.asarray(image).transpose(2, 0, 1).copy()


def test_an_unreadable_image_in_a_worker(probe, monkeypatch):
    def broken(self, sample):
        raise UserError("cat/7.png cannot be read; restore it.")

    monkeypatch.setattr(RandomCrops, "__getitem__", broken)
    for workers in (0, 1):
        with pytest.raises(UserError) as caught:
            probe(workers=workers)
        assert str(caught.value) == "cat/7.png cannot be read; restore it."


def test_published_weights(probe, run_of, set_of, tmp_path):
    """DINO's file, class token and mean patch interleaved, is scored without training."""
    generator_ = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(6, 48, generator=generator_), torch.randn(6, generator=generator_)
    path = tmp_path / "linear.pth"
    state = {"module.linear.weight": weight, "module.linear.bias": bias}
    torch.save({"epoch": 100, "state_dict": state, "best_acc": 77.0}, path)
    result = probe(n_last_blocks=1, avgpool=True, weights=str(path))
    assert result.protocol == "linear-n1avg-weights"
    assert result.metrics.keys() == {"top1_final", "top5_final"}
    encoder, images = load_encoder(run_of("vit")), LabelledImages(set_of(6), "test")
    pixels = torch.stack([image for image, _ in images]).float() / 255
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (encoder.mean, encoder.std))
    with torch.no_grad():
        found = encoder((pixels - mean) / std)
    both = torch.empty(18, 48)
    both[:, 0::2], both[:, 1::2] = found.summary, found.patches.flatten(2).mean(2)
    right = (both @ weight.T + bias).argmax(1) == images.labels
    assert result.metrics["top1_final"] == pytest.approx(100 * right.float().mean().item())


def test_our_own_weights(probe, tmp_path):
    trained = probe(folder="first")
    path = tmp_path / "first" / "classifier.safetensors"
    again = probe(folder="again", weights=str(path), weights_sha256=sha256_file(path))
    for name in ("top1_final", "top5_final"):
        assert again.metrics[name] == trained.metrics[name]


def test_weights_that_do_not_fit(probe, tmp_path):
    path = tmp_path / "c.safetensors"
    with pytest.raises(UserError, match=r"c\.safetensors is missing"):
        probe(weights=str(path))
    path.write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"c\.safetensors cannot be read as weights"):
        probe(weights=str(path))
    save_file({"weight": torch.zeros(1000, 48), "bias": torch.zeros(1000)}, path)
    with pytest.raises(UserError, match=r"classifier of \(1000, 48\) .* but \(6, 48\)"):
        probe(weights=str(path))
    with pytest.raises(UserError, match=r"has SHA-256 .* but weights_sha256 is 0000"):
        probe(weights=str(path), weights_sha256="0" * 64)


def test_few_classes_have_no_top5(probe, tmp_path):
    result = probe(classes=3, cached=True)
    assert result.metrics["top5_final"] is result.metrics["top5_best"] is None
    assert load_file(tmp_path / "linear" / "classifier.safetensors")["weight"].shape == (3, 48)


def test_more_blocks_than_there_are(probe):
    with pytest.raises(UserError, match="n_last_blocks is 4 but the encoder has 3 blocks"):
        probe(n_last_blocks=4)


def test_a_loss_that_is_not_finite(probe):
    with pytest.raises(UserError, match=r"not finite in epoch \d; lower its learning_rate"):
        probe(cached=True, learning_rate=1e38)


def test_final_and_best_are_apart():
    tested = [(60.0, 80.0), None, (70.0, 90.0), (70.0, 85.0), (65.0, 95.0)]
    rows = [
        {"epoch": i, "top1": row and row[0], "top5": row and row[1]}
        for i, row in enumerate(tested, 1)
    ]
    assert summary(rows) == {
        "top1_final": 65.0,
        "top5_final": 95.0,
        "top1_best": 70.0,
        "top5_best": 90.0,
        "best_epoch": 3,
    }


def test_places_and_chunks():
    logits = torch.tensor([[-3.0, -1.0, -1.0, -2.0, -9.0]]).expand(5, 5)
    assert places(logits, torch.arange(5)).tolist() == [3, 0, 1, 2, 4]
    head = torch.nn.Linear(4, 6)
    features, labels = torch.randn(11, 4), torch.arange(11) % 6
    whole, parts = score(head, features, labels), score(head, features, labels, chunk=3)
    assert parts == pytest.approx(whole)
    with torch.no_grad():
        assert whole[0] == pytest.approx(F.cross_entropy(head(features), labels).item())


def test_bf16_is_on_request(probe, tmp_path):
    probe(folder="exact", cached=True)
    probe(folder="rough", cached=True, precision="bf16")
    exact, rough = (
        load_file(tmp_path / name / "classifier.safetensors")["weight"]
        for name in ("exact", "rough")
    )
    assert rough.dtype == torch.float32
    assert not rough.equal(exact)
    torch.testing.assert_close(rough, exact, rtol=0.2, atol=0.05)


@pytest.mark.parametrize(
    "changes",
    [{"avgpool": True}, {"epochs": 0}, {"learning_rate": 0}, {"val_freq": 0}, {"precision": "x"}],
)
def test_settings_out_of_range(changes):
    with pytest.raises(ValidationError):
        config(**changes)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_not_finite(bad):
    head = torch.nn.Linear(4, 6)
    head.weight.data[2, 1] = bad
    with pytest.raises(UserError, match="scores of test images are not finite; lower its"):
        score(head, torch.rand(10, 4), torch.arange(10) % 6)
