"""Label propagation against a dense implementation, and what has to hold for any features."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from timewalk.ops.propagation import Propagation, Propagator, normalise_channels, spans, unit

CRW = Propagation(context=3, top_k=4, temperature=0.07, radius=2.5)
DINO = replace(CRW, window="square", fill=False, keep_ties=True, radius=2)
KINDS = {"crw": CRW, "dino": DINO}

kinds = st.sampled_from(sorted(KINDS))
grids = st.tuples(st.integers(1, 6), st.integers(1, 6))
tiles = st.tuples(st.integers(1, 7), st.integers(1, 7))
seeds = st.integers(0, 2**16)


@st.composite
def protocols(draw):
    return replace(
        KINDS[draw(kinds)],
        context=draw(st.integers(1, 5)),
        top_k=draw(st.integers(1, 12)),
        temperature=draw(st.sampled_from([0.05, 0.1, 0.2])),
        radius=draw(st.sampled_from([0.5, 1, 1.5, 2, 2.5, 3, 7, 12.0])),
    )


def clip(frames, grid, seed, width=6, channels=3):
    """Return random features (T, D, h, w) and soft labels (C, h, w) that sum to 1."""
    rng = torch.Generator().manual_seed(seed)
    features = torch.randn(frames, width, *grid, generator=rng)
    return features, (3 * torch.randn(channels, *grid, generator=rng)).softmax(0)


def kinds_of_cell(frames, grid, seed, number=3):
    """Return features of which each cell is one of few axes: similarities are exactly 0 or 1."""
    rng = torch.Generator().manual_seed(seed)
    axes = torch.randint(number, (frames, *grid), generator=rng)
    return torch.nn.functional.one_hot(axes, number).permute(0, 3, 1, 2).float()


def ours(protocol, features, labels, tile=None):
    """Return (T, C, h, w)."""
    propagator = Propagator(protocol, features[0], labels, tile)
    return torch.stack([labels, *(propagator.step(frame) for frame in features[1:])])


def dense(protocol, features, labels):
    """The protocols as published, word by word, one query at a time; (T, C, h, w)."""
    features = torch.nn.functional.normalize(features.double(), dim=1)
    maps = [labels.double()]
    first = maps[0]
    if protocol.normalise:
        low = first.amin(0)
        first = (first - low) / (first - low).amax(0)
    h, w = labels.shape[1:]
    for t in range(1, len(features)):
        entries = list(_entries(protocol, t))
        made = torch.empty_like(maps[0])
        for row in range(h):
            for column in range(w):
                made[:, row, column] = _one(
                    protocol, features, maps, first, entries, t, (row, column)
                )
        maps.append(made)
    return torch.stack(maps)


def _entries(protocol, t):
    """Yield the frame and whether the window holds for it, and whether it is a long-term one."""
    length = protocol.context
    if protocol.window == "square":
        yield 0, True, True
        for frame in range(max(1, t - length), t):
            yield frame, True, False
        return
    for m in protocol.long_term:
        yield (0 if m == 0 or t <= length + m else m + 1), False, True
    for padded in range(t, t + length):
        # Index space with `length` copies of frame 0 before the video.
        if padded >= length + (0 if protocol.fill else 1):
            yield padded - length, True, False
        elif protocol.fill:
            yield 0, True, False


def _one(protocol, features, maps, first, entries, t, place):
    h, w = maps[0].shape[1:]
    query = features[t, :, place[0], place[1]]
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    down, right = rows - place[0], columns - place[1]
    if protocol.window == "square":
        inside = (down.abs() <= protocol.radius) & (right.abs() <= protocol.radius)
    else:
        inside = (down**2 + right**2).double().sqrt() < protocol.radius
    values, votes = [], []
    for frame, windowed, long_term in entries:
        cosine = torch.einsum("d,dhw->hw", query, features[frame])
        allowed = inside if windowed else torch.ones_like(inside)
        source = first if long_term and frame == 0 else maps[frame]
        values.append(cosine[allowed])
        votes.append(source[:, allowed])
    value, vote = torch.cat(values), torch.cat(votes, dim=1)
    # The k-th value, a little less for what a sum of float64 leaves of equal values.
    kth = value.sort(descending=True).values[min(protocol.top_k, len(value)) - 1] - 1e-12
    if protocol.keep_ties:
        chosen = (value >= kth).nonzero().flatten()
    else:
        chosen = value.argsort(descending=True, stable=True)[: protocol.top_k]
    return vote[:, chosen] @ (value[chosen] / protocol.temperature).softmax(0)


def same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(protocols(), grids, tiles, seeds, st.integers(1, 7))
def test_equals_the_dense_computation(protocol, grid, tile, seed, frames):
    features, labels = clip(frames, grid, seed)
    same(ours(protocol, features, labels, tile), dense(protocol, features, labels))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(protocols(), grids, tiles, seeds, st.integers(1, 4))
def test_all_that_tie_with_the_last_neighbour_vote(protocol, grid, tile, seed, number):
    """Few kinds of cells: nearly all similarities are equal, which DINO's rule decides."""
    protocol = replace(DINO, context=protocol.context, top_k=protocol.top_k, radius=protocol.radius)
    features, (_, labels) = kinds_of_cell(5, grid, seed, number), clip(1, grid, seed)
    same(ours(protocol, features, labels, tile), dense(protocol, features, labels))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    grids,
    tiles,
    seeds,
    st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True),
    st.booleans(),
)
def test_long_term_frames(grid, tile, seed, long_term, fill):
    protocol = replace(CRW, context=2, long_term=tuple(long_term), fill=fill)
    features, labels = clip(9, grid, seed)
    same(ours(protocol, features, labels, tile), dense(protocol, features, labels))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(grids, tiles, seeds, st.integers(1, 4))
def test_normalised_first_frame(grid, tile, seed, context):
    """Of the first frame the long-term entry alone is normalised. Which of it and its copies stand
    at the last rank is open, hence neighbours for all."""
    features, labels = clip(6, grid, seed)
    for protocol in (
        replace(CRW, context=context, normalise=True, fill=False),
        replace(CRW, context=context, normalise=True, top_k=1000),
    ):
        same(ours(protocol, features, labels, tile), dense(protocol, features, labels))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(protocols(), grids, seeds)
def test_labels_stay_shares(protocol, grid, seed):
    found = ours(protocol, *clip(5, grid, seed))
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(1), 1, rtol=0, atol=1e-5)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(protocols(), grids, seeds, st.permutations(range(4)))
def test_channels_have_no_order(protocol, grid, seed, order):
    features, labels = clip(4, grid, seed, channels=4)
    torch.testing.assert_close(
        ours(protocol, features, labels[order]), ours(protocol, features, labels)[:, order]
    )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(protocols(), grids, tiles, tiles, seeds)
def test_the_size_of_tiles_does_not_matter(protocol, grid, one, other, seed):
    features, labels = clip(4, grid, seed)
    same(ours(protocol, features, labels, one), ours(protocol, features, labels, other))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(protocols(), grids, seeds, st.floats(1e-3, 1e3))
def test_the_length_of_features_does_not_matter(protocol, grid, seed, factor):
    features, labels = clip(4, grid, seed)
    same(ours(protocol, factor * features, labels), ours(protocol, features, labels))


@pytest.mark.parametrize("kind", KINDS)
def test_a_static_video_keeps_its_labels(kind):
    features, _ = clip(1, (7, 9), 0, width=32)
    ids = torch.randint(4, (7, 9), generator=torch.Generator().manual_seed(1))
    labels = torch.nn.functional.one_hot(ids, 4).permute(2, 0, 1).float()
    found = ours(KINDS[kind], features.expand(8, -1, -1, -1), labels)
    assert torch.equal(found.argmax(1), ids.expand(8, -1, -1))


def test_labels_follow_what_moves():
    """A texture that moves by one column a frame takes its labels along."""
    features, _ = clip(1, (6, 12), 0, width=32)
    labels = (torch.arange(12) < 4).expand(1, 6, 12).float()
    labels = torch.cat([1 - labels, labels])
    video = torch.stack([features[0].roll(t, dims=2) for t in range(5)])
    for protocol in KINDS.values():
        found = ours(protocol, video, labels)
        for t in range(5):
            # Not what came round from the other side, out of reach.
            inside = slice(t, None)
            moved = labels.roll(t, dims=2).argmax(0)[:, inside]
            assert torch.equal(found[t].argmax(0)[:, inside], moved)


def test_equal_features_everywhere():
    """DINO keeps all ties, the mean over the window; CRW keeps k cells, any of them."""
    h, w = 4, 6
    labels = torch.rand(2, h, w, generator=torch.Generator().manual_seed(0))
    features = torch.zeros(2, 3, h, w)
    features[:, 0] = 1
    found = ours(replace(DINO, radius=1), features, labels)[1]
    ones = torch.ones(1, 1, 3, 3)
    total, count = (
        torch.nn.functional.conv2d(x[:, None], ones, padding=1)[:, 0]
        for x in (labels, torch.ones(1, h, w))
    )
    torch.testing.assert_close(found, total / count)
    # One neighbour: one cell's labels, unmixed.
    found = ours(replace(CRW, top_k=1), features, labels)[1].flatten(1).T
    assert all((cell == labels.flatten(1).T).all(1).any() for cell in found)


def test_copies_of_the_first_frame_narrow_the_vote():
    """With the whole context a copy of the first frame, the best cell takes all places."""
    features, labels = clip(2, (5, 5), 3)
    narrow = ours(replace(CRW, context=9, top_k=10, radius=20), features, labels)[1]
    best = ours(replace(CRW, context=9, top_k=1, radius=20), features, labels)[1]
    torch.testing.assert_close(narrow, best)
    wide = ours(replace(CRW, context=9, top_k=10, radius=20, fill=False), features, labels)[1]
    assert not torch.allclose(wide, best, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_more_neighbours_than_cells(kind):
    features, labels = clip(4, (2, 3), 0)
    protocol = replace(KINDS[kind], top_k=10_000)
    same(ours(protocol, features, labels), dense(protocol, features, labels))


@pytest.mark.parametrize("kind", KINDS)
def test_a_radius_beyond_the_grid_is_no_limit(kind):
    features, labels = clip(4, (4, 3), 0)
    large, none = (
        ours(replace(KINDS[kind], radius=radius), features, labels) for radius in (100, math.inf)
    )
    assert torch.equal(large, none)


def test_radius_12_leaves_437_cells():
    """The published count of cells less than 12 cells off; 625 for DINO's square."""
    rows, columns = torch.meshgrid(torch.arange(41) - 20, torch.arange(41) - 20, indexing="ij")
    for protocol, count in ((replace(CRW, radius=12.0), 437), (replace(DINO, radius=12.0), 625)):
        propagator = Propagator(protocol, torch.ones(1, 1, 1), torch.ones(1, 1, 1))
        assert int(propagator._inside(rows, columns).sum()) == count


@given(st.integers(1, 40), st.integers(1, 9), st.one_of(st.floats(0, 50), st.just(math.inf)))
def test_spans_cover_every_query_and_its_window(size, tile, reach):
    found = list(spans(size, tile, reach))
    queries = [cell for span in found for cell in range(size)[span.queries]]
    assert queries == list(range(size))
    for span in found:
        keys = range(size)[span.keys]
        for query in range(size)[span.queries]:
            assert {cell for cell in range(size) if abs(cell - query) <= reach} <= set(keys)


@pytest.mark.parametrize("long_term", [(0,), (0, 1), (2,)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_features_again_change_nothing(kind, long_term):
    protocol = replace(KINDS[kind], long_term=long_term if kind == "crw" else (0,))
    features, labels = clip(9, (4, 5), 2)
    expected = ours(protocol, features, labels)
    propagator = Propagator(protocol, features[0], labels)
    for t in range(1, len(features)):
        propagator.replace_features([features[n] for n in propagator.frames_in_context()])
        torch.testing.assert_close(propagator.step(features[t]), expected[t])


@pytest.mark.parametrize("kind", KINDS)
def test_new_features_of_the_context_count(kind):
    """A rotation of all features changes no similarity; of the context's alone it does."""
    protocol, (features, labels) = KINDS[kind], clip(6, (4, 5), 2)
    expected = ours(protocol, features, labels)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0))).Q
    turned = torch.einsum("de,tehw->tdhw", rotation, features)
    propagator = Propagator(protocol, features[0], labels)
    for t in (1, 2, 3):
        propagator.step(features[t])
    unturned = [features[n] for n in propagator.frames_in_context()]
    propagator.replace_features([turned[n] for n in propagator.frames_in_context()])
    for t in (4, 5):
        same(propagator.step(turned[t]), expected[t])
    propagator = Propagator(protocol, features[0], labels)
    for t in (1, 2, 3):
        propagator.step(features[t])
    propagator.replace_features(unturned)
    assert not torch.allclose(propagator.step(turned[4]), expected[4], atol=1e-3)


@pytest.mark.parametrize("number", [0, 3, 5])
def test_new_features_have_to_be_as_many_as_frames(number):
    features, labels = clip(6, (3, 3), 0)
    propagator = Propagator(CRW, features[0], labels)
    for t in range(1, 6):
        propagator.step(features[t])
    assert propagator.frames_in_context() == [0, 3, 4, 5]
    with pytest.raises(ValueError, match="argument"):
        propagator.replace_features(list(features[:number]))


def test_frames_in_context():
    features, labels = clip(9, (3, 3), 0)
    for protocol, expected in (
        (CRW, [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 2, 3, 4], [0, 3, 4, 5]]),
        (DINO, [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 2, 3, 4], [0, 3, 4, 5]]),
        (
            replace(CRW, context=1, long_term=(0, 1)),
            [[0], [0, 1], [0, 2], [0, 2, 3], [0, 2, 4], [0, 2, 5]],
        ),
    ):
        propagator = Propagator(protocol, features[0], labels)
        found = []
        for t in range(1, 7):
            found.append(propagator.frames_in_context())
            propagator.step(features[t])
        assert found == expected


def test_grids_that_differ():
    with pytest.raises(ValueError, match=r"features \(3, 4, 5\) and labels \(2, 4, 6\) are not of"):
        Propagator(CRW, torch.ones(3, 4, 5), torch.ones(2, 4, 6))


def test_unit():
    found = unit(torch.tensor([3.0, 0.0, 4.0, 0.0]).reshape(2, 1, 2))
    # The second cell is all zero and stays so.
    assert found.tolist() == [[[pytest.approx(0.6), pytest.approx(0.8)], [0, 0]]]
    assert unit(torch.ones(3, 1, 1, dtype=torch.float16)).dtype == torch.float32


def test_normalise_channels():
    labels = torch.tensor([[0.2, 0.5], [0.3, 0.5], [0.6, 0.5]])[..., None]
    found = normalise_channels(labels, 0)[..., 0]
    torch.testing.assert_close(found[:, 0], torch.tensor([0, 0.25, 1]))
    assert found[:, 1].tolist() == [0, 0, 0]


def by_one_topk(protocol, features, labels):
    """Return (T, C, h, w) of CRW with normalised first labels: one float32 top-k of all entries."""
    h, w = labels.shape[1:]
    features = torch.stack([unit(frame).flatten(0, 1) for frame in features])
    cell = torch.arange(h * w)
    off_rows, off_columns = (x[:, None] - x[None] for x in (cell // w, cell % w))
    outside = off_rows.square() + off_columns.square() >= protocol.radius**2
    maps, first = [labels], normalise_channels(labels, dim=0)
    for t in range(1, len(features)):
        sims, votes = [], []
        for frame, windowed, long_term in _entries(protocol, t):
            sims_NN = features[t] @ features[frame].T
            sims.append(sims_NN.masked_fill(outside, -torch.inf) if windowed else sims_NN)
            votes.append((first if long_term else maps[frame]).flatten(1))
        values, chosen = torch.cat(sims, 1).topk(min(protocol.top_k, len(sims) * h * w), dim=1)
        shares = (values / protocol.temperature).softmax(1)
        made = (torch.cat(votes, 1)[:, chosen] * shares).sum(-1)
        maps.append(made.unflatten(1, (h, w)))
    return torch.stack(maps)


@pytest.mark.parametrize(("context", "top_k"), [(1, 4), (1, 5), (2, 5), (2, 6), (3, 4)])
def test_copies_of_a_normalised_first_frame_in_the_original_order(context, top_k):
    """Down to the frame at which one copy is left."""
    protocol = replace(CRW, context=context, top_k=top_k, normalise=True, radius=2, temperature=0.1)
    features, labels = clip(context + 3, (5, 7), 0, width=8)
    same(ours(protocol, features, labels), by_one_topk(protocol, features, labels))
