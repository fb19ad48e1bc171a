"""TCC's losses against arrays of the published code: alignment, SaL, TCN, combination, baseline.

data/tcc/README.md has their names and tolerances. Every array and every number of the four files is
compared with something or used to make something.
"""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from timewalk.losses import align_pair_of_sequences, compute_alignment_loss, get_scaled_similarity
from timewalk.ops.temporal_order import (
    OrderHead,
    Triplets,
    embeddings_of_triplets,
    order_loss,
    triplets_of,
)
from timewalk.ops.time_contrast import n_pairs_loss

# The golden README's: float64 of losses and gradients; float32 of losses, of gradients.
DOUBLE, SINGLE_LOSS, SINGLE_GRADIENT = 1e-6, 2e-5, 1e-4
# Ours in float64 is nearer to the published code than its README promises.
OWN = 1e-7
SINGLE_AND_DOUBLE = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
WEIGHTS = {"a0.33_s0.33": (0.33, 0.33), "a0.5_s0": (0.5, 0), "a0.5_s0.5": (0.5, 0.5)}
WEIGHTS["a0_s0.25"] = (0, 0.25)


class Read:
    """A golden file's entries; remembers which were read. Arrays become tensors."""

    def __init__(self, entries):
        self.entries, self.unread = entries, set(entries)

    def __getitem__(self, name):
        self.unread.discard(name)
        entry = self.entries[name]
        return torch.from_numpy(np.array(entry)) if isinstance(entry, np.ndarray) else entry


@pytest.fixture(scope="module")
def alignment(golden):
    return Read(golden("tcc", "alignment.npz")), Read(golden("tcc", "alignment_cases.json"))


@pytest.fixture(scope="module")
def baselines(golden):
    return Read(golden("tcc", "baselines.npz")), Read(golden("tcc", "baselines.json"))


def relative(found, expected):
    """Return the largest deviation as a share of the largest expected value."""
    assert found.shape == expected.shape
    found, expected = found.double(), expected.double()
    return ((found - expected).abs().max() / expected.abs().max()).item()


def same(loss, expected):
    """Compare a loss with its float64 value."""
    assert torch.isfinite(loss)
    tolerance = OWN if loss.dtype == torch.float64 else SINGLE_LOSS
    assert loss.item() == pytest.approx(expected, rel=tolerance)


def same_gradient(found, expected):
    tolerance = OWN if found.dtype == torch.float64 else SINGLE_GRADIENT
    assert relative(found, expected) < tolerance


@SINGLE_AND_DOUBLE
def test_every_alignment_case(alignment, dtype):
    arrays, about = alignment
    cases = about["cases"]
    assert len(cases) == 70
    losses, gradients = [], []
    for case in cases:
        assert case["group"] == "compute_alignment_loss"
        given = {
            name: arrays[value] if value in arrays.entries else value
            for name, value in case["kwargs"].items()
        }
        embs = arrays["embs"].to(dtype).requires_grad_()
        loss = compute_alignment_loss(embs, **given)
        loss.backward()
        same(loss, case["loss"])
        expected = arrays[case["grad_key"]]
        assert case["grad_key"] == f"grad__{case['name']}"
        assert expected.abs().max().item() == pytest.approx(case["grad_absmax"], rel=1e-12)
        same_gradient(embs.grad, expected)
        losses.append(abs(case["loss_float32"] / case["loss"] - 1))
        assert losses[-1] == pytest.approx(case["float32_loss_rel_dev"], abs=1e-12)
        gradients.append(case["float32_grad_dev_over_absmax"])
    # The published code's own float32 is as far away as the tolerances for ours allow.
    assert max(losses) == pytest.approx(about["max_float32_loss_rel_dev"], abs=1e-12)
    assert max(gradients) == about["max_float32_grad_dev_over_absmax"]
    assert max(losses) < SINGLE_LOSS
    assert max(gradients) < SINGLE_GRADIENT


def test_inputs_have_the_stated_shapes(alignment):
    arrays, about = alignment
    embs, steps, lengths = arrays["embs"], arrays["steps"], arrays["seq_lens"]
    assert about["shapes"] == {"embs": list(embs.shape)} == {"embs": [4, 12, 16]}
    assert about["seed"] == 20190
    assert (steps[:, 1:] > steps[:, :-1]).all()
    assert (steps[:, -1] < lengths).all()
    for length in (2, 3):
        cycles, starts = arrays[f"cycles_len{length}"], arrays[f"starts_len{length}"]
        assert cycles.shape == (len(starts), length + 1)
        assert starts.max() < embs.shape[1]


@SINGLE_AND_DOUBLE
@pytest.mark.parametrize("similarity", ["l2", "cosine"])
def test_cycles_of_one_pair(alignment, similarity, dtype):
    arrays, _ = alignment
    embs1, embs2 = arrays["pair_embs1"].to(dtype), arrays["pair_embs2"].to(dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    first = get_scaled_similarity(embs1, embs2, similarity, 0.1)
    assert relative(first, arrays[f"pair_sim12_{similarity}"]) < tolerance
    logits, labels = align_pair_of_sequences(embs1, embs2, similarity, 0.1)
    assert relative(logits, arrays[f"pair_logits_{similarity}"]) < tolerance
    assert torch.equal(labels.double(), arrays[f"pair_labels_{similarity}"])


def order_head(arrays, dtype):
    head = OrderHead(16).to(dtype)
    with torch.no_grad():
        for number, layer in enumerate(head.layers):
            layer.weight.copy_(arrays[f"sal_w{number}"].T)
            layer.bias.copy_(arrays[f"sal_b{number}"])
    return head


def triplets(arrays, reverse=False):
    labels, choices = arrays["sal_shuffle_labels"], arrays["sal_choice_u"].squeeze(1)
    indices = triplets_of(arrays["sal_permutations"], choices, labels, reverse)
    return Triplets(indices, labels.long())


@SINGLE_AND_DOUBLE
@pytest.mark.parametrize("reverse", [False, True])
def test_order_of_frames(baselines, reverse, dtype):
    arrays, numbers = baselines
    name = f"sal_rev{int(reverse)}"
    head, rows = order_head(arrays, dtype), triplets(arrays, reverse)
    assert torch.equal(rows.indices, arrays[f"{name}_indices"])
    assert torch.equal(rows.labels, arrays[f"{name}_labels"].long())
    assert rows.labels.sum() == int(0.75 * 4 * 8)
    embs = arrays["embs"].to(dtype).requires_grad_()
    joined = embeddings_of_triplets(embs, rows.indices)
    if not reverse:
        assert torch.equal(joined.float(), arrays[f"{name}_concat"])
        same(order_loss(embs, rows, head, label_smoothing=0.1), numbers[f"{name}_loss_ls0.1"])
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert relative(head(joined), arrays[f"{name}_logits"]) < tolerance
    loss = order_loss(embs, rows, head)
    loss.backward()
    same(loss, numbers[f"{name}_loss"])
    assert numbers[f"{name}_loss_float32"] == pytest.approx(loss.item(), rel=SINGLE_LOSS)
    same_gradient(embs.grad, arrays[f"{name}_grad_embs"])


@SINGLE_AND_DOUBLE
def test_time_contrast(baselines, dtype):
    arrays, numbers = baselines
    embs = arrays["tcn_embs"].to(dtype).requires_grad_()
    loss = n_pairs_loss(embs)
    loss.backward()
    same(loss, numbers["tcn_loss"])
    assert numbers["tcn_loss_float32"] == pytest.approx(loss.item(), rel=SINGLE_LOSS)
    same_gradient(embs.grad, arrays["tcn_grad"])
    same(n_pairs_loss(embs, reg_lambda=0.0), numbers["tcn_loss_reg0"])
    for number, expected in enumerate(numbers["tcn_per_sequence"]):
        same(n_pairs_loss(embs[number : number + 1]), expected)
    repeated = n_pairs_loss(embs[:1], labels=arrays["npairs_labels"])
    same(repeated, numbers["npairs_repeated_labels_seq0"])


@SINGLE_AND_DOUBLE
@pytest.mark.parametrize("name", WEIGHTS)
def test_the_three_combined(alignment, baselines, name, dtype):
    (aligned, _), (arrays, numbers) = alignment, baselines
    align, order = WEIGHTS[name]
    embs = arrays["tcn_embs"].to(dtype).requires_grad_()
    videos, parity = torch.arange(4), arrays["combo_parity"]
    half = embs.unflatten(1, (12, 2))[videos, :, parity]
    steps = arrays["combo_steps"].unflatten(1, (12, 2))[videos, :, parity]
    loss = (1 - align - order) * n_pairs_loss(embs)
    loss = loss + align * compute_alignment_loss(
        half, 4, steps=steps, seq_lens=aligned["seq_lens"], loss_type="regression_mse_var"
    )
    loss = loss + order * order_loss(half, triplets(arrays), order_head(arrays, dtype))
    loss.backward()
    same(loss, numbers[f"combo_{name}_loss"])
    same_gradient(embs.grad, arrays[f"combo_{name}_grad"])


@SINGLE_AND_DOUBLE
def test_supervised_baseline(baselines, dtype):
    arrays, numbers = baselines
    embs = arrays["embs"].to(dtype).requires_grad_()
    labels = arrays["cls_frame_labels"][:, 1::2]  # of the two context frames, the frame itself
    logits = embs @ arrays["cls_w"].to(dtype) + arrays["cls_b"].to(dtype)
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    loss.backward()
    same(loss, numbers["cls_loss"])
    assert numbers["cls_loss_float32"] == pytest.approx(loss.item(), rel=SINGLE_LOSS)
    same_gradient(embs.grad, arrays["cls_grad"])


def test_nothing_is_left_unread(alignment, baselines):
    test_inputs_have_the_stated_shapes(alignment)
    test_every_alignment_case(alignment, torch.float64)
    for similarity in ("l2", "cosine"):
        test_cycles_of_one_pair(alignment, similarity, torch.float64)
    for reverse in (False, True):
        test_order_of_frames(baselines, reverse, torch.float64)
    test_time_contrast(baselines, torch.float64)
    for name in WEIGHTS:
        test_the_three_combined(alignment, baselines, name, torch.float64)
    test_supervised_baseline(baselines, torch.float64)
    assert not {name for file in (*alignment, *baselines) for name in file.unread}
