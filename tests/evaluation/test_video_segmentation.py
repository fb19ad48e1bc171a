"""DAVIS by label propagation: masks, scores, films, going on, and every bad input's sentence."""

import importlib.util
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tests.evaluation.stubs import Blind, Seeing
from tests.miniature import video_sets
from timewalk.artefacts import read_json
from timewalk.cli import main
from timewalk.config import Davis2016, Davis2017, EncoderConfig
from timewalk.data.generated import davis_palette, save_ids
from timewalk.data.prepare import prepare
from timewalk.data.sequences import LabelledVideos, Sequence
from timewalk.encoders import build_encoder, save_encoder
from timewalk.errors import UserError
from timewalk.evaluation import over_videos
from timewalk.evaluation.base import Inputs
from timewalk.evaluation.davis_folders import score_folders
from timewalk.evaluation.label_propagation import FrameFeatures, hard_labels, one_hot, to_ids
from timewalk.evaluation.protocols import PropagationConfig, Protocol, make_protocol
from timewalk.evaluation.video_segmentation import (
    Config,
    evaluate,
    first_ids,
    order_of_channels,
    save_masks,
    segmentation,
)
from timewalk.ops.propagation import Propagation

SIZE, FRAMES = (64, 80), 6
CPU = torch.device("cpu")


def prepared(folder, **keys):
    """Prepare a set and return its manifest; the set is `folder`/DAVIS."""
    manifest = folder / "set" / "manifest.json"
    config = Davis2017(kind="davis2017", root=str(folder / "DAVIS"), **keys)
    prepare("davis", config, manifest)
    return manifest


def a_set(folder, frames=FRAMES, **keys):
    video_sets.davis2017(folder / "DAVIS", frames=frames, size=SIZE, **keys)
    return prepared(folder)


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


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A run with a tiny random encoder."""
    folder = tmp_path_factory.mktemp("runs") / "vit"
    config = EncoderConfig(name="vit_tiny", patch_size=8, image_size=16, depth=2, width=24, heads=3)
    save_encoder(build_encoder(config, 0), folder, {})
    return folder


@pytest.fixture
def seen_by(monkeypatch):
    """Return a function that puts an encoder in the place of the run's."""

    def put(encoder):
        monkeypatch.setattr(over_videos, "load_encoder", lambda run: encoder)
        return encoder

    return put


def run(folder, vit, output, **keys):
    inputs = Inputs(vit, folder / "set" / "manifest.json", CPU)
    return evaluate(inputs, Config(dataset="davis", **{"overlays": False, **keys}), output)


def command(folder, vit, output, **keys):
    """Run the evaluation from the command line and return its exit code."""
    settings = {"kind": "davis", "dataset": "davis", "overlays": False, **keys}
    paths = ["--dataset", str(folder / "set" / "manifest.json")]
    options = ["--settings", json.dumps(settings), *paths, "--gpus", "0", "--threads", "1"]
    return main(["evaluate", "davis", str(vit), str(output), *options])


def mask(folder, name, frame):
    return folder / "DAVIS" / "Annotations" / "480p" / name / f"{frame:05d}.png"


def image(folder, name, frame):
    return folder / "DAVIS" / "JPEGImages" / "480p" / name / f"{frame:05d}.jpg"


def ids_of(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


# What is written


@pytest.mark.parametrize(
    ("protocol", "title"),
    [("crw", "crw-s8-r2"), ("dino", "dino-s8-r2"), ("smtc", "smtc-s8-r2")],
)
def test_a_result(shared, vit, tmp_path, protocol, title):
    found = run(shared, vit, tmp_path, protocol=protocol, radius=2, overlays=True)
    assert found.protocol == f"davis2017-val-{title}"
    assert found.samples == 4  # objects
    # Masks as the official evaluation reads them.
    for name in video_sets.NAMES:
        folder = tmp_path / "masks" / name
        assert sorted(path.name for path in folder.iterdir()) == [
            f"{frame:05d}.png" for frame in range(FRAMES)
        ]
        for path in folder.iterdir():
            with Image.open(path) as picture:
                assert (picture.mode, picture.size) == ("P", SIZE[::-1])
                assert picture.getpalette() == davis_palette()
                assert set(np.unique(picture)) <= {0, 1, 2}
        with av.open(str(tmp_path / "overlays" / f"{name}.mp4")) as film:
            pictures = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
        assert [picture.shape for picture in pictures] == [(*SIZE, 3)] * FRAMES
    if protocol == "dino":
        first = ids_of(tmp_path / "masks" / "camel" / "00000.png")
        assert np.array_equal(first, ids_of(mask(shared, "camel", 0)))
    # Scores are those of the masks.
    scored = score_folders(tmp_path / "masks", shared / "DAVIS", "semi-supervised")
    means = {name.replace("&", ""): 100 * value for name, value in scored.means().items()}
    assert found.metrics == {
        "JF_mean": means["JF-Mean"],
        **{
            f"{m}_{s.lower()}": means[f"{m}-{s}"] for m in "JF" for s in ("Mean", "Recall", "Decay")
        },
    }
    assert all(path.is_file() for path in found.artefacts)
    assert {path.name for path in found.artefacts} == {
        "global_results-val.csv",
        "per-sequence_results-val.csv",
        "davis_semi-supervised-val.json",
        "blackswan.mp4",
        "camel.mp4",
    }


def test_from_the_command_line(shared, vit, tmp_path):
    output = tmp_path / "davis.json"
    assert command(shared, vit, output, protocol="smtc", context=2) == 0
    record = read_json(output)
    assert record["protocol"] == "davis2017-val-smtc-s8-n2"
    assert (record["samples"], record["dataset"]) == (4, "davis")
    assert 0 <= record["metrics"]["JF_mean"] <= 100
    assert all((tmp_path / path).is_file() for path in record["artefacts"])


def test_frames_are_enlarged_for_dino_alone(shared, vit, tmp_path, seen_by):
    sizes = {}
    for protocol in ("crw", "smtc", "dino"):
        encoder = seen_by(Seeing(stride=32, multiple=32))
        run(shared, vit, tmp_path / protocol, protocol=protocol)
        sizes[protocol] = encoder.sizes
    # 480 x 600, floored to multiples of 64.
    assert sizes == {"crw": {(64, 64)}, "smtc": {(64, 64)}, "dino": {(480, 576)}}


@pytest.mark.parametrize(
    ("protocol", "stride", "keys"),
    [
        ("crw", 2, {"radius": 6}),
        ("smtc", 2, {"radius": 6}),
        ("smtc", 4, {"radius": 6, "upsample": 2}),
        ("dino", 12, {}),
    ],
)
def test_colours_are_enough_for_moving_shapes(
    shared, vit, tmp_path, seen_by, protocol, stride, keys
):
    """Known motion: what sees colours follows it, what sees places alone stays where it was."""
    scores = {}
    for kind in (Seeing, Blind):
        seen_by(kind(stride))
        found = run(shared, vit, tmp_path / kind.__name__, protocol=protocol, **keys)
        scores[kind] = found.metrics["JF_mean"]
    assert scores[Seeing] > 80
    assert scores[Blind] < 60


def test_an_object_may_leave_and_the_first_mask_alone_counts(own, vit, tmp_path, seen_by):
    """Later annotations are for the score: emptied, they change no mask."""
    seen_by(Seeing())
    run(own, vit, tmp_path / "before")
    for frame in range(1, FRAMES):
        save_ids(mask(own, "camel", frame), np.zeros(SIZE, np.uint8))
    prepared(own)
    found = run(own, vit, tmp_path / "after")
    for frame in range(FRAMES):
        one, other = (
            ids_of(tmp_path / when / "masks" / "camel" / f"{frame:05d}.png")
            for when in ("before", "after")
        )
        assert np.array_equal(one, other)
    assert found.samples == 4


def test_void_is_background(own, vit, tmp_path, seen_by):
    seen_by(Seeing())
    ids = ids_of(mask(own, "camel", 0)).copy()
    ids[:6] = 255
    save_ids(mask(own, "camel", 0), ids)
    prepared(own)
    for protocol in ("crw", "dino"):
        seen_by(Seeing(16 if protocol == "dino" else 4))
        run(own, vit, tmp_path / protocol, protocol=protocol)
        written = [ids_of(path) for path in (tmp_path / protocol / "masks").rglob("*.png")]
        assert max(ids.max() for ids in written) <= 2


def test_ids_with_gaps(own, vit, tmp_path, seen_by):
    """Objects 1 and 2 become 3 and 7: channels are fewer than ids."""
    table = np.zeros(256, np.uint8)
    table[[1, 2]] = 3, 7
    for frame in range(FRAMES):
        save_ids(mask(own, "camel", frame), table[ids_of(mask(own, "camel", frame))])
    prepared(own)
    for protocol, stride in (("crw", 2), ("dino", 16)):
        seen_by(Seeing(stride))
        run(own, vit, tmp_path / protocol, protocol=protocol, radius=6)
        found = [ids_of(path) for path in (tmp_path / protocol / "masks" / "camel").iterdir()]
        assert set(np.unique(found)) == {0, 3, 7}


# Steps


def test_order_of_channels():
    """By blue, green, red of the palette: (0,0,0) (128,0,0) (0,128,0) (0,0,128) and so on."""
    ids = np.array([[0, 1, 2, 3, 4, 5, 6, 8]], np.uint8)
    assert order_of_channels(ids) == [0, 8, 1, 2, 3, 4, 5, 6]
    assert order_of_channels(np.array([[30, 0, 22]], np.uint8)) == [0, 22, 30]
    # Gray 128 stands for 7 and 128 in the palette; both stay.
    assert order_of_channels(np.array([[128, 7, 0]], np.uint8)) == [0, 7, 128]


def test_one_hot():
    found = one_hot(np.array([[0, 3], [7, 1]], np.uint8), [0, 3, 7])
    assert found.tolist() == [[[1, 0], [0, 0]], [[0, 1], [0, 0]], [[0, 0], [1, 0]]]


def test_hard_labels_lose_the_highest_id_that_vanishes():
    ids = np.zeros((16, 16), np.uint8)
    ids[4:, 4:] = 1
    assert hard_labels(ids, (4, 4)).shape == (2, 4, 4)
    ids[0, 0] = 2  # pixels at 2, 6, 10 and 14 are looked at
    assert hard_labels(ids, (4, 4)).shape == (2, 4, 4)
    ids[2, 2] = 3
    found = hard_labels(ids, (4, 4))
    assert found.shape == (4, 4, 4)
    assert found.sum((1, 2)).tolist() == [6, 9, 0, 1]


def test_to_ids_takes_the_first_of_equal_channels():
    protocol = Protocol("crw", Propagation(1, 1, 1, 1), "native")
    maps = torch.tensor([[[0.2, 0.5]], [[0.5, 0.5]], [[0.5, 0.0]]])
    assert to_ids(maps, protocol, (1, 2), (1, 2)).tolist() == [[1, 0]]
    found = to_ids(maps, protocol, (1, 2), (2, 4))
    assert found.dtype == np.uint8
    assert found.tolist() == [[1, 1, 0, 0]] * 2


def test_to_ids_stretches_weak_channels():
    """DINO: each channel is brought to 0..1 over the image; an empty one stays 0."""
    protocol = Protocol("dino", Propagation(1, 1, 1, 1), "dino", minmax=True)
    weak = torch.tensor([[[1.0, 0.96, 0.8]], [[0.0, 0.04, 0.2]], [[0.0, 0.0, 0.0]]])
    plain = replace(protocol, minmax=False)
    assert to_ids(weak, plain, (1, 3), (1, 3)).tolist() == [[0, 0, 0]]
    assert to_ids(weak, protocol, (1, 3), (1, 3)).tolist() == [[0, 0, 1]]
    constant = torch.ones(1, 2, 2)
    assert to_ids(constant, protocol, (4, 4), (2, 2)).tolist() == [[0, 0], [0, 0]]


def test_a_video_of_one_frame(shared):
    video = LabelledVideos(shared / "set" / "manifest.json")["camel"]
    short = Sequence("camel", video.frames[:1], video.masks[:1], video.size)
    for name in ("crw", "dino", "smtc"):
        encoder = Seeing(2)
        protocol = make_protocol(name, PropagationConfig(kind="davis", dataset="d"), encoder)
        features = FrameFeatures(encoder, CPU, protocol, short.frames, short.size)
        (found,) = segmentation(short, features)
        assert (found == ids_of(video.masks[0])).mean() > (0.95 if name != "dino" else 0.9999)


def test_a_sequence_without_a_first_annotation(shared):
    video = LabelledVideos(shared / "set" / "manifest.json")["camel"]
    without = replace(video, masks=(None, *video.masks[1:]))
    with pytest.raises(UserError, match=r"^sequence 'camel' has no annotation of its first frame"):
        first_ids(without)


def test_masks_of_an_earlier_run_are_removed(tmp_path):
    empty = np.zeros((4, 4), np.uint8)
    save_masks(tmp_path, ["00000.png", "00001.png"], [empty] * 2)
    (tmp_path / "note.txt").write_text("kept")
    save_masks(tmp_path, ["00001.png"], [empty + 1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00001.png", "note.txt"]
    assert (ids_of(tmp_path / "00001.png") == 1).all()


# Going on


def test_what_is_done_is_not_done_again(own, vit, tmp_path, seen_by):
    encoder = seen_by(Seeing())
    output = tmp_path / "out"
    once = run(own, vit, output)
    assert encoder.images == 2 * FRAMES
    again = run(own, vit, output)
    assert encoder.images == 2 * FRAMES
    assert again.metrics == once.metrics
    (output / "work" / "camel.json").unlink()
    assert run(own, vit, output).metrics == once.metrics
    assert encoder.images == 3 * FRAMES


def test_changed_settings_do_all_again(own, vit, tmp_path, seen_by):
    encoder, output = seen_by(Seeing()), tmp_path / "out"
    run(own, vit, output)
    for count, keys in enumerate(({"top_k": 3}, {"protocol": "smtc"}, {"overlays": True}), start=2):
        run(own, vit, output, **keys)
        assert encoder.images == 2 * FRAMES * count
    with pytest.raises(UserError, match="tool_path"):
        run(own, vit, output, overlays=True, tool="official", tool_path=str(tmp_path))
    assert encoder.images == 2 * FRAMES * 4


def test_another_encoder_or_set_does_all_again(own, vit, tmp_path, seen_by):
    encoder, output = seen_by(Seeing()), tmp_path / "out"
    run(own, vit, output)
    other = tmp_path / "other"
    shutil.copytree(vit, other)
    with (other / "encoder.safetensors").open("ab") as file:
        file.write(b" ")
    run(own, other, output)
    assert encoder.images == 4 * FRAMES
    save_ids(mask(own, "camel", 3), np.zeros(SIZE, np.uint8))
    prepared(own)
    run(own, other, output)
    assert encoder.images == 6 * FRAMES


def test_masks_that_were_lost_are_made_again(own, vit, tmp_path, seen_by):
    seen_by(Seeing())
    output = tmp_path / "out"
    once = run(own, vit, output)
    shutil.rmtree(output / "masks" / "camel")
    assert run(own, vit, output).metrics == once.metrics


def test_mended_and_started_again(own, vit, tmp_path, seen_by):
    encoder, output = seen_by(Seeing()), tmp_path / "out"
    spare = image(own, "camel", 3).read_bytes()
    image(own, "camel", 3).unlink()
    with pytest.raises(UserError, match=r"1 of 2 videos failed \(camel: "):
        run(own, vit, output)
    image(own, "camel", 3).write_bytes(spare)
    before = encoder.images
    mended = run(own, vit, output)
    assert encoder.images == before + FRAMES  # blackswan was kept
    assert mended.metrics == run(own, vit, tmp_path / "fresh").metrics


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
