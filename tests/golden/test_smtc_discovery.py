"""Object discovery against the published code: see data/smtc/README.md for names. Arrays `fg.*` are
those of the single-object protocol, in a file of their own."""

import numpy as np
import pytest

from timewalk.data.sequences import VOID
from timewalk.evaluation.frame_matching import match_frames
from timewalk.evaluation.proposal_tracks import binarised
from timewalk.evaluation.proposals import chunks, collect
from timewalk.metrics.davis import match, overlapping_scores

LEAST = 0.5
COMPARED = {
    "in.scores",
    "in.masks",
    "in.hw",
    "in.n_frames",
    "in.gt",
    "out.chunks",
    "out.counts",
    "out.proposals",
    *(f"out.{way}.{value}" for way in ("released", "official") for value in ("J", "F", "JF")),
}


@pytest.fixture
def arrays(golden):
    return golden("smtc", "discovery.npz")


@pytest.fixture
def found(arrays):
    scores = arrays["in.scores"]
    masks = arrays["in.masks"].reshape(*scores.shape, *arrays["in.hw"])
    vectors = np.zeros((*scores.shape, 1), np.float32)
    return collect(masks, scores, vectors, LEAST)


def mean_of(J, F):
    return (J.mean(1).mean() + F.mean(1).mean()) / 2


def test_clips(arrays):
    frames = len(arrays["in.gt"])
    assert chunks(frames, int(arrays["in.n_frames"])) == arrays["out.chunks"].tolist()


def test_candidates(arrays, found):
    assert [len(masks) for masks in found.masks] == arrays["out.counts"].tolist()
    assert [len(scores) for scores in found.scores] == arrays["out.counts"].tolist()
    kept = arrays["in.scores"][arrays["in.scores"] >= LEAST]
    np.testing.assert_array_equal(np.concatenate(found.scores), kept)
    assert found.all_masks.shape == (7, 6, 6, 8)
    assert found.instances == 2


def test_binarised(arrays, found):
    most = arrays["out.counts"].max()
    assert len(arrays["out.proposals"]) == most
    for frame, soft in enumerate(found.masks):
        expected = arrays["out.proposals"][:, frame].astype(bool)
        masks = binarised(soft, arrays["in.gt"].shape[1:])
        np.testing.assert_array_equal(masks, expected[: len(masks)])
        assert not expected[len(masks) :].any()


def test_matched_in_every_frame(arrays, found):
    matches = match_frames(found.masks, arrays["in.gt"])
    # Published rows are in the order of the candidates, other ones in each frame; ours are objects.
    order = np.argsort(matches.candidates, axis=0)
    for values, letter in ((matches.J, "J"), (matches.F, "F")):
        rows = np.take_along_axis(values, order, axis=0)
        np.testing.assert_allclose(rows, arrays[f"out.released.{letter}"], rtol=0, atol=1e-12)
    overall = float(arrays["out.released.JF"])
    assert mean_of(matches.J, matches.F) == pytest.approx(overall, abs=1e-12)
    assert (order[0] == 1).any(), "the two orders differ somewhere"


def test_matched_once(arrays):
    truth, masks = arrays["in.gt"], arrays["out.proposals"].astype(bool)
    scores = [
        overlapping_scores(truth[t], masks[:, t], 2, truth[t] == VOID) for t in range(len(truth))
    ]
    J, F = (np.stack(each, axis=2) for each in zip(*scores, strict=True))
    proposals, objects = match(J, F)
    J, F = J[proposals, objects], F[proposals, objects]
    np.testing.assert_allclose(J, arrays["out.official.J"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(F, arrays["out.official.F"], rtol=0, atol=1e-12)
    assert mean_of(J, F) == pytest.approx(float(arrays["out.official.JF"]), abs=1e-12)


def test_nothing_of_the_file_is_left_out(arrays):
    assert {name for name in arrays if not name.startswith("fg.")} == COMPARED
