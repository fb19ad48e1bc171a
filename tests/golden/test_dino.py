"""DINO's ViT, head, loss and feature recipes against arrays of the published code.

See data/dino/README.md for names and tolerances; ``knn.npz`` has a file of its own. Sizes are read
from the arrays.
"""

import math
import re

import numpy as np
import pytest
import torch

from timewalk.config import EncoderConfig
from timewalk.encoders import build_encoder
from timewalk.encoders.base import VIT_SHAPES
from timewalk.encoders.heads import DinoHead, multi_crop
from timewalk.encoders.vit import ViT, probe_features
from timewalk.methods.base import Step
from timewalk.methods.dino import DINO, DinoConfig
from timewalk.ops.attention import keep_mass
from timewalk.ops.distillation import cross_view_loss, update_centre_
from timewalk.ops.schedules import linear_then_constant, warmup_cosine

FEATURE = {"rtol": 0, "atol": 2e-5}


def tensor(array):
    return torch.from_numpy(np.array(array))


@pytest.fixture
def arrays(golden):
    return golden("dino", "vit_tiny.npz")


@pytest.fixture
def vit(arrays):
    state = {k[2:]: tensor(v) for k, v in arrays.items() if k.startswith("w.")}
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    network = ViT(
        width=width,
        depth=len([k for k in state if k.endswith(".norm1.weight")]),
        heads=next(v.shape[1] for k, v in arrays.items() if k.startswith("attn")),
        patch_size=patch,
        image_size=patch * math.isqrt(state["pos_embed"].shape[1] - 1),
    )
    network.load_state_dict(state)
    return network.eval()


def sizes(arrays, kind):
    found = [name.removeprefix(kind) for name in arrays if re.fullmatch(rf"{kind}\d+(x\d+)?", name)]
    assert found
    return found


@torch.no_grad()
def test_class_token_at_all_sizes(arrays, vit):
    for size in sizes(arrays, "cls"):
        found = vit(tensor(arrays[f"x{size}"])).summary
        np.testing.assert_allclose(found, arrays[f"cls{size}"], **FEATURE)


@torch.no_grad()
def test_last_attention_at_all_sizes(arrays, vit):
    for size in sizes(arrays, "attn"):
        images, expected = tensor(arrays[f"x{size}"]), arrays[f"attn{size}"]
        np.testing.assert_allclose(vit.last_attention(images), expected, **FEATURE)
        row = vit.cls_attention(images).flatten(2)
        np.testing.assert_allclose(row, expected[:, :, 0, 1:], **FEATURE)


@torch.no_grad()
def test_tokens_of_the_last_blocks(arrays, vit):
    for size in sizes(arrays, "tokens_last2_"):
        images, expected = tensor(arrays[f"x{size}"]), arrays[f"tokens_last2_{size}"]
        np.testing.assert_allclose(vit.last_blocks(images, len(expected)), expected, **FEATURE)
        patches = vit(images).patches.flatten(2).transpose(1, 2)
        np.testing.assert_allclose(patches, expected[-1][:, 1:], **FEATURE)


@torch.no_grad()
def test_head_over_crops(arrays, vit):
    state = {k[2:]: tensor(v) for k, v in arrays.items() if k.startswith("h.")}
    outputs, bottleneck = state["last_layer.weight_v"].shape
    hidden, width = state["mlp.0.weight"].shape
    head = DinoHead(width, outputs, hidden=hidden, bottleneck=bottleneck)
    head.load_state_dict(state)
    large, small = tensor(arrays["x16"]), tensor(arrays["x8"])
    crops = [large, large / 2, small, 2 * small]
    found = multi_crop(lambda images: vit(images).summary, head, crops)
    np.testing.assert_allclose(found, arrays["multicrop_out"], **FEATURE)


@torch.no_grad()
def test_linear_features(golden, vit):
    expected = golden("dino", "linear_features.npz")
    images = tensor(expected["x"])
    for name in expected:
        if match := re.fullmatch(r"n(\d+)_(no)?avg", name):
            found = probe_features(vit, images, int(match[1]), average=match[2] is None)
            np.testing.assert_allclose(found, expected[name], **FEATURE)


def test_attention_mass(golden):
    arrays = golden("dino", "attention_mass.npz")
    kept = keep_mass(tensor(arrays["attention"]), float(arrays["threshold"]))
    assert np.array_equal(kept.reshape(arrays["keep"].shape).numpy(), arrays["keep"])


class TestLoss:
    @pytest.fixture
    def arrays(self, golden):
        return golden("dino", "loss.npz")

    def test_losses_and_gradients(self, arrays):
        crops = int(arrays["ncrops"])
        centre = tensor(arrays["center_before"])
        clips = len(arrays["student"]) // crops
        teacher = tensor(arrays["teacher"]).unflatten(0, (-1, clips))
        epochs = [int(name[7:]) for name in arrays if name.startswith("loss_ep")]
        assert epochs
        for epoch in epochs:
            student = tensor(arrays["student"]).requires_grad_()
            temperature = linear_then_constant(epoch, 0.04, 0.07, 30)
            loss = cross_view_loss(student.unflatten(0, (crops, -1)), teacher, centre, temperature)
            loss.backward()
            np.testing.assert_allclose(loss.item(), arrays[f"loss_ep{epoch}"], rtol=1e-5)
            np.testing.assert_allclose(
                student.grad, arrays[f"grad_ep{epoch}"], rtol=1e-5, atol=1e-6
            )

    def test_centre(self, arrays):
        centre = tensor(arrays["center_before"])
        for teacher, expected in (("teacher", "center_after"), ("teacher2", "center_after2")):
            update_centre_(centre, tensor(arrays[teacher]), 0.9)
            np.testing.assert_allclose(centre, arrays[expected], rtol=0, atol=1e-6)

    def test_method(self, arrays):
        """The whole loss and centre of the method, from the published logits."""
        crops, width = int(arrays["ncrops"]), arrays["student"].shape[1]
        clips = len(arrays["student"]) // crops
        keys = {"out_dim": width, "local_crops": crops - 2, "teacher_temperature": 0.07}
        keys["warmup_teacher_temperature_epochs"] = 30
        method = DINO(DinoConfig.model_validate({**DinoConfig.miniature(), **keys}))
        method.centre.copy_(tensor(arrays["center_before"]))
        student = tensor(arrays["student"]).requires_grad_()
        method.student.logits = lambda *groups: student
        method.teacher.logits = lambda images: tensor(arrays["teacher"])
        pixels = torch.zeros(clips, crops, 3, 32, 32, dtype=torch.uint8)
        batch = {"global": pixels[:, :2], "local": pixels[:, 2:, :, :16, :16]}
        for epoch in [int(name[7:]) for name in arrays if name.startswith("loss_ep")]:
            losses = method.loss(batch, Step(epoch, epoch, 100, 1, 100))
            (gradient,) = torch.autograd.grad(losses.total, student)
            np.testing.assert_allclose(losses.total.item(), arrays[f"loss_ep{epoch}"], rtol=1e-5)
            np.testing.assert_allclose(gradient, arrays[f"grad_ep{epoch}"], rtol=1e-5, atol=1e-6)
        method.after_step(Step(0, 0, 100, 1, 100), losses.means)
        np.testing.assert_allclose(method.centre, arrays["center_after"], rtol=0, atol=1e-6)


def test_crop_shapes(golden):
    expected = golden("dino", "counts_and_shapes.json")["crop_shapes_local8"]
    keys = {"encoder": {"name": "vit_tiny", "depth": 1}, "out_dim": 8, "head_hidden": 8}
    method = DINO(DinoConfig.model_validate({"method": "dino", "dataset": "golden", **keys}))
    clip = torch.randint(0, 256, (1, 3, 90, 160), dtype=torch.uint8)
    views = method.views(clip, torch.Generator().manual_seed(0))
    found = [list(crop.shape) for crop in (*views["global"], *views["local"])]
    assert found == expected


class TestCounts:
    @pytest.fixture
    def value(self, golden):
        return golden("dino", "counts_and_shapes.json")

    @pytest.mark.parametrize("name", VIT_SHAPES)
    def test_parameters(self, value, name):
        expected = dict(value[name])
        with torch.device("meta"):
            backbone = build_encoder(EncoderConfig(name=name), seed=0)
        assert sum(p.numel() for p in backbone.parameters()) == expected.pop("backbone")
        assert backbone.width == expected.pop("embed_dim")
        for key, count in expected.items():
            match = re.fullmatch(r"head_out(\d+)(_trainable_norm_last_layer_(True|False))?", key)
            assert match, key
            with torch.device("meta"):
                head = DinoHead(backbone.width, int(match[1]), norm_last_layer=match[3] == "True")
            chosen = [p for p in head.parameters() if match[2] is None or p.requires_grad]
            assert sum(p.numel() for p in chosen) == count, key

    def test_state_dict_keys(self, value):
        assert list(DinoHead(8, 8, hidden=8).state_dict()) == value["head_state_dict_keys"]
        head = DinoHead(8, 8, hidden=8, batch_norm=True)
        assert list(head.state_dict()) == value["head_bn_state_dict_keys"]

    def test_state_dict_shapes(self, value):
        with torch.device("meta"):
            state = build_encoder(EncoderConfig(name="vit_small"), seed=0).state_dict()
        expected = value["vit_small_state_dict"]
        # The file lists the first block for all.
        shapes = {re.sub(r"blocks\.\d+", "blocks.0", k): list(v.shape) for k, v in state.items()}
        assert shapes == expected

    def test_linear_probe_learning_rates(self, value):
        found = [key for key in value if key.startswith("linear_probe_lr_per_epoch")]
        assert found
        for key in found:
            rate, batch, epochs = re.search(r"lr([\d.]+)_batch(\d+)_ep(\d+)", key).groups()
            base = float(rate) * int(batch) / 256
            for epoch, expected in value[key].items():
                rate = warmup_cosine(int(epoch), int(epochs), base, 0.0)
                assert rate == pytest.approx(expected, rel=1e-9)
