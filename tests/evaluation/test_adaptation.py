"""Test-time adaptation: the plain figures beside it, what changes, and what is reset."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.miniature import video_sets
from timewalk.config import Davis2017, EncoderConfig
from timewalk.data.prepare import prepare
from timewalk.data.sequences import LabelledVideos
from timewalk.encoders import build_encoder, save_encoder, save_head
from timewalk.errors import UserError
from timewalk.evaluation import over_videos
from timewalk.evaluation.adaptation import AdaptConfig, Adapter
from timewalk.evaluation.base import Inputs
from timewalk.evaluation.label_propagation import FrameFeatures
from timewalk.evaluation.protocols import PropagationConfig, make_protocol
from timewalk.evaluation.video_segmentation import Config, evaluate, segmentation

CPU = torch.device("cpu")
FRAMES = 7
SMALL = {"steps": 2, "every": 3, "window": 2, "image_size": 32, "patch_size": 16}
LARGE_STEPS = {**SMALL, "learning_rate": 1e-2}
ENCODERS = {
    "vit": EncoderConfig(name="vit_tiny", patch_size=8, image_size=16, depth=2, width=24, heads=3),
    "resnet": EncoderConfig(name="resnet18"),
}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("davis")
    video_sets.davis2017(folder / "DAVIS", frames=FRAMES, size=(48, 64))
    path = folder / "set" / "manifest.json"
    prepare("davis", Davis2017(kind="davis2017", root=str(folder / "DAVIS")), path)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of runs: `vit`, `resnet`, and `head`, the ViT with a head."""
    folder = tmp_path_factory.mktemp("runs")
    for name, config in ENCODERS.items():
        save_encoder(build_encoder(config, 0), folder / name, {})
    save_encoder(build_encoder(ENCODERS["vit"], 0), folder / "head", {})
    rng = torch.Generator().manual_seed(0)
    shapes = {"0.weight": (24, 24), "0.bias": (24,), "2.weight": (8, 24), "2.bias": (8,)}
    head = {key: torch.randn(shape, generator=rng) for key, shape in shapes.items()}
    save_head(head, folder / "head")
    return folder


def weights(adapter):
    return copy.deepcopy(adapter.encoder.state_dict())


def equal(one, other):
    return all(torch.equal(one[key], other[key]) for key in one)


def go(adapter, manifest, *names):
    """Propagate through videos; return the masks of the last as a tensor (T, H, W)."""
    config = PropagationConfig(kind="davis", dataset="d", radius=3)
    protocol = make_protocol("crw", config, adapter.encoder)
    for name in names:
        video = LabelledVideos(manifest)[name]
        features = FrameFeatures(adapter.encoder, CPU, protocol, video.frames, video.size)
        masks = segmentation(video, features, adapter.start(name, video.frames, video.size))
    return torch.from_numpy(np.stack(masks))


def adapter_of(run, **keys):
    return Adapter(run, AdaptConfig(**{**LARGE_STEPS, **keys}), CPU)


def test_the_plain_figures_are_those_without_adaptation(manifest, runs, tmp_path):
    inputs = Inputs(runs / "vit", manifest, CPU)
    keys = {"dataset": "davis", "overlays": False, "radius": 3}
    plain = evaluate(inputs, Config(**keys), tmp_path / "plain")
    found = evaluate(inputs, Config(**keys, adapt=LARGE_STEPS), tmp_path / "adapted")
    names = set(plain.metrics)
    assert {name: found.metrics[f"plain_{name}"] for name in names} == plain.metrics
    assert found.metrics["gain_JF_mean"] == pytest.approx(
        found.metrics["JF_mean"] - plain.metrics["JF_mean"]
    )
    # Before frames 1 and 4 of each video, two updates each.
    assert found.metrics["adapt_updates"] == 2 * 2 * 2
    assert found.metrics["adapt_seconds"] > 0
    assert found.protocol.startswith(f"{plain.protocol}-adapt2-every3-window2")
    assert found.samples == plain.samples
    for folder in (tmp_path / "adapted", tmp_path / "adapted" / "plain"):
        assert len(list((folder / "masks").rglob("*.png"))) == 2 * FRAMES
    assert all(path.is_file() for path in found.artefacts)
    written = (tmp_path / "adapted" / "plain" / "global_results-val.csv").read_text()
    assert written == (tmp_path / "plain" / "global_results-val.csv").read_text()


def test_going_on_and_starting_anew(manifest, runs, tmp_path, monkeypatch):
    """What is done is kept, unless weights are carried from video to video."""
    inputs, starts = Inputs(runs / "vit", manifest, CPU), []
    start = Adapter.start

    def counted(self, name, frames, size):
        starts.append(name)
        return start(self, name, frames, size)

    monkeypatch.setattr(over_videos.Adapter, "start", counted)
    for reset, expected in ((True, 0), (False, 2)):
        config = Config(dataset="davis", overlays=False, adapt={**SMALL, "reset": reset})
        folder = tmp_path / str(reset)
        once = evaluate(inputs, config, folder)
        starts.clear()
        again = evaluate(inputs, config, folder)
        assert len(starts) == expected
        again.metrics.pop("adapt_seconds"), once.metrics.pop("adapt_seconds")
        assert again.metrics == once.metrics


def test_weights_change_and_are_reset(manifest, runs):
    adapter = adapter_of(runs / "head")
    trained, head = weights(adapter), copy.deepcopy(adapter.head.state_dict())
    go(adapter, manifest, "camel")
    assert not equal(trained, weights(adapter))
    assert not equal(head, adapter.head.state_dict())
    assert not adapter.encoder.training
    video = LabelledVideos(manifest)["camel"]
    adapter.start("camel", video.frames, video.size)
    assert equal(trained, weights(adapter))
    assert equal(head, adapter.head.state_dict())
    assert adapter.spent() == {"seconds": 0, "updates": 0}


def test_a_head_that_is_not_crws_is_left_alone(manifest, runs, tmp_path):
    save_encoder(build_encoder(ENCODERS["vit"], 0), tmp_path, {})
    save_head({"prototypes": torch.ones(5, 8), "head.0.weight": torch.ones(8, 24)}, tmp_path)
    adapter = adapter_of(tmp_path)
    assert not list(adapter.head.parameters())


@pytest.mark.parametrize("reset", [True, False])
def test_a_video_alone_or_after_another(manifest, runs, reset):
    alone, after = (adapter_of(runs / "vit", reset=reset) for _ in range(2))
    go(alone, manifest, "camel")
    go(after, manifest, "blackswan", "camel")
    assert equal(weights(alone), weights(after)) == reset


def test_the_same_seed_gives_the_same_weights(manifest, runs):
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(found))  # the global generator has no say
        adapter = adapter_of(runs / "vit", seed=seed)
        masks = go(adapter, manifest, "camel")
        found.append((weights(adapter), masks))
    assert equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert not equal(found[0][0], found[2][0])


@pytest.mark.parametrize("mode", ["frozen", "adapted"])
def test_batch_norm(manifest, runs, mode):
    adapter = adapter_of(runs / "resnet", batch_norm=mode, steps=1, every=10)
    trained = weights(adapter)
    go(adapter, manifest, "camel")
    now = weights(adapter)
    statistics = [key for key in trained if key.endswith(("running_mean", "running_var"))]
    assert statistics
    assert all(torch.equal(trained[key], now[key]) for key in statistics) == (mode == "frozen")
    assert not equal(trained, now)
    assert not adapter.encoder.training


@pytest.mark.parametrize(
    ("keys", "updates"),
    [
        ({}, 4),
        ({"steps": 1}, 2),
        ({"every": 1}, 12),
        ({"every": 2}, 6),
        ({"every": 100}, 2),
        ({"clips": 3}, 4),
        ({"walk": "window"}, 4),
        ({"frames_per_clip": 9, "step_between_frames": 9}, 4),
        # Three frames are the shortest walk: at the first frame there are two.
        ({"window": 1, "every": 1}, 10),
    ],
)
def test_updates(manifest, runs, keys, updates):
    adapter = adapter_of(runs / "vit", **{"learning_rate": 1e-4, **keys})
    go(adapter, manifest, "camel")
    assert adapter.spent()["updates"] == updates
    assert adapter.spent()["seconds"] > 0


def test_clips(runs):
    rng = torch.Generator().manual_seed(0)
    adapter = adapter_of(runs / "vit", frames_per_clip=3, step_between_frames=2)
    found = {tuple(adapter._clip(range(4, 10), rng)) for _ in range(60)}
    assert found == {(4, 6, 8), (5, 7, 9)}
    # A short window makes the steps shorter, then the clip.
    assert adapter._clip(range(4, 7), rng) == [4, 5, 6]
    longer = adapter_of(runs / "vit", frames_per_clip=5, step_between_frames=2)
    assert longer._clip(range(3), rng) == [0, 1, 2]
    whole = adapter_of(runs / "vit", walk="window")
    assert whole._clip(range(2, 9), rng) == [2, 3, 4, 5, 6, 7, 8]


def test_the_context_gets_the_adapted_features(manifest, runs):
    """After an adaptation all frames in context, not only the new one, are seen anew."""
    adapter = adapter_of(runs / "vit", every=5)
    config = PropagationConfig(kind="davis", dataset="d", radius=3)
    video = LabelledVideos(manifest)["camel"]
    protocol = make_protocol("crw", config, adapter.encoder)
    features = FrameFeatures(adapter.encoder, CPU, protocol, video.frames, video.size)
    before = adapter.start("camel", video.frames, video.size)
    seen = []

    def spied(index, propagator, given):
        before(index, propagator, given)
        if index == 6:
            numbers = propagator.frames_in_context()
            frames = [propagator.first, *propagator.recent]
            seen.extend(zip(numbers, (frame.features for frame in frames), strict=True))

    segmentation(video, features, spied)
    assert [number for number, _ in seen] == [0, 1, 2, 3, 4, 5]
    for number, found in seen:
        # The encoder has not changed since.
        now = torch.nn.functional.normalize(features[number], dim=0).permute(1, 2, 0)
        torch.testing.assert_close(found, now, rtol=1e-4, atol=1e-5)


def test_the_head_of_the_run_is_used(manifest, runs):
    with_head, without = adapter_of(runs / "head"), adapter_of(runs / "vit")
    assert [type(layer).__name__ for layer in with_head.head] == ["Linear", "ReLU", "Linear"]
    assert len(without.head) == 0
    assert equal(weights(with_head), weights(without))
    go(with_head, manifest, "camel")
    go(without, manifest, "camel")
    assert not equal(weights(with_head), weights(without))


def test_the_loss_falls(manifest, runs):
    """Many steps on the same video: the walks come home more often."""
    adapter = adapter_of(runs / "vit", steps=30, learning_rate=3e-3, every=100, edge_dropout=0)
    video = LabelledVideos(manifest)["camel"]
    losses, loss = [], adapter._loss

    def kept(patches, rng):
        found = loss(patches, rng)
        losses.append(float(found.detach()))
        return found

    adapter._loss = kept
    go(adapter, manifest, video.name)
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_the_title_tells_what_is_changed():
    default = AdaptConfig()
    assert default.title() == "adapt100"
    titles = {default.title()}
    changes = {
        "steps": 5,
        "every": 2,
        "window": 3,
        "walk": "window",
        "frames_per_clip": 6,
        "step_between_frames": 2,
        "clips": 2,
        "batch_norm": "adapted",
        "reset": False,
        "learning_rate": 1e-3,
        "temperature": 0.07,
        "edge_dropout": 0.2,
        "image_size": 128,
        "patch_size": 32,
        "seed": 1,
    }
    assert changes.keys() == AdaptConfig.model_fields.keys()
    for key, value in changes.items():
        title = AdaptConfig(**{key: value}).title()
        assert title.startswith("adapt")
        assert title not in titles
        titles.add(title)


def test_patches_that_do_not_fit(runs):
    with pytest.raises(ValidationError, match="patch_size 48 leaves one patch in an image_size of"):
        AdaptConfig(image_size=64, patch_size=48)
    with pytest.raises(UserError, match=r"^adapt\.patch_size is 20; make it a multiple of 8, the"):
        Adapter(runs / "vit", AdaptConfig(image_size=64, patch_size=20), CPU)


def test_a_frame_that_is_missing_stops_its_video_alone(manifest, runs):
    adapter = adapter_of(runs / "vit")
    video = LabelledVideos(manifest)["camel"]
    frames = (*video.frames[:2], video.frames[2].with_name("none.jpg"), *video.frames[3:])
    before = adapter.start("camel", frames, video.size)
    with pytest.raises(UserError, match=r"none\.jpg cannot be read \(it is missing\)"):
        segmentation(
            replace(video, frames=frames),
            FrameFeatures(
                adapter.encoder,
                CPU,
                make_protocol("crw", PropagationConfig(kind="davis", dataset="d"), adapter.encoder),
                frames,
                video.size,
            ),
            before,
        )
    alone, after = adapter_of(runs / "vit"), adapter
    assert torch.equal(go(alone, manifest, "blackswan"), go(after, manifest, "blackswan"))
