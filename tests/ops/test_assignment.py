"""Assignments against scipy's, of all sizes that are enumerated and one that is not."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.optimize import linear_sum_assignment

from timewalk.ops import assignment
from timewalk.ops.assignment import ENUMERATED, best_permutations


def tables(sizes, elements):
    """Tables (..., P, P) of up to three leading dimensions."""
    return st.integers(*sizes).flatmap(
        lambda size: array_shapes(min_dims=0, max_dims=3, max_side=3).flatmap(
            lambda leading: arrays(np.float64, (*leading, size, size), elements=elements)
        )
    )


def best_sums(scores):
    """Return the sum of scipy's assignment of each table."""
    flat = scores.reshape(-1, *scores.shape[-2:])
    sums = [table[linear_sum_assignment(table, maximize=True)].sum() for table in flat]
    return np.array(sums).reshape(scores.shape[:-2])


def assert_best(scores):
    found = best_permutations(torch.from_numpy(scores))
    assert found.dtype == torch.int64
    assert found.shape == scores.shape[:-1]
    assert (found.sort(dim=-1).values == torch.arange(scores.shape[-1])).all()
    sums = torch.from_numpy(scores).gather(-1, found.unsqueeze(-1)).sum(dim=(-2, -1))
    np.testing.assert_allclose(sums, best_sums(scores), rtol=1e-12, atol=1e-9)


@given(tables((1, 5), st.floats(-10, 10)))
def test_enumerated(scores):
    assert_best(scores)


@given(tables((1, 5), st.integers(-2, 2).map(float)))
def test_ties_have_the_best_sum_too(scores):
    assert_best(scores)


@given(tables((7, 7), st.floats(-10, 10)))
def test_solved_one_after_another(scores):
    assert_best(scores)


def test_both_ways_agree(monkeypatch):
    scores = torch.randn(2, 3, ENUMERATED, ENUMERATED, generator=torch.Generator().manual_seed(0))
    enumerated = best_permutations(scores)
    monkeypatch.setattr(assignment, "ENUMERATED", 0)
    assert torch.equal(best_permutations(scores), enumerated)


def test_by_hand():
    # Greedy would take 0.9 for the first row and leave 0.0 to the second.
    scores = torch.tensor([[[0.9, 0.8], [0.7, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])
    assert best_permutations(scores).tolist() == [[1, 0], [0, 1]]


def test_scores_with_a_graph():
    scores = torch.randn(2, 4, 4, requires_grad=True)
    assert not best_permutations(scores).requires_grad
    assert best_permutations(torch.randn(2, 7, 7, requires_grad=True)).shape == (2, 7)


def test_no_problem():
    assert best_permutations(torch.zeros(0, 3, 3)).shape == (0, 3)
    assert best_permutations(torch.zeros(0, 7, 7)).shape == (0, 7)


@pytest.mark.parametrize("shape", [(2, 3), (3,)])
def test_tables_that_are_not_square(shape):
    with pytest.raises(ValueError, match=r"scores of shape .*, but \(\.\.\., P, P\) is needed"):
        best_permutations(torch.zeros(shape))
