"""Optimisers and their rates."""

import pytest
import torch
from torch import nn

from timewalk.config import TrainingConfig
from timewalk.methods.base import ParameterGroup, Step
from timewalk.training.lars import LARS
from timewalk.training.optimizers import make_optimizer, set_rates


def groups():
    torch.manual_seed(0)
    weight, bias = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3))
    return [ParameterGroup([weight], lr_scale=0.5), ParameterGroup([bias], weight_decay=False)]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("adamw", torch.optim.AdamW),
        ("adam", torch.optim.Adam),
        ("sgd", torch.optim.SGD),
        ("lars", LARS),
    ],
)
def test_each_moves_against_the_gradient(name, kind):
    parts = groups()
    settings = TrainingConfig(optimizer=name, batch_size=256, learning_rate=0.1, warmup_epochs=0)
    optimizer = make_optimizer(parts, settings)
    assert type(optimizer) is kind
    rates = set_rates(optimizer, parts, settings, Step(0, 0, 10, 5, 2))
    assert rates == pytest.approx({"learning_rate": 0.1, "weight_decay": 0.04})
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.05, 0.1])
    assert [g["weight_decay"] for g in optimizer.param_groups] == pytest.approx([0.04, 0.0])
    before = [p.detach().clone() for g in parts for p in g.parameters]
    for part in parts:
        part.parameters[0].grad = torch.ones_like(part.parameters[0])
    optimizer.step()
    for old, part in zip(before, parts, strict=True):
        assert (part.parameters[0] < old).float().mean() > 0.9


def test_adam_by_hand():
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    settings = TrainingConfig(optimizer="adam")
    (group,) = make_optimizer([ParameterGroup([weight])], settings).param_groups
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.999), 1e-8, 0)
    optimizer = make_optimizer([ParameterGroup([weight])], settings)
    optimizer.param_groups[0]["lr"] = 0.01
    weight.grad = torch.tensor([0.5, -3.0])
    optimizer.step()
    # The first step is the rate in the gradient's direction, however large the gradient.
    assert weight.tolist() == pytest.approx([0.99, -1.99])


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_epsilon_as_tensorflow_adds_it(name):
    """w -= lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + epsilon)."""
    weight = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    settings = TrainingConfig(
        optimizer=name,
        **{"learning_rate": 0.01, "scale_learning_rate": False, "schedule": "constant"},
        **{"warmup_epochs": 0, "epsilon": 1e-3, "epsilon_first": True},
        **{"weight_decay": 0.0, "weight_decay_end": 0.0},
    )
    parts = [ParameterGroup([weight])]
    optimizer = make_optimizer(parts, settings)
    expected, m, v = weight.detach().clone(), 0.0, 0.0
    for index, size in enumerate((1e-3, 2e-3, -1e-4, 5e-4)):
        set_rates(optimizer, parts, settings, Step(index, 0, 10, 5, 2))
        weight.grad = torch.tensor([size, -0.1 * size], dtype=torch.float64)
        optimizer.step()
        m, v = 0.9 * m + 0.1 * weight.grad, 0.999 * v + 0.001 * weight.grad**2
        rate = 0.01 * (1 - 0.999 ** (index + 1)) ** 0.5 / (1 - 0.9 ** (index + 1))
        expected -= rate * m / (v.sqrt() + 1e-3)
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-12, atol=0)


def test_a_constant_rate_after_its_warm_up():
    parts = groups()
    settings = TrainingConfig(
        schedule="constant", batch_size=256, learning_rate=0.1, warmup_epochs=0.6
    )
    optimizer = make_optimizer(parts, settings)
    found = [set_rates(optimizer, parts, settings, Step(i, i // 5, 10, 5, 2)) for i in range(10)]
    expected = [0.0, 0.05, *[0.1] * 8]
    assert [rates["learning_rate"] for rates in found] == pytest.approx(expected)
    # The weight decay still follows its own cosine.
    assert found[9]["weight_decay"] > found[0]["weight_decay"]


def test_rates_in_steps():
    parts = groups()
    settings = TrainingConfig(
        learning_rate=1e-4,
        scale_learning_rate=False,
        batch_size=8,
        schedule="step",
        milestones=[2, 3],
        gamma=0.3,
        warmup_epochs=0,
    )
    optimizer = make_optimizer(parts, settings)

    def rate(index, settings=settings):
        step = Step(index, index // 5, 25, 5, 5)
        return set_rates(optimizer, parts, settings, step)["learning_rate"]

    expected = [1e-4] * 10 + [3e-5] * 5 + [9e-6] * 10
    assert [rate(index) for index in range(25)] == pytest.approx(expected)
    warm = settings.model_copy(update={"warmup_epochs": 1, "scale_learning_rate": True})
    found = [rate(index, warm) for index in range(6)]
    assert found == pytest.approx([1e-4 / 32 * part for part in (0, 0.25, 0.5, 0.75, 1, 1)])


def test_lars_by_hand():
    weight, bias = nn.Parameter(torch.tensor([[3.0, 4.0]])), nn.Parameter(torch.tensor([1.0]))
    optimizer = LARS([weight, bias], lr=0.1, momentum=0.9, eta=0.001, weight_decay=0.5)
    position, velocity = torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)
    for _ in range(2):
        weight.grad, bias.grad = torch.tensor([[1.0, 0.0]]), torch.tensor([2.0])
        optimizer.step()
        gradient = torch.tensor([[1.0, 0.0]]) + 0.5 * position
        velocity = 0.9 * velocity + 0.001 * position.norm() / gradient.norm() * gradient
        position = position - 0.1 * velocity
    torch.testing.assert_close(weight.detach(), position)
    # Neither decay nor trust ratio: plain momentum.
    assert bias.item() == pytest.approx(1.0 - 0.1 * 2 - 0.1 * (0.9 * 2 + 2))


def test_lars_leaves_what_has_no_gradient():
    weight = nn.Parameter(torch.zeros(2, 2))
    optimizer = LARS([weight], lr=1.0)
    optimizer.step()
    assert not optimizer.state
    weight.grad = torch.zeros(2, 2)
    optimizer.step()
    assert torch.equal(weight, torch.zeros(2, 2))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"schedule": "exponential", "gamma": 0.5, "decay_steps": 3}, [1, 1, 1, 0.5, 0.5, 0.5]),
        ({"schedule": "linear"}, [1, 0.9, 0.8, 0.7, 0.6, 0.5]),
        ({"schedule": "step", "milestone_steps": [1], "milestones": [1]}, [1, *[0.1] * 4, 0.01]),
        ({"schedule": "constant", "warmup_steps": 3, "warmup_epochs": 2}, [0, 0.5, 1, 1, 1, 1]),
        (
            {"schedule": "linear", "warmup_ratio": 0.5, "warmup_steps": 2},
            [0.5, 0.75 * 0.9, 0.8, 0.7, 0.6, 0.5],
        ),
        (
            {"schedule": "step", "milestones": [1], "warmup_ratio": 0.0, "warmup_steps": 4},
            [0, 0.25, 0.5, 0.75, 1, 0.1],
        ),
    ],
)
def test_schedules_in_steps(keys, expected):
    parts = groups()
    settings = TrainingConfig(
        **{"learning_rate": 1.0, "scale_learning_rate": False, "warmup_epochs": 0} | keys
    )
    optimizer = make_optimizer(parts, settings)
    found = [set_rates(optimizer, parts, settings, Step(i, 0, 10, 5, 2)) for i in range(6)]
    assert [rates["learning_rate"] for rates in found] == pytest.approx(expected)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_epsilon(name):
    (group,) = make_optimizer(
        groups()[:1], TrainingConfig(optimizer=name, epsilon=1e-7)
    ).param_groups
    assert group["eps"] == 1e-7


def test_a_ratio_is_of_schedules_that_know_it():
    with pytest.raises(ValueError, match="schedule `cosine` does not know; set it to null"):
        TrainingConfig(warmup_ratio=0.1)
