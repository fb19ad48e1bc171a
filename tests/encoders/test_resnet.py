"""ResNets with stride 8: maps, padding, weights. Numbers: tests/golden/test_crw.py."""

import pytest
import torch
import torchvision
from torch import nn

from timewalk.config import EncoderConfig
from timewalk.encoders import build_encoder, load_encoder, load_head, save_encoder, save_head
from timewalk.encoders.weights import crw, torchvision_resnet
from timewalk.errors import UserError


def build(name="resnet18_s8", seed=0, **keys):
    return build_encoder(EncoderConfig(name=name, **keys), seed).eval()


@pytest.mark.parametrize(
    ("name", "patches", "summary", "count"),
    [("resnet18_s8", 256, 512, 11_176_512), ("resnet50_s8", 1024, 2048, 23_508_032)],
)
@torch.no_grad()
def test_shapes_and_parameters(name, patches, summary, count):
    encoder = build(name)
    assert sum(p.numel() for p in encoder.parameters()) == count
    assert (encoder.stride, encoder.multiple) == (8, 1)
    assert (encoder.patch_width, encoder.width, encoder.deepest_width) == (
        patches,
        summary,
        summary,
    )
    images = torch.randn(2, 3, 40, 67)
    features = encoder(images)
    assert features.summary.shape == (2, summary)
    assert features.patches.shape == (2, patches, 5, 9)
    deepest = encoder.deepest(images)
    assert deepest.shape == (2, summary, 5, 9)
    torch.testing.assert_close(features.summary, deepest.mean(dim=(2, 3)))
    assert torch.equal(encoder.dense(images), features.patches)


def test_dense_leaves_the_last_layer_out():
    encoder = build()
    del encoder.layer4
    assert encoder.dense(torch.randn(1, 3, 32, 32)).shape == (1, 256, 4, 4)


@pytest.mark.parametrize("padding", ["reflect", "zeros"])
def test_names_and_modes_of_convolutions(padding):
    encoder = build(padding=padding)
    stock = torchvision.models.resnet18(weights=None).state_dict()
    assert encoder.state_dict().keys() == {k for k in stock if not k.startswith("fc.")}
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Conv2d):
            pads = module.padding != (0, 0)
            assert module.padding_mode == (padding if pads else "zeros"), name
            if name.startswith(("layer3", "layer4")):
                assert module.stride == (1, 1)


def test_weights_of_one_padding_fit_the_other():
    one, other = build(seed=1), build(padding="zeros", seed=2)
    other.load_state_dict(one.state_dict())
    images = torch.randn(1, 3, 64, 64)
    inside = (slice(None), slice(None), slice(3, 5), slice(3, 5))
    assert not torch.allclose(one.dense(images), other.dense(images))
    stems = [torch.relu(e.bn1(e.conv1(images)))[inside] for e in (one, other)]
    torch.testing.assert_close(*stems)


@pytest.mark.parametrize("padded", [False, True])
def test_checkpoints_of_crw(tmp_path, padded):
    source = build(seed=5)
    state = crw.from_ours(source.state_dict(), padded)["model"]
    head = {"selfsim_fc.0.weight": torch.zeros(128, 512), "selfsim_fc.0.bias": torch.zeros(128)}
    torch.save({"model": {**state, **head}}, tmp_path / "crw.pth")
    loaded = build(weights=str(tmp_path / "crw.pth"))
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded(images).patches, source(images).patches)


def test_a_checkpoint_without_the_last_layer_is_refused(tmp_path):
    state = crw.from_ours(build().state_dict())["model"]
    short = {key: x for key, x in state.items() if ".layer4." not in key}
    torch.save({"model": short}, tmp_path / "crw.pth")
    with pytest.raises(UserError, match=r"crw\.pth .*does not fit the encoder: .*layer4\.0"):
        build(weights=str(tmp_path / "crw.pth"))


def test_weights_of_torchvision(tmp_path):
    stock = torchvision.models.resnet18(weights=None)
    torch.save(stock.state_dict(), tmp_path / "resnet18.pth")
    loaded = build(padding="zeros", weights=str(tmp_path / "resnet18.pth"))
    classifier = {key: stock.fc.state_dict()[key] for key in ("weight", "bias")}
    again = torchvision_resnet.from_ours(loaded.state_dict(), classifier)
    assert all(torch.equal(again[key], value) for key, value in stock.state_dict().items())


def test_saved_and_loaded(tmp_path):
    encoder = build(padding="zeros")
    encoder.normalise_by((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    save_encoder(encoder, tmp_path, {})
    loaded = load_encoder(tmp_path)
    assert (loaded.mean, loaded.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded(images).summary, encoder(images).summary)


def test_heads_are_saved_beside_and_removed(tmp_path):
    assert load_head(tmp_path) == {}
    save_head({"0.weight": torch.ones(2, 3)}, tmp_path)
    assert torch.equal(load_head(tmp_path / "encoder.json")["0.weight"], torch.ones(2, 3))
    save_head({}, tmp_path)
    assert load_head(tmp_path) == {}


def test_other_encoders_answer_too():
    vit = build("vit_tiny", depth=1, width=24, patch_size=8, image_size=32)
    images = torch.randn(2, 3, 32, 32)
    assert vit.multiple == 8
    assert vit.deepest_width == 24
    for run in (vit.dense, vit.deepest):
        assert torch.equal(run(images), vit(images).patches)
    timm = build("resnet18")
    assert timm.deepest(images).shape == (2, timm.deepest_width, 1, 1)
    assert torch.equal(timm.dense(images), timm(images).patches)
