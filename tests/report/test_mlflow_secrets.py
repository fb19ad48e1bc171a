"""Addresses with secrets do not reach a real store."""

import json

import pytest

from tests.report.mirrored import (
    call,
    knn,
    runs,
    write,
)
from timewalk.addresses import public

SECRETS = (
    "https://me:pass%20word@weights.example/a.pth?token=hush&x='1'",
    'https://weights.example/b.pth?sig="hush"',
    "http://me:hush@weights.example/a.pth",
)


@pytest.mark.parametrize("address", SECRETS)
def test_addresses_with_secrets_stay_outside(results, address):
    run = results / "dora"
    about = json.loads((run / "encoder.json").read_text())
    origin = about["provenance"]
    origin["config"]["encoder"] = {"weights": address, "also": [address]}
    origin["weights"] = {address: "f" * 64}
    result = knn(run)
    result["provenance"]["training"] = {"seed": 3, "weights": origin["weights"]}
    result["provenance"]["settings"]["weights"] = address
    network = json.loads((run / "finetuned" / "segmented" / "network.json").read_text())
    network["provenance"]["config"]["weights"] = address
    write(run / "encoder.json", about)
    write(run / "config.json", origin["config"])
    write(run / "knn.json", result)
    write(run / "finetuned" / "segmented" / "network.json", network)
    (run / "card.md").write_text(f"# dora\n\nStarted from `{address}`.\n\n## Results\n\nNone.")
    (run / "knn" / "confusion.csv").write_text(f"a,{address}\n")
    top = call(results)
    found = runs(results)
    clean = public(address)
    assert found["dora"].data.params["encoder.weights"] == clean
    assert clean in found["dora"].data.params["encoder.also"]
    assert found["dora/knn"].data.params["weights"] == clean
    assert f"`{clean}`" in found["dora"].data.tags["mlflow.note.content"]
    kept = {path.name: path for path in (results / "mlartifacts" / top).rglob("*")}
    assert json.loads(kept["encoder.json"].read_text())["provenance"]["weights"].keys() == {clean}
    assert json.loads(kept["config.json"].read_text())["encoder"]["weights"] == clean
    everything = [path for path in (results / "mlartifacts").rglob("*") if path.is_file()]
    assert len([path for path in everything if path.name in (*kept, "knn.json")]) > 5
    for path in (*everything, results / "mlflow.db", results / "mlflow.json"):
        written = path.read_bytes()
        assert not [word for word in (b"hush", b"word@") if word in written], path
    assert address in (run / "card.md").read_text()
