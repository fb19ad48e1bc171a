import pytest

from tests.encoders.dense.families import FAMILIES, encoder
from timewalk.config import EncoderConfig
from timewalk.encoders import Encoder, build_encoder
from timewalk.encoders.dense.layers import layer_numbers


def test_a_vit_of_twelve_blocks_has_fourteen_layers():
    vit = build_encoder(EncoderConfig(name="vit_tiny", image_size=32), seed=0)
    layers, count = layer_numbers(vit)
    assert count == 14
    first = {"pos_embed", "cls_token", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert {name for name, layer in layers.items() if layer == 0} == first
    assert {name for name, layer in layers.items() if layer == 13} == {"norm.weight", "norm.bias"}
    for block in range(12):
        inside = {name for name in layers if name.startswith(f"blocks.{block}.")}
        assert {name for name, layer in layers.items() if layer == block + 1} == inside


def test_layers_of_a_resnet():
    layers, count = layer_numbers(encoder("resnet18_s8"))
    assert count == 6
    assert layers["conv1.weight"] == layers["bn1.bias"] == 0
    assert layers["layer1.0.conv1.weight"] == 1
    assert layers["layer4.1.bn2.bias"] == 4


@pytest.mark.parametrize(
    ("name", "container", "stages", "stem", "behind"),
    [
        ("test_resnet", "layer", 4, {"conv1", "bn1"}, set()),
        ("test_convnext", "stages.", 4, {"stem"}, {"head"}),
        ("tf_efficientnet_lite0", "blocks.", 7, {"conv_stem", "bn1"}, {"conv_head", "bn2"}),
        ("regnetx_002", "s", 4, {"stem"}, set()),
    ],
)
def test_layers_of_timms_networks(name, container, stages, stem, behind):
    layers, count = layer_numbers(build_encoder(EncoderConfig(name=name), seed=0))
    assert count == stages + 2
    parts = {
        layer: {k.split(".")[1] for k, x in layers.items() if x == layer}
        for layer in (0, stages + 1)
    }
    assert parts == {0: stem, stages + 1: behind}
    first = 1 if container in ("layer", "s") else 0
    for stage in range(stages):
        prefix = f"body.{container}{first + stage}."
        inside = {key for key in layers if key.startswith(prefix)}
        assert inside
        assert {key for key, layer in layers.items() if layer == stage + 1} == inside


def test_a_network_of_one_body_is_one_stage():
    layers, count = layer_numbers(build_encoder(EncoderConfig(name="vgg11"), seed=0))
    assert count == 4
    assert layers["body.features.0.weight"] == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_has_a_layer_and_layers_rise(name):
    network = encoder(name)
    layers, count = layer_numbers(network)
    assert list(layers) == [name for name, _ in network.named_parameters()]
    assert list(layers.values()) == sorted(layers.values())
    assert set(layers.values()) <= set(range(count))


def test_without_regions_there_is_one_layer():
    class Plain(Encoder):
        def __init__(self):
            super().__init__()
            self.inner = encoder("test_convnext").body

    layers, count = layer_numbers(Plain())
    assert (set(layers.values()), count) == ({1}, 2)
