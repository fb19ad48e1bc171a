"""The official davis2017-evaluation beside ours: its tables have to be the same, digit for digit.

It is on no package registry; `envs/davis.yaml` installs it from its public repository, and
``tool_path`` names a checkout. Sheet: davis-metrics, section 8.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from timewalk.errors import UserError

SCRIPT = "evaluation_method.py"
PACKAGE = "davis2017"


def compare_with_official(folder: Path, davis: Path, subset: str, tool_path: str | None) -> None:
    """Run the official tool on ``folder/masks`` and compare its tables with those in ``folder``.

    Args:
        folder: holds `masks/` and our two tables.
        davis: root of the data set.
        subset: name of the set file.
        tool_path: folder of the tool's checkout; None: where the package `davis2017` lies.

    Raises:
        UserError: the tool is missing, fails, or disagrees.
    """
    script = _script(tool_path)
    names = [f"global_results-{subset}.csv", f"per-sequence_results-{subset}.csv"]
    with tempfile.TemporaryDirectory(prefix="davis-official-") as scratch:
        results = Path(scratch) / "results"
        results.mkdir()
        # The tool takes tables that are there for its own, so it gets a folder without any.
        for masks in (folder / "masks").iterdir():
            (results / masks.name).symlink_to(masks.resolve())
        command = [sys.executable, str(script), "--task", "semi-supervised", "--set", subset]
        command += ["--davis_path", str(davis.resolve()), "--results_path", str(results)]
        environment = os.environ | {"PYTHONPATH": str(script.parent)}
        done = subprocess.run(
            command, cwd=script.parent, env=environment, capture_output=True, text=True
        )
        # It ends with status 0 after some of its errors: only its tables count.
        for name in names:
            if not (results / name).is_file():
                said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
                raise UserError(f"{script} has written no {name} ({said[-1]}).")
            theirs, ours = (results / name).read_text(), (folder / name).read_text()
            if theirs.split() != ours.split():
                raise UserError(
                    f"{folder / name} differs from what {script} gives; report this with both "
                    "tables, and use 'tool: ours' meanwhile."
                )


def _script(tool_path: str | None) -> Path:
    if tool_path is not None:
        script = Path(tool_path) / SCRIPT
        if not script.is_file():
            raise UserError(f"tool_path: {script} is missing; name the folder of its checkout.")
        return script.resolve()
    spec = importlib.util.find_spec(PACKAGE)
    places = list(spec.submodule_search_locations or []) if spec else []
    for place in places:
        script = Path(place).parent / SCRIPT
        if script.is_file():
            return script
    raise UserError(
        "tool: 'official' needs davis2017-evaluation; clone it and name its folder under tool_path."
    )
