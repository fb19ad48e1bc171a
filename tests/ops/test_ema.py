import pytest
import torch

from timewalk.ops.ema import ema_update_


def test_targets_follow_in_order():
    targets, sources = [torch.zeros(2), torch.ones(3, 1)], [torch.ones(2), torch.zeros(3, 1)]
    ema_update_(targets, sources, 0.9)
    torch.testing.assert_close(targets, [torch.full((2,), 0.1), torch.full((3, 1), 0.9)])
    assert torch.equal(sources[0], torch.ones(2))


def test_momentum_one_changes_nothing():
    target = torch.rand(4)
    before = target.clone()
    ema_update_([target], [torch.rand(4)], 1.0)
    assert torch.equal(target, before)


def test_networks_that_differ_are_refused():
    with pytest.raises(ValueError, match="differ"):
        ema_update_([torch.zeros(2)], [torch.zeros(3)], 0.5)
    with pytest.raises(ValueError, match="differ"):
        ema_update_([torch.zeros(2)], [], 0.5)
