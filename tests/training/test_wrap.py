"""Fitting to the machine changes speed and memory, not numbers."""

import json
import shutil
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.training.processes import CPU, miniature, train
from timewalk.config import EncoderConfig, TrainingConfig
from timewalk.encoders import build_encoder
from timewalk.errors import UserError
from timewalk.methods import get_method
from timewalk.training.wrap import recompute, wrap


def losses(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """What torch has compiled on another processor, and kept, may give nothing but NaN here."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))


@pytest.mark.slow
def test_compiled_blocks_give_the_same_losses(tmp_path, own_cache):
    train(miniature("dino"), tmp_path / "plain")
    torch.compiler.reset()
    trainer = train(miniature("dino", compile="default"), tmp_path / "compiled")
    blocks = trainer.method.student.backbone.blocks
    assert all(block._compiled_call_impl is not None for block in blocks)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), abs=1e-4)


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.parametrize("what", ["cheap", "full"])
def test_compiled_and_recomputed(tmp_path, own_cache, what):
    train(miniature("dora"), tmp_path / "plain")
    torch.compiler.reset()
    both = miniature("dora", compile="default", activation_checkpointing=what)
    train(both, tmp_path / "both")
    assert losses(tmp_path / "both") == pytest.approx(losses(tmp_path / "plain"), abs=1e-4)


def test_deep_networks_are_compiled_to_the_last_block():
    config = miniature("dino", compile="default")
    method = get_method("dino")(config)
    blocks = [block for m in (method.student, method.teacher) for block in m.backbone.blocks]
    # Not by monkeypatch, which would leave torch without that setting.
    with torch._dynamo.config.patch(recompile_limit=8):
        wrap(method, config.training, CPU)
        assert torch._dynamo.config.recompile_limit >= 8 * len(blocks)


def test_no_compiler_is_one_sentence(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    config = miniature("dino", compile="default")
    with pytest.raises(UserError, match=r"no C\+\+ compiler"):
        wrap(get_method("dino")(config), config.training, CPU)


def test_full_recomputation_keeps_fewer_activations():
    images = torch.randn(4, 3, 224, 224)
    kept = {}
    for what in ("off", "full"):
        encoder = build_encoder(EncoderConfig(name="vit_tiny", depth=3), seed=0)
        if what != "off":
            for region in encoder.regions():
                recompute(region, what)
        bytes_kept = 0

        def pack(tensor):
            nonlocal bytes_kept
            bytes_kept += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            encoder(images).summary.sum().backward()
        kept[what] = bytes_kept
        assert all(p.grad is not None for p in encoder.parameters())
    assert kept["full"] < 0.5 * kept["off"]


class Counted(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.name()] += 1
        return func(*args, **(kwargs or {}))


def test_cheap_recomputation_repeats_no_product():
    images = torch.randn(2, 3, 32, 32)
    counts = {}
    for what in ("off", "cheap", "full"):
        keys = {"patch_size": 8, "image_size": 32, "depth": 2, "width": 24, "heads": 3}
        encoder = build_encoder(EncoderConfig(name="vit_tiny", **keys), seed=0)
        if what != "off":
            for region in encoder.regions():
                recompute(region, what)
        with Counted() as counted:
            encoder(images).summary.sum().backward()
        counts[what] = counted.counts
    for name in ("aten::addmm", "aten::mm"):
        assert counts["cheap"][name] == counts["off"][name]
    assert counts["full"]["aten::addmm"] > counts["off"]["aten::addmm"]
    for name in ("aten::gelu", "aten::native_layer_norm"):
        assert counts["cheap"][name] > counts["off"][name]


def test_batch_normalisations_are_not_recomputed(caplog):
    encoder = build_encoder(EncoderConfig(name="resnet18"), seed=0)
    network = nn.ModuleDict({"encoder": encoder})
    settings = TrainingConfig(activation_checkpointing="full")
    loss = wrap(network, settings, CPU)
    assert "batch normalisations" in caplog.text
    encoder.train()
    before = encoder.body.bn1.num_batches_tracked.item()
    encoder(torch.randn(2, 3, 64, 64)).summary.sum().backward()
    assert encoder.body.bn1.num_batches_tracked.item() == before + 1
    assert loss.method is network


def test_convolutions_keep_their_channels_last():
    method = get_method("random").Config(method="random", encoder={"name": "resnet18"})
    network = nn.ModuleDict({"encoder": build_encoder(method.encoder, seed=0)})
    wrap(network, TrainingConfig(), CPU)
    weight = network["encoder"].body.layer1[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert len(network["encoder"].regions()) > 4


def test_a_finished_training_that_was_killed_draws_as_one_that_was_not(tmp_path):
    config = miniature("crw", max_steps=1)
    convolutions = EncoderConfig(name="resnet18_s8", image_size=config.encoder.image_size)
    config = config.model_copy(update={"encoder": convolutions})
    first, again = train(config, tmp_path), train(config, tmp_path)
    assert again.first == again.total == 1
    images = torch.randn(2, 3, 64, 64)
    layouts = [
        {name: weight.stride() for name, weight in trainer.method.named_parameters()}
        for trainer in (first, again)
    ]
    assert layouts[0] == layouts[1]
    summaries = [trainer.method.encoder.eval()(images).summary for trainer in (first, again)]
    assert torch.equal(*summaries)
