import builtins
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.stats import kendalltau

from timewalk.errors import UserError
from timewalk.metrics import phases
from timewalk.metrics.phases import (
    confidence,
    discordant,
    draw_episodes,
    fit_classifier,
    fit_least_squares,
    nearest_frames,
    progression_targets,
    r_squared,
    score_episodes,
    share,
    standard_error,
    tau_b,
    tau_matrix,
    transition_error,
    transitions,
)


@pytest.mark.parametrize(
    ("fraction", "videos", "expected"),
    [(0.1, 6, 1), (0.5, 6, 3), (1.0, 6, 6), (0.1, 70, 7), (0.5, 7, 3), (0.01, 3, 1)],
)
def test_share(fraction, videos, expected):
    assert share(fraction, videos) == expected


rows = st.lists(st.lists(st.integers(0, 9), min_size=8, max_size=8), min_size=1, max_size=5)


@settings(max_examples=100, deadline=None)
@given(rows)
def test_tau_b_is_scipys(values):
    values = np.array(values)
    expected = [kendalltau(np.arange(8), row).statistic for row in values]
    np.testing.assert_allclose(tau_b(values), expected, rtol=0, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 300), st.integers(1, 300))
def test_tau_b_of_long_rows(seed, length, most):
    values = np.random.default_rng(seed).integers(0, most, (3, length))
    expected = [kendalltau(np.arange(length), row).statistic for row in values]
    np.testing.assert_allclose(tau_b(values), expected, rtol=0, atol=1e-12)


@given(rows)
def test_discordant_is_the_definition(values):
    values = np.array(values)
    later = np.triu(np.ones((8, 8), bool), 1)
    expected = ((values[:, :, None] > values[:, None, :]) & later).sum((1, 2))
    assert discordant(values).tolist() == expected.tolist()


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), min_size=2, max_size=20, unique=True))
def test_tau_b_of_sorted_rows_and_of_monotone_transforms(values):
    both = np.array([sorted(values), sorted(values, reverse=True)])
    assert tau_b(both) == pytest.approx([1, -1])
    row = np.array([values])
    assert tau_b(row**2 + 3) == pytest.approx(tau_b(row), abs=1e-15)
    assert tau_b(row[:, ::-1]) == pytest.approx(-tau_b(row), abs=1e-15)


@pytest.mark.parametrize("row", [[3, 3, 3], [5]])
def test_tau_b_without_order(row):
    assert np.isnan(tau_b(np.array([row]))).all()


def walk(seed, length, width=4):
    steps = np.random.default_rng(seed).uniform(0.1, 1, (length, width))
    return steps.cumsum(0).astype(np.float32)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 30), st.integers(1, 4))
def test_tau_of_equal_and_reversed_videos(seed, length, stride):
    video = walk(seed, length * stride)[::stride]
    matrix = tau_matrix([video, video, video[::-1]], stride=1)
    assert (matrix[0, 1], matrix[1, 0]) == pytest.approx((1, 1), abs=1e-12)
    assert (matrix[0, 2], matrix[2, 1]) == pytest.approx((-1, -1), abs=1e-12)
    assert np.isnan(np.diag(matrix)).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_tau_does_not_change_under_rotation_and_shift(seed):
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    videos = [rng.normal(size=(n, 4)) for n in (9, 14, 11)]
    moved = [video @ turn * 3 + 1 for video in videos]
    np.testing.assert_allclose(tau_matrix(moved, 2), tau_matrix(videos, 2), atol=1e-12)


@pytest.mark.parametrize("distance", ["sqeuclidean", "cosine"])
@pytest.mark.parametrize("cells", [1 << 24, 50])
def test_nearest_frames_are_the_definition_and_ties_go_to_the_first(distance, cells, monkeypatch):
    monkeypatch.setattr(phases, "CELLS", cells)
    rng = np.random.default_rng(0)
    query = rng.normal(size=(13, 5)).astype(np.float32)
    candidates = [rng.normal(size=(n, 5)).astype(np.float32) for n in (7, 1, 20)]
    candidates.append(np.repeat(query[:3], 4, axis=0)[::-1])
    found = nearest_frames(query, candidates, distance)
    exact = query.astype(float)
    expected = [cdist(exact, x.astype(float), distance).argmin(1) for x in candidates]
    assert found.tolist() == [row.tolist() for row in expected]
    assert found[3, :3].tolist() == [8, 4, 0]


def test_rounding_of_the_product_decides_nothing():
    """Embeddings that hardly differ, far from the origin: differences drown in |x|^2 - 2 x y."""
    rng = np.random.default_rng(0)
    query, *candidates = (1e4 + 1e-4 * rng.normal(size=(n, 16)) for n in (60, 30, 47))
    expected = [cdist(query, x, "sqeuclidean").argmin(1) for x in candidates]
    found = nearest_frames(query, candidates)
    assert found.tolist() == [row.tolist() for row in expected]


def test_far_from_the_origin_equal_frames_stay_equal():
    video = walk(0, 20) + 1e4
    still = np.repeat(video[:1], 15, axis=0)
    matrix = tau_matrix([video, still], stride=1)
    assert np.isnan(matrix).all()


def test_frames_of_zeros_have_no_direction():
    video = walk(0, 6)
    assert np.isnan(tau_matrix([video, np.zeros((6, 4))], 1, "cosine")).all()


@pytest.mark.parametrize("count", [0, 1])
def test_no_pair(count):
    assert np.isnan(tau_matrix([walk(0, 6)] * count)).all()


@pytest.mark.parametrize(
    ("labels", "phases", "expected"),
    [
        ([0, 0, 1, 1, 2], 3, [1, 3]),
        ([0, 0, 2, 2, 2], 3, [1, 2]),  # phase 1 is absent
        ([1, 1, 2, 2], 4, [1, 1, 3]),  # so are 0 and 3
        ([0, 0, 0], 3, [2, 2]),
        ([0], 2, [0]),
        ([0, 1, 0, 1, 2], 3, [0, 3]),
    ],
)
def test_transitions(labels, phases, expected):
    assert transitions(np.array(labels), phases).tolist() == expected


@given(st.lists(st.integers(0, 3), max_size=30))
def test_targets_rise_by_a_frame(labels):
    labels = np.sort([*range(4), *labels])
    found = progression_targets(labels, 4)
    np.testing.assert_allclose(np.diff(found, axis=0), 1 / len(labels), rtol=1e-9)
    assert (np.diff(found, axis=1) < 0).all()  # later events are further away


def test_least_squares_recovers_a_linear_map():
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(50, 6)), rng.normal(size=(6, 3))
    y = x @ weights + [1, 2, 3]
    predict = fit_least_squares(x[:20], y[:20])
    assert r_squared(y[20:], predict(x[20:])) == pytest.approx([1, 1, 1])
    assert transition_error([y], [predict(x)]) == pytest.approx(0, abs=1e-12)


def test_equal_embeddings_predict_the_mean():
    y = np.arange(6.0)[:, None]
    predict = fit_least_squares(np.ones((6, 4)), y)
    assert predict(np.ones((2, 4))).ravel().tolist() == [2.5, 2.5]
    assert r_squared(y, predict(np.ones((6, 4)))).tolist() == [0]


def test_r_squared_of_a_constant_target():
    assert np.isnan(r_squared(np.ones((4, 1)), np.zeros((4, 1)))).all()


def test_transition_error_is_a_share_of_the_video():
    truth = progression_targets(np.array([0, 0, 0, 1, 1, 1, 1, 1, 1, 1]), 2)
    late = progression_targets(np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1]), 2)
    assert transition_error([truth, truth], [late, truth]) == pytest.approx(0.1)


def test_transition_error_is_of_the_mean_vote():
    """Votes that are as often too early as too late place the event where it is."""
    truth = progression_targets(np.array([0, 0, 1, 1]), 2)
    votes = truth + np.array([[0.2], [-0.2], [0.1], [-0.1]])
    assert transition_error([truth], [votes]) == pytest.approx(0, abs=1e-12)
    assert transition_error([truth], [votes + 0.3]) == pytest.approx(0.3)
    # But one video's early event and another one's late event are two errors.
    assert transition_error([truth, truth], [votes + 0.3, votes - 0.1]) == pytest.approx(0.2)


def test_one_class_is_predicted_everywhere():
    predict = fit_classifier(np.zeros((3, 2)), np.array([4, 4, 4]))
    assert predict(np.ones((2, 2))).tolist() == [4, 4]


@pytest.mark.parametrize("options", [("svm", "scale"), ("svm", "auto"), ("logistic", "scale")])
def test_classes_that_lie_apart(options):
    pytest.importorskip("sklearn")
    y = np.arange(30) % 3
    x = np.eye(3)[y] * 5 + np.random.default_rng(0).normal(size=(30, 3)) / 9
    assert (fit_classifier(x, y, *options)(x) == y).all()


def test_without_scikit_learn(monkeypatch):
    real = builtins.__import__

    def missing(name, *rest, **keys):
        if name.startswith("sklearn"):
            raise ImportError
        return real(name, *rest, **keys)

    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match="scikit-learn is missing: pip install 'timewalk"):
        fit_classifier(np.eye(2), np.arange(2))


def test_more_labelled_videos_than_there_are_is_all():
    ((episode,),) = draw_episodes(3, [7], 1)
    assert sorted(episode) == [0, 1, 2]


def test_episodes_do_not_depend_on_threads():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(1)
    train = [(rng.normal(size=(9, 3)), rng.integers(0, 3, 9)) for _ in range(5)]
    drawn = draw_episodes(5, [1, 3], 8)
    for episodes in drawn:
        one, two = (score_episodes(train, train[0], episodes, threads=n) for n in (1, 4))
        assert one.test.tolist() == two.test.tolist()
        assert one.train.tolist() == two.train.tolist()
        again = score_episodes(train, train[0], episodes[2:3])
        assert again.test.tolist() == one.test[2:3].tolist()


def test_interval_of_the_mean():
    values = np.array([0.1, 0.4, 0.4, 0.7])
    assert standard_error(values) == pytest.approx(0.122474487)
    assert confidence(values) == pytest.approx(3.18244631 * 0.122474487)
    assert np.isnan(standard_error(values[:1]))
    assert np.isnan(confidence(values[:1]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("frames", "rank"), [(300, 4), (40, 4), (40, 32)])
def test_least_squares_is_scikit_learns(dtype, frames, rank):
    """Embeddings of fewer directions than coordinates: the rounding of the rest is no evidence."""
    linear = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    axes = rng.normal(size=(rank, 32))
    x, z = ((rng.normal(size=(n, rank)) @ axes).astype(dtype) for n in (frames, 100))
    y = x[:, :3] + rng.normal(size=(frames, 3))
    theirs = [linear.LinearRegression().fit(x, event).predict(z) for event in y.T]
    np.testing.assert_allclose(fit_least_squares(x, y)(z), np.stack(theirs, 1), rtol=0, atol=1e-3)


@pytest.mark.parametrize("classifier", ["svm", "logistic"])
def test_classifiers_are_fitted_in_the_features_precision(classifier):
    models = {"svm": ("svm", "SVC", {}), "logistic": ("linear_model", "LogisticRegression", {})}
    module, name, keys = models[classifier]
    model = getattr(pytest.importorskip(f"sklearn.{module}"), name)
    keys = {"max_iter": 100_000} if classifier == "logistic" else keys
    rng = np.random.default_rng(1)
    x, y = 3 * rng.normal(size=(60, 32)).astype(np.float32), rng.integers(0, 4, 60)
    z = 3 * rng.normal(size=(400, 32)).astype(np.float32)
    expected = model(**keys).fit(x, y).predict(z)
    assert np.array_equal(fit_classifier(x, y, classifier)(z), expected)
