"""Checkpoints as they were published: structures made here, read as they are."""

import argparse
import os
import re

import pytest
import torch
from safetensors.torch import save_file

from timewalk.config import EncoderConfig
from timewalk.encoders import build_encoder, head_of_weights, load_encoder, save_encoder
from timewalk.encoders.heads import DinoHead
from timewalk.encoders.weights import (
    crw,
    dino,
    dora,
    efficientnet_lite,
    smtc,
    timet,
    timm_names,
    torchvision_resnet,
)
from timewalk.errors import UserError

VIT = {"name": "vit_tiny", "depth": 2, "width": 24, "heads": 3, "patch_size": 8, "image_size": 32}
RESNET = {"name": "resnet18"}


def encoder(keys=VIT, seed=1, **more):
    return build_encoder(EncoderConfig(**keys, **more), seed=seed)


def tensors(keys=VIT, seed=1):
    return timm_names.from_ours(encoder(keys, seed).state_dict())


def head(prefix):
    state = DinoHead(24, 32, hidden=16, bottleneck=8).state_dict()
    return {f"{prefix}head.{key}": value for key, value in state.items()}


def dino_full():
    """As DINO's trainer saves: student in DDP, teacher, optimiser, options."""
    student = {f"module.backbone.{key}": value for key, value in tensors(seed=2).items()}
    teacher = {f"backbone.{key}": value for key, value in tensors().items()}
    return {
        "student": student | head("module."),
        "teacher": teacher | head(""),
        "optimizer": {"state": {0: {"step": 3.0}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_tiny", lr=5e-4),
        "fp16_scaler": {"scale": 65536.0},
    }


def smtc_full():
    rest = {
        "transport_proj.weight": torch.ones(3, 3, 1),
        "slot_attention.mlp.0.bias": torch.ones(3),
    }
    state = {f"encoder.{key}": value for key, value in tensors().items()}
    return {
        "iteration": 500,
        "model_state_dict": state | rest,
        "optimizer_state_dict": {"state": {}, "param_groups": []},
        "loss": torch.tensor(1.5),
    }


def timet_whole(backbone="feature_extractor.backbone."):
    state = {"prototypes": torch.ones(5, 4), "teacher_prototypes": torch.zeros(5, 4)}
    state |= {f"{backbone}{key}": value for key, value in tensors().items()}
    return state | {f"feature_extractor.head.{i}.weight": torch.ones(2, 2) for i in (0, 2, 4, 6)}


def crw_training(padded):
    state = {}
    for key, value in tensors(RESNET).items():
        behind = padded and re.search(r"(^|\.)conv\d+\.weight$", key) and value.shape[-1] > 1
        state[f"encoder.model.{key[:-7]}.1.weight" if behind else f"encoder.model.{key}"] = value
    state |= {"selfsim_fc.0.weight": torch.ones(128, 512), "selfsim_fc.0.bias": torch.ones(128)}
    args = argparse.Namespace(dropout=0.1)
    return {"model": state, "optimizer": {}, "lr_scheduler": {}, "epoch": 3, "args": args}


def torchvision_file():
    classifier = {"fc.weight": torch.ones(1000, 512), "fc.bias": torch.zeros(1000)}
    # Files of old versions have no batch counters.
    return {k: v for k, v in tensors(RESNET).items() if "num_batches" not in k} | classifier


VITS = {
    "DINO backbone": tensors,
    "DINO full": dino_full,
    "DoRA backbone": tensors,
    "DoRA nested": lambda: {"teacher": tensors()},
    "DoRA full": lambda: {**dino_full(), "dino_loss": {"center": torch.zeros(1, 32)}},
    "TimeT": timet_whole,
    "TimeT old": lambda: timet_whole("feature_extractor.model."),
    "SMTC": smtc_full,
    "timm with classifier": lambda: {**tensors(), "head.weight": torch.ones(9, 24)},
    "somebody's wrapper": lambda: {
        "state_dict": {f"module.model.{key}": value for key, value in tensors().items()}
    },
}
RESNETS = {
    "torchvision": torchvision_file,
    "CRW": lambda: crw_training(padded=False),
    "CRW padded": lambda: crw_training(padded=True),
}


def same(found, keys):
    expected = encoder(keys).state_dict()
    for key, value in found.state_dict().items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize(
    ("name", "keys"),
    [(name, VIT) for name in VITS] + [(name, RESNET) for name in RESNETS],
)
def test_published_structures(tmp_path, name, keys):
    path = tmp_path / "published.pth"
    torch.save((VITS | RESNETS)[name](), path)
    assert not torch.equal(
        next(iter(encoder(keys, seed=5).state_dict().values())),
        next(iter(encoder(keys).state_dict().values())),
    )
    same(encoder(keys, seed=5, weights=str(path)), keys)


@pytest.mark.parametrize(
    "prefix",
    ["", "backbone.", "module.", "module.backbone.", "encoder.", "model.backbone.", "a.b."],
)
def test_any_prefix_below_a_teacher(prefix):
    own = tensors()
    checkpoint = {"teacher": {prefix + key: value for key, value in own.items()}, "epoch": 3}
    found = dino.to_ours(checkpoint, tensors(seed=2))
    assert found.keys() == own.keys()
    assert all(torch.equal(found[key], own[key]) for key in own)


def two(one="base_encoder", other="momentum_encoder"):
    return {
        f"module.{name}.{key}": value
        for name, seed in ((one, 1), (other, 2))
        for key, value in tensors(seed=seed).items()
    }


@pytest.mark.parametrize(
    "checkpoint",
    [
        {"state_dict": two(), "epoch": 3},
        {"base_encoder": tensors(), "momentum_encoder": tensors(seed=2), "step": 1},
    ],
)
def test_one_of_several_networks(tmp_path, checkpoint):
    torch.save(checkpoint, tmp_path / "moco.pth")
    path = str(tmp_path / "moco.pth")
    found = encoder(seed=5, weights=path, weights_part="momentum_encoder")
    assert torch.equal(found.cls_token, encoder(seed=2).cls_token)
    with pytest.raises(UserError, match=r"several .* to 'base_encoder' or 'momentum_encoder'\."):
        encoder(weights=path)
    with pytest.raises(UserError, match=r"several|holds no 'ema'"):
        encoder(weights=path, weights_part="ema")


def test_a_part_of_one_network_that_is_not_there(tmp_path):
    torch.save({"teacher": tensors()}, tmp_path / "one.pth")
    with pytest.raises(UserError, match=r"holds no 'ema'; change encoder\.weights_part"):
        encoder(weights=str(tmp_path / "one.pth"), weights_part="ema")


@pytest.mark.parametrize("name", ["net", "model_ema", "target_encoder"])
def test_a_level_of_any_name(tmp_path, name):
    torch.save({name: tensors(), "optimizer": {"state": {}}, "epoch": 3}, tmp_path / "w.pth")
    same(encoder(seed=5, weights=str(tmp_path / "w.pth")), VIT)


def test_one_missing_tensor_below_a_prefix_is_one(tmp_path):
    state = {f"net.{key}": value for key, value in tensors().items() if key != "cls_token"}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match="1 tensor is missing: cls_token"):
        encoder(weights=str(tmp_path / "w.pth"))


def test_numbers_beside_the_tensors(tmp_path):
    torch.save({**tensors(), "epoch": 3, "arch": "vit"}, tmp_path / "w.pth")
    same(encoder(seed=5, weights=str(tmp_path / "w.pth")), VIT)


ROUND_TRIPS = {
    "dino": (VIT, dino.from_ours, dino.to_ours),
    "dora": (VIT, dora.from_ours, dora.to_ours),
    "timet": (VIT, timet.from_ours, timet.to_ours),
    "smtc": (VIT, smtc.from_ours, smtc.to_ours),
    "crw": (RESNET, crw.from_ours, crw.to_ours),
    "crw padded": (RESNET, lambda own: crw.from_ours(own, padded=True), crw.to_ours),
    "torchvision": (
        RESNET,
        lambda own: torchvision_resnet.from_ours(own, {"weight": torch.ones(5, 512)}),
        torchvision_resnet.to_ours,
    ),
    "timm": (VIT, timm_names.from_ours, timm_names.to_ours),
}


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_round_trips(name):
    keys, from_ours, to_ours = ROUND_TRIPS[name]
    own = tensors(keys)
    found = to_ours(from_ours(own), own)
    assert found.keys() == own.keys()
    assert all(torch.equal(found[key], own[key]) for key in own)


def test_padded_names_are_those_of_the_old_files():
    published = crw_training(padded=True)["model"]
    ours = crw.from_ours(tensors(RESNET), padded=True)["model"]
    assert ours.keys() == {key for key in published if key.startswith("encoder.")}
    assert "encoder.model.conv1.1.weight" in ours
    assert "encoder.model.layer3.0.downsample.0.weight" in ours


def test_the_student_on_request(tmp_path):
    torch.save(dino_full(), tmp_path / "full.pth")
    found = encoder(seed=5, weights=str(tmp_path / "full.pth"), weights_part="student")
    assert torch.equal(found.cls_token, encoder(seed=2).cls_token)


@pytest.mark.parametrize(
    ("made", "part", "keys"),
    [
        (smtc_full, "teacher", VIT),
        (lambda: crw_training(padded=False), "teacher", RESNET),
        (torchvision_file, "student", RESNET),
        (lambda: {f"student.backbone.{k}": v for k, v in tensors().items()}, "teacher", VIT),
        (lambda: {"student": dino_full()["student"]}, "teacher", VIT),
    ],
)
def test_a_part_that_is_not_there_is_never_replaced_by_the_other(tmp_path, made, part, keys):
    torch.save(made(), tmp_path / "one.pth")
    with pytest.raises(UserError, match=rf"one\.pth holds .*{part}"):
        encoder(keys, weights=str(tmp_path / "one.pth"), weights_part=part)


def test_a_teacher_beside_the_student_does_not_overwrite_it(tmp_path):
    state = timet_whole() | {f"teacher.backbone.{k}": v for k, v in tensors(seed=2).items()}
    torch.save(state, tmp_path / "both.pth")
    path = str(tmp_path / "both.pth")
    assert torch.equal(encoder(seed=5, weights=path).cls_token, encoder(seed=1).cls_token)
    teacher = encoder(seed=5, weights=path, weights_part="teacher")
    assert torch.equal(teacher.cls_token, encoder(seed=2).cls_token)


def test_linear_probe_and_head_names():
    own = {"weight": torch.rand(5, 8), "bias": torch.rand(5)}
    published = dino.linear_from_ours(own)
    assert published["state_dict"].keys() == {"module.linear.weight", "module.linear.bias"}
    assert all(torch.equal(v, own[k]) for k, v in dino.linear_to_ours(published).items())
    state = head("")
    newer = dino.head_to_current(state)
    assert "head.last_layer.parametrizations.weight.original0" in newer
    assert dino.head_to_published(newer).keys() == state.keys()


def test_what_is_missing_is_listed(tmp_path):
    state = dino_full()
    del state["teacher"]["backbone.blocks.1.mlp.fc2.bias"], state["teacher"]["backbone.norm.weight"]
    torch.save(state, tmp_path / "full.pth")
    message = r"full\.pth does not fit .* 2 tensors are missing: blocks\.1\.mlp\.fc2\.bias, norm"
    with pytest.raises(UserError, match=message):
        encoder(weights=str(tmp_path / "full.pth"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({**VIT, "depth": 1}, "unknown to it: blocks.1"),
        ({**VIT, "depth": 3}, "missing: blocks.2"),
        ({**VIT, "width": 48}, r"instead of \(1, 1, 48\)"),
        (RESNET, "tensors are missing"),
    ],
)
def test_another_architecture_is_one_sentence(tmp_path, keys, message):
    torch.save(tensors(), tmp_path / "vit.pth")
    with pytest.raises(UserError, match=message) as caught:
        encoder(keys, weights=str(tmp_path / "vit.pth"))
    assert "vit.pth" in str(caught.value)
    assert "\n" not in str(caught.value)


class Hostile:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder / "owned"),)


@pytest.mark.parametrize("nested", [False, True])
def test_code_in_a_file_is_never_run(tmp_path, nested):
    path = tmp_path / "hostile.pth"
    hostile = Hostile(tmp_path)
    torch.save({**tensors(), "x": {"y": hostile} if nested else hostile}, path)
    with pytest.raises(UserError, match=r"hostile\.pth holds objects .* never run"):
        encoder(weights=str(path))
    assert not (tmp_path / "owned").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "owned").exists()


def test_a_whole_pickled_network_is_refused(tmp_path):
    torch.save(encoder(), tmp_path / "network.pth")
    with pytest.raises(UserError, match=r"network\.pth holds objects .* state_dict\(\)"):
        encoder(weights=str(tmp_path / "network.pth"))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_truncated_file_is_one_sentence(tmp_path, suffix):
    path = tmp_path / f"half{suffix}"
    if suffix == ".safetensors":
        save_file(tensors(), path)
    else:
        torch.save(tensors(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"half{re.escape(suffix)} cannot be read"):
        encoder(weights=str(path))


def test_efficientnet_lite_is_told_from_timms_own_names():
    assert efficientnet_lite.recognises({"_fc.weight": torch.ones(1)})
    assert not efficientnet_lite.recognises(tensors())


@pytest.mark.parametrize("rule", ["dino", "timm"])
def test_positions_of_another_size_are_brought_to_ours(tmp_path, rule):
    small = encoder({**VIT, "image_size": 24})
    torch.save(small.state_dict(), tmp_path / "small.pth")
    large = encoder(weights=str(tmp_path / "small.pth"), position_interpolation=rule)
    images = torch.randn(2, 3, 32, 32)
    reference = encoder({**VIT, "image_size": 24}, position_interpolation=rule)
    torch.testing.assert_close(large(images).summary, reference(images).summary)
    assert large.pos_embed.shape == (1, 17, 24)


def test_both_rules_of_interpolation(tmp_path):
    """DINO's is asserted by golden arrays; timm's against timm."""
    import timm

    theirs = timm.create_model(
        "vit_tiny_patch16_224",
        num_classes=0,
        dynamic_img_size=True,
        img_size=64,
        depth=2,
    ).eval()
    keys = {"name": "vit_tiny", "image_size": 64, "depth": 2}
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    images = torch.randn(2, 3, 96, 32)
    found = {}
    for rule in ("dino", "timm"):
        made = encoder(keys, weights=str(tmp_path / "timm.pth"), position_interpolation=rule)
        save_encoder(made, tmp_path / rule, {})
        found[rule] = load_encoder(tmp_path / rule)(images).summary
    expected = theirs(images)
    torch.testing.assert_close(found["timm"], expected, rtol=1e-4, atol=1e-4)
    assert (found["dino"] - expected).abs().max() > 1e-3


def test_timm_loads_what_we_save_in_three_lines(tmp_path):
    import timm
    from safetensors.torch import load_file

    keys = {"name": "vit_tiny", "patch_size": 16, "image_size": 224}
    save_encoder(encoder(keys), tmp_path / "vit", {})
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    vit.load_state_dict(load_file(tmp_path / "vit" / "encoder.safetensors"))
    images = torch.randn(1, 3, 224, 224)
    expected = load_encoder(tmp_path / "vit")(images).summary
    torch.testing.assert_close(vit.eval()(images), expected, rtol=1e-4, atol=1e-5)

    save_encoder(encoder(RESNET), tmp_path / "resnet", {})
    resnet = timm.create_model("resnet18", num_classes=0)
    state = load_file(tmp_path / "resnet" / "encoder.safetensors")
    resnet.load_state_dict({key.removeprefix("body."): value for key, value in state.items()})
    images = torch.randn(1, 3, 64, 64)
    expected = load_encoder(tmp_path / "resnet")(images).summary
    torch.testing.assert_close(resnet.eval()(images), expected, rtol=1e-4, atol=1e-5)


def test_timms_own_weights_come_with_their_mean(tmp_path, monkeypatch):
    import timm

    create = timm.create_model
    asked = []

    def offline(name, pretrained=False, **keys):
        asked.append((name, pretrained))
        network = create(name.partition(".")[0], pretrained=False, **keys)
        network.pretrained_cfg = {**network.pretrained_cfg, "mean": (0.5, 0.4, 0.3)}
        return network

    monkeypatch.setattr(timm, "create_model", offline)
    config = EncoderConfig(name="vit_tiny", weights="timm:vit_tiny_patch16_224.tag")
    made = build_encoder(config, seed=0)
    assert asked == [("vit_tiny_patch16_224.tag", True)]
    assert made.mean == (0.5, 0.4, 0.3)
    save_encoder(made, tmp_path, {})
    assert load_encoder(tmp_path).mean == (0.5, 0.4, 0.3)


def test_a_name_that_timm_does_not_know_is_one_sentence():
    with pytest.raises(UserError, match=r"timm gives no weights 'vit_tiny_patch16_224\.nosuch'"):
        encoder(weights="timm:vit_tiny_patch16_224.nosuch")


SLOTS = {
    "transport_proj.weight": torch.rand(24, 16, 1),
    "slot_attention.slots_mu": torch.rand(1, 3, 1, 24),
    "slot_attention.mlp.0.bias": torch.rand(24),
    "mlp_slot.2.weight": torch.rand(24, 48),
}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_slots_of_smtcs_checkpoint_come_under_their_published_names(tmp_path, prefix):
    state = {f"encoder.{key}": value for key, value in tensors().items()} | SLOTS
    state = {prefix + key: value for key, value in state.items()}
    path = tmp_path / "smtc.pth"
    torch.save({"iteration": 500, "model_state_dict": state}, path)
    config = EncoderConfig(**VIT, weights=str(path))
    found = head_of_weights(config)
    assert found.keys() == SLOTS.keys()
    assert all(torch.equal(found[key], value) for key, value in SLOTS.items())
    same(build_encoder(config, seed=5), VIT)


@pytest.mark.parametrize(
    "made", [tensors, dino_full, timet_whole, lambda: smtc.from_ours(tensors())]
)
def test_files_without_slots_bring_no_head(tmp_path, made):
    torch.save(made(), tmp_path / "one.pth")
    assert head_of_weights(EncoderConfig(**VIT, weights=str(tmp_path / "one.pth"))) == {}


def test_no_file_brings_no_head():
    assert head_of_weights(EncoderConfig(**VIT)) == {}
    assert head_of_weights(EncoderConfig(**VIT, weights="timm:vit_tiny_patch16_224.tag")) == {}
