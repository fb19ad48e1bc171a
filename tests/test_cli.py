"""The command line: a user's mistake is one sentence and exit code 1, no traceback."""

import json
import re
import subprocess
import sys

import pytest

from tests.miniature import video_sets
from timewalk import cli
from timewalk.artefacts import version


def run(*words, **options):
    command = [sys.executable, "-m", "timewalk.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, **options)


def verbs():
    choices = next(a for a in cli.parser()._actions if a.dest == "verb").choices
    return sorted(choices)


def test_every_stage_has_its_verb():
    stages = {"download", "blur", "frames", "shards", "prepare", "train", "embed", "evaluate"}
    assert stages | {"report", "mlflow", "show"} <= set(verbs())


@pytest.mark.parametrize("verb", verbs())
def test_help_says_what_a_verb_does(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, "--help"])
    assert ended.value.code == 0
    assert len(capsys.readouterr().out.split("\n\n")) >= 3


def test_a_mistake_is_one_sentence(tmp_path, capsys):
    code = cli.main(["download", "x", str(tmp_path / "x.mp4"), "--video", '{"source": "/no/file"}'])
    captured = capsys.readouterr()
    assert code == 1
    assert captured.err.strip().splitlines()[-1].startswith("timewalk download: videos.x.source")
    assert "Traceback" not in captured.err


def test_the_log_takes_both_streams_and_the_terminal_the_sentence(tmp_path):
    log = tmp_path / "logs" / "x.log"
    done = run("--log", log, "frames", tmp_path / "no.mp4", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.count("no.mp4 is missing") == 1
    assert done.stdout == ""
    assert "no.mp4 is missing" in log.read_text()


def test_settings_from_json_and_from_a_file(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("fps: 2\n")
    assert (
        cli.common.read_settings('{"fps": 2}') == cli.common.read_settings(str(file)) == {"fps": 2}
    )
    assert cli.common.read_settings("null") is None


def test_an_unknown_key_names_the_nearest(tmp_path, capsys):
    code = cli.main(["blur", "a.mp4", "b.mp4", "--settings", '{"treshold": 0.1}'])
    assert code == 1
    assert "blur.treshold: unknown key; did you mean 'threshold'?" in capsys.readouterr().err


def test_prepare_by_the_kinds_name(tmp_path, capsys):
    video_sets.davis2017(tmp_path / "DAVIS", subset="train")
    target = tmp_path / "out" / "manifest.json"
    words = ["prepare", "davis2017", str(target), "--root", str(tmp_path)]
    assert cli.main([*words, "--subset", "train"]) == 0
    assert json.loads(target.read_text())["subset"] == "train"
    assert cli.main(words) == 1
    assert "val.txt is missing (there are: train)" in capsys.readouterr().err
    assert cli.main(["prepare", "davis2018", *words[2:]]) == 1
    assert "'davis2018'" in capsys.readouterr().err
    words = ["prepare", "penn_action", str(target), "--root", str(tmp_path / "none")]
    assert cli.main([*words, "--subset", "golf_swing"]) == 1
    assert "penn_action.root: there is no folder" in capsys.readouterr().err
    assert cli.main([*words, "--subset", "golf"]) == 1
    assert "penn_action.action" in capsys.readouterr().err
    assert cli.main([*words, "--settings", '{"kind": "vip"}']) == 1
    assert "--root stands instead of --settings" in capsys.readouterr().err


def test_information(capsys, root):
    assert [cli.main([verb]) for verb in ("methods", "videos", "evaluations", "tasks")] == [0] * 4
    text = capsys.readouterr().out
    assert {"dora", "pretrained", "random", "knn"} <= set(text.split())
    assert text.count("https://www.youtube.com") == 10
    assert cli.main(["validate", str(root / "config.yaml")]) == 0
    assert "no fault found" in capsys.readouterr().out


def test_schema_to_a_file(tmp_path):
    assert cli.main(["schema", "--output", str(tmp_path / "s.json")]) == 0
    assert "runs" in json.loads((tmp_path / "s.json").read_text())["properties"]


def test_version(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.strip() == version()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "--validation.name"),
        ('{"name": "a", "settings": {}, "dataset": "x", "datset": "y"}', "--validation.datset"),
        ('{"name": "a", "settings": {"kind": "knnn"}, "dataset": "x"}', r"evaluations\.a\.kind"),
    ],
)
def test_a_wrong_validation_is_one_sentence(tmp_path, capsys, text, message):
    run = {"method": "dino", "dataset": "x"}
    words = ["train", "a", str(tmp_path), "--settings", json.dumps(run), "--validation", text]
    assert cli.main([*words, "--gpus", "0", "--threads", "1"]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_an_unknown_key_is_compared_with_those_of_its_kind(tmp_path, capsys):
    words = ["prepare", "voc2012", str(tmp_path / "m.json"), "--root", "x", "--subset", "val"]
    assert cli.main(words) == 1
    error = capsys.readouterr().err
    assert "labelled.voc2012.subset: unknown key" in error
    assert "did you mean 'subset'" not in error
    assert "train" in error
