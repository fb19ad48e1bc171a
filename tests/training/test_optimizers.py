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
    ("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD), ("lars", LARS)]
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
