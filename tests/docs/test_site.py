"""The documentation as a site: it builds strictly, asks no other place, and reads well."""

import functools
import os
import posixpath
import re
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.browser import PATIENCE_MS, chromium  # noqa: F401
from tests.conftest import ROOT
from tests.docs.blocks import pages
from timewalk.evaluation import evaluation_names, get_evaluation
from timewalk.methods import method_names

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source|video)[^>]*\ssrc="(https?:|//)[^"]*"|<link[^>]*\srel="(?:stylesheet|preconnect|icon|preload)"[^>]*href="(https?:|//)"""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built as `make docs` does."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", folder]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_in_the_site(site):
    for page in (ROOT / "docs").rglob("*.md"):
        place = page.relative_to(ROOT / "docs").with_suffix(".html")
        assert (site / place).is_file(), place


def test_pages_that_lie_elsewhere_are_in_the_site(site):
    for page, heading in (("results", "results"), ("envs", "Software of the steps")):
        text = (site / f"{page}.html").read_text()
        assert f">{heading}<a class" in text
        assert f'href="{page}.html"' in (site / "report.html").read_text()
    cluster = (site / "cluster.html").read_text()
    assert '<a href="envs.html">envs/README.md</a>' in cluster


def test_every_method_and_evaluation_has_a_page():
    wanted = [f"docs/methods/{name}.md" for name in method_names()]
    wanted += [f"docs/evaluations/{name}.md" for name in evaluation_names()]
    missing = [page for page in wanted if not (ROOT / page).is_file()]
    assert not missing, f"write {', '.join(missing)} (docs/extending.md)"


@pytest.mark.parametrize(
    ("folder", "names"), [("methods", method_names()), ("evaluations", evaluation_names())]
)
def test_the_overviews_name_everything(folder, names):
    overview = (ROOT / "docs" / folder / "index.md").read_text()
    missing = [name for name in names if f"[`{name}`]({name}.md)" not in overview]
    rows = ", ".join(f"[`{name}`]({name}.md)" for name in missing)
    assert not missing, f"add to the table of docs/{folder}/index.md a row for {rows}"


def test_the_overviews_name_every_headline():
    overview = (ROOT / "docs" / "evaluations" / "index.md").read_text()
    headlines = {name: get_evaluation(name).headline[:1] for name in evaluation_names()}
    missing = {name: x[0] for name, x in headlines.items() if x and f"`{x[0]}`" not in overview}
    assert not missing, f"add to the rows of docs/evaluations/index.md the metrics of {missing}"


def test_nothing_is_fetched_from_elsewhere(site):
    for file in [*site.rglob("*.html"), *site.rglob("*.css")]:
        text = file.read_text(encoding="utf-8")
        found = FETCHED.search(text)
        assert not found, f"{file.relative_to(site)}: {found[0]}"
        assert "@import url(http" not in text
        assert "url(http" not in text, file


def test_the_api_is_what_the_docstrings_say(site):
    page = (site / "api" / "contracts.html").read_text()
    for name in (
        "clips.ClipSource",
        "encoders.base.Encoder",
        "methods.base.Method",
        "evaluation.base.Result",
    ):
        assert f'{name}"' in page or f"{name.rpartition('.')[2]}</span>" in page, name
    assert ":class:" not in page
    assert "T - F*S" in re.sub(r"<[^>]+>", "", page)


def test_the_api_has_every_module_once(site):
    text = "".join(page.read_text(encoding="utf-8") for page in (site / "api").glob("*.html"))
    packages = ("data", "encoders", "evaluation", "methods", "metrics", "ops", "report", "training")
    modules = [
        f"timewalk.{folder}.{file.stem}"
        for folder in (*packages, "video")
        for file in (ROOT / "src" / "timewalk" / folder).glob("[!_]*.py")
    ]
    assert len(modules) > 200
    assert not [name for name in modules if f'id="{name}.' not in text]
    # Twice is once too often, since anchors are the same; pages may give a module other headings.
    assert not [name for name in modules if text.count(f'id="{name}"') > 1]


def test_links_of_pages_outside_the_site_lead_somewhere():
    for page in pages():
        if page.is_relative_to(ROOT / "docs"):
            continue  # of the site's own pages mkdocs checks links and anchors
        text = re.sub(r"`[^`]*`", "", page.read_text(encoding="utf-8"))
        for link in LINK.findall(text):
            target = unquote(urlsplit(link).path)
            if target and not urlsplit(link).scheme:
                assert (page.parent / target).exists(), f"{page.name}: {link}"


def test_files_that_pages_name_exist():
    named = re.compile(r"`((?:docs|tests|benchmarks|workflow|envs|slurm|profiles)/[\w./-]+\.\w+)`")
    for page in pages():
        name = page.relative_to(ROOT).as_posix()
        if name.startswith("docs/extending/"):
            continue  # the files that its reader makes
        for path in named.findall(page.read_text(encoding="utf-8")):
            assert (ROOT / path).exists(), f"{name}: {path}"


@pytest.fixture(scope="module")
def address(site):
    """Where a server of this machine shows the site."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

    handler = functools.partial(Quiet, directory=str(site))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def page(chromium, address):  # noqa: F811
    """A page of the browser, which notes what it asks for."""
    found = chromium.new_page(viewport={"width": 1280, "height": 800})
    found.set_default_timeout(PATIENCE_MS)
    asked: list[str] = []
    found.on("request", lambda request: asked.append(request.url))
    found.asked = asked
    yield found
    assert all(url.startswith((address, "data:", "blob:")) for url in asked), asked
    found.close()


@pytest.mark.parametrize("width", [360, 768, 1440])
def test_pages_fit_the_window(page, address, width):
    page.set_viewport_size({"width": width, "height": 800})
    for name in ("index", "methods/dora", "api/contracts", "configuration", "data_cards"):
        page.goto(f"{address}/{name}.html")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        assert page.locator("h1").first.is_visible()


def test_search_finds_a_method_and_leads_there(page, address):
    page.goto(f"{address}/index.html")
    page.keyboard.press("/")
    page.locator(".md-search__input").fill("sinkhorn")
    first = page.locator(".md-search-result__link").first
    first.wait_for()
    assert "sinkhorn" in first.inner_text().lower() or first.get_attribute("href")
    target = first.get_attribute("href")
    page.goto(posixpath.join(address, target) if "://" not in target else target)
    assert "inkhorn" in page.locator("article").inner_text()


def test_the_reader_chooses_light_or_dark(page, address):
    page.goto(f"{address}/index.html")
    scheme = "document.body.getAttribute('data-md-color-scheme')"
    assert page.evaluate(scheme) == "default"
    page.locator("form[data-md-component=palette] label:visible").click()
    page.wait_for_function(f"{scheme} === 'slate'")
    page.goto(f"{address}/methods/dora.html")
    page.wait_for_function(f"{scheme} === 'slate'")
