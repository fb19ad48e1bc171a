"""What the verbs share: their arguments, and the machine that they run on."""

import argparse
import inspect
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from timewalk.cli.guide import subparser_options
from timewalk.errors import UserError

Arguments = argparse.Namespace


def add_verb(
    verbs: Any, name: str, call: Callable[[Arguments], int | None]
) -> argparse.ArgumentParser:
    """Add a verb that calls a function, whose docstring explains it."""
    verb: argparse.ArgumentParser = verbs.add_parser(
        name, **subparser_options(name, inspect.cleandoc(call.__doc__ or ""))
    )
    verb.set_defaults(call=call)
    return verb


def read_settings(text: str) -> Any:
    """Read settings: JSON text, or the path of a JSON or YAML file."""
    if text.lstrip().startswith(("{", "[", "null")):
        return json.loads(text)
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text} is neither JSON nor a file")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def add_settings(verb: argparse.ArgumentParser, name: str, what: str) -> None:
    """Add an option that takes settings."""
    verb.add_argument(f"--{name}", type=read_settings, default={}, help=f"{what}: JSON, or a file")


def add_config(verb: argparse.ArgumentParser) -> None:
    """Add the option that names the configuration of some results."""
    verb.add_argument(
        "--config",
        type=Path,
        nargs="+",
        help="configuration files, for what was asked for (default: config.yaml if it is of these "
        "results)",
    )


def add_machine(verb: argparse.ArgumentParser) -> None:
    """Add the options of a verb that computes."""
    verb.add_argument("--gpus", type=int, default=1, help="GPUs wanted; 0: the CPU")
    verb.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU cores to use")


def add_manifests(verb: argparse.ArgumentParser, name: str, what: str) -> None:
    """Add an option that takes manifests, or lists of them: see :func:`manifests`."""
    verb.add_argument(
        f"--{name}",
        type=Path,
        nargs="*",
        default=[],
        help=f"{what}; FILE.txt: those that FILE names, one a line",
    )


def manifests(paths: Sequence[Path]) -> list[Path]:
    """Return the manifests that are given by name, or in lists, ``….txt``, that name them.

    Raises:
        UserError: there is no such list.
    """
    found: list[Path] = []
    for path in paths:
        if path.suffix == ".txt":
            if not path.is_file():
                raise UserError(f"{path} is missing: name a list of manifests, one a line.")
            lines = path.read_text(encoding="utf-8").splitlines()
            found += [Path(line) for line in lines if line.strip()]
        else:
            found.append(path)
    return found


def device_of(arguments: Arguments) -> Any:
    """Return the torch device to compute on, and say which it is."""
    import torch

    wanted = arguments.gpus > 0 and torch.cuda.is_available()
    device = torch.device("cuda" if wanted else "cpu")
    logging.getLogger(__name__).info("running on %s", device.type)
    return device


def workers_of(arguments: Arguments) -> int:
    """One loader process a core where a GPU computes; one in all where the cores compute."""
    import torch

    if arguments.gpus > 0 and torch.cuda.is_available():
        return max(1, arguments.threads - 1)
    return 1 if arguments.threads > 1 else 0
