"""TCC's baselines and their combination as objectives, against arrays of the published code.

data/tcc/README.md has the arrays' names and tolerances.
"""

import numpy as np
import pytest
import torch

from timewalk.ops.objectives import Sequences, build_objective
from timewalk.ops.temporal_order import Triplets, triplets_of

WIDTH = 16
COMBINATIONS = ("a0.33_s0.33", "a0.5_s0", "a0.5_s0.5", "a0_s0.25")


@pytest.fixture
def arrays(golden):
    return golden("tcc", "baselines.npz")


@pytest.fixture
def numbers(golden):
    return golden("tcc", "baselines.json")


def tensor(array):
    return torch.from_numpy(np.array(array))


def embeddings(array):
    return tensor(array).double().requires_grad_()


def order_head(objective, arrays):
    """Give a SaL objective the golden head, in float64."""
    with torch.no_grad():
        for number, layer in enumerate(objective.head.layers):
            layer.weight.copy_(tensor(arrays[f"sal_w{number}"]).T)
            layer.bias.copy_(tensor(arrays[f"sal_b{number}"]))
    return objective.double()


def triplets(arrays, reverse):
    labels = tensor(arrays["sal_shuffle_labels"]).long()
    permutations = tensor(arrays["sal_permutations"])
    choices = tensor(arrays["sal_choice_u"])[:, 0]
    return Triplets(triplets_of(permutations, choices, labels, reverse), labels)


def close(found, expected, **tolerance):
    tolerance = {"rtol": 1e-6, "atol": 1e-9, **tolerance}
    torch.testing.assert_close(found.detach(), tensor(expected), **tolerance)


@pytest.mark.parametrize("reverse", [False, True])
def test_sal(arrays, numbers, reverse):
    objective = order_head(build_objective({"name": "sal"}, WIDTH), arrays)
    x = embeddings(arrays["embs"])
    loss = objective.loss(x, triplets(arrays, reverse))
    loss.backward()
    close(loss, numbers[f"sal_rev{int(reverse)}_loss"])
    close(x.grad, arrays[f"sal_rev{int(reverse)}_grad_embs"])


def test_sal_with_label_smoothing(arrays, numbers):
    spec = {"name": "sal", "label_smoothing": 0.1}
    objective = order_head(build_objective(spec, WIDTH), arrays)
    loss = objective.loss(embeddings(arrays["embs"]), triplets(arrays, False))
    close(loss, numbers["sal_rev0_loss_ls0.1"])


@pytest.mark.parametrize(("reg_lambda", "key"), [(0.002, "tcn_loss"), (0.0, "tcn_loss_reg0")])
def test_tcn(arrays, numbers, reg_lambda, key):
    objective = build_objective({"name": "tcn", "reg_lambda": reg_lambda}, WIDTH)
    x = embeddings(arrays["tcn_embs"])
    steps = tensor(arrays["combo_steps"])
    loss = objective(Sequences(x, steps, torch.ones(4)), np.random.default_rng(0))["total"]
    close(loss, numbers[key])
    if reg_lambda > 0:
        loss.backward()
        close(x.grad, arrays["tcn_grad"])


@pytest.mark.parametrize("case", COMBINATIONS)
def test_combination(arrays, numbers, golden, case):
    alignment, sal = (float(part[1:]) for part in case.split("_"))
    spec = {"name": "tcc_sal_tcn", "alignment_weight": alignment, "sal_weight": sal}
    objective = build_objective(spec, WIDTH)
    x = embeddings(arrays["tcn_embs"])
    lengths = tensor(golden("tcc", "alignment.npz")["seq_lens"])
    sequences = Sequences(x, tensor(arrays["combo_steps"]), lengths)
    halves = sequences.of_pairs(tensor(arrays["combo_parity"]))
    rng = np.random.default_rng(0)
    losses = {}
    if alignment > 0:
        losses["tcc"] = objective.tcc(halves, rng)["total"]
    assert (objective.sal is None) == (sal == 0)
    if sal > 0:
        head = order_head(objective.sal, arrays)
        losses["sal"] = head.loss(halves.embeddings, triplets(arrays, False))
    if alignment + sal < 1:
        losses["tcn"] = objective.tcn(sequences, rng)["total"]
    loss = objective.weighted(losses)
    loss.backward()
    close(loss, numbers[f"combo_{case}_loss"])
    expected = arrays[f"combo_{case}_grad"]
    close(x.grad, expected, rtol=0, atol=1e-6 * float(np.abs(expected).max()))


def test_classification(arrays, numbers):
    objective = build_objective({"name": "classification", "classes": 5}, WIDTH)
    with torch.no_grad():
        objective.head.weight.copy_(tensor(arrays["cls_w"]).T)
        objective.head.bias.copy_(tensor(arrays["cls_b"]))
    objective.double()
    x = embeddings(arrays["embs"])
    labels = tensor(arrays["cls_frame_labels"])[:, 1::2]
    sequences = Sequences(x, torch.zeros(4, 12), torch.ones(4), labels)
    loss = objective(sequences, np.random.default_rng(0))["total"]
    loss.backward()
    close(loss, numbers["cls_loss"])
    close(x.grad, arrays["cls_grad"])
