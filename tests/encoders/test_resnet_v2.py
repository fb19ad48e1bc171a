"""The base networks of ResNet-50 that TCC uses. Numbers: tests/golden."""

import math

import pytest
import torch
import torchvision
from torch import nn

from timewalk.config import EncoderConfig
from timewalk.encoders import build_encoder, load_encoder, save_encoder
from timewalk.encoders.weights import torchvision_resnet
from timewalk.errors import UserError

V2, V1 = "resnet50v2_conv4c", "resnet50_conv4c"


def build(name=V2, seed=0, **keys):
    return build_encoder(EncoderConfig(name=name, **keys), seed).eval()


def test_tensors_of_keras():
    encoder = build()
    numbers = {k: x for k, x in encoder.state_dict().items() if "num_batches" not in k}
    assert len(numbers) == 168
    assert sum(x.numel() for x in numbers.values()) == 5_209_600
    assert sum(p.numel() for p in encoder.parameters()) == 5_193_856
    layers = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(layers) == 30
    assert sum(p.numel() for layer in layers for p in layer.parameters()) == 15_744
    assert {(layer.eps, layer.momentum) for layer in layers} == {(1.001e-5, 0.01)}


@pytest.mark.parametrize("name", [V2, V1])
@torch.no_grad()
def test_shapes(name):
    encoder = build(name)
    assert (encoder.stride, encoder.multiple) == (16, 1)
    assert encoder.patch_width == encoder.width == encoder.deepest_width == 1024
    for size, rows, columns in [((64, 64), 4, 4), ((40, 67), 3, 5)]:
        images = torch.randn(2, 3, *size)
        features = encoder(images)
        assert features.patches.shape == (2, 1024, rows, columns)
        torch.testing.assert_close(features.summary, features.patches.mean(dim=(2, 3)))
        assert torch.equal(encoder.dense(images), features.patches)
        assert torch.equal(encoder.deepest(images), features.patches)
    assert (features.patches.min() < 0) == (name == V2)


@torch.no_grad()
def test_sizes_of_the_stages():
    encoder = build()
    x = encoder.stem(torch.zeros(1, 3, 112, 112))
    sides = [x.shape[-1]]
    for stack in encoder.regions():
        x = stack(x)
        sides.append(x.shape[-1])
    assert sides == [28, 14, 7, 7]


@torch.no_grad()
def test_the_stem_pads_with_zeros():
    encoder = build()
    nn.init.zeros_(encoder.conv1.weight)
    nn.init.constant_(encoder.conv1.bias, -1)
    stem = encoder.stem(torch.zeros(1, 3, 32, 32))
    assert (stem[..., 0] == 0).all()
    assert (stem[..., 1:, 1:] == -1).all()


def test_strides_are_in_the_last_blocks():
    encoder = build()
    strides = [[block.stride for block in stack] for stack in encoder.regions()]
    assert strides == [[1, 1, 2], [1, 1, 1, 2], [1, 1, 1]]
    biased = [n for n, m in encoder.named_modules() if isinstance(m, nn.Conv2d) and m.bias is None]
    assert len(biased) == 20
    assert all(name.endswith((".conv1", ".conv2")) for name in biased)


def test_fresh_weights_are_glorot_uniform():
    encoder = build()
    weight = encoder.conv4[0].conv2.weight
    limit = math.sqrt(6 / (2 * 256 * 9))
    assert limit * 0.99 < weight.abs().max() <= limit
    assert encoder.conv1.bias.abs().max() == 0
    assert torch.equal(build(seed=4).conv1.weight, build(seed=4).conv1.weight)


@pytest.mark.parametrize("name", [V2, V1])
def test_saved_and_loaded(tmp_path, name):
    encoder = build(name)
    save_encoder(encoder, tmp_path, {})
    loaded = load_encoder(tmp_path)
    assert loaded.mean == ((0.5,) * 3 if name == V2 else (0.485, 0.456, 0.406))
    assert (loaded.mean, loaded.std) == (encoder.mean, encoder.std)
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded(images).patches, encoder(images).patches)
    assert encoder.regularised() == []


def test_weights_of_torchvision(tmp_path):
    stock = torchvision.models.resnet50(weights=None).eval()
    torch.save(stock.state_dict(), tmp_path / "resnet50.pth")
    loaded = build(V1, weights=str(tmp_path / "resnet50.pth"))
    images = torch.randn(1, 3, 48, 32)
    parts = (stock.conv1, stock.bn1, stock.relu, stock.maxpool, stock.layer1, stock.layer2)
    expected = nn.Sequential(*parts, stock.layer3[:3])(images)
    assert expected.min() == 0
    assert torch.equal(loaded.dense(images), expected)


def test_a_smaller_torchvision_file_is_refused(tmp_path):
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "18.pth")
    with pytest.raises(UserError, match=r"18\.pth does not fit the encoder: .*layer1\.0\.bn3"):
        build(V1, weights=str(tmp_path / "18.pth"))


def test_deeper_torchvision_files_are_refused_where_all_layers_count():
    own = build("resnet18_s8").state_dict()
    deeper = torchvision.models.resnet34(weights=None).state_dict()
    with pytest.raises(UserError, match="unknown to it"):
        torchvision_resnet.to_ours(deeper, own)
