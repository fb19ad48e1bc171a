"""The paper's suite: the whole graph without any data; mistakes before the first job."""

import importlib.util
import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.workflow.conftest import ROOT, Workflow, miniature

SPEC = importlib.util.spec_from_file_location("launcher", ROOT / "workflow" / "launcher.py")
launcher = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(launcher)


def paper(*words, cwd=ROOT):
    launcher = str(ROOT / "workflow" / "launcher.py")
    command = [sys.executable, launcher, "-n", "--nolock", "--cores", "8", *words]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def counts(text):
    """Return the job table of a dry run."""
    table = text.split("Job stats:")[1].strip().split("\n\n")[0].splitlines()[2:]
    rows = (line.split() for line in table)
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder with the project's workflow and nothing made yet: dry runs make nothing."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("Snakefile", "config.yaml", "workflow", "profiles", "envs"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def test_the_users_first_call(checkout):
    code, text = paper("--resources", "gpu=4", "results/dora/knn.json", cwd=checkout)
    assert code == 0, text
    assert counts(text) == {
        "download": 1,
        "frames": 1,
        "shards": 1,
        "train": 1,
        "prepare": 1,
        "embed": 2,
        "evaluate": 1,
        "total": 8,
    }


def test_a_target_of_the_demo_is_the_demos(checkout):
    code, text = paper("results/demo/crw/davis.json", cwd=checkout)
    assert code == 0, text
    assert counts(text) == {
        "download": 3,
        "frames": 3,
        "shards": 3,
        "train": 1,
        "prepare": 1,
        "evaluate": 1,
        "total": 12,
    }


def test_davis_of_the_paper(checkout):
    code, text = paper("results/crw/davis.json", cwd=checkout)
    assert code == 0, text
    assert counts(text)["prepare"] == counts(text)["evaluate"] == 1
    assert "embed" not in counts(text)


def test_a_fine_tuning_stands_between_run_and_evaluation(checkout):
    code, text = paper(
        "results/timet/ade20k.json", "results/timet/ade20k_linear.json", cwd=checkout
    )
    assert code == 0, text
    found = counts(text)
    assert [found[rule] for rule in ("train", "prepare", "finetune", "evaluate")] == [1, 2, 2, 2]


def test_all_ten_tours(checkout):
    code, text = paper("results/dora_wt_all/knn.json", cwd=checkout)
    assert code == 0, text
    assert counts(text)["download"] == counts(text)["shards"] == 10


def test_everything(checkout):
    code, text = paper("--quiet", "rules", cwd=checkout)
    assert code == 0, text
    suite = yaml.safe_load((ROOT / "config.yaml").read_text())
    runs = len(suite["runs"])
    pairs = sum(len(item.get("runs", suite["runs"])) for item in suite["evaluations"].values())
    found = {rule: counts(text)[rule] for rule in ("train", "evaluate", "card", "mlflow")}
    assert found == {"train": runs, "evaluate": pairs, "card": runs, "mlflow": 1}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("-n --resources gpu=4 results/a", "results/a -n --resources gpu=4"),
        ("--resources gpu=4 mem_mb=9 a b --cores 8", "a b --resources gpu=4 mem_mb=9 --cores 8"),
        ("a --config x=1 -- b", "a --config x=1 -- b"),
        ("--cores 8 a --profile slurm", "--cores 8 a --profile slurm"),
        (
            "--configfile a.yaml b.yml results/x.json -n",
            "results/x.json --configfile a.yaml b.yml -n",
        ),
        ("--configfile a.json results/x.json", "results/x.json --configfile a.json"),
        ("--configfile a.yaml -- results/x.json", "--configfile a.yaml -- results/x.json"),
    ],
)
def test_targets_may_stand_after_pairs(words, expected):
    assert launcher.targets_first(words.split()) == expected.split()


@pytest.mark.parametrize("where", ["video", "frames"])
def test_where_the_blur_is(tmp_path, where):
    workflow = Workflow(tmp_path)
    workflow.configure(
        {
            "blur": {"where": where},
            "datasets": {"walk": {"videos": ["venice"]}},
            "runs": {"dora": {"method": "dora", "dataset": "walk"}},
        }
    )
    outcome = workflow.run("data", "-n")
    assert outcome.code == 0, outcome.text
    assert ("blur" in counts(outcome.text)) == (where == "video")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["results/dorra/knn.json"], "unknown run 'dorra'; did you mean 'dora'?"),
        (["results/dora/knnn.json"], "unknown evaluation 'knnn'; did you mean 'knn'?"),
        (
            ["results/dora/finetuned/ade20k_linaer/network.json"],
            "unknown fine-tuning 'ade20k_linaer'; did you mean 'ade20k_linear'?",
        ),
        (
            ["results/dorra/finetuned/ade20k_linear/network.json"],
            "unknown run 'dorra'; did you mean 'dora'?",
        ),
        (["--config", "blurr=off"], "blurr: unknown key; did you mean 'blur'?"),
    ],
)
def test_a_typo_is_one_sentence_before_the_first_job(words, message):
    code, text = paper(*words)
    assert code == 1
    assert message in text
    assert "Traceback" not in text


def test_an_out_of_range_number(tmp_path):
    workflow = Workflow(tmp_path)
    workflow.configure({"blur": {"threshold": 3}})
    outcome = workflow.run("-n")
    assert outcome.code == 1
    assert "blur.threshold is 3" in outcome.text
    assert "Traceback" not in outcome.text


def test_more_videos_than_a_command_can_name(workflow):
    """Linux takes 128 KiB for a word, which a command of Snakemake's is."""
    config = miniature()
    draw = random.Random(0)
    names = [f"v{draw.getrandbits(700):0176x}" for _ in range(650)]
    config["videos"] = {name: {"source": "none.mp4"} for name in names}
    config["datasets"]["talk"]["videos"] = names
    workflow.configure(config)
    outcome = workflow.run("results/dora/encoder.safetensors", "--dry-run", "--printshellcmds")
    assert outcome.code == 0, outcome.text[-2000:]
    assert counts(outcome.text)["total"] == 3 * 650 + 1
    (command,) = (x for x in outcome.text.splitlines() if " train dora results/dora " in x)
    assert len(command) < 10_000
    listed = Path(workflow.folder, command.partition(" --shards ")[2])
    assert listed.stat().st_mtime == 1  # or a list that was lost would have the run trained again
    assert listed.read_text().splitlines() == [f"data/shards/talk/{name}.json" for name in names]
