import json
import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from timewalk.artefacts import read_json, sha256_file
from timewalk.cli import main
from timewalk.config import EncoderConfig, MovingPhases
from timewalk.data.phases import PhaseVideo, PhaseVideos
from timewalk.data.prepare import prepare
from timewalk.encoders import build_encoder, load_encoder, save_encoder, save_head
from timewalk.encoders.embedders import build_embedder, embedder_tensors, load_embedder
from timewalk.errors import UserError
from timewalk.evaluation.phase_embeddings import embed_phases, load_phase_embeddings

TINY = {"name": "vit_tiny", "width": 24, "depth": 1, "heads": 3, "patch_size": 8}
CONV = {"kind": "conv", "inputs": 24, "size": 5, "context": 3}
CONV |= {"layers": [[8, 3, True]], "fc": [[8, True]]}
GRU = {"kind": "convgru", "inputs": 24, "size": 5, "layers": [[8, 3, True]], "gru": [5]}


def save_run(folder, spec, **about):
    save_encoder(build_encoder(EncoderConfig(**TINY, image_size=32), 0), folder, {})
    if spec is not None:
        about = {"image_size": 32, "context": 3, "context_step": 4} | about
        save_head(embedder_tensors(build_embedder(spec, 1), {}, about), folder)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        "conv": save_run(folder / "conv", CONV),
        "convgru": save_run(folder / "convgru", GRU, context=1),
        "plain": save_run(folder / "plain", None),
    }


def make_set(folder, **keys):
    sizes = {"train": 2, "test": 2, "shortest": 13, "longest": 17, "height": 32, "width": 40}
    config = MovingPhases(kind="moving_phases", **sizes, **keys)
    prepare("pour", config, folder / "manifest.json")
    return folder / "manifest.json"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("set"))


@pytest.fixture
def output(tmp_path):
    return tmp_path / "embeddings" / "pour-test.safetensors"


def slowly(run, video, size, stride=1):
    """The definition: each frame with its context through both networks by itself."""
    encoder, head = load_encoder(run).eval(), load_embedder(run)
    kept = list(range(0, len(video), stride))
    mean, std = (torch.tensor(x).reshape(1, 3, 1, 1) for x in (encoder.mean, encoder.std))
    frames = F.interpolate(
        video.frames(kept).float() / 255, (size, size), mode="bilinear", align_corners=False
    )
    pixels = (frames - mean) / std
    with torch.no_grad():
        if head is None:
            return encoder.summary(pixels)
        count, step = head.about["context"], head.about["context_step"]
        places = [
            [max(0, i - (count - 1 - c) * step) for c in range(count)] for i in range(len(kept))
        ]
        maps = torch.stack([encoder.dense(pixels[row]) for row in places])
        return head.embedder(maps[None])[0]


@pytest.mark.parametrize("name", ["conv", "convgru", "plain"])
@pytest.mark.parametrize("batch", [3, 25])
@pytest.mark.parametrize("stride", [1, 2])
def test_embeddings_are_the_definition(runs, tmp_path, output, name, batch, stride):
    manifest = make_set(tmp_path, stride=stride, image_size=24)
    counts = embed_phases(
        runs[name], manifest, "test", output, frames_per_batch=batch, device="cpu"
    )
    found = load_phase_embeddings(output)
    videos = PhaseVideos(manifest, "test")
    for sequence, video in zip(found.videos, videos, strict=True):
        expected = slowly(runs[name], video, 24, stride).numpy()
        np.testing.assert_allclose(sequence.embeddings, expected, rtol=1e-4, atol=1e-5)
        assert sequence.steps.tolist() == list(range(0, len(video), stride))
        assert sequence.labels.tolist() == video.labels[::stride].tolist()
        assert (sequence.name, sequence.action) == (video.name, video.action)
    width = 24 if name == "plain" else 5
    frames = sum(len(x.steps) for x in found.videos)
    assert counts == {"videos": 2, "frames": frames, "dropped": 0, "width": width, "device": "cpu"}
    assert found.classes == videos.classes


def test_each_frame_passes_the_encoder_once_and_few_maps_are_kept(
    runs, manifest, output, monkeypatch
):
    from timewalk.evaluation import phase_embeddings

    seen, held = [], []
    real = phase_embeddings._Network.embed

    def spy(self, squares, start, stream):
        found = real(self, squares, start, stream)
        seen.append(len(squares))
        held.append(len(stream.maps))
        return found

    monkeypatch.setattr(phase_embeddings._Network, "embed", spy)
    embed_phases(runs["conv"], manifest, "test", output, frames_per_batch=2, device="cpu")
    assert sum(seen) == sum(len(video) for video in PhaseVideos(manifest, "test"))
    assert max(held) == 2 + 2 * 4


def test_the_file_says_where_it_comes_from(runs, manifest, output):
    embed_phases(runs["conv"], manifest, "test", output, device="cpu")
    about = load_phase_embeddings(output).about
    assert about["encoder_sha256"] == sha256_file(runs["conv"] / "encoder.safetensors")
    assert about["head_sha256"] == sha256_file(runs["conv"] / "head.safetensors")
    assert about["dataset_sha256"] == sha256_file(manifest)
    assert (about["dataset"], about["split"], about["precision"]) == ("pour", "test", "fp32")
    assert (about["image_size"], about["stride"], about["crop"]) == (32, 1, False)
    assert about["max_videos"] == 0
    assert (about["context"], about["context_step"]) == (3, 4)


def test_without_embedder_frames_have_224_pixels(runs, manifest, output):
    embed_phases(runs["plain"], manifest, "test", output, max_videos=1, device="cpu")
    found = load_phase_embeddings(output)
    assert (found.about["image_size"], found.about["head_sha256"]) == (224, None)
    assert len(found.videos) == 1
    assert found.about["max_videos"] == 1


def test_a_run_that_learnt_from_crops_says_so(tmp_path, manifest, output):
    run = save_run(tmp_path / "cropped", CONV, crop=True)
    embed_phases(run, manifest, "test", output, device="cpu")
    assert load_phase_embeddings(output).about["crop"] is True


def test_again_the_same_bytes(runs, manifest, output):
    digests = set()
    for _ in range(2):
        embed_phases(runs["conv"], manifest, "train", output, device="cpu")
        digests.add(sha256_file(output))
    assert len(digests) == 1
    assert [path.name for path in output.parent.iterdir()] == [output.name]


def test_a_size_that_does_not_fit(runs, tmp_path, output):
    manifest = make_set(tmp_path, image_size=30)
    with pytest.raises(UserError, match=r"frames of 30 pixels do not fit.*multiple of 8"):
        embed_phases(runs["conv"], manifest, "test", output, device="cpu")


def spoil(monkeypatch, rows):
    from timewalk.evaluation import phase_embeddings

    real = phase_embeddings._Network.embed

    def spoilt(self, squares, start, stream):
        found = real(self, squares, start, stream)
        found[rows] = float("nan")
        return found

    monkeypatch.setattr(phase_embeddings._Network, "embed", spoilt)


def test_frames_without_finite_embedding_are_left_out(runs, manifest, output, monkeypatch, caplog):
    spoil(monkeypatch, [2, 5])
    with caplog.at_level(logging.WARNING):
        counts = embed_phases(runs["conv"], manifest, "test", output, device="cpu")
    assert counts["dropped"] == 4
    for sequence, video in zip(
        load_phase_embeddings(output).videos, PhaseVideos(manifest, "test"), strict=True
    ):
        kept = [i for i in range(len(video)) if i not in (2, 5)]
        assert sequence.steps.tolist() == kept
        assert sequence.labels.tolist() == video.labels[kept].tolist()
        assert np.isfinite(sequence.embeddings).all()
        assert f"video {video.name}: 2 frames without" in caplog.text


def test_no_finite_embedding(runs, manifest, output, monkeypatch):
    spoil(monkeypatch, slice(None))
    with pytest.raises(UserError, match=r"none of the embeddings of the video 'pour.*' is finite"):
        embed_phases(runs["conv"], manifest, "test", output, device="cpu")
    assert not output.exists()


def test_videos_without_labels(runs, manifest, output, monkeypatch):
    real = PhaseVideos.__getitem__

    def bare(self, number):
        video = real(self, number)
        return PhaseVideo(video.name, 7, None, video.store)

    monkeypatch.setattr(PhaseVideos, "__getitem__", bare)
    embed_phases(runs["conv"], manifest, "test", output, device="cpu")
    assert [(x.labels, x.action) for x in load_phase_embeddings(output).videos] == [(None, 7)] * 2


# The TCC tools' file


def test_numpy_reads_what_is_written_for_the_tcc_tools(runs, manifest, tmp_path):
    words = ["embed", str(runs["conv"]), str(manifest), "test", str(tmp_path / "x.npy")]
    assert main([*words, "--gpus", "0", "--keep-frames", "--frames-per-batch", "4"]) == 0
    found = np.load(tmp_path / "x.npy", allow_pickle=True).item()
    keys = {"embs", "labels", "seq_lens", "steps", "names", "seq_labels", "frames"}
    assert set(found) == keys
    assert all(isinstance(rows, list) and len(rows) == 2 for rows in found.values())
    for i, video in enumerate(PhaseVideos(manifest, "test")):
        length = len(video)
        assert (found["embs"][i].dtype, found["embs"][i].shape) == (np.float32, (length, 5))
        assert found["seq_lens"][i].tolist() == [length] * length
        assert found["steps"][i].tolist() == list(range(length))
        assert found["labels"][i].tolist() == video.labels.tolist()
        assert found["names"][i].tolist() == [video.name.encode()] * length
        assert found["seq_labels"][i].tolist() == [video.action] * length
        assert {found[key][i].dtype for key in ("labels", "seq_lens", "steps")} == {
            np.dtype("int64")
        }
        frames = found["frames"][i]
        assert (frames.dtype, frames.shape) == (np.float32, (length, 32, 32, 3))
        square = F.interpolate(video.frames([3]).float(), (32, 32), mode="bilinear")
        expected = (square / 127.5 - 1)[0].permute(1, 2, 0).numpy()
        np.testing.assert_allclose(frames[3], expected, atol=1e-6)


def test_there_and_back(runs, manifest, tmp_path):
    for name in ("x.safetensors", "x.npy"):
        embed_phases(runs["conv"], manifest, "test", tmp_path / name, device="cpu")
    ours, theirs = (load_phase_embeddings(tmp_path / f"x.{end}") for end in ("safetensors", "npy"))
    for one, other in zip(ours.videos, theirs.videos, strict=True):
        assert (one.name, one.action) == (other.name, other.action)
        for key in ("embeddings", "labels", "steps"):
            assert np.array_equal(getattr(one, key), getattr(other, key))


# The verbs


def test_both_files_are_evaluated_alike(runs, manifest, tmp_path):
    pytest.importorskip("matplotlib")
    records = {}
    for end in ("safetensors", "npy"):
        paths = [tmp_path / f"{split}.{end}" for split in ("train", "test")]
        for split, path in zip(("train", "test"), paths, strict=True):
            embed_phases(runs["conv"], manifest, split, path, device="cpu")
        settings = json.dumps({"kind": "kendalls_tau", "dataset": "pour", "stride": 1})
        words = ["evaluate", "tau", str(runs["conv"]), str(tmp_path / end / "tau.json")]
        words += ["--settings", settings, "--dataset", str(manifest), "--gpus", "0"]
        assert main([*words, "--embeddings", *map(str, paths)]) == 0
        records[end] = read_json(tmp_path / end / "tau.json")
        origins = records[end]["provenance"]["embeddings"]
        assert [x["sha256"] for x in origins] == [sha256_file(path) for path in paths]
        assert all("names" not in x for x in origins)
    assert records["npy"]["metrics"] == records["safetensors"]["metrics"]


def test_frames_are_kept_in_npy_alone(runs, manifest, output):
    with pytest.raises(UserError, match="frames are kept in the format npy alone"):
        embed_phases(runs["conv"], manifest, "test", output, keep_frames=True, device="cpu")


@pytest.mark.parametrize("words", [["--format", "npy"], ["--keep-frames"], ["--max-videos", "3"]])
def test_options_of_videos_on_images(tmp_path, words, capsys):
    (tmp_path / "manifest.json").write_text(json.dumps({"kind": "labelled"}))
    place = str(tmp_path / "manifest.json")
    assert main(["embed", "run", place, "test", "x", "--gpus", "0", *words]) != 0
    assert f"{' '.join(words[:1])}" in capsys.readouterr().err


def test_the_format_by_name(runs, manifest, tmp_path):
    path = tmp_path / "whatever.dat"
    words = ["embed", str(runs["conv"]), str(manifest), "test", str(path)]
    assert main([*words, "--gpus", "0", "--format", "npy", "--max-videos", "1"]) == 0
    assert len(np.load(path, allow_pickle=True).item()["embs"]) == 1


def test_the_module_imports_without_scikit_learn_and_matplotlib():
    code = (
        "import sys, timewalk.evaluation.phase_embeddings, timewalk.evaluation.few_shot;"
        "sys.exit(any(name in sys.modules for name in ('sklearn', 'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
