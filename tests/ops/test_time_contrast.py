"""The n-pairs loss; the published code's numbers: golden/test_tcc_losses.py."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from timewalk.ops.time_contrast import n_pairs_loss


def embeddings(videos=3, pairs=4, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(videos, 2 * pairs, 5, generator=rng).double()


@given(seed=st.integers(0, 99), videos=st.integers(1, 4), pairs=st.integers(1, 6))
def test_is_the_mean_of_single_rows(seed, videos, pairs):
    embs, terms = embeddings(videos, pairs, seed), []
    for video in embs:
        earlier, frames = video[0::2], video[1::2]
        for row in range(pairs):
            logits = torch.stack([earlier[row] @ frame for frame in frames])
            norms = earlier[row].square().sum() + frames[row].square().sum()
            terms.append(logits.logsumexp(0) - logits[row] + 0.25 * 0.01 * norms)
    torch.testing.assert_close(n_pairs_loss(embs, 0.01), torch.stack(terms).mean())


@given(seed=st.integers(0, 99), rng=st.randoms(use_true_random=False))
def test_neither_the_order_of_videos_nor_of_pairs_matters(seed, rng):
    embs = embeddings(seed=seed)
    videos, pairs = rng.sample(range(3), 3), rng.sample(range(4), 4)
    moved = embs[videos].unflatten(1, (4, 2))[:, pairs].flatten(1, 2)
    torch.testing.assert_close(n_pairs_loss(moved), n_pairs_loss(embs))


def test_equal_embeddings_leave_the_choice_open():
    loss = n_pairs_loss(torch.ones(2, 8, 5), reg_lambda=0.0)
    assert loss.item() == pytest.approx(math.log(4))
    assert n_pairs_loss(torch.ones(2, 8, 5), reg_lambda=0.2) - loss == pytest.approx(0.5)


def test_classes_share_the_target():
    embs = embeddings()
    own = n_pairs_loss(embs, labels=torch.tensor([7, 3, 5, 9]))
    torch.testing.assert_close(own, n_pairs_loss(embs))
    logits = embs[:, ::2] @ embs[:, 1::2].mT
    shared = n_pairs_loss(embs, reg_lambda=0.0, labels=torch.zeros(3, 4))
    torch.testing.assert_close(shared, -logits.log_softmax(-1).mean())
    each = n_pairs_loss(embs, labels=torch.tensor([[0, 0, 1, 1], [0, 1, 2, 3], [1, 1, 1, 1]]))
    singly = [
        n_pairs_loss(embs[:1], labels=torch.tensor([0, 0, 1, 1])),
        n_pairs_loss(embs[1:2]),
        n_pairs_loss(embs[2:], labels=torch.zeros(4)),
    ]
    torch.testing.assert_close(each, torch.stack(singly).mean())


def test_gradients():
    assert torch.autograd.gradcheck(n_pairs_loss, embeddings().requires_grad_())


def test_precision_is_float32_at_least():
    embs = embeddings().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = n_pairs_loss(embs)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, n_pairs_loss(embs.double()).float())


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"embs has the shape \(2, 7, 5\); give pairs of frames"):
        n_pairs_loss(torch.zeros(2, 7, 5))
    with pytest.raises(ValueError, match=r"labels has the shape \(8,\); give one a pair, \(4,\)"):
        n_pairs_loss(torch.zeros(2, 8, 5), labels=torch.zeros(8))
