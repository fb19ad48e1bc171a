"""Label propagation against the originals: soft and hard maps of CRW and DINO, poses, parts."""

import numpy as np
import pytest
import torch

from timewalk.evaluation.label_propagation import hard_labels, nearest, soft_labels, to_ids
from timewalk.evaluation.pose import heat_maps, in_pixels, read_out
from timewalk.evaluation.protocols import Protocol
from timewalk.evaluation.video_segmentation import order_of_channels
from timewalk.metrics.keypoints import pck, relative_distances
from timewalk.metrics.segmentation import confusion, scores
from timewalk.ops.propagation import Propagation, Propagator, normalise_channels

CRW = {
    "crw": Propagation(context=20, radius=12, top_k=10, temperature=0.05),
    "crw_small": Propagation(context=3, radius=4.5, top_k=4, temperature=0.07),
    "crw_rnorm": Propagation(context=4, radius=5, top_k=10, temperature=0.05, normalise=True),
}
SQUARE = {"window": "square", "fill": False, "keep_ties": True}
DINO = {
    "dino": Propagation(context=7, radius=12, top_k=5, temperature=0.1, **SQUARE),
    "dino_small": Propagation(context=3, radius=4, top_k=3, temperature=0.1, **SQUARE),
}
TILES = [(2, 3), (8, 8), (64, 64)]


@pytest.fixture(scope="module")
def arrays(golden):
    return golden("labelprop", "labelprop.npz")


@pytest.fixture(scope="module")
def poses(golden):
    return golden("labelprop", "pose_vip.npz")


def softs(settings, arrays, first, tile):
    """Return (T, C, h, w)."""
    features = torch.from_numpy(arrays["features"])
    propagator = Propagator(settings, features[0], first, tile)
    return torch.stack([first, *(propagator.step(frame) for frame in features[1:])])


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("case", CRW)
def test_crw(case, tile, arrays):
    ids = order_of_channels(arrays["label"])
    assert ids == arrays[f"{case}.channel_ids"].tolist()
    first = soft_labels(arrays["label"], ids, (16, 20))
    np.testing.assert_allclose(
        first.permute(1, 2, 0), arrays[f"{case}.label_small"], rtol=0, atol=1e-5
    )
    found = softs(CRW[case], arrays, first, tile)
    if CRW[case].normalise:
        found = normalise_channels(found, 1)
    np.testing.assert_allclose(found.permute(0, 2, 3, 1), arrays[f"{case}.soft"], rtol=0, atol=1e-5)
    protocol = Protocol("crw", CRW[case], "native")
    size = arrays["label"].shape
    hard = np.stack([np.array(ids)[to_ids(soft, protocol, size, size)] for soft in found])
    assert (hard == arrays[f"{case}.hard"]).mean() > 0.999


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("case", DINO)
def test_dino(case, tile, arrays):
    first = hard_labels(arrays["label"], (16, 20))
    assert np.array_equal(first, arrays[f"{case}.soft"][0])
    found = softs(DINO[case], arrays, first, tile)
    np.testing.assert_allclose(found, arrays[f"{case}.soft"], rtol=0, atol=1e-5)
    assert np.array_equal(arrays[f"{case}.hard"][0], arrays["label"])
    protocol = Protocol("dino", DINO[case], "dino", minmax=True)
    size = arrays["label"].shape
    hard = np.stack([to_ids(soft, protocol, (128, 160), size) for soft in found[1:]])
    assert (hard == arrays[f"{case}.hard"][1:]).mean() > 0.999


@pytest.mark.parametrize("video", range(3))
def test_heat_maps_and_read_out(video, poses):
    truth, size = poses[f"gt.{video}"] - 1, tuple(poses[f"hw.{video}"].tolist())
    maps = heat_maps(truth[:, :, 0], (40, 40), size)
    np.testing.assert_allclose(maps.permute(1, 2, 0), poses[f"heat0.{video}"], rtol=0, atol=1e-6)
    soft = torch.from_numpy(poses[f"soft1.{video}"]).permute(2, 0, 1)
    np.testing.assert_allclose(read_out(soft), poses[f"coords1.{video}"], rtol=0, atol=1e-4)


def test_pck(poses):
    distances = []
    for video in range(3):
        size = tuple(poses[f"hw.{video}"].tolist())
        predicted = in_pixels(poses[f"coords.{video}"], (40, 40), size)
        truth = poses[f"gt.{video}"] - 1
        distances.append(relative_distances(predicted[..., 1:], truth[..., 1:]))
    thresholds, expected = poses["pck"].T
    np.testing.assert_allclose(pck(distances, thresholds).mean(axis=1), expected, rtol=1e-9)


def test_parts(poses):
    total = np.zeros((20, 20), np.int64)
    for video in range(2):
        for frame in range(3):
            truth = poses[f"vip.gt.{video}.{frame}"]
            found = nearest(poses[f"vip.pred.{video}.{frame}"], truth.shape)
            total += confusion(truth, found, 20)
    got = scores(total)
    figures = [got.overall_accuracy, got.mean_accuracy, got.mean_iou, got.weighted_iou]
    np.testing.assert_allclose(figures, poses["vip.metrics"], rtol=1e-12)


def test_every_array_is_compared(arrays, poses):
    compared = {"features", "label"}
    compared |= {f"{c}.{k}" for c in CRW for k in ("label_small", "channel_ids", "soft", "hard")}
    compared |= {f"{case}.{kind}" for case in DINO for kind in ("soft", "hard")}
    assert set(arrays) == compared
    kinds = ("gt", "hw", "heat0", "soft1", "coords1", "coords")
    of_poses = {f"{kind}.{video}" for kind in kinds for video in range(3)} | {"pck", "vip.metrics"}
    masks = {f"vip.{k}.{v}.{t}" for k in ("gt", "pred") for v in range(2) for t in range(3)}
    assert set(poses) == of_poses | masks
