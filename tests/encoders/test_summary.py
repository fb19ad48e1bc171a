"""The class token alone is the class token of the whole pass: numbers, gradients, dropped paths."""

import pytest
import torch

from timewalk.config import EncoderConfig
from timewalk.encoders import build_encoder


def gradients(encoder, call, images):
    encoder.zero_grad()
    torch.manual_seed(0)
    summary = call(images)
    summary.square().sum().backward()
    return summary.detach(), {key: p.grad.clone() for key, p in encoder.named_parameters()}


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
@pytest.mark.parametrize("size", [(32, 32), (48, 16)])
def test_vit(drop_path, size):
    keys = {"depth": 3, "width": 24, "heads": 3, "patch_size": 8, "image_size": 32}
    config = EncoderConfig(name="vit_tiny", **keys, drop_path=drop_path)
    encoder = build_encoder(config, seed=0).double()
    images = torch.randn(5, 3, *size, dtype=torch.float64)
    expected, expected_grads = gradients(encoder, lambda x: encoder(x).summary, images)
    found, found_grads = gradients(encoder, encoder.summary, images)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    for key, value in expected_grads.items():
        torch.testing.assert_close(found_grads[key], value, rtol=0, atol=1e-9, msg=key)


def test_the_bias_of_keys_changes_nothing_and_gets_no_gradient():
    keys = {"depth": 2, "width": 24, "heads": 3, "patch_size": 8, "image_size": 32}
    encoder = build_encoder(EncoderConfig(name="vit_tiny", **keys), seed=0).double()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    _, found = gradients(encoder, lambda x: encoder(x).summary, images)
    for number, block in enumerate(encoder.blocks):
        queries, of_keys, values = found[f"blocks.{number}.attn.qkv.bias"].chunk(3)
        assert queries.any()
        assert values.any()
        assert not of_keys.any()
        before = encoder(images).summary
        with torch.no_grad():
            block.attn.qkv.bias[24:48] += 3
        torch.testing.assert_close(encoder(images).summary, before, rtol=0, atol=1e-9)


def test_cnn():
    encoder = build_encoder(EncoderConfig(name="resnet18"), seed=0).eval()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(encoder.summary(images), encoder(images).summary)
