"""Forwarding of many clips against the propagation of one video, and against a plain loop."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from timewalk.ops.forwarding import Forwarding, forward_labels
from timewalk.ops.propagation import Propagation, Propagator


def clips(count=2, frames=5, channels=8, labels=4, height=6, width=7, seed=0):
    rng = torch.Generator().manual_seed(seed)
    features = torch.randn(count, frames, channels, height, width, generator=rng)
    first = torch.rand(count, labels, height, width, generator=rng)
    return features, first / first.sum(dim=1, keepdim=True)


def by_propagator(features, first, forwarding):
    settings = Propagation(
        context=forwarding.context,
        top_k=forwarding.top_k,
        temperature=forwarding.temperature,
        radius=forwarding.radius or math.inf,
        window="square",
        fill=False,
        keep_ties=True,
    )
    results = []
    for clip, labels in zip(features, first, strict=True):
        propagator = Propagator(settings, clip[0], labels)
        results.append(torch.stack([propagator.step(frame) for frame in clip[1:]]))
    return torch.stack(results)


@settings(max_examples=40, deadline=None)
@given(
    context=st.integers(1, 5),
    radius=st.integers(0, 7),
    top_k=st.integers(1, 9),
    temperature=st.sampled_from([0.05, 0.1, 1.0]),
    frames=st.integers(2, 6),
    seed=st.integers(0, 99),
)
def test_as_the_propagation_of_each_video(context, radius, top_k, temperature, frames, seed):
    forwarding = Forwarding(context, radius, top_k, temperature)
    features, first = clips(frames=frames, seed=seed)
    found = forward_labels(features, first, forwarding)
    torch.testing.assert_close(found, by_propagator(features, first, forwarding), rtol=0, atol=2e-5)
    torch.testing.assert_close(found.sum(dim=2), torch.ones_like(found[:, :, 0]))


def test_all_that_tie_are_kept():
    forwarding = Forwarding(top_k=2, radius=1)
    first = clips()[1]
    features = torch.ones(2, 3, 4, 6, 7)
    found = forward_labels(features, first, forwarding)
    assert found.shape == (2, 2, 4, 6, 7)
    corner = first[:, :, :2, :2].mean(dim=(2, 3))
    torch.testing.assert_close(found[:, 0, :, 0, 0], corner)
    middle = first[:, :, 2:5, 3:6].mean(dim=(2, 3))
    torch.testing.assert_close(found[:, 0, :, 3, 4], middle)


def test_without_a_window_and_with_equal_features_labels_are_the_mean():
    features, first = torch.ones(1, 4, 3, 5, 5), clips(1, height=5, width=5)[1]
    found = forward_labels(features, first, Forwarding(radius=0))
    torch.testing.assert_close(
        found, first.mean(dim=(2, 3))[:, None, :, None, None].expand(found.shape)
    )


@pytest.mark.parametrize("affinities", [1, 2 * 3 * 42**2, 10**9])
def test_parts_are_as_good_as_the_whole(affinities):
    features, first = clips(5, frames=4)
    forwarding = Forwarding(context=2)
    found = forward_labels(features, first, forwarding, affinities)
    torch.testing.assert_close(
        found, forward_labels(features, first, forwarding), rtol=0, atol=1e-6
    )


def test_a_still_clip_with_one_neighbour_keeps_its_labels():
    features, first = clips(frames=1)
    found = forward_labels(features.expand(-1, 4, -1, -1, -1), first, Forwarding(top_k=1))
    for frame in found.unbind(1):
        torch.testing.assert_close(frame, first)


def test_labels_keep_their_dtype_and_features_may_be_halves():
    features, first = clips()
    found = forward_labels(features.bfloat16(), first.double(), Forwarding())
    assert found.dtype == torch.float64
    expected = forward_labels(features.bfloat16().float(), first.double(), Forwarding())
    torch.testing.assert_close(found, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(
            forward_labels(features.bfloat16(), first.double(), Forwarding()), found
        )
