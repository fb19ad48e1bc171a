"""VIP by label propagation: masks, one confusion matrix over all frames, files."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.evaluation.stubs import Blind, Seeing
from tests.miniature import video_sets
from timewalk.artefacts import read_json
from timewalk.cli import main
from timewalk.config import JHMDB, VIP
from timewalk.data.prepare import prepare
from timewalk.data.sequences import LabelledVideos
from timewalk.errors import UserError
from timewalk.evaluation.base import Inputs
from timewalk.evaluation.parts import CLASSES, Config, confused, evaluate, percent
from timewalk.metrics.segmentation import confusion, scores

SIZE, FRAMES, SIDE = (56, 72), 5, 64
NAMES = ("videos10", "videos12")
CPU = torch.device("cpu")
KEYS = {"dataset": "vip", "crop_size": SIDE, "radius": 6}


def a_set(folder):
    video_sets.vip(folder / "VIP", NAMES, frames=FRAMES, size=SIZE)
    manifest = folder / "set" / "manifest.json"
    prepare("vip", VIP(kind="vip", root=str(folder / "VIP")), manifest)
    return manifest


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return a_set(tmp_path_factory.mktemp("vip"))


def run(manifest, folder, output, **keys):
    return evaluate(Inputs(folder, manifest, CPU), Config(**{**KEYS, **keys}), output)


def ids_of(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def annotations(video):
    return [ids_of(path) for path in video.masks]


def test_classes():
    assert len(CLASSES) == len(set(CLASSES)) == 20
    assert CLASSES[0] == "background"
    assert CLASSES[16:] == ("right-leg", "left-leg", "right-shoe", "left-shoe")


def test_from_the_command_line(shared, run_of, tmp_path):
    output = tmp_path / "parts.json"
    settings = json.dumps({"kind": "vip", "overlays": True, **KEYS})
    options = ["--settings", settings, "--dataset", str(shared), "--gpus", "0", "--threads", "1"]
    assert main(["evaluate", "parts", str(run_of("vit")), str(output), *options]) == 0
    record = read_json(output)
    assert record["protocol"] == "vip-val-crw-s8-r6-64px"
    assert record["samples"] == 2
    total = np.zeros((20, 20), np.int64)
    for video in LabelledVideos(shared):
        for frame, truth in zip(video.frames, annotations(video), strict=True):
            found = ids_of(tmp_path / "parts" / "masks" / video.name / f"{frame.stem}.png")
            assert found.shape == SIZE
            total += confusion(truth, found, 20)
        assert (tmp_path / "parts" / "overlays" / f"{video.name}.mp4").stat().st_size > 0
    expected = scores(total)
    # All frames count, the first too.
    assert total.sum() == 2 * FRAMES * SIZE[0] * SIZE[1]
    assert record["metrics"] == percent(expected)
    assert record["metrics"]["mIoU"] == pytest.approx(100 * expected.mean_iou)
    rows = list(csv.reader((tmp_path / "parts" / "classes.csv").open()))
    assert rows[0] == ["class", "IoU"]
    assert [row[0] for row in rows[1:]] == list(CLASSES)
    # Classes that occur nowhere have an empty cell.
    assert [row[1] != "" for row in rows[1:]] == (~np.isnan(expected.iou)).tolist()
    assert float(rows[1][1]) == pytest.approx(100 * expected.iou[0], abs=1e-3)
    assert all((tmp_path / path).is_file() for path in record["artefacts"])


def test_true_masks_score_100(shared):
    total = sum(confused(video, annotations(video)) for video in LabelledVideos(shared))
    assert percent(scores(total)) == pytest.approx(
        {"mIoU": 100, "overall_accuracy": 100, "mean_accuracy": 100, "weighted_IoU": 100}
    )


def test_colours_are_enough_for_shapes_that_move(shared, run_of, tmp_path, seen_by):
    found = {}
    for kind in (Seeing, Blind):
        encoder = seen_by(kind(2))
        found[kind] = run(shared, run_of("vit"), tmp_path / kind.__name__).metrics["mIoU"]
        assert encoder.sizes == {(SIDE, SIDE)}
    assert found[Seeing] > 80
    assert found[Blind] < found[Seeing] - 20


def test_annotated_frames_alone_are_counted(shared):
    video = LabelledVideos(shared)["videos10"]
    masks = annotations(video)
    sparse = replace(video, masks=(video.masks[0], None, video.masks[2], None, None))
    assert confused(sparse, masks).sum() == 2 * SIZE[0] * SIZE[1]


def test_what_is_done_is_not_done_again(shared, run_of, tmp_path, seen_by):
    encoder = seen_by(Seeing(8))
    once = run(shared, run_of("vit"), tmp_path)
    assert encoder.images == 2 * FRAMES
    assert run(shared, run_of("vit"), tmp_path).metrics == once.metrics
    assert encoder.images == 2 * FRAMES
    run(shared, run_of("vit"), tmp_path, crop_size=48)
    assert encoder.images == 4 * FRAMES


def test_parts_that_vip_does_not_know(run_of, tmp_path):
    manifest = a_set(tmp_path)
    path = LabelledVideos(manifest)["videos12"].masks[0]
    ids = ids_of(path).copy()
    ids[:30, :30] = 20
    Image.fromarray(ids).save(path)
    with pytest.raises(
        UserError, match=r"\(videos12: .*\.png has the id 20, but VIP has ids 0 to 19"
    ):
        run(manifest, run_of("vit"), tmp_path / "out")
    assert len(list((tmp_path / "out" / "masks" / "videos10").glob("*.png"))) == FRAMES


def test_a_later_mask_with_unknown_ids_is_ignored_there(run_of, tmp_path):
    manifest = a_set(tmp_path)
    video = LabelledVideos(manifest)["videos12"]
    masks = annotations(video)
    ids = masks[2].copy()
    ids[:10] = 255
    Image.fromarray(ids).save(video.masks[2])
    assert confused(video, masks).sum() == (FRAMES * SIZE[0] - 10) * SIZE[1]


def test_a_mask_in_colours(run_of, tmp_path):
    manifest = a_set(tmp_path)
    path = LabelledVideos(manifest)["videos12"].masks[3]
    Image.new("RGB", SIZE[::-1]).save(path)
    with pytest.raises(UserError, match=r"videos12/.*\.png holds colours \(mode RGB\), not ids"):
        run(manifest, run_of("vit"), tmp_path / "out")


def test_a_set_of_another_layout(run_of, tmp_path):
    video_sets.jhmdb(tmp_path / "JHMDB")
    manifest = tmp_path / "set" / "manifest.json"
    prepare("jhmdb", JHMDB(kind="jhmdb", root=str(tmp_path / "JHMDB")), manifest)
    with pytest.raises(UserError, match=r"kind 'vip' need a set of kind 'vip', but .* is 'jhmdb'"):
        run(manifest, run_of("vit"), tmp_path / "out")
