import numpy as np
import pytest
import torch
from pydantic import ValidationError

from timewalk.methods.base import Step
from timewalk.methods.dino import DINO, GLOBAL_CHAINS, LOCAL_CHAIN, DinoConfig
from timewalk.methods.distillation import answer_means


def config(**changes):
    return DinoConfig.model_validate({**DinoConfig.miniature(), **changes})


def step(index=0, epoch=0, total=10):
    return Step(index, epoch, total, 5, 2)


def batch(images=2, local=2, seed=0):
    rng = torch.Generator().manual_seed(seed)

    def pixels(*shape):
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=rng)

    result = {"global": pixels(images, 2, 3, 32, 32)}
    return {**result, "local": pixels(images, local, 3, 16, 16)} if local else result


def photograph(seed=0):
    rng = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 3, 8, 12, generator=rng)
    large = torch.nn.functional.interpolate(small, size=(80, 120), mode="bicubic").clamp(0, 1)
    return (large * 255).to(torch.uint8)


def test_defaults_are_those_of_the_published_command_line():
    found = DinoConfig(method="dino", dataset="x")
    assert (found.global_size, found.global_crops_scale) == (224, (0.4, 1.0))
    assert (found.local_crops, found.local_size, found.local_crops_scale) == (8, 96, (0.05, 0.4))
    assert (found.out_dim, found.norm_last_layer, found.use_bn_in_head) == (65536, True, False)
    assert (found.head_hidden, found.head_bottleneck) == (2048, 256)
    assert (found.momentum_teacher, found.centre_momentum) == (0.996, 0.9)
    assert (found.warmup_teacher_temperature, found.teacher_temperature) == (0.04, 0.04)
    assert (found.warmup_teacher_temperature_epochs, found.student_temperature) == (0, 0.1)
    assert found.freeze_last_layer_epochs == 1
    training = found.training
    assert (training.batch_size, training.epochs, training.warmup_epochs) == (64, 100, 10)
    assert (training.learning_rate, training.min_learning_rate) == (5e-4, 1e-6)
    assert (training.weight_decay, training.weight_decay_end) == (0.04, 0.4)
    assert (training.clip_grad, training.clip_mode) == (3.0, "parameter")
    assert (training.optimizer, training.precision) == ("adamw", "bf16")
    assert (found.encoder.name, found.encoder.drop_path) == ("vit_small", 0.1)


def test_colours_are_those_of_the_sheet():
    first, second = GLOBAL_CHAINS
    assert [chain.blur_prob for chain in (first, second, LOCAL_CHAIN)] == [1.0, 0.1, 0.5]
    assert [chain.solarise_prob for chain in (first, second, LOCAL_CHAIN)] == [0.0, 0.2, 0.0]
    for chain in (first, second, LOCAL_CHAIN):
        assert (chain.jitter_prob, chain.grey_prob, chain.blur_radius) == (0.8, 0.2, (0.1, 2.0))
        jitter = (chain.brightness, chain.contrast, chain.saturation, chain.hue)
        assert jitter == (0.4, 0.4, 0.2, 0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_size": 30}, "global_size is 30"),
        ({"local_size": 20}, "multiple of encoder.patch_size"),
        ({"encoder": {"name": "vit_tiny", "width": 25, "patch_size": 8}}, "no multiple"),
        ({"global_crops_scale": [0.5, 0.1]}, "smaller share first"),
        ({"local_crops": -1}, "local_crops"),
        ({"local_crops_scale": [0.0, 0.1]}, "local_crops_scale"),
        ({"compat": "published"}, "compat"),
    ],
)
def test_configurations_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        config(**changes)


def test_sizes_of_what_is_not_used_or_no_vit_are_free():
    assert config(local_crops=0, local_size=20).local_size == 20
    assert config(encoder={"name": "test_resnet"}, global_size=30).global_size == 30


def test_views():
    method = DINO(config(local_crops=3))
    assert method.clip_shape()[:2] == (1, 0)
    views = method.views(photograph(), torch.Generator().manual_seed(0))
    assert {key: (tuple(x.shape), x.dtype) for key, x in views.items()} == {
        "global": ((2, 3, 32, 32), torch.uint8),
        "local": ((3, 3, 16, 16), torch.uint8),
    }
    flat = [view.numpy().tobytes() for view in (*views["global"], *views["local"])]
    assert len(set(flat)) == 5


def test_no_local_crops():
    method = DINO(config(local_crops=0)).eval()
    assert list(method.views(photograph(), torch.Generator())) == ["global"]
    losses = method.loss(batch(local=0), step())
    losses.total.backward()
    assert losses.total.isfinite()


def test_views_leave_the_global_generator():
    before = torch.get_rng_state()
    DINO(config()).views(photograph(), torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("local", [0, 3])
def test_loss_is_the_mean_over_pairs_of_different_crops(local):
    method = DINO(config(local_crops=local)).eval()
    method.centre.copy_(torch.linspace(-1, 1, 32))
    data = batch(images=4, local=local)
    crops = [*data["global"].unbind(1), *(data["local"].unbind(1) if local else ())]
    with torch.no_grad():
        student = [method.student.logits(method.normalised(x)) for x in crops]
        teacher = [method.teacher.logits(method.normalised(x)) for x in crops[:2]]
    targets = [((g - method.centre) / 0.04).softmax(-1) for g in teacher]
    pairs = [
        -(target * (logits / 0.1).log_softmax(-1)).sum(-1).mean()
        for i, target in enumerate(targets)
        for v, logits in enumerate(student)
        if i != v
    ]
    assert len(pairs) == 2 * (2 + local) - 2
    losses = method.loss(data, step())
    torch.testing.assert_close(losses.total, torch.stack(pairs).mean())
    entropy = torch.special.entr(torch.cat(targets)).sum(-1).mean()
    torch.testing.assert_close(losses.terms["kl"], losses.total.detach() - entropy)
    torch.testing.assert_close(losses.terms["centre_norm"], method.centre.norm())
    expected = torch.cat(teacher).mean(dim=0, keepdim=True)
    torch.testing.assert_close(losses.means["centre"], expected)


def test_a_batch_is_the_mean_of_its_parts():
    method = DINO(config()).eval()
    assert method.splits
    data = batch(images=4)
    whole = method.loss(data, step())
    parts = [method.loss({k: v[i : i + 2] for k, v in data.items()}, step()) for i in (0, 2)]
    torch.testing.assert_close(whole.total, (parts[0].total + parts[1].total) / 2)
    centres = [part.means["centre"] for part in parts]
    torch.testing.assert_close(whole.means["centre"], (centres[0] + centres[1]) / 2)


def test_the_teacher_sees_the_global_crops_only():
    method = DINO(config())
    seen = {"teacher": [], "student": []}
    for name, network in method.named_children():
        record = seen[name].append
        network.backbone.patch_embed.proj.register_forward_pre_hook(
            lambda _, x, record=record: record(tuple(x[0].shape))
        )
    method.loss(batch(), step())
    assert seen["teacher"] == [(4, 3, 32, 32)]
    assert seen["student"] == [(4, 3, 32, 32), (4, 3, 16, 16)]


def test_bytes_and_normalised_floats_are_the_same_input():
    method = DINO(config()).eval()
    data = batch()
    one = method.loss(data, step()).total
    two = method.loss({k: method.normalised(v) for k, v in data.items()}, step()).total
    assert torch.equal(one, two)


def test_batch_norm_in_the_head():
    """It keeps the published keys; each network's statistics are its own, over all its crops."""
    method = DINO(config(use_bn_in_head=True))
    assert not method.splits
    assert "teacher.head.mlp.1.running_mean" in method.state_dict()
    method.loss(batch(images=4), step()).total.backward()
    mlp = {name: network.head.mlp for name, network in method.named_children()}
    assert int(mlp["student"][1].num_batches_tracked) == 1
    before = mlp["teacher"][1].running_mean.clone()
    assert not torch.equal(before, mlp["student"][1].running_mean)
    method.after_step(step(), answer_means(torch.zeros(2, 32)))
    assert torch.equal(mlp["teacher"][1].running_mean, before)


def test_a_network_of_timm():
    method = DINO(config(encoder={"name": "test_resnet"}))
    assert not method.splits
    views = [method.views(photograph(i), torch.Generator().manual_seed(i)) for i in range(2)]
    data = {key: torch.stack([view[key] for view in views]) for key in views[0]}
    losses = method.loss(data, step())
    losses.total.backward()
    grads = [p.grad for _, p in method.trainable()]
    assert all(grad is not None and grad.isfinite().all() for grad in grads)
    grey = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    assert torch.equal(method.normalised(grey), torch.ones(1, 3, 2, 2))
    assert list(method.visualise(photograph())) == ["crops"]


def test_pictures():
    method = DINO(config(local_crops=5))
    pictures = method.visualise(photograph())
    # The frame and two global crops of 32, below them five local crops of 16.
    assert pictures["crops"].shape == (48, 96, 3)
    assert pictures["crops"][32:, :80].any()
    assert not pictures["crops"][32:, 80:].any()
    heads = pictures["attention"]
    assert heads.shape == (32, 32 * 5, 3)
    assert np.array_equal(heads[:, :32], pictures["crops"][:32, :32])
    assert (heads[:, 32:64].astype(int) <= heads[:, :32].astype(int) + 1).all()
