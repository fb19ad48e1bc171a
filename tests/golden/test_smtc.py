"""SMTC against arrays of the published code: slots, losses, data and discovery.

data/smtc/README.md has their names and tolerances.
"""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from timewalk.data.clips import SampledClips, window_step
from timewalk.data.sequences import VOID
from timewalk.encoders.slots import SlotNetwork, semantic_mask, slot_masks
from timewalk.encoders.vit import ViT
from timewalk.evaluation.frame_matching import match_frames
from timewalk.evaluation.proposal_tracks import binarised
from timewalk.evaluation.proposals import chunks, collect
from timewalk.methods.smtc_losses import (
    instance_consistency,
    semantic_consistency,
    separation,
    transport_between_frames,
    valid_instances,
)
from timewalk.metrics.davis import match, overlapping_scores
from timewalk.metrics.video_foreground import (
    counted,
    enlarged,
    iou,
    min_max,
    occurring,
    oracle_foreground,
    overlap,
)
from timewalk.ops.assignment import best_permutations
from timewalk.ops.schedules import warmup_cosine
from timewalk.ops.slots import SlotAttention, attention_weights
from timewalk.ops.transport import transport_plan

SLOTS = ("it3", "it5", "it1", "empty", "original")
HEADS = ("square", "resized")
KEYS = ("native", "resized")


class Read:
    """A golden file's arrays as tensors; remembers which were read."""

    def __init__(self, arrays):
        self.arrays, self.unread = arrays, set(arrays)

    def __getitem__(self, name):
        self.unread.discard(name)
        return torch.from_numpy(np.array(self.arrays[name]))

    def under(self, prefix):
        names = [name for name in self.arrays if name.startswith(prefix)]
        return {name.removeprefix(prefix): self[name] for name in names}

    def same(self, name, found, *, rtol=2e-4, atol=2e-5):
        expected = self[name]
        assert found.shape == expected.shape, name
        allowed = rtol * expected.abs() + atol * expected.abs().max()
        assert ((found - expected).abs() <= allowed).all(), name

    def same_gradients(self, gradients):
        assert gradients.keys() == self.under("grad.").keys()
        for name, found in gradients.items():
            expected = self[f"grad.{name}"]
            if not expected.any():
                assert not found.any(), name
            self.same(f"grad.{name}", found, rtol=2e-3, atol=1e-4)


def gradients(module, **inputs):
    named = dict(module.named_parameters()) | inputs
    return {name: tensor.grad for name, tensor in named.items()}


def drawn_as(attention, start):
    """Return the noise from which the golden starts are sampled."""
    return (start - attention.slots_mu.detach()) / attention.slots_sigma.detach().exp()


@pytest.mark.parametrize("case", SLOTS)
def test_slot_attention(golden, case):
    golden = Read(golden("smtc", f"slot_attention_{case}.npz"))
    state, iterations = golden.under("w."), int(golden["in.iters"])
    attention = SlotAttention(state["slots_mu"].shape[-1], state["slots_mu"].shape[1])
    attention.load_state_dict(state)
    kind, floor = ("soft", 0.0) if case == "original" else ("logit", 1e-8)
    features = golden["in.features"].requires_grad_()
    keys, values = attention.project(features)

    # Each iteration alone: what it attends to and what becomes of the slots.
    slots = attention.start(len(features)).unsqueeze(1)
    for t in range(iterations):
        slots, logits = attention.attend(keys, values, slots, 1)
        golden.same(f"trace.sem_attn_{t}", attention_weights(logits)[:, 0])
        golden.same(f"trace.sem_slots_{t}", slots[:, 0])
    mask = semantic_mask(logits[:, 0], kind, 0.3)
    golden.same("trace.mask", mask)
    assert float(golden["info.mask_fraction"]) == pytest.approx(mask.mean().item())
    assert int(golden["info.empty_masks"]) == (mask.sum(dim=-1) == 0).sum()
    start = golden["in.instance_init"]
    slots = start
    for t in range(iterations):
        slots, logits = attention.attend(keys, values, slots, 1, mask, floor)
        golden.same(f"trace.inst_attn_{t}", attention_weights(logits, mask, floor))
        golden.same(f"trace.inst_slots_{t}", slots)

    # Both stages as they are used.
    semantic, logits = attention.attend(
        keys, values, attention.start(len(features)).unsqueeze(1), iterations
    )
    mask = semantic_mask(logits[:, 0], kind, 0.3)
    drawn = attention.sample(drawn_as(attention, start))
    instance, instance_logits = attention.attend(keys, values, drawn, iterations, mask, floor)
    found = {
        "semantic_slots": semantic[:, 0],
        "semantic_logits": logits[:, 0],
        "instance_slots": instance,
        "instance_logits": instance_logits,
    }
    for name, tensor in found.items():
        golden.same(f"out.{name}", tensor)
    cotangents = golden.under("cot.")
    scalar = sum((cotangents[name] * tensor).sum() for name, tensor in found.items())
    assert float(golden["out.scalar"]) == pytest.approx(scalar.item(), rel=2e-4)
    assert cotangents.keys() == found.keys()
    scalar.backward()
    golden.same_gradients(gradients(attention, features=features))
    assert not golden.unread


@pytest.mark.parametrize("case", HEADS)
def test_head(golden, case):
    golden = Read(golden("smtc", f"head_{case}.npz"))
    clips, frames, width, slots, instances, iterations, *grids = golden["in.dims"].tolist()
    network = SlotNetwork(width, tuple(grids[:2]), slots, instances)
    network.load_state_dict(golden.under("w."))
    keys = golden["in.keys"].requires_grad_()
    assert keys.shape == (clips * frames, width, *grids[2:])
    keys_BTDhw = keys.unflatten(0, (clips, frames))
    fused = network.fuse(keys_BTDhw)
    golden.same("out.fused", fused)
    golden.same("out.correlation", fused.mT - keys_BTDhw.flatten(3))

    noise = drawn_as(network.slot_attention, golden["in.instance_init"])
    found = network(keys_BTDhw, noise.unflatten(0, (clips, frames)), iterations)
    outputs = {
        "semantic_logits": found.semantic_logits,
        "frame": found.keys,
        "semantic_slots": found.semantic,
        "instance_slots": found.instance,
        "instance_proj": network.projected(found.instance),
    }
    for name, tensor in outputs.items():
        golden.same(f"out.train.{name}", tensor)
    masks = slot_masks(found)
    golden.same("out.eval.semantic_prob", masks.semantic_prob)
    golden.same("out.eval.similarity", masks.similarity)
    golden.same("out.eval.instance_mask", masks.instance_masks)
    assert golden["out.eval.hw"].tolist() == grids[2:]

    cotangents = golden.under("cot.")
    assert cotangents.keys() == outputs.keys() - {"frame"}
    sum((cotangents[name] * outputs[name]).sum() for name in cotangents).backward()
    golden.same_gradients(gradients(network, keys=keys))
    assert not golden.unread


@torch.no_grad()
@pytest.mark.parametrize("case", KEYS)
def test_keys_of_the_vit(golden, case):
    golden = Read(golden("smtc", f"vit_keys_{case}.npz"))
    patch, side, width, depth, heads = golden["in.cfg"].tolist()
    vit = ViT(width=width, depth=depth, heads=heads, patch_size=patch, image_size=side).eval()
    vit.load_state_dict(golden.under("w."))
    images = golden["in.image"]
    golden.same("out.keys", vit.keys(images))
    golden.same("out.tokens", vit.patches_before_norm(images))
    golden.same("out.cls", vit.tokens(images).raw[:, 0])
    golden.same("out.attn", vit.last_attention(images))
    assert not golden.unread


INSTANCES = ("object", "object2", "object_none")
SCHEDULES = {  # processes, batch of each, steps, learning rate
    "efficient": (4, 32, 10_000, 2e-5),
    "readme8x64": (8, 64, 10_000, 1e-4),
    "single": (1, 2, 10_000, 4e-5),
}
EPOCH = 10_000


def tensor(array):
    return torch.from_numpy(np.array(array))


def assert_value(found, expected):
    """The README's tolerance of values."""
    found, atol = found.detach().numpy(), 2e-5 * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=atol)


def assert_gradient(found, expected):
    """The README's tolerance of gradients."""
    atol = 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-3, atol=atol)


@pytest.fixture
def losses(golden):
    return golden("smtc", "losses.npz")


def test_separation(losses):
    logits = tensor(losses["in.logits_student"]).requires_grad_()
    loss = separation(logits)
    loss.backward()
    assert_value(loss, losses["differ.loss"])
    assert_gradient(logits.grad, losses["differ.grad_logits"])


def test_semantic_consistency(losses):
    logits = tensor(losses["in.logits_student"]).requires_grad_()
    teacher, keys = tensor(losses["in.logits_teacher"]), tensor(losses["in.feat_teacher"])
    loss = semantic_consistency(logits, teacher, keys)
    loss.backward()
    assert_value(loss, losses["transport.loss"])
    assert_gradient(logits.grad, losses["transport.grad_logits"])


def test_transport_between_frames(losses):
    plan = transport_between_frames(tensor(losses["in.feat_teacher"]))
    assert_value(plan, losses["transport.plan"])


def test_transport_plan(losses):
    cost, a, b = (tensor(losses[f"sinkhorn.{key}"]) for key in ("cost", "mu_s", "mu_t"))
    assert_value(transport_plan(cost, a, b), losses["sinkhorn.plan"])


@pytest.mark.parametrize("case", ["valid", "valid_t"])
def test_valid_instances(losses, case):
    keys = ("logits", "semantic", "instance")
    logits, semantic, instance = (tensor(losses[f"{case}.{key}"]) for key in keys)
    np.testing.assert_array_equal(
        valid_instances(logits, semantic, instance), losses[f"{case}.out"].astype(bool)
    )
    if case == "valid":  # what the selection compares, at the release's thresholds
        area = (logits.softmax(dim=2) > 0.3).float().mean(dim=-1)
        assert_value(area, losses["valid.area"])
        cosine = F.cosine_similarity(semantic.unsqueeze(3), instance, dim=-1)
        assert_value(cosine, losses["valid.cos"])
        expected = (cosine > 0.5) & (area > 0.2).unsqueeze(-1)
        np.testing.assert_array_equal(expected, losses["valid.out"].astype(bool))


@pytest.mark.parametrize("case", INSTANCES)
def test_instance_consistency(losses, case):
    student, teacher = (tensor(losses[f"{case}.{key}"]) for key in ("student", "teacher"))
    valid = [tensor(losses[f"{case}.{key}"]).bool() for key in ("valid_s", "valid_t")]
    loss = instance_consistency(student.requires_grad_(), teacher, *valid)
    loss.backward()
    assert_value(loss, losses[f"{case}.loss"])
    assert_gradient(student.grad, losses[f"{case}.grad_student"])


@pytest.mark.parametrize("case", INSTANCES)
def test_matches(losses, case):
    student, teacher = (tensor(losses[f"{case}.{key}"]) for key in ("student", "teacher"))
    similar = torch.einsum("bispd,bjsqd->ijbspq", student, teacher)
    order = losses[f"{case}.order"]
    np.testing.assert_array_equal(best_permutations(similar), order[..., 0])
    np.testing.assert_array_equal(np.sort(order), np.broadcast_to(np.arange(3), order.shape))


def test_which_instances_are_valid(losses):
    np.testing.assert_array_equal(losses["object.valid_s"], losses["valid.out"])
    np.testing.assert_array_equal(losses["object.valid_t"], losses["valid_t.out"])
    for case in ("object2", "object_none"):
        for key in ("valid_s", "valid_t"):
            assert set(np.unique(losses[f"{case}.{key}"])) <= {0.0, 1.0}
    counted = ("valid.out", "valid_t.out", "object_none.valid_t")
    np.testing.assert_array_equal(
        losses["info.valid_counts"], [losses[key].sum() for key in counted]
    )


@pytest.mark.parametrize("case", SCHEDULES)
def test_learning_rate(golden, case):
    arrays = golden("smtc", "schedule.npz")
    processes, batch, steps, peak = SCHEDULES[case]
    per_epoch = -(-EPOCH // processes) // batch
    assert arrays[f"{case}.batches_per_epoch"] == per_epoch
    # Ours is as long as the training; the published one ends with the last whole epoch before.
    length = steps // per_epoch * per_epoch
    assert arrays[f"{case}.length"] == length
    index = arrays[f"{case}.index"]
    np.testing.assert_array_equal(index[[0, 1, -1]], [0, 1, length - 1])
    found = [warmup_cosine(step, length, peak, 0.1 * peak) for step in index.tolist()]
    np.testing.assert_allclose(found, arrays[f"{case}.lr"], rtol=1e-12)


def test_every_array_is_compared(golden, losses):
    instance = ("student", "teacher", "valid_s", "valid_t", "loss", "grad_student", "order")
    selection = ("logits", "semantic", "instance", "out")
    parts = {
        "in": ("logits_student", "logits_teacher", "feat_teacher"),
        "differ": ("loss", "grad_logits"),
        "transport": ("loss", "grad_logits", "plan"),
        "sinkhorn": ("mu_s", "mu_t", "cost", "plan"),
        "valid": (*selection, "area", "cos"),
        "valid_t": selection,
        "info": ("valid_counts",),
        **dict.fromkeys(INSTANCES, instance),
    }
    assert losses.keys() == {f"{part}.{key}" for part, keys in parts.items() for key in keys}
    schedule = ("batches_per_epoch", "length", "index", "lr")
    expected = {f"{case}.{key}" for case in SCHEDULES for key in schedule}
    assert golden("smtc", "schedule.npz").keys() == expected


COLUMNS = [
    "video_length",
    "gap",
    "num_frames",
    "ok",
    "anchor_low",
    "anchor_high",
    "gap_used",
    "lowest_index_reachable",
    "highest_index_reachable",
]
REPEATED = (5, 1, 4)
"""length, gap and frames of the row whose gap the original lowers to 0: one frame, four times"""


@pytest.fixture
def rows(golden):
    arrays = golden("smtc", "frame_window.npz")
    assert set(arrays) == {"rows", "columns"}
    assert arrays["columns"].tolist() == COLUMNS
    return [dict(zip(COLUMNS, row, strict=True)) for row in arrays["rows"].tolist()]


def drawn(length, gap, frames):
    """Return every window that is drawn, by its anchor."""
    clips = SampledClips([], frames, "window", gap)
    rng = torch.Generator().manual_seed(0)
    found = (clips.numbers(length, rng) for _ in range(60 * length))
    return {numbers[frames // 2]: numbers for numbers in found}


def test_windows_are_the_originals_where_it_draws(rows):
    drawing = [row for row in rows if row["ok"]]
    assert len(drawing) == 54
    for row in drawing:
        size = row["video_length"], row["gap"], row["num_frames"]
        if size == REPEATED:
            continue
        length, gap, frames = size
        assert window_step(length, frames, gap) == row["gap_used"]
        found = drawn(*size)
        assert sorted(found) == list(range(row["anchor_low"], row["anchor_high"] + 1))
        assert min(min(numbers) for numbers in found.values()) == row["lowest_index_reachable"]
        assert max(max(numbers) for numbers in found.values()) == row["highest_index_reachable"]
        steps = {b - a for numbers in found.values() for a, b in pairwise(numbers)}
        assert steps == {row["gap_used"]}


def test_where_the_original_repeats_a_frame_the_one_window_is_drawn(rows):
    (row,) = [r for r in rows if (r["video_length"], r["gap"], r["num_frames"]) == REPEATED]
    assert [row[key] for key in COLUMNS[3:]] == [1, 0, 4, 0, 0, 4]
    assert drawn(*REPEATED) == {2: [0, 1, 2, 3]}


def test_where_the_original_raises_the_gap_is_lowered_on(rows):
    raising = [row for row in rows if not row["ok"]]
    assert len(raising) == 16
    for row in raising:
        length, gap, frames = row["video_length"], row["gap"], row["num_frames"]
        # What the original tried to draw from, after one lowering.
        tried = gap - 1
        half = tried * frames // 2
        assert (row["anchor_low"], row["anchor_high"]) == (half, length - half - 1)
        assert row["anchor_low"] > row["anchor_high"]
        assert {row[key] for key in COLUMNS[6:]} == {-1}
        step = window_step(length, frames, gap)
        if length < frames:
            assert step is None
            continue
        assert 1 <= step < tried
        found = drawn(length, gap, frames)
        assert all(0 <= n < length for numbers in found.values() for n in numbers)
        # The next larger gap has no window at all.
        half = (step + 1) * frames // 2
        assert half > length - half - 1


class TestForeground:
    """The routine for one object that SMTC's release holds and does not use: section C.3."""

    @pytest.fixture
    def arrays(self, golden):
        found = golden("smtc", "discovery.npz")
        own = {key for key in found if key.startswith("fg.")}
        assert own == {f"fg.{k}" for k in ("masks", "gt", "mean_mask", "iou", "sudo", "iou_sudo")}
        return found

    def test_oracle(self, arrays):
        truth = arrays["fg.gt"] > 0.5
        assert set(np.unique(arrays["fg.gt"])) == {0, 1}
        masks = arrays["fg.masks"][:, :, 0]
        annotation = counted(truth, masks.shape[-2:])
        soft = oracle_foreground(occurring(masks, truth.shape), annotation)
        found = enlarged(soft, truth.shape)
        np.testing.assert_allclose(found, arrays["fg.mean_mask"][0], rtol=0, atol=1e-6)
        j = iou(*overlap(soft > 0.5, annotation))
        assert j == pytest.approx(arrays["fg.iou"].item(), abs=1e-7)

    def test_another_soft_mask_is_scored_the_same_way(self, arrays):
        truth = arrays["fg.gt"] > 0.5
        soft = arrays["fg.sudo"][0, 0]
        j = iou(*overlap(min_max(soft) > 0.5, counted(truth, soft.shape)))
        assert j == pytest.approx(arrays["fg.iou_sudo"].item(), abs=1e-7)


LEAST = 0.5
COMPARED = {
    "in.scores",
    "in.masks",
    "in.hw",
    "in.n_frames",
    "in.gt",
    "out.chunks",
    "out.counts",
    "out.proposals",
    *(f"out.{way}.{value}" for way in ("released", "official") for value in ("J", "F", "JF")),
}


@pytest.fixture
def arrays(golden):
    return golden("smtc", "discovery.npz")


@pytest.fixture
def found(arrays):
    scores = arrays["in.scores"]
    masks = arrays["in.masks"].reshape(*scores.shape, *arrays["in.hw"])
    vectors = np.zeros((*scores.shape, 1), np.float32)
    return collect(masks, scores, vectors, LEAST)


def mean_of(J, F):
    return (J.mean(1).mean() + F.mean(1).mean()) / 2


def test_clips(arrays):
    frames = len(arrays["in.gt"])
    assert chunks(frames, int(arrays["in.n_frames"])) == arrays["out.chunks"].tolist()


def test_candidates(arrays, found):
    assert [len(masks) for masks in found.masks] == arrays["out.counts"].tolist()
    assert [len(scores) for scores in found.scores] == arrays["out.counts"].tolist()
    kept = arrays["in.scores"][arrays["in.scores"] >= LEAST]
    np.testing.assert_array_equal(np.concatenate(found.scores), kept)
    assert found.all_masks.shape == (7, 6, 6, 8)
    assert found.instances == 2


def test_binarised(arrays, found):
    most = arrays["out.counts"].max()
    assert len(arrays["out.proposals"]) == most
    for frame, soft in enumerate(found.masks):
        expected = arrays["out.proposals"][:, frame].astype(bool)
        masks = binarised(soft, arrays["in.gt"].shape[1:])
        np.testing.assert_array_equal(masks, expected[: len(masks)])
        assert not expected[len(masks) :].any()


def test_matched_in_every_frame(arrays, found):
    matches = match_frames(found.masks, arrays["in.gt"])
    # Published rows are in the order of the candidates, other ones in each frame; ours are objects.
    order = np.argsort(matches.candidates, axis=0)
    for values, letter in ((matches.J, "J"), (matches.F, "F")):
        rows = np.take_along_axis(values, order, axis=0)
        np.testing.assert_allclose(rows, arrays[f"out.released.{letter}"], rtol=0, atol=1e-12)
    overall = float(arrays["out.released.JF"])
    assert mean_of(matches.J, matches.F) == pytest.approx(overall, abs=1e-12)
    assert (order[0] == 1).any(), "the two orders differ somewhere"


def test_matched_once(arrays):
    truth, masks = arrays["in.gt"], arrays["out.proposals"].astype(bool)
    scores = [
        overlapping_scores(truth[t], masks[:, t], 2, truth[t] == VOID) for t in range(len(truth))
    ]
    J, F = (np.stack(each, axis=2) for each in zip(*scores, strict=True))
    proposals, objects = match(J, F)
    J, F = J[proposals, objects], F[proposals, objects]
    np.testing.assert_allclose(J, arrays["out.official.J"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(F, arrays["out.official.F"], rtol=0, atol=1e-12)
    assert mean_of(J, F) == pytest.approx(float(arrays["out.official.JF"]), abs=1e-12)


def test_nothing_of_the_file_is_left_out(arrays):
    assert {name for name in arrays if not name.startswith("fg.")} == COMPARED
