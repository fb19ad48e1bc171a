"""The training loss on random clips: its definition, its draws, fine-tuning, refusals."""

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from timewalk.config import MovingPhases
from timewalk.data.phases import PhaseVideos
from timewalk.data.prepare import prepare
from timewalk.encoders import save_encoder, save_head
from timewalk.errors import UserError
from timewalk.evaluation.algorithm_loss import (
    Config,
    _clip,
    described,
    draw,
    evaluate,
    load_learner,
    measure,
)
from timewalk.evaluation.base import Inputs
from timewalk.methods import get_method
from timewalk.ops.alignment import compute_alignment_loss
from timewalk.ops.objectives import build_objective

CPU = torch.device("cpu")
NAMES = ("tcc", "sal", "tcn", "tcc_sal_tcn", "classification")


def config(**keys):
    small = {"kind": "algorithm_loss", "dataset": "pour", "batches": 3, "frames_per_clip": 6}
    return Config.model_validate({**small, **keys})


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    path = tmp_path_factory.mktemp("set") / "manifest.json"
    sizes = {"train": 4, "test": 3, "shortest": 13, "longest": 17, "height": 32, "width": 40}
    prepare("pour", MovingPhases(kind="moving_phases", **sizes), path)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")

    def find(name, **keys):
        place = folder / f"{name}-{json.dumps(keys, sort_keys=True)}".replace('"', "")
        if not place.exists():
            method = get_method(name)
            classes = {"classes": 5} if name == "classification" else {}
            made = method(
                method.Config.model_validate({**method.Config.miniature(), **classes, **keys})
            )
            save_encoder(made.encoder, place, {})
            save_head(made.heads(), place)
        return place

    return find


def inputs(run, manifest):
    return Inputs(run, manifest, CPU)


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_has_a_loss_on_both_splits(runs, manifest, tmp_path, name):
    found = evaluate(inputs(runs(name), manifest), config(), tmp_path)
    terms = {"tcc_sal_tcn": ["tcc", "sal", "tcn"], "classification": ["accuracy"]}.get(name, [])
    wanted = {f"{key}_{split}" for key in ("loss", *terms) for split in ("train", "test")}
    assert found.metrics.keys() == wanted
    assert all(np.isfinite(value) for value in found.metrics.values())
    assert found.metrics["loss_train"] != found.metrics["loss_test"]
    settings = {
        "tcc": "-temperature=1",
        "tcc_sal_tcn": "-tcc.temperature=1",
        "classification": "-classes=5",
    }
    assert found.protocol == f"{name}{settings.get(name, '')}-f6-b2x3"
    assert found.samples == 3


def test_the_loss_is_the_mean_over_batches_of_tcc_s(runs, manifest):
    learner = load_learner(runs("tcc"), {}, 6)
    videos, settings = PhaseVideos(manifest, "test"), config()
    expected = []
    for number in range(3):
        batch, _ = draw(learner, videos, settings, (0, 1, number))
        assert batch.images.shape == (2, 12, 3, 32, 32)
        assert batch.steps.min() >= 1
        with torch.no_grad():
            embeddings = learner.embed(batch.images)
        loss = compute_alignment_loss(
            embeddings,
            2,
            batch.steps,
            batch.lengths,
            loss_type="regression_mse_var",
            temperature=1.0,
        )
        expected.append(loss.item())
    assert len(set(expected)) == 3
    found = measure(learner, videos, settings, 1)
    assert found == {"total": pytest.approx(np.mean(expected), rel=1e-6)}


def test_clips_are_the_training_s_without_augmentation(runs, manifest):
    learner = load_learner(runs("tcc"), {"image_size": 24}, 6)
    videos = PhaseVideos(manifest, "train")
    images, steps, labels = _clip(learner, videos, 1, torch.Generator().manual_seed(4))
    drawn = learner.sampler.draw(len(videos[1]), torch.Generator().manual_seed(4))
    frames = videos[1].frames(drawn.frames).float()
    expected = torch.nn.functional.interpolate(frames, size=(24, 24), mode="bilinear")
    assert torch.equal(images, expected.round().to(torch.uint8))
    assert steps.tolist() == drawn.steps
    assert labels is None


def test_the_seed_alone_decides(runs, manifest, tmp_path):
    run = inputs(runs("sal"), manifest)
    first = evaluate(run, config(), tmp_path).metrics
    torch.manual_seed(3)
    assert evaluate(run, config(), tmp_path).metrics == first
    assert evaluate(run, config(seed=1), tmp_path).metrics != first


def test_what_was_learnt_is_measured(runs, manifest):
    """The head's weights are the run's, not fresh ones."""
    learner = load_learner(runs("classification"), {}, 6)
    method = get_method("classification")
    keys = {**method.Config.miniature(), "classes": 5}
    made = method(method.Config.model_validate(keys))
    for found, saved in zip(
        learner.objective.parameters(), made.objective.parameters(), strict=True
    ):
        assert torch.equal(found, saved)


def test_a_run_without_embedder_is_measured_by_tcc(run_of, manifest, tmp_path):
    labelled = tmp_path / "set" / "manifest.json"
    sizes = {"train": 2, "test": 2, "shortest": 13, "longest": 17, "height": 32, "width": 40}
    prepare("pour", MovingPhases(kind="moving_phases", image_size=16, **sizes), labelled)
    found = evaluate(inputs(run_of("vit"), labelled), config(), tmp_path)
    assert found.protocol == "tcc-f6-b2x3"
    assert np.isfinite(found.metrics["loss_test"])


class TestFinetuning:
    @pytest.mark.parametrize("train_base", ["frozen", "only_bn", "train_all"])
    def test_the_training_loss_falls(self, runs, manifest, tmp_path, train_base):
        run = inputs(runs("classification"), manifest)
        before = evaluate(run, config(), tmp_path).metrics
        tuned = {"steps": 15, "learning_rate": 0.01, "train_base": train_base}
        found = evaluate(run, config(finetune=tuned), tmp_path)
        assert found.metrics["loss_train"] < before["loss_train"]
        tuning = f"tuned15-{train_base}-lr0.01"
        assert found.protocol == f"classification-classes=5-f6-b2x3-{tuning}"
        assert evaluate(run, config(finetune=tuned), tmp_path).metrics == found.metrics

    def test_nothing_to_learn(self, run_of, manifest, tmp_path):
        keys = config(finetune={"steps": 1})
        labelled = tmp_path / "set" / "manifest.json"
        sizes = {"train": 2, "test": 2, "shortest": 13, "longest": 17, "height": 32, "width": 40}
        prepare("pour", MovingPhases(kind="moving_phases", image_size=16, **sizes), labelled)
        with pytest.raises(UserError, match=r"train_base is frozen, .* set it to only_bn"):
            evaluate(inputs(run_of("vit"), labelled), keys, tmp_path)


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "keys", "message"),
        [
            ("tcc", {"batch_size": 1}, "batch_size is 1, but the run's objective tcc needs 2"),
            (
                "sal",
                {"frames_per_clip": 4},
                "frames_per_clip is 4, but the run's objective sal needs 5; raise it",
            ),
            ("tcn", {"batch_size": 4}, "'pour' has no action of batch_size 4 videos .*at most 3"),
        ],
    )
    def test_what_does_not_fit(self, runs, manifest, tmp_path, name, keys, message):
        with pytest.raises(UserError, match=message):
            evaluate(inputs(runs(name), manifest), config(**keys), tmp_path)

    def test_more_phases_than_classes(self, runs, manifest, tmp_path):
        run = runs("classification", classes=2)
        message = r"has a frame labelled 4, but the run knows 2 phases; evaluate it on the set"
        with pytest.raises(UserError, match=message):
            evaluate(inputs(run, manifest), config(), tmp_path)

    def test_a_size_that_does_not_fit(self, runs):
        message = "frames of 36 pixels do not fit its encoder; .* multiple of 8"
        with pytest.raises(UserError, match=message):
            load_learner(runs("tcc"), {"image_size": 36}, 6)

    def test_a_damaged_objective(self, runs, tmp_path):
        method = get_method("sal")
        made = method(method.Config.model_validate(method.Config.miniature()))
        save_encoder(made.encoder, tmp_path, {})
        head = made.heads()
        del head["objective.head.layers.0.weight"]
        save_head(head, tmp_path)
        with pytest.raises(UserError, match=r"holds an objective that cannot be built .*; train"):
            load_learner(tmp_path, {}, 6)

    def test_one_frame_is_no_clip(self):
        with pytest.raises(ValidationError, match="greater than or equal to 2"):
            config(frames_per_clip=1)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"name": "tcc"}, "tcc"),
        (
            {"name": "tcc", "temperature": 0.1, "loss_type": "regression_mse"},
            "tcc-loss_type=regression_mse",
        ),
        ({"name": "classification", "classes": 5}, "classification-classes=5"),
        (
            {"name": "tcc_sal_tcn", "sal_weight": 0.5, "tcc": {"temperature": 0.2}},
            "tcc_sal_tcn-sal_weight=0.5-tcc.temperature=0.2",
        ),
        ({"name": "sal", "layers": [[8, True], [2, False]]}, "sal-layers=[[8,True],[2,False]]"),
    ],
)
def test_what_is_not_the_default_is_in_the_protocol(spec, expected):
    assert described(build_objective(spec, 4).spec) == expected
