"""The report page in a real Chromium: filters, sorting, keys, contrast, widths, no network."""

import base64
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from tests.browser import PATIENCE_MS, chromium  # noqa: F401
from tests.report import results
from timewalk.report.page_html import content, write_page

CONTRAST = """() => {
  const channel = (c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = parse(getComputedStyle(one).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    throw new Error("nothing behind");
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    const seen = own && element.checkVisibility({ visibilityProperty: true });
    if (!seen || element.closest("script, .sr, .skip, optgroup, option")) continue;
    const style = getComputedStyle(element);
    const drawn = element instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [light(parse(drawn)), light(behind(element))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.outerHTML.slice(0, 90)]);
  }
  return found;
}"""
SHIFTS = """
window.shifts = [];
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) window.shifts.push(entry.value);
}).observe({ type: "layout-shift", buffered: true });
"""
ROWS = (
    "[...document.querySelectorAll('#square tbody tr')].filter(row => !row.hidden)"
    ".map(row => row.dataset.row)"
)
COLUMNS = (
    "[...document.querySelectorAll('#square thead th[data-evaluation]')].filter(h => !h.hidden)"
    ".map(h => h.dataset.evaluation)"
)
OF_FOCUS = (
    "document.activeElement.closest('tr')?.dataset.row + ' ' "
    "+ document.activeElement.closest('td')?.cellIndex"
)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder, plan = results.some(tmp_path_factory.mktemp("suite"))
    return write_page(folder, plan).as_uri()


@pytest.fixture
def opened(chromium, address):  # noqa: F811
    """Open the page with what is chosen; close it after the test, in which no error was logged."""
    pages, errors = [], []

    def call(chosen="", width=1280, place=address, **options):
        page = chromium.new_page(viewport={"width": width, "height": 900}, **options)
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        pages.append(page)
        page.goto(place + chosen)
        return page

    call.errors = errors
    yield call
    for page in pages:
        page.close()
    assert errors == []


def test_a_click_sorts_best_first(opened):
    page = opened()
    knn = page.locator("th[data-evaluation=knn] .sort")
    knn.click()
    nasty = results.NASTY.replace("/", "|")
    assert page.evaluate(ROWS) == ["pretrained", "dora", nasty, "random", "crw"]
    assert page.get_attribute("th[data-evaluation=knn]", "aria-sort") == "descending"
    knn.click()
    assert page.evaluate(ROWS) == ["random", nasty, "dora", "pretrained", "crw"]  # without last
    page.locator("th[data-evaluation=losses] .sort").click()
    assert page.evaluate(ROWS)[:2] == ["dora", "random"]
    assert page.get_attribute("th[data-evaluation=losses]", "aria-sort") == "ascending"
    assert page.locator("[aria-sort]").count() == 1
    page.locator("th[data-evaluation=losses] .sort").click()
    page.locator("th[data-evaluation=losses] .sort").click()
    assert page.evaluate(ROWS)[0] == "random"
    assert page.locator("[aria-sort]").count() == 0


def test_every_table_sorts_by_keys_and_the_address_keeps_it(opened):
    page = opened()
    rows = "(s) => [...document.querySelectorAll(s + ' tbody tr')].map(r => r.cells[{}].innerText)"
    names, models = rows.format(0), "#models table"
    page.evaluate("document.querySelector('#all').open = true")
    nasty = results.NASTY.replace("/", "|")
    group = "section.group[data-evaluation=knn] table"
    page.locator(f"{group} th[data-key=top1_k5] .sort").focus()
    page.keyboard.press("Enter")
    order = [text.split("\n")[0] for text in page.evaluate(names, group)]
    assert order == ["pretrained", "dora", nasty, "random", "crw"]
    page.keyboard.press("Space")
    assert page.evaluate(names, group)[0] == "random"
    losses = "section.group[data-evaluation=losses] table"
    page.locator(f"{losses} th[data-key=loss_test] .sort").click()
    assert page.evaluate(names, losses)[0].startswith("dora")
    page.locator(f"{models} .sort", has_text="Method").click()
    methods = page.evaluate(rows.format(1), models)
    assert methods == sorted(methods) != []
    page.locator(f"{models} .sort", has_text="Steps").click()
    assert page.evaluate(names, models)[-1] == "crw"  # without an encoder
    page.locator("#missing .sort", has_text="Evaluation").click()
    page.locator("#missing .sort", has_text="Evaluation").click()
    missing = page.evaluate(rows.format(1), "#missing table")
    assert missing == sorted(missing, reverse=True)
    assert len(set(missing)) == 3
    assert page.locator("[aria-sort]").count() == 4
    again = opened(page.url[page.url.index("#") :])
    assert again.evaluate(rows.format(1), "#missing table") == missing
    page.click("#clear")
    assert page.locator("[aria-sort]").count() == 0
    assert page.evaluate(rows.format(1), "#missing table") != missing


def test_the_detail_has_the_published_figure_of_another_metric(opened, tmp_path):
    page = opened(place=write_page(results.given(tmp_path)).as_uri())
    assert page.locator("#square .beside:visible").all_inner_texts() != []  # to random
    page.locator("tr[data-row=given] a.open").first.click()
    line = page.locator("#detail tr", has_text="top1_best").locator("td").inner_text()
    line = " ".join(line.split())
    assert "published 77.00, \N{MINUS SIGN}0.50 (value \N{MINUS SIGN} published)" in line
    assert "published" not in page.locator("#detail tr", has_text="top1_final").inner_text()
    assert "top1_best: DINO (ICCV 2021), README" in page.inner_text("#detail")
    page.keyboard.press("Escape")
    page.locator("tr[data-row=random] a.open").first.click()
    assert "DINO (ICCV 2021)" not in page.inner_text("#detail")


def test_a_small_video_plays_without_its_file(opened, tmp_path):
    place = results.run(tmp_path / "results", "crw", "crw")
    film = results.video(place / "davis" / "overlays" / "bear.mp4")
    results.result(place, "davis", {"JF_mean": 1.0}, artefacts=("davis/overlays/bear.mp4",))
    alone = write_page(tmp_path / "results").rename(tmp_path / "sent.html")
    film.unlink()
    page = opened(place=alone.as_uri())
    page.evaluate("document.querySelector('#pictures video').play()")
    page.wait_for_function(
        "(video => video.readyState >= 2 && video.currentTime > 0)"
        "(document.querySelector('#pictures video'))"
    )
    assert page.evaluate("document.querySelector('#pictures video').videoWidth") == 64
    link = page.get_by_role("link", name="bear.mp4")
    assert link.get_attribute("href") == "crw/davis/overlays/bear.mp4"


def test_words_filter_rows_and_columns(opened):
    page = opened()
    page.fill("#words", "dora")
    assert page.evaluate(ROWS) == ["dora"]
    page.fill("#words", "dora knn-cls")
    assert (page.evaluate(ROWS), page.evaluate(COLUMNS)) == (["dora"], ["knn"])
    assert page.inner_text("#status") == "1 of 5 rows, 1 of 3 columns"
    assert page.locator("#pictures section:visible").count() == 1
    page.fill("#words", "nobody")
    assert (page.evaluate(ROWS), page.evaluate(COLUMNS)) == ([], [])
    page.click("#clear")
    assert len(page.evaluate(ROWS)) == 5
    assert page.url.partition("#")[2] == ""


def test_choices_filter_and_live_in_the_address(opened):
    page = opened()
    page.click("#methods summary")
    page.get_by_label("dora", exact=True).first.check()
    page.get_by_label("timet", exact=True).check()
    page.keyboard.press("Escape")
    assert page.evaluate("document.querySelector('#methods').open") is False
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    page.click("#evaluations summary")
    page.get_by_label("losses", exact=True).check()
    page.select_option("#beside", label="value \N{MINUS SIGN} random")
    page.select_option("#theme", "dark")
    page.select_option("#scale", "log")
    again = opened(page.url[page.url.index("#") :])
    for one in (page, again):
        assert one.evaluate(ROWS) == ["dora"]  # the other was not asked for losses
        assert one.evaluate(COLUMNS) == ["losses"]
        beside = one.locator("#square .beside:visible").all_inner_texts()
        assert [" ".join(text.split()) for text in beside] == [
            "\N{MINUS SIGN}0.2000 (value \N{MINUS SIGN} random)"
        ]
        assert one.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
        assert one.input_value("#scale") == "log"
        assert one.inner_text("#methods-said") == "dora, timet"


def test_a_malformed_address_hides_nothing(opened):
    page = opened("#methods=50%25&open=%25,%25&sort=run&runs=%25")
    assert page.evaluate(ROWS) == []
    assert page.inner_text("#methods-said") == "50%"
    assert page.locator("main").is_visible()
    page.click("#clear")
    assert len(page.evaluate(ROWS)) == 5


def test_an_address_that_is_pasted_is_obeyed(opened):
    page = opened("#q=dora")
    page.evaluate("location.hash = '#q=random&scale=log&theme=dark'")
    page.wait_for_function(f"{ROWS}.join() === 'random'")
    assert (page.input_value("#words"), page.input_value("#scale")) == ("random", "log")
    page.evaluate("location.hash = '#models'")
    page.evaluate("new Promise(done => setTimeout(done, 50))")
    assert page.evaluate(ROWS) == ["random"]
    page.evaluate("location.hash = ''")
    page.wait_for_function(f"{ROWS}.length === 5")
    page.evaluate("location.hash = '#open=random,knn'")
    page.wait_for_selector("#detail[open]")
    assert page.inner_text("#detail-title") == "random: knn"


def test_the_page_within_the_report_of_snakemake(opened, address, tmp_path):
    """There it is in a frame whose address is the page itself."""
    text = Path(urlparse(address).path).read_bytes()
    source = f"data:text/html;base64,{base64.b64encode(text).decode()}"
    outer = tmp_path / "outer.html"
    outer.write_text(f'<iframe width="1200" height="800" src="{source}"></iframe>')
    page = opened(place=outer.as_uri())
    frame = page.frames[1]
    frame.wait_for_selector("#square")
    frame.select_option("#theme", "dark")
    frame.fill("#words", "dora")
    assert frame.evaluate(ROWS) == ["dora"]
    frame.fill("#words", "")
    frame.select_option("#theme", "")
    assert len(frame.evaluate(ROWS)) == 5
    assert frame.evaluate("document.documentElement.dataset.theme") == ""
    frame.locator("tr[data-row=dora] a.open").first.click()
    assert frame.inner_text("#detail-title") == "dora: knn"
    page.keyboard.press("Escape")
    frame.wait_for_function("!document.querySelector('#detail').open")


def test_arrow_keys_walk_and_enter_opens(opened):
    page = opened()
    assert page.locator("#square a.open[tabindex='0']").count() == 1
    page.locator("#square a.open[tabindex='0']").focus()
    assert page.evaluate(OF_FOCUS) == "random 1"
    page.keyboard.press("ArrowDown")
    assert page.evaluate(OF_FOCUS) == "pretrained 1"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowUp")
    assert page.evaluate(OF_FOCUS) == "random 2"
    page.keyboard.press("ArrowUp")
    assert page.evaluate(OF_FOCUS) == "random 2"
    style = "getComputedStyle(document.activeElement)"
    assert page.evaluate(f"{style}.outlineStyle + {style}.outlineWidth") == "solid3px"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    assert page.locator("#detail").is_visible()
    assert page.inner_text("#detail-title") == "random: knn"
    text = page.inner_text("#detail")
    for said in ("top1_k5", "19.00", "knn-cls-t0.07", "kind: knn, k: [5,20]", "training: steps"):
        assert said in text
    page.keyboard.press("Escape")
    page.locator("#detail").wait_for(state="hidden")
    assert page.evaluate(OF_FOCUS) == "random 1"


def test_the_detail_of_seeds_and_of_a_failure(opened):
    page = opened()
    page.locator("tr[data-row=dora] a.open").first.click()
    text = page.inner_text("#detail")
    assert "+40.00 (value \N{MINUS SIGN} random)" in text
    line = page.locator("#detail tr", has_text="top1_k20").locator("td").all_inner_texts()
    assert [" ".join(cell.split()) for cell in line] == ["60.00 ± 2.83 , second best", "58", "62"]
    assert "map <1>.png" in text
    page.wait_for_function("document.querySelector('#detail img').naturalWidth")
    assert "open=dora%2C" in page.url or "open=dora," in page.url
    page.keyboard.press("Escape")
    page.locator("tr[data-row=dora] td.failed a.open").click()
    assert "Failed: data/<digits>.json is missing: run its stage." in page.inner_text("#detail")


def test_curves_have_values_under_the_keys(opened):
    page = opened()
    assert page.locator(".chart path").count() == 4
    page.locator(".chart").focus()
    page.keyboard.press("End")
    assert "Step 9: pretrained 0.4, dora_seed0 0.4" in page.inner_text("#values")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#values").startswith("Step 9: ")  # half a step is nearer to it
    page.keyboard.press("Home")
    assert page.inner_text("#values").startswith("Step 0: pretrained 4, ")
    assert "A point is" not in page.inner_text("#plot .note")
    page.select_option("#curve", "learning_rate")
    page.fill("#words", "dora")
    assert page.locator(".chart path").count() == 2
    page.get_by_role("checkbox", name="dora_seed1").uncheck()
    assert page.locator(".chart path").count() == 1
    page.get_by_role("checkbox", name="dora_seed0").uncheck()
    assert page.locator(".chart path").count() == 0
    assert "runs=none" in page.url


def test_curves_differ_by_more_than_their_colour(opened):
    page = opened()
    looks = "[...document.querySelectorAll('{}')].map(x => x.getAttribute('stroke-dasharray'))"
    drawn = page.evaluate(looks.format(".chart path"))
    legend = page.evaluate(looks.format(".legend line"))
    assert len(set(drawn)) == 4
    assert drawn == legend
    assert drawn[0] == ""  # the line that would hide the others is below them


def test_targets_on_a_phone_are_large_enough(opened):
    page = opened(width=360, has_touch=True, is_mobile=True)
    page.click("#methods summary")
    sizes = page.evaluate(
        "[...document.querySelectorAll('input, button, select, summary, .legend label')]"
        ".filter(x => x.checkVisibility()).map(x => [x.className + x.id + x.type,"
        " x.getBoundingClientRect().width, x.getBoundingClientRect().height])"
    )
    assert sum(name.endswith("checkbox") for name, _, _ in sizes) > 6
    assert [one for one in sizes if min(one[1:]) < 24] == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_contrast_of_all_text(opened, theme):
    page = opened(color_scheme=theme)
    page.evaluate("document.querySelector('#all').open = true")
    page.select_option("#beside", label="value \N{MINUS SIGN} random")
    found = page.evaluate(CONTRAST)
    page.locator("tr[data-row=dora] a.open").first.click()
    found += page.evaluate(CONTRAST)
    assert len(found) > 150
    assert [one for one in found if one[0] < 4.5] == []


@pytest.mark.parametrize("width", [360, 768, 1440])
def test_no_width_overflows_and_nothing_moves(opened, address, width):
    chosen = "#q=dora&sort=run%7Cdescending" if width == 768 else ""
    page = opened("", width, place="about:blank")
    page.add_init_script(SHIFTS)
    page.goto(address + chosen)
    page.wait_for_function("document.fonts.status === 'loaded' && window.shifts")
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert page.evaluate("window.shifts") == []
    wide = "document.documentElement.scrollWidth"
    assert page.evaluate(wide) <= width
    page.evaluate("document.querySelector('#all').open = true")
    assert page.evaluate(wide) <= width
    page.locator("tr[data-row=dora] a.open").first.click()
    assert page.evaluate("document.querySelector('#detail').scrollWidth") <= width


@pytest.mark.parametrize("width", [360, 1440])
def test_nothing_moves_where_the_page_is_seen_before_its_script(opened, address, tmp_path, width):
    text = Path(unquote(urlparse(address).path)).read_text()
    start = text.rindex("<script>")
    code = text[start:].removeprefix("<script>").partition("</script>")[0]
    run_late = (
        f'<script type="text/plain" id="late">{code}</script><script>setTimeout(() => {{'
        'const script = document.createElement("script");'
        'script.textContent = document.getElementById("late").textContent;'
        "document.body.append(script); document.body.dataset.ended = true}, 500)</script>"
    )
    (tmp_path / "late.html").write_text(text[:start] + run_late)
    page = opened("", width, place="about:blank")
    page.add_init_script(SHIFTS)
    page.goto((tmp_path / "late.html").as_uri())
    page.wait_for_selector("body[data-ended]")
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert f">{page.inner_text('#status')}</p>" in text
    assert page.evaluate("window.shifts") == []


def test_no_request_leaves_the_folder(opened, address):
    page = opened(place="about:blank")
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    page.locator("tr[data-row=dora] a.open").first.click()
    folder = address.rsplit("/", 1)[0]
    assert requests[0] == address
    assert all(url.startswith(("data:", folder)) for url in requests)
    asked = "fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')"
    assert page.evaluate(asked) == "refused"
    assert "violates the following Content Security Policy" in opened.errors.pop(0)
    opened.errors.clear()


def test_pictures_for_which_the_page_has_no_room_are_shown_from_beside(
    opened, tmp_path, monkeypatch
):
    monkeypatch.setattr(content, "Gallery", partial(content.Gallery, left=0))
    folder, plan = results.some(tmp_path)
    page = opened(place=write_page(folder, plan).as_uri())
    images = page.locator("#pictures img")
    assert images.count() == 2
    assert "data:" not in images.nth(0).get_attribute("src")
    for number in range(2):
        images.nth(number).scroll_into_view_if_needed()
        page.wait_for_function(f"document.querySelectorAll('#pictures img')[{number}].naturalWidth")


def test_without_javascript_the_tables_can_be_read(opened):
    page = opened(java_script_enabled=False)
    assert "80.00" in page.inner_text("#square")
    assert "is missing: run its stage." in page.inner_text("#missing")
    assert page.locator(".js-only:visible").count() == 0
    assert page.locator("#pictures img").first.is_visible()
    page.locator("tr[data-row=dora] td.failed a.open").click()
    assert page.url.endswith("#p-dora_seed0-linear")


def test_paper_gets_the_tables_and_no_controls(opened):
    page = opened(color_scheme="dark")
    page.emulate_media(media="print")
    assert not page.locator(".tools").first.is_visible()
    assert page.locator("#square").is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_reduced_motion_is_respected(opened):
    behaviour = "getComputedStyle(document.documentElement).scrollBehavior"
    assert opened().evaluate(behaviour) == "smooth"
    assert opened(reduced_motion="reduce").evaluate(behaviour) == "auto"


def test_a_large_suite_stays_usable(opened, tmp_path):
    for number in range(50):
        place = results.run(tmp_path, f"run_{number:02}", "dora", epochs=number)
        results.log(place, [{"step": n, "loss": 1 / (n + 1), "kl": n} for n in range(1000)])
        for other in range(30):
            metrics = {f"top{k}_k20": float(number * k + other) for k in range(1, 7)}
            results.result(place, f"knn_{other:02}", metrics)
    target = write_page(tmp_path)
    assert target.stat().st_size < 4_000_000
    page = opened(place=target.as_uri())
    assert "A point is the mean of up to 3 logged steps." in page.inner_text("#plot .note")
    page.locator("th[data-evaluation=knn_07] .sort").click()
    assert page.evaluate(ROWS)[0] == "run_49"
    page.fill("#words", "run_3")
    assert len(page.evaluate(ROWS)) == 10
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
