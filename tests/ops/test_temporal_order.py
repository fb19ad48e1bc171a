"""Triplets, head and loss of SaL; the published code's numbers: golden/test_tcc_losses.py."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from timewalk.ops.temporal_order import (
    OrderHead,
    Triplets,
    draw_triplets,
    embeddings_of_triplets,
    order_loss,
    triplets_of,
)


def head(width=3, **options):
    torch.manual_seed(0)
    return OrderHead(width, **options)


@given(
    videos=st.integers(1, 5),
    frames=st.integers(5, 12),
    samples=st.integers(1, 9),
    fraction=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_labels_say_whether_rows_are_in_order(videos, frames, samples, fraction, seed):
    rng = np.random.default_rng(seed)
    rows = draw_triplets(videos, frames, rng, samples=samples, shuffle_fraction=fraction)
    assert rows.indices.shape == (videos * samples, 3)
    assert rows.indices.dtype == rows.labels.dtype == torch.int64
    assert rows.labels.sum() == int(fraction * videos * samples)
    assert rows.indices.min() >= 0
    assert rows.indices.max() < frames
    first, middle, last = rows.indices.unbind(1)
    between = ((first < middle) & (middle < last)) | ((first > middle) & (middle > last))
    assert torch.equal(between, rows.labels == 0)
    # One coin for the whole batch.
    assert (first < last).all() or (first > last).all()


def test_triplets_by_hand():
    permutations = torch.tensor([[9, 1, 4, 0, 7, 8, 2, 3, 5, 6]] * 4)  # the first five: 0 1 4 7 9
    choices, labels = torch.tensor([0.5, 0.5, 0.51, 0.0]), torch.tensor([0, 1, 1, 1])
    found = triplets_of(permutations, choices, labels, reverse=False)
    assert found.tolist() == [[1, 4, 7], [1, 0, 7], [1, 9, 7], [1, 0, 7]]
    found = triplets_of(permutations, choices, labels, reverse=True)
    assert found.tolist() == [[7, 4, 1], [7, 9, 1], [7, 0, 1], [7, 9, 1]]


def test_draws_are_even():
    rng = np.random.default_rng(0)
    drawn = [draw_triplets(4, 6, rng, samples=100) for _ in range(50)]
    reversed_ = sum((rows.indices[0, 0] > rows.indices[0, 2]).item() for rows in drawn)
    assert 15 < reversed_ < 35
    shuffled = torch.stack([rows.labels for rows in drawn]).double().mean(0)
    assert shuffled.min() > 0.4
    middle = torch.cat([rows.indices[rows.labels == 1][:, :2] for rows in drawn])
    above = (middle[:, 1] > middle[:, 0]).double().mean()
    assert above.item() == pytest.approx(0.5, abs=0.02)
    same = draw_triplets(4, 6, np.random.default_rng(1))
    again = draw_triplets(4, 6, np.random.default_rng(1))
    assert torch.equal(same.indices, again.indices)


def test_rows_go_round_the_videos():
    embs = torch.arange(24).view(2, 6, 2)
    indices = torch.tensor([[0, 1, 2], [0, 1, 2], [5, 4, 3]])
    assert embeddings_of_triplets(embs, indices).tolist() == [
        [0, 1, 2, 3, 4, 5],
        [12, 13, 14, 15, 16, 17],
        [10, 11, 8, 9, 6, 7],
    ]


def test_head_is_dense_layers():
    made = head(dropout=0.5)
    assert [tuple(layer.weight.shape) for layer in made.layers] == [(128, 9), (64, 128), (2, 64)]
    assert not any(layer.bias.any() for layer in made.layers)
    bound = math.sqrt(6 / (9 + 128))
    assert 0.95 * bound < made.layers[0].weight.abs().max() <= bound
    x = torch.randn(7, 9)
    one, two, three = made.layers
    torch.testing.assert_close(made(x), three(F.relu(two(F.relu(one(x))))))


def test_dropout_follows_its_seed():
    made, x = head(dropout=0.5), torch.randn(7, 9)
    assert torch.equal(made(x, seed=1), made(x, seed=1))
    assert not torch.equal(made(x, seed=1), made(x, seed=2))
    assert torch.equal(made(x), made(x))
    assert torch.equal(head()(x, seed=1), head()(x))
    linear = head(100, layers=[(2, False)], dropout=0.25)
    torch.nn.init.ones_(linear.layers[0].weight)
    means = linear(torch.ones(2000, 300), seed=0) / 300
    assert means.mean().item() == pytest.approx(1, abs=0.005)


def test_loss_is_a_cross_entropy():
    rng = torch.Generator().manual_seed(0)
    embs = torch.randn(4, 6, 3, generator=rng)
    rows, made = draw_triplets(4, 6, np.random.default_rng(0)), head()
    logs = made(embeddings_of_triplets(embs, rows.indices)).log_softmax(1)
    right = logs.gather(1, rows.labels.unsqueeze(1)).mean()
    torch.testing.assert_close(order_loss(embs, rows, made), -right)
    smoothed = order_loss(embs, rows, made, label_smoothing=0.2)
    torch.testing.assert_close(smoothed, -0.8 * right - 0.2 * logs.mean())


def test_gradients_reach_embeddings_and_head():
    embs = torch.randn(2, 6, 3).double().requires_grad_()
    made = head(layers=[(4, True), (2, False)]).double()
    rows = draw_triplets(2, 6, np.random.default_rng(0))
    assert torch.autograd.gradcheck(lambda embs: order_loss(embs, rows, made), embs)
    order_loss(embs, rows, made).backward()
    assert all(parameter.grad.any() for parameter in made.parameters())


def test_is_learned():
    rng = np.random.default_rng(0)
    times = torch.linspace(-1, 1, 8).expand(4, -1).unsqueeze(2)
    made = head(width=1)
    optimizer = torch.optim.Adam(made.parameters(), 0.01)
    losses = []
    for _ in range(200):
        loss = order_loss(times, draw_triplets(4, 8, rng), made)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-20:]) < 0.2 < 0.5 < losses[0]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="a video has 4 frames; the order of frames is learned"):
        draw_triplets(2, 4, np.random.default_rng(0))
    for layers in ((), ((2, True),), ((128, True), (3, False))):
        with pytest.raises(
            ValueError, match=r"the last layer of an order head must be \(2, False\)"
        ):
            OrderHead(3, layers=layers)


def test_labels_may_be_of_any_integers():
    rows = draw_triplets(2, 6, np.random.default_rng(0))
    embs, made = torch.randn(2, 6, 3), head()
    narrow = Triplets(rows.indices, rows.labels.int())
    assert torch.equal(order_loss(embs, narrow, made), order_loss(embs, rows, made))
