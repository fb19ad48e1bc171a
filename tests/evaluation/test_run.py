"""From the command line to the result's JSON, for every kind of encoder."""

import json
import logging

import numpy as np
import pytest
import torch

from timewalk.artefacts import read_json, sha256_file, write_json
from timewalk.cli import main
from timewalk.errors import UserError
from timewalk.evaluation import coco, knn
from timewalk.evaluation.base import Inputs, Result
from timewalk.evaluation.knn import Config
from timewalk.evaluation.run import numbers, run_evaluation

CPU = ["--gpus", "0", "--threads", "1"]
SETTINGS = {
    "knn": {"kind": "knn", "dataset": "colours", "k": [3]},
    "probe": {
        "kind": "linear",
        "dataset": "colours",
        "n_last_blocks": 2,
        "cached": True,
        "epochs": 2,
        "batch_size": 12,
    },
}


def command(name, run, output, dataset, *options):
    settings = ["--settings", json.dumps(SETTINGS[name])]
    paths = ["--dataset", str(dataset), "--frames"]
    return ["evaluate", name, str(run), str(output), *settings, *paths, *options, *CPU]


def embeddings(run, dataset, folder):
    paths = [str(folder / f"{split}.safetensors") for split in ("train", "test")]
    for split, path in zip(("train", "test"), paths, strict=True):
        assert main(["embed", str(run), str(dataset), split, path, *CPU]) == 0
    return paths


@pytest.mark.parametrize("encoder", ["vit", "resnet"])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_result(run_of, set_of, tmp_path, encoder, name):
    run, dataset, output = run_of(encoder), set_of(6), tmp_path / encoder / f"{name}.json"
    options = ["--embeddings"]
    if name == "knn":
        options += embeddings(run, dataset, tmp_path)
    assert main(command(name, run, output, dataset, *options)) == 0
    record = read_json(output)
    assert (record["run"], record["evaluation"]) == (encoder, name)
    assert (record["dataset"], record["split"], record["samples"]) == ("colours", "test", 18)
    assert all(0 <= value <= 100 for value in record["metrics"].values())
    assert all((output.parent / path).is_file() for path in record["artefacts"])
    origin = record["provenance"]
    assert origin["dataset_sha256"] == sha256_file(dataset)
    assert origin["dataset_kind"] == read_json(dataset)["parameters"]["kind"]
    assert origin["encoder_sha256"] == sha256_file(run / "encoder.safetensors")
    assert origin["frames_sha256"] == {}
    assert len(origin["embeddings"]) == (2 if name == "knn" else 0)
    assert origin["device"].startswith("cpu")


def test_knn_of_colours_is_right(run_of, set_of, tmp_path):
    run, dataset, output = run_of("resnet"), set_of(6), tmp_path / "knn.json"
    paths = embeddings(run, dataset, tmp_path)
    assert main(command("knn", run, output, dataset, "--embeddings", *paths)) == 0
    assert read_json(output)["metrics"]["top1_k3"] == 100.0


def test_features_that_were_not_named(run_of, set_of, tmp_path, capsys):
    code = main(command("knn", run_of("vit"), tmp_path / "knn.json", set_of(6)))
    assert code == 1
    assert "name them with --embeddings TRAIN TEST" in capsys.readouterr().err
    assert not (tmp_path / "knn.json").exists()


def test_one_split_is_not_enough(run_of, set_of, tmp_path):
    inputs = Inputs(run_of("vit"), set_of(6), torch.device("cpu"), train=tmp_path / "a")
    with pytest.raises(UserError, match="reads the features of both splits"):
        run_evaluation("knn", inputs, Config(dataset="colours"), tmp_path / "knn.json")


def test_frames_are_in_the_provenance(run_of, set_of, tmp_path):
    run, dataset, output = run_of("vit"), set_of(6), tmp_path / "knn.json"
    frames = tmp_path / "walk" / "manifest.json"
    frames.parent.mkdir()
    frames.write_text("{}")
    paths = embeddings(run, dataset, tmp_path)
    inputs = Inputs(run, dataset, torch.device("cpu"), *map(type(tmp_path), paths), (frames,))
    record = run_evaluation("knn", inputs, Config(dataset="colours", k=[3]), output)
    assert record["provenance"]["frames_sha256"] == {"walk": sha256_file(frames)}


def test_a_network_of_another_encoder_is_refused_before_the_work(run_of, set_of, tmp_path):
    run = run_of("vit")
    network = tmp_path / "network"
    write_json(network / "network.json", {"provenance": {"weights": {"results/other": "0" * 64}}})
    inputs = Inputs(run, set_of(6), torch.device("cpu"), network=network)
    config = coco.Config(dataset="things", network="detect")
    with pytest.raises(
        UserError, match=r"network\.json is of another encoder than .*encoder\.safe"
    ):
        run_evaluation("coco", inputs, config, tmp_path / "coco.json")
    assert not (tmp_path / "coco").exists()


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        *((1, 1), (0.5, 0.5), (None, None), (np.float32(0.5), 0.5), (np.int64(3), 3)),
        *((np.array(2.0), 2.0), (torch.tensor(0.5, requires_grad=True), 0.5), (torch.tensor(3), 3)),
    ],
)
def test_a_number_is_a_number(value, plain):
    found = numbers({"a": value}, "evaluations.x")["a"]
    assert (found, type(found)) == (plain, type(plain))


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (torch.ones(1), r"a torch\.Tensor of shape \(1,\)"),
        (np.ones((2, 3)), r"a numpy\.ndarray of shape \(2, 3\)"),
        ("0.5", "a str"),
        ([0.5], "a list"),
        (True, "a bool"),
        (np.True_, r"a numpy\.bool"),
        (torch.tensor(1j), r"a torch\.Tensor"),
    ],
)
def test_what_is_no_number_is_named(value, what):
    with pytest.raises(UserError, match=rf"^evaluations\.x: the metric 'a' is {what}.*, no number"):
        numbers({"b": 1.0, "a": value}, "evaluations.x")


def test_metrics_are_written_plainly_and_strays_are_named(
    run_of, set_of, tmp_path, monkeypatch, caplog
):
    run, dataset = run_of("vit"), set_of(6)
    found = {"top1_k3": torch.tensor(50.0), "top1": np.float64(1.0)}
    monkeypatch.setattr(knn, "evaluate", lambda *_: Result("p", found, 3))
    paths = map(type(tmp_path), embeddings(run, dataset, tmp_path))
    inputs, output = Inputs(run, dataset, torch.device("cpu"), *paths), tmp_path / "knn.json"
    with caplog.at_level(logging.WARNING):
        run_evaluation("near", inputs, Config(dataset="colours"), output)
    assert read_json(output)["metrics"] == {"top1_k3": 50.0, "top1": 1.0}
    (said,) = [r.getMessage() for r in caplog.records if "declare" in r.getMessage()]
    assert said.startswith("evaluations.near: the entry 'knn' of ")
    assert "does not declare 'top1'; add what is missing to its 'metrics'" in said
