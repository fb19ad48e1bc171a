"""A whole configuration, checked: the suite's frame, each run by its method, each evaluation.

Used by the workflow before the first job, and by ``timewalk validate``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from timewalk import evaluation, finetuning, methods
from timewalk.check import check
from timewalk.config import (
    BoxVideos,
    Config,
    DatasetConfig,
    EvaluationConfig,
    Labelled,
    MaskedImages,
    ObjectImages,
    PhaseFrames,
    PhaseLabels,
    RunConfig,
    ShotLabels,
    Validation,
    VideoConfig,
    VideoLabels,
    lookup,
)
from timewalk.config.files import merge as merge
from timewalk.config.files import read_config as read_config
from timewalk.errors import UserError, nearest
from timewalk.evaluation.fine_tuned import NetworkEvaluation
from timewalk.finetuning.base import FinetuningConfig
from timewalk.methods.base import TrainedRunConfig
from timewalk.video.sources import resolve_video

NEEDED = {
    "images": "labelled images",
    "masks": "images with masks",
    "objects": "images with objects",
    "phases": "videos with phases of an action",
    "tracks": "videos with a box in every frame",
    "videos": "labelled videos",
}
WITH_SLOTS = {"smtc", "pretrained"}
"""methods whose runs may have slots"""
RESERVED = {"logs", "mlartifacts", "demo", "summary"}


@dataclass(frozen=True)
class Suite:
    """A checked configuration.

    Attributes:
        config: the frame.
        runs: the resolved configuration of each run, with its method's defaults.
        evaluations: the same of each evaluation.
        finetunings: the same of each fine-tuning.
        videos: each video that some data set uses.
        origins: of each run that begins with another run's encoder, the name of that one.
    """

    config: Config
    runs: dict[str, RunConfig]
    evaluations: dict[str, EvaluationConfig]
    finetunings: dict[str, FinetuningConfig]
    videos: dict[str, VideoConfig]
    origins: dict[str, str]

    def run(self, name: str) -> RunConfig:
        """Return a run; an unknown name is a :class:`UserError` with the nearest one."""
        return lookup("run", name, self.runs)

    def dataset(self, name: str) -> DatasetConfig:
        """Return a training set; an unknown name is a :class:`UserError`."""
        return lookup("data set", name, self.config.datasets)

    def evaluations_of(self, run: str) -> list[str]:
        """Return the names of the evaluations that a run goes through."""
        return [n for n, item in self.evaluations.items() if item.runs is None or run in item.runs]

    def evaluation(self, name: str) -> EvaluationConfig:
        """Return an evaluation; an unknown name is a :class:`UserError`."""
        return lookup("evaluation", name, self.evaluations)

    def finetuning(self, name: str) -> FinetuningConfig:
        """Return a fine-tuning; an unknown name is a :class:`UserError`."""
        return lookup("fine-tuning", name, self.finetunings)


def load_suite(raw: Mapping[str, Any]) -> Suite:
    """Check a configuration and resolve its runs and evaluations.

    Raises:
        UserError: names each wrong key with its path, what is wrong and the nearest known key.
    """
    config = check(Config, raw)
    runs = {name: load_run(keys, f"runs.{name}") for name, keys in config.runs.items()}
    evaluations = {
        name: load_evaluation(keys, f"evaluations.{name}")
        for name, keys in config.evaluations.items()
    }
    finetunings = {
        name: load_finetuning(keys, f"finetuning.{name}")
        for name, keys in config.finetuning.items()
    }
    origins = _origins(runs)
    for name, origin in origins.items():
        weights = f"{config.results_dir}/{origin}/encoder.safetensors"
        encoder = runs[name].encoder.model_copy(update={"weights": weights})
        runs[name] = runs[name].model_copy(update={"encoder": encoder})
    suite = Suite(config, runs, evaluations, finetunings, _videos(config), origins)
    _check_references(suite)
    return suite


def load_run(raw: Mapping[str, Any], key: str = "run") -> RunConfig:
    """Check one run's keys against its method's ``Config``."""
    name = _required(raw, "method", key)
    try:
        method = methods.get_method(name)
    except UserError as error:
        raise UserError(f"{key}.method: {error}") from None
    run: RunConfig = check(method.Config, raw, key)
    if isinstance(run, TrainedRunConfig) and not method.splits:
        _refuse_micro_batches(run, key)
    return run


def _refuse_micro_batches(run: TrainedRunConfig, key: str) -> None:
    """Refuse parts of a batch for a method whose loss needs all of it."""
    if run.training.micro_batch_size is not None:
        raise UserError(
            f"{key}.training.micro_batch_size: '{run.method}' compares the clips of a batch with "
            "each other, so none is computed in parts; leave it out, and where memory is short use "
            "more GPUs or activation_checkpointing."
        )


def load_evaluation(raw: Mapping[str, Any], key: str = "evaluation") -> EvaluationConfig:
    """Check one evaluation's keys against its kind's ``Config``."""
    name = _required(raw, "kind", key)
    try:
        entry = evaluation.get_evaluation(name)
    except UserError as error:
        raise UserError(f"{key}.kind: {error}") from None
    return check(entry.load().Config, raw, key)


def load_finetuning(raw: Mapping[str, Any], key: str = "finetuning") -> FinetuningConfig:
    """Check one fine-tuning's keys against its task's ``Config``."""
    name = _required(raw, "task", key)
    try:
        task = finetuning.get_task(name)
    except UserError as error:
        raise UserError(f"{key}.task: {error}") from None
    return check(task.Config, raw, key)


def _required(raw: Mapping[str, Any], tag: str, key: str) -> str:
    value = raw.get(tag) if isinstance(raw, Mapping) else None
    if not isinstance(value, str):
        raise UserError(f"{key}: the key '{tag}' is missing; it says which {tag} this is.")
    return value


def _videos(config: Config) -> dict[str, VideoConfig]:
    names = {video for dataset in config.datasets.values() for video in dataset.videos}
    return {name: resolve_video(name, config.videos) for name in sorted(names)}


def _origins(runs: Mapping[str, RunConfig]) -> dict[str, str]:
    """Return the run that each run with weights `run:<name>` begins with; no run may come back to
    itself."""
    origins = {
        name: run.encoder.weights.removeprefix("run:")
        for name, run in runs.items()
        if (run.encoder.weights or "").startswith("run:") and run.encoder.weights
    }
    for name, origin in origins.items():
        key = f"runs.{name}.encoder"
        _reference("run", f"{key}.weights", origin, runs)
        own, other = (runs[x].encoder.model_dump() for x in (name, origin))
        for field in ("name", "patch_size", "width", "depth", "heads"):
            if own[field] != other[field]:
                raise UserError(
                    f"{key}.{field}: {own[field]}, but the run '{origin}', whose encoder it begins "
                    f"with, has {other[field]}; make them equal."
                )
        for field in ("sha256", "weights_part"):
            if own[field] is not None:
                raise UserError(f"{key}.{field} means nothing for the encoder of a run; remove it.")
    for name in origins:
        seen, last = [name], origins[name]
        while last in origins and last not in seen:
            seen.append(last)
            last = origins[last]
        if last in seen:
            raise UserError(
                f"runs.{name}.encoder.weights: '{last}' begins with an encoder that begins with "
                "its own; break the circle."
            )
    return origins


def _check_validation(suite: Suite, name: str, run: RunConfig) -> None:
    validation = getattr(run, "validation", None)
    if validation is None:
        return
    key = f"runs.{name}.validation.evaluation"
    _reference("evaluation", key, validation.evaluation, suite.evaluations)
    if evaluation.get_evaluation(suite.evaluations[validation.evaluation].kind).task is not None:
        raise UserError(
            f"{key}: '{validation.evaluation}' tests a network that is fine-tuned from a finished "
            "run; name one that reads the encoder itself."
        )
    if getattr(suite.evaluations[validation.evaluation], "frames", None) is not None:
        raise UserError(
            f"{key}: '{validation.evaluation}' draws the frames of a data set (its key 'frames'), "
            "which is for a finished run; name one without it."
        )
    _check_metric(f"runs.{name}.validation.metric", validation, suite)


def _check_metric(key: str, validation: Validation, suite: Suite) -> None:
    """Refuse a metric that the evaluation between epochs does not give."""
    chosen = suite.evaluations[validation.evaluation]
    entry, metric = evaluation.get_evaluation(chosen.kind), validation.metric
    names = list(entry.metrics)
    if (neighbours := getattr(chosen, "k", None)) and chosen.kind == "knn":
        names = [f"{top}_k{k}" for top in ("top1", "top5") for k in neighbours]
    if metric is not None and not any(fnmatchcase(metric, name) for name in names):
        raise UserError(
            f"{key}: '{validation.evaluation}' gives no metric '{metric}'{nearest(metric, names)}"
        )


def _check_references(suite: Suite) -> None:
    for name, run in suite.runs.items():
        _check_validation(suite, name, run)
        if name in RESERVED:
            raise UserError(f"runs.{name}: the name '{name}' is taken by a folder; choose another.")
        if run.dataset is not None:
            _reference("data set", f"runs.{name}.dataset", run.dataset, suite.config.datasets)
            if methods.get_method(run.method).needs_labels:
                _check_labels(suite, f"runs.{name}.dataset", run.method, run.dataset)
    for name, tuned in suite.finetunings.items():
        _check_finetuning(suite.config, f"finetuning.{name}", tuned)
    for name, item in suite.evaluations.items():
        _reference(
            "labelled set", f"evaluations.{name}.dataset", item.dataset, suite.config.labelled
        )
        key = f"evaluations.{name}.dataset"
        _labels(key, item, suite.config.labelled[item.dataset], item.dataset)
        _check_network(suite, f"evaluations.{name}.network", item)
        learnt_from = getattr(item, "train_dataset", None)
        if learnt_from is not None:
            key = f"evaluations.{name}.train_dataset"
            _reference("labelled set", key, learnt_from, suite.config.labelled)
            _labels(key, item, suite.config.labelled[learnt_from], learnt_from)
        elif (
            hasattr(item, "train_dataset")
            and _made_of(suite.config.labelled[item.dataset]) == "videos"
        ):
            raise UserError(
                f"evaluations.{name}.train_dataset: '{item.dataset}' is a set of videos and has no "
                "training split of its own; name another labelled set."
            )
        for only in item.runs or ():
            _reference("run", f"evaluations.{name}.runs", only, suite.runs)
            method = suite.runs[only].method
            if getattr(item, "proposals", None) == "slots" and method not in WITH_SLOTS:
                raise UserError(
                    f"evaluations.{name}.proposals: is 'slots', but the run '{only}' of the method "
                    f"'{method}' has none; set it to 'auto' or 'clusters', or take the run out of "
                    "the key 'runs'."
                )
        frames = getattr(item, "frames", None)
        if frames is not None:
            _videos_of(suite.config, f"evaluations.{name}.frames", frames)
    for name, dataset in suite.config.datasets.items():
        if dataset.labelled is not None:
            key, known = f"datasets.{name}.labelled", suite.config.labelled
            _reference("labelled set", key, dataset.labelled, known)
            if _made_of(known[dataset.labelled]) not in ("videos", "phases"):
                raise UserError(f"{key}: '{dataset.labelled}' holds no videos; name one that does.")
    for name, labelled in suite.config.labelled.items():
        if isinstance(labelled, ShotLabels):
            key = f"labelled.{name}"
            videos = _videos_of(suite.config, f"{key}.dataset", labelled.dataset)
            for video in labelled.cuts:
                _reference("video", f"{key}.cuts", video, dict.fromkeys(videos))
        if isinstance(labelled, PhaseFrames):
            _check_phase_frames(suite.config, f"labelled.{name}", labelled)


def _check_finetuning(config: Config, key: str, item: FinetuningConfig) -> None:
    """Refuse a fine-tuning on a set without the labels that its task learns from."""
    _reference("labelled set", f"{key}.dataset", item.dataset, config.labelled)
    wanted = finetuning.get_task(item.task).labels
    found = _made_of(config.labelled[item.dataset])
    if found != wanted:
        raise UserError(
            f"{key}.dataset: '{item.task}' needs {NEEDED[wanted]}, but '{item.dataset}' holds "
            f"{NEEDED[found]}; name another labelled set."
        )


def _check_network(suite: Suite, key: str, item: EvaluationConfig) -> None:
    """Refuse a network of another task than the evaluation tests."""
    task = evaluation.get_evaluation(item.kind).task
    if task is None:
        return
    assert isinstance(item, NetworkEvaluation)
    network = item.network
    _reference("fine-tuning", key, network, suite.finetunings)
    if (found := suite.finetunings[network].task) != task:
        raise UserError(
            f"{key}: '{item.kind}' tests networks of the task {task}, but the fine-tuning "
            f"'{network}' is of the task {found}; name another."
        )


def _check_labels(suite: Suite, key: str, method: str, dataset: str) -> None:
    """Refuse frames without labels to a method that learns from labels."""
    source = suite.config.datasets[dataset].labelled
    if source is None or _made_of(suite.config.labelled[source]) != "phases":
        raise UserError(
            f"{key}: '{method}' learns from labels of frames, but '{dataset}' is no labelled set "
            "with phases; name a data set with the key 'labelled', or a method without labels."
        )


def _check_phase_frames(config: Config, key: str, labelled: PhaseFrames) -> None:
    videos = _videos_of(config, f"{key}.dataset", labelled.dataset)
    for video in labelled.test:
        _reference("video", f"{key}.test", video, dict.fromkeys(videos))
    if not set(videos) - set(labelled.test):
        raise UserError(
            f"{key}.test: names every video of '{labelled.dataset}', so that none is left to train "
            "on; take one out."
        )


def _labels(key: str, item: EvaluationConfig, labelled: Labelled, name: str) -> None:
    """Refuse an evaluation on a labelled set that it cannot read."""
    wanted = evaluation.get_evaluation(item.kind).labels
    found = _made_of(labelled)
    if found not in wanted:
        needs = " or ".join(NEEDED[kind] for kind in wanted)
        raise UserError(
            f"{key}: '{item.kind}' needs {needs}, but "
            f"'{name}' holds {NEEDED[found]}; name another labelled set."
        )
    entry, kind = evaluation.get_evaluation(item.kind), labelled.kind
    if entry.kinds and kind not in entry.kinds:
        raise UserError(
            f"{key}: '{item.kind}' needs a set of kind {' or '.join(entry.kinds)}, but '{name}' is "
            f"of kind {kind}; name another labelled set."
        )
    for option, needed in entry.keys.items():
        value = getattr(labelled, option, needed)
        if value != needed:
            raise UserError(
                f"{key}: '{item.kind}' needs a set with `{option}: {needed}`, but '{name}' has "
                f"`{option}: {value}`; name another labelled set."
            )


def _made_of(labelled: Labelled) -> evaluation.Labels:
    if isinstance(labelled, VideoLabels):
        return "videos"
    if isinstance(labelled, PhaseLabels):
        return "phases"
    if isinstance(labelled, ObjectImages):
        return "objects"
    if isinstance(labelled, BoxVideos):
        return "tracks"
    return "masks" if isinstance(labelled, MaskedImages) else "images"


def _videos_of(config: Config, key: str, dataset: str) -> list[str]:
    """Return the videos of a data set that has to be one of videos."""
    _reference("data set", key, dataset, config.datasets)
    found = config.datasets[dataset]
    if found.images:
        raise UserError(f"{key}: '{dataset}' holds still images; name a data set of videos.")
    if not found.videos:
        raise UserError(f"{key}: '{dataset}' is made of folders of images; name one of `videos`.")
    return found.videos


def _reference(kind: str, key: str, name: str, known: Mapping[str, Any]) -> None:
    if name not in known:
        raise UserError(f"{key}: unknown {kind} '{name}'{nearest(name, known)}")
