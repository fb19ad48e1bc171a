import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from timewalk.artefacts import sha256_file
from timewalk.config import ArrayLabels, EncoderConfig
from timewalk.data.labelled import LabelledImages
from timewalk.data.prepare import prepare
from timewalk.encoders import build_encoder, load_encoder, save_encoder
from timewalk.errors import UserError
from timewalk.evaluation.embed import embed, load_embeddings

CONFIG = EncoderConfig(name="vit_tiny", patch_size=8, image_size=16, depth=2, width=24, heads=3)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save_encoder(build_encoder(CONFIG, 0), folder, {})
    return folder


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (11, 20, 17, 3), dtype=np.uint8)
    labels = np.arange(11) % 3
    np.savez(
        folder / "x.npz",
        train_images=images,
        train_labels=labels,
        test_images=images[:3],
        test_labels=labels[:3],
    )
    config = ArrayLabels(kind="arrays", path=str(folder / "x.npz"), resize=16, crop=16)
    prepare("toy", config, folder / "manifest.json")
    return folder / "manifest.json"


@pytest.fixture
def output(tmp_path):
    return tmp_path / "embeddings" / "toy-train.safetensors"


def test_features_are_those_of_the_encoder(run_dir, manifest, output):
    counts = embed(run_dir, manifest, "train", output, batch_size=4, device="cpu")
    assert counts == {"images": 11, "width": 24, "device": "cpu"}
    found = load_embeddings(output)
    encoder, images = load_encoder(run_dir), LabelledImages(manifest, "train")
    pixels = torch.stack([image for image, _ in images]).float() / 255
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (encoder.mean, encoder.std))
    with torch.inference_mode():
        expected = encoder((pixels - mean) / std).summary
    torch.testing.assert_close(found.features, expected, rtol=1e-5, atol=1e-5)
    assert found.labels.tolist() == [i % 3 for i in range(11)]


def test_the_file_says_where_it_comes_from(run_dir, manifest, output):
    embed(run_dir, manifest, "test", output, device="cpu")
    with safe_open(output, "pt") as file:
        about = json.loads(file.metadata()["about"])
    assert about["encoder_sha256"] == sha256_file(run_dir / "encoder.safetensors")
    assert about["dataset_sha256"] == sha256_file(manifest)
    assert (about["dataset"], about["split"], about["precision"]) == ("toy", "test", "fp32")
    assert about["classes"] == ["0", "1", "2"]
    assert load_embeddings(output).classes == ["0", "1", "2"]


def test_again_and_with_workers_the_same_bytes(run_dir, manifest, output):
    found = set()
    for workers in (0, 0, 2):
        embed(run_dir, manifest, "train", output, batch_size=4, workers=workers, device="cpu")
        found.add(sha256_file(output))
    assert len(found) == 1
    assert [path.name for path in output.parent.iterdir()] == [output.name]


def test_bf16_on_request(run_dir, manifest, output, tmp_path):
    embed(run_dir, manifest, "train", output, device="cpu", precision="bf16")
    embed(run_dir, manifest, "train", tmp_path / "exact.safetensors", device="cpu")
    rough, exact = load_embeddings(output), load_embeddings(tmp_path / "exact.safetensors")
    assert rough.features.dtype == torch.float32
    assert not rough.features.equal(exact.features)
    torch.testing.assert_close(rough.features, exact.features, rtol=0.1, atol=0.1)


def test_an_unreadable_image_in_a_worker_is_one_sentence(run_dir, manifest, output, monkeypatch):
    def broken(self, index):
        raise UserError("cat/7.png cannot be read; restore it.")

    monkeypatch.setattr(LabelledImages, "__getitem__", broken)
    for workers in (0, 1):
        with pytest.raises(UserError) as caught:
            embed(run_dir, manifest, "train", output, workers=workers, device="cpu")
        assert str(caught.value) == "cat/7.png cannot be read; restore it."
    assert not output.parent.exists() or not list(output.parent.iterdir())


def test_features_that_are_not_finite(manifest, output, tmp_path):
    encoder = build_encoder(CONFIG, 0)
    with torch.no_grad():
        next(encoder.parameters()).fill_(float("nan"))
    save_encoder(encoder, tmp_path / "run", {})
    with pytest.raises(UserError, match="not finite"):
        embed(tmp_path / "run", manifest, "train", output, device="cpu")
    assert not output.exists()


def test_files_that_are_no_embeddings(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(UserError, match=r"x\.safetensors is missing"):
        load_embeddings(path)
    path.write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"x\.safetensors holds no embeddings"):
        load_embeddings(path)
    save_file({"features": torch.zeros(2, 2)}, path)
    with pytest.raises(UserError, match=r"x\.safetensors holds no embeddings"):
        load_embeddings(path)
