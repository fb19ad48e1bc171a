import copy

import pytest
import timm
import torch
from torch import nn

from timewalk.config import EncoderConfig
from timewalk.encoders import build_encoder
from timewalk.encoders.vit import ViT, probe_features

TINY = {"width": 24, "depth": 3, "heads": 4, "patch_size": 8, "image_size": 32}


@pytest.fixture
def vit():
    torch.manual_seed(0)
    return ViT(**TINY).eval()


@torch.no_grad()
def test_small_is_timms_network_and_gives_its_output():
    ours = build_encoder(EncoderConfig(name="vit_small"), seed=3).eval()
    theirs = timm.create_model("vit_small_patch16_224", num_classes=0).eval()
    state = ours.state_dict()
    assert len(state) == 150
    theirs.load_state_dict(state, strict=True)
    images = torch.randn(1, 3, 224, 224)
    features = ours(images)
    torch.testing.assert_close(features.summary, theirs(images), rtol=0, atol=2e-5)
    assert features.summary.shape == (1, 384)
    assert features.patches.shape == (1, 384, 14, 14)


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 32), (16, 16), (24, 40), (40, 24), (104, 96)])
def test_any_multiple_of_the_patch(vit, size):
    features = vit(torch.randn(2, 3, *size))
    assert features.patches.shape == (2, 24, size[0] // 8, size[1] // 8)
    assert features.summary.shape == (2, 24)


def test_other_sizes_are_refused_with_a_remedy(vit):
    with pytest.raises(ValueError, match="does not divide"):
        vit(torch.zeros(1, 3, 30, 32))


@torch.no_grad()
def test_only_what_is_asked_for_comes_and_it_is_the_same(vit):
    images = torch.randn(4, 3, 32, 32)
    plain = vit.tokens(images)
    assert plain.queries is None
    assert plain.keys is None
    assert plain.cls_attention is None
    asked = vit.tokens(
        images, queries=slice(None, None, 2), keys=True, cls_attention=slice(None, None, 2)
    )
    torch.testing.assert_close(asked.final, plain.final)
    assert asked.queries.shape == (2, 16, 24)
    assert asked.keys.shape == (4, 16, 24)
    assert asked.cls_attention.shape == (2, 4, 16)
    whole = vit.last_attention(images)
    torch.testing.assert_close(whole.sum(-1), torch.ones(4, 4, 17))
    torch.testing.assert_close(asked.cls_attention, whole[::2, :, 0, 1:])
    # Attention follows from queries and keys: heads lie side by side.
    q = asked.queries.unflatten(-1, (4, 6)).transpose(1, 2)
    k = asked.keys[::2].unflatten(-1, (4, 6)).transpose(1, 2)
    share = (q @ k.transpose(-2, -1) / 6**0.5).softmax(-1)
    patches = whole[::2, :, 1:, 1:]
    torch.testing.assert_close(share, patches / patches.sum(-1, keepdim=True))


@torch.no_grad()
def test_named_variants(vit):
    images = torch.randn(2, 3, 16, 24)
    tokens = vit.tokens(images, keys=True)
    torch.testing.assert_close(vit.keys(images).flatten(2).mT, tokens.keys)
    before = vit.patches_before_norm(images)
    torch.testing.assert_close(vit.norm(before.flatten(2).mT), tokens.patches)
    assert vit.cls_attention(images).shape == (2, 4, 2, 3)
    assert vit.last_blocks(images, 2).shape == (2, 2, 7, 24)
    torch.testing.assert_close(vit.last_blocks(images, 1)[0], tokens.final)
    assert probe_features(vit, images, 2, average=False).shape == (2, 48)
    with pytest.raises(ValueError, match="one block"):
        probe_features(vit, images, 2, average=True)


def test_initialisation_and_seed():
    config = EncoderConfig(name="vit_tiny", **{**TINY, "width": 48})
    before = torch.get_rng_state()
    one, two, other = (build_encoder(config, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for key, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[key])
    assert not torch.equal(one.pos_embed, other.pos_embed)
    assert one.cls_token.abs().max() > 1e-3
    for module in one.modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.2)
            assert not module.bias.any()
        if isinstance(module, nn.LayerNorm):
            assert module.eps == 1e-6


def test_drop_path_rises_over_the_blocks_and_only_in_training():
    vit = ViT(**TINY, drop_path=0.4)
    assert [getattr(b.drop_path1, "drop_prob", 0.0) for b in vit.blocks] == [
        0.0,
        pytest.approx(0.2),
        pytest.approx(0.4),
    ]
    images = torch.randn(8, 3, 32, 32)
    assert not torch.equal(vit(images).summary, vit(images).summary)
    vit.eval()
    assert torch.equal(vit(images).summary, vit(images).summary)


def test_gradients_reach_everything(vit):
    images = torch.randn(2, 3, 16, 16)
    vit(images).summary.square().sum().backward()
    assert all(p.grad is not None for p in vit.parameters())


def test_keys_alone_are_the_keys_beside_the_tokens(vit):
    images, weights = torch.randn(2, 3, 24, 40), torch.randn(2, 24, 3, 5)
    vit.learn_from_keys()
    learning = [p for p in vit.parameters() if p.requires_grad]
    beside = vit.tokens(images, keys=True).keys.mT.unflatten(-1, (3, 5))
    found = [vit.keys(images), beside]
    torch.testing.assert_close(*found)
    gradients = [torch.autograd.grad((weights * keys).sum(), learning) for keys in found]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_keys_need_nothing_that_comes_after_them(vit):
    images = torch.randn(2, 3, 16, 16)
    expected = vit.keys(images)
    last = vit.blocks[-1]
    for module in (last.attn.proj, last.norm2, last.mlp, vit.norm):
        for parameter in module.parameters():
            parameter.data.fill_(torch.nan)
    # Nor the last block's queries and values.
    last.attn.qkv.weight.data.unflatten(0, (3, -1))[::2] = torch.nan
    assert torch.equal(vit.keys(images), expected)


def test_what_learns_from_keys(vit):
    own = vit.state_dict()
    vit.learn_from_keys()
    assert vit.state_dict().keys() == own.keys()
    after = ("blocks.2.attn.proj.", "blocks.2.norm2.", "blocks.2.mlp.", "norm.")
    resting = {name for name, p in vit.named_parameters() if not p.requires_grad}
    assert resting == {name for name in own if name.startswith(after)}
    vit.keys(torch.randn(2, 3, 16, 16)).square().sum().backward()
    for name, parameter in vit.named_parameters():
        assert (parameter.grad is None) == (name in resting), name
    for block in vit.blocks:
        q, k, v = block.attn.qkv.bias.grad.unflatten(0, (3, -1))
        last = block is vit.blocks[-1]
        # Of the last block the keys alone matter; of the others, all but the keys' bias.
        assert bool(k.any()) == last
        assert bool(q.any()) == bool(v.any()) == (not last)


def test_a_copy_learns_from_keys_as_well(vit):
    copy.deepcopy(vit).learn_from_keys()
    vit.keys(torch.randn(2, 3, 16, 16)).square().sum().backward()
    assert not vit.blocks[-1].attn.qkv.bias.grad.any(), "the original's keys keep their rule"
    taught = copy.deepcopy(vit)
    taught.learn_from_keys()
    taught.zero_grad()
    taught.keys(torch.randn(2, 3, 16, 16)).square().sum().backward()
    assert taught.blocks[-1].attn.qkv.bias.grad.any()
