"""Commands of the pages: which paragraphs are shell, and their words."""

import re
import shlex
from dataclasses import dataclass

from tests.docs.blocks import Block

HERE = {"snakemake", "timewalk", "make", "pytest", "python", "torchrun", "mkdocs"}
"""programs whose commands the tests run, dry-run or parse"""
ELSEWHERE = {
    "source": "of the shell",
    "cd": "of the shell",
    "export": "of the shell",
    "ls": "of the system",
    "tail": "of the system",
    "cp": "of the system",
    "rm": "of the system",
    "tar": "of the system; test_handing_on.py runs it",
    "rsync": "needs another machine; test_handing_on.py reads what it excludes",
    "ssh": "needs another machine",
    "$EDITOR": "is a person's",
    "git": "needs an address",
    "pip": "needs a network",
    "conda": "is not installed",
    "micromamba": "is not installed",
    "apptainer": "is not installed",
    "docker": "is not installed",
    "squeue": "needs a cluster; tests/slurm has one",
    "sacct": "needs a cluster; tests/slurm has one",
    "scancel": "needs a cluster; tests/slurm has one",
    "mlflow": "starts a server; tests/report/test_dashboard.py does",
}
"""what is not run here, and why"""
PROGRAMS = HERE | set(ELSEWHERE)
"""first words by which a line of an unmarked block is a command"""
SHELL = {"sh", "bash", "console", "shell"}


@dataclass(frozen=True)
class Command:
    """A command of a page.

    Attributes:
        place: page and line of its block.
        words: as a shell would divide it, without comments and without what follows a pipe.
        exports: variables that its block has set before it.
    """

    place: str
    words: tuple[str, ...]
    exports: tuple[tuple[str, str], ...] = ()

    @property
    def program(self) -> str:
        return self.words[0].rpartition("/")[2]

    @property
    def page(self) -> str:
        return self.place.partition(":")[0]

    def __str__(self) -> str:
        return f"{self.place}: {shlex.join(self.words)}"


def paragraphs(block: Block) -> list[str]:
    """Return a block's parts: an indented block may be code of two kinds with a space between."""
    if block.language:
        return [block.text]
    return [part.strip("\n") + "\n" for part in re.split(r"\n\s*\n", block.text) if part.strip()]


def is_shell(block: Block, text: str) -> bool:
    """Say whether a paragraph is commands: by its language, or by how its lines begin."""
    if block.language in SHELL:
        return True
    lines = [line for line in _logical(text) if line and not line.startswith("#")]
    first = [re.split(r"\s", line.removeprefix("$ "))[0].rpartition("/")[2] for line in lines]
    if block.language == "text":
        starts = r"(snakemake (-|results/)|timewalk [a-z]+ |make [a-z])"
        return bool(lines) and all(re.match(starts, line) for line in lines)
    return bool(lines) and first[0] in PROGRAMS


def commands(block: Block, text: str) -> list[Command]:
    """Return the commands of a paragraph."""
    found: list[Command] = []
    exports: list[tuple[str, str]] = []
    for line in _logical(text):
        for words in _parts(line.removeprefix("$ ")):
            if words[0] == "export":
                name, _, value = words[1].partition("=")
                exports.append((name, value))
            else:
                found.append(Command(block.place, tuple(words), tuple(exports)))
    return found


def inline(page: str, text: str) -> list[Command]:
    """Return the commands within sentences: in backticks, with words that begin as commands do."""
    outside = re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"(?<!`)`((?:snakemake|timewalk|make) [^`]+)`(?!`)", outside)
    found = (re.sub(r"\s*\n\s*", " ", span) for span in spans)
    return [Command(f"{page}:", tuple(shlex.split(span))) for span in found]


def _logical(text: str) -> list[str]:
    joined = re.sub(r"\\\n\s*", " ", text)
    return [line.strip() for line in joined.splitlines()]


def _parts(line: str) -> list[list[str]]:
    """Return the commands of a line, each as words, without what they are piped into."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|;&")
    lexer.whitespace_split, lexer.commenters = True, "#"
    parts: list[list[str]] = [[]]
    piped = False
    for word in lexer:
        if word in ("&&", ";", "|", "&"):
            piped = word == "|"
            parts.append([])
        elif not piped:
            parts[-1].append(word)
    return [part for part in parts if part]
