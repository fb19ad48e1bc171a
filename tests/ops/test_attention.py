import torch

from timewalk.ops.attention import keep_mass


def test_the_largest_values_that_hold_the_share_are_kept():
    attention = torch.tensor([[0.1, 0.5, 0.05, 0.35], [1.0, 1.0, 1.0, 7.0]])
    assert keep_mass(attention, 0.6).tolist() == [
        [False, True, False, True],
        [False, False, False, True],
    ]


def test_all_the_mass_keeps_every_patch():
    assert keep_mass(torch.rand(3, 9) + 0.01, 1.0).all()
