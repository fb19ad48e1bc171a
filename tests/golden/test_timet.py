"""TimeT against arrays of the published code: see data/timet/README.md for names and tolerances."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from timewalk.methods.base import Step
from timewalk.methods.timet import TimeT
from timewalk.methods.timet_config import TimeTConfig, TimeTTraining
from timewalk.ops.ema import ema_update_
from timewalk.ops.forwarding import Forwarding, forward_labels
from timewalk.ops.schedules import warmup_cosine
from timewalk.ops.sinkhorn import sinkhorn
from timewalk.training.optimizers import set_rates

SINKHORN = ("eps0.05_it10", "eps0.05_it3", "eps0.05_it1", "eps0.1_it10")
FORWARDER = ("default", "short_context", "no_window", "all_equal")
LOSSES = {
    "plain": {},
    "queue": {"queue": True},
    "teacher": {"teacher": True},
    "teacher_queue": {"queue": True, "teacher": True},
}
INPUTS = {
    "features",
    "backbone_features",
    "teacher_features",
    "prototypes",
    "teacher_prototypes",
    "queue_before",
    "queue_pick",
}
RESULTS = ("loss", "q_first", "target", "grad_last_frame", "grad_prototypes")
STEPS = 15


def tensor(array):
    return torch.from_numpy(np.array(array))


@pytest.mark.parametrize("case", ["a", "b"])
@pytest.mark.parametrize("setting", SINKHORN)
def test_sinkhorn(golden, case, setting):
    arrays = golden("timet", "sinkhorn.npz")
    epsilon, iterations = setting.removeprefix("eps").split("_it")
    found = sinkhorn(tensor(arrays[f"{case}_scores"])[None], float(epsilon), int(iterations))[0]
    np.testing.assert_allclose(found, arrays[f"{case}_q_{setting}"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", FORWARDER)
def test_forwarder(golden, case):
    arrays = golden("timet", "forwarder.npz")
    features_FND, first_NK = (tensor(arrays[f"{case}_{key}"]) for key in ("features", "first"))
    context, radius, top_k = arrays[f"{case}_params"].tolist()
    side = math.isqrt(features_FND.shape[1])
    maps_FDhw = features_FND.mT.unflatten(-1, (side, side))
    first_Khw = first_NK.mT.unflatten(-1, (side, side))
    settings = Forwarding(context, radius, top_k, temperature=0.1)
    found = forward_labels(maps_FDhw[None], first_Khw[None].double(), settings)[0]
    np.testing.assert_allclose(found, arrays[f"{case}_maps"], rtol=0, atol=1e-5)


class Watched(TimeT):
    """A TimeT on the golden prototypes that pushes the golden rows, and keeps what it assigns."""

    def __init__(self, arrays, **keys):
        config = {**TimeTConfig.miniature(), "queue": False, "teacher": False, "radius": 6}
        count, channels = arrays["prototypes"].shape
        config |= {"prototypes": count, "head_widths": [channels], **keys}
        config |= {"queue_size": len(arrays["queue_before"])}
        super().__init__(TimeTConfig.model_validate(config))
        self.prototypes.data = tensor(arrays["prototypes"])
        if self.teacher is not None:
            self.teacher.prototypes.data = tensor(arrays["teacher_prototypes"])
        if self.queue is not None:
            self.queue = tensor(arrays["queue_before"])
        self.rows = tensor(arrays["queue_pick"])
        self.patches = arrays["features"][:, 0, :, 0].size

    def _picks(self, rows, count, step):
        assert (rows, count) == (self.patches, len(self.rows))
        return self.rows

    def _assigned(self, features_BANC, step):
        self.q_first, joint = super()._assigned(features_BANC, step)
        return self.q_first, joint


def run(arrays, assigned, **keys):
    """Return the method and what the golden files hold of a step."""
    method = Watched(arrays, **keys)
    features = tensor(arrays["features"]).requires_grad_()
    side = math.isqrt(features.shape[2])
    maps = tensor(arrays["backbone_features"]).mT.unflatten(-1, (side, side))
    seen = assigned if assigned is not None else features[:, :1].detach()
    losses = method.objective(features[:, -1], seen, maps, Step(0, 0, 10, 10, 1))
    losses.total.backward()
    assert not features.grad[:, :-1].any()
    settings = Forwarding(7, 6, 5, 0.1)
    labels = method.q_first.mT.unflatten(-1, (side, side))
    found = {
        "loss": losses.total.detach(),
        "q_first": method.q_first,
        "target": forward_labels(maps, labels, settings)[:, -1].argmax(dim=1),
        "grad_last_frame": features.grad[:, -1],
        "grad_prototypes": method.prototypes.grad,
    }
    return method, losses, found


def assert_step(found, arrays, prefix):
    np.testing.assert_allclose(found["loss"], arrays[f"{prefix}loss"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found["q_first"], arrays[f"{prefix}q_first"], rtol=0, atol=1e-5)
    assert np.mean(found["target"].numpy() == arrays[f"{prefix}target"]) >= 0.995
    for key in ("grad_last_frame", "grad_prototypes"):
        np.testing.assert_allclose(found[key], arrays[prefix + key], rtol=0, atol=1e-6)


@pytest.mark.parametrize("tag", LOSSES)
def test_loss(golden, tag):
    arrays = golden("timet", "loss.npz")
    taught = "teacher" in LOSSES[tag]
    assigned = tensor(arrays["teacher_features"]) if taught else None
    method, losses, found = run(arrays, assigned, **LOSSES[tag])
    assert_step(found, arrays, f"{tag}_")
    if "queue" in LOSSES[tag]:
        np.testing.assert_array_equal(method.queue, arrays["queue_before"])
        method.after_step(Step(0, 0, 10, 10, 1), losses.rows)
        np.testing.assert_array_equal(method.queue, arrays[f"{tag}_queue_after"])


def test_loss_of_one_assignment_for_all_frames(golden):
    arrays = golden("timet", "loss.npz")
    joint = golden("timet", "loss_joint_sinkhorn.npz")
    keys = {"sinkhorn_scope": "all_frames"}
    _, _, found = run(arrays, tensor(arrays["features"]), **keys)
    assert_step(found, joint, "")
    assert np.mean(found["target"].numpy() == arrays["plain_target"]) < 0.95
    assert joint.keys() == set(RESULTS)


def step(index):
    return Step(index, index // 5, STEPS, 5, 3)


def rates(**training):
    """Return learning rate and weight decay of each step."""
    settings = TimeTTraining(epochs=3, **training)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    group = torch.nn.Parameter(torch.zeros(1))
    groups = [type("Group", (), {"parameters": [group], "lr_scale": 1.0, "weight_decay": True})]
    found = [set_rates(optimizer, groups, settings, step(index)) for index in range(STEPS)]
    return {key: [each[key] for each in found] for key in found[0]}


def test_schedules(golden):
    arrays = golden("timet", "schedules.npz")
    found = rates()
    exact = {"rtol": 1e-12, "atol": 1e-16}
    np.testing.assert_allclose(found["weight_decay"], arrays["wd_0.04_0.4_e3_n5"], **exact)
    np.testing.assert_allclose(found["learning_rate"], arrays["lr_1e-4_T15"], **exact)
    momentum = [warmup_cosine(index, STEPS, 0.995, 1.0) for index in range(STEPS)]
    np.testing.assert_allclose(momentum, arrays["momentum_0.995_1_e3_n5"], **exact)
    # The later repository takes each second value of the schedule, down to 0 and up again.
    falling = [*found["learning_rate"], 0.0]
    twice = [falling[min(2 * index, 2 * STEPS - 2 * index)] for index in range(STEPS)]
    np.testing.assert_allclose(twice, arrays["lr_1e-4_T15_stepped_twice"], rtol=1e-9, atol=1e-13)
    assert rates(schedule="constant")["learning_rate"] == [1e-4] * STEPS


@pytest.mark.parametrize("direction", ["textbook", "as_coded"])
def test_teacher(golden, direction):
    """The update itself, and the method's at the step whose rate the golden file has."""
    arrays = golden("timet", "schedules.npz")
    assert arrays["ema_step"] == 4
    momentum = arrays["momentum_0.995_1_e3_n5"][4]
    kept = momentum if direction == "textbook" else 1 - momentum
    teacher = tensor(arrays["ema_teacher_before"])
    ema_update_([teacher], [tensor(arrays["ema_student"])], kept)
    np.testing.assert_allclose(teacher, arrays[f"ema_teacher_{direction}"], rtol=0, atol=1e-6)
    compat = "intended" if direction == "textbook" else "published"
    keys = {"teacher": True, "use_head": False, "queue": False, "compat": compat}
    config = TimeTConfig.model_validate({**TimeTConfig.miniature(), **keys})
    method = TimeT(config)
    method.prototypes.data = tensor(arrays["ema_prototypes"])
    method.teacher.prototypes.data = tensor(arrays["ema_teacher_prototypes_before"])
    # Counted: the published code reads the schedule after the step.
    terms = method.after_step(step(3), {})
    assert terms["teacher_momentum"] == pytest.approx(momentum)
    expected = arrays[f"ema_teacher_prototypes_{direction}"]
    np.testing.assert_allclose(method.teacher.prototypes, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        method.prototypes.detach(), F.normalize(tensor(arrays["ema_prototypes"])), atol=1e-7
    )


def test_the_students_start_is_no_input(golden):
    """The teacher follows the student of after the step, not the one of before it."""
    arrays = golden("timet", "schedules.npz")
    teacher = tensor(arrays["ema_teacher_before"])
    momentum = arrays["momentum_0.995_1_e3_n5"][4]
    ema_update_([teacher], [tensor(arrays["ema_student_before"])], 1 - momentum)
    assert not np.allclose(teacher, arrays["ema_teacher_as_coded"], rtol=0, atol=1e-4)


def test_every_array_is_compared(golden):
    assert golden("timet", "sinkhorn.npz").keys() == {
        f"{case}_{key}"
        for case in ("a", "b")
        for key in ("scores", *(f"q_{setting}" for setting in SINKHORN))
    }
    assert golden("timet", "forwarder.npz").keys() == {
        f"{case}_{key}" for case in FORWARDER for key in ("features", "first", "params", "maps")
    }
    queues = {f"{tag}_queue_after" for tag in LOSSES if "queue" in LOSSES[tag]}
    results = {f"{tag}_{key}" for tag in LOSSES for key in RESULTS}
    assert golden("timet", "loss.npz").keys() == INPUTS | queues | results
    assert golden("timet", "loss_joint_sinkhorn.npz").keys() == set(RESULTS)
    ema = {"step", "student_before", "student", "prototypes"}
    ema |= {f"{which}_before" for which in ("teacher", "teacher_prototypes")}
    ema |= {
        f"{which}_{direction}"
        for which in ("teacher", "teacher_prototypes")
        for direction in ("as_coded", "textbook")
    }
    curves = {"wd_0.04_0.4_e3_n5", "momentum_0.995_1_e3_n5", "lr_1e-4_T15"}
    assert golden("timet", "schedules.npz").keys() == {
        *curves,
        "lr_1e-4_T15_stepped_twice",
        *(f"ema_{key}" for key in ema),
    }
