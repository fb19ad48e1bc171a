"""From the command line to the result's JSON, for every kind of encoder."""

import json

import pytest
import torch

from timewalk.artefacts import read_json, sha256_file, write_json
from timewalk.cli import main
from timewalk.errors import UserError
from timewalk.evaluation import coco
from timewalk.evaluation.base import Inputs
from timewalk.evaluation.knn import Config
from timewalk.evaluation.run import run_evaluation

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
