"""The report page as text: what it says, that nothing in it is taken for HTML, what it embeds."""

import base64
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from tests.report import results
from tests.report.results import NASTY
from timewalk.errors import UserError
from timewalk.report import failures
from timewalk.report.page_html import media, write_page
from timewalk.report.page_html.content import NOT_DONE, gather
from timewalk.report.page_html.data import page_data
from timewalk.report.page_html.html import anchor, script_json, tag
from timewalk.report.page_html.media import BUDGET, EACH, Gallery

ROOT = Path(__file__).parents[2]


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
    assert "<span>0.4000</span>" in cells(page, "random")[1]  # the worse of two is no second


def test_differences_to_the_rows_to_beat(page):
    cell = cells(page, "dora")[0]
    beside = re.findall(r'class="beside ([a-z]+)" data-beside="(\d)">([^<]+)', cell)
    assert sorted(beside) == sorted(
        [("better", page_number(page, "random"), "+40.00"),
         ("worse", page_number(page, "pretrained"), "\N{MINUS SIGN}20.00")]
    )  # fmt: skip


def page_number(page, name):
    return re.search(rf'<option value="(\d)"[^>]*>value \N{{MINUS SIGN}} {name}</option>', page)[1]


def shown_first(page):
    """Return what stands beside each value when the page is opened."""
    number = re.search(r'<html lang="en" data-shown="([^"]+)">', page)[1]
    label = re.search(rf'<option value="{number}" selected>([^<]+)</option>', page)[1]
    return label.replace("\N{MINUS SIGN}", "-")


def test_beside_a_value_is_first_what_there_is(tmp_path):
    published = results.given(tmp_path / "a", headline=True)
    assert shown_first(write_page(published).read_text()) == "published figure"
    other = results.given(tmp_path / "b")
    page = write_page(other).read_text()
    assert shown_first(page) == "value - random"
    assert "published figure" not in page  # no value of the square has one
    (other / "random").rename(tmp_path / "random")
    results.result(results.run(other, "dora", "dora"), "knn", {"top1_k20": 1.0})
    assert shown_first(write_page(other).read_text()) == "nothing"
    results.result(other / "given", "knn", {"top1_k20": 2.0})
    assert shown_first(write_page(other).read_text()) == "value - given"


def test_a_published_figure_of_any_metric_stands_in_its_table(tmp_path):
    page = write_page(results.given(tmp_path)).read_text()
    section = re.search(r'<section class="group".*?</section>', page, re.DOTALL)[0]
    text = " ".join("".join(Elements(section).text).split())
    assert "76.50" in text
    assert "published 77.00, \N{MINUS SIGN}0.50 (value \N{MINUS SIGN} published)" in text
    assert "Published for pretrained, top1_best: DINO (ICCV 2021)" in text
    assert text.count("published 77.00") == 1


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


def test_each_seed_has_a_sentence_of_its_own(tmp_path, monkeypatch):
    folder, read = tmp_path / "results", []
    for seed in range(3):
        results.run(folder, f"dora_seed{seed}", "dora", seed=seed)
    results.failed(tmp_path, "dora_seed0", "knn", "the disk is full.")
    results.failed(tmp_path, "dora_seed2", "knn", "no memory.")
    ended_by = failures.ended_by
    monkeypatch.setattr(failures, "ended_by", lambda log: read.append(log.name) or ended_by(log))
    content = gather(folder, {f"dora_seed{seed}": ["knn"] for seed in range(3)})
    assert [row.runs for row in content.square.rows] == [[f"dora_seed{n}" for n in range(3)]]
    assert {(x.run, x.state, x.why) for x in content.problems} == {
        ("dora_seed0", "failed", "the disk is full."),
        ("dora_seed1", "missing", NOT_DONE),
        ("dora_seed2", "failed", "no memory."),
    }
    assert sorted(read) == ["evaluate-dora_seed0-knn.log", "evaluate-dora_seed2-knn.log"]


def measured(path, digest):
    """Have a result say which encoder it is of."""
    content = json.loads(path.read_text())
    content["provenance"]["encoder_sha256"] = digest
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("planned", [{"dora": ["knn"], "random": ["knn"]}, None])
def test_a_result_of_an_older_encoder_is_not_done(tmp_path, planned):
    picture = tmp_path / "dora" / "knn" / "crows.png"
    for name, score in (("random", 20.0), ("dora", 60.0)):
        place = results.run(tmp_path, name, name)
        artefacts = (f"knn/{picture.name}",) if name == "dora" else ()
        path = results.result(place, "knn", {"top1_k20": score}, artefacts=artefacts)
        measured(path, json.loads((place / "encoder.json").read_text())["sha256"])
    results.picture(picture)
    page = write_page(tmp_path, planned).read_text()
    assert "60.00" in cells(page, "dora")[0]
    assert picture.name in page
    measured(tmp_path / "dora" / "knn.json", "0" * 64)
    page = write_page(tmp_path, planned).read_text()
    assert "60.00" not in page
    assert "of an older encoder" in cells(page, "dora")[0]
    assert 'class="missing"' in cells(page, "dora")[0]
    assert "Not done: what lies there is of an older encoder." in " ".join(Elements(page).text)
    assert picture.name not in page
    assert "20.00" in cells(page, "random")[0]
    assert "<b>" not in cells(page, "random")[0]


def test_what_was_measured_before_a_new_training_is_not_done(tmp_path):
    place = results.run(tmp_path, "dora", "dora")
    results.result(place, "knn", {"top1_k20": 60.0})
    (place / "encoder.json").unlink()
    results.log(place, [{"step": 0, "loss": 1.0}], "checkpoints/metrics.jsonl")
    assert [x.older for x in gather(tmp_path, {"dora": ["knn"]}).problems] == [True]


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


def test_results_that_the_plan_does_not_name_are_shown(suite):
    """They are made by their names: `snakemake results/random/knn.json`."""
    folder, plan = suite
    content = gather(folder, {**plan, "random": []})
    assert ("random", "knn") in content.results
    assert {row.name for row in content.square.rows} == {
        row.name for row in gather(folder, plan).square.rows
    }


def test_an_empty_suite_has_a_page(tmp_path):
    page = write_page(tmp_path, {"dora": ["knn"]}).read_text()
    assert "Not done: its job has not run, still runs or was killed." in page
    assert 'class="missing"' in cells(page, "dora")[0]


def test_no_folder_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="nowhere is missing: run the suite"):
        write_page(tmp_path / "nowhere")


def test_damaged_files_are_named(tmp_path):
    place = results.run(tmp_path, "dora", "dora")
    (place / "knn.json").write_text("{")
    with pytest.raises(UserError, match=r"dora/knn.json is not valid JSON"):
        write_page(tmp_path, {"dora": ["knn"]})


def test_a_running_training_has_curves(tmp_path):
    place = results.run(tmp_path, "dora", "dora")
    results.log(place, [{"step": 0, "loss": 1.0}], "checkpoints/metrics.jsonl")
    (place / "encoder.json").unlink()
    results.result(results.run(tmp_path, "random", "random"), "knn", {"top1_k20": 20.0})
    results.run(tmp_path, "timet", "timet")
    (tmp_path / "other").mkdir()
    content = gather(tmp_path)
    assert [curves.name for curves in content.curves] == ["dora"]
    assert [row.name for row in content.square.rows] == ["dora", "random", "timet"]
    assert content.problems == []
    page = write_page(tmp_path).read_text()
    assert rows_of(page, "models") == ["dora", "random", "timet"]
    assert "no encoder yet" in page
    assert "not asked for" in cells(page, "dora")[0]
    (tmp_path / "random" / "knn.json").unlink()
    page = write_page(tmp_path).read_text()
    assert rows_of(page, "results") == ["dora", "random", "timet"]


def rows_of(page, section):
    """Return the names of the rows in a section."""
    found = re.search(rf'<section id="{section}">.*?</table>', page, re.DOTALL)
    return re.findall(r'<tr data-row="([^"]+)"', found[0])


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


def test_small_videos_are_inside_first_the_first_of_each(tmp_path, monkeypatch):
    gallery = Gallery(tmp_path)
    for run in ("a", "b"):
        names = (f"{run}0 <1>.mp4", f"{run}1.mp4")
        gallery.add(run, "davis", [results.video(tmp_path / name) for name in names])
    large = results.video(tmp_path / "large.mp4", 256)
    gallery.add("c", "davis", [large])
    monkeypatch.setattr(media, "VIDEO", large.stat().st_size - 1)
    sizes = [len(base64.b64encode(file.read_bytes())) for file in tmp_path.glob("?0*.mp4")]
    gallery.embed_videos(sum(sizes) + 100)
    inside = {medium.name: medium.inside for medium in gallery.media}
    assert [name for name, address in inside.items() if address] == ["a0 <1>.mp4", "b0 <1>.mp4"]
    kind, data = inside["a0 <1>.mp4"].split(",")
    assert kind == "data:video/mp4;base64"
    assert base64.b64decode(data) == (tmp_path / "a0 <1>.mp4").read_bytes()


def test_a_damaged_picture_keeps_its_link(tmp_path):
    place = results.run(tmp_path, "dora", "dora")
    results.result(place, "knn", {"top1_k20": 1.0}, artefacts=("knn/a.png",))
    (place / "knn").mkdir()
    (place / "knn" / "a.png").write_bytes(b"none")
    page = write_page(tmp_path, {"dora": ["knn"]}).read_text()
    assert '<a href="dora/knn/a.png">a.png cannot be read</a>' in page


@pytest.mark.parametrize("limit", [4000, 1000])  # PIL warns above it, and raises above twice that
def test_a_picture_too_large_to_open_keeps_its_link(tmp_path, monkeypatch, limit):
    place = results.run(tmp_path, "dora", "dora")
    results.result(place, "knn", {"top1_k20": 1.0}, artefacts=("knn/a.png", "knn/b.png"))
    results.picture(place / "knn" / "a.png", 96, 64)
    results.picture(place / "knn" / "b.png", 9, 6)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    page = write_page(tmp_path, {"dora": ["knn"]}).read_text()
    assert '<a href="dora/knn/a.png">a.png is too large to be shown here</a>' in page
    assert '<a href="dora/knn/b.png"><img src="data:image/png' in page


def test_a_result_without_artefacts_or_numbers_is_shown(tmp_path):
    for seed, score in enumerate((1.0, float("nan"))):
        place = results.run(tmp_path, f"dora_seed{seed}", "dora", seed=seed)
        path = results.result(place, "knn", {"top1_k20": score, "top5_k20": 2.0})
        content = json.loads(path.read_text())
        del content["artefacts"]
        path.write_text(json.dumps(content))
    data = page_data(gather(tmp_path))
    write_page(tmp_path)
    assert data["results"]["dora_seed0/knn"]["files"] == []
    assert data["results"]["dora_seed1/knn"]["metrics"] == {"top1_k20": None, "top5_k20": 2.0}


def test_what_cannot_be_compared_says_so(tmp_path):
    for name, digest in (("random", "a"), ("dora", "b")):
        path = results.result(results.run(tmp_path, name, name), "knn", {"top1_k20": 1.0})
        content = json.loads(path.read_text())
        content["provenance"]["dataset_sha256"] = digest * 64
        path.write_text(json.dumps(content))
    page = write_page(tmp_path).read_text()
    assert "data of other content" in cells(page, "dora")[0]
    assert "not all seeds" not in page
    assert page.count("not ranked, for the results on digits are of data of other content") == 1


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


def test_fresh_weights_of_each_row_are_the_first_choice(tmp_path):
    for name, method, encoder, score in (
        ("random", "random", "vit_tiny", 20.0),
        ("random_resnet", "random", "resnet18", 50.0),
        ("dora", "dora", "vit_tiny", 30.0),
        ("crw", "crw", "resnet18", 45.0),
    ):
        place = results.run(tmp_path / "results", name, method, encoder={"name": encoder})
        results.result(place, "knn", {"top1_k20": score})
    page = write_page(tmp_path / "results").read_text()
    options = re.findall(r'<option value="(\w+)"( selected)?>([^<]+)', page)
    beside = [option for option in options if "\N{MINUS SIGN}" in option[2] or option[1]]
    assert beside[0] == ("0", " selected", "value \N{MINUS SIGN} fresh weights")
    shown = re.findall(r'data-beside="0">([^<]+)<span class="sr"> \(([^)]+)\)', page)
    assert shown == [
        ("\N{MINUS SIGN}5.00", "value \N{MINUS SIGN} random_resnet"),
        ("+10.00", "value \N{MINUS SIGN} random"),
    ]
