"""Foreground by clusters: what it finds, how it goes on, what it refuses."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from tests.evaluation.coloured_masks import (
    CELL,
    CELLS,
    CLASSES,
    SIDE,
    VOID,
    MeanColours,
    a_run,
    change,
    write_set,
)
from tests.miniature import video_sets
from timewalk.config import Davis2017
from timewalk.data.prepare import prepare
from timewalk.data.segmented import open_segmented
from timewalk.encoders import Features, load_encoder
from timewalk.errors import UserError
from timewalk.evaluation import foreground, foreground_stages
from timewalk.evaluation.base import Inputs
from timewalk.evaluation.feature_maps import cluster_maps
from timewalk.evaluation.foreground import Config, evaluate, protocol
from timewalk.evaluation.foreground_stages import attention_of, counts, enlarged, patch_clusters
from timewalk.evaluation.mask_pictures import id_colours
from timewalk.ops.foreground_mask import attention_masks

CPU = torch.device("cpu")
KEYS = {
    **{"dataset": "colours", "image_size": SIDE, "map_size": CELLS, "clusters": 12},
    **{"keep": 0.95, "cuts": (0.2, 0.8), "redos": 2},
}


class Looking(MeanColours):
    """Sees colours, a little different in every cell; looks at what is not black."""

    def __init__(self):
        super().__init__()
        noise = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0))
        self.noise = 0.1 * noise

    def forward(self, images):
        found = super().forward(images)
        height, width = found.patches.shape[2:]
        return Features(found.summary, found.patches + self.noise[:, :height, :width])

    def cls_attention(self, images):
        cells = MeanColours.forward(self, images).patches
        seen = (cells.amax(dim=1, keepdim=True) > 0).float() + 1e-3
        return torch.cat([seen, seen], dim=1) / seen.sum(dim=(2, 3), keepdim=True)


class Elsewhere(Looking):
    """Looks at what is black."""

    def cls_attention(self, images):
        return 1 - super().cls_attention(images)


def object_maps(count, seed, classes=4):
    """Return maps of the cells' classes, uint8 (count, 8, 8): two blocks of classes that differ."""
    rng = np.random.default_rng(seed)
    maps = np.zeros((count, CELLS, CELLS), np.uint8)
    for number, cells in enumerate(maps):
        first = 1 + number % (classes - 1)
        second = 1 + (number + 1) % (classes - 1)
        top, left = rng.integers(0, 3, 2)
        cells[top : top + 3, left : left + 3] = first
        cells[5:8, 4:8] = second
    return maps


@pytest.fixture
def encoder(monkeypatch):
    found = Looking()
    monkeypatch.setattr(foreground, "load_encoder", lambda run: found)
    return found


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("set") / "a", object_maps(9, 0), object_maps(5, 1))


@pytest.fixture
def run(encoder, tmp_path):
    """Return a function that evaluates on a set into a folder below tmp_path."""

    def evaluated(manifest, folder="out", train=None, **keys):
        inputs = Inputs(a_run(tmp_path / "run"), manifest, CPU, train_dataset=train)
        return evaluate(inputs, Config(**{**KEYS, **keys}), tmp_path / folder)

    return evaluated


def table(result, name):
    path = next(path for path in result.artefacts if path.name == name)
    return list(csv.DictReader(path.open()))


def test_objects_are_found_and_told_apart(run, shared, tmp_path):
    result = run(shared)
    assert result.protocol == (
        "foreground-voc2012-val-from_train-64px-m8-k12-keep0.95-cuts0.2_0.8-d3-i50x2"
    )
    assert result.samples == 5
    assert result.metrics["jaccard"] == pytest.approx(100)
    assert result.metrics["jaccard_other_boundary"] == result.metrics["jaccard"]
    assert result.metrics["miou"] == pytest.approx(100)
    assert result.metrics["miou_without_background"] == pytest.approx(100)
    assert 0 < result.metrics["threshold"] < 1
    assert not (tmp_path / "out" / "work").exists()
    names = ["images.csv", "clusters.csv", "cuts.csv", "classes.csv", "sheet.png"]
    assert [path.name for path in result.artefacts] == names
    again = run(shared, folder="again")
    for one, two in zip(result.artefacts, again.artefacts, strict=True):
        assert one.read_bytes() == two.read_bytes()
    assert again.metrics == result.metrics


def test_tables_agree_with_the_figures(run, shared):
    result = run(shared, boundary_f=True, boundary_distance=2)
    images = table(result, "images.csv")
    assert [row["image"] for row in images] == [f"test{number}" for number in range(5)]
    for name in ("jaccard", "jaccard_other_boundary", "foreground_percent", "boundary_f"):
        mean = np.mean([float(row[name]) for row in images])
        assert result.metrics[name] == pytest.approx(mean, rel=1e-4)
    share = 100 * (object_maps(5, 1) > 0).mean(axis=(1, 2))
    found = [float(row["foreground_percent"]) for row in images]
    np.testing.assert_allclose(found, share, rtol=1e-4)
    clusters = table(result, "clusters.csv")
    assert [(row["set"], int(row["cluster"])) for row in clusters] == [
        *(("train", number) for number in range(12)),
        *(("test", number) for number in range(12)),
    ]
    for row in clusters:
        above = float(row["precision"]) >= result.metrics["threshold"]
        assert bool(int(row["foreground"])) == above
    chosen = [row for row in clusters if row["set"] == "test" and row["foreground"] == "1"]
    assert len(chosen) == result.metrics["clusters_foreground"]
    assert sum(int(row["pixels"]) for row in clusters if row["set"] == "test") == 5 * CELLS**2
    cuts = table(result, "cuts.csv")
    assert [int(row["clusters_background"]) for row in cuts] == list(range(2, 9))
    classes = table(result, "classes.csv")
    assert [row["name"] for row in classes] == list(CLASSES)


def test_outlines_are_scored_on_request_only(run, shared):
    assert "boundary_f" not in run(shared, pictures=0).metrics
    found = run(shared, folder="near", boundary_f=True, boundary_distance=1.5, pictures=0)
    # The outline of the background is beside that of the foreground, not on it.
    assert 50 < found.metrics["boundary_f"] <= 100


def test_a_boundary_counts_as_foreground_or_not(run, tmp_path):
    maps = object_maps(6, 2)
    maps[:, :2, 7] = VOID  # black in the pictures: not found
    manifest = write_set(tmp_path / "set", object_maps(9, 0), maps)
    with_boundary = run(manifest)
    without = run(manifest, folder="other", boundary="background")
    expected = with_boundary.protocol.replace("-d3", "-boundary_background-d3")
    assert without.protocol == expected
    assert without.metrics["jaccard"] == pytest.approx(100)
    expected = 100 * np.mean([(m % VOID > 0).sum() / (m > 0).sum() for m in maps])
    assert with_boundary.metrics["jaccard"] == pytest.approx(expected)
    for one, two in ((with_boundary, without), (without, with_boundary)):
        assert one.metrics["jaccard_other_boundary"] == two.metrics["jaccard"]
    # Void pixels belong to no class.
    assert with_boundary.metrics["miou"] == pytest.approx(100)


def test_patches_have_the_clusters_of_their_pixels():
    maps = np.random.default_rng(0).standard_normal((6, 3, 7, 5)).astype(np.float32)
    for most in (256, 20):  # all pixels train, or a part of them
        keys = {**KEYS, "clusters": 10, "map_size": 12, "points_per_centroid": most}
        config = Config(**keys)
        ids = patch_clusters(maps, config)
        assert ids.shape == (6, 7, 5)
        pixels = cluster_maps(maps, 10, 12, config.kmeans(), "nearest")
        assert np.array_equal(np.stack([enlarged(one, 12) for one in ids]), pixels)


@pytest.mark.parametrize("size", [5, 8, 20, 100])
def test_enlarging_is_torchs(size):
    patches = np.random.default_rng(1).integers(0, 300, (14, 28)).astype(np.uint16)
    tensor = torch.from_numpy(patches.astype(np.float32))[None, None]
    expected = torch.nn.functional.interpolate(tensor, (size, size), mode="nearest")
    assert np.array_equal(enlarged(patches, size), expected[0, 0].numpy())


def test_counts():
    ids = np.array([[[0, 1], [2, 2]]], np.uint16)
    attended = np.array([[[True, False], [True, False]]])
    truth = np.zeros((1, 4, 4), np.uint8)
    truth[0, 0] = (7, VOID, VOID, 1)
    found = counts(ids, attended, truth, 4)
    assert found.pixels.tolist() == [[4, 4, 8, 0]]
    assert found.attended.tolist() == [[4, 0, 4, 0]]
    assert found.foreground.tolist() == [[2, 2, 0, 0]]
    assert found.inner.tolist() == [[1, 1, 0, 0]]


def test_masks_are_those_of_the_heads_mean(encoder, shared):
    paths = [shared.parent / f"test{number}.png" for number in range(5)]
    found = attention_of(encoder, paths, Inputs(shared, shared, CPU), Config(**KEYS))
    assert found.shape == (5, CELLS, CELLS)
    attention = torch.from_numpy((object_maps(5, 1) > 0) + 1e-3).float()
    attention /= attention.sum(dim=(1, 2), keepdim=True)
    assert (found == attention_masks(attention, 0.95).numpy()).mean() > 0.95


def test_it_goes_on_where_it_was_stopped(run, encoder, shared, tmp_path, monkeypatch, caplog):
    whole = run(shared, folder="whole")
    seen = encoder.images
    encoder.images = 0

    def stop(*arguments, **keys):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(foreground_stages, "cluster_maps", stop)
        with pytest.raises(KeyboardInterrupt):
            run(shared)
    assert encoder.images == seen
    result = run(shared)
    assert encoder.images == seen
    assert result.metrics == whole.metrics
    # The work of other settings is not taken up.
    with monkeypatch.context() as patch:
        patch.setattr(foreground_stages, "cluster_maps", stop)
        with pytest.raises(KeyboardInterrupt):
            run(shared)
    encoder.images = 0
    run(shared, keep=0.9)
    assert encoder.images == seen
    assert "belongs to other settings" in caplog.text


@pytest.fixture
def interrupted(run, monkeypatch):
    """Return a function that evaluates until the classes' clusters are made."""

    def go(manifest, **keys):
        def stop(*_, **__):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(foreground_stages, "matched_scores", stop)
            with pytest.raises(KeyboardInterrupt):
                run(manifest, **keys)

    return go


def as_afresh(run, manifest, **keys):
    """Return what an evaluation gives that goes on, once it is sure to be that of a fresh one."""
    found, fresh = run(manifest, **keys), run(manifest, "fresh", **keys)
    assert found.metrics == fresh.metrics
    for one, two in zip(found.artefacts, fresh.artefacts, strict=True):
        assert one.read_bytes() == two.read_bytes()
    return found


def a_set(tmp_path, name="colours"):
    return write_set(tmp_path / name, object_maps(9, 0), object_maps(5, 1), name=name)


def test_other_classes_start_anew(run, interrupted, tmp_path):
    manifest = a_set(tmp_path)
    interrupted(manifest)
    change(manifest, classes=[*CLASSES, "sea"])
    found = as_afresh(run, manifest)
    assert len(table(found, "classes.csv")) == 5


def test_other_classes_of_the_training_set_start_anew(run, interrupted, tmp_path, caplog):
    manifest, train = a_set(tmp_path), a_set(tmp_path, "learnt")
    keys = {"train": train, "train_dataset": "learnt"}
    interrupted(manifest, **keys)
    change(train, classes=[*CLASSES, "sea"])
    as_afresh(run, manifest, **keys)
    assert "belongs to other settings, another encoder or other images" in caplog.text


def test_tensors_that_are_used_differently_start_anew(run, interrupted, encoder, tmp_path):
    manifest = a_set(tmp_path)
    interrupted(manifest)
    seen, encoder.images = encoder.images, 0
    inputs = Inputs(a_run(tmp_path / "run", architecture={"heads": 3}), manifest, CPU)
    evaluate(inputs, Config(**KEYS), tmp_path / "out")
    assert encoder.images == seen


def test_clusters_of_an_image_that_changed_are_made_anew(run, interrupted, tmp_path):
    manifest = a_set(tmp_path)
    interrupted(manifest)
    for one, two in (("test0", "test1"), ("train0", "train1")):
        (manifest.parent / f"{one}.png").write_bytes((manifest.parent / f"{two}.png").read_bytes())
    assert as_afresh(run, manifest).metrics["jaccard"] < 99


def test_only_the_foreground_of_what_is_learnt_from_counts(run, tmp_path):
    """Videos without classes are scored, and learnt from what has others."""
    manifest = a_video_set(tmp_path, "test")
    train = a_set(tmp_path, "learnt")
    keys = {"train": train, "train_dataset": "learnt", "frames_per_clip": 2, "keep": 0.6}
    result = run(manifest, **keys)
    assert result.protocol.startswith("foreground-davis2017-val-from_voc2012-train-64px-m8-f2-k12")
    assert result.samples == 4
    classes = run(a_set(tmp_path), "classes", train=a_video_set(tmp_path, "video"))
    assert len(table(classes, "classes.csv")) == len(CLASSES)


def test_what_is_learnt_from_has_a_background(run, tmp_path):
    train = a_set(tmp_path, "learnt")
    change(train, parameters={"zero_is_void": True})
    with pytest.raises(UserError, match=r"every pixel of 'learnt' has a class and none is backgr"):
        run(a_set(tmp_path), train=train)


def test_the_sheet_shows_input_truth_foreground_and_classes(run, shared):
    result = run(shared, pictures=3)
    with Image.open(result.artefacts[-1]) as picture:
        pixels = np.asarray(picture)
    side, step = 224, 228
    assert pixels.shape[1] == 4 * side + 3 * 4
    assert pixels.shape[0] > 3 * step
    factor = side // CELLS
    cells = [
        pixels[14:side:factor, left + 14 : left + side : factor]
        for left in range(0, 4 * step, step)
    ]
    truth = object_maps(5, 1)[0]
    assert np.array_equal(cells[1], id_colours(4)[truth])
    assert np.array_equal((cells[2] > 0).all(axis=-1), truth > 0)
    assert np.array_equal(cells[3], cells[1])


def a_video_set(folder, name, **keys):
    video_sets.davis2017(folder / name, **keys)
    manifest = folder / f"{name}.json.d" / "manifest.json"
    prepare(name, Davis2017(kind="davis2017", root=str(folder / name)), manifest)
    return manifest


def test_videos_without_classes_have_a_foreground_only(run, tmp_path, caplog):
    caplog.set_level("INFO")
    train = a_video_set(tmp_path, "train", seed=5)
    manifest = a_video_set(tmp_path, "test")
    result = run(
        *(manifest, "out", train),
        **{"dataset": "test", "train_dataset": "train", "keep": 0.6, "frames_per_clip": 3},
    )
    assert result.protocol.startswith("foreground-davis2017-val-from_train-64px-m8-f3-k12-")
    assert result.samples == 6
    second = ("miou", "miou_without_background", "miou_fixed", "pixel_accuracy")
    assert [result.metrics[name] for name in second] == [None] * 4
    assert 0 <= result.metrics["jaccard"] <= 100
    assert "the ids of 'test' are no classes: foreground only" in caplog.text
    images = table(result, "images.csv")
    assert [row["image"] for row in images[:3]] == [f"blackswan/0000{i}" for i in (0, 2, 4)]
    assert [path.name for path in result.artefacts[-2:]] == ["blackswan.gif", "camel.gif"]
    with Image.open(result.artefacts[-1]) as gif:
        assert gif.n_frames == 3
        assert gif.size == (3 * 224 + 2 * 4, 224)


def test_a_foreground_of_one_class_is_segmented_into_two(run, shared):
    result = run(shared, foreground_only=True)
    assert "-fg-" in result.protocol
    assert [row["name"] for row in table(result, "classes.csv")] == ["background", "foreground"]
    assert result.metrics["miou"] is not None


def test_a_protocol_names_what_is_not_as_published(shared):
    scored, train = open_segmented(shared), open_segmented(shared, "train")
    usual = "foreground-voc2012-val-from_train-448px-m100"
    assert protocol(Config(dataset="x"), scored, train, 50) == f"{usual}-k300"
    keys = {"segmentation_clusters": 27, "variant": "fast", "dimensions": 40, "pictures": 1}
    keys |= {"precision": "bf16", "seed": 5}
    found = protocol(Config(dataset="x", **keys), scored, train, 20)
    assert found == f"{usual}-bf16-k300-c27-d20-fast-seed5"
    # The distance has a meaning where outlines are scored.
    for scores, name in ((True, f"{usual}-k300-bf2.5"), (False, f"{usual}-k300")):
        config = Config(dataset="x", boundary_f=scores, boundary_distance=2.5)
        assert protocol(config, scored, train, 50) == name


def test_a_vit(run_of, shared, tmp_path):
    keys = {**KEYS, "image_size": 32, "dimensions": 10, "keep": 0.9, "clusters": 6}
    inputs = Inputs(run_of("vit"), shared, CPU)
    result = evaluate(inputs, Config(**keys), tmp_path / "out")
    assert 0 <= result.metrics["jaccard"] <= 100
    assert 0 < result.metrics["miou"] <= 100
    assert load_encoder(run_of("vit")).spec["family"] == "vit"


def test_a_network_without_attention(run_of, shared, tmp_path):
    inputs = Inputs(run_of("resnet"), shared, CPU)
    with pytest.raises(UserError, match=r"has no attention of a class token, .* runs of a ViT"):
        evaluate(inputs, Config(**KEYS), tmp_path / "out")


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (60, r"image_size is 60 but the encoder needs multiples of 8 pixels"),
        (24, r"image_size is 24, fewer than 4 patches of 8 pixels; make it larger"),
    ],
)
def test_a_size_that_does_not_fit(run, shared, size, message):
    with pytest.raises(UserError, match=message):
        run(shared, image_size=size)


@pytest.mark.parametrize("empty", ["train", "test"])
def test_a_truth_without_foreground(run, tmp_path, empty):
    maps = {"train": object_maps(4, 0), "test": object_maps(4, 1)}
    maps[empty] = np.where(maps[empty] > 0, VOID, 0).astype(np.uint8)
    manifest = write_set(tmp_path / "set", maps["train"], maps["test"])
    split = {"train": "train", "test": "val"}[empty]
    with pytest.raises(UserError, match=rf"no mask of 'colours' \({split}\) has any foreground"):
        run(manifest)


def test_no_cluster_of_the_precision(run, encoder, shared, monkeypatch):
    learn = foreground.cluster

    def looks_away(segmented, *arguments):
        found = learn(segmented, *arguments)
        if segmented.split == "val":
            found.precision[:] = 0.0
        return found

    monkeypatch.setattr(foreground, "cluster", looks_away)
    with pytest.raises(UserError, match=r"no cluster of 'colours' reaches the precision of 0\.\d+"):
        run(shared)


def test_a_cluster_without_pixels(run, encoder, shared):
    encoder.noise.zero_()
    # Four colours, and so four places for twelve centroids.
    with pytest.raises(UserError, match=r"of 12 clusters, such as \d+, hold no pixel; lower"):
        run(shared)


def test_more_clusters_than_pixels(run, shared):
    with pytest.raises(UserError, match="576 points cannot make 600 clusters"):
        run(shared, clusters=600)


def test_videos_need_a_set_to_learn_from(run, tmp_path):
    manifest = a_video_set(tmp_path, "davis")
    with pytest.raises(UserError, match="'davis' is a set of videos and has no training split"):
        run(manifest)


def test_cuts_between_which_no_cut_lies():
    with pytest.raises(ValueError, match=r"no cut of 3 clusters lies between the shares 0.4 and"):
        Config(dataset="x", clusters=3, cuts=(0.4, 0.6))


def test_a_foreground_elsewhere(run, encoder, shared, monkeypatch):
    """Attention decides, not the masks: where it looks at the background, that is found."""
    monkeypatch.setattr(foreground, "load_encoder", lambda run: Elsewhere())
    found = run(shared, keep=0.6)
    assert found.metrics["jaccard"] < 60


def test_void_keeps_its_place(run, tmp_path):
    """One pixel of a cell's corner, void, on maps as fine as the image."""
    maps = object_maps(6, 3)
    manifest = write_set(tmp_path / "set", object_maps(9, 0), maps)
    for number in range(6):
        path = tmp_path / "set" / f"test{number}_mask.png"
        with Image.open(path) as mask:
            ids, palette = np.asarray(mask).copy(), mask.getpalette()
        ids[SIDE - CELL :, SIDE - CELL :] = VOID
        changed = Image.fromarray(ids, "P")
        changed.putpalette(palette)
        changed.save(path)
    found = run(manifest, map_size=SIDE)
    assert found.metrics["jaccard"] == pytest.approx(100)
    cut = [100 * ((m > 0).sum() - 1) / (m > 0).sum() for m in maps]
    assert found.metrics["jaccard_other_boundary"] == pytest.approx(np.mean(cut))
