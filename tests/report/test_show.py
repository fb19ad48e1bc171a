import json
import shutil

import pytest

from tests.report.written import write_curve, write_result, write_run
from timewalk.errors import UserError
from timewalk.report.show import show_run, show_suite


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    for seed, value in enumerate((50.0, 54.0)):
        write_run(folder, f"dora_s{seed}", seed=seed)
        write_result(folder, f"dora_s{seed}", top1_k20=value)
    write_run(folder, "random", method="random")
    write_result(folder, "random", method="random", top1_k20=40.0)
    figure = folder / "dora_s0" / "figures" / "Köpfe.png"
    figure.parent.mkdir()
    figure.touch()
    return folder


def test_a_run_its_facts_metrics_and_pictures(results):
    text = show_run(results / "dora_s0", width=80)
    facts = dict(line.strip().split(maxsplit=1) for line in text.splitlines()[1:4])
    assert facts["method"] == "dora"
    assert "5 at first, 2 at last, 2 at least" in text
    assert "knn: knn-a on digits (test, 10 samples)" in text
    line = next(line for line in text.splitlines() if line.startswith("top1_k20"))
    assert line.split() == ["top1_k20", "50.00", "52.00", "±", "2.83*", "+10.00"]
    assert "value - random" in text
    assert f"  {results}/dora_s0/figures/Köpfe.png" in text


def test_a_published_figure_has_its_source(results):
    write_run(results, "crw", method="crw", encoder={"name": "resnet18_s8"})
    protocol = "davis2017-val-crw-s8"
    davis = {"method": "crw", "dataset_kind": "davis2017"}
    write_result(results, "crw", "davis", protocol, **davis, JF_mean=60.0, J_mean=50.0)
    text = show_run(results / "crw", width=80)
    line = next(line for line in text.splitlines() if line.startswith("JF_mean"))
    assert line.split() == ["JF_mean", "60.00", "67.6", "-7.60"]
    assert "published  value - published" in text
    assert "published: CRW (NeurIPS 2020)" in text


def test_a_run_under_way(results):
    write_curve(results / "young" / "checkpoints" / "metrics.jsonl", 2, 3.0)
    text = show_run(results / "young", width=80)
    assert "state         stopped" in text
    assert "steps         2 of ?" in text
    assert "No evaluation is finished." in text


def test_a_suite_with_what_failed(results):
    (results / "summary.md").write_text("")
    logs = results.parent / "logs" / "results"
    logs.mkdir(parents=True)
    (logs / "evaluate-random-linear.log").write_text("timewalk evaluate: too little room.\n")
    text = show_suite(results, {"random": ["knn", "linear"]}, width=80)
    assert "dora (2 seeds)" in text
    assert "52.00 ± 2.83*" in text
    assert "linear: no result" in text
    assert "too little room." in text
    assert f"Tables: {results}/summary.md" in text
    assert max(map(len, text.splitlines())) <= max(
        80, len(f"  {results}/dora_s0/figures/Köpfe.png")
    )


def test_a_folder_without_results(tmp_path):
    with pytest.raises(UserError, match=r"summary\.md is missing: run the suite"):
        show_suite(tmp_path)
    with pytest.raises(UserError, match=r"summary\.md is missing: run the suite"):
        show_suite(tmp_path / "none")


def test_pictures_of_evaluations_and_contact_sheets(results, tmp_path):
    from timewalk.report.show import pictures

    path = results / "random" / "knn.json"
    content = json.loads(path.read_text()) | {"artefacts": ["knn/a.png", "knn/b.png", "c.csv"]}
    path.write_text(json.dumps(content))
    card = results / "random" / "encoder.json"
    about = json.loads(card.read_text())
    about["provenance"]["inputs"] = {str(tmp_path / "data" / "shards" / "walk" / "v.json"): "x"}
    card.write_text(json.dumps(about))
    sheet = tmp_path / "data" / "frames" / "walk" / "v" / "faces.png"
    sheet.parent.mkdir(parents=True)
    sheet.touch()
    assert pictures(results) == [
        sheet,
        results / "dora_s0" / "figures" / "Köpfe.png",
        results / "random" / "knn" / "a.png",
    ]


def test_secrets_of_addresses_are_not_shown(results):
    address = "https://me:hunter2@host/x.pth?token=abc"
    write_run(results, "secret", encoder={"name": "vit_small", "weights": address})
    text = show_run(results / "secret", width=80)
    assert "https://host/x.pth" in text
    assert "hunter2" not in text
    assert "abc" not in text


def test_a_copy_of_a_run_is_a_run_of_its_own(results):
    shutil.copytree(results / "random", results / "copy")
    write_result(results, "copy", method="random", top1_k20=77.0)
    path = results / "copy" / "knn.json"
    path.write_text(path.read_text().replace('"run": "copy"', '"run": "random"'))
    text = show_run(results / "copy", width=80)
    assert "77.00*" in text
    assert "40.00" in show_run(results / "random", width=80)


def test_a_difference_to_other_data_is_not_shown(results):
    write_result(results, "random", method="random", top1_k20=40.0, digest="d2")
    text = show_run(results / "dora_s0", width=80)
    assert "+10.00" not in text
    assert "not ranked, for the results on digits are of data of other content" in " ".join(
        text.split()
    )


def test_a_job_that_failed_for_an_unknown_evaluation_is_listed_once(results):
    logs = results.parent / "logs" / "results"
    logs.mkdir(parents=True)
    (logs / "embed-random-pouring-test.log").write_text("timewalk embed: pouring is damaged.\n")
    text = show_suite(results, {"random": ["knn", "tau", "phases"]}, width=80)
    assert text.count("random: pouring is damaged.") == 1
