import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.nn import functional as F

from timewalk.config import EncoderConfig
from timewalk.encoders import build_encoder, save_encoder, save_head
from timewalk.encoders.slots import (
    MASKS,
    SETTINGS,
    SlotNetwork,
    load_slots,
    semantic_mask,
    slot_masks,
)
from timewalk.errors import UserError
from timewalk.methods.pretrained import Pretrained, PretrainedConfig


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def made(grid=(3, 4), **keys):
    torch.manual_seed(1)
    return SlotNetwork(8, grid, 5, 2, **keys)


def naive_fusion(network, keys):
    """SMTC's fusion, token by token."""
    clips, frames, _, rows, columns = keys.shape
    native_rows, native_columns = network.native_grid
    weight, bias = network.transport_proj.weight, network.transport_proj.bias
    fused = torch.zeros(clips, frames, rows * columns, len(bias))
    for b in range(clips):
        for t in range(frames):
            now, before = keys[b, t], keys[b, t - 1 if t else frames - 1]
            native = F.interpolate(
                before[None], size=(native_rows, native_columns), mode="bilinear"
            )[0]
            for n in range(rows * columns):
                key = now[:, n // columns, n % columns]
                scores = [
                    native[:, m // native_columns, m % native_columns] @ key
                    for m in range(native_rows * native_columns)
                ]
                fused[b, t, n] = key + weight[:, :, 0] @ torch.stack(scores) + bias
    return fused


@pytest.mark.parametrize(("frames", "grid"), [(4, (3, 4)), (3, (5, 2)), (1, (3, 4)), (2, (6, 8))])
def test_fusion_is_the_sheets(frames, grid):
    network, keys = made(), drawn(2, frames, 8, *grid)
    torch.testing.assert_close(network.fuse(keys), naive_fusion(network, keys))


def test_the_frame_before_the_first_is_the_last():
    network, keys = made(), drawn(1, 4, 8, 3, 4)
    before = network.fuse(keys)
    keys[:, 3] += 1
    changed = (network.fuse(keys) - before).abs().amax(dim=(0, 2, 3)) > 1e-4
    assert changed.tolist() == [True, False, False, True]


def test_clips_do_not_see_each_other():
    network, keys, noise = made(), drawn(3, 2, 8, 3, 4), drawn(3, 2, 5, 2, 8, seed=1)
    together = network(keys, noise, 3)
    for b in range(3):
        alone = network(keys[b : b + 1], noise[b : b + 1], 3)
        for name, value in vars(together).items():
            torch.testing.assert_close(getattr(alone, name)[0], value[b], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grid", [(3, 4), (5, 2)])
def test_shapes(grid):
    network, tokens = made(), grid[0] * grid[1]
    keys = drawn(2, 3, 8, *grid)
    slots = network(keys, drawn(2, 3, 5, 2, 8), 3)
    assert slots.semantic_logits.shape == (2, 3, 5, tokens)
    assert torch.equal(slots.keys, keys.flatten(3).mT)
    assert slots.semantic.shape == (2, 3, 5, 8)
    assert slots.instance.shape == (2, 3, 5, 2, 8)
    assert slots.instance_logits.shape == (2, 3, 5, 2, tokens)
    projected = network.projected(slots.instance)
    torch.testing.assert_close(projected.norm(dim=-1), torch.ones(2, 3, 5, 2))


def test_both_stages_by_their_parts():
    network = made()
    keys, noise = drawn(1, 2, 8, 3, 4), drawn(1, 2, 5, 2, 8, seed=1)
    slots = network(keys, noise, 4)
    attention = network.slot_attention
    k, v = attention.project(network.fuse(keys)[0])
    semantic, logits = attention.attend(k, v, attention.start(2)[:, None], 4)
    mask = (logits[:, 0] > 0.3).float()
    assert 0 < mask.mean() < 1
    instance, instance_logits = attention.attend(k, v, attention.sample(noise[0]), 4, mask)
    torch.testing.assert_close(slots.semantic[0], semantic[:, 0])
    torch.testing.assert_close(slots.semantic_logits[0], logits[:, 0])
    torch.testing.assert_close(slots.instance[0], instance)
    torch.testing.assert_close(slots.instance_logits[0], instance_logits)


def test_masks_of_the_second_stage():
    logits = torch.tensor([[[2.0, 0.3, -1.0], [0.31, 0.2, -2.0]]]).requires_grad_()
    found = {kind: semantic_mask(logits, kind, 0.3) for kind in MASKS}
    # Strict, and in the logits' own precision.
    assert found["logit"].tolist() == [[[1, 0, 0], [1, 0, 0]]]
    assert found["prob"].tolist() == [[[1, 1, 1], [0, 1, 0]]]
    torch.testing.assert_close(found["soft"], logits.softmax(dim=1))
    assert [found[kind].requires_grad for kind in MASKS] == [False, False, True]


@pytest.mark.parametrize("kind", MASKS)
def test_a_network_uses_its_own_mask(kind):
    keys, noise = drawn(1, 2, 8, 3, 4), drawn(1, 2, 5, 2, 8, seed=1)
    network, low = made(mask=kind), made(mask=kind, mask_threshold=-1e9)
    slots, other = network(keys, noise, 2), low(keys, noise, 2)
    torch.testing.assert_close(slots.semantic, other.semantic)
    assert torch.equal(slots.instance, other.instance) == (kind == "soft")
    slots.instance.sum().backward()
    assert network.transport_proj.weight.grad.any()


def test_instances_do_not_train_the_starts():
    network = made()
    slots = network(drawn(1, 2, 8, 3, 4), drawn(1, 2, 5, 2, 8, seed=1), 3)
    network.projected(slots.instance).sum().backward()
    attention = network.slot_attention
    assert attention.slots_mu.grad is None
    assert not attention.slots_sigma.grad.any()
    assert attention.project_v.weight.grad.any()
    assert network.mlp_slot[0].weight.grad.any()


def test_no_token_in_any_mask_gives_numbers():
    network = made(mask_threshold=1e9)
    slots = network(drawn(1, 2, 8, 3, 4), drawn(1, 2, 5, 2, 8, seed=1), 3)
    (slots.instance.sum() + slots.semantic.sum()).backward()
    assert slots.instance.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def test_full_precision_under_autocast():
    network = made()
    keys, noise = drawn(1, 2, 8, 5, 2), drawn(1, 2, 5, 2, 8, seed=1)
    expected = network(keys, noise, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network(keys, noise, 3)
        projected = network.projected(found.instance)
        rough = network(keys.bfloat16(), noise, 3)
    for name, value in vars(expected).items():
        assert torch.equal(getattr(found, name), value)
        assert getattr(rough, name).dtype == torch.float32
    assert torch.equal(projected, network.projected(expected.instance))


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000))
def test_masks_share_out_every_token(seed):
    network = made()
    keys, noise = drawn(2, 2, 8, 3, 4, seed=seed), drawn(2, 2, 5, 2, 8, seed=seed + 1)
    slots = network(keys, noise, 3)
    masks = slot_masks(slots)
    torch.testing.assert_close(masks.semantic_prob, slots.semantic_logits.softmax(dim=2))
    torch.testing.assert_close(masks.instance_masks.sum(dim=3), masks.semantic_prob)
    torch.testing.assert_close(masks.instance_masks.sum(dim=(2, 3)), torch.ones(2, 2, 12))
    pair = slots.semantic[1, 0, 2], slots.instance[1, 0, 2, 1]
    expected = pair[0] @ pair[1] / (pair[0].norm() * pair[1].norm())
    torch.testing.assert_close(masks.similarity[1, 0, 2, 1], expected)


KEYS = {"mask": "prob", "mask_threshold": 0.45}


def test_tensors_come_back_as_they_were():
    network = made(**KEYS)
    found = SlotNetwork.from_tensors(network.tensors())
    assert (found.native_grid, found.instances) == ((3, 4), 2)
    assert (found.mask, found.mask_threshold) == ("prob", 0.45)
    keys, noise = drawn(1, 2, 8, 5, 2), drawn(1, 2, 5, 2, 8, seed=1)
    for name, value in vars(network(keys, noise, 3)).items():
        assert torch.equal(getattr(found(keys, noise, 3), name), value)


def test_a_published_checkpoint_has_no_settings():
    network = made((4, 4), **KEYS)
    found = SlotNetwork.from_tensors(network.state_dict())
    assert (found.native_grid, found.instances) == ((4, 4), 4)
    assert (found.mask, found.mask_threshold) == ("logit", 0.3)
    assert all(torch.equal(x, network.state_dict()[key]) for key, x in found.state_dict().items())


def test_names_are_the_published_ones():
    assert made().tensors().keys() - set(SETTINGS) == {
        f"{layer}.{part}"
        for layer in (
            "transport_proj",
            *(f"slot_attention.norm_{name}" for name in ("input", "slots", "pre_ff")),
            *(f"slot_attention.project_{name}" for name in "qkv"),
            *(f"{mlp}.{number}" for mlp in ("slot_attention.mlp", "mlp_slot") for number in (0, 2)),
        )
        for part in ("weight", "bias")
    } | {"slot_attention.slots_mu", "slot_attention.slots_sigma"}


def without(name):
    return {key: value for key, value in made().tensors().items() if key != name}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (without("slot_attention.slots_mu"), "without 'slot_attention.slots_mu' or"),
        (without("transport_proj.weight"), "or 'transport_proj.weight'; name a checkpoint of SMTC"),
        (without("mlp_slot.2.bias"), r"missing or unknown \(mlp_slot\.2\.bias\)"),
        (without("instances"), r"settings that cannot be \(\{'native_grid': \[3, 4\], 'mask'"),
        (made().tensors() | {"gru.weight_ih": torch.ones(3)}, r"unknown \(gru\.weight_ih\)"),
        (
            made().tensors() | {"mlp_slot.0.bias": torch.ones(3)},
            r"'mlp_slot\.0\.bias' is \(3,\) instead of \(16,\)",
        ),
        (made().tensors() | {"native_grid": torch.tensor([5, 5])}, r"'native_grid': \[5, 5\]"),
        (made().tensors() | {"native_grid": torch.tensor(12)}, "'native_grid': 12"),
        (made().tensors() | {"mask": torch.tensor(3)}, "'mask': 3"),
        (made().tensors() | {"instances": torch.tensor(0)}, "'instances': 0"),
        (made().tensors() | {"mask_threshold": torch.ones(2)}, r"'mask_threshold': \[1\.0, 1\.0\]"),
        (made().state_dict(), "for 12 tokens, which are no square grid; name"),
    ],
)
def test_what_does_not_fit_is_one_sentence(tmp_path, tensors, message):
    with pytest.raises(UserError, match=message):
        SlotNetwork.from_tensors(tensors)
    save_head(tensors, tmp_path)
    with pytest.raises(UserError, match=f"head of .* holds .*{message}") as caught:
        load_slots(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_slots_of_a_run(tmp_path):
    assert load_slots(tmp_path) is None
    save_file({"prototypes": torch.ones(3, 4)}, tmp_path / "head.safetensors")
    assert load_slots(tmp_path) is None
    save_head(made(**KEYS).tensors(), tmp_path)
    found = load_slots(tmp_path)
    assert not found.training
    assert found.mask_threshold == 0.45
    assert load_slots(tmp_path / "encoder.safetensors").native_grid == (3, 4)


def test_a_published_checkpoint_becomes_a_run_with_slots(tmp_path, caplog):
    keys = PretrainedConfig.miniature()
    network = SlotNetwork(24, (4, 4), 5, 4)
    fresh = build_encoder(EncoderConfig(**keys["encoder"]), seed=5)
    state = {f"encoder.{key}": value for key, value in fresh.state_dict().items()}
    torch.save({"model_state_dict": state | network.state_dict()}, tmp_path / "smtc.pth")

    keys["encoder"]["weights"] = str(tmp_path / "smtc.pth")
    method = Pretrained(PretrainedConfig.model_validate(keys))
    save_encoder(method.encoder, tmp_path / "run", {})
    save_head(method.heads(), tmp_path / "run")
    caplog.set_level("INFO")
    caplog.clear()
    found = load_slots(tmp_path / "run")
    assert [record.message for record in caplog.records] == [
        "slots without settings, as in the authors' checkpoints: 4 instances of each semantic are "
        "assumed, mask 'logit' above 0.3, a grid of 4 x 4 tokens"
    ]
    images, noise = torch.rand(2, 3, 32, 32), drawn(1, 2, 5, 4, 24)
    maps = method.encoder.keys(images)[None]
    torch.testing.assert_close(found(maps, noise, 3).instance, network(maps, noise, 3).instance)


@pytest.mark.parametrize("name", ["encoder.safetensors", "copy.safetensors"])
def test_a_run_of_ours_keeps_its_slots_as_pretrained(tmp_path, caplog, name):
    keys = PretrainedConfig.miniature()
    network = SlotNetwork(24, (4, 4), 5, 2, mask="prob", mask_threshold=0.35)
    fresh = build_encoder(EncoderConfig(**keys["encoder"]), seed=5)
    save_encoder(fresh, tmp_path / "smtc", {})
    save_head(network.tensors(), tmp_path / "smtc")
    weights = (tmp_path / "smtc" / "encoder.safetensors").rename(tmp_path / "smtc" / name)

    keys["encoder"]["weights"] = str(weights)
    method = Pretrained(PretrainedConfig.model_validate(keys))
    save_head(method.heads(), tmp_path / "again")
    caplog.set_level("INFO")
    caplog.clear()
    found = load_slots(tmp_path / "again")
    assert not caplog.records
    assert (found.mask, found.mask_threshold, found.instances) == ("prob", 0.35, 2)
    own = network.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in found.state_dict().items())
    assert torch.equal(method.encoder.pos_embed, fresh.pos_embed)
