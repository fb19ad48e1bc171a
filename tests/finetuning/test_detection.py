"""Fine-tuning of detection: its schedule, its protocol's name, and a few steps of both heads."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.finetuning.toy import tiny_vit
from timewalk.artefacts import read_json
from timewalk.config import COCOShapes
from timewalk.data.detection_views import Sizes, draw_window, resized
from timewalk.data.objects import LabelledObjects
from timewalk.data.prepare import prepare
from timewalk.encoders.dense import load_network, save_network
from timewalk.errors import UserError
from timewalk.finetuning import get_task
from timewalk.finetuning.detection import Detection, DetectionConfig, targets
from timewalk.methods.base import Step
from timewalk.training.loop import InterruptedTraining, Machine, Trainer

SET = COCOShapes(kind="coco_shapes", train=8, test=2, height=64, width=80)
SMALL = {
    "channels": 8,
    "short_sides": [32, 48],
    "long_side": 80,
    "crop_short_sides": [40],
    "crop_sides": [24, 32],
}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    path = tmp_path_factory.mktemp("detection") / "shapes" / "manifest.json"
    prepare("shapes", SET, path)
    return path


def config(training=None, **keys):
    given = {"task": "detection", "dataset": "shapes", **keys}
    return DetectionConfig.model_validate(given | ({"training": training} if training else {}))


def task(manifest, **keys):
    return Detection(config(**{**SMALL, **keys}), tiny_vit(depth=2), read_json(manifest))


def batch_of(task, manifest, numbers=range(4)):
    source = task.open(manifest)
    rng = torch.Generator().manual_seed(0)
    return task.collate([task.sample(source.clip(number), rng) for number in numbers])


def test_the_published_command_line():
    published = config()
    training = published.training
    assert get_task("detection") is Detection
    assert (training.learning_rate, training.weight_decay, training.batch_size) == (1e-4, 0.05, 32)
    assert (training.epochs, training.milestones, training.gamma) == (12, [8, 11], 0.1)
    assert (training.warmup_steps, training.warmup_ratio) == (500, 0.001)
    assert (published.head, published.layer_decay, published.drop_path) == ("cascade", 0.8, 0.1)
    assert (training.precision, training.clip_grad) == ("fp16", 0)
    assert published.sizes == Sizes()


@pytest.mark.parametrize(
    ("scale", "epochs", "milestones"),
    [
        (1, 12, [8, 11]),
        (2, 24, [16, 22]),
        # The published "3x" is no multiple of "1x".
        (3, 36, [27, 33]),
        ("3", 36, [27, 33]),
        (0.5, 6, [4, 5]),
        (0.25, 3, [2]),
        (0.05, 1, []),
    ],
)
def test_the_schedule_scales(scale, epochs, milestones):
    training = config(schedule_scale=scale).training
    assert (training.epochs, training.milestones) == (epochs, milestones)


@pytest.mark.parametrize(
    ("training", "scale", "epochs", "milestones"),
    [
        ({"epochs": 24, "batch_size": 2}, 1, 24, [16, 22]),
        ({"epochs": 5}, 3, 5, [3, 4]),
        ({"milestones": [2]}, 3, 36, [2]),
        ({"epochs": 5, "milestones": []}, 3, 5, []),
    ],
)
def test_given_epochs_and_milestones_are_not_scaled(training, scale, epochs, milestones):
    found = config(training, schedule_scale=scale)
    assert (found.training.epochs, found.training.milestones) == (epochs, milestones)
    # What a checkpoint holds is read back as it is.
    again = DetectionConfig.model_validate(found.model_dump(mode="json"))
    assert again == found
    assert DetectionConfig.model_validate(again.model_dump(mode="json")) == found
    assert DetectionConfig(dataset="shapes", task="detection").training.epochs == 12


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"schedule_scale": 0}, "schedule_scale"),
        ({"schedule_scale": "long"}, "schedule_scale"),
        ({"crop_sides": [40, 20]}, "crop_sides.* from 40 to 20 pixels; give the smaller one first"),
        ({"short_sides": []}, "short_sides"),
        ({"head": "yolo"}, "head"),
    ],
)
def test_impossible_keys(keys, message):
    with pytest.raises(ValidationError, match=message):
        config(**keys)


@pytest.mark.parametrize(
    ("keys", "training", "title"),
    [
        ({}, {}, "cascade-1x"),
        ({"head": "mask_rcnn"}, {}, "maskrcnn-1x"),
        ({"schedule_scale": 3}, {}, "cascade-3x"),
        ({"schedule_scale": 0.5}, {"keep_checkpoints": 4}, "cascade-0.5x"),
        ({"seed": 3, "layer_decay": 0.75}, {}, "cascade-1x-ld0.75-seed3"),
        ({"crop": False}, {"max_steps": 50, "batch_size": 2}, "cascade-1x-cropfalse-b2-steps50"),
        ({}, {"precision": "fp32"}, "cascade-1x-fp32"),
        ({}, {"epochs": 24}, "cascade-1x-epochs24"),
        ({}, {"epochs": 24, "milestones": [20]}, "cascade-1x-epochs24-milestones20"),
        ({"schedule_scale": 3}, {"epochs": 36}, "cascade-3x"),
        ({}, {"weight_decay": 0.1}, "cascade-1x-wd0.1"),
        ({}, {"weight_decay": 0.1, "weight_decay_end": 0.05}, "cascade-1x-wd0.1-wdend0.05"),
    ],
)
def test_the_protocol_names_what_is_not_published(manifest, keys, training, title):
    found = Detection(config(training, **keys), tiny_vit(depth=2), read_json(manifest)).title()
    assert sorted(found.split("-")) == sorted(title.split("-"))
    assert found.startswith("-".join(title.split("-")[:2]))


def test_without_crops_images_keep_their_whole(manifest):
    sizes = config(crop=False, short_sides=[40], long_side=50).sizes
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        window = draw_window((64, 80), sizes, rng)
        seen = (window.left, window.top, window.right, window.bottom)
        assert seen == (0, 0, 80, 64)
        assert (window.height, window.width) == resized((64, 80), 40, 50)


def test_only_images_with_objects_are_learnt_from(manifest):
    images = task(manifest).open(manifest)
    assert 0 < len(images) < 8
    for number in range(len(images)):
        assert images.clip(number).trainable.any()


def test_a_set_without_objects_is_refused(manifest, monkeypatch):
    monkeypatch.setattr(LabelledObjects, "__len__", lambda self: 0)
    with pytest.raises(UserError, match="no image of the training split has an object"):
        task(manifest).open(manifest)


def test_targets_belong_to_their_images(manifest):
    one = task(manifest)
    batch = batch_of(one, manifest)
    found = targets(batch)
    assert [len(x["boxes"]) for x in found] == batch["counts"].tolist()
    assert torch.equal(torch.cat([x["labels"] for x in found]), batch["classes"] + 1)
    # Eight pixels in a byte on the way, one in a byte here.
    assert batch["masks"].shape[-1] == -(-batch["images"].shape[-1] // 8)
    bits = np.unpackbits(batch["masks"].numpy(), axis=-1)[..., : batch["images"].shape[-1]]
    assert bits.any()
    np.testing.assert_array_equal(torch.cat([x["masks"] for x in found]), bits)
    for item, (height, width) in zip(found, batch["sizes"].tolist(), strict=True):
        assert item["masks"].shape[1:] == batch["images"].shape[2:]
        assert not item["masks"][:, height:].any()
        assert not item["masks"][:, :, width:].any()
        sides = item["boxes"][:, 2:] - item["boxes"][:, :2]
        assert (sides > 0).all()


def test_boxes_without_area_never_reach_the_network(manifest):
    one = task(manifest)
    image = one.open(manifest).clip(0)
    boxes = np.array([[5, 5, 5, 20], [9, 9, 3, 3], [100, 5, 120, 20]], np.float32)
    broken = type(image)(**{**vars(image), "boxes": np.resize(boxes, image.boxes.shape)})
    sample = one.sample(broken, torch.Generator().manual_seed(0))
    assert sample["boxes"].shape == (0, 4)
    batch = one.device_views(one.collate([sample]))
    losses = one.loss(batch, Step(0, 0, 1, 1, 1))
    assert losses.total.isfinite()


def test_images_are_normalised_on_the_device(manifest):
    one = task(manifest)
    batch = batch_of(one, manifest)
    assert batch["images"].dtype == torch.uint8
    views = one.device_views(batch)
    assert views["images"].dtype == torch.float32
    height = int(batch["sizes"][0, 0])
    assert not views["images"][0, :, height:].any()
    assert views["images"].shape[2] % one.network.multiple == 0


def trainer(manifest, folder, head):
    training = {"batch_size": 2, "micro_batch_size": 1, "max_steps": 3, "precision": "bf16"}
    settings = config(training | {"warmup_steps": 1}, head=head, **SMALL)
    one = Detection(settings, tiny_vit(depth=2), read_json(manifest))
    machine = Machine(torch.device("cpu"))
    return Trainer(one, settings, one.open(manifest), folder, machine, {"inputs": {}})


@pytest.mark.parametrize("head", ["cascade", "mask_rcnn"])
def test_a_few_steps_of_the_trainer(head, manifest, tmp_path):
    training = trainer(manifest, tmp_path, head)
    one = training.method
    before = {name: x.clone() for name, x in one.network.named_parameters()}
    training.run()
    moved = {n for n, x in one.network.named_parameters() if not torch.equal(x, before[n])}
    assert {"encoder.pos_embed", "fpn.layer_blocks.0.0.weight"} <= moved
    save_network(one.network, tmp_path, {"title": one.title(), "classes": ["a"]})
    network, about = load_network(tmp_path, "detector")
    assert about["title"].startswith("cascade-1x" if head == "cascade" else "maskrcnn-1x")
    whole = torch.zeros(1, 3, 40, 56)
    (found,) = network(whole, torch.tensor([[40, 56]]))
    assert found["boxes"].shape[1] == 4


@pytest.mark.parametrize("out_norm", [True, False])
@pytest.mark.parametrize("head", ["cascade", "mask_rcnn"])
def test_what_learns_has_a_gradient_in_every_step(manifest, head, out_norm):
    """Several processes wait for every one of them."""
    one = task(manifest, head=head, out_norm=out_norm)
    assert not one.unused_parameters
    assert one.batch_statistics
    batch = one.device_views(batch_of(one, manifest))
    one.loss(batch, Step(0, 0, 1, 1, 1)).total.backward()
    assert [n for n, p in one.trainable() if p.grad is None] == []
    still = {n for n, p in one.named_parameters() if not p.requires_grad}
    assert still == (
        set() if out_norm else {f"network.encoder.norm.{x}" for x in ("weight", "bias")}
    )


def test_resume_is_bit_exact(manifest, tmp_path):
    whole = trainer(manifest, tmp_path / "whole", "cascade")
    whole.run()
    parts = trainer(manifest, tmp_path / "parts", "cascade")

    def stop(step, joint):
        parts.stop = step.index == 1
        return {}

    parts.method.after_step = stop
    with pytest.raises(InterruptedTraining):
        parts.run()
    rest = trainer(manifest, tmp_path / "parts", "cascade")
    rest.run()
    assert rest.first == 2
    found = rest.method.network.state_dict()
    for name, tensor in whole.method.network.state_dict().items():
        assert torch.equal(tensor, found[name]), name


def test_the_loss_is_the_sum_of_its_terms(manifest):
    one = task(manifest)
    batch = one.device_views(batch_of(one, manifest))
    losses = one.loss(batch, Step(0, 0, 1, 1, 1))
    assert len(losses.terms) == 2 + 3 * 3
    torch.testing.assert_close(losses.total.detach(), sum(losses.terms.values()))
    assert not any(x.requires_grad for x in losses.terms.values())
