"""What the mirror leaves out, against a real store."""

import json
import shutil

from mlflow import MlflowClient

from tests.report.mirrored import (
    KINDS,
    call,
    files,
    knn,
    make_run,
    runs,
    write,
)
from timewalk.report import mlflow_records
from timewalk.report.mlflow import store_uri
from timewalk.report.mlflow_records import read_tree


def test_a_result_of_another_encoder_is_left_out_and_counted(results, caplog):
    old = (results / "dora" / "knn.json").read_text()
    shutil.rmtree(results / "dora")
    make_run(results / "dora", seed=1)
    (results / "dora" / "knn.json").write_text(old)
    top = call(results)
    assert runs(results).keys() == KINDS.keys() - {"dora/knn"}
    assert "knn/top1_k_10" not in runs(results)["dora"].data.metrics
    [output] = MlflowClient(store_uri(results)).get_run(top).outputs.model_outputs
    assert not MlflowClient(store_uri(results)).get_logged_model(output.model_id).metrics
    [line] = [line for line in caplog.messages if "knn.json" in line]
    assert "another encoder" in line
    assert json.loads((results / "mlflow.json").read_text())["results_left_out"] == 1
    write(results / "dora" / "knn.json", knn(results / "dora"))
    call(results)
    current = runs(results, "tags.`timewalk.superseded` = 'false'")
    assert current.keys() == KINDS.keys()
    assert json.loads((results / "mlflow.json").read_text())["results_left_out"] == 0


def test_a_fine_tuning_of_another_encoder_is_left_out_and_counted(results, caplog):
    network = results / "dora" / "finetuned" / "segmented" / "network.json"
    about = json.loads(network.read_text())
    first = call(results)
    assert runs(results).keys() == KINDS.keys()
    about["provenance"]["weights"] = {"results/dora": "0" * 64}
    write(network, about)
    assert call(results) != first
    current = runs(results, "tags.`timewalk.superseded` = 'false'")
    assert current.keys() == KINDS.keys() - {"dora/finetuned/segmented"}
    [line] = [line for line in caplog.messages if "network.json" in line]
    assert "another encoder" in line
    assert json.loads((results / "mlflow.json").read_text())["results_left_out"] == 1


def test_results_without_weights_keep_their_fine_tunings(results, caplog):
    """As docs/report.md hands them on."""
    (results / "dora" / "encoder.safetensors").unlink()
    top = call(results)
    assert runs(results).keys() == KINDS.keys()
    said = [
        line for line in caplog.messages if "dora" in line and ("gone" in line or "no w" in line)
    ]
    assert len(said) == 2
    assert not MlflowClient(store_uri(results)).get_run(top).outputs.model_outputs
    assert "model_version" not in json.loads((results / "mlflow.json").read_text())["runs"]["dora"]
    assert call(results) == top


def test_weights_are_read_once_and_only_for_fine_tunings_that_name_some(bare, monkeypatch):
    run, read = bare / "dora", []
    whole = mlflow_records.encoder_digest
    monkeypatch.setattr(
        mlflow_records, "encoder_digest", lambda folder: read.append(folder) or whole(folder)
    )
    shutil.copytree(run / "finetuned" / "segmented", run / "finetuned" / "again")
    assert len(read_tree(run, []).children) == 2
    assert read == [run]
    for network in run.glob("finetuned/*/network.json"):
        write(network, {"sha256": "f" * 64})
    assert len(read_tree(run, []).children) == 2
    assert read == [run]


def test_files_that_are_gone_are_left_out_and_counted(results, caplog):
    table = results / "dora" / "knn" / "confusion.csv"
    text = table.read_text()
    table.unlink()
    call(results)
    client = MlflowClient(store_uri(results))
    assert files(client, runs(results)["dora/knn"].info.run_id) == ["knn.json"]
    assert [line for line in caplog.messages if "confusion.csv is gone" in line]
    assert json.loads((results / "mlflow.json").read_text())["files_gone"] == 1
    table.write_text(text)
    call(results)
    current = runs(results, "tags.`timewalk.superseded` = 'false'")
    assert files(client, current["dora/knn"].info.run_id) == ["confusion.csv", "knn.json"]


def test_a_file_that_goes_meanwhile_stops_nothing(results, monkeypatch):
    figure = results / "dora" / "figures" / "objects-0.png"
    whole = MlflowClient.create_run

    def create_run(*words, **settings):
        figure.unlink(missing_ok=True)
        return whole(*words, **settings)

    monkeypatch.setattr(MlflowClient, "create_run", create_run)
    top = call(results)
    assert "figures/objects-0.png" not in files(MlflowClient(store_uri(results)), top)
