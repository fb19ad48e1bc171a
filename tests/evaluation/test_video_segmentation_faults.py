"""DAVIS by label propagation: every bad input's sentence, and the official tool beside ours."""

import importlib.util
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.davis_set import (
    FRAMES,
    SIZE,
    a_set,
    command,
    image,
    mask,
    prepared,
    run,
)
from tests.evaluation.stubs import Seeing
from tests.miniature import video_sets
from timewalk.config import Davis2016
from timewalk.data.generated import save_ids
from timewalk.data.prepare import prepare
from timewalk.errors import UserError


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The folder of a set that no test changes."""
    folder = tmp_path_factory.mktemp("shared")
    a_set(folder)
    return folder


@pytest.fixture
def own(tmp_path):
    """The folder of a set that a test spoils."""
    a_set(tmp_path)
    return tmp_path


@pytest.fixture
def vit(run_of):
    """A run with a tiny random encoder."""
    return run_of("vit")


# Bad input


def without_frame(folder):
    image(folder, "camel", 3).unlink()
    return r"JPEGImages/480p/camel/00003\.jpg cannot be read \(it is missing\); restore the"


def truncated_frame(folder):
    path = image(folder, "camel", 3)
    path.write_bytes(path.read_bytes()[:200])
    return r"JPEGImages/480p/camel/00003\.jpg cannot be read \(.*\); restore the published file"


def empty_frame(folder):
    image(folder, "camel", 3).write_bytes(b"")
    return r"JPEGImages/480p/camel/00003\.jpg cannot be read \(no image\); restore"


def frame_of_another_size(folder):
    Image.new("RGB", (80, 60)).save(image(folder, "camel", 3))
    return r"camel/00003\.jpg is 80x60 pixels, not 80x64 as its sequence; restore"


def first_mask_of_another_size(folder):
    save_ids(mask(folder, "camel", 0), np.ones((64, 64), np.uint8))
    return r"Annotations/480p/camel/00000\.png is 64x64 pixels, not 80x64 as its sequence"


def first_mask_in_colours(folder):
    Image.new("RGB", SIZE[::-1]).save(mask(folder, "camel", 0))
    return r"camel/00000\.png holds colours \(mode RGB\), not ids: save it as a palette or gray"


def truncated_first_mask(folder):
    path = mask(folder, "camel", 0)
    path.write_bytes(path.read_bytes()[:900])
    return r"Annotations/480p/camel/00000\.png cannot be read \(.*\); restore the published file"


def first_mask_without_object(folder):
    save_ids(mask(folder, "camel", 0), np.zeros(SIZE, np.uint8))
    return r"camel/00000\.png has no object; nothing can be propagated"


def without_first_mask(folder):
    mask(folder, "camel", 0).unlink()
    return r"Annotations/480p/camel/00000\.png cannot be read \(it is missing\); restore"


SPOILT = [
    without_frame,
    truncated_frame,
    empty_frame,
    frame_of_another_size,
    first_mask_of_another_size,
    first_mask_in_colours,
    truncated_first_mask,
    first_mask_without_object,
    without_first_mask,
]


def one_sentence(text):
    """Return the message on the terminal, after checking that it is a single line."""
    lines = [line for line in text.splitlines() if line.startswith("timewalk evaluate: ")]
    assert len(lines) == 1
    assert "Traceback" not in text
    return lines[0]


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_a_video_that_fails_costs_no_other(own, vit, tmp_path, capsys, spoil):
    sentence, output = spoil(own), tmp_path / "davis.json"
    assert command(own, vit, output) == 1
    said = one_sentence(capsys.readouterr().err)
    assert re.search(r"1 of 2 videos failed \(camel: " + ".*" + sentence, said), said
    assert said.endswith("mend them and start again: the others are kept.")
    assert len(list((tmp_path / "davis" / "masks" / "blackswan").glob("*.png"))) == FRAMES
    assert (tmp_path / "davis" / "work" / "blackswan.json").is_file()
    assert not (tmp_path / "davis" / "work" / "camel.json").exists()
    assert not output.exists()


def later_mask_in_colours(folder):
    Image.new("RGB", SIZE[::-1]).save(mask(folder, "camel", 3))
    return r"00003.png is of the kind RGB"


def later_mask_of_another_size(folder):
    save_ids(mask(folder, "camel", 3), np.ones((64, 64), np.uint8))
    return r"00003.png is 64x64 pixels, but the sequence is 80x64"


def without_later_mask(folder):
    mask(folder, "camel", 3).unlink()
    return "6 images but only 5 annotations"


@pytest.mark.parametrize(
    "spoil", [later_mask_in_colours, later_mask_of_another_size, without_later_mask]
)
def test_a_sequence_that_cannot_be_scored(own, vit, tmp_path, capsys, spoil):
    """Its masks are there; the table has the other sequence."""
    sentence, output = spoil(own), tmp_path / "davis.json"
    assert command(own, vit, output) == 1
    said = one_sentence(capsys.readouterr().err)
    assert "1 of 2 sequences cannot be scored (sequence camel: " in said
    assert sentence in said
    table = (tmp_path / "davis" / "partial_per-sequence_results-val.csv").read_text().split()
    assert [line.split(",")[0] for line in table] == ["Sequence", "blackswan_1", "blackswan_2"]
    assert not (tmp_path / "davis" / "global_results-val.csv").exists()
    assert not output.exists()


def test_a_sequence_of_two_frames(vit, tmp_path, capsys):
    a_set(tmp_path, frames=2)
    assert command(tmp_path, vit, tmp_path / "davis.json") == 1
    said = one_sentence(capsys.readouterr().err)
    assert "2 of 2 sequences cannot be scored (sequence blackswan: it has 2 frames" in said
    assert len(list((tmp_path / "davis" / "masks").rglob("*.png"))) == 4


def test_features_that_are_not_finite(own, vit, tmp_path, seen_by):
    class Broken(Seeing):
        def forward(self, images):
            found = super().forward(images)
            if self.images == FRAMES + 4:
                found.patches[0, 0, 2, 3] = float("nan")
            return found

    seen_by(Broken())
    with pytest.raises(
        UserError, match=r"camel/00003\.jpg: the encoder gives features that are no"
    ):
        run(own, vit, tmp_path / "out")


def test_frames_smaller_than_a_patch(own, vit, tmp_path, seen_by):
    seen_by(Seeing(stride=128, multiple=128))
    with pytest.raises(UserError, match=r"frames of 80x64 pixels become 80x64, of which nothing"):
        run(own, vit, tmp_path / "out")


def test_a_set_of_another_layout(vit, tmp_path):
    video_sets.davis2016(tmp_path / "DAVIS", size=SIZE)
    manifest = tmp_path / "set" / "manifest.json"
    prepare("davis", Davis2016(kind="davis2016", root=str(tmp_path / "DAVIS")), manifest)
    with pytest.raises(
        UserError, match=r"kind 'davis' need a set of kind 'davis2017', but .* is 'd"
    ):
        run(tmp_path, vit, tmp_path / "out")


def test_a_set_for_the_unsupervised_task(vit, tmp_path):
    video_sets.davis2017(tmp_path / "DAVIS", size=SIZE)
    prepared(tmp_path, task="unsupervised")
    with pytest.raises(UserError, match=r"manifest\.json has the task 'unsupervised', but evalu"):
        run(tmp_path, vit, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_set_in_full_resolution(vit, tmp_path):
    video_sets.davis2017(tmp_path / "DAVIS", size=SIZE)
    for kind in ("JPEGImages", "Annotations"):
        folder = tmp_path / "DAVIS" / kind
        shutil.copytree(folder / "480p", folder / "Full-Resolution")
    prepared(tmp_path, resolution="Full-Resolution")
    with pytest.raises(UserError, match=r"has the resolution 'Full-Resolution', but .* score '480"):
        run(tmp_path, vit, tmp_path / "out")


# The official tool

TOOL = """
import argparse, pathlib
parser = argparse.ArgumentParser()
for key in ("task", "set", "davis_path", "results_path"):
    parser.add_argument("--" + key)
given = parser.parse_args()
results = pathlib.Path(given.results_path)
assert given.task == "semi-supervised" and given.set == "val"
assert (pathlib.Path(given.davis_path) / "ImageSets" / "2017" / "val.txt").is_file()
assert sorted(path.name for path in results.iterdir()) == ["blackswan", "camel"]
assert len(list((results / "camel").glob("*.png"))) == 6
{body}
"""
WRITES = """
ours = pathlib.Path({ours!r})
for name in ("global_results-val.csv", "per-sequence_results-val.csv"):
    text = (ours / name).read_text()
    (results / name).write_text({change})
"""


def tool(folder, body):
    folder.mkdir()
    (folder / "evaluation_method.py").write_text(TOOL.format(body=body))
    return {"tool": "official", "tool_path": str(folder)}


def test_the_official_tool_agrees(shared, vit, tmp_path):
    output = tmp_path / "out"
    keys = tool(tmp_path / "tool", WRITES.format(ours=str(output), change="text"))
    found = run(shared, vit, output, **keys)
    assert 0 <= found.metrics["JF_mean"] <= 100
    # Nothing of it is left among the masks.
    assert {path.name for path in (output / "masks").iterdir()} == {"blackswan", "camel"}


def test_the_official_tool_disagrees(shared, vit, tmp_path):
    output = tmp_path / "out"
    change = 'text.replace("0.", "0.1", 1)'
    keys = tool(tmp_path / "tool", WRITES.format(ours=str(output), change=change))
    with pytest.raises(
        UserError, match=r"global_results-val\.csv differs from what .*evaluation_m"
    ):
        run(shared, vit, output, **keys)
    assert (output / "global_results-val.csv").is_file()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("", "no message"),
        ("print('nothing to do')", "nothing to do"),
        ("raise SystemExit('out of luck')", "out of luck"),
        ("raise RuntimeError('broken')", "RuntimeError: broken"),
    ],
)
def test_the_official_tool_writes_nothing(shared, vit, tmp_path, body, said):
    keys = tool(tmp_path / "tool", body)
    with pytest.raises(UserError, match=rf"has written no global_results-val\.csv \({said}\)\.$"):
        run(shared, vit, tmp_path / "out", **keys)


def test_the_official_tool_is_missing(shared, vit, tmp_path):
    with pytest.raises(
        UserError, match=r"^tool_path: .*evaluation_method\.py is missing; name the"
    ):
        run(shared, vit, tmp_path / "out", tool="official", tool_path=str(tmp_path / "nowhere"))
    if importlib.util.find_spec("davis2017") is None:
        with pytest.raises(UserError, match=r"^tool: 'official' needs davis2017-evaluation, which"):
            run(shared, vit, tmp_path / "out", tool="official")


def test_tool_path_is_relative_to_the_working_directory(shared, vit, tmp_path, monkeypatch):
    output = tmp_path / "out"
    tool(tmp_path / "tool", WRITES.format(ours=str(output), change="text"))
    monkeypatch.chdir(tmp_path)
    run(shared, vit, Path("out"), tool="official", tool_path="tool")
