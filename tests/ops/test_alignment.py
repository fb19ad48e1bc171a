"""Properties of cycle-consistency; the published code's numbers: golden/test_tcc_losses.py."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from timewalk.ops import alignment
from timewalk.ops.alignment import (
    LEAST_VARIANCE,
    LOSSES,
    SIMILARITIES,
    align_pair_of_sequences,
    compute_alignment_loss,
    compute_deterministic_alignment_loss,
    compute_stochastic_alignment_loss,
    get_scaled_similarity,
    pairwise_l2_distance,
)
from timewalk.ops.cycle_draws import draw_cycles, draw_starts

KINDS = {"loss_type": st.sampled_from(LOSSES), "similarity_type": st.sampled_from(SIMILARITIES)}
SIZES = {"videos": st.integers(2, 5), "frames": st.integers(2, 6), "seed": st.integers(0, 99)}
EVERY_KIND = pytest.mark.parametrize(
    ("loss_type", "similarity_type"), list(itertools.product(LOSSES, SIMILARITIES))
)


def batch(videos=4, frames=5, seed=0, size=3):
    """Return embeddings, steps in order and lengths of videos that are longer."""
    rng = torch.Generator().manual_seed(seed)
    embs = torch.randn(videos, frames, size, generator=rng).double()
    steps = torch.rand(videos, 3 * frames, generator=rng).argsort(1)[:, :frames].sort(1).values
    return embs, steps, 3 * frames + torch.randint(4, (videos,), generator=rng)


def loss_by_pairs(embs, steps, lengths, loss_type, similarity_type, **options):
    """Return the loss as its formulas say: pair by pair, row by row."""
    smoothing, weight = options.get("label_smoothing", 0.1), options.get("variance_lambda", 0.001)
    delta, terms = options.get("huber_delta", 0.1), []
    for i, j in itertools.permutations(range(len(embs)), 2):
        logits, labels = align_pair_of_sequences(
            embs[i], embs[j], similarity_type, options.get("temperature", 0.1)
        )
        times = steps[i].to(embs.dtype)
        if options.get("normalize_indices", True):
            times = times / lengths[i]
        for row, true in enumerate(times):
            if loss_type == "classification":
                targets = (1 - smoothing) * labels[row] + smoothing / len(times)
                terms.append(-(targets * logits[row].log_softmax(0)).sum())
                continue
            probabilities = logits[row].softmax(0)
            found = (probabilities * times).sum()
            error = (true - found).abs()
            if loss_type == "regression_mse":
                terms.append(error**2)
            elif loss_type == "regression_huber":
                small = 0.5 * error**2
                terms.append(small if error <= delta else delta * error - 0.5 * delta**2)
            else:
                variance = (probabilities * (times - found) ** 2).sum()
                logs = variance.clamp_min(LEAST_VARIANCE[embs.dtype]).log()
                terms.append(error**2 * torch.exp(-logs) + weight * logs)
    return torch.stack(terms).mean()


@given(**SIZES, **KINDS, unit=st.booleans(), indices=st.booleans())
def test_equals_a_loop_over_pairs(videos, frames, seed, loss_type, similarity_type, unit, indices):
    embs, steps, lengths = batch(videos, frames, seed)
    options = {
        "temperature": 0.3,
        "label_smoothing": 0.2,
        "variance_lambda": 0.01,
        "huber_delta": 0.15,
        "normalize_indices": indices,
    }
    kinds = {"loss_type": loss_type, "similarity_type": similarity_type}
    found = compute_alignment_loss(
        embs, videos, steps, lengths, normalize_embeddings=unit, **kinds, **options
    )
    given_ = torch.nn.functional.normalize(embs, dim=-1) if unit else embs
    expected = loss_by_pairs(given_, steps, lengths, **kinds, **options)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-12)


@given(**SIZES, **KINDS, rng=st.randoms(use_true_random=False))
def test_the_order_of_videos_does_not_matter(videos, frames, seed, loss_type, similarity_type, rng):
    embs, steps, lengths = batch(videos, frames, seed)
    kinds = {"loss_type": loss_type, "similarity_type": similarity_type}
    order = torch.tensor(rng.sample(range(videos), videos))
    before = compute_alignment_loss(embs, videos, steps, lengths, **kinds)
    after = compute_alignment_loss(embs[order], videos, steps[order], lengths[order], **kinds)
    torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("similarity_type", SIMILARITIES)
def test_equal_videos_of_distinct_frames_reach_the_limit(similarity_type):
    embs = (100 * torch.eye(6)).expand(3, 6, 6).contiguous().requires_grad_()
    limits = dict.fromkeys(LOSSES, 0.0)
    limits["regression_mse_var"] = 0.001 * math.log(LEAST_VARIANCE[embs.dtype])
    for loss_type, limit in limits.items():
        loss = compute_alignment_loss(
            embs, 3, loss_type=loss_type, similarity_type=similarity_type, label_smoothing=0.0
        )
        (gradient,) = torch.autograd.grad(loss, embs)
        assert loss.item() == pytest.approx(limit, abs=1e-7)
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("similarity_type", SIMILARITIES)
def test_frames_that_look_alike_end_anywhere(similarity_type):
    steps, embs = torch.tensor([[0, 2, 4]] * 2), torch.ones(2, 3, 4)
    kinds = {"similarity_type": similarity_type, "steps": steps, "seq_lens": [8, 8]}
    loss = compute_alignment_loss(embs, 2, **kinds)
    assert loss.item() == pytest.approx(math.log(3))
    loss = compute_alignment_loss(embs, 2, loss_type="regression_mse", **kinds)
    assert loss.item() == pytest.approx(2 / 3 * 0.25**2)


@EVERY_KIND
@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_gradients(loss_type, similarity_type, chunk, monkeypatch):
    monkeypatch.setattr(alignment, "CHUNK_NUMEL", chunk)
    embs, steps, lengths = batch(3, 4, seed=1)

    def loss(embs):
        return compute_alignment_loss(
            embs,
            3,
            steps,
            lengths,
            loss_type=loss_type,
            similarity_type=similarity_type,
            temperature=0.5,
        )

    assert torch.autograd.gradcheck(loss, embs.requires_grad_())


@EVERY_KIND
def test_gradients_of_random_cycles(loss_type, similarity_type):
    embs, steps, lengths = batch(3, 4, seed=2)
    rng = np.random.default_rng(0)
    cycles, starts = draw_cycles(3, 5, 3, rng), draw_starts(4, 5, rng)
    rest = (loss_type, similarity_type, 0.5, 0.1, 0.001, 0.1, True)

    def loss(embs):
        return compute_stochastic_alignment_loss(embs, steps, lengths, cycles, starts, *rest)

    assert torch.autograd.gradcheck(loss, embs.requires_grad_())


@EVERY_KIND
def test_chunks_change_nothing(loss_type, similarity_type, monkeypatch):
    embs, steps, lengths = batch(7, 5)
    found = {}
    for at_once in (1, 3, 7):
        monkeypatch.setattr(alignment, "CHUNK_NUMEL", at_once * 7 * 5**2)
        given_ = embs.clone().requires_grad_()
        loss = compute_alignment_loss(
            given_, 7, steps, lengths, loss_type=loss_type, similarity_type=similarity_type
        )
        found[at_once] = (loss.detach(), *torch.autograd.grad(loss, given_))
    for at_once in (1, 3):
        torch.testing.assert_close(found[at_once], found[7], rtol=1e-9, atol=1e-12)


@given(**SIZES, **KINDS)
def test_all_cycles_of_two_videos_are_all_pairs(videos, frames, seed, loss_type, similarity_type):
    embs, steps, lengths = batch(videos, frames, seed)
    kinds = {"loss_type": loss_type, "similarity_type": similarity_type}
    rows = [
        (i, j, i, start)
        for i, j in itertools.permutations(range(videos), 2)
        for start in range(frames)
    ]
    rows = torch.tensor(rows)
    found = compute_alignment_loss(
        embs,
        videos,
        steps,
        lengths,
        stochastic_matching=True,
        cycles=rows[:, :3],
        starts=rows[:, 3],
        **kinds,
    )
    expected = compute_alignment_loss(embs, videos, steps, lengths, **kinds)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)


def test_time_is_measured_in_shares_of_each_video():
    embs, steps, _ = batch()
    options = {"loss_type": "regression_mse"}
    frames = compute_alignment_loss(embs, 4, steps, normalize_indices=False, **options)
    tenths = compute_alignment_loss(embs, 4, steps, [10] * 4, **options)
    torch.testing.assert_close(tenths, frames / 100)
    longer = compute_alignment_loss(embs, 4, steps, [10, 10, 10, 1000], **options)
    assert tenths * 0.5 < longer < tenths
    without = compute_alignment_loss(embs, 4, **options)
    counted = compute_alignment_loss(embs, 4, [list(range(5))] * 4, [5] * 4, **options)
    assert torch.equal(without, counted)


def test_precision_is_float32_at_least():
    embs, steps, lengths = batch(size=8)
    exact = compute_alignment_loss(embs.bfloat16().double(), 4, steps, lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = compute_alignment_loss(embs.bfloat16(), 4, steps, lengths)
        sampled = compute_alignment_loss(embs.bfloat16(), 4, stochastic_matching=True)
    assert found.dtype == sampled.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=1e-5)


def test_what_all_embeddings_share_costs_no_precision():
    embs, steps, lengths = batch(size=64)
    options = {"steps": steps, "seq_lens": lengths, "loss_type": "regression_mse_var"}
    exact = compute_alignment_loss(embs, 4, **options)
    found = compute_alignment_loss(embs.float() + 100, 4, **options)
    assert found.item() == pytest.approx(exact.item(), rel=2e-5)


@pytest.mark.parametrize("loss_type", LOSSES)
def test_random_cycles_lose_no_digits_away_from_the_origin(loss_type):
    near, steps, lengths = batch(frames=20, size=64)
    embs = near.float() + 100
    options = {"steps": steps, "seq_lens": lengths, "loss_type": loss_type, "cycle_length": 3}

    def loss_and_gradient(embs):
        embs = embs.requires_grad_()
        rng = np.random.default_rng(0)
        loss = compute_alignment_loss(embs, 4, stochastic_matching=True, rng=rng, **options)
        return loss.double(), torch.autograd.grad(loss, embs)[0].double()

    exact, exact_gradient = loss_and_gradient(embs.double())
    found, gradient = loss_and_gradient(embs)
    assert found.item() == pytest.approx(exact.item(), rel=1e-5)
    assert (gradient - exact_gradient).norm() < 1e-5 * exact_gradient.norm()


def test_distances_of_equal_frames_are_zero_anywhere():
    embs = torch.rand(5, 7, generator=torch.Generator().manual_seed(0)) + 1000
    assert torch.equal(pairwise_l2_distance(embs, embs).diagonal(), torch.zeros(5))
    moved = embs + torch.tensor(0.125)
    assert torch.equal(pairwise_l2_distance(embs, moved).diagonal(), torch.full((5,), 7 / 64))


def test_torch_func_works_on_one_chunk_and_says_so_on_several(monkeypatch):
    embs, _, _ = batch()
    whole = torch.func.grad(lambda x: compute_alignment_loss(x, 4))(embs)
    embs.requires_grad_()
    (expected,) = torch.autograd.grad(compute_alignment_loss(embs, 4), embs)
    torch.testing.assert_close(whole, expected)
    monkeypatch.setattr(alignment, "CHUNK_NUMEL", 1)
    with pytest.raises(RuntimeError, match="hooks"):
        torch.func.grad(lambda x: compute_alignment_loss(x, 4))(embs)


def test_similarities_by_hand():
    one, two = torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    assert pairwise_l2_distance(one, two).tolist() == [[25.0, 1.0], [0.0, 20.0]]
    scaled = get_scaled_similarity(one, two, "l2", 0.5)
    assert scaled.tolist() == [[-25.0, -1.0], [0.0, -20.0]]
    scaled = get_scaled_similarity(one, two, "cosine", 0.5)
    assert scaled.tolist() == [[0.0, 0.0], [25.0, 3.0]]


def test_a_pair_may_differ_in_length():
    embs, _, _ = batch(2, 7)
    logits, labels = align_pair_of_sequences(embs[0], embs[1, :4], "l2", 0.1)
    assert logits.shape == (7, 7)
    assert torch.equal(labels, torch.eye(7).double())


def test_random_cycles_follow_the_seed():
    embs, _, _ = batch()

    def loss(seed):
        rng = np.random.default_rng(seed)
        return compute_alignment_loss(embs, 4, stochastic_matching=True, rng=rng)

    assert loss(0) == loss(0)
    assert loss(0) != loss(1)
    torch.manual_seed(3)
    first = compute_alignment_loss(embs, 4, stochastic_matching=True)
    torch.manual_seed(3)
    assert compute_alignment_loss(embs, 4, stochastic_matching=True) == first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_type": "regression_msevar"}, "loss_type 'regression_msevar' is unknown; did you"),
        ({"similarity_type": "l1"}, r"similarity_type 'l1' is unknown; (did you|known)"),
        ({"batch_size": 3}, r"embs has the shape \(4, 5, 3\); give batch_size 3 videos"),
        ({"steps": torch.zeros(4, 4)}, r"steps has the shape \(4, 4\); embs .* needs \(4, 5\)"),
        ({"seq_lens": [5, 5]}, r"seq_lens has the shape \(2,\); embs .* needs \(4,\)"),
        ({"cycles": [[0, 1, 0]]}, "no effect; set stochastic_matching=True"),
    ],
)
@pytest.mark.parametrize("stochastic", [False, True])
def test_mistakes_are_named(changes, message, stochastic):
    if stochastic and "cycles" in changes:
        changes, message = {"cycles": [[0, 1, 2]]}, "and the first again"
    embs, _, _ = batch()
    with pytest.raises(ValueError, match=message):
        compute_alignment_loss(
            **{"embs": embs, "batch_size": 4, "stochastic_matching": stochastic, **changes}
        )


def test_starts_must_fit_cycles():
    with pytest.raises(ValueError, match=r"starts has the shape \(3,\); give one for each cycle"):
        compute_alignment_loss(
            torch.zeros(2, 3, 4), 2, stochastic_matching=True, cycles=[[0, 1, 0]], starts=[0, 1, 2]
        )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_cycles": 0}, "num_cycles is 0; it must be at least 1"),
        ({"cycles": torch.zeros(0, 3)}, "cycles must be at least one"),
        ({"cycles": [[0, 2, 0]]}, "cycles must be at least one, each from 0 to 1"),
        ({"cycles": [[0, -1, 0]]}, "cycles must be at least one, each from 0 to 1"),
        ({"cycles": [[0, 1, 0]], "starts": [3]}, "starts must be .*, each from 0 to 2"),
        ({"cycles": [[0, 1, 0]], "starts": [-1]}, "starts must be .*, each from 0 to 2"),
    ],
)
def test_cycles_out_of_range(keys, message):
    with pytest.raises(ValueError, match=message):
        compute_alignment_loss(torch.zeros(2, 3, 4), 2, stochastic_matching=True, **keys)


@pytest.mark.parametrize("stochastic", [False, True])
def test_videos_without_frames(stochastic):
    with pytest.raises(ValueError, match=r"embs has the shape \(2, 0, 4\)"):
        compute_alignment_loss(torch.zeros(2, 0, 4), 2, stochastic_matching=stochastic)
    embs, none = torch.zeros(2, 0, 4), torch.zeros(2, 0)
    rest = ("classification", "l2", 0.1, 0.1, 0.001, 0.1, True)
    with pytest.raises(ValueError, match="num_steps 0 frames, at least 1"):
        compute_deterministic_alignment_loss(embs, none, torch.ones(2), 0, 2, *rest)


def test_one_video_has_no_cycle():
    with pytest.raises(ValueError, match=r"1 video\(s\), and a cycle needs another one"):
        compute_alignment_loss(torch.zeros(1, 3, 4), 1)
    with pytest.raises(ValueError, match="cycle_length is 2; it must be at least 2 and at most"):
        compute_alignment_loss(torch.zeros(1, 3, 4), 1, stochastic_matching=True)


def test_the_inner_function_checks_too():
    embs, steps, lengths = batch()
    with pytest.raises(ValueError, match="give batch_size 4 videos of num_steps 6 frames"):
        compute_deterministic_alignment_loss(
            embs, steps, lengths, 6, 4, "classification", "l2", 0.1, 0.1, 0.001, 0.1, True
        )
    with pytest.raises(ValueError, match="loss_type 'mse' is unknown"):
        compute_deterministic_alignment_loss(
            embs, steps, lengths, 5, 4, "mse", "l2", 0.1, 0.1, 0.001, 0.1, True
        )


@pytest.mark.parametrize("temperature", [0.1, 0.03])
def test_confident_answers_keep_their_small_variances(temperature):
    """Videos that fit well: in float64 no variance but 0 is raised."""
    rng = torch.Generator().manual_seed(0)
    embs = 3 * torch.randn(12, 16, dtype=torch.float64, generator=rng)
    embs = embs + 0.05 * torch.randn(4, 12, 16, dtype=torch.float64, generator=rng)
    steps, lengths = torch.arange(12).expand(4, 12), torch.full((4,), 12)
    options = {"loss_type": "regression_mse_var", "similarity_type": "l2"}
    found = compute_alignment_loss(embs, 4, steps, lengths, temperature=temperature, **options)
    expected = loss_by_pairs(embs, steps, lengths, temperature=temperature, **options)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-12)
    assert found.item() < 0.001 * math.log(LEAST_VARIANCE[torch.float32])
