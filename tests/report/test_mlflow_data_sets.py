"""Data sets in a real store."""

import json

from tests.report.mirrored import (
    call,
    knn,
    runs,
    write,
)
from timewalk.artefacts import sha256_json


def test_data_sets_with_their_digests(results):
    call(results)
    found = {
        name: [
            (x.dataset.name, x.dataset.digest, x.tags[0].value, json.loads(x.dataset.source))
            for x in run.inputs.dataset_inputs
        ]
        for name, run in runs(results).items()
    }
    [(name, _, context, source)] = found["dora"]
    assert (name, context) == ("talk", "training")
    assert source["manifests"]["data/shards/talk/b.json"] == "b" * 64
    evaluated = ("digits", "d" * 32, "evaluation (test)", {"manifest_sha256": "d" * 64})
    assert found["dora/knn"] == [evaluated]
    assert found["dora/finetuned/segmented"][0][:3] == ("scenes", "e" * 32, "training")


def test_very_many_manifests_are_counted(results):
    path = results / "dora" / "encoder.json"
    about = json.loads(path.read_text())
    inputs = {f"data/shards/talk/video-{n:05}.json": f"{n:064x}" for n in range(1000)}
    about["provenance"]["inputs"] = inputs
    result = knn(results / "dora")
    result["provenance"]["frames_sha256"] = {f"video-{n:05}": f"{n:064x}" for n in range(1000)}
    write(path, about)
    write(results / "dora" / "knn.json", result)
    call(results)
    found = runs(results)
    [training] = found["dora"].inputs.dataset_inputs
    source = json.loads(training.dataset.source)
    folder = "data/shards/talk"
    assert source == {"count": 1000, "folder": folder, "sha256": sha256_json(inputs)}
    sources = [json.loads(x.dataset.source) for x in found["dora/knn"].inputs.dataset_inputs]
    assert 1000 in [source.get("count") for source in sources]
