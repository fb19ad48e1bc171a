"""What the workflow reads of a suite: the same as the suite, and without torch the second time."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from timewalk import evaluation, methods, plan
from timewalk.errors import UserError
from timewalk.plan import load_plan
from timewalk.suite import load_suite

DEMO = yaml.safe_load((Path(__file__).parents[1] / "workflow" / "demo.yaml").read_text())


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plans")
    return folder, load_plan(DEMO, folder)


def test_it_says_what_the_suite_says(plans):
    suite, (_, made) = load_suite(DEMO), plans
    assert made.config == suite.config
    for name in ("runs", "evaluations", "finetunings"):
        entries = getattr(suite, name)
        assert list(getattr(made, name)) == list(entries)
        assert getattr(made, name) == {n: x.model_dump(mode="json") for n, x in entries.items()}
    assert made.origins == suite.origins == {"timet": "dino", "smtc": "random"}
    assert set(made.trained) == {
        name for name, run in suite.runs.items() if methods.get_method(run.method).trains
    }
    assert "random" not in made.trained
    for name, item in suite.evaluations.items():
        assert made.needs[name] == evaluation.get_evaluation(item.kind).needs
    for run in suite.runs:
        assert made.evaluations_of(run) == suite.evaluations_of(run) != []


def test_the_second_time_it_is_the_same_without_torch(plans):
    folder, made = plans
    code = (
        "import sys, yaml; from pathlib import Path; from timewalk.plan import load_plan;"
        "plan = load_plan(yaml.safe_load(open(sys.argv[1])), Path(sys.argv[2]));"
        "print(sorted(plan.runs), plan.trained, 'torch' in sys.modules)"
    )
    demo = Path(__file__).parents[1] / "workflow" / "demo.yaml"
    words = [sys.executable, "-c", code, str(demo), str(folder)]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert said == f"{sorted(made.runs)} {made.trained} False\n"
    assert load_plan(DEMO, folder) == made
    assert list(load_plan(DEMO, folder).runs) == list(DEMO["runs"])  # tables have its order


def test_each_configuration_and_each_state_of_the_code_has_its_own(plans, monkeypatch):
    folder, made = plans
    before = set(folder.iterdir())
    changed = DEMO | {"runs": DEMO["runs"] | {"crw": DEMO["runs"]["crw"] | {"temperature": 0.06}}}
    assert load_plan(changed, folder).run("crw")["temperature"] == 0.06
    assert made.run("crw")["temperature"] == 0.05
    monkeypatch.setattr(plan, "_code", lambda: "another")
    load_plan(DEMO, folder)
    assert len(set(folder.iterdir()) - before) == 2


def test_a_mistake_is_told_every_time(tmp_path):
    wrong = DEMO | {"runs": {"crw": {"method": "crv"}}}
    for _ in range(2):
        with pytest.raises(UserError, match=r"runs.crw.method: unknown method 'crv'; .*'crw'"):
            load_plan(wrong, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_old_ones_go(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "KEPT", 2)
    small = {"runs": {"random": {"method": "random"}}}
    for seed in range(4):
        load_plan(small | {"runs": {"random": {"method": "random", "seed": seed}}}, tmp_path)
        for age, path in enumerate(sorted(tmp_path.iterdir(), key=lambda p: p.stat().st_mtime_ns)):
            os.utime(path, ns=(0, age + 1))
    assert len(list(tmp_path.iterdir())) == 2
    last = load_plan({"runs": {"random": {"method": "random", "seed": 3}}}, tmp_path)
    assert last.run("random")["seed"] == 3


def test_several_write_and_forget_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "KEPT", 1)

    def load(seed):
        return load_plan({"runs": {"random": {"method": "random", "seed": seed % 5}}}, tmp_path)

    with ThreadPoolExecutor(8) as pool:
        for seed, made in enumerate(pool.map(load, range(40))):
            assert made.run("random")["seed"] == seed % 5


def test_unknown_names(plans):
    with pytest.raises(UserError, match="unknown run 'dorra'; did you mean 'dora'"):
        plans[1].run("dorra")
    with pytest.raises(UserError, match="unknown evaluation"):
        plans[1].evaluation("knm")
