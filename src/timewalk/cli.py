"""The command line: one verb a stage, each a thin call into the library.

``timewalk VERB --help`` shows what a verb needs. Settings come as JSON text or as the path of a
JSON or YAML file. A user's mistake is one sentence on the terminal and exit code 1.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from timewalk import __doc__ as package_doc
from timewalk.artefacts import version
from timewalk.errors import UserError, reason

Arguments = argparse.Namespace


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code."""
    arguments = parser().parse_args(argv)
    terminal = sys.stderr
    if arguments.log:
        terminal = _redirect(arguments.log)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        return arguments.call(arguments) or 0
    except UserError as error:
        if note := os.environ.get("TIMEWALK_ERROR_FILE"):
            Path(note).write_text(str(error), encoding="utf-8")
            return 1
        message = f"timewalk {arguments.verb}: {error}"
        print(message, file=terminal, flush=True)
        if terminal is not sys.stderr:
            print(message, file=sys.stderr, flush=True)
        return 1
    except Exception as error:
        # One of several processes: the one that started it must not wait for the others.
        if note := os.environ.get("TIMEWALK_ERROR_FILE"):
            what = f"a training process failed ({type(error).__name__}: {reason(error)}); "
            Path(note).write_text(f"{what}the log has its traceback.", encoding="utf-8")
        raise


def _redirect(path: Path) -> Any:
    """Send both streams, those of child processes too, to a file; return the terminal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    terminal = os.fdopen(os.dup(2), "w")
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    return terminal


def parser() -> argparse.ArgumentParser:
    """Return the parser with all verbs."""
    root = argparse.ArgumentParser(prog="timewalk", description=package_doc)
    root.add_argument("--version", action="version", version=version())
    root.add_argument("--log", type=Path, help="write all output to this file")
    verbs = root.add_subparsers(dest="verb", required=True, metavar="VERB")
    for add in (_video_verbs, _data_verbs, _run_verbs, _metric_verbs, _report_verbs, _info_verbs):
        add(verbs)
    return root


def _verb(
    verbs: Any, name: str, call: Callable[[Arguments], int | None]
) -> argparse.ArgumentParser:
    text = (call.__doc__ or "").strip()
    verb = verbs.add_parser(name, help=text.splitlines()[0], description=text)
    verb.set_defaults(call=call)
    return verb


def _settings(text: str) -> Any:
    """Read settings: JSON text, or the path of a JSON or YAML file."""
    if text.lstrip().startswith(("{", "[", "null")):
        return json.loads(text)
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text} is neither JSON nor a file")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _add_settings(verb: argparse.ArgumentParser, name: str, what: str) -> None:
    verb.add_argument(f"--{name}", type=_settings, default={}, help=f"{what}: JSON, or a file")


def _video_verbs(verbs: Any) -> None:
    verb = _verb(verbs, "download", download)
    verb.add_argument("name", help="the video's name")
    verb.add_argument("output", type=Path, help="…/<name>.mp4")
    _add_settings(verb, "video", "source and expectations of this video (keys of `videos:`)")
    _add_settings(verb, "settings", "keys of `download:`")

    verb = _verb(verbs, "blur", blur)
    verb.add_argument("video", type=Path)
    verb.add_argument("output", type=Path, help="…/<name>.mp4")
    _add_settings(verb, "settings", "keys of `blur:`")
    verb.add_argument("--workers", type=int, default=1, help="processes")

    verb = _verb(verbs, "frames", frames)
    verb.add_argument("video", type=Path)
    verb.add_argument("folder", type=Path)
    _add_settings(verb, "settings", "keys of a data set's `frames:`")
    verb.add_argument("--blur", type=_settings, default=None, help="keys of `blur:`; none: no blur")
    verb.add_argument("--start", type=float, default=0.0, help="first second of the content")
    verb.add_argument("--end", type=float, default=None, help="last second of the content")
    verb.add_argument("--workers", type=int, default=1, help="processes")


def _data_verbs(verbs: Any) -> None:
    verb = _verb(verbs, "shards", shards)
    verb.add_argument("frames", type=Path, help="manifest.json of a folder of frames")
    verb.add_argument("manifest", type=Path, help="…/<video>.json to write")
    verb.add_argument("--storage", choices=("tfrecord", "folder"), default="tfrecord")

    verb = _verb(verbs, "images", images)
    verb.add_argument("folder", type=Path, help="folder of images")
    verb.add_argument("manifest", type=Path, help="…/<data set>/images.json to write")
    verb.add_argument("--workers", type=int, default=1, help="threads")

    verb = _verb(verbs, "folders", folders)
    verb.add_argument("source", type=Path, help="folder of folders of images, or a list of them")
    verb.add_argument("manifest", type=Path, help="…/<data set>/folders.json to write")
    verb.add_argument("--workers", type=int, default=1, help="threads")
    _add_settings(verb, "split", "only one part of the folders (keys of a data set's `split:`)")

    verb = _verb(verbs, "visor", visor)
    verb.add_argument("archives", type=Path, help="folder of VISOR's archives, one a video")
    verb.add_argument("output", type=Path, help="folder to write: cache/ and VISOR_2022/")
    verb.add_argument("--level", default="480p", help="folder above the videos (default: 480p)")

    verb = _verb(verbs, "prepare", prepare)
    verb.add_argument("name", help="the labelled set's name")
    verb.add_argument("manifest", type=Path, help="manifest.json to write")
    _add_settings(verb, "settings", "keys of an entry of `labelled:`")
    verb.add_argument(
        "--frames", type=Path, nargs="*", default=[], help="manifests of frames, for shots"
    )
    verb.add_argument(
        "--root", help="instead of settings, where the name is a kind such as davis2017: its folder"
    )
    verb.add_argument("--subset", help="with --root: which part, such as val")


def _run_verbs(verbs: Any) -> None:
    verb = _verb(verbs, "train", train)
    verb.add_argument("run", help="the run's name")
    verb.add_argument("output", type=Path, help="the run's folder")
    _add_settings(verb, "settings", "keys of an entry of `runs:`")
    verb.add_argument("--shards", type=Path, nargs="*", default=[], help="shard manifests")
    verb.add_argument(
        "--validation",
        type=_settings,
        default=None,
        help="for key `validation`: name, settings, dataset and train_dataset of that evaluation",
    )
    _add_machine(verb)

    verb = _verb(verbs, "embed", embed)
    verb.add_argument("encoder", type=Path, help="the run's folder")
    verb.add_argument("dataset", type=Path, help="manifest.json of a labelled set")
    verb.add_argument("split", choices=("train", "test"))
    verb.add_argument("output", type=Path, help="…safetensors")
    verb.add_argument("--batch-size", type=int, default=64, help="images at a time")
    _add_machine(verb)

    verb = _verb(verbs, "evaluate", evaluate)
    verb.add_argument("evaluation", help="the evaluation's name")
    verb.add_argument("run", type=Path, help="the run's folder")
    verb.add_argument("output", type=Path, help="…/<evaluation>.json")
    _add_settings(verb, "settings", "keys of an entry of `evaluations:`")
    verb.add_argument("--dataset", type=Path, required=True, help="manifest.json of a labelled set")
    verb.add_argument(
        "--embeddings", type=Path, nargs="*", default=[], help="features: train split, test split"
    )
    verb.add_argument(
        "--frames", type=Path, nargs="*", default=[], help="manifests of frames, for key `frames`"
    )
    verb.add_argument(
        "--train-dataset", type=Path, nargs="?", help="manifest.json, for key `train_dataset`"
    )
    _add_machine(verb)


def _add_machine(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--gpus", type=int, default=1, help="GPUs wanted; 0: the CPU")
    verb.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU cores to use")


def _metric_verbs(verbs: Any) -> None:
    text = "Score predictions that lie in files, as the official tool of a benchmark does."
    metrics = verbs.add_parser("metrics", help=text, description=text)
    names = metrics.add_subparsers(dest="metric", required=True, metavar="METRIC")
    verb = _verb(names, "davis", davis)
    verb.add_argument(
        "--results", type=Path, required=True, help="<sequence>/<frame>.png, pixel = id"
    )
    verb.add_argument("--davis", type=Path, required=True, help="the DAVIS folder")
    verb.add_argument(
        "--task",
        choices=("semi-supervised", "unsupervised"),
        default="semi-supervised",
        help="default: semi-supervised (the official tool's default is unsupervised)",
    )
    verb.add_argument("--set", default="val", help="train, val (default), test-dev, test-challenge")
    verb.add_argument("--output", type=Path, help="folder of the tables; default: the results'")
    verb.add_argument("--workers", type=int, default=1, help="processes")


def _report_verbs(verbs: Any) -> None:
    verb = _verb(verbs, "report", report)
    verb.add_argument("results", type=Path, help="folder of results, for the tables")
    verb.add_argument("inputs", type=Path, nargs="+", help="result JSON files")

    verb = _verb(verbs, "card", card)
    verb.add_argument("run", type=Path, help="the run's folder: its card.md is written")
    verb.add_argument("inputs", type=Path, nargs="*", help="result JSON files of the run")

    verb = _verb(verbs, "show", show)
    verb.add_argument("results", type=Path, help="folder of results")

    verb = _verb(verbs, "mlflow", mlflow)
    verb.add_argument("results", type=Path, help="folder of results: its mlflow.db is filled")
    verb.add_argument("inputs", type=Path, nargs="+", help="result JSON files")
    verb.add_argument("--stamp", type=Path, required=True, help="JSON of what was written")
    verb.add_argument("--experiment", default="timewalk", help="name of the MLflow experiment")


def _info_verbs(verbs: Any) -> None:
    verb = _verb(verbs, "validate", validate)
    verb.add_argument(
        "config", type=Path, nargs="+", help="configuration files, later over earlier"
    )
    verb = _verb(verbs, "schema", schema)
    verb.add_argument("--output", type=Path, default=None, help="file instead of the terminal")
    verb.add_argument("--markdown", action="store_true", help="as a page of all keys")
    _verb(verbs, "videos", videos)
    _verb(verbs, "methods", list_methods)
    _verb(verbs, "evaluations", list_evaluations)


def download(arguments: Arguments) -> None:
    """Fetch a video, check it, and write it with its manifest."""
    from timewalk.check import check
    from timewalk.config import DownloadConfig, VideoConfig
    from timewalk.video.download import download as call

    video = check(VideoConfig, arguments.video, f"videos.{arguments.name}")
    transfer = json.loads(os.environ.get("TIMEWALK_DOWNLOAD", "{}"))
    settings = check(DownloadConfig, {**transfer, **arguments.settings}, "download")
    call(arguments.name, video, arguments.output, settings)


def blur(arguments: Arguments) -> None:
    """Blur the faces of a video. Faces only; misses happen: look at the contact sheet."""
    from timewalk.check import check
    from timewalk.config import BlurConfig
    from timewalk.video.blur import blur_video

    settings = check(BlurConfig, arguments.settings, "blur")
    blur_video(arguments.video, arguments.output, settings, arguments.workers)


def frames(arguments: Arguments) -> None:
    """Extract frames of a video, blurred on the way if asked."""
    from timewalk.check import check
    from timewalk.config import BlurConfig, FramesConfig
    from timewalk.video.frames import extract_frames

    extract_frames(
        arguments.video,
        arguments.folder,
        check(FramesConfig, arguments.settings, "frames"),
        blur=None if arguments.blur is None else check(BlurConfig, arguments.blur, "blur"),
        workers=arguments.workers,
        start_s=arguments.start,
        end_s=arguments.end,
    )


def shards(arguments: Arguments) -> None:
    """Pack frames into a TFRecord with an index, or index the folder itself."""
    from timewalk.data.shards import write_shards

    write_shards(arguments.frames, arguments.manifest, arguments.storage)


def images(arguments: Arguments) -> None:
    """Check and index a folder of still images for training."""
    from timewalk.data.images import index_images

    index_images(arguments.folder, arguments.manifest, arguments.workers)


def folders(arguments: Arguments) -> None:
    """Check and index folders of images, each the frames of a video, for training."""
    from timewalk.check import check
    from timewalk.config import Split
    from timewalk.data.frame_folders import index_frame_folders

    split = check(Split, arguments.split, "split") if arguments.split else None
    index_frame_folders(arguments.source, arguments.manifest, arguments.workers, split)


def visor(arguments: Arguments) -> None:
    """Unpack VISOR's archives and link their files into the structure of DAVIS."""
    from timewalk.data.prepare.visor import convert_visor

    convert_visor(arguments.archives, arguments.output, arguments.level)


def prepare(arguments: Arguments) -> None:
    """Check and index a labelled set of images or videos in place."""
    from pydantic import BaseModel

    from timewalk.check import check
    from timewalk.config import Labelled
    from timewalk.data.prepare import prepare as call

    class Entry(BaseModel):
        labelled: Labelled

    entry = check(Entry, {"labelled": _labelled_settings(arguments)}).labelled
    by_video = {path.parent.name: path for path in arguments.frames}
    call(arguments.name, entry, arguments.manifest, by_video)


def _labelled_settings(arguments: Arguments) -> Any:
    """Return the settings, or those that `--root` and `--subset` say of the kind of that name."""
    if arguments.root is None and arguments.subset is None:
        return arguments.settings
    if arguments.settings or arguments.root is None:
        raise UserError("--subset goes with --root, and --root stands instead of --settings.")
    subset = {} if arguments.subset is None else {"subset": arguments.subset}
    return {"kind": arguments.name, "root": arguments.root, **subset}


def train(arguments: Arguments) -> int | None:
    """Train a run, going on from its newest checkpoint."""
    from timewalk.methods.base import TrainedRunConfig
    from timewalk.suite import load_run
    from timewalk.training.devices import lease
    from timewalk.training.distributed import Processes, die_with_parent, processes
    from timewalk.training.launch import launch

    config = load_run(arguments.settings, f"runs.{arguments.run}")
    group = processes()
    if group is not None:
        die_with_parent()
        return _train(arguments, config, group)
    with lease(arguments.gpus) as held:
        here = max(1, min(len(held), arguments.gpus))
        if isinstance(config, TrainedRunConfig) and (config.nodes > 1 or here > 1):
            return launch(_words(arguments), here, config.nodes)
        return _train(arguments, config, Processes())


def _words(arguments: Arguments) -> list[str]:
    """The verb `train` again, for each of several processes."""
    settings = json.dumps(arguments.settings)
    machine = ["--gpus", str(arguments.gpus), "--threads", str(arguments.threads)]
    shards = ["--shards", *map(str, arguments.shards)]
    validation = ["--validation", json.dumps(arguments.validation)]
    words = [arguments.run, str(arguments.output), "--settings", settings]
    return ["train", *words, *machine, *validation, *shards]


def _train(arguments: Arguments, config: Any, group: Any) -> int | None:
    import torch

    from timewalk.training.distributed import joined
    from timewalk.training.loop import INTERRUPTED, InterruptedTraining, Machine
    from timewalk.training.run import train as call

    logging.getLogger().setLevel(logging.INFO if group.main else logging.ERROR)
    together = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("SLURM_NTASKS_PER_NODE", 1)))
    arguments.threads = max(1, arguments.threads // together)
    device = _device(arguments)
    if device.type == "cuda":
        # srun may show each task its own GPU alone.
        device = torch.device("cuda", group.local_rank % torch.cuda.device_count())
    torch.set_num_threads(arguments.threads)
    machine = Machine(device, _workers(arguments), group)
    try:
        with joined(group, device):
            call(
                arguments.run,
                config,
                arguments.shards,
                arguments.output,
                machine,
                _validator(arguments, machine),
            )
    except InterruptedTraining as stopped:
        logging.getLogger(__name__).warning("%s", stopped)
        return INTERRUPTED
    return None


def _validator(arguments: Arguments, machine: Any) -> Any:
    """Return the evaluation between epochs, or None."""
    from timewalk.validation import Validator

    about = arguments.validation
    if about is None:
        return None
    train_dataset = about.get("train_dataset")
    return Validator(
        name=about["name"],
        settings=about["settings"],
        dataset=Path(about["dataset"]),
        train_dataset=Path(train_dataset) if train_dataset else None,
        device=machine.device,
        workers=machine.workers,
    )


def embed(arguments: Arguments) -> None:
    """Compute the features of one split of a labelled set."""
    from timewalk.training.devices import lease

    with lease(arguments.gpus):
        import torch

        from timewalk.evaluation.embed import embed as call

        torch.set_num_threads(max(1, arguments.threads))
        call(
            arguments.encoder,
            arguments.dataset,
            arguments.split,
            arguments.output,
            batch_size=arguments.batch_size,
            workers=_workers(arguments),
            device=_device(arguments),
        )


def evaluate(arguments: Arguments) -> None:
    """Score a run's encoder and write the result."""
    from timewalk.training.devices import lease

    with lease(arguments.gpus):
        import torch

        from timewalk.evaluation.base import Inputs
        from timewalk.evaluation.run import run_evaluation
        from timewalk.suite import load_evaluation

        torch.set_num_threads(max(1, arguments.threads))
        config = load_evaluation(arguments.settings, f"evaluations.{arguments.evaluation}")
        train, test = arguments.embeddings or (None, None)
        inputs = Inputs(
            run=arguments.run,
            dataset=arguments.dataset,
            device=_device(arguments),
            train=train,
            test=test,
            frames=tuple(arguments.frames),
            train_dataset=arguments.train_dataset,
            workers=_workers(arguments),
        )
        run_evaluation(arguments.evaluation, inputs, config, arguments.output)


def _device(arguments: Arguments) -> Any:
    import torch

    wanted = arguments.gpus > 0 and torch.cuda.is_available()
    device = torch.device("cuda" if wanted else "cpu")
    logging.getLogger(__name__).info("running on %s", device.type)
    return device


def _workers(arguments: Arguments) -> int:
    """One loader process a core where a GPU computes; one in all where the cores compute."""
    import torch

    if arguments.gpus > 0 and torch.cuda.is_available():
        return max(1, arguments.threads - 1)
    return 1 if arguments.threads > 1 else 0


def davis(arguments: Arguments) -> None:
    """Score masks with J and F of DAVIS 2017; the tables go into the folder of results."""
    import time

    from timewalk.evaluation.davis_folders import score_folders
    from timewalk.evaluation.davis_tables import tables, write_csv, write_scores

    start = time.perf_counter()
    scores = score_folders(
        arguments.results,
        arguments.davis,
        arguments.task,
        arguments.set,
        workers=arguments.workers,
    )
    folder = arguments.output or arguments.results
    files = [*write_csv(scores, folder), write_scores(scores, folder)]
    print(tables(scores), *files, f"{time.perf_counter() - start:.2f} s", sep="\n")
    if scores.failures:
        raise UserError("\n".join(scores.failures.values()))


def report(arguments: Arguments) -> None:
    """Write summary.csv, .md and .tex of some results."""
    from timewalk.report.tables import write_tables

    write_tables(arguments.inputs, arguments.results)


def card(arguments: Arguments) -> None:
    """Write a run's model card: what its encoder is, learned from what, worth what."""
    from timewalk.report.card import write_card

    write_card(arguments.run, arguments.inputs)


def show(arguments: Arguments) -> None:
    """Print the table of results and where the pictures are."""
    from timewalk.report.show import show as call

    print(call(arguments.results))


def mlflow(arguments: Arguments) -> None:
    """Mirror results into the MLflow store, idempotently."""
    from timewalk.report.mlflow import mirror

    mirror(arguments.inputs, arguments.results, arguments.experiment, arguments.stamp)


def validate(arguments: Arguments) -> None:
    """Check configuration files, merged in order, as the workflow does before its first job."""
    from timewalk.suite import load_suite, merge, read_config

    merged: dict[str, Any] = {}
    for path in arguments.config:
        merged = merge(merged, read_config(path))
    suite = load_suite(merged)
    print(f"{len(suite.runs)} runs, {len(suite.evaluations)} evaluations: no fault found")


def schema(arguments: Arguments) -> None:
    """Print the JSON schema of the configuration."""
    from timewalk.artefacts import write_text
    from timewalk.suite import config_markdown, json_schema

    if arguments.markdown:
        text = config_markdown()
    else:
        text = json.dumps(json_schema(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    if arguments.output:
        write_text(arguments.output, text)
    else:
        print(text, end="")


def videos(arguments: Arguments) -> None:
    """List the built-in table of videos."""
    from timewalk.video.sources import load_sources

    for name, video in load_sources().items():
        print(f"{name:16} {video.source}  {video.licence}")


def list_methods(arguments: Arguments) -> None:
    """List the methods."""
    from timewalk.methods import method_names

    print("\n".join(method_names()))


def list_evaluations(arguments: Arguments) -> None:
    """List the evaluations."""
    from timewalk.evaluation import evaluation_names

    print("\n".join(evaluation_names()))


if __name__ == "__main__":
    sys.exit(main())
