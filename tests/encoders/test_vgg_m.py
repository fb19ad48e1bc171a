import math

import pytest
import torch
from torch import nn

from timewalk.config import EncoderConfig
from timewalk.encoders import build_encoder, load_encoder, save_encoder


@pytest.fixture(scope="module")
def encoder():
    return build_encoder(EncoderConfig(name="vgg_m"), seed=0).eval()


@torch.no_grad()
def test_shapes(encoder):
    assert (encoder.stride, encoder.width, encoder.patch_width) == (16, 512, 512)
    assert encoder.mean == encoder.std == (0.5, 0.5, 0.5)
    for size, rows, columns in [((112, 112), 7, 7), ((40, 67), 3, 5)]:
        images = torch.randn(1, 3, *size)
        features = encoder(images)
        assert features.patches.shape == (1, 512, rows, columns)
        torch.testing.assert_close(features.summary, features.patches.mean(dim=(2, 3)))
        assert torch.equal(encoder.dense(images), features.patches)


def test_parameters(encoder):
    convolutions = 7 * 7 * 3 * 64 + 64
    for inputs, outputs in [(64, 128), (128, 256), (256, 512)]:
        convolutions += 9 * inputs * outputs + 9 * outputs * outputs + 2 * outputs
    normalisations = 2 * (64 + 2 * (128 + 256 + 512))
    assert sum(p.numel() for p in encoder.parameters()) == convolutions + normalisations
    layers = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(layer.eps, layer.momentum) for layer in layers} == {(1e-3, 0.01)}


def test_l2_counts_all_convolutions_but_the_first(encoder):
    counted = encoder.regularised()
    assert [p.ndim for p in counted] == [4, 1] * 6
    assert counted[0].shape == (128, 64, 3, 3)
    assert not any(p is encoder.conv1.weight for p in counted)


def test_fresh_weights_are_he_normal(encoder):
    weight = encoder.conv4[3].weight
    deviation = math.sqrt(2 / (512 * 9))
    assert weight.std().item() == pytest.approx(deviation, rel=0.01)
    # Cut at two standard deviations of the normal distribution before cutting.
    assert weight.abs().max().item() == pytest.approx(2 * deviation / 0.8796, rel=0.01)
    assert encoder.conv1.bias.abs().max() == 0


def test_saved_and_loaded(encoder, tmp_path):
    save_encoder(encoder, tmp_path, {})
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(load_encoder(tmp_path)(images).patches, encoder(images).patches)
