"""Phase evaluations against numbers of the published code: data/tcc/README.md.

Progression's R2 agrees to 2e-7 only: there the regression was computed in float32.
"""

import numpy as np
import pytest

from timewalk.metrics.phases import (
    confidence,
    draw_episodes,
    fit_classifier,
    fit_least_squares,
    progression_targets,
    r_squared,
    score_episodes,
    share,
    tau_matrix,
)

PHASES = 5
VARIANTS = (("svm", "scale", "svm"), ("logistic", "scale", "logreg"), ("svm", "auto", "svm_gamma"))


def videos(arrays, split, what):
    names = [name for name in arrays if name.startswith(f"{split}_{what}_")]
    return [arrays[f"{split}_{what}_{i}"] for i in range(len(names))]


@pytest.fixture(scope="module")
def data(golden):
    return golden("tcc", "evaluation.npz")


@pytest.fixture(scope="module")
def expected(golden):
    return golden("tcc", "evaluation.json")


def test_every_name_is_known(data, expected):
    counts = {"train": 6, "val": 4}
    names = {
        f"{split}_{what}_{i}"
        for split, count in counts.items()
        for what in ("embs", "labels", "targets")
        for i in range(count)
    }
    assert set(data) == names | {"awkward_labels", "awkward_targets"}
    assert set(expected) == {"kendalls_tau", "classification", "event_completion", "few_shot"}


def test_progression_targets(data):
    for split in ("train", "val"):
        labels, targets = videos(data, split, "labels"), videos(data, split, "targets")
        for y, wanted in zip(labels, targets, strict=True):
            np.testing.assert_allclose(progression_targets(y, PHASES), wanted, rtol=0, atol=1e-12)
    found = progression_targets(data["awkward_labels"], PHASES)
    np.testing.assert_allclose(found, data["awkward_targets"], rtol=0, atol=1e-12)


def test_kendalls_tau(data, expected):
    scored = expected["kendalls_tau"]
    embeddings = videos(data, "val", "embs")
    still = [*embeddings[:3], np.repeat(embeddings[3][:1], len(embeddings[3]), 0)]
    cases = {
        f"{distance}_stride{stride}": (embeddings, stride, distance)
        for distance in ("sqeuclidean", "cosine")
        for stride in (1, 2, 5)
    }
    cases["val_with_constant_last_sequence_stride2"] = (still, 2, "sqeuclidean")
    assert set(cases) == set(scored)
    for name, case in cases.items():
        matrix = tau_matrix(*case)
        pairs = matrix[~np.eye(4, dtype=bool)]
        wanted = [np.nan if tau is None else tau for tau in scored[name]["pairs"]]
        np.testing.assert_allclose(pairs, wanted, rtol=0, atol=1e-12)
        assert np.nanmean(matrix) == pytest.approx(scored[name]["mean"], abs=1e-12)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_classification(data, expected, fraction):
    pytest.importorskip("sklearn")
    scored = expected["classification"][str(fraction)]
    count = share(fraction, 6)
    x, y = (np.concatenate(videos(data, "train", key)[:count]) for key in ("embs", "labels"))
    test, truth = (np.concatenate(videos(data, "val", key)) for key in ("embs", "labels"))
    found = {"videos": count, "train_frames": len(x)}
    for classifier, gamma, name in VARIANTS:
        predict = fit_classifier(x, y, classifier, gamma)
        if gamma == "auto":
            found["svm_gamma_auto_val"] = (predict(test) == truth).mean()
        else:
            found[f"{name}_train"] = (predict(x) == y).mean()
            found[f"{name}_val"] = (predict(test) == truth).mean()
    assert found == scored


@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_event_completion(data, expected, fraction):
    scored = expected["event_completion"][str(fraction)]
    count = share(fraction, 6)
    x, y = (np.concatenate(videos(data, "train", key)[:count]) for key in ("embs", "targets"))
    test, truth = (np.concatenate(videos(data, "val", key)) for key in ("embs", "targets"))
    predict = fit_least_squares(x, y)
    per_event = r_squared(truth, predict(test))
    assert set(scored) == {"videos", "train_r2", "val_r2", "val_r2_per_event"}
    assert count == scored["videos"]
    np.testing.assert_allclose(per_event, scored["val_r2_per_event"], rtol=0, atol=2e-7)
    assert per_event.mean() == pytest.approx(scored["val_r2"], abs=2e-7)
    assert r_squared(y, predict(x)).mean() == pytest.approx(scored["train_r2"], abs=2e-7)


def test_few_shot(data, expected):
    pytest.importorskip("sklearn")
    scored = expected["few_shot"]
    train = list(zip(videos(data, "train", "embs"), videos(data, "train", "labels"), strict=True))
    test = tuple(np.concatenate(videos(data, "val", key)) for key in ("embs", "labels"))
    drawn = draw_episodes(6, [int(k) for k in scored], 5)
    for wanted, episodes in zip(scored.values(), drawn, strict=True):
        found = score_episodes(train, test, episodes, threads=2)
        assert found.videos == wanted["episodes"]
        assert found.test.tolist() == wanted["val_accs"]
        assert found.test.mean() == pytest.approx(wanted["val_mean"], abs=1e-12)
        assert confidence(found.test) == pytest.approx(wanted["val_ci95"], abs=1e-12)
        assert set(wanted) == {"episodes", "val_accs", "val_mean", "val_ci95"}
