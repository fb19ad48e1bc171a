import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from timewalk.ops.slots import SlotAttention, attention_weights


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def made(width=8, slots=3, **keys):
    torch.manual_seed(1)
    attention = SlotAttention(width, slots, **keys).double()
    for parameter in attention.parameters():
        # As they are made, norms and biases would hide a part left out.
        parameter.data += 0.1 * torch.randn_like(parameter)
    return attention


def sheet(attention, features, start, iterations, mask=None):
    """Both stages of SMTC, slot by slot, with the whole graph; start (P, D), mask (N,)."""
    x = attention.norm_input(features)
    keys, values = attention.project_k(x), attention.project_v(x)
    slots = start
    for t in range(iterations):
        queries = attention.project_q(attention.norm_slots(slots))
        logits = queries @ keys.T / start.shape[-1] ** 0.5
        weights = logits.softmax(dim=0) + 1e-8
        updated = []
        for p in range(len(slots)):
            row = weights[p] if mask is None else weights[p] * mask
            row = row / (row.sum() + (0 if mask is None else 1e-8))
            won = sum(row[n] * values[n] for n in range(len(values)))
            y = slots[p] + won if attention.gru is None else gated(attention.gru, won, slots[p])
            updated.append(y + attention.mlp(attention.norm_pre_ff(y)))
        slots = torch.stack(updated)
        if t == iterations - 2:
            slots = (slots - start).detach() + start
    return slots, logits


def gated(gru, x, h):
    """The gated recurrent unit, written out."""
    x_r, x_z, x_n = (gru.weight_ih @ x + gru.bias_ih).chunk(3)
    h_r, h_z, h_n = (gru.weight_hh @ h + gru.bias_hh).chunk(3)
    z = torch.sigmoid(x_z + h_z)
    return (1 - z) * torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n) + z * h


@pytest.mark.parametrize("update", ["residual", "gru"])
@pytest.mark.parametrize("iterations", [1, 2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_the_sheets_formula_and_its_gradients(update, iterations, masked):
    attention = made(update=update)
    features = drawn(2, 5, 8, seed=2).double().requires_grad_()
    start = drawn(2, 3, 2, 8, seed=3).double().requires_grad_()
    mask = None
    if masked:
        mask = drawn(2, 3, 5, seed=4).double().sigmoid() * torch.tensor([1, 0, 1, 1, 1])
        mask.requires_grad_()
    leaves = [features, start, *([mask] if masked else [])]
    leaves += [p for name, p in attention.named_parameters() if not name.startswith("slots_")]

    keys, values = attention.project(features)
    found = attention.attend(keys, values, start, iterations, mask)
    each = [
        [
            sheet(attention, features[b], start[b, g], iterations, mask[b, g] if masked else None)
            for g in range(3)
        ]
        for b in range(2)
    ]
    expected = [
        torch.stack([torch.stack([result[k] for result in row]) for row in each]) for k in (0, 1)
    ]
    cotangents = [drawn(*x.shape, seed=5 + k) for k, x in enumerate(expected)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    gradients = [
        torch.autograd.grad(
            sum((c * x).sum() for c, x in zip(cotangents, pair, strict=True)), leaves
        )
        for pair in (found, expected)
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_the_start_gets_the_gradient_of_the_slot_before_the_last_iteration():
    attention = made()
    keys, values = attention.project(drawn(2, 6, 8).double())
    start = drawn(2, 1, 3, 8, seed=1).double().requires_grad_()
    slots, _ = attention.attend(keys, values, start, 4)
    entering, _ = attention.attend(keys, values, start, 3)
    entering = entering.detach().requires_grad_()
    last, _ = attention.attend(keys, values, entering, 1)
    torch.testing.assert_close(slots, last)
    weights = drawn(*slots.shape, seed=2)
    (one,) = torch.autograd.grad((weights * slots).sum(), start)
    (other,) = torch.autograd.grad((weights * last).sum(), entering)
    torch.testing.assert_close(one, other)


@settings(deadline=None, max_examples=25)
@given(
    groups=st.integers(1, 3),
    slots=st.integers(1, 5),
    tokens=st.integers(1, 7),
    seed=st.integers(0, 1000),
    masked=st.booleans(),
)
def test_the_order_of_slots_and_tokens_does_not_matter(groups, slots, tokens, seed, masked):
    attention = made()
    features = drawn(2, tokens, 8, seed=seed).double()
    start = drawn(2, groups, slots, 8, seed=seed + 1).double()
    mask = (drawn(2, groups, tokens, seed=seed + 2) > 0).double() if masked else None
    plain = attention.attend(*attention.project(features), start, 3, mask)
    assert all(x.isfinite().all() for x in plain)

    order = torch.randperm(slots, generator=torch.Generator().manual_seed(seed))
    moved = attention.attend(*attention.project(features), start[:, :, order], 3, mask)
    for one, other in zip(moved, plain, strict=True):
        torch.testing.assert_close(one, other[:, :, order])

    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))
    mask = mask[..., order] if masked else None
    moved = attention.attend(*attention.project(features[:, order]), start, 3, mask)
    torch.testing.assert_close(moved[0], plain[0])
    torch.testing.assert_close(moved[1], plain[1][..., order])

    order = torch.randperm(groups, generator=torch.Generator().manual_seed(seed))
    one = attention.attend(*attention.project(features), start[:, order], 3)
    other = attention.attend(*attention.project(features), start, 3)
    torch.testing.assert_close(one[0], other[0][:, order])


def test_a_group_without_tokens_takes_up_nothing():
    attention = made()
    keys, values = attention.project(drawn(1, 6, 8).double())
    start = drawn(1, 2, 3, 8, seed=1).double().requires_grad_()
    mask = torch.stack([torch.zeros(6), torch.ones(6)]).double()[None]
    slots, logits = attention.attend(keys, values, start, 2, mask)
    untouched = start[:, 0]
    for _ in range(2):
        untouched = untouched + attention.mlp(attention.norm_pre_ff(untouched))
    torch.testing.assert_close(slots[:, 0], untouched)
    # The mask is not in the logits.
    assert (logits[:, 0] != 0).all()
    (gradient,) = torch.autograd.grad(slots.sum() + logits.sum(), start)
    assert gradient.isfinite().all()
    weights = attention_weights(logits, mask)
    assert not weights[:, 0].any()
    torch.testing.assert_close(weights[:, 1].sum(dim=-1), torch.ones(1, 3).double())


def test_a_token_that_goes_to_the_other_slot_is_halved():
    """With next to nothing of its only token, a slot's sum is no larger than the floor: it takes
    half of the token, not all of it."""
    logits = torch.tensor([50.0, -50.0]).double().view(1, 1, 2, 1)
    weights = attention_weights(logits, torch.ones(1, 1, 1).double()).flatten()
    torch.testing.assert_close(weights, torch.tensor([1, 0.5]).double(), rtol=0, atol=1e-7)
    twice = attention_weights(logits, torch.ones(1, 1, 1).double(), mask_floor=3e-8).flatten()
    torch.testing.assert_close(twice, torch.tensor([1, 0.25]).double(), rtol=0, atol=1e-7)


def test_one_slot_of_a_group_takes_the_mean_of_its_tokens():
    attention = made()
    keys, values = attention.project(drawn(1, 6, 8).double())
    start = drawn(1, 2, 1, 8, seed=1).double()
    mask = torch.tensor([[[1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1]]]).double()
    slots, _ = attention.attend(keys, values, start, 1, mask)
    for group, rows in enumerate((slice(0, 2), slice(3, 6))):
        y = start[0, group, 0] + values[0, rows].mean(dim=0)
        expected = y + attention.mlp(attention.norm_pre_ff(y))
        torch.testing.assert_close(slots[0, group, 0], expected, rtol=0, atol=1e-6)


def test_extreme_logits_stay_finite():
    attention = made(slots=4).float()
    features = drawn(2, 9, 8)
    keys, values = attention.project(features)
    mask = torch.zeros(2, 1, 9)
    for slots in (1e4 * drawn(2, 1, 4, 8), torch.zeros(2, 1, 4, 8)):
        start = slots.requires_grad_()
        for given_mask in (None, mask):
            found = attention.attend(1e4 * keys, values, start, 5, given_mask)
            assert all(x.isfinite().all() for x in found)
            (gradient,) = torch.autograd.grad(found[0].sum(), start, retain_graph=True)
            assert gradient.isfinite().all()


def test_starts():
    torch.manual_seed(0)
    attention = SlotAttention(64, 16)
    assert attention.slots_mu.std().item() == pytest.approx(1, abs=0.1)
    bound = (6 / (17 * 64)) ** 0.5
    assert attention.slots_sigma.abs().max().item() == pytest.approx(bound, rel=0.02)
    assert torch.equal(attention.start(5), attention.slots_mu[:, :, 0].expand(5, 16, 64))
    noise = drawn(5, 16, 3, 64)
    sample = attention.sample(noise)
    expected = attention.slots_mu + attention.slots_sigma.exp() * noise
    torch.testing.assert_close(sample, expected)


def test_sampling_trains_nothing_but_decays_the_deviations():
    attention = SlotAttention(8, 3)
    before = attention.slots_sigma.detach().clone()
    attention.sample(drawn(2, 3, 4, 8)).square().sum().backward()
    assert attention.slots_mu.grad is None
    assert torch.equal(attention.slots_sigma.grad, torch.zeros(1, 3, 1, 8))
    torch.optim.AdamW([attention.slots_sigma], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(attention.slots_sigma.detach(), 0.95 * before)


def test_full_precision_under_autocast():
    attention = made(width=16).float()
    features, start = drawn(2, 12, 16), drawn(2, 1, 4, 16, seed=1)
    expected = attention.attend(*attention.project(features), start, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attention.attend(*attention.project(features), start, 3)
        rough = attention.attend(*attention.project(features.bfloat16()), start, 3)
        found[0].sum().backward()
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    assert rough[0].dtype == torch.float32
    assert attention.project_q.weight.grad.any()


def test_parameters_have_the_published_names():
    names = {name.rpartition(".")[0] or name for name in made().state_dict()}
    layers = {"norm_input", "norm_slots", "norm_pre_ff", "mlp.0", "mlp.2"}
    layers |= {f"project_{letter}" for letter in "qkv"}
    assert names == layers | {"slots_mu", "slots_sigma"}
    assert made(hidden=32).mlp[0].out_features == 32
    assert made(hidden=2).mlp[0].out_features == 8


def test_no_iteration_is_refused():
    attention = made()
    keys, values = attention.project(drawn(1, 4, 8).double())
    with pytest.raises(ValueError, match="at least 1 iteration, not 0"):
        attention.attend(keys, values, attention.start(1)[:, None], 0)


def test_only_the_last_iteration_leaves_a_graph():
    """Memory of training does not grow with the iterations."""
    attention = made()
    kept = {}
    for iterations in (2, 6):
        sizes = []

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        keys, values = attention.project(drawn(2, 6, 8).double())
        start = attention.start(2).unsqueeze(1)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            attention.attend(keys, values, start, iterations)
        kept[iterations] = sum(sizes)
    assert kept[2] == kept[6] > 0


def test_attention_weights_compete_within_their_group():
    logits = drawn(2, 3, 4, 5)
    found = attention_weights(logits)
    expected = F.normalize(logits.softmax(dim=2) + 1e-8, p=1, dim=-1)
    torch.testing.assert_close(found, expected)


def test_an_empty_mask_in_half_precision():
    logits, mask = torch.rand(1, 2, 3, 5).half(), torch.zeros(1, 2, 5).half()
    assert torch.equal(attention_weights(logits, mask), torch.zeros(1, 2, 3, 5))
