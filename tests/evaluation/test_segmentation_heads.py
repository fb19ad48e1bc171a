"""Heads from patch features to classes of pixels, by hand."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from timewalk.evaluation.segmentation_heads import FCNHead, LinearHead, enlarged


@given(
    grid=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    size=st.integers(1, 20),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_convolution_and_resize_change_places(grid, size, seed):
    torch.manual_seed(seed)
    head, features = LinearHead(5, 3).double(), torch.randn(2, 5, *grid, dtype=torch.float64)
    published = head.classifier(enlarged(features, size))
    torch.testing.assert_close(head(features, size), published, rtol=1e-12, atol=1e-12)


def test_the_fcn_head_by_hand():
    torch.manual_seed(0)
    head, features = FCNHead(3, 4, channels=6).eval(), torch.randn(2, 3, 4, 4)
    state = head.state_dict()

    def conv(x, name):
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding="same")

    x = F.interpolate(features, (10, 10), mode="bilinear")
    y = conv(conv(x, "first").relu(), "second").relu()
    logits = conv(conv(torch.cat([x, y], 1), "joint").relu(), "classifier")
    torch.testing.assert_close(head(features, 10), logits)
    assert head.dropout.p == 0.1
    assert FCNHead(384, 21).first.weight.shape == (512, 384, 3, 3)
