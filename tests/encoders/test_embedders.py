"""TCC's embedders, and the head file that holds them."""

import json
import math
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from timewalk.encoders import save_head
from timewalk.encoders.embedders import (
    ClipDropout,
    ConvEmbedder,
    ConvGRUEmbedder,
    TrainedEmbedder,
    build_embedder,
    embedder_tensors,
    load_embedder,
    side_of_frames,
)
from timewalk.errors import UserError

SMALL = {"layers": ((12, 3, True), (10, 3, True)), "size": 8}
ABOUT = {"image_size": 64, "context": 2, "context_step": 15, "sampling": {"frames": 20}}


def conv(seed=0, **keys):
    spec = {"kind": "conv", "inputs": 6, **SMALL, "fc": ((9, True), (7, True)), **keys}
    return build_embedder(spec, seed)


def gru(seed=0, **keys):
    return build_embedder({"kind": "convgru", "inputs": 6, **SMALL, "gru": (8,), **keys}, seed)


def maps(clips=3, frames=5, context=2, side=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(clips, frames, context, 6, side, side, generator=generator)


def spread(embedder, seed=2):
    """Move normalisations away from mean 0 and variance 1, so that eval mode tests them."""
    embedder.train()
    embedder(maps(seed=seed, context=1 if isinstance(embedder, ConvGRUEmbedder) else 2) * 3 + 1)
    return embedder.eval()


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"flatten": "avg"},
        {"flatten": "flatten", "map_size": 4},
        {"flatten": "flatten", "map_size": [4, 4]},
        {"fc": []},
        {"layers": []},
        {"batch_norm": False},
        {"layers": ((5, 1, False),)},
    ],
)
def test_shapes_and_specs(keys):
    embedder = conv(**keys)
    embeddings = embedder(maps())
    assert embeddings.shape == (3, 5, 8)
    assert json.loads(json.dumps(embedder.spec)) == embedder.spec
    again = build_embedder(embedder.spec, seed=0)
    assert again.spec == embedder.spec
    assert torch.equal(again(maps()), embeddings)
    assert (embedder.spec["kind"], embedder.spec["inputs"], embedder.size) == ("conv", 6, 8)


def test_published_sizes():
    embedder = ConvEmbedder(1024)
    kernels = 27 * 1024 * 512 + 512 + 27 * 512 * 512 + 512
    dense = 2 * (512 * 512 + 512) + 512 * 128 + 128
    assert sum(p.numel() for p in embedder.parameters()) == kernels + dense + 4 * 512
    assert len(embedder.regularised()) == 10
    assert sum(p.numel() for p in embedder.regularised()) == kernels + dense
    layers = [m for m in embedder.modules() if isinstance(m, nn.BatchNorm3d)]
    assert {(layer.eps, layer.momentum) for layer in layers} == {(1e-3, 0.01)}
    assert embedder.spec["fc_dropout"] == 0.1


def test_order_of_context_and_frames():
    """A frame's embedding is that of its own context, and of its order."""
    embedder = spread(conv())
    both = maps()
    embeddings = embedder(both)
    torch.testing.assert_close(embedder(both[1:2, 3:4])[0, 0], embeddings[1, 3])
    assert not torch.allclose(embedder(both.flip(2)), embeddings)


@torch.no_grad()
def test_values_of_a_small_network():
    embedder = conv(layers=((4, 3, True),), fc=((5, True),), batch_norm=False)
    x = maps(1, 1)
    kernel, bias = embedder.convolutions[0][0].parameters()
    # The oldest frame meets taps 1 and 2 in time, the newest 0 and 1.
    older, newer = x[0, 0]
    hidden = [
        F.conv2d(older[None], kernel[:, :, 1 - t], padding=1)
        + F.conv2d(newer[None], kernel[:, :, 2 - t], padding=1)
        + bias[:, None, None]
        for t in (0, 1)
    ]
    pooled = torch.stack(hidden).relu().amax(dim=(0, 1, 3, 4))
    expected = embedder.embedding(embedder.dense[0](pooled).relu())
    torch.testing.assert_close(embedder(x)[0, 0], expected)


def test_fresh_weights():
    embedder = conv(layers=((64, 3, True), (64, 3, True)))
    kernel = embedder.convolutions[1][0].weight
    deviation = math.sqrt(2 / (64 * 27))
    assert kernel.std().item() == pytest.approx(deviation, rel=0.02)
    assert kernel.abs().max().item() <= 2 * deviation / 0.8796
    limit = math.sqrt(6 / (64 + 9))
    assert embedder.dense[0].weight.abs().max().item() == pytest.approx(limit, rel=0.02)
    assert all(p.abs().max() == 0 for p in embedder.regularised() if p.ndim == 1)
    recurrent = gru().gru[0].weight_hh_l0
    torch.testing.assert_close(recurrent.T @ recurrent, torch.eye(8), atol=1e-5, rtol=0)


@pytest.mark.parametrize("build", [conv, gru])
def test_normalised(build):
    x = maps(context=1 if build is gru else 2)
    lengths = build(normalise=True)(x).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones(3, 5))


@pytest.mark.parametrize("base", [{}, {"base_dropout_spatial": True}])
def test_dropout_of_a_clip_depends_on_its_seed_alone(base):
    embedder = spread(conv(base_dropout=0.3, fc_dropout=0.5, **base))
    x = maps()
    together = embedder(x, seeds=[5, 6, 7])
    torch.testing.assert_close(embedder(x[1:2], seeds=[6])[0], together[1])
    torch.testing.assert_close(embedder(x.flip(0), seeds=torch.tensor([7, 6, 5])).flip(0), together)
    other = embedder(x, seeds=[5, 8, 7])
    assert torch.equal(other[0], together[0])
    assert not torch.allclose(other[1], together[1])
    assert not torch.allclose(embedder(x), together)


def test_dropout_of_the_recurrent_embedder():
    embedder = spread(gru(dropout=0.3))
    x = maps(context=1)
    together = embedder(x, seeds=[5, 6, 7])
    torch.testing.assert_close(embedder(x[2:], seeds=[7])[0], together[2])
    assert not torch.allclose(embedder(x), together)


def test_dropout_keeps_the_mean_and_drops_whole_channels():
    x = torch.ones(4, 500, 2, 3, 3)
    dropped = ClipDropout([1, 2])(x, 0.25)
    assert set(dropped.unique().tolist()) == {0, np.float32(4 / 3).item()}
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)
    channels = ClipDropout([1, 2])(x, 0.25, channels=True)
    assert torch.equal(channels.amax(dim=(2, 3, 4)), channels.amin(dim=(2, 3, 4)))
    assert (channels[..., 0, 0, 0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.05)
    assert ClipDropout([1, 2])(x, 0.0) is x
    assert ClipDropout(None)(x, 0.5) is x


@pytest.mark.parametrize("build", [conv, gru])
@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_streams_of_chunks_equal_whole_videos(build, chunk):
    embedder = spread(build())
    video = maps(1, 7, context=1 if build is gru else 2, seed=9)
    parts, state = [], None
    for start in range(0, 7, chunk):
        embeddings, state = embedder.stream(video[0, start : start + chunk], state)
        parts.append(embeddings)
    torch.testing.assert_close(torch.cat(parts), embedder(video)[0])


def test_recurrent_embeddings_depend_on_the_frames_before():
    embedder = spread(gru(gru=(5, 8)))
    x = maps(context=1)
    changed = x.clone()
    changed[:, 2] += 1
    difference = (embedder(x) - embedder(changed)).abs().amax(dim=(0, 2))
    assert (difference[:2] == 0).all()
    assert (difference[2:] > 0).all()


def test_the_recurrent_cell():
    """h = z h + (1 - z) tanh(W x + b + r (U h + c)), as Keras's `reset_after`."""
    layer = gru().gru[0]
    x, h = torch.randn(1, 1, 10), torch.randn(1, 1, 8)
    for bias in (layer.bias_ih_l0, layer.bias_hh_l0):
        nn.init.normal_(bias)
    inputs = F.linear(x[0], layer.weight_ih_l0, layer.bias_ih_l0).chunk(3, dim=-1)
    before = F.linear(h[0], layer.weight_hh_l0, layer.bias_hh_l0).chunk(3, dim=-1)
    reset, update = ((inputs[i] + before[i]).sigmoid() for i in (0, 1))
    candidate = torch.tanh(inputs[2] + reset * before[2])
    expected = update * h[0] + (1 - update) * candidate
    torch.testing.assert_close(layer(x, h)[0][0], expected)


def test_what_the_l2_term_counts():
    assert [p.ndim for p in conv().regularised()] == [5, 1, 5, 1, 2, 1, 2, 1, 2, 1]
    assert [p.ndim for p in gru().regularised()] == [4, 1, 4, 1]


def test_unequal_sizes_are_refused():
    with pytest.raises(UserError, match=r"gru \[5\] .* 8 units; make both numbers equal"):
        gru(gru=(5,))
    with pytest.raises(ValueError, match="needs map_size"):
        conv(flatten="flatten")


def test_half_precision_ends_in_full():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for build, context in ((conv, 2), (gru, 1)):
            assert build()(maps(context=context)).dtype == torch.float32
    assert conv().double()(maps().double()).dtype == torch.float64


@pytest.mark.parametrize("build", [conv, gru])
def test_head_file(tmp_path, build):
    embedder = spread(build())
    objective = {"fc.weight": torch.ones(2, 3)}
    about = {**ABOUT, "objective": {"name": "sal"}}
    save_head(embedder_tensors(embedder, objective, about), tmp_path)
    found = load_embedder(tmp_path)
    assert found.about == {**about, "embedder": embedder.spec}
    assert found.objective.keys() == {"fc.weight"}
    assert torch.equal(found.objective["fc.weight"], torch.ones(2, 3))
    assert not found.embedder.training
    x = maps(context=1 if build is gru else 2)
    assert torch.equal(found.embedder(x), embedder(x))


def test_runs_without_an_embedder(tmp_path):
    assert load_embedder(tmp_path) is None
    save_head({"0.weight": torch.ones(2)}, tmp_path)
    assert load_embedder(tmp_path) is None


def without_about(tensors):
    return {key: x for key, x in tensors.items() if key != "about"}


def with_text(text):
    return lambda tensors: {**tensors, "about": torch.tensor(list(text), dtype=torch.uint8)}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without_about, "about"),
        (with_text(b"{"), "cannot be built"),
        (with_text(b"\xff"), "cannot be built"),
        (with_text(b"[1]"), "cannot be built"),
        (with_text(b'{"embedder": 3}'), "cannot be built"),
        (with_text(b'{"embedder": {"kind": "x"}}'), "cannot be built"),
        (with_text(b'{"embedder": {"kind": "conv", "inputs": 6, "many": 1}}'), "many"),
        (with_text(b'{"embedder": {"kind": "conv", "inputs": 6}}'), "of another shape: conv"),
        (
            lambda tensors: {k: x for k, x in tensors.items() if "embedding" not in k},
            "missing or unknown: embedding.bias, embedding.weight",
        ),
    ],
)
def test_damaged_heads(tmp_path, damage, words):
    save_head(damage(embedder_tensors(conv(), {}, ABOUT)), tmp_path)
    with pytest.raises(UserError, match=rf"head\.safetensors of .*{re.escape(words)}.*train"):
        load_embedder(tmp_path)


def test_the_side_of_frames():
    def trained(flatten, map_size=None):
        embedder = ConvEmbedder(4, size=8, flatten=flatten, map_size=map_size)
        return TrainedEmbedder(embedder, {"image_size": 50}, {})

    assert [side_of_frames(None, wanted) for wanted in (None, 96)] == [224, 96]
    assert [side_of_frames(trained("max"), wanted) for wanted in (None, 96)] == [50, 96]
    assert [side_of_frames(trained("flatten", 3), wanted) for wanted in (None, 50)] == [50, 50]
    with pytest.raises(
        UserError, match="frames of 50 pixels alone, but the set's image_size is 64"
    ):
        side_of_frames(trained("flatten", 3), 64)


def test_a_run_that_does_not_exist(tmp_path):
    with pytest.raises(UserError, match=r"nothing does not exist: train the run, or correct the"):
        load_embedder(tmp_path / "nothing")
