"""Segmentation networks: both heads on every family of encoder, and what they compute."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from tests.encoders.dense.families import FAMILIES, STRIDES, encoder
from timewalk.encoders.dense.segmenter import ConvNorm, LinearHead, Segmenter, UperNetHead


def segmenter(name="vit/16", head="upernet", **keys):
    torch.manual_seed(0)
    return Segmenter(encoder(name), 5, head, channels=8, **{"aux_channels": 6, **keys})


@pytest.mark.parametrize("name", FAMILIES)
def test_upernet_on_every_encoder(name):
    network = segmenter(name)
    side = network.multiple
    assert side == (28 if name == "vit/14" else 32)
    logits, auxiliary = network.training_logits(torch.randn(2, 3, 2 * side, 3 * side))
    assert network.stride == (3.5 if name == "vit/14" else 4)
    assert logits.shape == (2, 5, 16, 24)
    assert auxiliary.shape == (2, 5, 4, 6)
    (logits.square().mean() + auxiliary.square().mean()).backward()
    outside = [p for n, p in network.named_parameters() if not n.startswith("encoder.")]
    assert all(p.grad is not None for p in outside)
    assert any(p.grad is not None for p in network.encoder.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_linear_on_every_encoder(name):
    network = segmenter(name, "linear").train()
    stride = STRIDES[name][0]
    side = 2 * network.multiple
    logits, auxiliary = network.training_logits(torch.randn(2, 3, side, 2 * side))
    assert auxiliary is None
    assert network.stride == stride
    assert logits.shape == (2, 5, side // stride, 2 * side // stride)
    assert sum(p.numel() for p in network.head.parameters()) == 5 * (
        sum(network.encoder.tap_widths) + 1
    )


@pytest.mark.parametrize("name", ["vit/16", "test_resnet"])
def test_linear_leaves_the_encoder_as_it_is(name):
    network = segmenter(name, "linear").train()
    before = {key: value.clone() for key, value in network.encoder.state_dict().items()}
    assert network.training
    assert not any(module.training for module in network.encoder.modules())
    network(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in network.encoder.parameters())
    assert all(p.grad is not None for p in network.head.parameters())
    after = network.encoder.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_upernet_trains_the_encoder():
    network = segmenter("test_resnet").train()
    assert network.encoder.training
    assert not network.eval().encoder.training
    assert all(p.requires_grad for p in network.encoder.parameters())


@settings(deadline=None, max_examples=25)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=4, max_size=4),
    widths=st.lists(st.integers(1, 4), min_size=4, max_size=4),
    seed=st.integers(0, 99),
)
@torch.no_grad()
def test_linear_head_is_a_convolution_of_the_concatenation(sizes, widths, seed):
    torch.manual_seed(seed)
    head = LinearHead(widths, 3)
    nn.init.normal_(head.classifier.bias)
    maps = [torch.randn(2, width, *size) for width, size in zip(widths, sizes, strict=True)]
    resized = [F.interpolate(x, size=sizes[0], mode="bilinear") for x in maps]
    expected = head.classifier(torch.cat(resized, dim=1))
    torch.testing.assert_close(head(maps), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_upernet_step_by_step():
    torch.manual_seed(0)
    head = UperNetHead((3, 4, 5, 6), 7, 2, dropout=0.5).eval()
    a, b, c, d = levels = [
        torch.randn(1, width, side, side)
        for width, side in zip((3, 4, 5, 6), (24, 12, 6, 3), strict=True)
    ]

    def larger(x, like):
        return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)

    scales = zip((1, 2, 3, 6), head.pooled, strict=True)
    pooled = [larger(conv(F.adaptive_avg_pool2d(d, scale)), d) for scale, conv in scales]
    top = head.bottleneck(torch.cat([d, *pooled], dim=1))
    third = head.lateral[2](c) + larger(top, c)
    second = head.lateral[1](b) + larger(third, b)
    first = head.lateral[0](a) + larger(second, a)
    maps = [head.smooth[0](first), head.smooth[1](second), head.smooth[2](third), top]
    expected = head.classifier(head.fusion(torch.cat([larger(x, a) for x in maps], dim=1)))
    torch.testing.assert_close(head(levels), expected)


def test_initial_weights():
    head = UperNetHead((8, 8, 8, 8), 64, 150, dropout=0.1)
    weight = head.classifier.weight
    assert weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not head.classifier.bias.any()
    # fan-out of a 3 x 3 convolution to 64 channels
    assert head.fusion.conv.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert head.fusion.conv.bias is None


def test_published_size_of_the_head():
    network = UperNetHead((384,) * 4, 384, 150, dropout=0.1)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    shapes = sorted((m.in_channels, m.out_channels, m.kernel_size[0]) for m in convolutions)
    assert shapes == sorted(
        [(384, 384, 1)] * 7 + [(384, 384, 3)] * 3 + [(1920, 384, 3), (1536, 384, 3), (384, 150, 1)]
    )
    assert network.dropout.p == 0.1


def test_the_auxiliary_head_exists_where_it_is_asked_for():
    assert segmenter(aux_channels=None).training_logits(torch.randn(2, 3, 32, 32))[1] is None
    assert segmenter(head="linear").auxiliary is None
    assert segmenter().auxiliary.convolution.conv.weight.shape == (6, 24, 3, 3)


@pytest.mark.parametrize("head", ["linear", "upernet"])
def test_a_single_small_image_can_be_learnt_from(head):
    network = segmenter(head=head).train()
    logits, _ = network.training_logits(torch.randn(1, 3, 32, 32))
    logits.sum().backward()
    assert torch.isfinite(logits).all()


def test_one_value_a_channel_is_normalised_by_the_running_statistics():
    torch.manual_seed(0)
    layer = ConvNorm(3, 4, 1).train()
    layer(torch.randn(8, 3, 2, 2))
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    x = torch.randn(1, 3, 1, 1)
    found = layer(x)
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())
    torch.testing.assert_close(found, layer.eval()(x))


@torch.no_grad()
@pytest.mark.parametrize("head", ["linear", "upernet"])
@pytest.mark.parametrize("name", ["vit/16", "vit/14", "resnet18_s8", "test_convnext"])
@pytest.mark.parametrize("size", [(33, 50), (12, 70), (64, 64)])
def test_images_of_any_size(name, head, size):
    network = segmenter(name, head).eval()
    images = torch.randn(1, 3, *size)
    logits = network(images)
    assert logits.shape[-2:] == tuple(-int(-side // network.stride) for side in size)
    assert network.resize(logits, size).shape == (1, 5, *size)
    # Zeros are what is added, and nothing is moved.
    rows, columns = (-side % network.multiple for side in size)
    larger = network(F.pad(images, (0, columns, 0, rows)))
    torch.testing.assert_close(larger[..., : logits.shape[2], : logits.shape[3]], logits)


@torch.no_grad()
def test_pixels_beyond_the_edge_are_cut_off_not_squeezed_in():
    network = segmenter(head="linear").eval()
    cells = torch.arange(3.0).expand(1, 5, 2, 3)
    found = network.resize(cells, (20, 40))
    whole = F.interpolate(cells, size=(32, 48), mode="bilinear")
    assert torch.equal(found, whole[..., :20, :40])
    exact = network.resize(cells, (32, 48))
    assert torch.equal(exact, whole)


@torch.no_grad()
def test_the_final_norm_is_a_choice():
    images = torch.randn(1, 3, 32, 32)
    outputs = [segmenter(head="linear", out_norm=norm).eval()(images) for norm in (True, False)]
    assert not torch.allclose(*outputs)


def test_the_encoder_can_be_taken_out():
    network = segmenter()
    state = network.state_dict()
    own = {
        key.removeprefix("encoder."): value
        for key, value in state.items()
        if key.startswith("encoder.")
    }
    taken = encoder("vit/16")
    taken.load_state_dict(own, strict=True)
    assert all(torch.equal(taken.state_dict()[key], value) for key, value in own.items())
