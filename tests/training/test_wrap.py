"""Fitting to the machine changes speed and memory, not numbers."""

import json
import shutil

import pytest
import torch
from torch import nn

from tests.training.processes import CPU, miniature, train
from timewalk.config import EncoderConfig, TrainingConfig
from timewalk.encoders import build_encoder
from timewalk.errors import UserError
from timewalk.methods import get_method
from timewalk.training import wrap as module
from timewalk.training.wrap import wrap


def losses(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.slow
def test_compiled_blocks_give_the_same_losses(tmp_path):
    train(miniature("dino"), tmp_path / "plain")
    torch.compiler.reset()
    trainer = train(miniature("dino", compile="default"), tmp_path / "compiled")
    blocks = trainer.method.student.backbone.blocks
    assert all(block._compiled_call_impl is not None for block in blocks)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), abs=1e-4)


@pytest.mark.slow
def test_compiled_and_recomputed(tmp_path):
    train(miniature("dora"), tmp_path / "plain")
    torch.compiler.reset()
    both = miniature("dora", compile="default", activation_checkpointing=True)
    train(both, tmp_path / "both")
    assert losses(tmp_path / "both") == pytest.approx(losses(tmp_path / "plain"), abs=1e-4)


def test_no_compiler_is_one_sentence(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    config = miniature("dino", compile="default")
    with pytest.raises(UserError, match=r"no C\+\+ compiler"):
        wrap(get_method("dino")(config), config.training, CPU)


def test_recomputation_keeps_fewer_activations():
    images = torch.randn(4, 3, 224, 224)
    kept = {}
    for recompute in (False, True):
        encoder = build_encoder(EncoderConfig(name="vit_tiny", depth=3), seed=0)
        if recompute:
            for region in encoder.regions():
                module._recompute(region)
        bytes_kept = 0

        def pack(tensor):
            nonlocal bytes_kept
            bytes_kept += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            encoder(images).summary.sum().backward()
        kept[recompute] = bytes_kept
        assert all(p.grad is not None for p in encoder.parameters())
    assert kept[True] < 0.5 * kept[False]


def test_convolutions_keep_their_channels_last():
    method = get_method("random").Config(method="random", encoder={"name": "resnet18"})
    network = nn.ModuleDict({"encoder": build_encoder(method.encoder, seed=0)})
    wrap(network, TrainingConfig(), CPU)
    weight = network["encoder"].body.layer1[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert len(network["encoder"].regions()) > 4
