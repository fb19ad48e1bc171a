"""SMTC's losses against loops written from their definition, and at their edges."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F

from timewalk.methods import smtc_losses
from timewalk.methods.smtc_losses import (
    instance_consistency,
    semantic_consistency,
    separation,
    transport_between_frames,
    valid_instances,
)

B, T, S, P, N, D = 2, 3, 4, 3, 9, 6


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


def units(*shape, seed=0, dtype=torch.float64):
    return F.normalize(normal(*shape, seed=seed, dtype=dtype), dim=-1)


def flags(*shape, seed=0, share=0.6):
    return torch.rand(shape, generator=generator(seed)) < share


def naive_separation(logits):
    total, count = 0, 0
    for b, t in itertools.product(range(B), range(T)):
        p = logits[b, t].softmax(dim=0) + 1e-8
        for s, other in itertools.permutations(range(S), 2):
            total = total + (p[s] / p[s].norm()) @ (p[other] / p[other].norm())
            count += 1
    return total / count


def naive_plan(keys_i, keys_j):
    f, g = F.normalize(keys_i, dim=-1), F.normalize(keys_j, dim=-1)
    a, b = f.abs().sum(dim=-1), g.abs().sum(dim=-1)
    a, b = a / a.sum(), b / b.sum()
    kernel = torch.exp(-(1 - f @ g.T) / 0.05)
    column = torch.ones(len(b), dtype=kernel.dtype)
    for _ in range(3):
        row = a / (kernel @ column)
        column = b / (kernel.T @ row)
    return torch.diag(row) @ kernel @ torch.diag(column)


def naive_semantic_consistency(student, teacher, keys):
    total, count = 0, 0
    for b in range(B):
        for i, j in itertools.permutations(range(T), 2):
            plan = naive_plan(keys[b, i], keys[b, j])
            ours, theirs = student[b, i].softmax(dim=0), teacher[b, j].softmax(dim=0)
            for n, m in itertools.product(range(N), range(N)):
                cross_entropy = -(theirs[:, m] * (ours[:, n] + 1e-8).log()).sum()
                total = total + plan[n, m] * cross_entropy
            count += 1
    return total / count


def naive_instance_consistency(student, teacher, valid_student, valid_teacher):
    total, count = 0, 0
    for b, s in itertools.product(range(B), range(S)):
        for i, j in itertools.product(range(T), range(T)):
            similar = student[b, i, s] @ teacher[b, j, s].T
            _, match = linear_sum_assignment(similar.detach(), maximize=True)
            for p in range(P):
                rest = [(similar[p, q] - 0.5).relu() for q in range(P) if q != match[p]]
                pull = valid_teacher[b, j, s, match[p]] * similar[p, match[p]]
                total = total + valid_student[b, i, s, p] * (sum(rest) / len(rest) - pull)
                count = count + valid_student[b, i, s, p] + 1e-10
    return total / count


def naive_valid(logits, semantic, instance):
    found = torch.zeros(B, T, S, P, dtype=torch.bool)
    for b, t, s, p in itertools.product(range(B), range(T), range(S), range(P)):
        area = (logits[b, t].softmax(dim=0)[s] > 0.3).double().mean()
        u, v = semantic[b, t, s], instance[b, t, s, p]
        found[b, t, s, p] = area > 0.2 and u @ v / (u.norm() * v.norm()) > 0.5
    return found


def assert_same(function, naive, variable, *others):
    """Compare value and gradient."""
    values = []
    for each in (function, naive):
        x = variable.clone().requires_grad_()
        loss = each(x, *others)
        loss.backward()
        values.append((loss.detach(), x.grad))
    assert values[0][0].shape == ()
    torch.testing.assert_close(values[0], values[1], rtol=1e-9, atol=1e-11)


def gradient(function, variable, *others, **keys):
    x = variable.clone().requires_grad_()
    loss = function(x, *others, **keys)
    loss.backward()
    return loss.detach(), x.grad


def test_separation_is_the_sheets():
    assert_same(separation, naive_separation, 3 * normal(B, T, S, N))


def test_separation_of_disjoint_and_of_equal_maps():
    disjoint = 100 * torch.eye(4)[:, None, None].expand(4, 1, 1, 4).permute(1, 2, 0, 3)
    assert separation(disjoint).item() == pytest.approx(0, abs=1e-6)
    assert separation(torch.zeros(2, 2, 5, 7)).item() == pytest.approx(1)


def test_separation_of_one_semantic():
    loss, grad = gradient(separation, normal(B, T, 1, N))
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert grad.abs().max() < 1e-12


def semantic_inputs(dtype=torch.float64, scale=3.0):
    logits = [scale * normal(B, T, S, N, seed=seed, dtype=dtype) for seed in (0, 1)]
    return *logits, normal(B, T, N, D, seed=2, dtype=dtype)


def test_semantic_consistency_is_the_sheets():
    assert_same(semantic_consistency, naive_semantic_consistency, *semantic_inputs())


def test_transport_between_frames_is_the_sheets():
    keys = normal(B, T, N, D)
    plan = transport_between_frames(keys)
    assert plan.shape == (T * (T - 1), B, N, N)
    for number, (i, j) in enumerate(itertools.permutations(range(T), 2)):
        for b in range(B):
            torch.testing.assert_close(plan[number, b], naive_plan(keys[b, i], keys[b, j]))


def test_semantics_that_follow_their_tokens_agree():
    """Tokens of three kinds, in another order in each frame: each finds its like."""
    kinds = torch.stack([torch.arange(9).roll(shift) % 3 for shift in (0, 1, 2)])
    logits = 20 * F.one_hot(kinds).mT.float().unsqueeze(0)
    keys = F.one_hot(kinds, 8).float().unsqueeze(0)
    assert semantic_consistency(logits, logits, keys).item() == pytest.approx(0, abs=1e-5)
    # Keys that tell nothing apart carry everything everywhere.
    blind = semantic_consistency(logits, logits, torch.ones(1, 3, 9, 8))
    floored = -math.log(math.exp(-20) + 1e-8)
    assert blind.item() == pytest.approx(floored * 2 / 3, rel=1e-3)


def test_semantic_consistency_without_any_knowledge():
    logits, (*_, keys) = torch.zeros(B, T, S, N).double(), semantic_inputs()
    loss = semantic_consistency(logits, logits, keys)
    assert loss.item() == pytest.approx(math.log(S), rel=1e-6)


def test_clips_in_shares(monkeypatch):
    inputs = semantic_inputs()
    whole = gradient(semantic_consistency, *inputs)
    monkeypatch.setattr(smtc_losses, "CHUNK_NUMEL", 1)
    seen = []

    def plans(keys):
        seen.append(keys.shape)
        return transport_between_frames(keys)

    monkeypatch.setattr(smtc_losses, "transport_between_frames", plans)
    torch.testing.assert_close(gradient(semantic_consistency, *inputs), whole)
    assert seen == [(1, T, N, D)] * B


def test_semantic_consistency_learns_from_the_student_alone():
    student, teacher, keys = (x.requires_grad_() for x in semantic_inputs())
    semantic_consistency(student, teacher, keys).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None
    assert keys.grad is None


def test_semantic_consistency_of_single_frames():
    logits = torch.zeros(B, 1, S, N)
    with pytest.raises(ValueError, match=r"clips have 1; set frames_per_clip to 2 or more$"):
        semantic_consistency(logits, logits, torch.ones(B, 1, N, D))


def selection_inputs(seed=0):
    logits = 2 * normal(B, T, S, N, seed=seed)
    semantic = normal(B, T, S, D, seed=seed + 1)
    return logits, semantic, semantic.unsqueeze(3) + normal(B, T, S, P, D, seed=seed + 2)


@given(seed=st.integers(0, 50))
def test_valid_instances_are_the_sheets(seed):
    inputs = selection_inputs(seed)
    assert torch.equal(valid_instances(*inputs), naive_valid(*inputs))


def test_validity_needs_to_exceed_each_threshold():
    logits = torch.zeros(1, 1, 2, 4)  # a probability of 0.5 everywhere
    semantic = torch.tensor([[1.0, 0.0], [0.0, 1.0]])[None, None]
    instance = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])[None, None]
    own = torch.eye(2, dtype=torch.bool)[None, None]
    assert torch.equal(valid_instances(logits, semantic, instance), own)
    for key, bound in (("probability", 0.5), ("min_area", 1.0), ("min_similarity", 1.0)):
        assert not valid_instances(logits, semantic, instance, **{key: bound}).any()


def instance_inputs(seed=0, instances=P):
    shape = (B, T, S, instances)
    vectors = [units(*shape, D, seed=seed + n) for n in range(2)]
    return *vectors, flags(*shape, seed=seed + 2), flags(*shape, seed=seed + 3)


@pytest.mark.parametrize("seed", range(4))
def test_instance_consistency_is_the_sheets(seed):
    student, teacher, *valid = instance_inputs(seed)
    teacher = F.normalize(teacher + student.roll(1, dims=3), dim=-1)  # so that some are close
    naive = naive_instance_consistency
    assert_same(instance_consistency, naive, student, teacher, *valid)


def test_equal_instances_reach_the_least_loss():
    eye = torch.eye(4)[None, None, None].expand(1, 2, 3, 4, 4)
    valid = torch.ones(1, 2, 3, 4, dtype=torch.bool)
    order = torch.tensor([2, 0, 3, 1])
    assert instance_consistency(eye, eye[..., order, :], valid, valid).item() == pytest.approx(-1)


@pytest.mark.parametrize("instances", [1, P])
def test_nothing_valid(instances):
    student, teacher, valid, other = instance_inputs(instances=instances)
    none = torch.zeros_like(valid)
    loss, grad = gradient(instance_consistency, student, teacher, none, other)
    assert loss == 0
    assert torch.equal(grad, torch.zeros_like(grad))


def test_nothing_valid_here_but_elsewhere():
    student, teacher, valid, other = instance_inputs()
    none, total = torch.zeros_like(valid), torch.tensor(3.5)
    keys = {"total_valid": total}
    loss, grad = gradient(instance_consistency, student, teacher, none, other, **keys)
    assert loss == 0
    assert not grad.any()


def test_one_instance_of_a_semantic_has_no_others():
    student, teacher, valid, other = instance_inputs(instances=1)
    loss, grad = gradient(instance_consistency, student, teacher, valid, other)
    similar = torch.einsum("bispd,bjspd->bijsp", student, teacher)
    drawn = similar * valid.unsqueeze(2) * other.unsqueeze(1)
    torch.testing.assert_close(loss, -drawn.sum() / (T * valid.sum()))
    assert grad.isfinite().all()


def test_instances_in_any_order():
    student, teacher, valid, other = instance_inputs()
    expected = instance_consistency(student, teacher, valid, other)
    order = torch.tensor([2, 0, 1])
    moved = instance_consistency(student[..., order, :], teacher, valid[..., order], other)
    torch.testing.assert_close(moved, expected)
    moved = instance_consistency(student, teacher[..., order, :], valid, other[..., order])
    torch.testing.assert_close(moved, expected)


def test_more_instances_than_are_enumerated():
    student, teacher, valid, other = instance_inputs(instances=7)
    loss, grad = gradient(instance_consistency, student, teacher, valid, other)
    assert loss.isfinite()
    assert grad.any()


def test_instance_consistency_learns_from_the_student_alone():
    student, teacher, valid, other = instance_inputs()
    loss = instance_consistency(student.requires_grad_(), teacher.requires_grad_(), valid, other)
    loss.backward()
    assert student.grad[valid].any()
    assert not student.grad[~valid].any()
    assert teacher.grad is None


def test_processes_share_one_denominator():
    """The mean of both halves' losses, each divided by the mean count, is the whole's loss."""
    student, teacher, valid, other = instance_inputs()
    whole = gradient(instance_consistency, student, teacher, valid, other)
    mean = valid.sum() / B
    loss, grads = 0, []
    for n in range(B):
        half = [x[n : n + 1] for x in (student, teacher, valid, other)]
        part, grad = gradient(instance_consistency, *half, total_valid=mean)
        loss, grads = loss + part / B, [*grads, grad / B]
    torch.testing.assert_close((loss, torch.cat(grads)), whole)


def test_clips_in_any_order():
    order = torch.tensor([1, 0])
    for function, inputs in (
        (separation, (normal(B, T, S, N),)),
        (semantic_consistency, semantic_inputs()),
        (instance_consistency, instance_inputs()),
    ):
        moved = function(*(x[order] for x in inputs))
        torch.testing.assert_close(moved, function(*inputs))
    inputs = selection_inputs()
    moved = valid_instances(*(x[order] for x in inputs))
    assert torch.equal(moved, valid_instances(*inputs)[order])


def test_float32_under_autocast():
    vectors = [units(B, T, S, P, D, seed=n, dtype=torch.float32) for n in range(2)]
    valid = [flags(B, T, S, P, seed=n) for n in range(2)]
    for function, inputs in (
        (separation, (normal(B, T, S, N, dtype=torch.float32),)),
        (semantic_consistency, semantic_inputs(torch.float32)),
        (instance_consistency, (*vectors, *valid)),
    ):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = function(*inputs)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, function(*inputs), rtol=0, atol=0)
        half = [x if x.dtype == torch.bool else x.bfloat16() for x in inputs]
        assert function(*half).dtype == torch.float32
    inputs = [x.float() for x in selection_inputs()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = valid_instances(*inputs)
    assert torch.equal(found, valid_instances(*inputs))
