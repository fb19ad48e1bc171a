"""Clusters of patch features: what they score on colours, how they go on, what they refuse."""

import csv
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from tests.evaluation.coloured_masks import (
    CELLS,
    SIDE,
    VOID,
    MeanColours,
    a_run,
    change,
    class_maps,
    write_set,
)
from tests.miniature import video_sets
from timewalk.artefacts import sha256_file
from timewalk.config import Davis2017, YouTubeVOS
from timewalk.data.generated import save_ids
from timewalk.data.prepare import prepare
from timewalk.data.segmented import open_segmented
from timewalk.errors import UserError
from timewalk.evaluation import clusters
from timewalk.evaluation.base import Inputs
from timewalk.evaluation.clustering import Config, evaluate
from timewalk.evaluation.clusters import protocol

pytest.importorskip("faiss")

CPU = torch.device("cpu")
KEYS = {"dataset": "colours", "image_size": SIDE, "map_size": CELLS}
SCOPES = ("per_frame", "per_clip", "per_dataset")
PERFECT = {"miou": 100.0, "miou_without_background": 100.0, "pixel_accuracy": 100.0}
TABLES = ["scores.csv", "classes.csv", "clusters.csv", "frames.csv"]


@pytest.fixture
def encoder(monkeypatch):
    found = MeanColours()
    monkeypatch.setattr(clusters, "load_encoder", lambda run: found)
    return found


@pytest.fixture
def run(encoder, tmp_path):
    """Return a function that evaluates on a set into a folder below tmp_path."""

    def go(manifest, folder="out", **keys):
        inputs = Inputs(a_run(tmp_path / "run"), manifest, CPU)
        return evaluate(inputs, Config(**(KEYS | keys)), tmp_path / folder)

    return go


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def colours(tmp_path, maps):
    return write_set(tmp_path / "set", class_maps(1, 9), np.asarray(maps, np.uint8))


def davis(tmp_path, **keys):
    video_sets.davis2017(tmp_path / "DAVIS", frames=5, **keys)
    manifest = tmp_path / "videos" / "manifest.json"
    prepare("davis", Davis2017(kind="davis2017", root=str(tmp_path / "DAVIS")), manifest)
    return manifest


@pytest.mark.parametrize("scope", SCOPES)
def test_colours_are_found_perfectly(run, tmp_path, scope):
    result = run(colours(tmp_path, class_maps(3, 1)), scope=scope)
    groups = 1 if scope == "per_dataset" else 3
    assert result.metrics == {**PERFECT, "background_clusters": None, "clusters": 4.0}
    assert result.samples == groups
    assert result.protocol == f"voc2012-val-{scope}-hungarian-kgt-m8-s64-d3"
    assert [path.name for path in result.artefacts] == [*TABLES, "sheet.png"]
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == sorted([*TABLES, "sheet.png"])
    rows = rows_of(out / "classes.csv")
    assert [(r["class"], r["name"], r["groups"], r["iou"], r["fp"]) for r in rows] == [
        (str(number), name, str(groups), "100", "0")
        for number, name in enumerate(("background", "rose", "leaf", "sky"))
    ]
    assert sum(int(row["tp"]) for row in rows) == 3 * CELLS**2
    assert len(rows_of(out / "scores.csv")) == groups
    assert {row["precision"] for row in rows_of(out / "clusters.csv")} == {"100"}
    assert len(rows_of(out / "clusters.csv")) == 4 * groups


def test_the_pixels_that_count_are_those_without_void(run, tmp_path):
    maps = class_maps(2, 1)
    maps[:, 4:] = VOID
    result = run(colours(tmp_path, maps), scope="per_frame")
    assert result.metrics["miou"] == 100
    rows = rows_of(tmp_path / "out" / "frames.csv")
    assert [(row["frame"], row["void_percent"], row["scored"]) for row in rows] == [
        ("test0.png", "50", "true"),
        ("test1.png", "50", "true"),
    ]
    tables = rows_of(tmp_path / "out" / "clusters.csv")
    assert sum(int(row["pixels"]) for row in tables) == 2 * CELLS * 4


def test_a_frame_of_void_does_not_count(run, tmp_path, caplog):
    maps = class_maps(3, 1)
    maps[1] = VOID
    result = run(colours(tmp_path, maps))
    assert result.samples == 2
    assert result.metrics["miou"] == 100
    assert "1 of 3 images or clips have nothing but void and do not count" in caplog.messages
    rows = rows_of(tmp_path / "out" / "frames.csv")
    assert [row["scored"] for row in rows] == ["true", "false", "true"]
    assert [row["name"] for row in rows_of(tmp_path / "out" / "scores.csv")] == [
        "test0",
        "test2",
    ]


def test_nothing_but_void(run, tmp_path, encoder):
    with pytest.raises(UserError, match="'colours' has no pixel that is not void; correct its"):
        run(colours(tmp_path, np.full((2, 8, 8), VOID)))
    assert encoder.images == 0


def test_ids_beyond_the_classes_name_the_file_before_the_work(run, tmp_path, encoder):
    maps = class_maps(2, 1)
    maps[1, 3, 3] = 9
    manifest = colours(tmp_path, maps)
    with pytest.raises(UserError, match=r"test1_mask\.png holds the id 9, which is beyond"):
        run(manifest)
    assert encoder.images == 0


def test_frames_and_masks_that_do_not_pair(run, tmp_path):
    manifest = colours(tmp_path, class_maps(2, 1))
    (manifest.parent / "test1_mask.png").rename(manifest.parent / "away.png")
    with pytest.raises(UserError, match=r"test1_mask\.png"):
        run(manifest)
    (manifest.parent / "away.png").rename(manifest.parent / "test1_mask.png")
    (manifest.parent / "test0.png").unlink()
    with pytest.raises(UserError, match=r"test0\.png"):
        run(manifest)


def test_fewer_clusters_than_classes(run, tmp_path, caplog):
    result = run(colours(tmp_path, class_maps(2, 1)), clusters=2)
    assert result.protocol == "voc2012-val-per_frame-hungarian-k2-m8-s64-d3"
    assert 0 < result.metrics["miou"] <= 50
    ious = [float(row["iou"]) for row in rows_of(tmp_path / "out" / "classes.csv")]
    assert sum(iou == 0 for iou in ious) >= 1
    assert (
        "2 of 2 clusterings have fewer clusters than classes (the first: test0, 2 clusters); "
        "some classes must score 0"
    ) in caplog.messages


def test_an_absent_class_counts_only_where_classes_are_fixed(run, tmp_path):
    manifest = colours(tmp_path, class_maps(2, 1, classes=3))
    assert run(manifest).metrics["miou"] == 100
    result = run(manifest, "fixed", fixed_classes=True)
    assert result.metrics["miou"] == pytest.approx(75)
    assert result.protocol == "voc2012-val-per_frame-hungarian-kgt-m8-s64-fixed-d3"
    rows = rows_of(tmp_path / "fixed" / "classes.csv")
    assert [(row["name"], row["iou"]) for row in rows][-1] == ("sky", "0")


def test_a_frame_of_background_has_no_mean_without_it(run, tmp_path):
    maps = class_maps(2, 1)
    maps[1] = 0
    result = run(colours(tmp_path, maps), fixed_classes=True)
    assert result.metrics["miou"] == pytest.approx((100 + 25) / 2)
    assert result.metrics["miou_without_background"] == 100
    rows = rows_of(tmp_path / "out" / "scores.csv")
    assert [row["miou_without_background"] for row in rows] == ["100", ""]


def test_foreground_only(run, tmp_path):
    result = run(colours(tmp_path, class_maps(2, 1, classes=2)), foreground_only=True)
    assert result.metrics["miou"] == 100
    assert result.metrics["clusters"] == 2
    assert result.protocol.endswith("-s64-fg-d3")
    rows = rows_of(tmp_path / "out" / "classes.csv")
    assert [row["name"] for row in rows] == ["background", "foreground"]


def test_frames_of_one_class_score_1_and_are_told(run, tmp_path, caplog):
    result = run(colours(tmp_path, np.zeros((2, 8, 8))))
    assert result.metrics["miou"] == 100
    assert result.metrics["miou_without_background"] is None
    assert "2 of 2 clusterings have one class and score 1" in caplog.messages


def test_it_goes_on_with_what_is_done(run, tmp_path, encoder, monkeypatch):
    manifest = colours(tmp_path, class_maps(3, 1))
    real, calls = clusters.cluster_maps, []

    def two_only(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(clusters, "cluster_maps", two_only)
    with pytest.raises(KeyboardInterrupt):
        run(manifest)
    result = run(manifest)
    assert (encoder.images, len(calls)) == (3, 4)
    whole = run(manifest, "whole")
    assert len(calls) == 7
    assert result.metrics == whole.metrics
    for name in TABLES:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.fixture
def interrupted(run, monkeypatch):
    """Return a function that evaluates until the last frame's clusters are to be made."""

    def go(manifest, **keys):
        real, calls = clusters.cluster_maps, []

        def all_but_one(*args):
            calls.append(args)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(clusters, "cluster_maps", all_but_one)
            with pytest.raises(KeyboardInterrupt):
                run(manifest, **keys)

    return go


def same(tmp_path, *folders):
    return len({tuple((tmp_path / f / name).read_bytes() for name in TABLES) for f in folders}) == 1


@pytest.mark.parametrize(
    "about", [{"parameters": {"zero_is_void": True}}, {"classes": ["earth", *"abcd"]}]
)
def test_other_classes_start_anew(run, interrupted, tmp_path, about):
    manifest = colours(tmp_path, class_maps(3, 1))
    interrupted(manifest)
    change(manifest, **about)
    result = run(manifest)
    assert result.metrics == run(manifest, "whole").metrics
    assert same(tmp_path, "out", "whole")


def test_tensors_that_are_used_differently_start_anew(run, interrupted, tmp_path, encoder):
    manifest = colours(tmp_path, class_maps(3, 1))
    interrupted(manifest)
    encoder.spec = {"heads": 3}
    encoder.forward = lambda images: MeanColours.forward(encoder, images.flip(-1))
    run(manifest)
    assert encoder.images == 6
    run(manifest, "whole")
    assert same(tmp_path, "out", "whole")


def test_clusters_of_an_image_that_changed_are_made_anew(run, interrupted, tmp_path):
    manifest = colours(tmp_path, class_maps(3, 1))
    interrupted(manifest)
    image = manifest.parent / "test0.png"
    image.write_bytes((manifest.parent / "test1.png").read_bytes())
    assert run(manifest).metrics["miou"] < 90
    run(manifest, "whole")
    assert same(tmp_path, "out", "whole")


def test_clusters_of_a_mask_that_changed_are_made_anew(run, interrupted, tmp_path):
    """Their number is that of the classes in the mask."""
    manifest = colours(tmp_path, class_maps(3, 1))
    interrupted(manifest)
    mask = manifest.parent / "test0_mask.png"
    save_ids(mask, np.minimum(np.asarray(Image.open(mask)), 1))
    run(manifest)
    run(manifest, "whole")
    assert same(tmp_path, "out", "whole")


def test_other_settings_do_not_take_what_is_kept(run, tmp_path, monkeypatch):
    manifest = colours(tmp_path, class_maps(2, 1))
    with monkeypatch.context() as patch:
        patch.setattr(clusters, "contingency", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(manifest)
    result = run(manifest, clusters=2)
    assert {int(row["clusters"]) for row in rows_of(tmp_path / "out" / "scores.csv")} == {2}
    assert result.metrics["miou"] <= 50


@pytest.mark.parametrize("scope", SCOPES)
def test_videos(run, tmp_path, scope, caplog):
    manifest = davis(tmp_path)
    result = run(manifest, scope=scope, map_size=32, frames_per_clip=3, pictures=1)
    assert result.samples == {"per_frame": 6, "per_clip": 2, "per_dataset": 1}[scope]
    assert result.protocol == f"davis2017-val-{scope}-hungarian-kgt-m32-s64-f3-d3"
    assert 0 < result.metrics["miou"] < 100
    assert [path.name for path in result.artefacts] == [*TABLES, "blackswan.gif"]
    with Image.open(tmp_path / "out" / "blackswan.gif") as gif:
        assert gif.n_frames == 3
    frames = [(row["clip"], row["frame"]) for row in rows_of(tmp_path / "out" / "frames.csv")]
    names = [f"{number:05d}.jpg" for number in (0, 2, 4)]
    assert frames == [(clip, name) for clip in ("blackswan", "camel") for name in names]
    told = any("number the objects of one video each" in line for line in caplog.messages)
    assert told == (scope == "per_dataset")


def test_no_pictures(run, tmp_path):
    result = run(davis(tmp_path), map_size=16, pictures=0, frames_per_clip=None)
    assert [path.name for path in result.artefacts] == TABLES
    assert result.protocol == "davis2017-val-per_frame-hungarian-kgt-m16-s64-fall-d3"
    assert result.samples == 10


def test_categories_of_videos_are_classes(run, tmp_path, caplog):
    video_sets.youtube_vos(tmp_path / "vos")
    config = YouTubeVOS(kind="youtube_vos", root=str(tmp_path / "vos"), subset="train")
    manifest = tmp_path / "videos" / "manifest.json"
    prepare("vos", config, manifest)
    run(manifest, scope="per_dataset", map_size=32)
    assert not any("number the objects" in line for line in caplog.messages)
    rows = rows_of(tmp_path / "out" / "classes.csv")
    assert [row["name"] for row in rows] == ["background", "ape", "zebra"]


def test_classes_cannot_be_fixed_where_ids_are_instances(run, tmp_path):
    with pytest.raises(UserError, match="'davis' has no list of classes, so that fixed_classes"):
        run(davis(tmp_path), fixed_classes=True)


def test_a_mask_with_void_in_a_video(run, tmp_path):
    manifest = davis(tmp_path, sequences=("bear",))
    mask = tmp_path / "DAVIS" / "Annotations" / "480p" / "bear" / "00000.png"
    ids = np.array(Image.open(mask))
    ids[:24] = VOID
    save_ids(mask, ids)
    run(manifest, map_size=32)
    rows = rows_of(tmp_path / "out" / "frames.csv")
    assert [row["void_percent"] for row in rows] == ["50", "0", "0", "0"]


@pytest.mark.parametrize(
    ("keys", "size"),
    [
        ({}, 224),
        ({"map_size": None}, 224),
        ({"scope": "per_clip"}, 224),
        ({"scope": "per_dataset"}, 112),
        ({"scope": "per_dataset", "map_size": 100}, 100),
    ],
)
def test_maps_of_a_whole_set_are_smaller(keys, size):
    assert Config(dataset="a", **keys).side == size


def test_protocols_name_what_makes_them_incomparable(run, tmp_path):
    manifest = colours(tmp_path, class_maps(2, 1))
    keys = {"iterations": 9, "redos": 2, "points_per_centroid": 40, "variant": "fast"}
    result = run(manifest, matching="many_to_one_iou", clusters=6, **keys)
    assert result.protocol == ("voc2012-val-per_frame-many_to_one_iou-k6-m8-s64-d3-i9x2-p40-fast")


def test_what_no_figure_shows_is_in_the_name(tmp_path):
    manifest = colours(tmp_path, class_maps(2, 1))
    config = Config(dataset="a", precision="bf16", seed=3)
    found = protocol(open_segmented(manifest), config, 50)
    assert found == "voc2012-val-per_frame-hungarian-kgt-m224-s224-bf16-seed3"
    change(manifest, parameters={"list_file": "some.txt"})
    found = protocol(open_segmented(manifest), Config(dataset="a"), 50)
    assert found == "voc2012-val-list-per_frame-hungarian-kgt-m224-s224"


def test_images_of_one_name_in_two_folders(run, tmp_path):
    manifest = colours(tmp_path, class_maps(2, 1))
    rows = []
    for number in range(2):
        folder = manifest.parent / f"part{number}"
        folder.mkdir()
        for name in ("", "_mask"):
            source = manifest.parent / f"test{number}{name}.png"
            source.rename(folder / f"image{name}.png")
        rows.append(f"part{number}/image.png\tpart{number}/image_mask.png\n")
    listed = manifest.parent / "test.txt"
    listed.write_text("".join(rows))
    about = json.loads(manifest.read_text())
    about["source"]["lists_sha256"]["test"] = sha256_file(listed)
    manifest.write_text(json.dumps(about))
    run(manifest)
    names = [row["name"] for row in rows_of(tmp_path / "out" / "scores.csv")]
    assert names == ["part0/image", "part1/image"]


def test_faiss_is_asked_for_before_the_work(run, tmp_path, encoder, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"^faiss is missing"):
        run(colours(tmp_path, class_maps(2, 1)))
    assert encoder.images == 0


def test_the_keys_are_checked():
    for keys in ({"clusters": 0}, {"matching": "none"}, {"scope": "per_video"}, {"redos": 0}):
        with pytest.raises(ValueError, match=next(iter(keys))):
            Config(dataset="a", **keys)


def test_a_set_without_background(run, tmp_path):
    # Ids from 1 on are the classes from 0 on, 0 is void.
    manifest = colours(tmp_path, class_maps(3, 1))
    change(manifest, parameters={"zero_is_void": True})
    result = run(manifest, scope="per_dataset")
    assert result.metrics["miou"] > 0
    assert result.metrics["miou_without_background"] is None
    rows = rows_of(tmp_path / "out" / "classes.csv")
    assert [row["class"] for row in rows] == ["0", "1", "2"]
    with pytest.raises(UserError, match=r"every pixel of 'colours' has a class .* foreground_only"):
        run(manifest, foreground_only=True)
