"""J of one foreground: every kind of set, conventions, passes, going on, and bad input."""

import csv
import json
import shutil

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tests.evaluation.coloured_masks import change
from tests.evaluation.stubs import Blind, Seeing
from tests.miniature import video_sets
from timewalk.artefacts import read_json, sha256_file
from timewalk.config import FBMS59, JHMDB, Davis2016, Davis2017, MovingShapes, SegTrackV2
from timewalk.data.generated import save_ids
from timewalk.data.prepare import prepare
from timewalk.data.sequences import LabelledVideos
from timewalk.encoders import save_head
from timewalk.encoders.slots import SlotNetwork
from timewalk.errors import UserError
from timewalk.evaluation import foreground_segmentation, proposals
from timewalk.evaluation.base import Inputs
from timewalk.evaluation.foreground_segmentation import Config, averages, evaluate
from timewalk.evaluation.proposals import Proposals

CPU = torch.device("cpu")
SIZE = (48, 64)
KINDS = {
    "davis2016": (video_sets.davis2016, Davis2016),
    "davis2017": (video_sets.davis2017, Davis2017),
    "fbms59": (video_sets.fbms59, FBMS59),
    "segtrack_v2": (video_sets.segtrack_v2, SegTrackV2),
    "jhmdb": (video_sets.jhmdb, JHMDB),
}


def a_set(folder, kind, **keys):
    write, _ = KINDS[kind]
    write(folder / "videos", **keys)
    return prepared(folder, kind)


def prepared(folder, kind):
    manifest = folder / "set" / "manifest.json"
    prepare("set", KINDS[kind][1](kind=kind, root=str(folder / "videos")), manifest)
    return manifest


class Slots:
    """Gives masks that a function makes of a frame's truth; counts the videos it has seen, with
    their seeds, and how often it was loaded."""

    title = "slots"
    digest = "e"

    def __init__(self, make):
        self.make, self.videos, self.seeds, self.loaded = make, [], [], 0

    def __call__(self, video, seed):
        self.videos.append(video.name)
        self.seeds.append(seed)
        frames = []
        for place in range(len(video.frames)):
            truth = video.foreground(place)
            frames.append(self.make(place, np.zeros(video.size, bool) if truth is None else truth))
        masks = np.stack(frames).astype(np.float32)
        return Proposals([], [], [], [], all_masks=masks)

    def proposer(self, run, config, device):
        self.loaded += 1
        self.settings = {"seed": config.seed}
        return self


def knowing(place, truth):
    """Background, upper and lower half of the foreground, at the annotation's size."""
    upper = truth.copy()
    upper[len(truth) // 2 :] = False
    return np.stack([~truth, upper, truth & ~upper])


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a function that evaluates proposals, or a run, into a folder below tmp_path."""

    def go(manifest, slots=None, folder="out", source=tmp_path, **keys):
        if slots is not None:
            monkeypatch.setattr(foreground_segmentation, "proposer", slots.proposer)
        config = Config(**{"dataset": "set", "overlays": False, **keys})
        return evaluate(Inputs(source, manifest, CPU), config, tmp_path / folder)

    return go


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("kind", "sequences", "frames", "name"),
    [
        ("davis2016", 2, 8, "davis2016-val"),
        ("davis2017", 2, 10, "davis2017-val"),
        ("fbms59", 3, 9, "fbms59-Testset"),
        ("segtrack_v2", 2, 6, "segtrack_v2"),
    ],
)
def test_perfect_slots_are_perfect(run, tmp_path, kind, sequences, frames, name):
    manifest, slots = a_set(tmp_path, kind), Slots(knowing)
    result = run(manifest, slots)
    assert result.protocol == f"{name}-oracle_slots-sequence_mean"
    assert result.samples == frames
    expected = {"J", "J_sequence_mean", "J_frame_mean", "J_motion_grouping"}
    expected |= {"J_without_ends"} if kind.startswith("davis") else set()
    assert set(result.metrics) == expected | {"sequences"}
    assert {result.metrics[key] for key in expected} == {100}
    assert result.metrics["sequences"] == sequences
    videos = LabelledVideos(manifest)
    assert slots.videos == [video.name for video in videos]
    table, about = rows_of(result.artefacts[0]), read_json(result.artefacts[1])
    ends = {row["J_without_ends"] for row in table}
    assert ends == ({"100"} if kind.startswith("davis") else {""})
    assert [row["sequence"] for row in table] == slots.videos
    assert sum(int(row["frames"]) for row in table) == frames
    for video in videos:
        scored = [video.frames[i].stem for i, mask in enumerate(video.masks) if mask is not None]
        assert about["J"][video.name] == dict.fromkeys(scored, 1.0)
    if kind == "fbms59":
        assert list(about["J"]["cars1"]) == ["cars1_01", "cars1_03", "cars1_05"]


def test_all_objects_of_all_folders_are_the_foreground(run, tmp_path):
    """Also of penguin, which Motion Grouping's preparation does not merge."""
    root = tmp_path / "videos"
    (made,) = video_sets.segtrack_v2(root, ("bmx",)).values()
    for kind in ("JPEGImages", "GroundTruth"):
        (root / kind / "bmx").rename(root / kind / "penguin")
    manifest = prepared(tmp_path, "segtrack_v2")

    def objects(*numbers):
        return Slots(lambda place, _: np.isin(made.ids[place], numbers)[None])

    assert run(manifest, objects(1, 2)).metrics["J"] == 100
    assert 10 < run(manifest, objects(1), "one").metrics["J"] < 90


def shrunk(place, truth):
    """A slot that shows the left half of the frame's foreground in frame 0, else all of it."""
    found = truth.copy()
    if place == 0:
        columns = np.flatnonzero(truth.any(0))
        found[:, columns[len(columns) // 2] :] = False
    return found[None]


def test_averages_and_ends(run, tmp_path):
    """Two sequences of 2 and 5 frames, of which the first is cut."""
    video_sets.davis2016(tmp_path / "videos", ("blackswan", "camel"), frames=5)
    for kind, suffix in (("JPEGImages", "jpg"), ("Annotations", "png")):
        for number in range(2, 5):
            (tmp_path / "videos" / kind / "480p" / "camel" / f"{number:05d}.{suffix}").unlink()
    manifest = prepared(tmp_path, "davis2016")
    result = run(manifest, Slots(shrunk))
    each = read_json(result.artefacts[1])["J"]
    swan, camel = (list(each[name].values()) for name in ("blackswan", "camel"))
    assert swan[1:] == [1] * 4
    assert camel[1:] == [1]
    assert 0.3 < swan[0] < 0.7
    sequence = 100 * (np.mean(swan) + np.mean(camel)) / 2
    frame = 100 * np.mean(swan + camel)
    assert abs(sequence - frame) > 1
    assert result.metrics["J"] == result.metrics["J_sequence_mean"] == pytest.approx(sequence)
    assert result.metrics["J_frame_mean"] == pytest.approx(frame)
    assert result.metrics["J_motion_grouping"] == pytest.approx(frame)
    # Without its ends camel has no frame left, and does not count.
    assert result.metrics["J_without_ends"] == 100
    rows = rows_of(result.artefacts[0])
    assert [float(row["J"]) for row in rows] == pytest.approx(
        [100 * np.mean(swan), 100 * np.mean(camel)], rel=1e-5
    )
    assert [row["J_without_ends"] for row in rows] == ["100", ""]
    other = run(manifest, Slots(shrunk), "other", averaging="frame")
    assert other.metrics["J"] == result.metrics["J_frame_mean"]
    assert other.protocol == "davis2016-val-oracle_slots-frame_mean"


def test_empty_truth_and_void(run, tmp_path):
    """Nothing there and nothing found is 1, with Motion Grouping's convention 0."""
    video_sets.davis2017(tmp_path / "videos", ("camel",), frames=4)
    masks = tmp_path / "videos" / "Annotations" / "480p" / "camel"
    save_ids(masks / "00001.png", np.zeros(SIZE, np.uint8))
    with Image.open(masks / "00002.png") as image:
        ids = np.array(image)
    ids[0] = 255
    save_ids(masks / "00002.png", ids)
    manifest = prepared(tmp_path, "davis2017")

    def first_row_too(place, truth):
        found = truth.copy()
        found[0] = place == 2
        return found[None]

    metrics = run(manifest, Slots(first_row_too)).metrics
    assert metrics["J"] == 100
    assert metrics["J_motion_grouping"] == 75


@pytest.mark.parametrize("mask", ["oracle_slots", "border"])
def test_constant_masks_are_no_foreground(run, tmp_path, mask):
    manifest = a_set(tmp_path, "davis2016")
    flat = Slots(lambda place, truth: np.full((4, 6, 8), 0.25))
    metrics = run(manifest, flat, mask=mask).metrics
    assert metrics["J"] == metrics["J_motion_grouping"] == 0


def test_the_border_reads_no_annotation(run, tmp_path):
    """A slot in the middle is the foreground, whatever the truth is."""
    middle = np.zeros(SIZE, bool)
    middle[10:30, 20:40] = True
    slots = Slots(lambda place, truth: np.stack([middle, ~middle]))
    manifest = a_set(tmp_path, "davis2016")
    result = run(manifest, slots, mask="border")
    assert result.protocol == "davis2016-val-border_slots-sequence_mean"
    truths = [video.foreground(0) for video in LabelledVideos(manifest)]
    expected = [(middle & truth).sum() / (middle | truth).sum() for truth in truths]
    found = [next(iter(e.values())) for e in read_json(result.artefacts[1])["J"].values()]
    assert found == pytest.approx(expected)


def test_passes_are_averaged(run, tmp_path):
    """Of two passes one sees the foreground, the other nothing of it: half of it is not enough for
    `border`, while the oracle brings what it has to 0..1."""
    manifest = a_set(tmp_path, "davis2016")

    class Alternating(Slots):
        def __call__(self, video, seed):
            seen = len(self.videos) % 2 == 0
            self.make = lambda place, truth: np.stack([truth & seen, ~(truth & seen)])
            return super().__call__(video, seed)

    slots = Alternating(knowing)
    result = run(manifest, slots, passes=2, seed=5)
    assert slots.seeds == [5, 6, 5, 6]
    assert slots.loaded == 1
    assert slots.videos == ["blackswan", "blackswan", "camel", "camel"]
    assert result.protocol == "davis2016-val-oracle_slots-sequence_mean-p2-seed5"
    assert result.metrics["J"] == 100
    assert read_json(result.artefacts[1])["seeds"] == [5, 6]
    assert run(manifest, Alternating(knowing), "border", passes=2, mask="border").metrics["J"] == 0


def test_one_frame(run, tmp_path):
    manifest = a_set(tmp_path, "davis2016", frames=1)
    metrics = run(manifest, Slots(knowing)).metrics
    assert metrics["J"] == 100
    assert metrics["J_without_ends"] is None


def test_overlays_show_the_annotated_frames(run, tmp_path):
    manifest = a_set(tmp_path, "fbms59")
    result = run(manifest, Slots(knowing), overlays=True)
    films = [path for path in result.artefacts if path.suffix == ".mp4"]
    assert [path.stem for path in films] == ["cars1", "dogs01", "marple2"]
    with av.open(films[0]) as film:
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert [frame.shape for frame in frames] == [(*SIZE, 3)] * 3


def test_going_on(run, tmp_path):
    manifest, slots = a_set(tmp_path, "davis2016"), Slots(knowing)
    first = run(manifest, slots, overlays=True).metrics
    for keys in ({}, {"overlays": True}, {"averaging": "frame"}):
        assert run(manifest, slots, **keys).metrics == first
    assert len(slots.videos) == 2  # nothing is done again
    (tmp_path / "out" / "overlays" / "camel.mp4").unlink()
    run(manifest, slots, overlays=True)
    assert slots.videos[2:] == ["camel"]  # but for the lost film
    for keys in ({}, {"overlays": True}):  # the film is of the settings that it is shown with
        slots = Slots(knowing)
        run(manifest, slots, seed=9, **keys)
        assert slots.videos == ["blackswan", "camel"]
        films = list((tmp_path / "out" / "overlays").glob("*.mp4"))
        assert len(films) == (2 if keys else 0)
    for number, keys in enumerate(({"mask": "border"}, {"passes": 2}, {"seed": 1})):
        slots = Slots(knowing)
        run(manifest, slots, **keys)
        assert len(slots.videos) == (4 if number == 1 else 2)


def test_a_failed_video_leaves_the_others(run, tmp_path):
    manifest, slots = a_set(tmp_path, "davis2016"), Slots(knowing)
    broken = tmp_path / "videos" / "Annotations" / "480p" / "blackswan" / "00002.png"
    kept = broken.read_bytes()
    Image.new("L", (60, 48)).save(broken)
    with pytest.raises(
        UserError, match=r"1 of 2 videos failed \(blackswan: .*00002.png is 60x48 pixels, not 64x48"
    ):
        run(manifest, slots)
    broken.write_bytes(kept)
    assert run(manifest, slots).metrics["J"] == 100
    assert slots.videos == ["blackswan", "camel", "blackswan"]


def test_a_frame_of_another_size(run, tmp_path, monkeypatch):
    manifest = a_set(tmp_path, "davis2016")
    monkeypatch.setattr(proposals, "load_encoder", lambda run: Seeing(stride=4))
    monkeypatch.setattr(proposals, "encoder_digest", lambda run: "colours")
    frame = tmp_path / "videos" / "JPEGImages" / "480p" / "camel" / "00001.jpg"
    Image.new("RGB", (64, 40)).save(frame)
    keys = {"image_height": 48, "image_width": 64}
    with pytest.raises(UserError, match=r"camel: .*00001.jpg is 64x40 pixels, not 64x48 as its"):
        run(manifest, **keys)


def test_videos_without_annotation_are_left_out(run, tmp_path, caplog):
    video_sets.davis2017(tmp_path / "videos", subset="test-dev")
    for path in (tmp_path / "videos" / "Annotations" / "480p").glob("*/*.png"):
        if path.stem != "00000":
            path.unlink()
    config = Davis2017(kind="davis2017", root=str(tmp_path / "videos"), subset="test-dev")
    manifest = tmp_path / "set" / "manifest.json"
    prepare("set", config, manifest)
    listed = manifest.parent / "sequences.jsonl"
    assert run(manifest, Slots(knowing)).samples == 2
    without_masks(listed, manifest, "camel")
    result = run(manifest, Slots(knowing), "one")
    assert result.metrics["sequences"] == 1
    assert "left out, without an annotated frame: camel" in caplog.text
    without_masks(listed, manifest, "blackswan")
    with pytest.raises(UserError, match="no frame of 'set' has an annotation; name a set with mas"):
        run(manifest, Slots(knowing), "none")


def without_masks(listed, manifest, name):
    """Take a sequence's masks out of the prepared list."""
    rows = [json.loads(row) for row in listed.read_text().splitlines()]
    for row in rows:
        if row["name"] == name:
            del row["masks"]
    listed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    change(manifest, source={"list_sha256": sha256_file(listed)})


def test_other_sets_are_refused(run, tmp_path):
    manifest = a_set(tmp_path, "jhmdb")
    with pytest.raises(
        UserError, match=r"'foreground_segmentation' need a set of kind davis2016, .* is 'jhmdb'"
    ):
        run(manifest, Slots(knowing))


def test_averages_of_nothing():
    none = {"sequence": None, "frame": None}
    assert averages([]) == averages([np.array([])]) == none
    assert averages([np.array([]), np.array([0.5, 1])]) == {"sequence": 75, "frame": 75}


def test_settings_that_are_not_in_use():
    """`min_similarity` chooses no slots here, and clusters may be many."""
    config = Config(dataset="set", min_similarity=0.1, iterations=3, clusters=255)
    assert config.proposal_title(slots=True) == ["i3"]
    assert config.proposal_title(slots=False) == ["c255"]
    assert "min_similarity" not in config.in_use(slots=True)


CLUSTERS = {"image_height": 48, "image_width": 64, "clusters": 4}


def test_clusters_of_what_sees_beat_those_of_what_does_not(run, tmp_path, monkeypatch):
    size = {"height": 48, "width": 64}
    shapes = MovingShapes(kind="moving_shapes", sequences=2, frames=4, clutter=0, **size)
    manifest = tmp_path / "set" / "manifest.json"
    prepare("set", shapes, manifest)
    monkeypatch.setattr(proposals, "encoder_digest", lambda run: "colours")
    found = {}
    for kind in (Seeing, Blind):
        monkeypatch.setattr(proposals, "load_encoder", lambda run, kind=kind: kind(stride=2))
        result = run(manifest, folder=kind.__name__, **CLUSTERS)
        found[kind] = result.metrics["J"]
    assert result.protocol == "davis2017-val-oracle_clusters-sequence_mean-48x64-c4"
    assert read_json(result.artefacts[1])["proposals"] == "clusters"
    assert found[Seeing] > 80
    assert found[Blind] < 30


@pytest.mark.parametrize("mask", ["oracle_slots", "border"])
def test_a_run_with_slots(run, run_of, tmp_path, mask):
    manifest, source = a_set(tmp_path, "davis2016"), tmp_path / "slots"
    shutil.copytree(run_of("vit"), source)
    torch.manual_seed(0)
    save_head(SlotNetwork(24, (2, 2), slots=3, instances=2).tensors(), source)
    keys = {"image_height": 48, "image_width": 64, "mask": mask, "passes": 2}
    result = run(manifest, source=source, **keys)
    recipe = "oracle_slots" if mask == "oracle_slots" else "border_slots"
    assert result.protocol == f"davis2016-val-{recipe}-sequence_mean-p2-48x64"
    assert 0 <= result.metrics["J"] <= 100
    assert run(manifest, folder="again", source=source, **keys).metrics == result.metrics
    with pytest.raises(UserError, match="has no slots, but proposals is 'slots'"):
        run(manifest, folder="vit", source=run_of("vit"), proposals="slots", **keys)
