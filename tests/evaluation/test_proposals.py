"""Proposals of slots and of clusters: clips, statistics, sizes, seeds."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from tests.evaluation.davis_set import CPU, a_set
from tests.evaluation.slots import INSTANCES, SLOTS, WIDTH, slots_run
from tests.evaluation.stubs import Seeing
from timewalk.data.sequences import LabelledVideos, Sequence, read_frame
from timewalk.encoders import load_encoder, load_head, save_head
from timewalk.encoders.slots import Slots, load_slots
from timewalk.errors import UserError
from timewalk.evaluation import proposals
from timewalk.evaluation.proposals import (
    KINETICS_MEAN,
    KINETICS_STD,
    ProposalConfig,
    Proposals,
    chunks,
    cluster_proposals,
    collect,
    pixels_of,
    proposer,
)

KEYS = {"kind": "x", "dataset": "davis", "image_height": 32, "image_width": 48}
ALL = -1.0
"""a similarity that every instance reaches"""


UNREADABLE = "the encoder gives features that are not finite for the slots of 'blackswan'"


def config(**keys):
    return ProposalConfig(**(KEYS | keys))


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return next(iter(LabelledVideos(a_set(tmp_path_factory.mktemp("davis")))))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return slots_run(tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize(
    ("frames", "length", "expected"),
    [
        (8, 4, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (7, 4, [[0, 1, 2, 3], [4, 5, 6, 6]]),
        (6, 4, [[0, 1, 2, 3], [4, 5, 4, 5]]),
        (5, 4, [[0, 1, 2, 3], [4, 2, 3, 4]]),
        (3, 4, [[0, 1, 2, 2]]),
        (2, 4, [[0, 1, 0, 1]]),
        (1, 4, [[0, 0, 0, 0]]),
        (2, 6, [[0, 1, 0, 1, 1, 1]]),
        (2, 1, [[0], [1]]),
    ],
)
def test_chunks(frames, length, expected):
    assert chunks(frames, length) == expected


def test_collect_keeps_what_reaches_the_similarity():
    similarity = np.array([[[0.5, 0.49], [0.6, 0.9]], [[0.1, 0.2], [0.3, 0.4]]], np.float32)
    masks = np.arange(2 * 2 * 2 * 3 * 4, dtype=np.float32).reshape(2, 2, 2, 3, 4)
    vectors = np.arange(2 * 2 * 2 * 5, dtype=np.float32).reshape(2, 2, 2, 5)
    found = collect(masks, similarity, vectors, 0.5)
    assert [each.tolist() for each in found.groups] == [[0, 1, 1], []]
    np.testing.assert_array_equal(found.scores[0], similarity[0][[0, 1, 1], [0, 0, 1]])
    np.testing.assert_array_equal(found.masks[0], masks[0][[0, 1, 1], [0, 0, 1]])
    np.testing.assert_array_equal(found.vectors[0], vectors[0][[0, 1, 1], [0, 0, 1]])
    assert found.masks[1].shape == (0, 3, 4)
    np.testing.assert_array_equal(found.all_masks[1, 2], masks[1, 1, 0])


def test_group_maps_add_up_the_instances():
    masks = np.zeros((1, 4, 1, 2), np.float32)
    masks[0, :, 0, 0] = 0.2, 0.2, 0.3, 0.0  # 0.4 against 0.3
    masks[0, :, 0, 1] = 0.3, 0.0, 0.2, 0.2
    found = Proposals([], [], [], [], masks, instances=2)
    assert found.group_maps().tolist() == [[[0, 1]]]


def test_slots(run, video):
    propose = proposer(run, config(min_similarity=ALL), CPU)
    found = propose(video)
    count, frames = SLOTS * INSTANCES, len(video.frames)
    assert propose.title == "slots"
    assert found.all_masks.shape == (frames, count, 4, 6)
    assert [masks.shape for masks in found.masks] == [(count, 4, 6)] * frames
    assert [each.tolist() for each in found.groups] == [[0, 0, 1, 1, 2, 2]] * frames
    assert [each.shape for each in found.vectors] == [(count, WIDTH)] * frames
    np.testing.assert_allclose(found.all_masks.sum(1), 1, rtol=1e-5)
    assert found.group_maps().shape == (frames, 4, 6)


def test_slots_are_drawn_by_seed_and_name(run, video):
    def masks(video, **keys):
        return proposer(run, config(min_similarity=ALL, **keys), CPU)(video).all_masks

    np.testing.assert_array_equal(masks(video), masks(video))
    assert not np.allclose(masks(video), masks(video, seed=1), atol=1e-4)
    assert not np.allclose(masks(video), masks(replace(video, name="other")), atol=1e-4)


def test_what_the_slots_are_given(run, video, monkeypatch):
    network, seen = load_slots(run), []

    def spy(keys, noise, iterations):
        seen.append((keys, noise, iterations))
        return type(network).forward(network, keys, noise, iterations)

    monkeypatch.setattr(network, "forward", spy)
    monkeypatch.setattr(proposals, "load_slots", lambda _: network)
    proposer(run, config(), CPU)(video)
    encoder = load_encoder(run)
    places = [4, 5, 4, 5]  # six frames: the last clip repeats its two
    frames = torch.stack([torch.from_numpy(read_frame(video.frames[k])) for k in places])
    small = F.interpolate(frames.permute(0, 3, 1, 2) / 255, (32, 48), mode="bilinear")
    mean, std = (torch.tensor(x).reshape(3, 1, 1) for x in (KINETICS_MEAN, KINETICS_STD))
    with torch.no_grad():
        expected = encoder.keys((small - mean) / std)
    (_, first, _), (keys, noise, iterations) = seen
    torch.testing.assert_close(keys[0], expected, rtol=1e-4, atol=1e-5)
    assert noise.shape == (1, 4, SLOTS, INSTANCES, WIDTH)
    assert iterations == 5
    assert not torch.equal(first, noise)


def test_another_seed_for_a_call(run, video):
    propose = proposer(run, config(), CPU)
    other = proposer(run, config(seed=1), CPU)(video).all_masks
    np.testing.assert_array_equal(propose(video, 1).all_masks, other)
    np.testing.assert_array_equal(propose(video, 0).all_masks, propose(video).all_masks)
    assert not np.allclose(propose(video).all_masks, other, atol=1e-4)
    keys = {"proposals": "clusters", "clusters": 4}
    propose, other = (proposer(run, config(**keys, seed=seed), CPU) for seed in (0, 3))
    np.testing.assert_array_equal(propose(video, 3).all_masks, other(video).all_masks)


def test_statistics_of_the_encoder(run, video):
    def masks(**keys):
        return proposer(run, config(**keys), CPU)(video).all_masks

    assert not np.allclose(masks(), masks(statistics="encoder"), atol=1e-5)


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_videos_shorter_than_a_clip(run, video, frames):
    short = replace(video, frames=video.frames[:frames], masks=video.masks[:frames])
    found = proposer(run, config(min_similarity=ALL), CPU)(short)
    assert found.all_masks.shape == (frames, SLOTS * INSTANCES, 4, 6)
    assert np.isfinite(found.all_masks).all()


def test_a_video_without_candidates(run, video, monkeypatch):
    original = proposals.slot_masks

    def unlike(slots: Slots):
        found = original(slots)
        return replace(found, similarity=found.similarity.clamp(max=0.4999))

    monkeypatch.setattr(proposals, "slot_masks", unlike)
    found = proposer(run, config(), CPU)(video)
    assert [masks.shape for masks in found.masks] == [(0, 4, 6)] * len(video.frames)


def test_pixels_are_resized_without_antialias(video):
    pixels = pixels_of(video, [2], (16, 20), CPU)[0]
    frame = read_frame(video.frames[2]).astype(float)  # 64 x 80: four times as large
    expected = (frame[1::4] + frame[2::4])[:, 1::4] + (frame[1::4] + frame[2::4])[:, 2::4]
    np.testing.assert_allclose(pixels.permute(1, 2, 0), expected / 4, rtol=0, atol=1e-3)


def test_clusters(run, video):
    propose = proposer(run, config(proposals="clusters", clusters=4), CPU)
    found = propose(video)
    frames = len(video.frames)
    assert propose.title == "clusters"
    assert found.all_masks.shape == (frames, 4, 4, 6)
    np.testing.assert_allclose(found.all_masks.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(np.stack(found.masks), found.all_masks)
    assert [each.tolist() for each in found.groups] == [[0, 1, 2, 3]] * frames
    assert [each.tolist() for each in found.scores] == [[1.0] * 4] * frames
    np.testing.assert_allclose(np.linalg.norm(found.vectors[0], axis=1), 1, rtol=1e-5)


def test_clusters_follow_what_is_alike(tmp_path):
    ids = np.zeros((3, 32, 48), np.uint8)
    for t in range(3):
        ids[t, 4:16, 4 * t : 4 * t + 12] = 1
        ids[t, 20:28, 28:44] = 2
        colours = np.array([(30, 90, 160), (230, 40, 40), (40, 220, 60)], np.uint8)
        Image.fromarray(colours[ids[t]]).save(tmp_path / f"{t}.png")
    frames = tuple(tmp_path / f"{t}.png" for t in range(3))
    video = Sequence("flat", frames, (None,) * 3, (32, 48))
    found = cluster_proposals(Seeing(stride=4), video, config(clusters=3), CPU, 0)
    maps, cells = found.group_maps(), ids[:, ::4, ::4]
    names = [set(maps[cells == number]) for number in range(3)]
    assert sorted(map(len, names)) == [1, 1, 1]
    assert len(set.union(*names)) == 3


def test_the_temperature_of_clusters(video):
    """Twice as warm: half the distances between the logarithms of two shares."""
    encoder, keys = Seeing(stride=4), {"clusters": 3}
    gaps = []
    for temperature in (0.1, 0.2):
        keys["temperature"] = temperature
        shares = cluster_proposals(encoder, video, config(**keys), CPU, 0).all_masks
        gaps.append(np.log(shares[:, 0]) - np.log(shares[:, 1]))
    assert np.abs(gaps[0]).max() > 1
    np.testing.assert_allclose(gaps[0], 2 * gaps[1], rtol=0, atol=1e-3)


def test_long_videos_make_centroids_of_some_frames(video, monkeypatch):
    encoder = Seeing(stride=4)
    whole = cluster_proposals(encoder, video, config(), CPU, 0)
    assert encoder.images == len(video.frames)
    monkeypatch.setattr(proposals, "FRAMES_FOR_CENTROIDS", 2)
    some = cluster_proposals(encoder, video, config(), CPU, 0)
    assert encoder.images == 2 * len(video.frames)
    assert some.all_masks.shape == whole.all_masks.shape
    assert not np.allclose(some.vectors[0], whole.vectors[0])


def test_auto_takes_slots_where_there_are_any(run, run_of):
    assert proposer(run, config(), CPU).title == "slots"
    assert proposer(run_of("vit"), config(), CPU).title == "clusters"
    before, head = proposer(run, config(), CPU).digest, load_head(run)
    save_head({**head, "mask_threshold": head["mask_threshold"] + 1}, run)
    assert proposer(run, config(), CPU).digest != before, "other slots, other proposals"


def test_slots_of_a_run_without(run_of):
    with pytest.raises(UserError, match=r"has no slots, but proposals is 'slots'; set it to"):
        proposer(run_of("vit"), config(proposals="slots"), CPU)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"image_height": 30}, "image_height is 30 but .* multiples of 8 pixels.*set it to 24"),
        ({"image_width": 50}, "image_width is 50 but .* multiples of 8 pixels.*set it to 48"),
        ({"image_width": 4}, "image_width is 4 but .* 8 at least; set it to 8"),
    ],
)
def test_sizes_that_are_not_multiples_of_the_patch(run, keys, sentence):
    with pytest.raises(UserError, match=sentence):
        proposer(run, config(**keys), CPU)


def test_fewer_patches_than_clusters(video):
    one = replace(video, frames=video.frames[:1], masks=video.masks[:1])
    with pytest.raises(UserError, match="has 4 patches, too few for 5 clusters; lower clusters"):
        cluster_proposals(
            Seeing(stride=16), one, config(image_height=32, image_width=32, clusters=5), CPU, 0
        )


def test_features_that_are_not_finite(video):
    encoder = Seeing(stride=4)
    encoder.phases[0] = torch.nan
    with pytest.raises(UserError, match=r"not finite for .*00000\.jpg"):
        cluster_proposals(encoder, video, config(), CPU, 0)


@pytest.mark.parametrize("name", ["similarity", "instance_masks", "instance"])
def test_slots_that_are_not_finite(run, video, monkeypatch, name):
    def broken(slots: Slots):
        found = original(slots)
        tensor = slots.instance if name == "instance" else getattr(found, name)
        tensor[0, 1, 0, 0] = torch.nan
        return found

    original = proposals.slot_masks
    monkeypatch.setattr(proposals, "slot_masks", broken)
    with pytest.raises(UserError, match=UNREADABLE):
        proposer(run, config(), CPU)(video)


CHANGED = {
    "frames_per_clip": 2,
    "iterations": 3,
    "min_similarity": 0.25,
    "clusters": 5,
    "temperature": 0.2,
    "seed": 2**31 - 1,
    "statistics": "encoder",
    "precision": "bf16",
}


def test_the_title_names_what_is_not_as_published():
    usual = ProposalConfig(kind="x", dataset="davis")
    assert usual.proposal_title(slots=True) == usual.proposal_title(slots=False) == []
    changed, end = config(**CHANGED), ["seed2147483647", "encoder_statistics", "bf16"]
    assert changed.proposal_title(slots=True) == ["32x48", "f2", "i3", "m0.25", *end]
    found = changed.proposal_title(slots=False)
    assert found == ["32x48", "c5", "t0.2", "seed2147483647", "bf16"]


def test_settings_are_those_in_use(run, run_of):
    both = {"image_height": 32, "image_width": 48, "seed": 2**31 - 1, "precision": "bf16"}
    names = ("frames_per_clip", "iterations", "min_similarity", "statistics")
    slots = proposer(run, config(**CHANGED), CPU).settings
    assert slots == both | {name: CHANGED[name] for name in names}
    clusters = proposer(run_of("vit"), config(**CHANGED | {"statistics": "kinetics"}), CPU)
    own = {"clusters": 5, "temperature": 0.2, "statistics": "encoder"}
    assert clusters.settings == both | own
