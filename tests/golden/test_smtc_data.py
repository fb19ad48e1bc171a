"""SMTC's windows of frames and its routine for one foreground: see data/smtc/README.md."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from timewalk.data.clips import SampledClips, window_step
from timewalk.metrics.video_foreground import (
    counted,
    enlarged,
    iou,
    min_max,
    occurring,
    oracle_foreground,
    overlap,
)

COLUMNS = [
    "video_length",
    "gap",
    "num_frames",
    "ok",
    "anchor_low",
    "anchor_high",
    "gap_used",
    "lowest_index_reachable",
    "highest_index_reachable",
]
REPEATED = (5, 1, 4)
"""length, gap and frames of the row whose gap the original lowers to 0: one frame, four times"""


@pytest.fixture
def rows(golden):
    arrays = golden("smtc", "frame_window.npz")
    assert set(arrays) == {"rows", "columns"}
    assert arrays["columns"].tolist() == COLUMNS
    return [dict(zip(COLUMNS, row, strict=True)) for row in arrays["rows"].tolist()]


def drawn(length, gap, frames):
    """Return every window that is drawn, by its anchor."""
    clips = SampledClips([], frames, "window", gap)
    rng = torch.Generator().manual_seed(0)
    found = (clips.numbers(length, rng) for _ in range(60 * length))
    return {numbers[frames // 2]: numbers for numbers in found}


def test_windows_are_the_originals_where_it_draws(rows):
    drawing = [row for row in rows if row["ok"]]
    assert len(drawing) == 54
    for row in drawing:
        size = row["video_length"], row["gap"], row["num_frames"]
        if size == REPEATED:
            continue
        length, gap, frames = size
        assert window_step(length, frames, gap) == row["gap_used"]
        found = drawn(*size)
        assert sorted(found) == list(range(row["anchor_low"], row["anchor_high"] + 1))
        assert min(min(numbers) for numbers in found.values()) == row["lowest_index_reachable"]
        assert max(max(numbers) for numbers in found.values()) == row["highest_index_reachable"]
        steps = {b - a for numbers in found.values() for a, b in pairwise(numbers)}
        assert steps == {row["gap_used"]}


def test_where_the_original_repeats_a_frame_the_one_window_is_drawn(rows):
    (row,) = [r for r in rows if (r["video_length"], r["gap"], r["num_frames"]) == REPEATED]
    assert [row[key] for key in COLUMNS[3:]] == [1, 0, 4, 0, 0, 4]
    assert drawn(*REPEATED) == {2: [0, 1, 2, 3]}


def test_where_the_original_raises_the_gap_is_lowered_on(rows):
    raising = [row for row in rows if not row["ok"]]
    assert len(raising) == 16
    for row in raising:
        length, gap, frames = row["video_length"], row["gap"], row["num_frames"]
        # What the original tried to draw from, after one lowering.
        tried = gap - 1
        half = tried * frames // 2
        assert (row["anchor_low"], row["anchor_high"]) == (half, length - half - 1)
        assert row["anchor_low"] > row["anchor_high"]
        assert {row[key] for key in COLUMNS[6:]} == {-1}
        step = window_step(length, frames, gap)
        if length < frames:
            assert step is None
            continue
        assert 1 <= step < tried
        found = drawn(length, gap, frames)
        assert all(0 <= n < length for numbers in found.values() for n in numbers)
        # The next larger gap has no window at all.
        half = (step + 1) * frames // 2
        assert half > length - half - 1


class TestForeground:
    """The routine for one object that SMTC's release holds and does not use: section C.3."""

    @pytest.fixture
    def arrays(self, golden):
        found = golden("smtc", "discovery.npz")
        own = {key for key in found if key.startswith("fg.")}
        assert own == {f"fg.{k}" for k in ("masks", "gt", "mean_mask", "iou", "sudo", "iou_sudo")}
        return found

    def test_oracle(self, arrays):
        truth = arrays["fg.gt"] > 0.5
        assert set(np.unique(arrays["fg.gt"])) == {0, 1}
        masks = arrays["fg.masks"][:, :, 0]
        annotation = counted(truth, masks.shape[-2:])
        soft = oracle_foreground(occurring(masks, truth.shape), annotation)
        found = enlarged(soft, truth.shape)
        np.testing.assert_allclose(found, arrays["fg.mean_mask"][0], rtol=0, atol=1e-6)
        j = iou(*overlap(soft > 0.5, annotation))
        assert j == pytest.approx(arrays["fg.iou"].item(), abs=1e-7)

    def test_another_soft_mask_is_scored_the_same_way(self, arrays):
        truth = arrays["fg.gt"] > 0.5
        soft = arrays["fg.sudo"][0, 0]
        j = iou(*overlap(min_max(soft) > 0.5, counted(truth, soft.shape)))
        assert j == pytest.approx(arrays["fg.iou_sudo"].item(), abs=1e-7)
