"""Semantic segmentation: what it learns, with which settings, from which sets."""

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.evaluation.coloured_masks import VOID, class_maps, write_set
from timewalk.config import ADE20KShapes
from timewalk.data.generated import save_ids
from timewalk.data.prepare import prepare
from timewalk.encoders import save_encoder
from timewalk.encoders.files import from_spec
from timewalk.errors import UserError
from timewalk.evaluation import ade20k
from timewalk.evaluation.base import Inputs
from timewalk.finetuning import get_task
from timewalk.finetuning.semantic_segmentation import (
    SemanticSegmentation,
    SemanticSegmentationConfig,
)
from timewalk.methods.base import Step
from timewalk.training.finetune import finetune
from timewalk.training.loop import InterruptedTraining, Machine, Trainer

SHAPES = {"kind": "ade20k_shapes", "train": 12, "test": 4, "height": 64, "width": 96}
CPU = torch.device("cpu")
STEP = Step(0, 0, 10, 2, 5)
VIT = {"family": "vit", "width": 24, "depth": 4, "heads": 3, "patch_size": 16, "image_size": 32}


def vit():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return from_spec(VIT)


def config(**keys):
    training = {**SemanticSegmentationConfig.miniature()["training"], **keys.pop("training", {})}
    given = {**SemanticSegmentationConfig.miniature(), **keys, "training": training}
    return SemanticSegmentationConfig(**given)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    manifest = tmp_path_factory.mktemp("shapes") / "set" / "manifest.json"
    prepare("shapes", ADE20KShapes(**SHAPES), manifest)
    return manifest


def about(manifest):
    return json.loads(manifest.read_text())


def task_of(manifest, encoder=None, **keys):
    return SemanticSegmentation(config(**keys), encoder or vit(), about(manifest))


def batch_of(task, manifest, numbers):
    source = task.open(manifest)
    samples = [task.sample(source.clip(n), torch.Generator().manual_seed(n)) for n in numbers]
    return task.device_views(task.collate(samples))


def test_the_published_settings():
    found = SemanticSegmentationConfig(dataset="ade20k")
    training = found.training
    assert get_task(found.task) is SemanticSegmentation
    assert (found.head, found.layer_decay, found.drop_path) == ("upernet", 0.9, 0.1)
    assert (found.auxiliary_weight, found.crop, found.scale) == (0.4, 512, (0.5, 2.0))
    assert (found.short_side, found.long_side, found.class_max_share) == (512, 2048, 0.75)
    assert (found.brightness, found.hue) == (32, 18)
    assert found.contrast == found.saturation == (0.5, 1.5)
    assert (training.max_steps, training.batch_size, training.learning_rate) == (160_000, 16, 3e-5)
    assert (training.warmup_steps, training.warmup_ratio) == (1500, 1e-6)
    assert (training.schedule, training.clip_grad, training.precision) == ("linear", 0, "fp16")
    assert training.weight_decay == training.weight_decay_end == 0.05


@pytest.mark.parametrize("head", ["linear", "upernet"])
def test_a_few_steps_lower_the_loss(shapes, head):
    task = task_of(shapes, head=head, distortion=False, drop_path=0.0)
    batch = batch_of(task, shapes, range(4))
    learning = [p for group in task.parameter_groups() for p in group.parameters]
    optimizer = torch.optim.AdamW(learning, lr=1e-2)
    before = {name: p.clone() for name, p in task.network.encoder.named_parameters()}
    losses = []
    for _ in range(20):
        found = task.loss(batch, STEP)
        optimizer.zero_grad()
        found.total.backward()
        optimizer.step()
        losses.append(float(found.terms["pixel_loss"]))
    assert losses[-1] < 0.8 * losses[0]
    assert set(found.terms) - {"auxiliary_loss"} == {"pixel_loss", "pixel_accuracy"}
    assert ("auxiliary_loss" in found.terms) == (head == "upernet")
    after = dict(task.network.encoder.named_parameters())
    moved = any(not torch.equal(before[name], after[name]) for name in before)
    assert moved == (head == "upernet")


def test_the_auxiliary_loss_is_weighed(shapes):
    task = task_of(shapes, auxiliary_weight=0.25)
    found = task.loss(batch_of(task, shapes, range(2)), STEP)
    terms = found.terms
    expected = terms["pixel_loss"] + 0.25 * terms["auxiliary_loss"]
    torch.testing.assert_close(found.total, expected)
    assert task_of(shapes, auxiliary_weight=0).network.auxiliary is None


def test_samples_are_normalised_on_the_device_and_nothing_beside_the_image(shapes):
    task = task_of(shapes, crop=128, scale=(0.5, 0.5), distortion=False)
    batch = batch_of(task, shapes, [0])
    # 64 x 96 by a half: 32 x 48 in a corner.
    assert batch["image"].shape == (1, 3, 128, 128)
    assert not batch["image"][0, :, 32:].any()
    assert not batch["image"][0, :, :, 48:].any()
    assert bool((batch["label"][0, 32:] == VOID).all())
    assert not bool((batch["label"][0, :32, :48] == VOID).all())
    source = task.open(shapes)
    raw = task.sample(source.clip(0), torch.Generator().manual_seed(0))
    assert {key: x.dtype for key, x in raw.items()} == {
        **{"image": torch.uint8, "label": torch.uint8, "valid": torch.int64},
    }
    mean, std = (
        torch.tensor(x)[:, None, None] for x in (task.network.encoder.mean, (0.229, 0.224, 0.225))
    )
    expected = ((raw["image"] / 255 - mean) / std)[:, :32, :48]
    torch.testing.assert_close(batch["image"][0, :, :32, :48], expected)


def test_an_image_without_annotation_has_no_loss(shapes):
    task = task_of(shapes)
    batch = batch_of(task, shapes, range(2))
    batch["label"].fill_(VOID)
    found = task.loss(batch, STEP)
    found.total.backward()
    assert found.total.item() == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in task.parameters())


def test_draws_come_from_the_generator_alone(shapes):
    task = task_of(shapes)
    clip = task.open(shapes).clip(1)
    samples = [task.sample(clip, torch.Generator().manual_seed(s)) for s in (5, 5, 6)]
    assert torch.equal(samples[0]["image"], samples[1]["image"])
    assert not torch.equal(samples[0]["image"], samples[2]["image"])


def test_channels_default_to_the_encoders_width(shapes):
    assert task_of(shapes, channels=None).network.keys["channels"] == 24
    assert task_of(shapes, channels=8).network.keys["channels"] == 8


def test_drop_path_reaches_the_vit_and_weights_stay(shapes):
    encoder = vit()
    task = task_of(shapes, encoder, drop_path=0.3)
    blocks = task.network.encoder.blocks
    assert [round(block.drop_path1.drop_prob, 2) for block in blocks[1:]] == [0.1, 0.2, 0.3]
    own, given = task.network.encoder.state_dict(), encoder.state_dict()
    assert all(torch.equal(own[key], given[key]) for key in given if key != "pos_embed")
    # Positions are brought to the grid of the crops, 64 pixels.
    assert own["pos_embed"].shape == (1, 17, 24)


def test_learning_rates_fall_from_the_head_to_the_image(shapes):
    task = task_of(shapes, layer_decay=0.5)
    scale = {id(p): g.lr_scale for g in task.parameter_groups() for p in g.parameters}
    encoder = task.network.encoder
    assert scale[id(task.network.head.classifier.weight)] == 1
    assert scale[id(encoder.norm.weight)] == 1
    assert scale[id(encoder.blocks[3].norm1.weight)] == 0.5
    assert scale[id(encoder.pos_embed)] == 0.5**5


@pytest.mark.parametrize(
    ("keys", "title"),
    [
        ({}, "upernet-160k"),
        ({"head": "linear"}, "linear-160k"),
        ({"head": "linear", "drop_path": 0, "channels": 8, "flip": 0}, "linear-160k-flip0"),
        ({"drop_path": 0, "channels": 8, "compat": "published"}, "upernet-160k-dp0-published-ch8"),
        ({"training": {"max_steps": 20}}, "upernet-20it"),
        ({"training": {"max_steps": None, "epochs": 12}}, "upernet-12ep"),
        ({"training": {"learning_rate": 8e-5, "batch_size": 8}}, "upernet-160k-b8-lr8e-05"),
        ({"training": {"precision": "bf16", "micro_batch_size": 4}}, "upernet-160k-bf16"),
        ({"training": {"weight_decay": 0.1}}, "upernet-160k-wd0.1"),
        ({"crop": 256, "seed": 3}, "upernet-160k-c256-seed3"),
        ({"training": {"keep_checkpoints": 4, "checkpoint_minutes": 3}}, "upernet-160k"),
    ],
)
def test_the_title_names_what_is_not_as_published(shapes, keys, title):
    found = SemanticSegmentationConfig(dataset="shapes", **keys)
    assert SemanticSegmentation(found, vit(), about(shapes)).title() == title


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"training": {"max_steps": None}}, "neither `max_steps` nor `epochs` to end it"),
        ({"scale": (2, 0.5)}, "a `scale` from 2 to 0.5; give the smaller factor first"),
        ({"contrast": (1.5, 0.5)}, "a `contrast` from 1.5 to 0.5"),
        ({"saturation": (1.5, 0.5)}, "a `saturation` from 1.5 to 0.5"),
    ],
)
def test_impossible_settings(keys, message):
    with pytest.raises(ValidationError, match=message):
        SemanticSegmentationConfig(dataset="shapes", **keys)


@pytest.mark.parametrize("keys", [{}, {"out_norm": False}, {"head": "linear"}])
def test_what_learns_has_a_gradient_in_every_step(shapes, keys):
    """Several processes wait for every one of them."""
    task = task_of(shapes, **keys)
    assert not task.unused_parameters
    assert task.batch_statistics == ("head" not in keys)
    batch = batch_of(task, shapes, range(2))
    for label in (batch["label"], torch.full_like(batch["label"], VOID)):
        task.zero_grad(set_to_none=True)
        task.loss({**batch, "label": label}, STEP).total.backward()
        assert [name for name, p in task.trainable() if p.grad is None] == []


def test_a_crop_that_the_maps_do_not_divide_is_refused(shapes):
    with pytest.raises(UserError, match="crop is 72 but the network's maps need multiples of 32"):
        task_of(shapes, crop=72)


def test_sets_that_cannot_be_learnt_from_are_refused(shapes, tmp_path):
    task = task_of(shapes)
    manifest = write_set(tmp_path / "a", class_maps(2, 0), class_maps(1, 1))
    with pytest.raises(UserError, match="'miniature' has no classes to tell apart"):
        SemanticSegmentation(config(), vit(), about(manifest) | {"classes": []})
    save_ids(tmp_path / "a" / "train0_mask.png", np.full((64, 64), 9, np.uint8))
    with pytest.raises(UserError, match=r"train0_mask\.png holds the id 9, which is beyond"):
        task.open(manifest).clip(0)
    save_ids(tmp_path / "a" / "train0_mask.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(UserError, match=r"train0_mask\.png is 8x8 pixels but its image is 64x64"):
        task.open(manifest).clip(0)
    videos = tmp_path / "videos.json"
    videos.write_text(json.dumps({"kind": "labelled_videos", "classes": ["a"]}))
    with pytest.raises(UserError, match="'miniature' is a set of videos and has no training split"):
        task.open(videos)


@pytest.mark.parametrize(
    "spec",
    [
        {"family": "resnet", "name": "resnet18_s8"},
        {"family": "timm", "name": "resnet10t"},
        {"family": "vgg_m"},
    ],
)
@pytest.mark.parametrize("head", ["linear", "upernet"])
def test_other_encoders_learn_too(shapes, spec, head):
    task = task_of(shapes, from_spec(spec), head=head, crop=64, channels=8)
    found = task.loss(batch_of(task, shapes, range(2)), STEP)
    found.total.backward()
    assert found.total.isfinite()
    learning = [p for group in task.parameter_groups() for p in group.parameters]
    assert any(p.grad is not None and p.grad.any() for p in learning)


def trainer_of(shapes, folder):
    settings = config(dataset="shapes", training={"max_steps": 4})
    task = SemanticSegmentation(settings, vit(), about(shapes))
    return Trainer(task, settings, task.open(shapes), folder, Machine(CPU), {"inputs": {}})


def test_resume_is_bit_exact(shapes, tmp_path):
    whole = trainer_of(shapes, tmp_path / "whole")
    whole.run()
    parts = trainer_of(shapes, tmp_path / "parts")

    def stop(step, joint):
        parts.stop = step.index == 1
        return {}

    parts.method.after_step = stop
    with pytest.raises(InterruptedTraining):
        parts.run()
    rest = trainer_of(shapes, tmp_path / "parts")
    rest.run()
    assert rest.first == 2
    found = rest.method.network.state_dict()
    for name, tensor in whole.method.network.state_dict().items():
        assert torch.equal(tensor, found[name]), name


def test_from_a_run_to_a_score(shapes, tmp_path):
    """Fine-tune a saved encoder by the loop, load the network and evaluate it."""
    run, network = tmp_path / "run", tmp_path / "run" / "finetuned" / "upernet"
    save_encoder(vit(), run, {})
    finetune("upernet", config(dataset="shapes"), run, shapes, network, Machine(CPU))
    lines = [json.loads(x) for x in (network / "metrics.jsonl").read_text().splitlines()]
    losses = [line["pixel_loss"] for line in lines if "pixel_loss" in line]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    keys = {"crop": 64, "stride": 43, "short_side": 64, "long_side": 256}
    settings = ade20k.Config(dataset="shapes", network="upernet", **keys)
    inputs = Inputs(run, shapes, CPU, network=network)
    result = ade20k.evaluate(inputs, settings, tmp_path / "out")
    assert result.samples == 4
    assert result.protocol.startswith("ade20k-upernet-2it-b2-lr0.001-")
    assert all(0 <= value <= 100 for value in result.metrics.values())
