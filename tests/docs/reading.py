"""The pages as the tests read them: paragraphs by kind, commands, parts of configurations."""

import json
import re
from functools import cache

import yaml

from tests.conftest import ROOT
from tests.docs.blocks import Block, blocks, pages
from tests.docs.shell import Command, commands, inline, is_shell, paragraphs
from timewalk.config import Config

SECTIONS = {*Config.model_fields}
LAYOUT = re.compile(r"[^\s:]*[/<.]\S*( |:|$)", re.MULTILINE)
"""how a drawing of folders and files begins"""


@cache
def all_blocks() -> list[tuple[Block, str]]:
    """Return the paragraphs of all blocks of all pages."""
    found = (block for page in pages() for block in blocks(page))
    return [(block, text) for block in found for text in paragraphs(block)]


@cache
def in_blocks() -> list[Command]:
    return [
        c for block, text in all_blocks() if is_shell(block, text) for c in commands(block, text)
    ]


@cache
def in_sentences() -> list[Command]:
    found = []
    for page in pages():
        found += inline(page.relative_to(ROOT).as_posix(), page.read_text(encoding="utf-8"))
    return found


def of(program: str) -> list[Command]:
    return [command for command in in_blocks() if command.program == program]


def as_yaml(text: str) -> object:
    """Read YAML, also a part whose anchors stand elsewhere."""
    anchors = sorted(set(re.findall(r"\*(\w+)", text)) - set(re.findall(r"&(\w+)", text)))
    anchored = "".join(f"{name}_: &{name} {{}}\n" for name in anchors)
    found = yaml.safe_load(anchored + text)
    if isinstance(found, dict):
        return {key: x for key, x in found.items() if key.removesuffix("_") not in anchors}
    return found


def kind_of(block: Block, text: str) -> str:
    """Say what a paragraph is; what cannot be said is an error of the page."""
    if is_shell(block, text):
        return "shell"
    if block.language:
        return block.language
    for kind, read in (("json", json.loads), ("yaml", as_yaml), ("python", compiled)):
        try:
            found = read(text.replace("...", "").replace(", }", "}") if kind == "json" else text)
        except (ValueError, SyntaxError, yaml.YAMLError):
            continue
        if kind != "yaml" or isinstance(found, dict):
            return kind
    return "layout" if LAYOUT.match(text) else "unknown"


def compiled(text: str) -> object:
    return compile(text, "page", "exec")


@cache
def suites() -> list[tuple[Block, dict]]:
    """Return the parts of configurations that the pages show."""
    found = []
    for block, text in all_blocks():
        if kind_of(block, text) in ("yaml", "text"):
            try:
                part = as_yaml(text)
            except yaml.YAMLError:
                continue
            if isinstance(part, dict) and part and set(part) <= SECTIONS:
                found.append((block, part))
    return found
