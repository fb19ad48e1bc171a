"""Shares of classes in cells, the patches that stay, exact neighbours, and their vote."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from timewalk.ops import retrieval
from timewalk.ops.retrieval import Memory, cell_shares, looked_up, nearest, sampled

VOID = 255


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_shares_by_hand():
    targets = torch.tensor([[0, 1, 2, 2], [1, 1, 2, VOID], [VOID, VOID, 0, 2], [VOID, VOID, 1, 2]])
    found = cell_shares(targets[None].byte(), (2, 2), 3, VOID)
    expected = [[1 / 4, 3 / 4, 0], [0, 0, 1], [0, 0, 0], [1 / 4, 1 / 4, 1 / 2]]
    torch.testing.assert_close(found, torch.tensor([expected]))


@given(h=st.integers(1, 4), w=st.integers(1, 4), cell=st.integers(1, 5), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_shares_are_counts_of_each_cell(h, w, cell, seed):
    numbers = np.random.default_rng(seed).integers(0, 5, (3, h * cell, w * cell))
    targets = torch.from_numpy(np.where(numbers == 4, VOID, numbers).astype(np.uint8))
    found = cell_shares(targets, (h, w), 4, VOID)
    assert found.shape == (3, h * w, 4)
    for image in range(3):
        for place in range(h * w):
            top, left = place // w * cell, place % w * cell
            part = targets[image, top : top + cell, left : left + cell]
            part = part[part != VOID].long()
            share = torch.bincount(part, minlength=4) / max(1, len(part))
            torch.testing.assert_close(found[image, place], share)


def test_rare_classes_stay():
    """Of 100 cells 2 show class 1: they are drawn far more often than their share."""
    shares = torch.zeros(100, 3)
    shares[:, 0] = 1
    shares[[7, 50]] = torch.tensor([0.0, 1.0, 0.0])
    shares[[20, 21]] = 0  # void
    drawn = [sampled(shares, 10, rng(seed)).tolist() for seed in range(200)]
    assert all(len(set(cells)) == 10 and cells == sorted(cells) for cells in drawn)
    assert not any({20, 21} & set(cells) for cells in drawn)
    # A cell of class 0 gets up to 96, those of class 1 up to 2: nearly always among the ten.
    assert np.mean([7 in cells for cells in drawn]) > 0.95
    assert np.mean([8 in cells for cells in drawn]) < 0.2
    assert sampled(shares, 10, rng(3)).tolist() == sampled(shares, 10, rng(3)).tolist()


def test_all_stay_where_there_is_room():
    shares = torch.tensor([[1.0, 0], [0, 0], [0.5, 0.5]])
    assert sampled(shares, 2, rng()).tolist() == [0, 2]
    assert sampled(shares, 9, rng()).tolist() == [0, 2]
    assert sampled(torch.zeros(3, 2), 9, rng()).tolist() == []


@pytest.mark.parametrize("rows", [1, 3, 7, 50, None])
def test_neighbours_are_those_of_all_products(rows):
    features = F.normalize(torch.randn(50, 6, generator=rng()), dim=1)
    queries = F.normalize(torch.randn(9, 6, generator=rng(1)), dim=1)
    expected = (queries @ features.T).topk(5, dim=1).indices
    assert torch.equal(nearest(queries, features, 5, rows), expected)
    assert nearest(queries, features, 50, rows).sort(1).values[3].tolist() == list(range(50))


def test_the_vote_by_hand(monkeypatch):
    monkeypatch.setattr(retrieval, "QUERIES", 1)
    features = torch.tensor([[1.0, 0], [0.8, 0.6], [0, 1.0], [-1.0, 0]])
    memory = Memory(features, torch.eye(4))
    found = looked_up(torch.tensor([[1.0, 0], [0, 1.0]]), memory, 2, 0.1)
    a, b = 1 / (1 + np.exp(-2)), 1 / (1 + np.exp(-4))  # cosines 1 and 0.8, 1 and 0.6
    torch.testing.assert_close(found, torch.tensor([[a, 1 - a, 0, 0], [0, 1 - b, b, 0]]).float())


@given(seed=st.integers(0, 99), count=st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_shares_stay_shares(seed, count):
    features = F.normalize(torch.randn(12, 4, generator=rng(seed)), dim=1)
    shares = torch.rand(12, 3, generator=rng(seed + 1)).softmax(1)
    found = looked_up(features[:5], Memory(features, shares), count, 0.02)
    torch.testing.assert_close(found.sum(1), torch.ones(5))
    if count == 1:
        torch.testing.assert_close(found, shares[:5])


def test_half_precision_is_near():
    features = F.normalize(torch.randn(80, 16, generator=rng()), dim=1)
    shares = torch.rand(80, 3, generator=rng(1)).softmax(1)
    whole = looked_up(features[:9], Memory(features, shares), 7, 0.1)
    half = looked_up(features[:9], Memory(features.half(), shares), 7, 0.1)
    torch.testing.assert_close(half, whole, atol=5e-3, rtol=0)
