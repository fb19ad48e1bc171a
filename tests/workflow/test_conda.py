"""Environments that Snakemake makes: what their scripts install. There is no conda here, so a
stand-in of that name makes empty folders, and one of pip notes its words."""

from tests.workflow.conftest import ROOT, TINY

CONDA = """#!/bin/sh
case "$*" in
"info --json") echo '{{"conda_prefix": "{prefix}", "platform": "linux-64"}}' ;;
--version) echo conda 25.1.0 ;;
config*) echo '{{"get": {{"channel_priority": "strict"}}}}' ;;
*create*) while [ "$1" != --prefix ]; do shift; done; mkdir -p "$2/conda-meta" ;;
esac
"""
PIP = """#!/bin/sh
echo "$PWD: $*" >>{calls}
"""


def test_the_project_is_installed_wherever_snakemake_is_called_from(workflow):
    prefix = workflow.folder / "conda"
    calls = workflow.folder / "calls.txt"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin" / "activate").touch()
    for name, text in {"conda": CONDA, "pip": PIP}.items():
        program = prefix / "bin" / name
        program.write_text(text.format(prefix=prefix, calls=calls))
        program.chmod(0o755)
    workflow.configure({"runs": {"random": {"method": "random", "encoder": TINY}}})
    path = f"{prefix / 'bin'}:{workflow.environment()['PATH']}"
    words = ("results/random/encoder.safetensors", "--sdm", "conda", "--conda-create-envs-only")
    done = workflow.run(*words, environment={"PATH": path})
    assert done.code == 0, done.text
    assert calls.read_text() == f"{workflow.folder}: install --no-deps {ROOT}\n"
