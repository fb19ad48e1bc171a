"""JHMDB by label propagation: heat maps, read-out, scores, files."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import savemat

from tests.evaluation.stubs import Blind, Seeing
from tests.miniature import video_sets
from timewalk.artefacts import read_json
from timewalk.cli import main
from timewalk.config import JHMDB, Davis2017
from timewalk.data.prepare import prepare
from timewalk.data.sequences import LabelledVideos
from timewalk.errors import UserError
from timewalk.evaluation.base import Inputs
from timewalk.evaluation.pose import (
    Config,
    correct,
    evaluate,
    heat_maps,
    in_pixels,
    numbers,
    read_out,
    truth_of,
)

SIZE, FRAMES, SIDE = (60, 80), 6, 80
NAMES = ("walk/April_09_walk_f_nm_np1", "wave/Boy_wave_u_cm")
CPU = torch.device("cpu")
KEYS = {"dataset": "jhmdb", "crop_size": SIDE, "radius": 6}


def a_set(folder):
    joints = video_sets.jhmdb(folder / "JHMDB", NAMES, frames=FRAMES, size=SIZE)
    manifest = folder / "set" / "manifest.json"
    prepare("jhmdb", JHMDB(kind="jhmdb", root=str(folder / "JHMDB")), manifest)
    return manifest, joints


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return a_set(tmp_path_factory.mktemp("jhmdb"))


def run(manifest, vit, output, **keys):
    return evaluate(Inputs(vit, manifest, CPU), Config(**{**KEYS, **keys}), output)


def test_a_blob():
    """Centre 1, a neighbour 0.13534, a diagonal one 0.01832, two away 0.00034 (CRW's)."""
    found = heat_maps(np.array([[5.2], [4.4]]), (9, 11), (9, 11))
    assert found.shape == (2, 9, 11)
    blob = found[1].numpy()
    assert blob.argmax() == 4 * 11 + 5
    assert blob[4, 5] == 1
    assert blob[4, 4] == pytest.approx(0.13534, abs=1e-5)
    assert blob[3, 4] == pytest.approx(0.01832, abs=1e-5)
    assert blob[4, 3] == pytest.approx(0.00034, abs=1e-5)
    # Cells -2..+1 around 5 and 4.
    assert [np.flatnonzero(blob.any(axis)).tolist() for axis in (0, 1)] == [
        [3, 4, 5, 6],
        [2, 3, 4, 5],
    ]
    assert np.array_equal(found[0] == 1, blob == 0)
    assert set(np.unique(found[0])) == {0, 1}


@pytest.mark.parametrize(
    ("position", "centre", "cells"),
    [
        (5.0, 5, [3, 4, 5, 6]),
        (5.49, 5, [3, 4, 5, 6]),
        (5.5, 6, [4, 5, 6, 7]),
        (1.6, 2, [0, 1, 2, 3]),
        (1.4, 2, [0, 1, 2]),
        (0.6, 2, [0, 1, 2]),
        (0.4, 1, [0, 1]),
        (-0.4, 1, [0, 1]),
        (-0.6, 0, [0]),
        (-9.0, None, []),
        (8.9, 9, [7, 8]),
        (11.0, None, []),
        (900.0, None, []),
    ],
)
def test_blobs_near_the_border(position, centre, cells):
    """Truncation toward zero shifts the blob; what is outside is cut."""
    blob = heat_maps(np.array([[position], [2.0]]), (9, 9), (9, 9))[1, 2].numpy()
    assert np.flatnonzero(blob).tolist() == cells
    for cell in cells:
        assert blob[cell] == pytest.approx(math.exp(-2 * (cell - centre) ** 2), rel=1e-5)


def test_joints_are_scaled_to_the_grid():
    found = heat_maps(np.array([[60.0], [90.0]]), (40, 20), (120, 80))
    row, column = divmod(int(found[1].argmax()), 20)
    assert (row, column) == (30, 15)


def test_read_out_by_hand():
    soft = torch.zeros(4, 3, 4)
    soft[1, 1, 2] = 0.5  # alone
    soft[2, 0, 0], soft[2, 0, 1], soft[2, 2, 0], soft[2, 2, 3] = 0.4, 0.2, 0.2, 0.1
    found = read_out(soft)
    assert found.shape == (2, 3)
    assert found[:, 0].tolist() == [2, 1]
    # The three strongest alone: (0, 0), (1, 0), (0, 2) with weights 0.5, 0.25, 0.25.
    assert found[:, 1].tolist() == pytest.approx([0.25, 0.5])
    assert found[:, 2].tolist() == [-1, -1]


def test_a_map_of_two_cells():
    soft = torch.tensor([[[0.0, 0.0]], [[0.25, 0.75]]])
    assert read_out(soft).ravel().tolist() == [0.75, 0]


@given(st.floats(4, 30), st.floats(4, 26))
def test_what_is_read_out_is_what_was_drawn(x, y):
    """Within a cell: the window is not centred, and cells have no half."""
    found = read_out(heat_maps(np.array([[x], [y]]), (30, 34), (30, 34)))
    assert np.abs(found[:, 0] - (x, y)).max() < 1


def test_lost_joints_stay_lost_in_pixels():
    found = in_pixels(np.array([[[-1.0], [10.0]], [[-1.0], [20.0]]]), (40, 40), (240, 320))
    assert found[:, 0, 0].tolist() == [-8, -6]
    assert found[:, 1, 0].tolist() == [80, 120]


def test_true_joints_score_100(shared, tmp_path):
    manifest, joints = shared
    videos = LabelledVideos(manifest)
    scale = np.array([20 / SIZE[1], 20 / SIZE[0]])[:, None, None]
    for name, truth in joints.items():
        path = tmp_path / "poses" / f"{name}.npy"
        path.parent.mkdir(parents=True)
        np.save(path, truth * scale)
    found = numbers(correct(tmp_path, videos, {key: [20, 20] for key in NAMES}))
    assert found == {f"PCK_{share}": 100 for share in (0.1, 0.2, 0.3, 0.4, 0.5)}


def test_the_first_frame_does_not_count(shared, tmp_path):
    manifest, joints = shared
    scale = np.array([20 / SIZE[1], 20 / SIZE[0]])[:, None, None]
    for name, truth in joints.items():
        path = tmp_path / "poses" / f"{name}.npy"
        path.parent.mkdir(parents=True)
        wrong = truth * scale
        wrong[..., 0] = 0
        np.save(path, wrong)
    found = correct(tmp_path, LabelledVideos(manifest), {key: [20, 20] for key in NAMES})
    assert (found == 100).all()


def test_a_joint_that_is_never_seen_has_no_share():
    shares = np.full((5, 15), 60.0)
    shares[:, 3] = np.nan
    assert numbers(shares)["PCK_0.1"] == 60
    assert numbers(np.full((5, 15), np.nan))["PCK_0.5"] is None


def test_from_the_command_line(shared, run_of, tmp_path):
    manifest, _ = shared
    output = tmp_path / "pose.json"
    settings = json.dumps({"kind": "jhmdb", "overlays": True, **KEYS})
    options = ["--settings", settings, "--dataset", str(manifest), "--gpus", "0", "--threads", "1"]
    assert main(["evaluate", "pose", str(run_of("vit")), str(output), *options]) == 0
    record = read_json(output)
    assert record["protocol"] == "jhmdb-test-crw-s8-r6-80px"
    assert record["samples"] == 2
    assert list(record["metrics"]) == [f"PCK_{share}" for share in (0.1, 0.2, 0.3, 0.4, 0.5)]
    values = list(record["metrics"].values())
    assert values == sorted(values)
    for name in NAMES:
        found = np.load(tmp_path / "pose" / "poses" / f"{name}.npy")
        assert found.shape == (2, 15, FRAMES)
        assert (tmp_path / "pose" / "overlays" / f"{name}.mp4").stat().st_size > 0
    rows = list(csv.reader((tmp_path / "pose" / "joints.csv").open()))
    assert rows[0] == ["joint", "PCK@0.1", "PCK@0.2", "PCK@0.3", "PCK@0.4", "PCK@0.5"]
    assert [row[0] for row in rows[1:]] == [str(number) for number in range(1, 16)]
    columns = np.array([row[1:] for row in rows[1:]], float)
    assert columns.mean(0) == pytest.approx(values, abs=1e-3)
    assert all((tmp_path / path).is_file() for path in record["artefacts"])


def test_colours_are_enough_for_joints_that_move(shared, run_of, tmp_path, seen_by):
    manifest, _ = shared
    found = {}
    for kind in (Seeing, Blind):
        encoder = seen_by(kind(2))
        found[kind] = run(manifest, run_of("vit"), tmp_path / kind.__name__).metrics
        assert encoder.sizes == {(SIDE, SIDE)}
    assert found[Seeing]["PCK_0.2"] > found[Blind]["PCK_0.2"] + 20


def test_what_is_done_is_not_done_again(shared, run_of, tmp_path, seen_by):
    manifest, _ = shared
    encoder = seen_by(Seeing(8))
    once = run(manifest, run_of("vit"), tmp_path)
    assert encoder.images == 2 * FRAMES
    assert run(manifest, run_of("vit"), tmp_path).metrics == once.metrics
    assert encoder.images == 2 * FRAMES
    run(manifest, run_of("vit"), tmp_path, crop_size=64)
    assert encoder.images == 4 * FRAMES


@pytest.mark.parametrize("frames", [FRAMES + 2, FRAMES - 2])
def test_joints_of_another_number_of_frames(run_of, tmp_path, frames):
    manifest, joints = a_set(tmp_path)
    name = NAMES[0]
    path = tmp_path / "JHMDB" / "joint_positions" / name / "joint_positions.mat"
    savemat(path, {"pos_img": np.resize(joints[name], (2, 15, frames))})
    video = LabelledVideos(manifest)[name]
    with pytest.raises(
        UserError, match=rf"mat has joints of {frames} frames, but sequence 'walk/A"
    ):
        truth_of(video)
    with pytest.raises(UserError, match=r"1 of 2 videos failed \(walk/April_09_walk_f_nm_np1: .*"):
        run(manifest, run_of("vit"), tmp_path / "out")
    assert (tmp_path / "out" / "poses" / f"{NAMES[1]}.npy").is_file()
    assert not (tmp_path / "out" / "joints.csv").exists()


def test_unreadable_joints(run_of, tmp_path):
    manifest, _ = a_set(tmp_path)
    path = tmp_path / "JHMDB" / "joint_positions" / NAMES[0] / "joint_positions.mat"
    path.write_bytes(b"no mat")
    with pytest.raises(UserError, match=r"joint_positions\.mat cannot be read as a \.mat file"):
        run(manifest, run_of("vit"), tmp_path / "out")
    savemat(path, {"pos_img": np.ones((2, 15, FRAMES))}, do_compression=True)
    content = bytearray(path.read_bytes())
    content[150:160] = bytes(10)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"joint_positions\.mat cannot be read as a \.mat file"):
        run(manifest, run_of("vit"), tmp_path / "out")
    path.unlink()
    with pytest.raises(UserError, match=r"joint_positions\.mat cannot be read as a \.mat file"):
        run(manifest, run_of("vit"), tmp_path / "out")


def test_a_set_of_another_layout(run_of, tmp_path):
    video_sets.davis2017(tmp_path / "DAVIS")
    manifest = tmp_path / "set" / "manifest.json"
    prepare("davis", Davis2017(kind="davis2017", root=str(tmp_path / "DAVIS")), manifest)
    with pytest.raises(
        UserError, match=r"kind 'jhmdb' need a set of kind 'jhmdb', but .* is 'davis"
    ):
        run(manifest, run_of("vit"), tmp_path / "out")
