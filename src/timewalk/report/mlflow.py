"""The one writer of MLflow: mirrors result files into the store, idempotently.

Training and evaluation write files only. Here each run's files become one MLflow run with a child
for each fine-tuning and each evaluation, found again by a tag that hashes their content: the same
files change nothing, changed files make new runs and mark the older ones as superseded. Killed
anywhere, it can run again: what is not FINISHED is deleted and written anew. Times come from the
files, so that repeating adds nothing.
"""

import json
import logging
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    Experiment,
    InputTag,
    LoggedModelInput,
    LoggedModelOutput,
    Metric,
    Param,
    Run,
    ViewType,
)

from timewalk.artefacts import alone, atomic_path, write_json
from timewalk.encoders.files import CARD as ENCODER
from timewalk.errors import UserError
from timewalk.report.mlflow_models import (
    find_model,
    has_weights,
    log_model,
    register,
    retire_versions,
)
from timewalk.report.mlflow_moved import ARTEFACTS, LOCK, STORE, artefacts_of, follow, is_ours
from timewalk.report.mlflow_owner import Owner, owner_of
from timewalk.report.mlflow_records import Entry, Point, Tree, flatten, metric_name, read_tree
from timewalk.report.mlflow_store import (
    AT_FIRST,
    LATER,
    answering,
    everywhere,
    is_remote,
    remove_files,
    store_uri,
    taken,
)
from timewalk.report.mlflow_view import write_view

__all__ = ["flatten", "metric_name", "mirror", "store_uri", "suite_name"]

log = logging.getLogger(__name__)

KEY, RUN, KIND, SUPERSEDED = (f"timewalk.{name}" for name in ("key", "run", "kind", "superseded"))
PARENT = "mlflow.parentRunId"
BATCH, TAGS = 1000, 100
"""metrics, and tags or parameters, in one call: MLflow's limits"""


def mirror(
    inputs: Sequence[Path], results: Path, experiment: str | None = None, stamp: Path | None = None
) -> None:
    """Mirror results into MLflow and write which MLflow run holds which of ours.

    Results of another encoder than their run's are left out, and so are files that are gone; what
    MLflow has of runs whose folders are gone is marked as superseded. What another folder of
    results has written to the same server stays as it is.

    Args:
        inputs: result files ``<run>/<evaluation>.json``, and ``<run>/card.md`` or
            ``<run>/encoder.json`` of runs that may have none; empty: whatever the folder holds.
        results: folder that holds the store and its artefacts.
        experiment: name of the MLflow experiment; by default :func:`suite_name`, or the only one
            of our own store, which may have another name since the folder had.
        stamp: JSON to write: our runs, their MLflow run numbers, keys and model versions, how many
            results and files were left out, and whether all this is in our own store.

    Raises:
        UserError: a file is missing or damaged, or the server does not answer.
    """
    folders = _by_folder(inputs or _found(results))
    trees = [read_tree(folder, paths) for folder, paths in sorted(folders.items())]
    names = {tree.folder.name for tree in trees}
    there = {path.parent.name for path in results.glob(f"*/{ENCODER}")}
    artefacts = results / ARTEFACTS
    # A server keeps artefacts where it was told to; our own store has them beside it.
    # Asked first: while MLflow knows our own store, its environment names it as a server's.
    uri, remote = store_uri(results), is_remote()
    location = None if remote else artefacts_of(results)
    with alone(artefacts / "store", artefacts / LOCK), everywhere(uri):
        if location is not None:
            _create_store(results / STORE)
            follow(results / STORE)
        with answering(uri, AT_FIRST), taken(uri) if remote else nullcontext():
            client = MlflowClient(uri)
            experiment = experiment or experiment_name(client, results, remote)
            number = _experiment(client, experiment, location)
        with answering(uri, LATER):
            owner = owner_of(results, remote)
            store = Store(client, experiment, number, artefacts, owner)
            written = {tree.folder.name: store.mirror(tree) for tree in trees}
            store.retire(there | names)
            write_view(client, number, trees)
    counts = {
        "results_left_out": sum(len(tree.left_out) for tree in trees),
        "files_gone": sum(len(tree.gone) for tree in trees),
    }
    if any(counts.values()):
        log.warning("left out: %(results_left_out)d results, %(files_gone)d files", counts)
    if stamp is not None:
        where = {"experiment": experiment, "own_store": owner.alone}
        write_json(stamp, {**where, "runs": written, **counts})


def suite_name(results: Path) -> str:
    """Return the name of a suite's experiment: ``MLFLOW_EXPERIMENT_NAME``, else `timewalk`, and
    behind it the name of a folder of results that is not just `results`."""
    own = [] if results.resolve().name == "results" else [results.resolve().name]
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or "-".join(["timewalk", *own])


def experiment_name(client: MlflowClient, results: Path, remote: bool) -> str:
    """Return the name of the experiment of a folder of results: :func:`suite_name`, or that of
    the only one of our own store, whose folder may have been renamed."""
    name = suite_name(results)
    chosen = remote or os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if chosen or client.get_experiment_by_name(name) is not None:
        return name
    own = [x.name for x in client.search_experiments() if is_ours(x.artifact_location)]
    return str(own[0]) if len(own) == 1 else name


def _found(results: Path) -> Iterator[Path]:
    """Yield the encoders below a folder and the results of their evaluations."""
    for about in sorted(results.glob(f"*/{ENCODER}")):
        others = {"config.json", "validation.json"}
        yield from (path for path in about.parent.glob("*.json") if path.name not in others)


def _by_folder(paths: Sequence[Path] | Iterator[Path]) -> dict[Path, list[Path]]:
    """Return the results of each run's folder; a card or an encoder stands for the run alone."""
    folders: dict[Path, list[Path]] = {}
    for path in paths:
        found = folders.setdefault(path.parent, [])
        if path.name not in (ENCODER, "card.md"):
            found.append(path)
    return folders


def _create_store(store: Path) -> None:
    """Make our own store under a temporary name: one that a kill left half made stays broken."""
    if store.exists():
        return
    with atomic_path(store) as temporary:
        MlflowClient(f"sqlite:///{temporary.resolve()}").search_experiments()


def _experiment(client: MlflowClient, name: str, location: str | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        # Else the dashboard opens on an empty page for language-model traces.
        kind = {"mlflow.experimentKind": "custom_model_development"}
        return str(client.create_experiment(name, artifact_location=location, tags=kind))
    refuse_deleted(found)
    return str(found.experiment_id)


def refuse_deleted(experiment: Experiment) -> None:
    """Refuse an experiment that somebody has deleted: nothing can be written to it or shown."""
    if experiment.lifecycle_stage == "deleted":
        raise UserError(
            f"the MLflow experiment '{experiment.name}' is deleted: restore it (mlflow experiments "
            f"restore --experiment-id {experiment.experiment_id}), or name another "
            "(MLFLOW_EXPERIMENT_NAME)."
        )


class Store:
    """An experiment in a store.

    Args:
        client: of the store.
        name: of the experiment.
        experiment: its number.
        scratch: folder for what is about to be sent.
        owner: who writes; what others wrote is left alone.
    """

    def __init__(
        self, client: MlflowClient, name: str, experiment: str, scratch: Path, owner: Owner
    ) -> None:
        self.client, self.name, self.experiment, self.scratch = client, name, experiment, scratch
        self.owner = owner

    def mirror(self, tree: Tree) -> dict[str, str]:
        """Write a tree unless it is there; return its run's number, key and model version."""
        name = tree.folder.name
        self.claim(name)
        existing = self.search(f"tags.`{KEY}` = '{tree.key}' and tags.`{RUN}` = '{name}'")
        own = [run for run in existing if self.owner.has(run.data.tags)]
        if not (done := _whole(own)):
            for half in own:
                self.drop(half)
            own = [run for run in existing if self.owner.succeeds(run.data.tags)]
            done = _whole(own)
        if done:
            run_id = str(done[0].info.run_id)
            self.adopt(own, run_id)
        else:
            run_id = self.write(tree)
            log.info("%s: written as MLflow run %s", name, run_id)
        self.mark(tree)
        said = {"mlflow_run": run_id, "key": tree.key}
        if (model_id := self.model(tree, run_id)) is None:
            log.warning("%s has no weights: no model of it in MLflow", tree.folder)
            return said
        version = register(self.client, self.name, name, model_id, run_id, tree.encoder, self.owner)
        return {**said, "model_version": version}

    def search(self, query: str) -> list[Run]:
        """Return all runs that a query finds and that are not deleted."""
        found: list[Run] = []
        token: str | None = None
        while token != "":
            page = self.client.search_runs(
                [self.experiment], query, ViewType.ACTIVE_ONLY, max_results=1000, page_token=token
            )
            found, token = [*found, *page], page.token or ""
        return found

    def drop(self, run: Run) -> None:
        """Delete a run; its files first, so that a kill in between leaves it to be found."""
        remove_files(run.info.artifact_uri, run.info.run_id, self.scratch)
        self.client.delete_run(run.info.run_id)

    def claim(self, name: str) -> None:
        """Make runs of one of our names ours where a version that knew no owners wrote them."""
        if self.owner.number is None:
            return
        for run in self.search(f"tags.`{RUN}` = '{name}'"):
            if self.owner.inherits(run.data.tags):
                self.sign(run)

    def adopt(self, runs: Sequence[Run], top: str) -> None:
        """Make a run and those below it ours, wherever the folder was when it wrote them."""
        if self.owner.alone:
            return
        for run in runs:
            if top in (run.info.run_id, run.data.tags.get(PARENT)):
                self.sign(run)

    def sign(self, run: Run) -> None:
        """Let the tags of a run name us."""
        for tag in self.owner.tags.items() - run.data.tags.items():
            self.client.set_tag(run.info.run_id, *tag)

    def mark(self, tree: Tree) -> None:
        """Mark what we wrote of other files of the run as superseded, and nothing else."""
        for run in self.search(f"tags.`{RUN}` = '{tree.folder.name}'"):
            if not self.owner.has(run.data.tags):
                continue
            superseded = str(run.data.tags.get(KEY) != tree.key).lower()
            if run.data.tags.get(SUPERSEDED) != superseded:
                self.client.set_tag(run.info.run_id, SUPERSEDED, superseded)

    def retire(self, present: Collection[str]) -> None:
        """Mark what we wrote of runs that are not there any more as superseded.

        Args:
            present: names of the runs that are there.
        """
        retire_versions(self.client, self.name, present, self.owner)
        for run in self.search(f"tags.`{SUPERSEDED}` = 'false'"):
            if run.data.tags.get(RUN) not in present and self.owner.has(run.data.tags):
                self.client.set_tag(run.info.run_id, SUPERSEDED, "true")
                log.info("%s: its folder is gone, marked as superseded", run.info.run_name)

    def model(self, tree: Tree, run_id: str) -> str | None:
        """Return the number of the logged model of a run's encoder, logged now if it is not there:
        once for all runs of MLflow's that are of this encoder. None: its weights are gone."""
        name = tree.folder.name
        words = (self.scratch, self.owner)
        found = find_model(self.client, self.experiment, name, tree.encoder, *words)
        if found is None and has_weights(tree.folder):
            return log_model(self.client, self.experiment, run_id, tree, *words)
        return found

    def write(self, tree: Tree) -> str:
        """Write a tree: the weights after all else that may fail, FINISHED on top last."""
        run_id = self.create(tree.training, tree)
        self.fill(run_id, tree.training)
        log_points(self.client, run_id, tree.training.points)
        children = {self.create(child, tree, run_id): child for child in tree.children}
        for child_id, child in children.items():
            self.fill(child_id, child)
        model_id = self.model(tree, run_id)
        if model_id is not None:
            self.client.log_outputs(run_id, models=[LoggedModelOutput(model_id, step=0)])
        for child_id, child in children.items():
            if model_id is not None:
                self.client.log_inputs(child_id, models=[LoggedModelInput(model_id)])
            about = model_id if child.kind == "evaluation" else None
            log_points(self.client, child_id, child.points, about)
            self.client.set_terminated(child_id, status="FINISHED", end_time=child.end_ms)
        self.client.set_terminated(run_id, status="FINISHED", end_time=tree.training.end_ms)
        return run_id

    def create(self, entry: Entry, tree: Tree, parent: str | None = None) -> str:
        """Create the run of an entry, and return its number."""
        tags = entry.tags | {
            KEY: tree.key,
            RUN: tree.folder.name,
            KIND: entry.kind,
            SUPERSEDED: "false",
            **self.owner.tags,
        }
        if parent is not None:
            tags[PARENT] = parent
        run = self.client.create_run(
            self.experiment, start_time=entry.start_ms, tags=tags, run_name=entry.name
        )
        return str(run.info.run_id)

    def fill(self, run_id: str, entry: Entry) -> None:
        """Write what an entry holds into its run, but its numbers, in few calls."""
        parameters = [Param(metric_name(key), value) for key, value in entry.parameters.items()]
        for start in range(0, len(parameters), TAGS):
            self.client.log_batch(run_id, params=parameters[start : start + TAGS])
        self.client.log_inputs(run_id, datasets=_inputs(entry))
        for file in entry.files:
            if file.text is not None:
                shown = Path(file.folder or "") / file.path.name
                self.client.log_text(run_id, file.text, shown.as_posix())
            elif file.path.is_file():
                self.client.log_artifact(run_id, str(file.path), file.folder)
            else:
                log.warning("%s has gone meanwhile: left out", file.path)


def log_points(
    client: MlflowClient, run_id: str, points: Sequence[Point], model_id: str | None = None
) -> None:
    """Write numbers into a run, a thousand in a call.

    Args:
        client: of the store.
        run_id: of the run.
        points: curves and single numbers.
        model_id: of the logged model that they are about.
    """
    for start in range(0, len(points), BATCH):
        metrics = [Metric(*point, model_id) for point in points[start : start + BATCH]]
        client.log_batch(run_id, metrics=metrics)


def _whole(runs: Sequence[Run]) -> list[Run]:
    """Return the trainings that are written to their end."""
    finished = [run for run in runs if run.info.status == "FINISHED"]
    return [run for run in finished if run.data.tags.get(KIND) == "training"]


def _inputs(entry: Entry) -> list[DatasetInput]:
    context = "mlflow.data.context"
    return [
        DatasetInput(
            Dataset(found.name, found.digest, "local", json.dumps(found.source, sort_keys=True)),
            [InputTag(context, found.context)],
        )
        for found in entry.datasets
    ]
