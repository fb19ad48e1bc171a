import pytest

from timewalk.config import EncoderConfig
from timewalk.encoders import build_encoder
from timewalk.encoders.freezing import choose_what_learns
from timewalk.errors import UserError

VIT = {"name": "vit_tiny", "width": 24, "depth": 1, "heads": 4, "patch_size": 8, "image_size": 32}


@pytest.mark.parametrize(
    ("config", "norm"), [(VIT, "norm"), ({"name": "resnet18_s8"}, "bn"), ({"name": "vgg_m"}, "")]
)
def test_what_learns(config, norm):
    encoder = build_encoder(EncoderConfig(**config), 0)
    parameters = dict(encoder.named_parameters())

    def learning(mode):
        choose_what_learns(encoder, mode)
        return {name for name, parameter in parameters.items() if parameter.requires_grad}

    everything = learning("train_all")
    assert everything == set(parameters)
    some = learning("only_bn")
    assert 0 < len(some) < len(everything)
    assert all(parameters[name].ndim == 1 for name in some)
    assert all(norm in name or "downsample" in name for name in some)
    assert learning("frozen") == set()


def test_a_network_without_normalisation():
    encoder = build_encoder(EncoderConfig(name="vgg11"), 0)
    with pytest.raises(UserError, match="train_base is only_bn, but the encoder has no normalisa"):
        choose_what_learns(encoder, "only_bn")
