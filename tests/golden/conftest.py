"""Golden files: the folder in TIMEWALK_GOLDEN, or the copies beside this file."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(os.environ.get("TIMEWALK_GOLDEN", Path(__file__).parent / "data"))


def load(*parts):
    """Return a golden file's content: arrays by name, a JSON value, or the path of another kind.

    The test is skipped, by name, where the set or the file is absent.
    """
    path = FOLDER.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"golden {'/'.join(parts)} is not in {FOLDER}")
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: arrays[name] for name in arrays.files}
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    return path


@pytest.fixture(scope="session")
def golden():
    """Return the loader: ``golden("dora", "loss.npz")``."""
    return load
