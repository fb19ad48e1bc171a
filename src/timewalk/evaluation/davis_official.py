"""The official davis2017-evaluation beside ours: its tables have to be the same, digit for digit.

It is on no package registry; `envs/davis.yaml` installs it from its public repository into an
environment of its own, and ``tool_path`` names a checkout. Source: DAVIS 2017.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from timewalk.errors import UserError, reason

SCRIPT = "evaluation_method.py"
PACKAGE = "davis2017"
FIND = f"import {PACKAGE}; print({PACKAGE}.__path__[0])"


def compare_with_official(
    folder: Path,
    davis: Path,
    subset: str,
    tool_path: str | None = None,
    tool_python: str | None = None,
) -> None:
    """Run the official tool on ``folder/masks`` and compare its tables with those in ``folder``.

    Args:
        folder: holds `masks/` and our two tables.
        davis: root of the data set.
        subset: name of the set file.
        tool_path: folder of the tool's checkout; None: beside the package `davis2017`.
        tool_python: the Python that runs it; None: this one.

    Raises:
        UserError: the tool is missing, fails, or disagrees.
    """
    python = tool_python or sys.executable
    script = _script(tool_path, python)
    names = [f"global_results-{subset}.csv", f"per-sequence_results-{subset}.csv"]
    with tempfile.TemporaryDirectory(prefix="davis-official-") as scratch:
        results = Path(scratch) / "results"
        results.mkdir()
        # The tool takes tables that are there for its own, so it gets a folder without any.
        for masks in (folder / "masks").iterdir():
            (results / masks.name).symlink_to(masks.resolve())
        command = [python, str(script), "--task", "semi-supervised", "--set", subset]
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


def _script(tool_path: str | None, python: str) -> Path:
    if tool_path is None:
        try:
            found = subprocess.run([python, "-c", FIND], capture_output=True, text=True)
        except OSError as error:
            raise UserError(f"tool_python: {python} cannot be run ({reason(error)}).") from None
        if found.returncode:
            raise UserError(
                f"tool: 'official' needs davis2017-evaluation, which {python} does not have; "
                "install envs/davis.yaml and name its python under tool_python, or name the "
                "folder of a clone under tool_path."
            )
        tool_path = str(Path(found.stdout.strip()).parent)
    script = Path(tool_path) / SCRIPT
    if not script.is_file():
        raise UserError(f"tool_path: {script} is missing; name the folder of a clone.")
    return script.resolve()
