"""What mkdocs.yml cannot say: folders in the navigation, pages that lie outside of docs/."""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
BESIDE = {
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "envs.md": "envs/README.md",
    "results.md": "results/README.md",
}
"""pages that are files outside of the folder of pages, from the project's root"""
WHOLE = re.compile(r"^::: (timewalk[.\w]*)\.\*$", re.MULTILINE)
"""all modules of a package, in a page of the API"""
MENTION = re.compile(r"(?<!\[)`docs/((?:\w+/)*\w+\.md)`")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put folders' pages into the navigation; leave out pages that are not there."""
    folder = Path(config.docs_dir)
    there = {file.relative_to(folder).as_posix(): _title(file) for file in folder.rglob("*.md")}
    config.nav = _expand(config.nav, there | BESIDE)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside of docs/."""
    for name, source in BESIDE.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **others: Any) -> str:
    """Link where a page is named as a file, `docs/weights.md`, and to pages outside of docs/."""
    folder = posixpath.dirname(page.file.src_uri)
    for name, source in BESIDE.items():
        as_file = posixpath.relpath(source, posixpath.join("docs", folder))
        as_page = posixpath.relpath(name, folder or ".")
        markdown = markdown.replace(f"]({as_file})", f"]({as_page})")

    def linked(found: re.Match[str]) -> str:
        if files.get_file_from_path(found[1]) is None:
            return found[0]
        return f"[{found[0]}]({posixpath.relpath(found[1], folder or '.')})"

    return WHOLE.sub(lambda found: _modules(found[1]), MENTION.sub(linked, markdown))


def _modules(package: str) -> str:
    """Return the lines for a package's modules that no page names by itself."""
    named = {line for page in (ROOT / "docs" / "api").glob("*.md") for line in _lines(page)}
    files = (ROOT / "src").joinpath(*package.split(".")).glob("[!_]*.py")
    return "\n".join(sorted({f"::: {package}.{file.stem}" for file in files} - named))


def _lines(page: Path) -> list[str]:
    return page.read_text(encoding="utf-8").splitlines()


def _title(file: Path) -> str:
    """Return a page's heading without what follows a colon or stands in brackets."""
    heading = re.search(r"^# (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    text = heading[1] if heading else file.stem
    short = re.split(r":| \(|, their", text)[0].replace("`", "")
    # A method's or kind's own name keeps its form.
    return short if re.search("[A-Z_-]", short) else short.capitalize()


def _expand(entry: Any, there: dict[str, str]) -> Any:
    if isinstance(entry, list):
        return [found for item in entry if (found := _expand(item, there))]
    if isinstance(entry, dict):
        ((title, below),) = entry.items()
        found = _expand(below, there)
        return {title: found} if found else None
    if not entry.endswith("/*"):
        return entry if entry in there else None
    pages = [name for name in there if posixpath.dirname(name) == entry.removesuffix("/*")]
    # A folder's own page is its title in the navigation.
    first = [name for name in pages if name.endswith("/index.md")]
    rest = sorted(set(pages) - set(first), key=lambda name: there[name].lower())
    return first + [{there[name]: name} for name in rest]
