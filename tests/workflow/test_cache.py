"""Features that projects share (`--cache`), by real Snakemake."""

import json
import shutil

import pytest
from safetensors import safe_open

from tests.workflow.conftest import Workflow

FEATURES = [
    f"results/{run}/embeddings/digits-{split}.safetensors"
    for run, split in (("random", "train"), ("random", "test"), ("dora", "test"))
]


@pytest.fixture
def projects(finished, tmp_path):
    """Two projects with their encoders, but without features, and a cache."""
    (tmp_path / "cache").mkdir()
    found = []
    for name in ("one", "two"):
        shutil.copytree(finished.folder, tmp_path / name, symlinks=True)
        for run in ("random", "dora"):
            shutil.rmtree(tmp_path / name / "results" / run / "embeddings")
        found.append(Workflow(tmp_path / name))
    return *found, {"SNAKEMAKE_OUTPUT_CACHE": str(tmp_path / "cache")}


def about(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["about"])


@pytest.mark.slow
def test_a_second_project_gets_the_features_of_the_first(finished, projects, tmp_path):
    one, two, cache = projects
    made = one.run(*FEATURES, "--cache", environment=cache)
    assert made.code == 0, made.text
    assert len(list((tmp_path / "cache").iterdir())) == len(FEATURES)
    taken = two.run(*FEATURES, "--cache", environment=cache)
    assert taken.code == 0, taken.text
    assert not (two.folder / "logs" / "results" / "embed-dora-digits-test.log").stat().st_size
    for file in FEATURES:
        # The miniature made its own, without a cache.
        assert (two.folder / file).read_bytes() == (finished.folder / file).read_bytes()
        assert (two.folder / file).resolve() == (one.folder / file).resolve()
        encoder = json.loads((two.folder / file).parents[1].joinpath("encoder.json").read_text())
        assert about(two.folder / file)["encoder_sha256"] == encoder["sha256"]
        assert about(two.folder / file)["split"] in file

    # The same settings and paths with another content: nothing of the cache is taken for it.
    encoder = two.folder / "results" / "random" / "encoder.json"
    encoder.write_text(encoder.read_text().replace('"sha256": "', '"sha256": "0'))
    manifest = two.folder / "data" / "datasets" / "digits" / "manifest.json"
    (two.folder / FEATURES[-1]).unlink()
    plan = two.run(*FEATURES, "--cache", "--dry-run", environment=cache).text
    assert plan.count("will be written to global between-workflow cache") == 2, plan
    assert plan.count("will be obtained from global between-workflow cache") == 1, plan
    manifest.write_text(manifest.read_text() + " ")
    plan = two.run(*FEATURES, "--cache", "--dry-run", environment=cache).text
    assert plan.count("will be written to global between-workflow cache") == 3, plan
