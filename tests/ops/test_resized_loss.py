"""The loss of coarse logits on fine labels, beside torch's own of resized logits."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from timewalk.ops.resized_loss import VOID, resized_cross_entropy


def plain(logits, labels):
    pixels = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
    each = F.cross_entropy(pixels, labels.long(), ignore_index=VOID, reduction="none")
    known = labels != VOID
    right = (pixels.argmax(1) == labels) & known
    return each.mean(), right.sum() / known.sum().clamp(min=1)


def batch(seed, classes=5, cells=(4, 6), size=(11, 13), images=3, void=0.3):
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (images, *size), generator=rng).to(torch.uint8)
    labels[torch.rand(labels.shape, generator=rng) < void] = VOID
    logits = 3 * torch.randn(images, classes, *cells, generator=rng)
    return logits.requires_grad_(), labels


@given(st.integers(0, 2**20), st.integers(1, 9), st.integers(1, 20))
def test_loss_accuracy_and_gradient_are_those_of_resized_logits(seed, classes, side):
    logits, labels = batch(seed, classes, size=(side, 13))
    loss, accuracy = resized_cross_entropy(logits, labels)
    expected, share = plain(logits, labels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(accuracy, share)
    (found,) = torch.autograd.grad(0.4 * loss, logits)
    (wanted,) = torch.autograd.grad(0.4 * expected, logits)
    torch.testing.assert_close(found, wanted, atol=1e-7, rtol=1e-4)


def test_void_pixels_count_in_the_mean_as_published():
    logits = torch.zeros(1, 4, 2, 2)
    labels = torch.full((1, 8, 8), VOID, dtype=torch.uint8)
    labels[0, :2] = 1
    loss, accuracy = resized_cross_entropy(logits, labels)
    # A quarter of the pixels has a class, and each of them the loss log 4.
    assert float(loss) == pytest.approx(math.log(4) / 4)
    assert float(accuracy) == 1


def test_void_alone_is_no_loss():
    logits, labels = batch(0)
    loss, accuracy = resized_cross_entropy(logits, labels.fill_(VOID))
    loss.backward()
    assert (loss.item(), accuracy.item()) == (0, 0)
    assert not logits.grad.any()


def test_a_batch_is_the_mean_of_its_parts():
    logits, labels = batch(1, images=4)
    whole, _ = resized_cross_entropy(logits, labels)
    parts = [resized_cross_entropy(logits[i : i + 2], labels[i : i + 2])[0] for i in (0, 2)]
    torch.testing.assert_close(whole, sum(parts) / 2)


def test_half_precision_logits_have_a_loss_in_float32():
    logits, labels = batch(2)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = resized_cross_entropy(logits.detach().bfloat16().requires_grad_(), labels)
    assert loss.dtype == torch.float32


def test_large_logits_stay_finite():
    logits, labels = batch(3)
    loss, _ = resized_cross_entropy(1e4 * logits, labels)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_without_gradients_the_value_is_the_same():
    logits, labels = batch(4)
    with torch.no_grad():
        loss, _ = resized_cross_entropy(logits, labels)
    torch.testing.assert_close(loss, plain(logits, labels)[0])
