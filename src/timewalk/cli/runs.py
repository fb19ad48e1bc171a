"""Verbs of the stages that need an encoder: train, embed, evaluate."""

import json
import logging
import os
from pathlib import Path
from typing import Any

from timewalk.cli.common import (
    Arguments,
    add_machine,
    add_settings,
    add_verb,
    device_of,
    read_settings,
    workers_of,
)
from timewalk.errors import UserError


def add_verbs(verbs: Any) -> None:
    """Add these verbs to the command line."""
    verb = add_verb(verbs, "train", train)
    verb.add_argument("run", help="the run's name")
    verb.add_argument("output", type=Path, help="the run's folder")
    add_settings(verb, "settings", "keys of an entry of `runs:`")
    verb.add_argument("--shards", type=Path, nargs="*", default=[], help="shard manifests")
    verb.add_argument(
        "--validation",
        type=read_settings,
        default=None,
        help="for key `validation`: name, settings, dataset and train_dataset of that evaluation",
    )
    add_machine(verb)

    verb = add_verb(verbs, "embed", embed)
    verb.add_argument("encoder", type=Path, help="the run's folder")
    verb.add_argument("dataset", type=Path, help="manifest.json of a labelled set")
    verb.add_argument("split", choices=("train", "test"))
    verb.add_argument("output", type=Path, help="…safetensors, or …npy")
    verb.add_argument("--batch-size", type=int, default=64, help="images at a time")
    videos = verb.add_argument_group("sets of videos with phases")
    videos.add_argument(
        "--format",
        choices=("safetensors", "npy"),
        help="npy: the file of the TCC tools; default: by the output's suffix",
    )
    videos.add_argument(
        "--keep-frames", action="store_true", help="npy alone: keep the frames beside them"
    )
    videos.add_argument(
        "--max-videos", type=int, default=0, help="first videos alone, named in protocols; 0: all"
    )
    videos.add_argument("--frames-per-batch", type=int, default=25, help="frames at a time")
    add_machine(verb)

    verb = add_verb(verbs, "evaluate", evaluate)
    verb.add_argument("evaluation", help="the evaluation's name")
    verb.add_argument("run", type=Path, help="the run's folder")
    verb.add_argument("output", type=Path, help="…/<evaluation>.json")
    add_settings(verb, "settings", "keys of an entry of `evaluations:`")
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
    add_machine(verb)


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
    from timewalk.validation import validator

    logging.getLogger().setLevel(logging.INFO if group.main else logging.ERROR)
    together = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("SLURM_NTASKS_PER_NODE", 1)))
    arguments.threads = max(1, arguments.threads // together)
    device = device_of(arguments)
    if device.type == "cuda":
        # srun may show each task its own GPU alone.
        device = torch.device("cuda", group.local_rank % torch.cuda.device_count())
    torch.set_num_threads(arguments.threads)
    machine = Machine(device, workers_of(arguments), group)
    evaluate = None
    if arguments.validation is not None:
        evaluate = validator(arguments.validation, device, machine.workers)
    try:
        with joined(group, device):
            call(
                arguments.run,
                config,
                arguments.shards,
                arguments.output,
                machine,
                evaluate,
            )
    except InterruptedTraining as stopped:
        logging.getLogger(__name__).warning("%s", stopped)
        return INTERRUPTED
    return None


def embed(arguments: Arguments) -> None:
    """Compute the features of one split of a labelled set."""
    from timewalk.training.devices import lease

    with lease(arguments.gpus):
        import torch

        from timewalk.evaluation import phase_embeddings
        from timewalk.evaluation.embed import embed as embed_images

        torch.set_num_threads(max(1, arguments.threads))
        words = (arguments.encoder, arguments.dataset, arguments.split, arguments.output)
        if phase_embeddings.holds_phases(arguments.dataset):
            phase_embeddings.embed_phases(
                *words,
                frames_per_batch=arguments.frames_per_batch,
                max_videos=arguments.max_videos,
                keep_frames=arguments.keep_frames,
                form=arguments.format,
                device=device_of(arguments),
            )
            return
        _refuse_video_options(arguments)
        embed_images(
            *words,
            batch_size=arguments.batch_size,
            workers=workers_of(arguments),
            device=device_of(arguments),
        )


def _refuse_video_options(arguments: Arguments) -> None:
    given = {
        "--format npy": arguments.format == "npy",
        "--keep-frames": arguments.keep_frames,
        "--max-videos": arguments.max_videos,
    }
    for option in (name for name, used in given.items() if used):
        raise UserError(
            f"{option}: {arguments.dataset} holds no videos with phases; leave the option out."
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
            device=device_of(arguments),
            train=train,
            test=test,
            frames=tuple(arguments.frames),
            train_dataset=arguments.train_dataset,
            workers=workers_of(arguments),
        )
        run_evaluation(arguments.evaluation, inputs, config, arguments.output)
