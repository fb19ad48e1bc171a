"""Transport plans: an example by hand, the masses they keep, limits of epsilon, precision."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from timewalk.ops.transport import transport_plan


def problem(rows, columns, seed, *leading):
    rng = torch.Generator().manual_seed(seed)
    cost = 2 * torch.rand(*leading, rows, columns, generator=rng)
    a = torch.rand(*leading, rows, generator=rng) + 0.1
    b = torch.rand(*leading, columns, generator=rng) + 0.1
    return cost, a, b


def naive(cost, a, b, epsilon, iterations):
    """Sinkhorn's scalings, number by number."""
    rows, columns = range(len(a)), range(len(b))
    a, b = [x / sum(a) for x in a], [x / sum(b) for x in b]
    kernel = [[math.exp(-cost[n][m] / epsilon) for m in columns] for n in rows]
    v = [1.0 for _ in columns]
    for _ in range(iterations):
        u = [a[n] / sum(kernel[n][m] * v[m] for m in columns) for n in rows]
        v = [b[m] / sum(kernel[n][m] * u[n] for n in rows) for m in columns]
    return [[u[n] * kernel[n][m] * v[m] for m in columns] for n in rows]


@pytest.mark.parametrize("iterations", [1, 3])
def test_plan_is_the_sheets_formula(iterations):
    cost, a, b = (x.double() for x in problem(3, 4, 0))
    expected = naive(cost.tolist(), a.tolist(), b.tolist(), 0.05, iterations)
    found = transport_plan(cost, a, b, iterations=iterations)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_plan_of_one_iteration_by_hand():
    cost = torch.tensor([[0.0, math.log(2)], [math.log(2), 0.0]])
    plan = transport_plan(cost, torch.ones(2), torch.tensor([3.0, 1.0]), epsilon=1, iterations=1)
    torch.testing.assert_close(plan, torch.tensor([[0.5, 1 / 12], [0.25, 1 / 6]]))


@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    iterations=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_columns_keep_their_masses(rows, columns, iterations, seed):
    cost, a, b = problem(rows, columns, seed, 2)
    plan = transport_plan(cost, a, b, iterations=iterations)
    assert (plan >= 0).all()
    torch.testing.assert_close(plan.sum(dim=-2), b / b.sum(dim=-1, keepdim=True))


@given(seed=st.integers(0, 99), scale=st.floats(0.1, 10))
def test_scaled_masses_and_costs_of_a_row_change_nothing(seed, scale):
    cost, a, b = (x.double() for x in problem(4, 5, seed))
    other = cost.clone()
    other[1] += 0.1
    found = transport_plan(other, scale * a, b / scale)
    torch.testing.assert_close(found, transport_plan(cost, a, b))


def test_rows_keep_their_masses_after_many_iterations():
    cost, a, b = problem(5, 7, 1)
    plan = transport_plan(cost, a, b, epsilon=0.5, iterations=200)
    torch.testing.assert_close(plan.sum(dim=-1), a / a.sum(), rtol=0, atol=1e-6)


def test_a_small_epsilon_finds_the_cheapest_ways():
    cost = torch.tensor([[0.1, 0.9, 1.0], [0.8, 0.2, 1.1], [1.2, 0.7, 0.3]])
    plan = transport_plan(cost, torch.ones(3), torch.ones(3), epsilon=0.02, iterations=50)
    torch.testing.assert_close(plan, torch.eye(3) / 3, rtol=0, atol=1e-6)


def test_a_large_epsilon_sends_everything_everywhere():
    cost, a, b = problem(3, 4, 2)
    expected = torch.outer(a / a.sum(), b / b.sum())
    torch.testing.assert_close(transport_plan(cost, a, b, epsilon=1e5), expected)


def test_leading_dimensions_are_problems_of_their_own():
    cost, a, b = problem(3, 4, 3, 2, 5)
    plan = transport_plan(cost, a, b)
    assert plan.shape == (2, 5, 3, 4)
    torch.testing.assert_close(plan[1, 3], transport_plan(cost[1, 3], a[1, 3], b[1, 3]))


def test_plan_is_finite_at_the_largest_cosine_cost():
    plan = transport_plan(torch.full((2, 3), 2.0), torch.ones(2), torch.ones(3))
    torch.testing.assert_close(plan, torch.full((2, 3), 1 / 6))


def test_inputs_keep_their_values_and_need_no_graph():
    cost, a, b = problem(3, 4, 4)
    before = cost.clone()
    plan = transport_plan(cost.requires_grad_(), a, b)
    assert not plan.requires_grad
    torch.testing.assert_close(cost.detach(), before, rtol=0, atol=0)


def test_float32_under_autocast():
    cost, a, b = problem(8, 8, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plan = transport_plan(cost, a, b)
    assert plan.dtype == torch.float32
    torch.testing.assert_close(plan, transport_plan(cost, a, b), rtol=0, atol=0)
    assert transport_plan(cost.bfloat16(), a, b).dtype == torch.float32
    assert transport_plan(cost.double(), a.double(), b.double()).dtype == torch.float64


def test_no_iteration():
    with pytest.raises(ValueError, match="iterations is 0, but at least 1 is needed"):
        transport_plan(torch.zeros(2, 2), torch.ones(2), torch.ones(2), iterations=0)
