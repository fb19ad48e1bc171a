"""Tracking by label propagation: official files, scores of known boxes, resume, bad input."""

import csv
import logging
import re
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from tests.evaluation.coloured_masks import a_run
from tests.evaluation.stubs import Blind, Seeing
from timewalk.config.dense import GOT10k, GOT10kShapes
from timewalk.data.generated_tracks import moving_object, write_got10k
from timewalk.data.prepare.tracks import prepare_tracks
from timewalk.data.tracks import LabelledTracks
from timewalk.errors import UserError
from timewalk.evaluation import got10k
from timewalk.evaluation.base import Inputs
from timewalk.evaluation.got10k import Config, evaluate, input_size, protocol, read_small
from timewalk.evaluation.got10k_files import Records, read_overlaps, spread

CPU = torch.device("cpu")
NAMES = ("GOT-10k_Val_000001", "GOT-10k_Val_000002")
SIZE, FRAMES = (48, 64), 10
KEYS = {"dataset": "got", "short_side": None, "pictures": 0}


def a_set(folder, subset="val"):
    rngs = np.random.default_rng(0).spawn(len(NAMES))
    videos = {
        name: moving_object(FRAMES, SIZE, i, rng)
        for i, (name, rng) in enumerate(zip(NAMES, rngs, strict=True))
    }
    write_got10k(folder / "GOT-10k", videos, subset=subset)
    return prepared(folder, subset)


def prepared(folder, subset="val"):
    manifest = folder / "set" / "manifest.json"
    config = GOT10k(kind="got10k", root=str(folder / "GOT-10k"), subset=subset)
    prepare_tracks("got", config, manifest)
    return manifest


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return a_set(tmp_path_factory.mktemp("got10k"))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a function that evaluates an encoder into a folder below tmp_path."""

    def go(manifest, folder="out", encoder=None, workers=0, **keys):
        seeing = encoder or Seeing(stride=2)
        monkeypatch.setattr(got10k, "load_encoder", lambda run: seeing)
        inputs = Inputs(a_run(tmp_path / "run"), manifest, CPU, workers=workers)
        return evaluate(inputs, Config(**(KEYS | keys)), tmp_path / folder)

    return go


def say(monkeypatch, boxes_of):
    """Let the tracker give the boxes that ``boxes_of(track)`` returns."""

    def follow(track, *_):
        boxes = boxes_of(track)
        return got10k.Followed(boxes, np.full(len(boxes), 0.25), 0)

    monkeypatch.setattr(got10k, "follow", follow)


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_seeing_follows_and_blind_does_not(run, shared, tmp_path):
    seeing, blind = run(shared, "a"), run(shared, "b", Blind(stride=2))
    assert seeing.samples == 2
    assert seeing.protocol == "got10k-val-labelprop-dino-s2-native"
    assert seeing.metrics["ao"] > 60
    assert seeing.metrics["ao"] > blind.metrics["ao"] + 20
    assert seeing.metrics["fps"] > 0
    assert [path.name for path in seeing.artefacts] == [
        "sequences.csv",
        "success_curve.csv",
        "run.zip",
    ]
    rows = rows_of(tmp_path / "a" / "sequences.csv")
    assert [row["sequence"] for row in rows] == [*NAMES]
    assert [row["object_class"] for row in rows] == ["red ellipse", "green ellipse"]
    # One class each, and as many frames that count: balanced or not is the same.
    assert [row["counted"] for row in rows] == ["8", "8"]
    assert np.mean([float(row["ao"]) for row in rows]) == pytest.approx(seeing.metrics["ao"])
    assert seeing.metrics["mao"] == pytest.approx(seeing.metrics["ao"])


def test_the_truth_is_perfect(run, shared, monkeypatch):
    say(monkeypatch, lambda track: track.boxes)
    found = run(shared)
    assert found.metrics == {
        **dict.fromkeys(("ao", "sr50", "sr75", "mao", "msr50", "msr75"), 100),
        "fps": 4,
    }


def test_shifted_boxes_by_hand(run, shared, monkeypatch, tmp_path):
    """Half of each box's width to the right: what both have is half, and a third of the union,
    where neither is cut."""
    first = NAMES[0]

    def shifted(track):
        step = track.boxes[:, 2] / (2 if track.name == first else np.inf)
        return track.boxes + np.stack([step, *np.zeros((3, len(step)))], axis=1)

    say(monkeypatch, shifted)
    found = run(shared)
    expected = []
    for (x, _, w, _), cover in list(zip(*_boxes(shared, first), strict=True))[1:]:
        if cover > 0:
            low, high = max(x, 0), min(max(x, 0) + w, SIZE[1])
            # A corner left of the image moves to its edge with the width as it is.
            start = max(x + w / 2, 0)
            end = min(start + w, SIZE[1])
            common, both = max(0, min(high, end) - max(low, start)), (high - low) + (end - start)
            expected.append(common / (both - common))
    rows = rows_of(tmp_path / "out" / "sequences.csv")
    assert float(rows[0]["ao"]) == pytest.approx(100 * np.mean(expected), abs=1e-3)
    assert float(rows[1]["ao"]) == 100
    assert any(share == pytest.approx(1 / 3) for share in expected)
    pooled = [*expected, *np.ones(8)]
    assert found.metrics["ao"] == pytest.approx(100 * np.mean(pooled), abs=1e-3)
    assert found.metrics["sr50"] == 100 * np.mean(np.array(pooled) > 0.5)


def _boxes(manifest, name):
    track = LabelledTracks(manifest)[name]
    return track.boxes, track.cover


def test_nan_and_boxes_outside_count_as_nothing(run, shared, monkeypatch):
    say(monkeypatch, lambda track: np.vstack([track.boxes[:1], np.full((FRAMES - 1, 4), np.nan)]))
    assert run(shared, "a").metrics["ao"] == 0
    outside = np.tile([100.0, 100, 5, 5], (FRAMES, 1))
    say(monkeypatch, lambda track: outside)
    assert run(shared, "b").metrics["ao"] == 0


def test_official_files(run, shared, tmp_path):
    run(shared)
    place = tmp_path / "out" / "GOT-10k" / "run"
    for name in NAMES:
        boxes = (place / name / f"{name}_001.txt").read_text().splitlines()
        assert len(boxes) == FRAMES
        assert all(re.fullmatch(r"(-?\d+\.\d{3},){3}-?\d+\.\d{3}", line) for line in boxes)
        given = LabelledTracks(shared)[name].boxes[0]
        assert [float(word) for word in boxes[0].split(",")] == given.tolist()
        times = (place / name / f"{name}_time.txt").read_text().splitlines()
        assert len(times) == FRAMES
        assert all(re.fullmatch(r"\d+\.\d{8}", line) for line in times)
    with zipfile.ZipFile(tmp_path / "out" / "GOT-10k" / "run.zip") as packed:
        assert packed.namelist() == [
            f"{n}/{n}_{kind}.txt" for n in NAMES for kind in ("001", "time")
        ]
        member = f"{NAMES[0]}/{NAMES[0]}_001.txt"
        assert packed.read(member) == (place / member).read_bytes()


def test_withheld_boxes_give_a_zip_and_no_scores(run, tmp_path, caplog):
    manifest = a_set(tmp_path, "test")
    with caplog.at_level(logging.WARNING):
        found = run(manifest, pictures=1)
    assert "the boxes of 'test' are withheld: for its scores bring" in caplog.text
    assert found.metrics["ao"] is None
    assert found.metrics["msr75"] is None
    assert found.metrics["fps"] > 0
    assert found.protocol == "got10k-test-labelprop-dino-s2-native"
    assert [path.name for path in found.artefacts] == [f"{NAMES[0]}.png", "run.zip"]
    with zipfile.ZipFile(found.artefacts[-1]) as packed:
        assert len(packed.namelist()) == 4


def test_pictures(run, shared, tmp_path):
    found = run(shared, pictures=1)
    names = [path.name for path in found.artefacts]
    curve = "success_curve"
    assert names == ["sequences.csv", f"{curve}.csv", f"{NAMES[0]}.png", f"{curve}.png", "run.zip"]
    with Image.open(tmp_path / "out" / "pictures" / f"{NAMES[0]}.png") as picture:
        assert picture.size == (4 * 64 + 3 * 4, 2 * 48 + 4)
        colours = {colour for _, colour in picture.getcolors(1 << 16)}
    assert {(255, 60, 40), (255, 255, 255)} <= colours
    rows = rows_of(tmp_path / "out" / f"{curve}.csv")
    assert len(rows) == 101
    assert (rows[0]["threshold"], rows[-1]["success"]) == ("0.00", "0.0000")


def test_goes_on_where_it_stopped(run, shared, monkeypatch):
    run(shared)
    asked = []
    real = got10k.follow
    monkeypatch.setattr(
        got10k, "follow", lambda track, *rest: asked.append(track.name) or real(track, *rest)
    )
    first = run(shared, pictures=1, frames_at_once=3)
    assert asked == []
    (first.artefacts[-1].parent / "run" / NAMES[1] / f"{NAMES[1]}_time.txt").unlink()
    run(shared)
    assert asked == [NAMES[1]]
    run(shared, top_k=3)
    assert asked[1:] == [*NAMES]


def test_batches_and_threads_change_nothing(run, shared, tmp_path):
    run(shared, "a", frames_at_once=1)
    run(shared, "b", frames_at_once=7, workers=3)
    first, second = (Records(tmp_path / folder / "GOT-10k" / "run") for folder in "ab")
    for name in NAMES:
        np.testing.assert_allclose(first.boxes(name), second.boxes(name), atol=0.01)


def test_frames_are_read_two_batches_ahead_and_no_more(shared, monkeypatch):
    read = []
    track = LabelledTracks(shared)[NAMES[0]]

    def small(path, *_):
        read.append(path)
        return torch.zeros(3, 2, 2, dtype=torch.uint8)

    monkeypatch.setattr(got10k, "read_small", small)
    batches = got10k.read_ahead(track, (2, 2), 2, 1)
    assert len(next(batches)) == 2
    assert len(read) <= 6
    assert [len(batch) for batch in batches] == [2, 2, 2, 2]
    assert read == [*track.frames]


def test_size_of_the_input():
    assert input_size((1080, 1920), 480, 16) == (480, 848)
    assert input_size((1920, 1080), 480, 16) == (848, 480)
    assert input_size((360, 640), None, 16) == (352, 640)
    assert input_size((8, 100), None, 16) == (16, 96)


def test_large_frames_are_read_small(tmp_path):
    rows = np.linspace(0, 255, 400)[:, None, None]
    path = tmp_path / "00000001.jpg"
    Image.fromarray(np.broadcast_to(rows, (400, 600, 3)).astype(np.uint8)).save(path, quality=95)
    small = read_small(path, (400, 600), (80, 112))
    assert (small.dtype, small.shape) == (torch.uint8, (3, 80, 112))
    expected = torch.linspace(0, 255, 400).reshape(80, 5).mean(1)
    assert (small[0].float().mean(1) - expected).abs().max() < 3


def test_protocol_names_what_changes_results():
    encoder = Seeing(stride=8)
    plain = protocol(Config(dataset="x"), encoder, "got10k-val")
    assert plain == "got10k-val-labelprop-dino-s8-480px"
    other = Config(
        **{"dataset": "x", "short_side": None, "context": 20, "top_k": 10, "radius": 6},
        **{"temperature": 0.05, "threshold": 0.5, "smoothing": 0, "first_mask": "box"},
        **{"precision": "bf16", "frames_at_once": 9, "pictures": 0},
    )
    assert protocol(other, encoder, "got10k-val") == (
        "got10k-val-labelprop-dino-s8-n20-k10-r6-t0.05-native-above0.5-smooth0-box-bf16"
    )


def test_generated_videos_are_another_set(run, tmp_path):
    manifest = tmp_path / "set" / "manifest.json"
    config = GOT10kShapes(kind="got10k_shapes", sequences=1, frames=3, height=48, width=64)
    prepare_tracks("got", config, manifest)
    assert run(manifest).protocol == "got10k_shapes-val-labelprop-dino-s2-native"


def test_crws_way(run, shared):
    """Its options too: maps enlarged, further frames kept, each cell's labels stretched."""
    keys = {"protocol": "crw", "context": 5, "upsample": 2, "long_term": [0, 2]}
    found = run(shared, encoder=Seeing(stride=4), norm_mask=True, **keys)
    assert found.protocol == "got10k-val-labelprop-crw-s2-n5-x2-l0_2-norm-native"
    assert found.metrics["ao"] > 50


def test_an_option_that_dino_does_not_know(run, shared):
    with pytest.raises(UserError, match="norm_mask: protocol dino has no such step; leave it out"):
        run(shared, norm_mask=True)


def test_spread():
    assert spread([*"abcdefgh"], 3) == ["a", "c", "f"]
    assert spread([*"ab"], 5) == ["a", "b"]
    assert spread([*"ab"], 0) == []


def test_another_kind_of_set(run, shared, tmp_path):
    other = tmp_path / "manifest.json"
    other.write_text(shared.read_text().replace("labelled_tracks", "labelled_masks"))
    with pytest.raises(UserError, match="describes 'labelled_masks', but a manifest of 'labelled_"):
        run(other)


def test_frames_that_cannot_be_read_name_their_sequence(run, tmp_path):
    manifest = a_set(tmp_path)
    folder = tmp_path / "GOT-10k" / "val"
    (folder / NAMES[0] / "00000004.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=rf"1 of 2 videos failed \({NAMES[0]}: .*00000004.jpg can"):
        run(manifest)
    Image.new("RGB", (32, 32)).save(folder / NAMES[0] / "00000004.jpg")
    with pytest.raises(UserError, match=r"is 32x32 pixels, not 64x48 as its sequence"):
        run(manifest)
    assert Records(tmp_path / "out" / "GOT-10k" / "run").complete(NAMES[1])


def test_features_that_are_not_finite(run, shared):
    class Broken(Seeing):
        def see(self, pooled):
            return pooled * torch.nan

    with pytest.raises(UserError, match="the encoder gives features that are not finite; train it"):
        run(shared, encoder=Broken(stride=2))


def test_results_of_another_length_or_kind(run, shared, tmp_path):
    run(shared)
    track = LabelledTracks(shared)[NAMES[0]]
    records = Records(tmp_path / "out" / "GOT-10k" / "run")
    path = records.paths(NAMES[0])[0]
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match="has 9 boxes, but 'GOT-10k_Val_000001' has 10 frames"):
        read_overlaps(records, track)
    path.write_text("1,2,x,4\n")
    with pytest.raises(UserError, match="does not hold x,y,w,h in every line; delete it"):
        read_overlaps(records, track)


def test_a_sequence_in_which_nothing_is_seen_counts_nothing(run, tmp_path):
    a_set(tmp_path)
    place = tmp_path / "GOT-10k" / "val"
    (place / NAMES[0] / "cover.label").write_text("0\n" * FRAMES)
    found = run(prepared(tmp_path))
    rows = rows_of(tmp_path / "out" / "sequences.csv")
    assert (rows[0]["counted"], rows[0]["ao"]) == ("0", "")
    assert found.metrics["ao"] == pytest.approx(float(rows[1]["ao"]), abs=1e-3)
    (place / NAMES[1] / "cover.label").write_text("0\n" * FRAMES)
    shutil.rmtree(tmp_path / "out")
    found = run(prepared(tmp_path), pictures=1)
    assert found.metrics["ao"] is None
    assert found.metrics["mao"] is None
