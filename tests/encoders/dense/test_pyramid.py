import pytest
import torch
from torch import nn

from tests.encoders.dense.families import STRIDES
from timewalk.encoders.dense.pyramid import FeaturePyramid

LEVELS = {
    (16, 16, 16, 16): (4, 8, 16, 32),
    (8, 8, 8, 8): (4, 8, 16, 32),
    (14, 14, 14, 14): (3.5, 7, 14, 28),
    (4, 8, 8, 8): (4, 8, 16, 32),
    (4, 8, 16, 16): (4, 8, 16, 32),
    (4, 8, 16, 32): (4, 8, 16, 32),
    (2, 2, 2, 2): (4, 8, 16, 32),
}


def pyramid(strides, **keys):
    torch.manual_seed(0)
    return FeaturePyramid((4, 6, 8, 10), strides, **keys).eval()


@torch.no_grad()
@pytest.mark.parametrize("strides", LEVELS)
def test_strides_and_sizes_of_the_levels(strides):
    assert set(STRIDES.values()) <= set(LEVELS)
    network = pyramid(strides)
    assert network.strides == LEVELS[strides]
    assert network.widths == (4, 6, 8, 10)
    maps = [
        torch.randn(2, width, 448 // stride, 224 // stride)
        for width, stride in zip(network.widths, strides, strict=True)
    ]
    for x, width, stride in zip(network(maps), network.widths, network.strides, strict=True):
        assert x.shape == (2, width, 448 / stride, 224 / stride)


def test_layers_for_patch_16():
    levels = pyramid((16, 16, 16, 16)).levels
    kinds = [[type(layer) for layer in level] for level in levels[:3]]
    assert kinds == [
        [nn.ConvTranspose2d, nn.BatchNorm2d, nn.GELU, nn.ConvTranspose2d],
        [nn.ConvTranspose2d],
        [],
    ]
    assert isinstance(levels[3], nn.MaxPool2d)
    plain = pyramid((16, 16, 16, 16), normed=False).levels[0]
    assert [type(x) for x in plain] == [nn.ConvTranspose2d, nn.GELU, nn.ConvTranspose2d]


@torch.no_grad()
def test_what_the_levels_compute():
    network = pyramid((8, 8, 8, 8))
    maps = [torch.randn(1, width, 4, 4) for width in network.widths]
    levels = network(maps)
    enlarge = network.levels[0][0]
    expected = torch.einsum("bchw,cdij->bdhiwj", maps[0], enlarge.weight).reshape(1, 4, 8, 8)
    torch.testing.assert_close(levels[0], expected + enlarge.bias[:, None, None])
    assert torch.equal(levels[1], maps[1])
    assert torch.equal(levels[2], maps[2].unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5)))
    assert torch.equal(levels[3], maps[3].amax((2, 3), keepdim=True))


@torch.no_grad()
def test_an_odd_row_is_not_lost():
    network = pyramid((16, 16, 16, 16))
    maps = [torch.zeros(1, width, 3, 1) for width in network.widths]
    maps[3][..., 2, 0] = 5
    assert network(maps)[3].flatten(2).tolist() == [[[0, 5]] * 10]
