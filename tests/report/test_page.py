"""The report page as text: what it says, that nothing in it is taken for HTML, what it embeds."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from PIL import Image

from tests.report import results
from tests.report.results import NASTY
from timewalk.cli import main
from timewalk.errors import UserError
from timewalk.report.page_html import write_page
from timewalk.report.page_html.content import gather
from timewalk.report.page_html.curves import POINTS, read_curves
from timewalk.report.page_html.data import page_data
from timewalk.report.page_html.html import anchor, script_json, tag
from timewalk.report.page_html.media import BUDGET, EACH, Gallery


class Elements(HTMLParser):
    """Every start tag with its attributes, and the text of what is no script or style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found, self.text, self.quiet = [], [], 0
        self.feed(page)

    def handle_starttag(self, name, attributes):
        self.found.append((name, dict(attributes)))
        self.quiet += name in ("script", "style")

    def handle_endtag(self, name):
        self.quiet -= name in ("script", "style")

    def handle_data(self, data):
        if not self.quiet:
            self.text.append(data)


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return results.some(tmp_path_factory.mktemp("suite"))


@pytest.fixture(scope="module")
def page(suite):
    folder, plan = suite
    return write_page(folder, plan).read_text()


@pytest.fixture(scope="module")
def elements(page):
    return Elements(page)


def cells(page, row):
    """Return the cells of a row of the square."""
    found = re.search(rf'<tr data-row="{row}".*?</tr>', page)
    return re.findall(r"<td.*?</td>", found[0])


def test_the_best_is_bold_and_the_second_underlined(page):
    assert "<b>80.00</b>" in cells(page, "pretrained")[0]
    assert "<u>60.00</u>" in cells(page, "dora")[0]
    assert "± 2.83" in cells(page, "dora")[0]
    assert "<b>" not in cells(page, "random")[0]


def test_less_is_better_where_it_is(page):
    assert "<b>0.2000</b>" in cells(page, "dora")[1]
    assert "<u>0.4000</u>" in cells(page, "random")[1]


def test_differences_to_the_rows_to_beat(page):
    cell = cells(page, "dora")[0]
    beside = re.findall(r'class="beside ([a-z]+)" data-beside="(\d)">([^<]+)', cell)
    assert sorted(beside) == sorted(
        [("better", page_number(page, "random"), "+40.00"),
         ("worse", page_number(page, "pretrained"), "\N{MINUS SIGN}20.00")]
    )  # fmt: skip


def page_number(page, name):
    return re.search(rf'<option value="(\d)">difference to {name}</option>', page)[1]


def test_failures_and_missing_results_are_said(page, elements):
    text = " ".join(elements.text)
    assert "data/<digits>.json is missing: run its stage." in text
    assert "1  failed" in text
    # linear of four runs less the failed one, losses of pretrained, and all of crw
    missing = [x for name, x in elements.found if name == "tr" and x.get("class") == "missing"]
    assert len(missing) == 5
    assert 'class="failed"' in cells(page, "dora")[2]
    assert 'class="missing"' in cells(page, "crw")[0]


def test_a_result_of_some_seeds_says_so(tmp_path):
    folder = tmp_path / "results"
    for seed in (0, 1):
        place = results.run(folder, f"dora_seed{seed}", "dora", seed=seed)
        if seed:
            results.failed(tmp_path, place.name, "knn", "the disk is full.")
        else:
            results.result(place, "knn", {"top1_k20": 5.0})
    page = write_page(folder, {f"dora_seed{seed}": ["knn"] for seed in (0, 1)}).read_text()
    assert "not all seeds" in cells(page, "dora")[0]
    assert "the disk is full." in page


def test_names_are_never_taken_for_html(page, elements):
    name = NASTY.replace("/", "|")
    assert {
        row["data-row"] for tag, row in elements.found if tag == "tr" and "data-row" in row
    } >= {name}
    titles = [
        x["title"] for tag, x in elements.found if x.get("class") == "protocol" and "title" in x
    ]
    assert f"loss-{NASTY}" in titles
    scripts = [x for tag, x in elements.found if tag == "script"]
    assert len(scripts) == 3
    assert '</script>"' not in page.replace("\\", "")
    data = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1]
    assert name in {row["name"] for row in json.loads(data)["rows"]}


def test_the_page_is_alone(elements):
    """Nothing is fetched: addresses are relative, inside the page, or data."""
    for name, attributes in elements.found:
        for key in ("src", "href", "poster", "action"):
            address = attributes.get(key) or ""
            assert "//" not in address, (name, address)
            assert not address.startswith("/"), (name, address)
    policy = next(x["content"] for _, x in elements.found if "http-equiv" in x)
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_the_same_files_give_the_same_page(suite, page):
    folder, plan = suite
    assert write_page(folder, plan).read_text() == page


def test_links_lead_to_files_or_into_the_page(elements):
    ids = {x["id"] for _, x in elements.found if "id" in x}
    links = [x["href"] for name, x in elements.found if name == "a"]
    inside = [link[1:] for link in links if link.startswith("#")]
    assert inside
    assert [link for link in inside if link not in ids] == []
    assert "dora_seed0/knn/map%20%3C1%3E.png" in links


def test_ids_are_of_one_element(elements):
    ids = [x["id"] for _, x in elements.found if "id" in x]
    assert len(ids) == len(set(ids))


def test_every_header_has_a_scope(elements):
    heads = [x for name, x in elements.found if name == "th"]
    assert len(heads) > 20
    assert {x["scope"] for x in heads} == {"row", "col"}


def test_without_a_plan_there_is_what_there_is(suite, tmp_path):
    content = gather(suite[0])
    assert content.problems == []
    assert {row.name for row in content.square.rows} >= {"dora", "random"}
    assert len(content.results) == 8


def test_an_empty_suite_has_a_page(tmp_path):
    page = write_page(tmp_path, {"dora": ["knn"]}).read_text()
    assert "Not done yet" in page
    assert 'class="missing"' in cells(page, "dora")[0]


def test_no_folder_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="nowhere is missing: run the suite"):
        write_page(tmp_path / "nowhere")


def test_damaged_files_are_named(tmp_path):
    place = results.run(tmp_path, "dora", "dora")
    (place / "knn.json").write_text("{")
    with pytest.raises(UserError, match=r"dora/knn.json is not valid JSON"):
        write_page(tmp_path, {"dora": ["knn"]})


def test_curves_of_an_interrupted_training(tmp_path):
    place = results.run(tmp_path, "dora", "dora")
    records = [{"step": 0, "time": 1.0, "loss": 3.0}, {"step": 1, "loss": 9.0}]
    records += [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None, "epoch_loss": 5.0}]
    results.log(place, [*records, {"step": 2, "validation_miou": 40.0}])
    with (place / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "los')
    curves = read_curves(tmp_path, ["dora"])
    assert curves[0].parts == [
        ([0, 1, 2], {"loss": [3.0, 2.0, None]}),
        ([2], {"validation_miou": [40.0]}),
    ]


def test_a_damaged_line_within_curves_is_named(tmp_path):
    place = results.run(tmp_path, "dora", "dora")
    (place / "metrics.jsonl").write_text('{"step": 0, "loss": 1}\nx\n{"step": 1, "loss": 1}\n')
    with pytest.raises(UserError, match="damaged in line 2"):
        read_curves(tmp_path, ["dora"])


def test_long_curves_are_means(tmp_path):
    place = results.run(tmp_path, "dora", "dora")
    results.log(place, [{"step": n, "loss": float(n % 2)} for n in range(10 * POINTS)])
    results.log(place, [{"step": 0, "loss": 1.5}], "finetuned/parsing/metrics.jsonl")
    curves, tuned = read_curves(tmp_path, ["dora"])
    steps, values = curves.parts[0]
    assert len(steps) == POINTS
    assert set(values["loss"]) == {0.5}
    assert (steps[0], steps[-1], curves.mean_of) == (9, 10 * POINTS - 1, 10)
    assert (tuned.name, tuned.run) == ("dora: parsing", "dora")


def test_a_running_training_has_curves(tmp_path):
    place = results.run(tmp_path, "dora", "dora")
    results.log(place, [{"step": 0, "loss": 1.0}], "checkpoints/metrics.jsonl")
    assert [curves.name for curves in read_curves(tmp_path, ["dora"])] == ["dora"]


def test_pictures_are_embedded_until_the_page_is_full(tmp_path):
    files = [results.picture(tmp_path / f"{n}.png", 600, 400) for n in range(EACH + 2)]
    noise = os.urandom(3 * 500 * 500)
    Image.frombytes("RGB", (500, 500), noise).save(files[1])
    gallery = Gallery(tmp_path, left=20_000)
    gallery.add("dora", "knn", [*files, tmp_path / "absent.png", tmp_path / "table.csv"])
    first, second = gallery.media[:2]
    assert first.image.startswith("data:image/")
    assert (first.width, first.height) == (600, 400)
    assert second.image == second.link == "1.png"
    assert len(gallery.media) == EACH
    assert gallery.more == {("dora", "knn"): 2}
    assert 0 < gallery.left < 20_000 < BUDGET


def test_a_damaged_picture_keeps_its_link(tmp_path):
    place = results.run(tmp_path, "dora", "dora")
    results.result(place, "knn", {"top1_k20": 1.0}, artefacts=("knn/a.png",))
    (place / "knn").mkdir()
    (place / "knn" / "a.png").write_bytes(b"none")
    page = write_page(tmp_path, {"dora": ["knn"]}).read_text()
    assert '<a href="dora/knn/a.png">a.png cannot be read</a>' in page


def test_what_results_share_is_kept_once(suite):
    data = page_data(gather(*suite))
    assert len(data["results"]) == 8
    pool = [json.dumps(value, sort_keys=True) for value in data["pool"]]
    assert len(pool) == len(set(pool))
    origin = dict(data["results"]["random/knn"]["origin"])
    names = {data["pool"][name]: data["pool"][value] for name, value in origin.items()}
    assert names["settings"] == {"kind": "knn", "k": [5, 20]}
    assert names["training: steps"] == 300


def test_elements_are_escaped():
    assert tag("p", "<&>", ["a", None, 3], class_='"', hidden=True, id=None) == (
        '<p class="&quot;" hidden>&lt;&amp;&gt;a3</p>'
    )
    assert script_json({"a": "</script>\u2028"}) == '{"a":"\\u003c/script\\u003e\\u2028"}'
    assert anchor("a-b", "c") != anchor("a", "b-c")


def test_the_verb_takes_a_plan(suite, capsys):
    folder, plan = suite
    (folder / "report.html").unlink()
    assert main(["page", str(folder), "--planned", json.dumps(plan)]) == 0
    assert capsys.readouterr().out == f"{folder}/report.html\n"
    assert "1  failed" in " ".join(Elements((folder / "report.html").read_text()).text)


def test_neither_torch_nor_pandas_is_needed(suite):
    """The page of what there is comes on top of a failure: in no time, and without more to fail."""
    code = (
        "import sys; from pathlib import Path; from timewalk.report.page_html import write_page; "
        "write_page(Path(sys.argv[1])); print({'torch', 'pandas', 'mlflow'} & {*sys.modules})"
    )
    words = [sys.executable, "-c", code, str(suite[0])]
    assert subprocess.run(words, capture_output=True, text=True).stdout == "set()\n"
