import subprocess

import torch

from timewalk.provenance import PACKAGES, git_commit, provenance


def test_where_a_result_comes_from():
    origin = provenance(torch.device("cpu"), seed=3)
    assert origin["packages"].keys() == set(PACKAGES)
    assert (
        origin["packages"]["torch"] == torch.__version__.split("+")[0] or "+" in torch.__version__
    )
    assert (origin["seed"], origin["device"].split()[0]) == (3, "cpu")


def test_the_commit_is_the_checkouts(root):
    commit = git_commit()
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True)
    expected = done.stdout.strip()
    assert (commit or "").removesuffix("+changes") == expected
