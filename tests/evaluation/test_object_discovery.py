"""Object discovery on a miniature DAVIS: both figures, files, going on, and every bad input."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.davis_set import CPU, SIZE, ids_of, prepared
from tests.evaluation.slots import slots_run
from tests.miniature import video_sets
from timewalk.artefacts import read_json
from timewalk.check import check
from timewalk.config import MOSE, MovingShapes
from timewalk.data.generated import save_ids
from timewalk.data.prepare import prepare
from timewalk.data.sequences import read_ids
from timewalk.errors import UserError
from timewalk.evaluation import object_discovery
from timewalk.evaluation.base import Inputs
from timewalk.evaluation.davis_folders import score_folders
from timewalk.evaluation.object_discovery import Config, evaluate
from timewalk.evaluation.proposals import Proposals, Proposer
from timewalk.evaluation.video_segmentation import percent

FRAMES = 6
NAMES = ("blackswan", "camel")
SEVEN = {"JF_mean", "J_mean", "J_recall", "J_decay", "F_mean", "F_recall", "F_decay"}
KEYS = {
    "dataset": "davis",
    "image_height": 32,
    "image_width": 40,
    "overlays": False,
    "min_similarity": -1.0,
}


def a_set(folder, frames=FRAMES, task="unsupervised", **keys):
    video_sets.davis2017(folder / "DAVIS", frames=frames, size=SIZE, **keys)
    return prepared(folder, task=task)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A set that no test changes."""
    return a_set(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module")
def slots(tmp_path_factory):
    return slots_run(tmp_path_factory.mktemp("run"))


def go(run, manifest, output, **keys):
    return evaluate(Inputs(run, manifest, CPU), Config(**(KEYS | keys)), output)


def oracle(video, *, absent=(), constant=False):
    """Propose the true objects."""
    truth = np.stack([read_ids(path) for path in video.masks])
    numbers = np.array([1, 2])
    soft = (truth[:, None] == numbers[:, None, None]).astype(np.float32)
    if constant:
        soft[:] = 0.5
    masks = [np.delete(each, slice(None) if t in absent else [], 0) for t, each in enumerate(soft)]
    return Proposals(
        masks=masks,
        scores=[np.ones(len(each), np.float32) for each in masks],
        groups=[np.arange(len(each)) for each in masks],
        vectors=[np.eye(len(numbers), dtype=np.float32)[: len(each)] for each in masks],
        all_masks=soft,
    )


@pytest.fixture
def proposing(monkeypatch):
    """Return a function that replaces the proposals, and the list of the videos asked for."""

    def put(make, title="clusters"):
        seen = []

        def noted(video, seed):
            seen.append(video.name)
            return make(video)

        def found(run, config, device):
            return Proposer(title, "digest", {"seed": config.seed}, noted)

        monkeypatch.setattr(object_discovery, "proposer", found)
        return seen

    return put


@pytest.mark.parametrize("proposals", ["slots", "clusters"])
def test_evaluation(slots, shared, tmp_path, proposals):
    result = go(slots, shared, tmp_path, proposals=proposals)
    expected = SEVEN | {f"frame_matched_{name}" for name in SEVEN}
    own = {"candidates_mean", "candidates_max", "from_slots"}
    assert result.metrics.keys() == expected | own
    assert result.metrics["from_slots"] == (proposals == "slots")
    assert all(np.isfinite(value) for value in result.metrics.values())
    count = 6 if proposals == "slots" else 8
    assert result.metrics["candidates_mean"] == result.metrics["candidates_max"] == count
    assert result.samples == 4
    used = "-m-1" if proposals == "slots" else ""
    assert result.protocol == f"davis2017-val-unsupervised-32x40{used}"
    scores = score_folders(tmp_path / "masks", shared.parent / "../DAVIS", "unsupervised")
    assert percent(scores) == {name: result.metrics[name] for name in SEVEN}
    for name in NAMES:
        files = sorted((tmp_path / "masks" / name).iterdir())
        assert [path.name for path in files] == [f"{k:05d}.png" for k in range(FRAMES)]
        assert ids_of(files[0]).shape == SIZE
        assert 1 <= max(ids_of(path).max() for path in files) <= 20
    names = {path.relative_to(tmp_path).as_posix() for path in result.artefacts}
    assert names == {
        "global_results-val.csv",
        "per-sequence_results-val.csv",
        "davis_unsupervised-val.json",
        "discovery.json",
    }
    about = read_json(tmp_path / "discovery.json")
    assert about["proposals"]["from"] == proposals
    assert about["proposals"]["seed"] == 0
    assert about["proposals"]["image_height"] == 32
    assert about["proposals"]["statistics"] == ("kinetics" if proposals == "slots" else "encoder")
    assert ("iterations" in about["proposals"]) == (proposals == "slots")
    assert about["linking"].startswith("timewalk's own")
    assert "soft IoU with a better one is at least 0.7" in about["linking"]
    assert about["jf_official"] == {name: result.metrics[name] for name in SEVEN}
    matched = {name: result.metrics[f"frame_matched_{name}"] for name in SEVEN}
    assert about["jf_frame_matched"] == matched
    assert about["candidates_per_frame"] == {"mean": count, "max": count}
    camel = about["sequences"]["camel"]
    assert camel["candidates"] == [count] * FRAMES
    assert camel["objects"].keys() == {"1", "2"}
    means = [entry["jf_frame_matched"]["J"]["mean"] for entry in camel["objects"].values()]
    assert camel["jf_frame_matched"]["J_mean"] == pytest.approx(100 * np.mean(means))
    assert {entry["jf_official"]["proposal"] for entry in camel["objects"].values()} <= {*range(21)}


@pytest.mark.parametrize("enlarge", ["bilinear", "nearest"])
def test_true_objects_score_full(slots, shared, tmp_path, proposing, enlarge):
    proposing(oracle)
    metrics = go(slots, shared, tmp_path, enlarge=enlarge).metrics
    for name in SEVEN:
        expected = 0 if name.endswith("decay") else 100
        assert metrics[name] == metrics[f"frame_matched_{name}"] == expected


def test_identities_count_only_officially(slots, shared, tmp_path, proposing):
    def swapping(video):
        """The two objects' candidates belong to each other's group in odd frames."""
        found = oracle(video)
        groups = [np.array([0, 1]) if t % 2 else np.array([1, 0]) for t in range(FRAMES)]
        return replace(found, groups=groups)

    proposing(swapping)
    metrics = go(slots, shared, tmp_path).metrics
    assert metrics["frame_matched_J_mean"] == 100
    assert metrics["J_mean"] == pytest.approx(50)


def test_no_candidate_in_a_frame(slots, shared, tmp_path, proposing):
    proposing(lambda video: oracle(video, absent={1}))
    metrics = go(slots, shared, tmp_path).metrics
    # The tracks are taken up again after the gap: one frame of six is lost.
    assert metrics["J_recall"] == pytest.approx(100 * 5 / 6)
    assert metrics["frame_matched_J_recall"] == pytest.approx(100 * 5 / 6)
    assert metrics["candidates_mean"] == pytest.approx(2 * 5 / 6)
    assert metrics["candidates_max"] == 2
    assert not ids_of(tmp_path / "masks" / "camel" / "00001.png").any()


@pytest.mark.parametrize("keys", [{"absent": set(range(FRAMES))}, {"constant": True}])
def test_nothing_found_in_any_frame(slots, shared, tmp_path, proposing, keys):
    proposing(lambda video: oracle(video, **keys))
    metrics = go(slots, shared, tmp_path).metrics
    assert {metrics[name] for name in SEVEN} == {0}
    assert {metrics[f"frame_matched_{name}"] for name in SEVEN} == {0}
    assert not ids_of(tmp_path / "masks" / "camel" / "00000.png").any()


def test_no_candidate_passes_the_similarity(slots, shared, tmp_path):
    metrics = go(slots, shared, tmp_path, min_similarity=1.0).metrics
    assert metrics["candidates_max"] == 0
    assert metrics["JF_mean"] == metrics["frame_matched_JF_mean"] == 0


def test_a_video_of_one_frame(slots, tmp_path):
    manifest = a_set(tmp_path, frames=1)
    metrics = go(slots, manifest, tmp_path / "out").metrics
    assert metrics["J_decay"] == metrics["frame_matched_J_decay"] == 0
    assert metrics["frame_matched_JF_mean"] > 0


def test_void_is_not_scored(slots, tmp_path, proposing):
    manifest = a_set(tmp_path)
    folder = tmp_path / "DAVIS" / "Annotations_unsupervised" / "480p"
    for path in folder.glob("*/*.png"):
        ids = read_ids(path)
        save_ids(path, np.where(np.arange(SIZE[1]) < 50, ids, 255))

    def both(video):
        """The objects, also where it is void."""
        masks = [Path(str(path).replace("_unsupervised", "")) for path in video.masks]
        return oracle(replace(video, masks=masks))

    manifest = prepared(tmp_path, task="unsupervised")
    proposing(both)
    metrics = go(slots, manifest, tmp_path / "out").metrics
    assert metrics["JF_mean"] == metrics["frame_matched_JF_mean"] == 100


def test_sets_of_moving_shapes(slots, tmp_path):
    manifest = tmp_path / "set" / "manifest.json"
    shapes = MovingShapes(kind="moving_shapes", sequences=1, frames=5, height=48, width=64)
    prepare("shapes", shapes, manifest)
    result = go(slots, manifest, tmp_path / "out")
    assert result.metrics["frame_matched_JF_mean"] > 0
    assert result.protocol == "davis2017-val-unsupervised-32x40-m-1"


def test_overlays(slots, shared, tmp_path):
    av = pytest.importorskip("av")
    result = go(slots, shared, tmp_path, overlays=True)
    names = {path.relative_to(tmp_path).as_posix() for path in result.artefacts}
    shown = {f"overlays/{kind}/{name}.mp4" for kind in ("proposals", "slots") for name in NAMES}
    assert shown <= names
    for name in shown:
        with av.open(str(tmp_path / name)) as film:
            frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
        assert len(frames) == FRAMES
        assert frames[0].shape == (*SIZE, 3)
    only = go(slots, shared, tmp_path / "clusters", overlays=True, proposals="clusters")
    assert not any("overlays/slots" in str(path) for path in only.artefacts)


def test_the_overlay_of_slots_shows_the_semantic_ones(
    slots, shared, tmp_path, proposing, monkeypatch
):
    """All cells are of the third semantic, and no proposal is painted anywhere."""
    shown = []

    def constant(video):
        found = oracle(video, constant=True)
        soft = np.zeros((FRAMES, 6, 4, 5), np.float32)
        soft[:, 4:] = 1
        return replace(found, all_masks=soft, instances=2)

    def spy(path, video, masks):
        shown.append((path.relative_to(tmp_path).as_posix(), set(np.unique(np.stack(masks)))))

    proposing(constant, title="slots")
    monkeypatch.setattr(object_discovery, "write_overlay", spy)
    go(slots, shared, tmp_path, overlays=True)
    camel = {path: ids for path, ids in shown if "camel" in path}
    assert camel == {"overlays/proposals/camel.mp4": {0}, "overlays/slots/camel.mp4": {3}}


def test_overlays_of_other_settings_are_removed(slots, shared, tmp_path, proposing):
    pytest.importorskip("av")
    seen = proposing(oracle)
    films = [tmp_path / "overlays" / kind / "camel.mp4" for kind in ("proposals", "slots")]
    go(slots, shared, tmp_path, overlays=True)
    films[1].parent.mkdir()
    films[1].write_bytes(b"of slots")
    go(slots, shared, tmp_path, seed=1)
    assert not any(path.exists() for path in films)
    go(slots, shared, tmp_path, seed=1, overlays=True)
    assert films[0].is_file()
    assert seen == [*NAMES] * 3


def test_a_job_that_is_killed_among_its_masks(slots, shared, tmp_path, monkeypatch):
    """Settings changed, killed after a video's masks, settings reverted: as if it never was."""

    def masks():
        return [path.read_bytes() for path in sorted((tmp_path / "masks").rglob("*.png"))]

    def killed(*_):
        raise KeyboardInterrupt

    first, before = go(slots, shared, tmp_path).metrics, masks()
    with monkeypatch.context() as patch:
        patch.setattr(object_discovery, "match_frames", killed)
        with pytest.raises(KeyboardInterrupt):
            go(slots, shared, tmp_path, seed=1)
    assert masks() != before
    assert go(slots, shared, tmp_path).metrics == first
    assert masks() == before


def test_the_best_tracks_are_kept(slots, shared, tmp_path, proposing):
    """The objects come after twenty columns of pixels that are trusted less."""

    def late(video):
        found = oracle(video)
        columns = np.zeros((20, *SIZE), np.float32)
        columns[range(20), :, range(20)] = 1
        return replace(
            found,
            masks=[np.concatenate([columns, masks]) for masks in found.masks],
            scores=[np.array([0.5] * 20 + [1, 1], np.float32)] * FRAMES,
            groups=[np.arange(22)] * FRAMES,
            vectors=[np.eye(22, dtype=np.float32)] * FRAMES,
        )

    proposing(late)
    assert go(slots, shared, tmp_path, enlarge="nearest").metrics["J_mean"] > 90
    camel = read_json(tmp_path / "discovery.json")["sequences"]["camel"]
    assert (camel["tracks"], camel["kept"]) == (22, 20)


def test_what_is_done_is_kept(slots, shared, tmp_path, proposing):
    seen = proposing(oracle)
    first = go(slots, shared, tmp_path)
    assert seen == list(NAMES)
    again = go(slots, shared, tmp_path)
    assert seen == list(NAMES)
    assert again.metrics == first.metrics
    (tmp_path / "masks" / "camel" / "00003.png").unlink()
    go(slots, shared, tmp_path)
    assert seen == [*NAMES, "camel"]
    go(slots, shared, tmp_path, clusters=9, min_similarity=0)  # of no proposals here
    assert seen == [*NAMES, "camel"]
    for number, keys in enumerate(({"enlarge": "nearest"}, {"enlarge": "nearest", "seed": 1}), 1):
        go(slots, shared, tmp_path, **keys)
        assert seen == [*NAMES, "camel", *NAMES * number]


def test_other_slots_are_other_results(shared, tmp_path):
    def masks(run):
        go(run, shared, tmp_path / "out")
        return [path.read_bytes() for path in sorted((tmp_path / "out/masks/camel").iterdir())]

    one = masks(slots_run(tmp_path / "one", seed=0))
    other = masks(slots_run(tmp_path / "other", seed=1))  # the same encoder
    assert one != other


def test_another_task(slots, tmp_path):
    manifest = a_set(tmp_path, task="semi-supervised")
    sentence = (
        f"{manifest} has the task 'semi-supervised', but evaluations of kind 'object_discovery' "
        "score 'unsupervised'; name another set under the key 'dataset'."
    )
    with pytest.raises(UserError, match=re.escape(sentence)):
        go(slots, manifest, tmp_path / "out")


def test_another_resolution(slots, tmp_path):
    a_set(tmp_path)
    for folder in ("JPEGImages", "Annotations_unsupervised"):
        place = tmp_path / "DAVIS" / folder
        (place / "480p").rename(place / "Full-Resolution")
    manifest = prepared(tmp_path, task="unsupervised", resolution="Full-Resolution")
    with pytest.raises(UserError, match=r"has the resolution 'Full-Resolution', but .* '480p'"):
        go(slots, manifest, tmp_path / "out")


def test_another_layout(slots, tmp_path):
    video_sets.mose(tmp_path / "MOSE")
    manifest = tmp_path / "set" / "manifest.json"
    prepare("mose", MOSE(kind="mose", root=str(tmp_path / "MOSE")), manifest)
    with pytest.raises(UserError, match=r"need a set of kind 'davis2017', but .* is 'mose'"):
        go(slots, manifest, tmp_path / "out")


def test_a_set_without_annotations(slots, tmp_path):
    a_set(tmp_path)
    lists = tmp_path / "DAVIS" / "ImageSets"
    (lists / "2019").mkdir()
    (lists / "2017" / "val.txt").rename(lists / "2019" / "test-dev.txt")
    manifest = prepared(tmp_path, task="unsupervised", subset="test-dev")
    with pytest.raises(UserError, match=r"00000\.jpg has no annotation, but every frame is scored"):
        go(slots, manifest, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_video_that_fails_keeps_the_others(slots, shared, tmp_path, proposing):
    def failing(video):
        if video.name == "camel":
            raise UserError("a frame is broken.")
        return oracle(video)

    proposing(failing)
    with pytest.raises(UserError, match=r"1 of 2 videos failed \(camel: a frame is broken\)"):
        go(slots, shared, tmp_path)
    assert (tmp_path / "masks" / "blackswan" / "00000.png").is_file()


def test_slots_of_a_run_without(run_of, shared, tmp_path):
    with pytest.raises(UserError, match="has no slots, but proposals is 'slots'"):
        go(run_of("vit"), shared, tmp_path, proposals="slots")


def test_more_clusters_than_proposals_are_allowed():
    sentence = "clusters is 21: the official protocol allows 20 proposals, so set it to 20 or less."
    with pytest.raises(UserError, match=re.escape(sentence)):
        check(Config, {"dataset": "davis", "clusters": 21})
    assert Config(dataset="davis", clusters=20).clusters == 20
    assert Config(dataset="davis").clusters == 8
