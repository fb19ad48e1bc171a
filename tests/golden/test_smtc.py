"""SMTC's slots against arrays of the published code: data/smtc/README.md has names and tolerances.

Its losses, data and discovery are in the files beside this one.
"""

import numpy as np
import pytest
import torch

from timewalk.encoders.slots import SlotNetwork, semantic_mask, slot_masks
from timewalk.encoders.vit import ViT
from timewalk.ops.slots import SlotAttention, attention_weights

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
