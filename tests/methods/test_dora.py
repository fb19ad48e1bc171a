import numpy as np
import pytest
import torch
from pydantic import ValidationError

from timewalk.methods.base import Step
from timewalk.methods.dora import (
    DoRA,
    DoraConfig,
    dora_loss,
    mask_images,
    object_weights,
    threshold,
)


def config(**changes):
    return DoraConfig.model_validate({**DoraConfig.miniature(), **changes})


def step(index=0, epoch=0, total=10):
    return Step(index, epoch, total, 5, 2)


def batch(clips=2, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return {
        "global": torch.randint(0, 256, (clips, 3, 3, 32, 32), dtype=torch.uint8, generator=rng),
        "local": torch.randint(0, 256, (clips, 2, 3, 3, 16, 16), dtype=torch.uint8, generator=rng),
    }


def test_defaults_are_those_of_the_published_command_line():
    found = DoraConfig(method="dora", dataset="x")
    assert (found.frames_per_clip, found.step_between_clips) == (8, 30)
    assert (found.local_crops, found.local_crops_scale) == (8, (0.05, 0.4))
    assert (found.out_dim, found.norm_last_layer, found.freeze_last_layer_epochs) == (
        65536,
        True,
        1,
    )
    assert (found.warmup_teacher_temperature, found.teacher_temperature) == (0.04, 0.04)
    assert (found.momentum_teacher, found.compat) == (0.996, "intended")
    training = found.training
    assert (training.batch_size, training.epochs, training.warmup_epochs) == (16, 100, 10)
    assert (training.learning_rate, training.min_learning_rate) == (5e-4, 1e-6)
    assert (training.weight_decay, training.weight_decay_end) == (0.04, 0.4)
    assert (training.clip_grad, training.clip_mode, training.optimizer) == (
        3.0,
        "parameter",
        "adamw",
    )
    assert found.encoder.drop_path == 0.1
    # A user who names only the encoder keeps the student's drop path.
    assert config(encoder={"name": "vit_small", "patch_size": 8}).encoder.drop_path == 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_objects": 5}, "4 heads"),
        ({"global_size": 30}, "global_size is 30"),
        ({"local_size": 20}, "multiple of encoder.patch_size"),
        ({"encoder": {"name": "resnet50"}}, "attention of a ViT"),
        ({"encoder": {"name": "vit_tiny", "width": 25, "patch_size": 8}}, "no multiple"),
        ({"local_crops_scale": [0.5, 0.1]}, "smaller share first"),
        ({"compat": "published", "local_crops": 1}, "drops one crop"),
        ({"out_dim": 0}, "out_dim"),
        ({"momentum_teacher": 1.5}, "momentum_teacher"),
        ({"frames": 3}, "frames"),
    ],
)
def test_configurations_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        config(**changes)


def test_heads_are_distinct_and_drawn_per_step():
    method = DoRA(config())
    drawn = {tuple(method.choose_heads(step(index=i))) for i in range(20)}
    assert len(drawn) > 5
    assert all(len(set(heads)) == 3 and max(heads) < 4 for heads in drawn)
    assert method.choose_heads(step(index=3)) == method.choose_heads(step(index=3))


def test_weights_of_objects():
    assert object_weights(3, 8, "intended") == pytest.approx([1 / 3] * 3)
    # (1/F + 1/F^2 + 1/F^3, 1/F + 1/F^2, 1/F) / K, of sums over F frames.
    expected = [(1 + 1 / 8 + 1 / 64) / 3, (1 + 1 / 8) / 3, 1 / 3]
    assert object_weights(3, 8, "published") == pytest.approx(expected)
    # As measured: the published loss is about 1.09 times the intended one at F = 8.
    assert sum(object_weights(3, 8, "published")) == pytest.approx(1.09, abs=0.01)


def test_intended_loss_is_the_mean_over_objects_frames_and_crops():
    objects, local = torch.randn(3, 4, 6), torch.randn(2, 4, 6)
    target = torch.randn(4, 6).softmax(-1)

    def mean(logits):
        return -(target * (logits / 0.1).log_softmax(-1)).sum(-1).mean()

    parts = dora_loss(objects, local, target, object_weights(3, 4, "intended"))
    torch.testing.assert_close(parts.total, 0.5 * (mean(objects) + mean(local)))


def test_a_clip_keeps_its_masks_whatever_else_is_in_the_batch():
    maps = torch.rand(2, 3, 3, 16).softmax(-1)
    maps[1, :, :, 0] += 10
    alone, together = threshold(maps[:1], "intended"), threshold(maps, "intended")
    assert torch.equal(alone[0], together[0])
    published = threshold(maps, "published")
    assert not torch.equal(threshold(maps[:1], "published")[0], published[0])


def test_masked_images_of_other_than_square_grids():
    images, masks = torch.rand(1, 2, 3, 8, 12), torch.rand(1, 2, 3, 6) > 0.5
    found = mask_images(images, masks, 4)
    assert found.shape == (3, 1, 2, 3, 8, 12)
    whole = torch.nn.functional.interpolate(
        masks[0].permute(1, 0, 2).unflatten(-1, (2, 3)).float(), scale_factor=4, mode="nearest"
    )
    assert torch.equal(found[:, 0], images[0] * whole[:, :, None])


@pytest.mark.parametrize("compat", ["intended", "published"])
def test_one_mad_clip_does_not_blank_the_others(compat):
    """Large queries of one clip make the published Sinkhorn NaN and blank the whole batch."""
    method = DoRA(config(compat=compat, encoder={**config().encoder.model_dump(), "drop_path": 0}))
    images = method.normalised(batch()["global"])
    tokens = method.teacher.backbone.tokens

    def mad(*arguments, **keys):
        result = tokens(*arguments, **keys)
        result.queries[1] *= 1e5
        return result

    method.teacher.backbone.tokens = mad
    _, objects, masks = method.look(images, [0, 1, 2])
    coverage = masks.float().mean(dim=(1, 2, 3))
    if compat == "published":
        assert objects.assignment[1].isnan().all()
        assert coverage.tolist() == [0, 0]
    else:
        assert objects.assignment.isfinite().all()
        assert (coverage > 0.1).all()
    method.eval()
    terms = method.loss(batch(), step()).terms
    assert terms["sinkhorn_underflows"] == 1


def test_published_and_intended_differ():
    losses = []
    for compat in ("intended", "published"):
        method = DoRA(config(compat=compat)).eval()
        losses.append(method.loss(batch(), step()).total.item())
    assert losses[0] != losses[1]


def test_bytes_and_normalised_floats_are_the_same_input():
    method = DoRA(config()).eval()
    data = batch()
    one = method.loss(data, step()).total
    two = method.loss({k: method.normalised(v) for k, v in data.items()}, step()).total
    assert torch.equal(one, two)


def test_picture_shows_frames_and_objects():
    method = DoRA(config())
    clip = torch.full((3, 3, 40, 60), 200, dtype=torch.uint8)
    picture = method.visualise(clip)["objects"]
    assert picture.shape == (32 * 4, 32 * 3, 3)
    assert np.array_equal(picture[:32], np.full((32, 96, 3), 200))
    assert not np.array_equal(picture[32:64], picture[64:96])
