"""Keras's `.h5` files: written here in its layout, read as `encoder.weights`."""

import logging
import re
import sys

import numpy as np
import pytest
import timm
import torch

from tests.encoders.keras_files import write_h5
from timewalk.config import EncoderConfig
from timewalk.encoders import build_encoder
from timewalk.encoders.weights import keras_resnet_v2
from timewalk.errors import UserError

NAME = "resnet50v2_conv4c"
REST = {
    "conv4_block4_preact_bn/gamma": np.ones(1024, np.float32),
    "conv5_block1_1_conv/kernel": np.zeros((1, 1, 4, 2), np.float32),
    "post_bn/beta": np.zeros(2, np.float32),
    "probs/kernel": np.zeros((2, 3), np.float32),
}


def build(path=None, seed=0, name=NAME, **keys):
    weights = None if path is None else str(path)
    return build_encoder(EncoderConfig(name=name, weights=weights, **keys), seed)


@pytest.fixture(scope="module")
def source():
    encoder = build(seed=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in encoder.state_dict().values():
            if value.is_floating_point() and value.ndim == 1:
                value.uniform_(0.5, 1.5, generator=generator)
    return encoder


@pytest.fixture(scope="module")
def published(source):
    return {**keras_resnet_v2.from_ours(source.state_dict()), **REST}


@pytest.mark.parametrize("inside", [None, "model_weights"])
def test_there_and_back(tmp_path, source, published, inside, caplog):
    path = tmp_path / "resnet50v2_notop.h5"
    write_h5(path, published, inside)
    with caplog.at_level(logging.INFO):
        loaded = build(path)
    expected = source.state_dict()
    counters = [key for key in expected if key.endswith("num_batches_tracked")]
    for key, value in loaded.state_dict().items():
        assert key in counters or torch.equal(value, expected[key]), key
    assert len(expected) - len(counters) == 168
    assert "weights read as Keras ResNet50V2's" in caplog.text
    assert f"{len(REST)} tensors not used: {', '.join(sorted(REST))}" in caplog.text


def test_names_and_axes(source, published):
    own = source.state_dict()
    assert published["conv1_conv/kernel"].shape == (7, 7, 3, 64)
    kernel = published["conv3_block4_2_conv/kernel"]
    assert kernel[2, 0, 5, 7] == own["conv3.3.conv2.weight"][7, 5, 2, 0]
    assert torch.equal(published["conv2_block1_0_conv/bias"], own["conv2.0.conv0.bias"])
    variance = published["conv4_block3_1_bn/moving_variance"]
    assert torch.equal(variance, own["conv4.2.bn1.running_var"])


def test_missing_tensors_are_named(tmp_path, published):
    short = {k: v for k, v in published.items() if not k.startswith("conv4_block3_3")}
    write_h5(tmp_path / "short.h5", short)
    with pytest.raises(UserError, match=r"short\.h5 .*2 tensors are missing: conv4\.2\.conv3\.b"):
        build(tmp_path / "short.h5")


def test_wrong_shapes_are_named(tmp_path, published):
    wrong = {**published, "conv1_conv/bias": torch.zeros(3)}
    write_h5(tmp_path / "wrong.h5", wrong)
    with pytest.raises(UserError, match=r"'conv1\.bias' is \(3,\) instead of \(64,\)"):
        build(tmp_path / "wrong.h5")


def test_other_encoders_and_parts_are_refused(tmp_path):
    write_h5(tmp_path / "keras.h5", {"conv1_conv/kernel": np.zeros((7, 7, 3, 64), np.float32)})
    with pytest.raises(UserError, match=r"keras\.h5 holds a ResNet of Keras, .*resnet50v2_conv4c"):
        build(tmp_path / "keras.h5", name="resnet18_s8")
    with pytest.raises(UserError, match=r"leave out encoder\.weights_part"):
        build(tmp_path / "keras.h5", weights_part="teacher")


def test_timms_resnet_v2_is_refused(tmp_path):
    state = timm.create_model("resnetv2_50", num_classes=0).state_dict()
    for prefix in ("", "module."):
        torch.save({prefix + key: value for key, value in state.items()}, tmp_path / "v2.pth")
        with pytest.raises(UserError, match=r"v2\.pth holds a ResNet-V2 of PyTorch, whose strides"):
            build(tmp_path / "v2.pth")


def test_damaged_and_other_files(tmp_path):
    (tmp_path / "cut.h5").write_bytes(b"\x89HDF\r\n\x1a\n cut")
    with pytest.raises(UserError, match=r"cut\.h5 cannot be read as weights"):
        build(tmp_path / "cut.h5")
    import h5py

    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.create_group("layers/conv2d/vars")["0"] = np.zeros(3)
    with pytest.raises(UserError, match=r"other\.h5 has no layers with .*'weight_names'"):
        build(tmp_path / "other.h5")


def test_missing_h5py(tmp_path, monkeypatch):
    (tmp_path / "keras.h5").touch()
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=re.escape("pip install 'timewalk[keras]'")):
        build(tmp_path / "keras.h5")


def test_deeper_networks_of_keras_are_refused(tmp_path, published):
    kernel = next(name for name in published if name.startswith("conv4_block3_1_conv/"))
    deeper = kernel.replace("block3", "block7")
    write_h5(tmp_path / "v2.h5", {**published, deeper: published[kernel]})
    with pytest.raises(UserError, match=r"v2\.h5 holds Keras's ResNet101V2 or ResNet152V2"):
        build(tmp_path / "v2.h5")
