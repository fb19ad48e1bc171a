import math

import torch
from torch import nn

from timewalk.ops.clipping import clip_each_, clip_global_


def parameters(*gradients):
    result = []
    for gradient in gradients:
        parameter = nn.Parameter(torch.zeros(len(gradient)))
        parameter.grad = torch.tensor(gradient)
        result.append(parameter)
    return [*result, nn.Parameter(torch.zeros(3))]


def test_each_gradient_is_clipped_alone():
    found = parameters([3.0, 4.0], [0.3, 0.4])
    norms = clip_each_(found, 1.0)
    torch.testing.assert_close(norms, torch.tensor([5.0, 0.5]))
    torch.testing.assert_close(found[0].grad, torch.tensor([3.0, 4.0]) / (5 + 1e-6))
    assert torch.equal(found[1].grad, torch.tensor([0.3, 0.4]))
    assert found[2].grad is None


def test_all_gradients_are_clipped_together():
    found = parameters([3.0, 0.0], [0.0, 4.0])
    assert torch.linalg.vector_norm(clip_global_(found, 1.0)) == 5
    torch.testing.assert_close(found[1].grad, torch.tensor([0.0, 0.8]), rtol=1e-5, atol=0)


def test_infinity_only_measures():
    for clip in (clip_each_, clip_global_):
        found = parameters([3.0, 4.0])
        assert clip(found, math.inf).tolist() == [5.0]
        assert found[0].grad.tolist() == [3.0, 4.0]


def test_no_gradient_at_all():
    assert len(clip_each_([nn.Parameter(torch.zeros(2))], 1.0)) == 0
