"""SMTC's losses and learning rate against the published code: names and tolerances in
data/smtc/README.md."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from timewalk.methods.smtc_losses import (
    instance_consistency,
    semantic_consistency,
    separation,
    transport_between_frames,
    valid_instances,
)
from timewalk.ops.assignment import best_permutations
from timewalk.ops.schedules import warmup_cosine
from timewalk.ops.transport import transport_plan

INSTANCES = ("object", "object2", "object_none")
SCHEDULES = {  # processes, batch of each, steps, learning rate
    "efficient": (4, 32, 10_000, 2e-5),
    "readme8x64": (8, 64, 10_000, 1e-4),
    "single": (1, 2, 10_000, 4e-5),
}
EPOCH = 10_000


def tensor(array):
    return torch.from_numpy(np.array(array))


def assert_value(found, expected):
    """The README's tolerance of values."""
    found, atol = found.detach().numpy(), 2e-5 * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=atol)


def assert_gradient(found, expected):
    """The README's tolerance of gradients."""
    atol = 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-3, atol=atol)


@pytest.fixture
def losses(golden):
    return golden("smtc", "losses.npz")


def test_separation(losses):
    logits = tensor(losses["in.logits_student"]).requires_grad_()
    loss = separation(logits)
    loss.backward()
    assert_value(loss, losses["differ.loss"])
    assert_gradient(logits.grad, losses["differ.grad_logits"])


def test_semantic_consistency(losses):
    logits = tensor(losses["in.logits_student"]).requires_grad_()
    teacher, keys = tensor(losses["in.logits_teacher"]), tensor(losses["in.feat_teacher"])
    loss = semantic_consistency(logits, teacher, keys)
    loss.backward()
    assert_value(loss, losses["transport.loss"])
    assert_gradient(logits.grad, losses["transport.grad_logits"])


def test_transport_between_frames(losses):
    plan = transport_between_frames(tensor(losses["in.feat_teacher"]))
    assert_value(plan, losses["transport.plan"])


def test_transport_plan(losses):
    cost, a, b = (tensor(losses[f"sinkhorn.{key}"]) for key in ("cost", "mu_s", "mu_t"))
    assert_value(transport_plan(cost, a, b), losses["sinkhorn.plan"])


@pytest.mark.parametrize("case", ["valid", "valid_t"])
def test_valid_instances(losses, case):
    keys = ("logits", "semantic", "instance")
    logits, semantic, instance = (tensor(losses[f"{case}.{key}"]) for key in keys)
    np.testing.assert_array_equal(
        valid_instances(logits, semantic, instance), losses[f"{case}.out"].astype(bool)
    )
    if case == "valid":  # what the selection compares, at the release's thresholds
        area = (logits.softmax(dim=2) > 0.3).float().mean(dim=-1)
        assert_value(area, losses["valid.area"])
        cosine = F.cosine_similarity(semantic.unsqueeze(3), instance, dim=-1)
        assert_value(cosine, losses["valid.cos"])
        expected = (cosine > 0.5) & (area > 0.2).unsqueeze(-1)
        np.testing.assert_array_equal(expected, losses["valid.out"].astype(bool))


@pytest.mark.parametrize("case", INSTANCES)
def test_instance_consistency(losses, case):
    student, teacher = (tensor(losses[f"{case}.{key}"]) for key in ("student", "teacher"))
    valid = [tensor(losses[f"{case}.{key}"]).bool() for key in ("valid_s", "valid_t")]
    loss = instance_consistency(student.requires_grad_(), teacher, *valid)
    loss.backward()
    assert_value(loss, losses[f"{case}.loss"])
    assert_gradient(student.grad, losses[f"{case}.grad_student"])


@pytest.mark.parametrize("case", INSTANCES)
def test_matches(losses, case):
    student, teacher = (tensor(losses[f"{case}.{key}"]) for key in ("student", "teacher"))
    similar = torch.einsum("bispd,bjsqd->ijbspq", student, teacher)
    order = losses[f"{case}.order"]
    np.testing.assert_array_equal(best_permutations(similar), order[..., 0])
    np.testing.assert_array_equal(np.sort(order), np.broadcast_to(np.arange(3), order.shape))


def test_which_instances_are_valid(losses):
    np.testing.assert_array_equal(losses["object.valid_s"], losses["valid.out"])
    np.testing.assert_array_equal(losses["object.valid_t"], losses["valid_t.out"])
    for case in ("object2", "object_none"):
        for key in ("valid_s", "valid_t"):
            assert set(np.unique(losses[f"{case}.{key}"])) <= {0.0, 1.0}
    counted = ("valid.out", "valid_t.out", "object_none.valid_t")
    np.testing.assert_array_equal(
        losses["info.valid_counts"], [losses[key].sum() for key in counted]
    )


@pytest.mark.parametrize("case", SCHEDULES)
def test_learning_rate(golden, case):
    arrays = golden("smtc", "schedule.npz")
    processes, batch, steps, peak = SCHEDULES[case]
    per_epoch = -(-EPOCH // processes) // batch
    assert arrays[f"{case}.batches_per_epoch"] == per_epoch
    # Ours is as long as the training; the published one ends with the last whole epoch before.
    length = steps // per_epoch * per_epoch
    assert arrays[f"{case}.length"] == length
    index = arrays[f"{case}.index"]
    np.testing.assert_array_equal(index[[0, 1, -1]], [0, 1, length - 1])
    found = [warmup_cosine(step, length, peak, 0.1 * peak) for step in index.tolist()]
    np.testing.assert_allclose(found, arrays[f"{case}.lr"], rtol=1e-12)


def test_every_array_is_compared(golden, losses):
    instance = ("student", "teacher", "valid_s", "valid_t", "loss", "grad_student", "order")
    selection = ("logits", "semantic", "instance", "out")
    parts = {
        "in": ("logits_student", "logits_teacher", "feat_teacher"),
        "differ": ("loss", "grad_logits"),
        "transport": ("loss", "grad_logits", "plan"),
        "sinkhorn": ("mu_s", "mu_t", "cost", "plan"),
        "valid": (*selection, "area", "cos"),
        "valid_t": selection,
        "info": ("valid_counts",),
        **dict.fromkeys(INSTANCES, instance),
    }
    assert losses.keys() == {f"{part}.{key}" for part, keys in parts.items() for key in keys}
    schedule = ("batches_per_epoch", "length", "index", "lr")
    expected = {f"{case}.{key}" for case in SCHEDULES for key in schedule}
    assert golden("smtc", "schedule.npz").keys() == expected
