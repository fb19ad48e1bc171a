"""The propagator of the mask propagation against TimeT's published feature-forwarder."""

import math

import pytest
import torch

from timewalk.evaluation.propagation_iou import Config, settings_of
from timewalk.ops.propagation import Propagator

CASES = ("default", "short_context", "no_window", "all_equal")


@pytest.mark.parametrize("case", CASES)
def test_forwarder(golden, case):
    arrays = golden("timet", "forwarder.npz")
    features, first = (torch.from_numpy(arrays[f"{case}_{key}"]) for key in ("features", "first"))
    context, window, top_k = arrays[f"{case}_params"].tolist()
    config = Config(dataset="x", context=context, window=window, top_k=top_k)
    side = math.isqrt(features.shape[1])
    maps = features.float().mT.unflatten(-1, (side, side))
    labels = first.mT.unflatten(-1, (side, side))
    propagator = Propagator(settings_of(config), maps[0], labels)
    found = torch.stack([propagator.step(frame) for frame in maps[1:]])
    expected = torch.from_numpy(arrays[f"{case}_maps"]).float()
    torch.testing.assert_close(found, expected.reshape(found.shape), rtol=0, atol=1e-6)
