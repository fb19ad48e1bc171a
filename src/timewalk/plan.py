"""What the workflow needs of a suite, as plain data that is read without importing torch.

Checking a configuration imports every method and evaluation that it names, and so torch: seconds,
in each call of Snakemake and once more in each of its jobs on a cluster. What comes of it is kept
in a file, by the digests of the configuration and of the package's code.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timewalk.artefacts import version, write_text
from timewalk.check import check
from timewalk.config import Config, DatasetConfig, lookup

KEPT = 16
"""plans that are kept: a suite has one for each state of its configuration"""


@dataclass(frozen=True)
class Plan:
    """A checked configuration: its frame as a model, its entries as they go to the command line.

    Attributes:
        config: the frame.
        runs: the settings of each run, with its method's defaults.
        evaluations: the same of each evaluation.
        finetunings: the same of each fine-tuning.
        origins: of each run that begins with another run's encoder, the name of that one.
        trained: the runs that train.
        needs: what each evaluation reads: `embeddings`, `encoder` or `network`.
    """

    config: Config
    runs: dict[str, dict[str, Any]]
    evaluations: dict[str, dict[str, Any]]
    finetunings: dict[str, dict[str, Any]]
    origins: dict[str, str]
    trained: list[str]
    needs: dict[str, str]

    def run(self, name: str) -> dict[str, Any]:
        """Return a run; an unknown name is a :class:`UserError` with the nearest one."""
        return lookup("run", name, self.runs)

    def dataset(self, name: str) -> DatasetConfig:
        """Return a training set; an unknown name is a :class:`UserError`."""
        return lookup("data set", name, self.config.datasets)

    def evaluation(self, name: str) -> dict[str, Any]:
        """Return an evaluation; an unknown name is a :class:`UserError`."""
        return lookup("evaluation", name, self.evaluations)

    def finetuning(self, name: str) -> dict[str, Any]:
        """Return a fine-tuning; an unknown name is a :class:`UserError`."""
        return lookup("fine-tuning", name, self.finetunings)

    def evaluations_of(self, run: str) -> list[str]:
        """Return the names of the evaluations that a run goes through."""
        return [
            name
            for name, item in self.evaluations.items()
            if item["runs"] is None or run in item["runs"]
        ]


def load_plan(raw: Mapping[str, Any], folder: Path) -> Plan:
    """Check a configuration, or read what came of it when it was checked before.

    Args:
        raw: the configuration as it was read.
        folder: of the plans.

    Raises:
        UserError: as :func:`timewalk.suite.load_suite`.
    """
    digest = hashlib.sha256(f"{raw!r} {version()} {_code()}".encode()).hexdigest()
    path = folder / f"{digest[:24]}.json"
    with suppress(FileNotFoundError):
        return Plan(check(Config, raw), **json.loads(path.read_text(encoding="utf-8")))
    plan = _resolved(raw)
    content = {name: value for name, value in vars(plan).items() if name != "config"}
    write_text(path, json.dumps(content))  # in the order of the configuration: so are the tables
    _forget(folder.glob("[!.]*.json"))
    return plan


def _resolved(raw: Mapping[str, Any]) -> Plan:
    # Only here: it imports torch.
    from timewalk import evaluation, methods
    from timewalk.suite import load_suite

    suite = load_suite(raw)
    return Plan(
        config=suite.config,
        runs={name: run.model_dump(mode="json") for name, run in suite.runs.items()},
        evaluations={name: x.model_dump(mode="json") for name, x in suite.evaluations.items()},
        finetunings={name: x.model_dump(mode="json") for name, x in suite.finetunings.items()},
        origins=suite.origins,
        trained=[n for n, run in suite.runs.items() if methods.get_method(run.method).trains],
        needs={n: evaluation.get_evaluation(x.kind).needs for n, x in suite.evaluations.items()},
    )


def _code() -> str:
    """Return a digest of the package's code."""
    digest = hashlib.sha256()
    package = Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)} {path.stat().st_size} ".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _forget(plans: Iterable[Path]) -> None:
    found = []
    for path in plans:
        # Others, too, write plans and forget them.
        with suppress(FileNotFoundError):
            found.append((path.stat().st_mtime, path))
    for _, old in sorted(found)[:-KEPT]:
        old.unlink(missing_ok=True)
