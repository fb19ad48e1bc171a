"""Maps from inside an encoder: how many, of which layers, how large."""

import pytest
import torch

from tests.encoders.dense.families import FAMILIES, STRIDES, encoder
from timewalk.encoders.base import Encoder
from timewalk.encoders.vit import ViT


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_sizes_are_as_declared(name):
    network = encoder(name)
    side = 112 if name == "vit/14" else 64
    maps = network.taps(torch.randn(2, 3, side, 2 * side))
    assert network.tap_strides == STRIDES[name]
    for x, width, stride in zip(maps, network.tap_widths, STRIDES[name], strict=True):
        assert x.shape == (2, width, side // stride, 2 * side // stride)


@torch.no_grad()
@pytest.mark.parametrize(
    ("depth", "places"), [(12, [4, 6, 8, 12]), (3, [1, 2, 2, 3]), (2, [1, 1, 1, 2]), (1, [1] * 4)]
)
def test_blocks_of_a_vit(depth, places):
    torch.manual_seed(0)
    vit = ViT(width=24, depth=depth, heads=4, patch_size=8, image_size=32).eval()
    images = torch.randn(2, 3, 32, 24)
    x, _ = vit.embed(images)
    outputs = [x]
    for block in vit.blocks:
        outputs.append(block(outputs[-1]))
    for norm in (True, False):
        for place, found in zip(places, vit.taps(images, norm=norm), strict=True):
            tokens = (vit.norm(outputs[place]) if norm else outputs[place])[:, 1:]
            expected = tokens.transpose(1, 2).reshape(2, 24, 4, 3)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(vit.taps(images)[-1], vit.dense(images), rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "last"),
    [("resnet18_s8", "deepest"), ("test_resnet", "deepest"), ("resnet50v2_conv4c", "dense"),
     ("resnet50_conv4c", "dense"), ("vgg_m", "dense")],
)  # fmt: skip
def test_the_last_one_is_the_network_s_own(name, last):
    network = encoder(name)
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(network.taps(images)[-1], getattr(network, last)(images))


def test_an_encoder_without_maps_inside_gives_its_patch_map_for_all():
    class Plain(Encoder):
        stride, patch_width = 4, 3

        def dense(self, images):
            return images[..., ::4, ::4]

    plain, images = Plain(), torch.randn(1, 3, 8, 8)
    assert (plain.tap_strides, plain.tap_widths) == ((4,) * 4, (3,) * 4)
    assert len(plain.taps(images)) == 4
    assert all(torch.equal(x, plain.dense(images)) for x in plain.taps(images))


def test_fewer_than_four_stages_repeat_the_shallowest(monkeypatch):
    import timm

    from timewalk.encoders.cnn import TimmEncoder

    make = timm.create_model

    def truncated(*args, **kwargs):
        body = make(*args, **kwargs)
        body.feature_info = body.feature_info[:2]
        return body

    monkeypatch.setattr(timm, "create_model", truncated)
    network = TimmEncoder("test_convnext").eval()
    assert network.tap_strides == (4, 4, 4, 8)
    maps = network.taps(torch.randn(1, 3, 32, 32))
    assert [x.shape[-1] for x in maps] == [8, 8, 8, 4]
