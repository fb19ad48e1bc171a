"""Aligned videos from files: each page shows the frames that were matched."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from tests.evaluation.aligned import (
    numbers_on,
    pages_of,
    progress,
    video,
    write_embeddings,
    write_set,
)
from timewalk import cli
from timewalk.artefacts import sha256_file
from timewalk.check import check
from timewalk.errors import UserError
from timewalk.evaluation.alignment import match
from timewalk.evaluation.alignment_files import _own_frame
from timewalk.evaluation.alignment_pictures import Sheet, grid_rows
from timewalk.evaluation.alignment_video import (
    Alignment,
    Config,
    align,
    companions,
    drawn_numbers,
    evaluate,
    panels,
)
from timewalk.evaluation.base import Inputs
from timewalk.evaluation.phase_sequences import save_published

LENGTHS = (6, 9, 12, 5)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A set of grey videos and the embeddings of its test split."""
    folder = tmp_path_factory.mktemp("grey")
    manifest = write_set(folder, LENGTHS)
    return manifest, write_embeddings(folder / "test.safetensors", manifest)


def expected(length, reference=6):
    """The nearest frames of a video that goes evenly from beginning to end."""
    distances = np.abs(progress(reference)[:, :1] - progress(length)[:, 0])
    return distances.round(6).argmin(axis=1).tolist()


def inputs_of(made, **other):
    manifest, embeddings = made
    keys = {"run": embeddings.parent, "dataset": manifest, "device": torch.device("cpu")}
    return Inputs(**keys, **{"train": embeddings, "test": embeddings, **other})


@pytest.mark.parametrize("suffix", ["mp4", "gif"])
def test_an_evaluation_draws_and_scores(made, tmp_path, suffix):
    config = Config(dataset="grey", format=suffix, cell=48, scale="none")
    result = evaluate(inputs_of(made), config, tmp_path / "alignment")
    names = [f"alignment.{suffix}", "paths.png", "matches.csv", "scores.csv"]
    assert [path.name for path in result.artefacts] == names
    assert sorted(path.name for path in (tmp_path / "alignment").iterdir()) == sorted(names)
    assert result.protocol == "alignment-test0-nn"
    assert result.samples == 3
    found, seconds = pages_of(result.artefacts[0])
    assert seconds == pytest.approx(0.05)
    matches = {n: expected(length) for n, length in enumerate(LENGTHS)}
    assert matches[0] == list(range(6))
    shown = [numbers_on(page, Sheet(4, 2, 48), 4) for page in found]
    assert shown == [[matches[n][t] for n in range(4)] for t in range(6)]
    with open(result.artefacts[2]) as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["reference_frame", "val1", "val2", "val3"]
    assert [[int(x) for x in row] for row in rows[1:]] == [
        [t, matches[1][t], matches[2][t], matches[3][t]] for t in range(6)
    ]
    phases = [[2 * n // length for n in matches[i]] for i, length in enumerate(LENGTHS)]
    wrong = [[abs(x - y) for x, y in zip(phases[0], p, strict=True)] for p in phases[1:]]
    assert result.metrics["phase_difference"] == pytest.approx(np.mean(wrong))
    assert result.metrics["same_phase_percent"] == pytest.approx(100 - 100 * np.mean(wrong))
    assert 0 < result.metrics["dtw_cost_percent"] < 10
    with open(result.artefacts[3]) as file:
        table = list(csv.DictReader(file))
    assert [row["video"] for row in table] == ["val1", "val2", "val3"]
    means = np.mean([float(row["dtw_cost"]) for row in table])
    assert means == pytest.approx(result.metrics["dtw_cost"])


def test_numbers_do_not_depend_on_what_is_drawn(made, tmp_path):
    few = Config(dataset="grey", format="gif", cell=32, mode="pair", candidate=3)
    many = Config(dataset="grey", format="gif", cell=32)
    results = [evaluate(inputs_of(made), x, tmp_path / x.mode) for x in (few, many)]
    assert results[0].metrics == results[1].metrics
    assert results[0].protocol == results[1].protocol


def test_the_protocol_names_what_changes_numbers(made, tmp_path):
    config = Config(
        dataset="grey",
        format="gif",
        cell=32,
        use_dtw=True,
        normalise=True,
        reference=2,
        split="train",
    )
    manifest, _ = made
    train = write_embeddings(tmp_path / "train.safetensors", manifest, "train")
    result = evaluate(inputs_of(made, train=train), config, tmp_path / "out")
    assert result.protocol == "alignment-train2-dtw-normalised"
    assert len(pages_of(result.artefacts[0])[0]) == 12
    few = write_embeddings(tmp_path / "few.safetensors", manifest, stride=3, max_videos=4)
    config = Config(dataset="grey", format="gif", cell=32)
    result = evaluate(inputs_of(made, test=few), config, tmp_path / "out")
    assert result.protocol == "alignment-test0-nn-every3-first4"


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"encoder_sha256": "x"}, r"x.safetensors was not made with .*\(encoder_sha256\)"),
        ({"dataset_sha256": "x"}, r"x.safetensors was not made with .*\(dataset_sha256\)"),
        ({"split": "train"}, "x.safetensors holds the split 'train' where 'test' is read"),
    ],
)
def test_embeddings_of_another_run_set_or_split(made, tmp_path, about, message):
    manifest, _ = made
    source = write_embeddings(tmp_path / "x.safetensors", manifest, **about)
    with pytest.raises(UserError, match=message):
        evaluate(inputs_of(made, test=source), Config(dataset="grey", format="gif"), tmp_path)


def test_embeddings_of_another_set_with_equal_names(made, tmp_path):
    """Videos of the same names and lengths, but other pictures."""
    manifest, _ = made
    source = write_embeddings(
        tmp_path / "x.safetensors", manifest, dataset_sha256=sha256_file(manifest)
    )
    align([source], tmp_path / "x.gif", Alignment(cell=32), manifest=manifest)
    other = write_set(tmp_path / "other", LENGTHS, side=24)
    with pytest.raises(UserError, match=r"was not made of the split 'test' of .*other"):
        align([source], tmp_path / "x.gif", Alignment(cell=32), manifest=other)


def test_the_originals_frames_keep_every_level():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    for floats in (levels / 127.5 - 1, (levels / np.float32(127.5) - 1).astype(np.float32)):
        assert np.array_equal(_own_frame(floats, 0), levels[0])


def test_embeddings_of_every_third_frame_show_those(made, tmp_path):
    manifest, _ = made
    source = write_embeddings(tmp_path / "x.safetensors", manifest, steps=slice(0, None, 3))
    keys = Alignment(mode="pair", candidate=2, cell=48, scale="none")
    align([source], tmp_path / "x.gif", keys, manifest=manifest)
    found, _ = pages_of(tmp_path / "x.gif")
    # Frames 0 and 3 of 6, progress 0 and 0.6; the other's kept ones are at 0, 3/11, 6/11, 9/11.
    assert [numbers_on(page, Sheet(2, 1, 48), 2) for page in found] == [[0, 0], [3, 6]]


def test_the_originals_file_brings_its_frames(made, tmp_path):
    manifest, _ = made
    source = write_embeddings(tmp_path / "x.npy", manifest, save=save_published)
    scores = align([source], tmp_path / "x.mp4", Alignment(cell=48, scale="none"))
    found, _ = pages_of(tmp_path / "x.mp4")
    shown = [numbers_on(page, Sheet(4, 2, 48), 4) for page in found]
    assert shown == [[expected(length)[t] for length in LENGTHS] for t in range(6)]
    assert scores["same_phase_percent"] > 50


def plan(keys, count=4, length=45, action=None):
    """The numbers of videos and frames on each page; every video is as long as the reference."""
    videos = [
        video(range(length), f"v{n}", action=(action or [0] * count)[n]) for n in range(count)
    ]
    others = companions(videos, keys, "x")
    reference = videos[keys.reference]
    drawn = drawn_numbers(others, keys)
    matches = {n: match(reference, videos[n], use_dtw=False, normalise=False) for n in drawn}
    order = [keys.reference, *drawn]
    order = sorted(order) if keys.mode == "grid" else order
    shown = panels(videos, order, matches, keys)
    return [[(videos.index(x), frame) for x, frame in page] for page in shown]


def test_dynamic_goes_through_the_others_and_begins_again():
    pages = plan(Alignment(mode="dynamic", switch=10))
    assert [page[0] for page in pages] == [(0, t) for t in range(45)]
    assert [page[1][0] for page in pages] == [1] * 10 + [2] * 10 + [3] * 10 + [1] * 10 + [2] * 5
    assert [page[1][1] for page in pages] == list(range(45))
    pages = plan(Alignment(mode="dynamic", switch=2, reference=1), length=7)
    assert [page[1][0] for page in pages] == [0, 0, 2, 2, 3, 3, 0]
    pages = plan(Alignment(mode="dynamic", switch=2, videos=3), length=7)
    assert [page[1][0] for page in pages] == [1, 1, 2, 2, 1, 1, 2]


@pytest.mark.parametrize(
    ("keys", "shown"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6]),
        ({"videos": 3}, [0, 1, 2]),
        ({"videos": 3, "reference": 5}, [0, 1, 5]),
        ({"published_grid": True}, [0, 1, 2, 3]),
        ({"published_grid": True, "reference": 6}, [0, 1, 2, 6]),
        ({"published_grid": True, "videos": 3}, [0, 1]),
        ({"mode": "pair"}, [0, 1]),
        ({"mode": "pair", "reference": 6}, [6, 0]),
        ({"mode": "pair", "reference": 3}, [3, 4]),
        ({"mode": "pair", "reference": 3, "candidate": 1}, [3, 1]),
    ],
)
def test_which_videos_are_drawn(keys, shown):
    (page,) = plan(Alignment(**keys), count=7, length=1)
    assert [number for number, _ in page] == shown


def test_only_videos_of_one_action_are_aligned():
    action = [0, 1, 0, 1, 1]
    (page,) = plan(Alignment(reference=1), count=5, length=1, action=action)
    assert [number for number, _ in page] == [1, 3, 4]
    with pytest.raises(UserError, match="candidate 2 is the reference or shows another action"):
        plan(Alignment(reference=1, mode="pair", candidate=2), count=5, action=action)
    with pytest.raises(UserError, match="no second video of the action of video 1"):
        plan(Alignment(reference=1), count=2, action=[0, 1])


def mistake(run, *words):
    """The one sentence that a mistake gives."""
    with pytest.raises(UserError) as error:
        run()
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text
    return text


def test_mistakes_are_one_sentence(made, tmp_path, monkeypatch):
    manifest, source = made
    target, keys = tmp_path / "x.gif", Alignment(cell=32)

    def call(sources=(source,), target=target, keys=keys, dataset=manifest, **more):
        return lambda: align(list(sources), target, keys, manifest=dataset, **more)

    mistake(call(keys=Alignment(reference=4)), "reference is 4", "holds 4 videos", "choose")
    pair = Alignment(mode="pair", candidate=9)
    mistake(call(keys=pair), "candidate is 9", "holds 4 videos")
    mistake(call(keys=Alignment(mode="pair", candidate=0)), "candidate 0 is the reference")
    mistake(call(target=tmp_path / "x.avi"), "x.avi must end in .mp4 or .gif")
    mistake(call(path_plot=tmp_path / "x.svg"), "x.svg must end in .png")
    mistake(call([tmp_path / "x.csv"]), "x.csv is no file of embeddings", ".safetensors", ".npy")
    mistake(call([tmp_path / "no.safetensors"]), "no.safetensors is missing")
    mistake(call(dataset=None), "holds no frames", "--dataset")
    # The splits of this set differ in their names alone.
    mistake(call(split="train"), "was not made of the split 'train'")
    other = write_set(tmp_path / "short", (3, 9, 12, 5))
    mistake(call(dataset=other), "was not made of the split 'test'")
    fewer = write_set(tmp_path / "fewer", (6, 9), (0, 0))
    mistake(call(dataset=fewer), "was not made of the split 'test'")
    alone = write_set(tmp_path / "alone", (6,), (0,))
    one = write_embeddings(tmp_path / "one.safetensors", alone)
    mistake(call([one], dataset=alone), "holds no second video", "two or more")
    wide = write_embeddings(
        tmp_path / "wide.safetensors", manifest, vectors=lambda n: np.ones((n, 3), np.float32)
    )
    wrong = "wide.safetensors holds embeddings of 3 numbers for video 'val0'"
    mistake(call([source, wide]), wrong, "test.safetensors of 2 for video 'val0'")
    empty = write_embeddings(tmp_path / "empty.safetensors", manifest, steps=slice(0, 0))
    mistake(call([empty]), "holds no finite embedding of video 'val0'")
    assert not target.exists()
    # Before anything is read.
    monkeypatch.setenv("TIMEWALK_FFMPEG", "/no/such/program")
    mistake(call([tmp_path / "no.npy"], target=tmp_path / "x.mp4"), "TIMEWALK_FFMPEG")


def test_the_originals_file_without_frames(made, tmp_path):
    manifest, _ = made
    source = write_embeddings(tmp_path / "x.npy", manifest, save=without_frames)
    mistake(lambda: align([source], tmp_path / "x.gif", Alignment()), "x.npy holds no frames")


def without_frames(path, found):
    for sequence in found.videos:
        object.__setattr__(sequence, "frames", None)
    save_published(path, found)


def test_a_candidate_needs_a_pair():
    raw = {"kind": "alignment_video", "dataset": "x", "candidate": 1}
    mistake(lambda: check(Config, raw, "evaluations.x"), "candidate goes with mode pair, not grid")
    with pytest.raises(UserError, match=r"evaluations.x.videos is 1"):
        check(Config, raw | {"mode": "pair", "videos": 1}, "evaluations.x")


def run_cli(*words):
    return cli.main(["align", *map(str, words)])


def test_the_command_line(made, tmp_path, capsys):
    manifest, source = made
    target, plot = tmp_path / "out" / "x.mp4", tmp_path / "out" / "x.png"
    words = [source, "--dataset", manifest, "-o", target, "--cell", 48, "--scale", "none"]
    assert run_cli(*words, "--candidate", 2, "--interval", 40, "--path", plot, "--dtw") == 0
    assert "same_phase_percent" in capsys.readouterr().out
    found, seconds = pages_of(target)
    assert seconds == pytest.approx(0.04)
    shown = [numbers_on(page, Sheet(2, 1, 48), 2) for page in found]
    assert [page[0] for page in shown] == list(range(6))
    assert shown[0] == [0, 0]
    assert [page[1] for page in shown] == sorted(page[1] for page in shown)
    with Image.open(plot) as picture:
        assert picture.width > 300


def test_two_files_on_the_command_line_are_one_row_of_videos(made, tmp_path):
    manifest, source = made
    train = write_embeddings(tmp_path / "train.safetensors", manifest, "train")
    target = tmp_path / "x.gif"
    words = [source, train, "--dataset", manifest, "-o", target, "--cell", 32, "--scale", "none"]
    assert run_cli(*words) == 0
    found, _ = pages_of(target)
    shown = [numbers_on(page, Sheet(8, grid_rows(8), 32), 8) for page in found]
    assert shown == [2 * [expected(length)[t] for length in LENGTHS] for t in range(6)]


def test_a_mistake_on_the_command_line(made, tmp_path, capsys):
    manifest, source = made
    words = [source, "--dataset", manifest, "-o", tmp_path / "x.gif"]
    assert run_cli(*words, "--videos", 1) == 1
    assert "timewalk align: align.videos is 1" in capsys.readouterr().err
    assert run_cli(*words, "--mode", "grid", "--candidate", 1) == 1
    assert "candidate goes with mode pair" in capsys.readouterr().err
    assert run_cli(*words, "--reference", 7) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("timewalk align: reference is 7 but")
