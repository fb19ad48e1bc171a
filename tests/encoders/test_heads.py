import torch
from torch import nn
from torch.nn import functional as F

from timewalk.encoders.heads import DinoHead, WeightNormLinear, multi_crop


def test_weight_norm_is_torchs():
    layer = WeightNormLinear(5, 7, train_norm=True)
    linear = nn.Linear(5, 7, bias=False)
    linear.weight.data.copy_(layer.weight_v)
    reference = nn.utils.parametrizations.weight_norm(linear)
    reference.parametrizations.weight.original0.data.fill_(1)
    x = torch.randn(3, 5)
    torch.testing.assert_close(layer(x), reference(x))


def test_logits_are_cosines_while_the_gain_is_one():
    head = DinoHead(8, 16, hidden=12, bottleneck=6)
    logits = head(torch.randn(20, 8))
    assert logits.abs().max() <= 1 + 1e-6
    assert not head.last_layer.weight_g.requires_grad
    assert DinoHead(8, 16, hidden=12, norm_last_layer=False).last_layer.weight_g.requires_grad


def test_logits_stay_in_float32_under_autocast():
    head = DinoHead(8, 16, hidden=12, bottleneck=6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(torch.randn(2, 8)).dtype == torch.float32


def test_crops_of_one_size_pass_together():
    sizes = []

    def backbone(images):
        sizes.append(tuple(images.shape))
        return images.mean(dim=(2, 3))

    crops = [torch.randn(2, 3, s, s) for s in (8, 8, 4, 4, 4)]
    found = multi_crop(backbone, nn.Identity(), crops)
    assert sizes == [(4, 3, 8, 8), (6, 3, 4, 4)]
    torch.testing.assert_close(
        found, torch.cat([F.adaptive_avg_pool2d(c, 1)[..., 0, 0] for c in crops])
    )


def test_a_head_of_half_precision():
    torch.manual_seed(0)
    head, x = DinoHead(24, 32, hidden=16, bottleneck=8), torch.randn(3, 24)
    expected = head(x)
    assert (head.half()(x.half()).float() - expected).abs().max() < 0.01
