"""Jobs inside a container image: what Snakemake asks Apptainer for. There is none here, so a
stand-in of that name notes its words and runs the job on this machine."""

import sys

from tests.workflow.conftest import TINY

STAND_IN = f"""#!{sys.executable}
import os, sys
words = sys.argv[1:]
if words == ["--version"]:
    sys.exit(print("apptainer version 1.3.4"))
with open("calls.txt", "a") as calls:
    print(*words, file=calls)
image = next(n for n, word in enumerate(words) if word.endswith(".sif"))
os.execvp(words[image + 1], words[image + 1 :])
"""


def test_each_job_runs_in_the_image_that_the_environment_names(workflow):
    stand_in = workflow.folder / "bin" / "apptainer"
    stand_in.parent.mkdir()
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    (workflow.folder / "timewalk.sif").touch()
    workflow.configure({"runs": {"random": {"method": "random", "encoder": TINY}}})
    path = f"{stand_in.parent}:{workflow.environment()['PATH']}"
    with_image = {"PATH": path, "TIMEWALK_IMAGE": "timewalk.sif"}
    words = ("results/random/encoder.safetensors", "--sdm", "apptainer")
    done = workflow.run(*words, environment=with_image)
    assert done.code == 0, done.text
    (call,) = (workflow.folder / "calls.txt").read_text().splitlines()
    assert call.startswith("exec ")
    assert "timewalk.sif" in call
    assert "timewalk --log logs/results/train-random.log train random" in call
    assert (workflow.folder / "results" / "random" / "encoder.safetensors").exists()
    again = workflow.run(*words, environment=with_image)
    assert "Nothing to be done" in again.text
