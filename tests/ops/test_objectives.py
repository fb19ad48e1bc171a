"""Objectives on whole batches: what they draw, weigh, count and refuse."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from timewalk.errors import UserError
from timewalk.ops.alignment import compute_alignment_loss
from timewalk.ops.objectives import Sequences, build_objective, mixed_up
from timewalk.ops.time_contrast import n_pairs_loss

NAMES = ("tcc", "sal", "tcn", "tcc_sal_tcn", "classification")


def spec(name, **settings):
    return {"name": name, **({"classes": 3} if name == "classification" else {}), **settings}


def sequences(videos=3, frames=6, pairs=False, seed=0):
    rng = torch.Generator().manual_seed(seed)
    count = 2 * frames if pairs else frames
    return Sequences(
        torch.randn(videos, count, 8, generator=rng),
        torch.randint(40, (videos, count), generator=rng).sort(dim=1).values,
        torch.full((videos,), 40),
        torch.randint(3, (videos, count), generator=rng),
    )


def rng(seed=0):
    return np.random.default_rng(seed)


def built(name, **settings):
    torch.manual_seed(0)
    objective = build_objective(spec(name, **settings), 8)
    return objective, sequences(pairs=objective.pairs)


@pytest.mark.parametrize("name", NAMES)
def test_a_spec_builds_the_same_again(name):
    objective, data = built(name)
    again = build_objective(objective.spec, 8)
    assert again.spec == objective.spec
    again.load_state_dict(objective.state_dict())
    assert torch.equal(again(data, rng())["total"], objective(data, rng())["total"])


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_embeddings_and_heads(name):
    objective, data = built(name)
    data.embeddings.requires_grad_()
    objective(data, rng())["total"].backward()
    assert data.embeddings.grad.any()
    assert all(parameter.grad.any() for parameter in objective.regularised())


@pytest.mark.parametrize("name", NAMES)
def test_draws_come_from_the_generator_alone(name):
    settings = {"dropout": 0.3} if name in ("sal", "classification") else {}
    objective, data = built(name, **settings)
    torch.manual_seed(1)
    first = objective(data, rng(4))["total"]
    assert torch.equal(objective(data, rng(4))["total"], first)
    drawn = objective(data, rng(5))["total"]
    assert torch.equal(drawn, first) == (name in ("tcc", "tcn"))


def test_tcc_is_the_published_loss():
    objective, data = built("tcc")
    expected = compute_alignment_loss(
        data.embeddings, 3, data.steps, data.lengths, loss_type="regression_mse_var"
    )
    assert torch.equal(objective(data, rng())["total"], expected)


class TestStochasticMatching:
    def test_published_cycles_are_all_the_same(self):
        objective, data = built(
            "tcc", stochastic_matching=True, published_cycles=True, fraction=50.0
        )
        alone = Sequences(data.embeddings[:2], data.steps[:2], data.lengths[:2])
        other = Sequences(
            torch.cat([alone.embeddings, data.embeddings[2:]]), data.steps, data.lengths
        )
        other.embeddings[2] += 1
        assert torch.equal(objective(data, rng())["total"], objective(other, rng())["total"])

    def test_intended_cycles_go_through_all_videos(self):
        objective, data = built("tcc", stochastic_matching=True)
        data.embeddings.requires_grad_()
        objective(data, rng())["total"].backward()
        assert data.embeddings.grad.flatten(1).any(dim=1).all()


def test_dropout_only_in_training():
    objective, data = built("sal", dropout=0.5)
    plain, _ = built("sal")
    assert torch.equal(objective(data, rng(), False)["total"], plain(data, rng())["total"])
    assert not torch.equal(objective(data, rng())["total"], plain(data, rng())["total"])


class TestTCN:
    def test_published_order_mixes_up_videos(self):
        x = torch.arange(2 * 6).view(2, 6, 1)
        assert mixed_up(x)[..., 0].tolist() == [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]]

    def test_one_video_stays_as_it_is(self):
        x = torch.randn(1, 6, 2)
        assert torch.equal(mixed_up(x), x)

    def test_published_order_counts(self):
        objective, data = built("tcn", published_order=True)
        found = objective(data, rng())["total"]
        assert torch.equal(found, n_pairs_loss(mixed_up(data.embeddings), 0.002))
        assert not torch.equal(found, n_pairs_loss(data.embeddings, 0.002))


class TestCombination:
    def test_halves_follow_the_coin(self):
        data = sequences(videos=2, pairs=True)
        halves = data.of_pairs(torch.tensor([0, 1]))
        assert torch.equal(halves.embeddings[0], data.embeddings[0, 0::2])
        assert torch.equal(halves.embeddings[1], data.embeddings[1, 1::2])
        assert torch.equal(halves.steps[0], data.steps[0, 0::2])
        assert torch.equal(halves.steps[1], data.steps[1, 1::2])

    @settings(deadline=None, max_examples=30)
    @given(st.integers(0, 10), st.integers(0, 10))
    def test_total_is_the_weighted_sum(self, tcc, sal):
        if tcc + sal > 10:
            return
        weights = {"alignment_weight": tcc / 10, "sal_weight": sal / 10}
        objective, data = built("tcc_sal_tcn", **weights)
        found = objective(data, rng())
        wanted = {"tcc": tcc, "sal": sal, "tcn": 10 - tcc - sal}
        assert found.keys() == {"total", *(name for name, tenths in wanted.items() if tenths)}
        expected = sum(found[name] * tenths / 10 for name, tenths in wanted.items() if tenths)
        torch.testing.assert_close(found["total"], expected)
        assert bool(objective.regularised()) == (sal > 0)

    def test_published_order_is_of_all_three(self):
        plain, data = built("tcc_sal_tcn")
        mixing, _ = built("tcc_sal_tcn", published_order=True)
        mixed = replace(data, embeddings=mixed_up(data.embeddings))
        found, expected, in_order = mixing(data, rng()), plain(mixed, rng()), plain(data, rng())
        assert found.keys() == {"total", "tcc", "sal", "tcn"}
        assert all(torch.equal(found[name], expected[name]) for name in found)
        assert not any(torch.equal(found[name], in_order[name]) for name in found)

    @pytest.mark.parametrize(("alignment", "sal"), [(0.6, 0.5), (-0.1, 0.5), (0.5, -0.1)])
    def test_weights_that_leave_nothing(self, alignment, sal):
        with pytest.raises(ValueError, match="make both 0 or more and their sum 1 or less"):
            built("tcc_sal_tcn", alignment_weight=alignment, sal_weight=sal)


class TestClassification:
    def test_is_the_cross_entropy(self):
        objective, data = built("classification", label_smoothing=0.2)
        found = objective(data, rng())
        logits = objective.head(data.embeddings).flatten(0, 1)
        labels = data.labels.flatten()
        expected = F.cross_entropy(logits, labels, label_smoothing=0.2)
        torch.testing.assert_close(found["total"], expected)
        assert found["accuracy"] == (logits.argmax(1) == labels).float().mean()

    def test_frames_without_label_do_not_count(self):
        objective, data = built("classification")
        data.labels[:, 3:] = -1
        found = objective(data, rng())
        kept = objective(data.taken(slice(0, 3)), rng())
        assert found == kept


def test_an_unknown_name():
    with pytest.raises(UserError, match="unknown objective 'tnc'; did you mean 'tcn'"):
        build_objective({"name": "tnc"}, 8)
