"""What the command line teaches: verbs in groups, examples, the nearest name to a typo."""

import argparse
import re
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

from timewalk.errors import nearest

GROUPS = {
    "Stages, in the order of the data (the workflow calls them; so can you)": (
        *("download", "blur", "frames", "shards", "images", "folders", "visor", "prepare"),
        *("train", "finetune", "embed", "evaluate", "report", "card", "page", "mlflow"),
    ),
    "Looking at results": (
        *("runs", "show", "compare", "dashboard", "align", "inspect", "metrics"),
    ),
    "Checking, and what there is": (
        *("doctor", "validate", "methods", "evaluations", "tasks", "videos", "schema"),
        "completion",
    ),
}
"""verbs by what they are for"""

FIRST = (
    ("timewalk doctor", "is everything here that the suite needs?"),
    ("timewalk validate config.yaml", "is the configuration right?"),
    ("snakemake --cores 8", "make the whole suite, each stage once"),
    ("timewalk runs", "how far is it, and how good?"),
    ("timewalk compare dora random", "what differs, and what came of it?"),
)
"""where to begin"""

EXAMPLES = {
    "align": "timewalk align results/tcc/embeddings/pouring-test.safetensors -o aligned.mp4",
    "blur": "timewalk blur data/videos/venice.mp4 data/blurred/venice.mp4 --workers 8",
    "card": "timewalk card results/dora results/dora/knn.json",
    "compare": "timewalk compare dora dora_300ep random --output curves.png",
    "completion": "timewalk completion bash --output "
    "~/.local/share/bash-completion/completions/timewalk",
    "dashboard": "timewalk dashboard results --port 5001",
    "davis": "timewalk metrics davis --results my_masks --davis data/DAVIS",
    "doctor": "timewalk doctor config.yaml",
    "download": "timewalk download venice data/videos/venice.mp4 --video "
    '\'{"source": "https://example.org/venice.mp4"}\'',
    "embed": "timewalk embed results/dora data/datasets/digits/manifest.json test features.npy",
    "evaluate": "timewalk evaluate davis results/dora results/dora/davis.json --settings "
    '\'{"kind": "davis", "dataset": "davis2017"}\' --dataset '
    "data/datasets/davis2017/manifest.json",
    "evaluations": "timewalk evaluations knn",
    "finetune": "timewalk finetune ade20k_linear results/dora results/dora/finetuned/ade20k_linear "
    "--settings head.yaml --dataset data/datasets/ade20k/manifest.json",
    "folders": "timewalk folders data/YouTubeVOS/train/JPEGImages data/shards/ytvos/folders.json",
    "frames": "timewalk frames walk.mp4 data/frames/mine/walk --settings '{\"fps\": 1}'",
    "images": "timewalk images data/photos data/shards/photos/images.json",
    "inspect": "timewalk inspect pouring_val-0-of-1.tfrecord",
    "methods": "timewalk methods dora",
    "metrics": "timewalk metrics davis --results my_masks --davis data/DAVIS",
    "mlflow": "timewalk mlflow results",
    "page": "timewalk page results",
    "prepare": "timewalk prepare davis2017 data/datasets/davis2017/manifest.json --root data/DAVIS",
    "report": "timewalk report results results/dora/knn.json results/random/knn.json",
    "runs": "timewalk runs results",
    "schema": "timewalk schema --markdown",
    "shards": "timewalk shards data/frames/mine/walk/manifest.json data/shards/mine/walk.json",
    "show": "timewalk show dora",
    "tasks": "timewalk tasks",
    "train": "timewalk train mine results/mine --settings run.yaml --shards "
    "data/shards/mine/walk.json",
    "validate": "timewalk validate config.yaml",
    "videos": "timewalk videos",
    "visor": "timewalk visor EPIC-KITCHENS-VISOR data/VISOR",
}
"""of each verb"""

CHOICE = re.compile(
    r"argument (?P<what>[^:]+): invalid choice: '(?P<word>.*?)' \(choose from (.*)\)"
)
UNKNOWN = "unrecognized arguments: "


class Parser(argparse.ArgumentParser):
    """A parser that names the nearest verb or option when it meets a wrong one."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one sentence and leave with exit code 2."""
        if found := CHOICE.match(message):
            choices = re.findall(r"[\w.-]+", found[3])
            what = {"VERB": "verb", "METRIC": "metric"}.get(found["what"], found["what"])
            message = f"unknown {what} '{found['word']}'{nearest(found['word'], choices)}"
        message = message.replace("the following arguments are required", "missing")
        end = "" if message.endswith("?") else "."
        self.exit(2, f"{self.prog}: {message}{end} See {self.prog} --help\n")

    def unknown(self, words: Sequence[str]) -> NoReturn:
        """Refuse words that no argument takes."""
        known = [option for action in self._actions for option in action.option_strings]
        word = words[0].partition("=")[0]
        if word.startswith("-"):
            self.error(f"unknown option '{word}'{nearest(word, known)}")
        self.error(f"'{word}' is one argument too many")


class Root(Parser):
    """The parser of all verbs, whose help shows them in groups."""

    def format_help(self) -> str:
        """Return the help: how to begin, verbs in groups, options."""
        verbs = next(a for a in self._actions if isinstance(a, argparse._SubParsersAction))
        about = {action.dest: action.help or "" for action in verbs._choices_actions}
        parts = [f"usage: {self.prog} [--log FILE] VERB ...", "", *_wrapped(self.description)]
        parts += ["", "Where to begin:"]
        parts += [f"  {command:<32} {what}" for command, what in FIRST]
        for title, names in GROUPS.items():
            parts += ["", f"{title}:", *_listed({n: about[n] for n in names if n in about})]
        parts += ["", "Options:", *_listed(self._own_options())]
        end = f"{self.prog} VERB --help shows what a verb needs, with an example."
        return "\n".join([*parts, "", end, ""])

    def _own_options(self) -> dict[str, str]:
        return {
            " ".join([", ".join(a.option_strings), *([a.metavar] if a.metavar else [])]): a.help
            for a in self._actions
            if a.option_strings and a.help is not None and isinstance(a.metavar, str | None)
        }


def _wrapped(text: str | None) -> list[str]:
    paragraphs = (text or "").strip().split("\n\n")
    return "\n\n".join(textwrap.fill(" ".join(p.split()), 79) for p in paragraphs).splitlines()


def _listed(about: dict[str, str]) -> list[str]:
    """Return lines of names and what they are, wrapped to 79 characters."""
    lines = []
    for name, text in about.items():
        first = f"  {name:<12} "
        if len(first) > 15:
            lines.append(first.rstrip())
            first = " " * 15
        lines += textwrap.wrap(text, 79, initial_indent=first, subsequent_indent=" " * 15)
    return lines


def example(verb: str) -> str | None:
    """Return the end of a verb's help."""
    return f"example:\n  {EXAMPLES[verb]}" if verb in EXAMPLES else None


def subparser_options(verb: str, text: str) -> dict[str, Any]:
    """Return what every verb's parser is made with."""
    return {
        "help": " ".join(text.partition("\n\n")[0].split()),
        "description": text,
        "epilog": example(verb),
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }
