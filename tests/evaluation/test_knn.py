import csv
import hashlib
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import save_file
from torch.nn import functional as F

from timewalk.errors import UserError
from timewalk.evaluation import evaluation_names, get_evaluation
from timewalk.evaluation.base import Inputs
from timewalk.evaluation.knn import Config, class_scores, largest, weighted_knn
from timewalk.evaluation.knn import evaluate as evaluate_inputs
from timewalk.metrics.classification import confusion, ranks, top_percent


def features(count, seed, width=6, classes=7):
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=rng)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    return centres[labels] + torch.randn(count, width, generator=rng), labels


def slowly(train, train_labels, image, k, temperature, classes):
    """The definition, one image at a time, in float64."""
    cosine = F.normalize(train.double(), dim=1) @ F.normalize(image.double(), dim=0)
    scores = torch.zeros(classes, dtype=torch.float64)
    for neighbour in cosine.argsort(descending=True)[:k].tolist():
        scores[train_labels[neighbour]] += torch.exp(cosine[neighbour] / temperature)
    return scores / torch.exp(cosine.max() / temperature)


# derandomised: of random cosines a rare pair is equal to the last bit, and either may vote
@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from([0.02, 0.07, 1.0]), st.integers(1, 9))
def test_scores_are_the_definition(seed, temperature, chunk):
    train, labels = features(40, seed)
    test, _ = features(8, seed + 1)
    ks = [20, 3, 40]
    chunks = list(class_scores(train, labels, test, ks, temperature, 7, chunk))
    for k in ks:
        found = torch.cat([scores[k] for scores in chunks])
        expected = torch.stack([slowly(train, labels, x, k, temperature, 7) for x in test])
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-12)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 40), st.floats(0.01, 100))
def test_invariants(seed, k, scale):
    """Neither the order of the training images, nor lengths, nor the chunk changes anything."""
    train, labels = features(40, seed)
    test, truth = features(30, seed + 1)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    (base,) = weighted_knn(train, labels, test, truth, [k], 0.07, 7)
    variants = [
        (train[order], labels[order], test, 256),
        (train * scale, labels, test / scale, 256),
        (train, labels, test, 4),
    ]
    for changed_train, changed_labels, changed_test, chunk in variants:
        (found,) = weighted_knn(
            changed_train, changed_labels, changed_test, truth, [k], 0.07, 7, chunk
        )
        assert (found.top1, found.top5) == (base.top1, base.top5)
        assert found.predictions.equal(base.predictions)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_renamed_classes_change_nothing(seed):
    train, labels = features(40, seed)
    test, truth = features(30, seed + 1)
    names = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
    (base,) = weighted_knn(train, labels, test, truth, [15], 0.07, 7)
    (found,) = weighted_knn(train, names[labels], test, names[truth], [15], 0.07, 7)
    assert (found.top1, found.top5) == (base.top1, base.top5)
    assert found.predictions.equal(names[base.predictions])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.data(), st.integers(0, 10**6))
def test_largest_is_topk(columns, data, seed):
    k = data.draw(st.integers(1, columns))
    values = torch.randn(4, columns, generator=torch.Generator().manual_seed(seed))
    found, places = largest(values, k)
    assert found.equal(values.topk(k, dim=1).values)
    assert values.gather(1, places).equal(found)


def test_largest_with_ties():
    values = torch.zeros(2, 400)
    values[:, ::7] = 1
    found, places = largest(values, 20)
    assert found.equal(torch.ones(2, 20))
    assert all(len(set(row)) == 20 for row in places.tolist())


def test_several_k_are_each_as_alone():
    train, labels = features(50, 0)
    test, truth = features(30, 1)
    together = weighted_knn(train, labels, test, truth, [20, 1, 50, 7], 0.07, 7)
    for vote, k in zip(together, [20, 1, 50, 7], strict=True):
        (alone,) = weighted_knn(train, labels, test, truth, [k], 0.07, 7)
        assert (vote.k, vote.top1, vote.top5) == (k, alone.top1, alone.top5)


def test_more_neighbours_than_images_are_all_of_them():
    train, labels = features(50, 0)
    test, truth = features(30, 1)
    all_of_them, more = weighted_knn(train, labels, test, truth, [50, 200], 0.07, 7)
    assert (more.top1, more.top5) == (all_of_them.top1, all_of_them.top5)


def test_one_neighbour():
    train, labels = features(50, 0)
    (vote,) = weighted_knn(train, labels, train[:9], labels[:9], [1], 0.07, 7)
    assert (vote.top1, vote.top5) == (100.0, 100.0)


def test_a_low_temperature_stays_finite_and_strict():
    """A far neighbour's vote is tiny but positive: its class still counts for Top-5."""
    train = torch.tensor([[1.0, 0.0], [-1.0, 0.001]])
    test, truth = torch.tensor([[1.0, 0.0]]), torch.tensor([4])
    labels = torch.tensor([2, 4])
    for temperature in (0.005, 0.07):
        (vote,) = weighted_knn(train, labels, test, truth, [5], temperature, 6)
        assert (vote.top1, vote.top5) == (0.0, 100.0)
        assert vote.predictions.tolist() == [2]


def test_strict_top5():
    """Class 1 has no neighbour: it is no hit, though fewer than five classes have a score."""
    train, labels = torch.eye(3), torch.tensor([0, 2, 3])
    (vote,) = weighted_knn(train, labels, train[:1], torch.tensor([1]), [3], 0.07, 10)
    assert vote.top5 == 0.0


def test_fewer_than_five_classes_have_no_top5():
    train, labels = features(20, 0, classes=4)
    assert weighted_knn(train, labels, train, labels, [5], 0.07, 4)[0].top5 is None
    assert weighted_knn(train, labels, train, labels, [5], 0.07, 5)[0].top5 is not None


def test_ranks_break_ties_by_class():
    scores = torch.tensor([[0.0, 2.0, 2.0, 1.0, 0.0]]).expand(5, 5)
    places = ranks(scores, torch.arange(5))
    assert places.tolist() == [5, 0, 1, 2, 5]
    assert top_percent(places, 2) == 40.0


def test_confusion():
    table = confusion(torch.tensor([0, 0, 2]), torch.tensor([0, 1, 2]), 3)
    assert table.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()


def save(path, values, labels, count=7, **changes):
    names = [f"class {i}" for i in range(count)]
    digests = {f"{key}_sha256": sha(key) for key in ("encoder", "dataset")}
    about = {**digests, "classes": names} | changes
    save_file({"features": values, "labels": labels}, path, metadata={"about": json.dumps(about)})


@pytest.fixture
def embeddings(tmp_path):
    """Return a function that writes the two files and returns their paths."""

    def write(classes=7, test_count=30, **about):
        paths = []
        for split, count, seed in (("train", 60, 0), ("test", test_count, 1)):
            values, labels = features(count, seed, classes=classes)
            paths.append(tmp_path / f"{split}.safetensors")
            save(paths[-1], values, labels, classes, split=split, **about.get(split, {}))
        return paths

    return write


def evaluate(train, test, config, output_dir):
    run, manifest = train.parent / "run", train.parent / "manifest.json"
    run.mkdir(exist_ok=True)
    (run / "encoder.safetensors").write_text("encoder")
    manifest.write_text("dataset")
    inputs = Inputs(run, manifest, torch.device("cpu"), train=train, test=test)
    return evaluate_inputs(inputs, config, output_dir)


def config(**changes):
    return Config(**({"kind": "knn", "dataset": "toy"} | changes))


def test_a_result_from_files(embeddings, tmp_path):
    result = evaluate(*embeddings(), config(k=[5, 200]), tmp_path / "knn")
    assert result.protocol == "knn-cls-t0.07"
    assert result.samples == 30  # the published code fails below 100
    assert result.metrics.keys() == {"top1_k5", "top5_k5", "top1_k200", "top5_k200"}
    assert [path.name for path in result.artefacts] == ["per_class.csv", "confusion.csv"]
    per_class, pairs = (list(csv.DictReader(path.open())) for path in result.artefacts)
    assert [row["class"] for row in per_class] == [f"class {i}" for i in range(7)]
    right = sum(int(row["images"]) * float(row["top1_k5"] or 0) / 100 for row in per_class)
    assert 100 * right / 30 == pytest.approx(result.metrics["top1_k5"])
    of_five = [row for row in pairs if row["k"] == "5"]
    assert sum(int(row["images"]) for row in of_five) == 30
    diagonal = sum(int(row["images"]) for row in of_five if row["class"] == row["predicted"])
    assert 100 * diagonal / 30 == pytest.approx(result.metrics["top1_k5"])


def test_few_classes_give_null(embeddings, tmp_path):
    result = evaluate(*embeddings(classes=3), config(k=[5]), tmp_path / "knn")
    assert result.metrics["top5_k5"] is None


def test_protocol_names_the_temperature(embeddings, tmp_path):
    result = evaluate(*embeddings(), config(temperature=0.1, k=[5]), tmp_path / "knn")
    assert result.protocol == "knn-cls-t0.1"


@pytest.mark.parametrize("key", ["encoder_sha256", "dataset_sha256"])
def test_files_that_do_not_belong_together(embeddings, tmp_path, key):
    with pytest.raises(UserError, match=rf"train\.safetensors and .*test\.safetensors.*{key}"):
        evaluate(*embeddings(test={key: "other"}), config(), tmp_path / "knn")


@pytest.mark.parametrize("key", ["encoder", "dataset"])
def test_files_of_another_run_or_set(embeddings, tmp_path, key):
    about = {f"{key}_sha256": sha("other")}
    with pytest.raises(UserError, match=rf"train\.safetensors was not made with .*\({key}_sha256"):
        evaluate(*embeddings(train=about, test=about), config(), tmp_path / "knn")


def test_files_in_the_wrong_order(embeddings, tmp_path):
    train, test = embeddings()
    with pytest.raises(UserError, match=r"test\.safetensors holds the split 'test' where 'train'"):
        evaluate(test, train, config(), tmp_path / "knn")


def test_other_classes(embeddings, tmp_path):
    with pytest.raises(UserError, match="different classes"):
        evaluate(*embeddings(test={"classes": ["x"]}), config(), tmp_path / "knn")


def test_features_that_are_not_finite(embeddings, tmp_path):
    train, test = embeddings()
    values, labels = features(60, 0)
    values[3, 1] = float("nan")
    save(train, values, labels)
    with pytest.raises(UserError, match=r"train\.safetensors holds features that are not finite"):
        evaluate(train, test, config(), tmp_path / "knn")


@pytest.mark.parametrize("changes", [{"k": []}, {"k": [0]}, {"k": [5, 5]}, {"temperature": 0}])
def test_settings_out_of_range(changes):
    with pytest.raises(ValidationError):
        config(**changes)


def test_registry():
    assert "knn" in evaluation_names()
    entry = get_evaluation("knn")
    assert (entry.needs, entry.load().Config) == ("embeddings", Config)
    with pytest.raises(UserError, match=r"unknown evaluation 'kn'; did you mean 'knn'\?"):
        get_evaluation("kn")


def test_the_registry_needs_no_torch():
    import subprocess
    import sys

    code = "import sys, timewalk.evaluation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
