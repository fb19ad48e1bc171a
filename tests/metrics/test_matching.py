"""Matching of clusters to classes: against a pair by pair count, and what must not change it."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import linear_sum_assignment

from timewalk.metrics import matching
from timewalk.metrics.matching import (
    Contingency,
    add,
    contingency,
    match,
    matched_scores,
    renamed,
    score_matrix,
    with_classes,
)

VOID = 255
CRITERIA = ("hungarian", "many_to_one", "many_to_one_iou", "none")
MATCHING = CRITERIA[:3]


def maps(largest):
    return hnp.arrays(np.uint8, (5, 6), elements=st.integers(0, largest))


def pair_by_pair(truth, predicted, criterion):
    """Return the mIoU and the class of each cluster, counting every pair over all pixels."""
    classes, clusters = np.unique(truth), np.unique(predicted)
    matrix = np.empty((len(classes), len(clusters)))
    for row, c in enumerate(classes):
        for column, k in enumerate(clusters):
            both = ((truth == c) & (predicted == k)).sum()
            either = ((truth == c) | (predicted == k)).sum()
            matrix[row, column] = both / (
                (predicted == k).sum() if criterion == "many_to_one" else either
            )
    own = {int(k): int(classes[matrix[:, n].argmax()]) for n, k in enumerate(clusters)}
    named = np.vectorize(own.get)(predicted)
    iou = [
        ((truth == c) & (named == c)).sum() / ((truth == c) | (named == c)).sum() for c in classes
    ]
    return np.mean(iou), own, matrix


@settings(deadline=None)
@given(maps(4), maps(7), st.sampled_from(["many_to_one", "many_to_one_iou"]))
def test_many_to_one_is_that_of_a_pair_by_pair_count(truth, predicted, criterion):
    scores = matched_scores(contingency(truth, predicted), criterion)
    miou, own, matrix = pair_by_pair(truth, predicted, criterion)
    np.testing.assert_allclose(scores.score_matrix, matrix, atol=1e-12)
    assert scores.cluster_to_class == own
    assert scores.miou == pytest.approx(miou, abs=1e-12)


@settings(deadline=None)
@given(maps(3), maps(3))
def test_hungarian_finds_the_best_of_all_assignments(truth, predicted):
    table = contingency(truth, predicted)
    matrix = score_matrix(table, "hungarian")
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    best = max(
        sum(wide[row, column] for row, column in enumerate(order))
        for order in permutations(range(wide.shape[1]), wide.shape[0])
    )
    own = match(table, "hungarian")
    of_class = {c: [] for c in (*table.classes.tolist(), 0)}
    for column, cluster in enumerate(table.clusters.tolist()):
        row = np.flatnonzero(table.classes == own[cluster])
        of_class[own[cluster]].append(matrix[row[0], column] if row.size else 0.0)
    # Clusters that are left over share background with the one that was matched to it.
    assert all(len(of_class[c]) <= 1 for c in of_class if c)
    assert sum(max(values, default=0.0) for values in of_class.values()) >= best - 1e-9


@settings(deadline=None)
@given(maps(4), maps(6), st.permutations(range(7)), st.sampled_from(MATCHING))
def test_names_of_clusters_do_not_matter(truth, predicted, order, criterion):
    other = np.array(order, np.uint16)[predicted] * 37 + 5
    scores = matched_scores(contingency(truth, predicted), criterion)
    moved = matched_scores(contingency(truth, other), criterion)
    if criterion == "hungarian":
        # Of several best assignments either may be taken; their summed IoU is the same.
        first, second = (_matched_iou(s) for s in (scores, moved))
        assert first == pytest.approx(second, abs=1e-9)
        return
    assert moved.miou == pytest.approx(scores.miou, abs=1e-12)
    np.testing.assert_array_equal(moved.tp, scores.tp)
    assert moved.background_fraction == scores.background_fraction


def _matched_iou(scores):
    rows, columns = linear_sum_assignment(-scores.score_matrix)
    return scores.score_matrix[rows, columns].sum()


@settings(deadline=None)
@given(maps(5), st.sampled_from(CRITERIA))
def test_a_perfect_prediction_scores_1(truth, criterion):
    predicted = truth if criterion == "none" else 40 - truth
    scores = matched_scores(contingency(truth, predicted), criterion)
    assert scores.miou == scores.accuracy == 1
    np.testing.assert_array_equal(renamed(predicted, scores.cluster_to_class), truth)
    assert scores.miou_without_background == (1 if (truth > 0).any() else 0)


@settings(deadline=None)
@given(hnp.arrays(np.uint8, (4, 6), elements=st.sampled_from([0, 1, 2, VOID])), maps(9))
def test_parts_make_the_whole(truth, predicted):
    predicted = predicted[:4]
    whole = contingency(truth, predicted, void=VOID)
    parts = [contingency(t, p, void=VOID) for t, p in zip(truth, predicted, strict=True)]
    for name in ("classes", "clusters", "counts"):
        np.testing.assert_array_equal(getattr(add(parts), name), getattr(whole, name))
    assert whole.counts.sum() == (truth != VOID).sum()


def test_void_pixels_and_what_occurs_only_there_do_not_count():
    truth = np.array([[0, 0, 1, VOID]], np.uint8)
    predicted = np.array([[3, 3, 4, 9]], np.uint16)
    table = contingency(truth, predicted, void=VOID)
    np.testing.assert_array_equal(table.clusters, [3, 4])
    np.testing.assert_array_equal(table.counts, [[2, 0], [0, 1]])
    scores = matched_scores(table, "hungarian")
    assert scores.miou == 1
    assert renamed(predicted, scores.cluster_to_class).tolist() == [[0, 0, 1, 0]]
    with_void = contingency(truth, predicted)
    np.testing.assert_array_equal(with_void.classes, [0, 1, VOID])


def test_many_pixels_are_counted_in_pieces(monkeypatch):
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 3, 1000), rng.integers(0, 5, 1000)
    whole = contingency(truth, predicted)
    monkeypatch.setattr(matching, "CHUNK", 7)
    np.testing.assert_array_equal(contingency(truth, predicted).counts, whole.counts)
    assert whole.counts.sum() == 1000
    assert whole.counts[1, 2] == ((truth == 1) & (predicted == 2)).sum()


def test_numbers_by_hand():
    table = Contingency(np.array([0, 2]), np.array([5, 6, 7]), np.array([[6, 2, 0], [1, 3, 4]]))
    scores = matched_scores(table, "many_to_one")
    assert scores.cluster_to_class == {5: 0, 6: 2, 7: 2}
    np.testing.assert_allclose(scores.score_matrix, [[6 / 7, 2 / 5, 0], [1 / 7, 3 / 5, 1]])
    assert (scores.tp.tolist(), scores.fp.tolist(), scores.fn.tolist()) == ([6, 7], [1, 2], [2, 1])
    np.testing.assert_allclose(scores.iou, [6 / 9, 7 / 10])
    assert scores.miou_without_background == pytest.approx(0.7)
    assert scores.accuracy == pytest.approx(13 / 16)
    assert scores.background_fraction == pytest.approx(1 / 3)
    # Cluster 6 is left over and becomes background.
    assert match(table, "hungarian") == {5: 0, 6: 0, 7: 2}
    assert matched_scores(table, "hungarian").background_fraction == 0.5
    assert matched_scores(table, "none").background_fraction is None


def test_left_over_clusters_are_background_even_where_the_truth_has_none():
    table = Contingency(np.array([3]), np.array([1, 2]), np.array([[5, 2]]))
    scores = matched_scores(table, "hungarian")
    assert scores.cluster_to_class == {1: 3, 2: 0}
    assert scores.miou == pytest.approx(5 / 7)


def test_fewer_clusters_than_classes():
    table = contingency(np.array([0, 0, 1, 2]), np.array([8, 8, 9, 9]))
    scores = matched_scores(table, "hungarian")
    assert scores.iou.tolist() == [1, 0.5, 0]
    assert scores.miou == 0.5


def test_ties_go_to_the_smaller_class():
    table = contingency(np.array([1, 4]), np.array([7, 7]))
    assert match(table, "many_to_one") == match(table, "many_to_one_iou") == {7: 1}


def test_absent_classes_may_score_0():
    table = contingency(np.array([0, 0, 2]), np.array([5, 5, 6]))
    full = with_classes(table, 4)
    np.testing.assert_array_equal(full.counts, [[2, 0], [0, 0], [0, 1], [0, 0]])
    assert matched_scores(full, "hungarian").miou == 0.5
    with pytest.raises(ValueError, match=r"the classes \[0, 2\] are not within 0..1"):
        with_classes(table, 2)


@pytest.mark.parametrize("far", [1 << 40, 300, -7])
def test_ids_may_be_any_integers(far):
    table = contingency(np.array([2, 2, 5]), np.array([1, far, far]))
    np.testing.assert_array_equal(table.clusters, sorted([1, far]))
    assert renamed(np.array([far, 1]), {1: 2, far: 5}).tolist() == [5, 2]


def test_what_does_not_fit_or_is_empty():
    with pytest.raises(ValueError, match="differ in shape"):
        contingency(np.zeros((2, 3), int), np.zeros(6, int))
    empty = contingency(np.full(4, VOID), np.zeros(4, int), void=VOID)
    assert empty.counts.shape == (0, 0)
    with pytest.raises(ValueError, match="no pixel counts"):
        matched_scores(empty, "hungarian")
    with pytest.raises(ValueError, match="no table to add"):
        add([])
    nothing = contingency(np.zeros(0, int), np.zeros(0, int))
    assert add([empty, nothing]).counts.shape == (0, 0)
