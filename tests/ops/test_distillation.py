import pytest
import torch

from timewalk.ops import distillation
from timewalk.ops.distillation import (
    cross_entropy,
    cross_view_loss,
    teacher_probabilities,
    update_centre_,
)


@pytest.mark.parametrize("chunk", [1, 3 * 8, 1 << 20])
def test_cross_entropy_and_its_gradient_in_chunks(monkeypatch, chunk):
    monkeypatch.setattr(distillation, "CHUNK_NUMEL", chunk)
    target = torch.rand(7, 8, dtype=torch.float64)
    logits = torch.randn(7, 8, dtype=torch.float64, requires_grad=True)
    expected = -(target * (logits / 0.1).log_softmax(-1)).sum(-1)
    torch.testing.assert_close(cross_entropy(target, logits, 0.1), expected)
    assert torch.autograd.gradcheck(lambda x: cross_entropy(target, x, 0.5), logits)


def test_half_precision_logits_are_summed_in_float32():
    logits = torch.randn(4, 1000).bfloat16().requires_grad_()
    target = torch.rand(4, 1000).softmax(-1)
    loss = cross_entropy(target, logits, 0.1)
    assert loss.dtype == torch.float32
    loss.sum().backward()
    assert logits.grad.dtype == torch.bfloat16
    reference = cross_entropy(target, logits.detach().float(), 0.1)
    torch.testing.assert_close(loss, reference)


def test_cross_view_loss_is_the_mean_over_pairs():
    student = torch.randn(4, 3, 5, requires_grad=True)
    teacher, centre = torch.randn(2, 3, 5), torch.randn(1, 5)
    target = teacher_probabilities(teacher, centre, 0.04)
    pairs = [
        -(target[i] * (student[v] / 0.1).log_softmax(-1)).sum(-1).mean()
        for i in range(2)
        for v in range(4)
        if i != v
    ]
    found = cross_view_loss(student, teacher, centre, 0.04)
    torch.testing.assert_close(found, torch.stack(pairs).mean())


def test_centre_moves_by_the_mean_row():
    centre = torch.zeros(1, 3)
    update_centre_(centre, torch.ones(2, 4, 3), 0.9)
    torch.testing.assert_close(centre, torch.full((1, 3), 0.1))
