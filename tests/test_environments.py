"""Environments and container recipes: the versions that are tested, and files that exist."""

import os
import re
import shlex
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from tests.workflow.forked import unshare

ROOT = Path(__file__).parents[1]
ENVS = ROOT / "envs"
# What each environment's steps need: the package itself and these extras, less what only the
# process that starts the steps imports.
EXTRAS = {
    "video": ["video", "openvino"],
    "training": ["figures", "phases", "segmentation", "detection", "keras", "demo"],
    "report": ["workflow"],
}
OUTSIDE = {"snakemake", "snakemake-logger-plugin-rich", "shtab", "pygments", "scikit-video"}
INSTALLED_BY = ["pyproject.toml", "constraints.txt", "workflow/launcher.py"]
RECIPE = ["Dockerfile", "timewalk.def"]
SAME = {"opencv-python-headless": "opencv-python"}
"""packages that are tested under another name: they differ in windows alone"""


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lines):
    """Return the versions of `name==version` lines."""
    found = (line.partition("==") for line in lines if "==" in line)
    return {canonical(name): version.strip() for name, _, version in found}


def packages(text):
    """Return what pip installs in an environment."""
    lists = [item for item in yaml.safe_load(text)["dependencies"] if isinstance(item, dict)]
    return lists[0]["pip"]


def differing(text, constraints):
    """Return the packages of an environment whose version is not the tested one."""
    return {
        name: (version, constraints.get(SAME.get(name, name)))
        for name, version in pins(packages(text)).items()
        if constraints.get(SAME.get(name, name)) != version
    }


def unpinned(text):
    """Return what pip installs of which the environment names no version and no commit."""
    pinned = re.compile(r"[\w.-]+==\d[\w.]*|--editable git\+https://\S+@[0-9a-f]{40}#egg=\w+")
    return [line for line in packages(text) if not pinned.fullmatch(line)]


@pytest.fixture(scope="module")
def constraints():
    return pins((ROOT / "constraints.txt").read_text().splitlines())


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements(project, extras):
    lists = [project["dependencies"], *(project["optional-dependencies"][x] for x in extras)]
    return {canonical(re.split(r"[<>=\[ ]", line)[0]) for lines in lists for line in lines}


@pytest.mark.parametrize("path", sorted(ENVS.glob("*.yaml")), ids=lambda path: path.stem)
def test_versions_are_the_tested_ones(path, constraints):
    assert unpinned(path.read_text()) == []
    assert differing(path.read_text(), constraints) == {}


def test_an_edited_version_is_found(constraints):
    text = (ENVS / "training.yaml").read_text()
    torch = constraints["torch"]
    assert f"torch=={torch}\n" in text
    edited = text.replace(f"torch=={torch}\n", "torch==1.0.0\n") + "      - unheard-of==2.0\n"
    found = differing(edited, constraints)
    assert found == {"torch": ("1.0.0", torch), "unheard-of": ("2.0", None)}


def test_a_dropped_pin_is_found():
    text = (ENVS / "davis.yaml").read_text()
    edited = re.sub(r"numpy==\S+", "numpy>=2", text).replace("@466c6d5201d0", "@main-")
    assert edited.count(">=2") == 1
    assert unpinned(edited) == ["numpy>=2", packages(edited)[-1]]


@pytest.mark.parametrize("name", EXTRAS)
def test_steps_find_what_they_import(name, project):
    found = set(pins(packages((ENVS / f"{name}.yaml").read_text())))
    assert requirements(project, EXTRAS[name]) - OUTSIDE - found == set()


def test_rules_name_environments_that_exist():
    used = set()
    for rules in sorted((ROOT / "workflow" / "rules").glob("*.smk")):
        text = rules.read_text()
        named = re.findall(r'conda:\n\s+"([^"]+)"', text)
        shells = len(re.findall(r"^    shell:", text, flags=re.MULTILINE))
        assert len(named) == shells, f"{rules.name}: a rule without `conda:`"
        used |= {(rules.parent / name).resolve() for name in named}
    assert used == {ENVS / f"{name}.yaml" for name in EXTRAS}
    for path in used:
        script = path.with_suffix(".post-deploy.sh")
        assert script.read_text() == (ENVS / "video.post-deploy.sh").read_text()
    for path in ENVS.glob("*.yaml"):
        assert path.name in (ENVS / "README.md").read_text()


def test_a_script_that_does_not_find_the_project_says_so():
    script = ["bash", ENVS / "video.post-deploy.sh"]
    environment = {"PATH": os.environ["PATH"], "TIMEWALK_PROJECT": "/nowhere"}
    done = subprocess.run(script, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("/nowhere is not timewalk's project folder: ")


def commands(recipe):
    """Return a recipe's shell commands, comments and continued lines undone."""
    lines = [line for line in recipe.splitlines() if not line.lstrip().startswith("#")]
    return " ".join("\n".join(lines).replace("\\\n", " ").split())


def copied(name, recipe):
    """Return what a recipe takes over from the project."""
    if name == "Dockerfile":
        words = [line.split() for line in recipe.splitlines() if line.startswith("COPY ")]
        return [word for line in words for word in line[1:-1]]
    block = recipe.split("%files\n")[1].split("\n%")[0]
    return [line.split()[0] for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize("name", RECIPE)
def test_recipes_copy_files_that_exist(name):
    sources = copied(name, (ENVS / name).read_text())
    assert len(sources) == 6
    assert all((ROOT / source).exists() for source in sources)
    ignored = (ENVS / "Dockerfile.dockerignore").read_text().split()
    allowed = [line[1:] for line in ignored if line.startswith("!")]
    assert all(any(fnmatch(source.split("/")[0], one) for one in allowed) for source in sources)


@pytest.mark.parametrize("name", RECIPE)
def test_recipes_install_extras_that_exist(name, project):
    text = commands((ENVS / name).read_text())
    words = shlex.split(text.split("pip install ")[1])
    assert words[:3] == ["--no-cache-dir", "--constraint", "constraints.txt"]
    extras = words[3].removeprefix(".[").removesuffix("]").split(",")
    assert set(extras) == set(project["optional-dependencies"]) - {"dev", "docs"}


def test_recipes_are_alike():
    docker, apptainer = (commands((ENVS / name).read_text()) for name in RECIPE)
    for pattern in (
        r"(?:FROM|From:) (python:\S+)",
        r"(apt-get install [-\w ]+ffmpeg)",
        r'pip install [^"]*"([^"]+)"',
        r"(\{ echo .*? > /usr/local/bin/snakemake)",
        r"(PYTHONNOUSERSITE=1)",
    ):
        one, other = (re.search(pattern, text) for text in (docker, apptainer))
        assert one, pattern
        assert other, pattern
        assert one[1] == other[1]
    for path in ENVS.glob("*.yaml"):  # and the Python of the environments
        python = re.search(r"python=(3\.\d+)", path.read_text())[1]
        assert f"python:{python}-" in docker


def test_recipes_are_of_a_python_that_the_project_takes(project):
    least = tuple(map(int, project["requires-python"].removeprefix(">=").split(".")))
    found = re.search(r"FROM python:(\d+)\.(\d+)", (ENVS / "Dockerfile").read_text())
    assert tuple(map(int, found.groups())) >= least


def test_a_disk_too_small_for_the_packages_is_one_sentence(tmp_path):
    command = unshare()
    if command is None:
        pytest.skip("a small disk needs root or user namespaces: mount is not allowed here")
    files = " ".join(shlex.quote(str(ROOT / file)) for file in ("Makefile", *INSTALLED_BY))
    script = (
        'mount -t tmpfs -o size=50m tmpfs "$0" && cd "$0" && mkdir workflow'
        f" && cp {files} . && mv launcher.py workflow && make setup; echo; ls -a"
    )
    words = [*command, "sh", "-c", script, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True)
    sentence, end = done.stderr.splitlines()
    assert sentence == (
        "0.1 GB are free here, the packages take 9: make room, or clone onto a larger disk"
    )
    assert "Error 1" in end
    assert ".venv" not in done.stdout.split()
