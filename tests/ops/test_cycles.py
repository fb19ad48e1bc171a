"""Properties of walks; numbers of the published code: tests/golden/test_crw.py."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from timewalk.ops.cycles import affinities, cycles, likeliest_paths, palindromes, transitions

SIZES = {"seed": st.integers(0, 99), "frames": st.integers(3, 6), "nodes": st.integers(1, 7)}


def unit_nodes(seed, frames, nodes, clips=2, width=5):
    rng = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(clips, frames, nodes, width, generator=rng).double(), dim=-1)


def uniforms(seed, frames, nodes, clips=2):
    rng = torch.Generator().manual_seed(seed + 1000)
    return torch.rand(clips, 2, frames - 1, nodes, nodes, generator=rng)


@given(**SIZES, rate=st.floats(0, 0.9), shared=st.booleans(), flip=st.booleans())
def test_rows_of_walks_are_probabilities(seed, frames, nodes, rate, shared, flip):
    edges = affinities(unit_nodes(seed, frames, nodes))
    assert edges.shape == (2, frames - 1, nodes, nodes)
    draws = uniforms(seed, frames, nodes)
    there, back = transitions(edges, 0.07, rate, draws, shared_drops=shared)
    walks = palindromes(there, back, flip=flip)
    assert walks.shape == (2, frames - 2, nodes, nodes)
    for matrix in (there, back, walks):
        assert matrix.min() >= 0
        torch.testing.assert_close(matrix.sum(-1), torch.ones(matrix.shape[:-1]).double())


@given(**SIZES, rate=st.floats(0, 0.9), rng=st.randoms(use_true_random=False))
def test_renamed_nodes_make_renamed_walks(seed, frames, nodes, rate, rng):
    x, draws = unit_nodes(seed, frames, nodes), uniforms(seed, frames, nodes)
    names = torch.tensor(rng.sample(range(nodes), nodes))
    before = palindromes(*transitions(affinities(x), 0.07, rate, draws))
    renamed = draws[..., names, :][..., names]
    after = palindromes(*transitions(affinities(x[:, :, names]), 0.07, rate, renamed))
    torch.testing.assert_close(after, before[..., names, :][..., names])
    torch.testing.assert_close(cycles(before).xent, cycles(after).xent)


@given(**SIZES)
def test_walks_are_products_in_their_order(seed, frames, nodes):
    there, back = transitions(affinities(unit_nodes(seed, frames, nodes)), 0.07)
    for k, walk in enumerate(palindromes(there, back).unbind(1), 1):
        steps = [*there.unbind(1)[: k + 1], *reversed(back.unbind(1)[: k + 1])]
        torch.testing.assert_close(walk, _product(steps))
    for k, walk in enumerate(palindromes(there, back, flip=True).unbind(1), 1):
        steps = [*back.unbind(1)[: k + 1], *reversed(there.unbind(1)[: k + 1])]
        torch.testing.assert_close(walk, _product(steps))


def _product(matrices):
    result = matrices[0]
    for matrix in matrices[1:]:
        result = result @ matrix
    return result


def test_a_node_that_loses_all_edges_goes_anywhere():
    edges, draws = affinities(unit_nodes(0, 3, 5)), torch.ones(2, 2, 2, 5, 5)
    draws[1, 0, 1, 3] = 0.0
    there, _ = transitions(edges, 0.05, 0.5, draws)
    assert there[1, 1, 3].tolist() == pytest.approx([0.2] * 5)
    plain, _ = transitions(edges, 0.05)
    torch.testing.assert_close(there[0], plain[0])


def test_edges_left_share_what_the_dropped_had():
    edges, draws = affinities(unit_nodes(0, 3, 5)), torch.ones(2, 2, 2, 5, 5)
    draws[0, 1, 0, 2, 4] = 0.1
    _, back = transitions(edges, 0.05, 0.2, draws)
    _, plain = transitions(edges, 0.05)
    assert back[0, 0, 2, 4] == 0
    kept = plain[0, 0, 2, :4]
    torch.testing.assert_close(back[0, 0, 2, :4], kept / kept.sum())
    # The other direction's draws do not touch this one, unless drops are shared.
    draws = draws.flip(1)
    torch.testing.assert_close(transitions(edges, 0.05, 0.2, draws)[1], plain)
    _, shared = transitions(edges, 0.05, 0.2, draws, shared_drops=True)
    assert shared[0, 0, 4, 2] == 0


@given(seed=st.integers(0, 99), rate=st.floats(0.1, 0.9))
def test_dropped_edges_get_no_gradient(seed, rate):
    edges = affinities(unit_nodes(seed, 4, 6)).requires_grad_()
    draws = uniforms(seed, 4, 6)
    cycles(palindromes(*transitions(edges, 0.05, rate, draws))).loss.backward()
    dropped = (draws[:, 0] < rate) & (draws[:, 1] < rate).mT
    assert edges.grad.isfinite().all()
    assert not edges.grad[dropped].any()


@given(nodes=st.integers(1, 20))
def test_a_lost_walker_costs_the_logarithm_of_the_nodes(nodes):
    result = cycles(torch.full((2, 3, nodes, nodes), 1 / nodes))
    assert result.xent.tolist() == pytest.approx([math.log(nodes)] * 3, abs=1e-5)


def test_equal_frames_of_distinct_nodes_lead_home():
    nodes = torch.eye(6).expand(2, 4, 6, 6)
    result = cycles(palindromes(*transitions(affinities(nodes), 0.05)))
    assert result.loss.item() == pytest.approx(0, abs=1e-5)
    assert result.accuracy.tolist() == [1, 1]


def test_float32_under_autocast():
    nodes = unit_nodes(0, 4, 5).float()
    expected = cycles(palindromes(*transitions(affinities(nodes), 0.05))).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = cycles(palindromes(*transitions(affinities(nodes), 0.05))).loss
    assert found.dtype == torch.float32
    assert found == expected


@given(seed=st.integers(0, 99), frames=st.integers(3, 5), nodes=st.integers(1, 4))
def test_the_likeliest_path_is_that_of_all_paths(seed, frames, nodes):
    there, _ = transitions(affinities(unit_nodes(seed, frames, nodes)), 0.3)
    starts = torch.arange(nodes)
    found = likeliest_paths(there[0], starts)
    assert found.shape == (nodes, frames)

    def probability(path):
        return math.prod(float(p[i, j]) for p, i, j in zip(there[0], path, path[1:], strict=False))

    for start, path in enumerate(found.tolist()):
        assert path[0] == start
        others = itertools.product(range(nodes), repeat=frames - 1)
        best = max(probability((start, *rest)) for rest in others)
        assert probability(path) == pytest.approx(best)


def test_walks_that_the_floor_makes_equal_end_at_the_first_node():
    """The most probable end is that of the logarithms, 1e-20 added."""
    walks = torch.tensor([[2e-30, 1e-30], [1e-30, 2e-30]])[None, None]
    assert cycles(walks).accuracy.item() == 0.5
