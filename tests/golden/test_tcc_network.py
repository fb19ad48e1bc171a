"""TCC's base network against the published one: see data/tcc/README.md."""

import re

import numpy as np
import pytest
import torch

from timewalk.config import EncoderConfig
from timewalk.encoders import build_encoder
from timewalk.encoders.weights import keras_resnet_v2

SETS = "resnet50v2_formula"
SEEN = {
    "input",
    "eval_pool1_pool",
    "eval_conv2_block3_out",
    "eval_conv3_block4_out",
    "eval_conv4_block3_out",
}


def formula(index, tensor, shape):
    """Return a tensor of the network in Keras's shape, by the formula of the json."""
    a = np.arange(np.prod(shape))
    base = np.sin(0.37 * a + 1.3 * index + 0.11 * (a % 7))
    values = {
        "kernel": lambda: base * np.sqrt(2 / np.prod(shape[:3])),
        "bias": lambda: 0.05 * base,
        "beta": lambda: 0.05 * base,
        "gamma": lambda: 1 + 0.2 * base,
        "moving_mean": lambda: 0.1 * base,
        "moving_variance": lambda: 1 + 0.5 * base,
    }[tensor]()
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


@pytest.fixture(scope="module")
def checkpoint(golden):
    tensors = golden("tcc", f"{SETS}.json")["tensors_[i,layer,tensor,shape]"]
    return {f"{layer}/{name}": formula(i, name, shape) for i, layer, name, shape in tensors}


@pytest.fixture(scope="module")
def encoder(checkpoint):
    network = build_encoder(EncoderConfig(name="resnet50v2_conv4c"), seed=0).eval()
    network.load_state_dict(keras_resnet_v2.to_ours(checkpoint, network.state_dict()))
    return network


def test_names_and_shapes(checkpoint, encoder):
    ours = keras_resnet_v2.from_ours(encoder.state_dict())
    assert {key: x.shape for key, x in ours.items()} == {k: x.shape for k, x in checkpoint.items()}
    assert all(torch.equal(ours[key], x) for key, x in checkpoint.items())


@torch.no_grad()
def test_outputs_at_four_depths(golden, encoder):
    arrays = golden("tcc", f"{SETS}.npz")
    about = golden("tcc", f"{SETS}.json")["outputs"]
    assert arrays.keys() == SEEN == {"input", *about}
    images = torch.from_numpy(arrays["input"]).permute(0, 3, 1, 2)
    maps = {"eval_pool1_pool": encoder.stem(images)}
    x = maps["eval_pool1_pool"]
    names = sorted(SEEN - {"eval_pool1_pool", "input"})
    for name, stack in zip(names, encoder.regions(), strict=True):
        x = maps[name] = stack(x)
    assert torch.equal(encoder.dense(images), x)
    for name, found in maps.items():
        step = int(re.search(r"channels 0::(\d+)", about[name]).group(1))
        every = found.permute(0, 2, 3, 1)[..., ::step]
        np.testing.assert_allclose(every, arrays[name], rtol=1e-5, atol=1e-6, err_msg=name)
