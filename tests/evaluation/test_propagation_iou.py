"""Masks carried through videos: IoU of each object, the published variant, faults."""

import csv
import re

import numpy as np
import pytest
import torch
from PIL import Image

from tests.evaluation.coloured_masks import a_run, change, class_maps, write_set
from tests.evaluation.stubs import Blind, Seeing
from tests.miniature import video_sets
from timewalk.config import Davis2017
from timewalk.data.generated import save_ids
from timewalk.data.prepare import prepare
from timewalk.data.segmented import open_segmented
from timewalk.errors import UserError
from timewalk.evaluation import propagation_iou
from timewalk.evaluation.base import Inputs
from timewalk.evaluation.propagation_iou import (
    Config,
    evaluate,
    first_labels,
    object_scores,
    published_score,
    winners,
)

CPU = torch.device("cpu")
VOID = 255
KEYS = {"dataset": "davis", "image_size": 64, "map_size": 64, "frames_per_clip": None}


def a_set(folder, **changes):
    video_sets.davis2017(folder / "DAVIS", size=(64, 64), **changes)
    manifest = folder / "set" / "manifest.json"
    prepare("davis", Davis2017(kind="davis2017", root=str(folder / "DAVIS")), manifest)
    return manifest


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return a_set(tmp_path_factory.mktemp("davis"), frames=6)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a function that evaluates an encoder into a folder below tmp_path."""

    def go(manifest, folder="out", encoder=None, source=None, **keys):
        seeing = encoder or Seeing(stride=2)
        monkeypatch.setattr(propagation_iou, "load_encoder", lambda run: seeing)
        inputs = Inputs(source or a_run(tmp_path / "run"), manifest, CPU)
        return evaluate(inputs, Config(**(KEYS | keys)), tmp_path / folder)

    return go


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_defaults_are_the_published_ones(shared):
    config = Config(dataset="x")
    assert (config.context, config.window, config.top_k, config.temperature) == (4, 12, 5, 0.1)
    assert (config.image_size, config.frames_per_clip) == (224, 25)
    scored = open_segmented(shared)
    name = "propagation_iou-davis2017-val-224px-m224-f25"
    assert propagation_iou.protocol(config, scored) == name
    other = Config(
        **{"dataset": "x", "compat": "published", "foreground_only": True, "window": 6},
        **{"frames_per_clip": None, "upsample": "nearest", "temperature": 0.05},
        **{"precision": "bf16"},
    )
    name = "propagation_iou-published-davis2017-val-224px-m224-fall-fg-bf16-r6-t0.05-nearest"
    assert propagation_iou.protocol(other, scored) == name


def test_seeing_follows_and_blind_does_not(run, shared, tmp_path):
    seeing, blind = run(shared, "a"), run(shared, "b", Blind(stride=2))
    assert seeing.samples == 2
    assert seeing.metrics["objects"] == 4
    assert seeing.metrics["miou"] > 80
    assert blind.metrics["miou"] < seeing.metrics["miou"] - 10
    names = ["videos.csv", "objects.csv", "blackswan.gif", "camel.gif"]
    assert [path.name for path in seeing.artefacts] == names
    assert all(path.is_file() for path in seeing.artefacts)
    videos, objects = rows_of(tmp_path / "a" / "videos.csv"), rows_of(tmp_path / "a/objects.csv")
    assert [(row["video"], row["frames"], row["objects"]) for row in videos] == [
        ("blackswan", "6", "2"),
        ("camel", "6", "2"),
    ]
    assert [row["object"] for row in objects] == ["1", "2", "1", "2"]
    means = [np.mean([float(row["iou"]) for row in objects[i : i + 2]]) for i in (0, 2)]
    assert [float(row["iou"]) for row in videos] == pytest.approx(means, rel=1e-5)
    assert seeing.metrics["miou"] == pytest.approx(np.mean(means), rel=1e-5)
    with Image.open(tmp_path / "a" / "gifs" / "camel.gif") as picture:
        assert picture.n_frames == 6


def test_a_video_that_stands_still_is_perfect(run, tmp_path):
    """Cells are pixels: each finds itself in the first frame, whatever else is alike."""
    video_sets.davis2017(tmp_path / "DAVIS", ("camel",), frames=1, size=(32, 32))
    frames, masks = (
        tmp_path / "DAVIS" / kind / "480p" / "camel" for kind in ("JPEGImages", "Annotations")
    )
    for number in range(1, 4):
        (frames / f"{number:05d}.jpg").write_bytes((frames / "00000.jpg").read_bytes())
        (masks / f"{number:05d}.png").write_bytes((masks / "00000.png").read_bytes())
    manifest = tmp_path / "set" / "manifest.json"
    prepare("davis", Davis2017(kind="davis2017", root=str(tmp_path / "DAVIS")), manifest)
    keys = {"image_size": 32, "map_size": 32, "temperature": 0.001, "top_k": 1}
    for compat in ("intended", "published"):
        found = run(manifest, compat, Seeing(stride=1), compat=compat, **keys)
        assert found.metrics["miou"] == pytest.approx(100)


def test_object_scores_by_hand():
    first = np.array([[1, 1, 2, 0]])
    truth = [first, np.array([[1, 1, 2, 0]]), np.array([[0, 1, VOID, 0]])]
    maps = [first, np.array([[1, 0, 2, 2]]), np.array([[0, 1, 2, 0]])]
    # Object 1: 1/2, then 1. Object 2: 1/2, then neither there nor predicted outside void: 1.
    assert object_scores(truth, maps) == {"1": 0.75, "2": 0.75}


def test_published_score_by_hand():
    """The prediction for frame 2 against the mask of frame 1; ids are matched anew."""
    first = np.array([[1, 1, 0, 0]])
    truth = [first, np.array([[1, 1, 0, 0]]), np.array([[1, 1, 1, 1]])]
    maps = [first, np.array([[0, 0, 0, 0]]), np.array([[0, 1, 1, 1]])]
    # Truth 1100 against 0111: object with id 0 1/2, with id 1 1/4; background 0 and 2/3. The sum
    # of IoUs is largest for the identity: 1/4 + 0 < 1/2 + 2/3, so 0 becomes the object.
    assert published_score(truth, maps) == pytest.approx(1 / 2)
    truth[1] = np.full((1, 4), VOID)
    with pytest.raises(UserError, match=r"every mask after the first is void; leave the video out"):
        published_score(truth, maps)


def test_published_variant(run, shared, tmp_path):
    result = run(shared, compat="published", foreground_only=True)
    assert result.protocol == "propagation_iou-published-davis2017-val-64px-m64-fall-fg"
    assert set(result.metrics) == {"miou"}
    assert 40 < result.metrics["miou"] < run(shared, "own", foreground_only=True).metrics["miou"]
    assert [path.name for path in result.artefacts][:1] == ["videos.csv"]
    assert not (tmp_path / "out" / "objects.csv").exists()


def test_foreground_merges_objects(run, shared):
    metrics = run(shared, foreground_only=True).metrics
    assert metrics["objects"] == 2
    assert metrics["miou"] == metrics["miou_objects"]


def test_first_labels():
    first = np.zeros((8, 8), np.uint8)
    first[0, 0], first[2:4, 2:4] = 7, 9
    own = first_labels(first, [0, 7, 9], (2, 2), Config(dataset="x"))
    published = first_labels(first, [0, 7, 9], (2, 2), Config(dataset="x", compat="published"))
    assert own.argmax(0).tolist() == [[2, 0], [0, 0]]  # the pixel (2, 2)
    assert published.argmax(0).tolist() == [[1, 0], [0, 0]]  # the pixel (0, 0)


def test_upsampling():
    soft = torch.tensor([[[0.9, 0.2]], [[0.1, 0.8]]])
    keys = {"dataset": "x", "map_size": 8}
    near = winners(soft, Config(**keys, upsample="nearest"))
    assert near.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]] * 8
    # Bilinear: 0.9 - 0.7 t > 0.5 at t = 1/8 and 3/8, the fifth pixel's t = 5/8 is beyond.
    smooth = winners(soft, Config(**keys))
    assert smooth.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]] * 8
    soft = torch.tensor([[[0.9, 0.4]], [[0.1, 0.6]]])  # equal at t = 0.8
    assert winners(soft, Config(**keys)).tolist() == [[0, 0, 0, 0, 0, 1, 1, 1]] * 8


def test_going_on(run, shared, tmp_path):
    encoder = Seeing(stride=2)
    first = run(shared, encoder=encoder, pictures=1).metrics
    assert encoder.images == 12
    assert run(shared, encoder=encoder, pictures=1).metrics == first
    assert encoder.images == 12  # nothing is done again
    (tmp_path / "out" / "gifs" / "blackswan.gif").unlink()
    assert run(shared, encoder=encoder, pictures=1).metrics == first
    assert encoder.images == 18  # but for the lost picture
    assert not (tmp_path / "out" / "gifs" / "camel.gif").exists()
    run(shared, encoder=encoder, pictures=1, top_k=3)
    assert encoder.images == 30


def test_the_same_tensors_used_in_another_way(run, shared, tmp_path):
    encoder = Seeing(stride=2)
    run(shared, encoder=encoder)
    run(shared, encoder=encoder, source=a_run(tmp_path / "other", architecture={"heads": 6}))
    assert encoder.images == 24


def test_other_classes_begin_anew(run, tmp_path):
    manifest, encoder = a_set(tmp_path, frames=4), Seeing(stride=2)
    run(manifest, encoder=encoder)
    change(manifest, classes=["background", "swan", "camel"])
    run(manifest, encoder=encoder)
    assert encoder.images == 2 * 8


def test_a_failed_video_leaves_the_others(run, tmp_path):
    manifest = a_set(tmp_path, frames=4)
    broken = tmp_path / "DAVIS" / "Annotations" / "480p" / "blackswan" / "00002.png"
    kept = broken.read_bytes()
    broken.write_bytes(b"half")
    encoder = Seeing(stride=2)
    with pytest.raises(UserError, match=r"1 of 2 videos failed \(blackswan: .*00002.png cannot be"):
        run(manifest, encoder=encoder)
    assert encoder.images == 4
    broken.write_bytes(kept)
    assert run(manifest, encoder=encoder).samples == 2
    assert encoder.images == 8


def test_videos_without_an_object_at_first_are_left_out(run, tmp_path, caplog):
    manifest = a_set(tmp_path, frames=4)
    annotations = tmp_path / "DAVIS" / "Annotations" / "480p"
    save_ids(annotations / "blackswan" / "00000.png", np.full((64, 64), VOID, np.uint8))
    result = run(manifest, pictures=1)
    assert (result.samples, result.metrics["objects"]) == (1, 2)
    assert [path.name for path in result.artefacts][-1] == "camel.gif"
    assert re.search(r"blackswan is left out: no object in .*00000\.png", caplog.text)
    save_ids(annotations / "camel" / "00000.png", np.zeros((64, 64), np.uint8))
    with pytest.raises(UserError, match=r"no video of 'davis' has 2 .* frames and an object in th"):
        run(manifest)


def test_videos_of_one_frame_are_left_out(run, tmp_path, caplog):
    manifest = a_set(tmp_path, frames=4)
    for number in range(1, 4):
        for kind, suffix in (("JPEGImages", "jpg"), ("Annotations", "png")):
            path = tmp_path / "DAVIS" / kind / "480p" / "blackswan" / f"{number:05d}.{suffix}"
            path.unlink()
    prepare("davis", Davis2017(kind="davis2017", root=str(tmp_path / "DAVIS")), manifest)
    assert run(manifest).samples == 1
    assert "blackswan is left out: 1 annotated frames of 2" in caplog.text


def test_void_in_the_first_mask_is_background(run, tmp_path):
    manifest = a_set(tmp_path, frames=3)
    path = tmp_path / "DAVIS" / "Annotations" / "480p" / "camel" / "00000.png"
    with Image.open(path) as picture:
        ids = np.array(picture)
    ids[ids == 2] = VOID
    save_ids(path, ids)
    assert run(manifest).metrics["objects"] == 3


def test_bad_input(run, shared, tmp_path):
    maps = class_maps(2, 0)
    stills = write_set(tmp_path / "stills", maps, maps)
    with pytest.raises(UserError, match=r"'colours' holds still images, but .* need videos; name"):
        run(stills)
    with pytest.raises(UserError, match=r"image_size is 63 but .* multiples of 4 .* set it to 60"):
        run(shared, encoder=Seeing(multiple=4), image_size=63)
    with pytest.raises(UserError, match=r"no video of 'davis' has 3 .*raise frames_per_clip if it"):
        run(shared, compat="published", frames_per_clip=2)

    class Broken(Seeing):
        def see(self, pooled):
            return pooled * torch.nan

    with pytest.raises(UserError, match=r"not finite for the frames of 'blackswan'; train it agai"):
        run(shared, encoder=Broken())


def test_real_encoders(run_of, shared, tmp_path):
    result = evaluate(Inputs(run_of("vit"), shared, CPU), Config(**KEYS), tmp_path / "out")
    assert result.metrics["objects"] == 4
    assert 0 < result.metrics["miou"] < 100
