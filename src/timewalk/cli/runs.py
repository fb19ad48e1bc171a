"""Verbs of the stages that need an encoder: train, finetune, embed, evaluate."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timewalk.cli.common import (
    Arguments,
    add_machine,
    add_manifests,
    add_settings,
    add_verb,
    device_of,
    manifests,
    read_settings,
    workers_of,
)
from timewalk.errors import UserError

if TYPE_CHECKING:
    from timewalk.training.loop import Machine


def add_verbs(verbs: Any) -> None:
    """Add these verbs to the command line."""
    verb = add_verb(verbs, "train", train)
    verb.add_argument("run", help="the run's name")
    verb.add_argument("output", type=Path, help="the run's folder")
    add_settings(verb, "settings", "keys of an entry of `runs:`")
    add_manifests(verb, "shards", "shard manifests")
    verb.add_argument(
        "--validation",
        type=read_settings,
        default=None,
        help="for key `validation`: name, settings, dataset and train_dataset of that evaluation",
    )
    add_machine(verb)

    verb = add_verb(verbs, "finetune", finetune)
    verb.add_argument("finetuning", help="the fine-tuning's name")
    verb.add_argument("run", type=Path, help="the run's folder")
    verb.add_argument("output", type=Path, help="folder of the network")
    add_settings(verb, "settings", "keys of an entry of `finetuning:`")
    verb.add_argument("--dataset", type=Path, required=True, help="manifest.json of a labelled set")
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
    add_manifests(verb, "frames", "manifests of frames, for key `frames`")
    verb.add_argument(
        "--train-dataset", type=Path, nargs="?", help="manifest.json, for key `train_dataset`"
    )
    verb.add_argument(
        "--network", type=Path, nargs="?", help="network.safetensors, for key `network`"
    )
    add_machine(verb)


def train(arguments: Arguments) -> int | None:
    """Train a run, going on from its newest checkpoint."""
    from timewalk.methods.base import TrainedRunConfig
    from timewalk.suite import load_run
    from timewalk.training.run import train as call
    from timewalk.validation import validator

    config = load_run(arguments.settings, f"runs.{arguments.run}")
    words = [arguments.run, str(arguments.output), "--settings", json.dumps(arguments.settings)]
    words += ["--validation", json.dumps(arguments.validation)]
    words += ["--shards", *map(str, arguments.shards)]

    def work(machine: "Machine") -> None:
        evaluate = None
        if arguments.validation is not None:
            evaluate = validator(arguments.validation, machine.device, machine.workers)
        shards = manifests(arguments.shards)
        call(arguments.run, config, shards, arguments.output, machine, evaluate)

    nodes = config.nodes if isinstance(config, TrainedRunConfig) else None
    return _in_processes(arguments, ["train", *words], nodes, work)


def finetune(arguments: Arguments) -> int | None:
    """Fine-tune a run's encoder on a labelled set, going on from the newest checkpoint."""
    from timewalk.suite import load_finetuning
    from timewalk.training.finetune import finetune as call

    config = load_finetuning(arguments.settings, f"finetuning.{arguments.finetuning}")
    words = [arguments.finetuning, str(arguments.run), str(arguments.output)]
    words += ["--settings", json.dumps(arguments.settings), "--dataset", str(arguments.dataset)]

    def work(machine: "Machine") -> None:
        places = (arguments.run, arguments.dataset, arguments.output)
        call(arguments.finetuning, config, *places, machine)

    return _in_processes(arguments, ["finetune", *words], config.nodes, work)


def _in_processes(
    arguments: Arguments, words: list[str], nodes: int | None, work: Callable[["Machine"], None]
) -> int | None:
    """Hold the GPUs and do a training's work: here, or in a process for each of several GPUs.

    Args:
        arguments: of the command line.
        words: the verb and its arguments, but for the machine's, for each of those processes.
        nodes: machines that train together; None: nothing is trained.
        work: the training, on the machine that it is given.
    """
    from timewalk.training.devices import lease, visible_devices
    from timewalk.training.distributed import Processes, die_with_parent, processes
    from timewalk.training.launch import launch

    group = processes()
    if group is not None:
        die_with_parent()
        return _in_process(arguments, group, work)
    # On several machines Slurm has chosen: as many on each.
    wanted = arguments.gpus if nodes in (None, 1) else len(visible_devices())
    with lease(wanted) as held:
        here = max(1, len(held))
        if nodes is not None and (nodes > 1 or here > 1):
            machine = ["--gpus", str(here), "--threads", str(arguments.threads)]
            return launch([words[0], *machine, *words[1:]], here, nodes)
        return _in_process(arguments, Processes(), work)


def _in_process(arguments: Arguments, group: Any, work: Callable[["Machine"], None]) -> int | None:
    import torch

    from timewalk.training.distributed import joined
    from timewalk.training.launch import ERROR_FILE, INTERRUPTED_FILE
    from timewalk.training.loop import INTERRUPTED, InterruptedTraining, Machine

    logging.getLogger().setLevel(logging.INFO if group.main else logging.ERROR)
    together = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("SLURM_NTASKS_PER_NODE", 1)))
    arguments.threads = max(1, arguments.threads // together)
    device = device_of(arguments)
    if device.type == "cuda":
        # srun may show each task its own GPU alone.
        device = torch.device("cuda", group.local_rank % torch.cuda.device_count())
    torch.set_num_threads(arguments.threads)
    try:
        with joined(group, device):
            work(Machine(device, workers_of(arguments), group))
    except InterruptedTraining as stopped:
        if note := os.environ.get(ERROR_FILE):
            Path(note).with_name(INTERRUPTED_FILE).touch()
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
            frames=tuple(manifests(arguments.frames)),
            train_dataset=arguments.train_dataset,
            network=arguments.network and arguments.network.parent,
            workers=workers_of(arguments),
        )
        run_evaluation(arguments.evaluation, inputs, config, arguments.output)
