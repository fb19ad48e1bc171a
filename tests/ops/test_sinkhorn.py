import pytest
import torch

from timewalk.ops.sinkhorn import sinkhorn, sinkhorn_published, underflows


def test_each_patch_is_assigned_once_and_objects_share_the_patches():
    logits = torch.randn(2, 49, 3, dtype=torch.float64)
    assignment = sinkhorn(logits, 0.5, 200)
    torch.testing.assert_close(assignment.sum(2), torch.ones(2, 49, dtype=torch.float64))
    shares = torch.full((2, 3), 49 / 3, dtype=torch.float64)
    torch.testing.assert_close(assignment.sum(1), shares, rtol=1e-4, atol=0)


def test_both_domains_agree_where_float32_suffices():
    logits = torch.randn(3, 20, 4) * 0.2
    torch.testing.assert_close(
        sinkhorn(logits, 0.05, 30), sinkhorn_published(logits, 0.05, 30), rtol=0, atol=2e-6
    )


def test_a_clip_is_assigned_alone():
    logits = torch.randn(2, 20, 3)
    torch.testing.assert_close(sinkhorn(logits)[1:], sinkhorn(logits[1:]))


def test_underflow_is_counted_and_survived():
    logits = torch.zeros(2, 9, 3)
    logits[1, 0] = 10.0  # eight patches lie 200 below the maximum, in units of epsilon
    assert underflows(logits, 0.05).tolist() == [False, True]
    assert sinkhorn_published(logits)[1].isnan().all()
    assert sinkhorn(logits).isfinite().all()


def test_no_iteration_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        sinkhorn(torch.zeros(1, 2, 2), iterations=0)


@pytest.mark.parametrize("lower", [4.0, 5.0, 6.0, 10.0])
@pytest.mark.parametrize("what", ["a patch", "an object"])
def test_what_is_counted_is_what_the_published_code_loses(what, lower):
    logits = 0.3 * torch.randn(40, 49, 3, generator=torch.Generator().manual_seed(0))
    if what == "a patch":
        logits[:, 7] -= lower
    else:
        logits[:, :, 2] -= lower
    lost = sinkhorn_published(logits, 0.05, 30).isnan().flatten(1).any(1)
    assert torch.equal(underflows(logits, 0.05), lost)
    assert torch.equal(underflows(logits.double(), 0.05), lost)
    assert bool(lost.any()) == (lower > 4)


def test_the_band_where_the_first_division_decides():
    counted = []
    for lower in (4.8, 4.9, 5.0, 5.1, 5.2, 5.3):
        logits = torch.zeros(1, 196, 3)
        logits[0, 0] = -lower
        counted.append(underflows(logits, 0.05).item())
        assert counted[-1] == bool(sinkhorn_published(logits).isnan().any())
    assert counted == sorted(counted)
    assert set(counted) == {False, True}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised(dtype):
    logits = torch.randn(2, 49, 3).to(dtype)
    assert torch.equal(sinkhorn(logits), sinkhorn(logits.float()))
