"""The model card of hand-made run folders: every number on it, and what it says to load works."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

import timewalk
from timewalk import cli, load_encoder
from timewalk.artefacts import sha256_file, write_json, write_manifest
from timewalk.config import EncoderConfig
from timewalk.encoders import build_encoder, save_encoder, save_head
from timewalk.encoders.embedders import ConvEmbedder, embedder_tensors
from timewalk.encoders.slots import SlotNetwork
from timewalk.errors import UserError
from timewalk.report.card import write_card
from timewalk.suite import load_run

TINY = {"name": "vit_tiny", "width": 24, "depth": 2, "heads": 4, "patch_size": 8, "image_size": 32}
NUMBERS = 24 * 3 * 64 + 24 + 24 + 17 * 24 + 2 * (12 * 24**2 + 13 * 24) + 2 * 24
"""patches, class token, positions, two blocks of weights and biases, final norm"""


def make_run(folder, encoder=TINY, method="dora", **origin):
    """Write a run's folder as a training leaves it."""
    settings = {"method": method, "encoder": encoder, "seed": 7}
    if method == "dora":
        settings |= {"dataset": "talk", "global_size": 32, "local_size": 16}
        settings["training"] = {"epochs": 5, "batch_size": 3, "micro_batch_size": 2}
    config = load_run(settings, "runs.x").model_dump(mode="json")
    known = {"timewalk": "0.1.0", "python": "3.11.9", "device": "cuda (H200)", "seed": 7}
    known |= {"git_commit": "abc123+changes", "packages": {"torch": "2.11.0", "timm": "1.0.1"}}
    known |= {"run": folder.name, "config": config, "config_sha256": "c" * 64}
    network = build_encoder(EncoderConfig(**encoder), 7)
    save_encoder(network, folder, {**known, "inputs": {}, "processes": 4, **origin})
    return folder


def make_result(folder, evaluation="knn", **changes):
    """Write a result as an evaluation leaves it."""
    path = folder / f"{evaluation}.json"
    origin = {"encoder_sha256": sha256_file(folder / "encoder.safetensors"), "training": {}}
    origin |= {"device": "cpu (x86_64)", "packages": {"torch": "2.14.1"}, "git_commit": "def456"}
    record = {"run": folder.name, "method": "dora", "evaluation": evaluation, "split": "test"}
    record |= {"protocol": "knn-cls-t0.07", "dataset": "digits", "samples": 1797}
    write_json(path, {**record, "metrics": {"top1_k5": 61.234}, "provenance": origin, **changes})
    return path


def rows(card, title):
    """Return the cells of the first table under a title, without its header."""
    section = card.split(f"## {title}\n")[1].split("\n## ")[0]
    table = re.search(r"(?:^\|.*\n)+", section, re.M)[0].splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table[2:]]


def blocks(card):
    """Return the blocks of Python."""
    return re.findall(r"```python\n(.*?)```", card, re.S)


@pytest.fixture
def trained(tmp_path):
    """A run trained on two videos, one of which is still there."""
    shards = tmp_path / "data" / "shards" / "talk" / "carphone.json"
    counts = {"frames": 1234, "width": 64, "height": 48, "bytes": 9}
    write_manifest(shards, "shards", inputs={}, parameters={}, counts=counts)
    gone = shards.with_name("venice.json")
    inputs = {str(shards): sha256_file(shards), str(gone): "d" * 64}
    return make_run(tmp_path / "results" / "walk", inputs=inputs, steps=20_000, clips=1200)


def test_what_it_is(trained):
    card = write_card(trained, []).read_text()
    _, front, page = card.split("---\n", 2)
    assert yaml.safe_load(front)["tags"] == [
        "timewalk",
        "dora",
        "image-feature-extraction",
        "learned-from-video",
    ]
    assert page.startswith("\n# walk\n\nDoRA: a ViT from one long video, by discovering objects")
    assert "*Is ImageNet worth 1 video?* (ICLR 2024)" in page
    assert "on the data set `talk`: 20,000 steps on 1,200 clips." in page


def test_architecture(trained):
    cells = dict(rows(write_card(trained, []).read_text(), "Architecture"))
    assert (cells["width"], cells["depth"], cells["heads"]) == ("24", "2", "4")
    assert (cells["patch size"], cells["image size"]) == ("8", "32")
    assert cells["map of patches"] == "24 channels, a cell every 8 px"
    assert cells["mean of images in 0..1"] == "0.485, 0.456, 0.406"
    assert cells["tensors"] == f"30, {NUMBERS:,} numbers in all"
    digest = sha256_file(trained / "encoder.safetensors")
    assert cells["`encoder.safetensors`, SHA-256"] == f"`{digest}`"


def test_training_data(trained):
    card = write_card(trained, []).read_text()
    talk = trained.parents[1] / "data" / "shards" / "talk"
    there, gone = talk / "carphone.json", talk / "venice.json"
    assert rows(card, "Training data") == [
        ["`carphone`", "1,234", "64 x 48", f"`{there}`", f"`{sha256_file(there)}`"],
        ["`venice`", "not here any more", "–", f"`{gone}`", f"`{'d' * 64}`"],
    ]
    assert "Data set `talk`: 2 manifests, not all of them still there. A manifest" in card
    assert "- Video `venice`: CC BY 4.0 by the built-in table" in card
    assert "- Video `carphone`: see `videos.carphone.licence`" in card


def test_the_total_is_there_when_every_manifest_is(trained):
    talk = trained.parents[1] / "data" / "shards" / "talk"
    inputs = {str(talk / "carphone.json"): sha256_file(talk / "carphone.json")}
    write_manifest(
        talk.parents[1] / "videos" / "carphone.json",
        "video",
        inputs={},
        parameters={},
        counts={},
        licence="CC0",
    )
    card = write_card(make_run(trained, inputs=inputs), []).read_text()
    assert "Data set `talk`: 1 video, 1,234 frames." in card
    assert "- Video `carphone`: CC0 (`" in card
    (talk / "carphone.json").write_text("{}")
    card = write_card(trained, []).read_text()
    assert rows(card, "Training data")[0][1:3] == ["made again since, differently", "–"]


@pytest.mark.parametrize(
    ("name", "kind", "storage", "counts", "title", "total"),
    [
        ("folders", "frame_folders", {}, {"videos": 2}, "2 videos in folders", "2 videos, 1,234 f"),
        ("folders", "frame_folders", {}, {"videos": 1}, "1 video in folders", "1 video, 1,234 f"),
        ("images", "shards", {"storage": "images"}, {}, "still images", "1,234 still images"),
    ],
)
def test_training_data_of_files(tmp_path, name, kind, storage, counts, title, total):
    manifest = tmp_path / "data" / "shards" / "talk" / f"{name}.json"
    counts |= {"frames": 1234, "bytes": 9}
    write_manifest(manifest, kind, inputs={}, parameters=storage, counts=counts)
    digest = sha256_file(manifest)
    folder = make_run(tmp_path / "walk", inputs={str(manifest): digest})
    card = write_card(folder, []).read_text()
    assert rows(card, "Training data") == [
        [title, "1,234", "–", f"`{manifest}`", f"`{digest}`"],
    ]
    assert f"Data set `talk`: {total}" in card
    assert "- Files of `talk`: see where they come from." in card
    assert "timewalk blurred no faces in them" in card
    assert "`blur:`" not in card

    manifest.unlink()
    card = write_card(folder, []).read_text()
    assert rows(card, "Training data")[0][:3] == [f"`{name}`", "not here any more", "–"]
    assert "- Files of `talk`: see" in card


def test_a_manifest_of_something_else_is_one_sentence(tmp_path):
    manifest = tmp_path / "walk.json"
    write_manifest(manifest, "frames", inputs={}, parameters={}, counts={})
    folder = make_run(tmp_path / "run", inputs={str(manifest): sha256_file(manifest)})
    with pytest.raises(UserError, match=r"walk\.json describes 'frames', but .* 'shards'"):
        write_card(folder, [])


def test_without_a_head(trained):
    card = write_card(trained, []).read_text()
    assert "head.safetensors" not in card
    assert "`blur:`" in card


def test_a_head_lies_beside_the_encoder(trained, monkeypatch):
    save_head({"prototypes": torch.ones(3, 24)}, trained)
    monkeypatch.chdir(trained.parent)
    card = write_card(Path("walk"), []).read_text()
    digest = sha256_file(trained / "head.safetensors")
    assert dict(rows(card, "Architecture"))["`head.safetensors`, SHA-256"] == f"`{digest}`"
    assert "## Head: `head.safetensors`" in card
    assert "Slots" not in card
    names = {}
    exec(next(text for text in blocks(card) if "load_head" in text), names)
    assert torch.equal(names["tensors"]["prototypes"], torch.ones(3, 24))


def slots_section(card):
    return card.split("\n## Slots: `head.safetensors`\n")[1].split("\n## ")[0]


def test_slots_and_how_to_load_them(trained, monkeypatch):
    torch.manual_seed(0)
    network = SlotNetwork(24, (4, 4), 5, 2, mask="prob", mask_threshold=0.25)
    save_head(network.tensors(), trained)
    monkeypatch.chdir(trained.parent)
    card = write_card(Path("walk"), []).read_text()
    assert (
        "\n5 semantics with 2 instances each, learnt on a grid of 4 x 4 patches; the mask of a "
        "semantic's area is `prob` above 0.25.\n"
    ) in slots_section(card)
    names = {"encoder": load_encoder("walk"), "frames": torch.rand(3, 3, 32, 48)}
    with torch.no_grad():
        exec(next(text for text in blocks(card) if "load_slots" in text), names)
    assert names["masks"].semantic_prob.shape == (1, 3, 5, 24)
    assert names["masks"].instance_masks.shape == (1, 3, 5, 2, 24)
    torch.testing.assert_close(names["masks"].semantic_prob.sum(2), torch.ones(1, 3, 24))


def test_what_is_assumed_of_published_slots(trained):
    save_head(SlotNetwork(24, (4, 4), 5, 4).state_dict(), trained)
    section = slots_section(write_card(trained, []).read_text())
    assert "5 semantics with 4 instances each" in section
    assert "area is `logit` above 0.3. The file does not tell instances, grid and mask" in section
    save_head(SlotNetwork(24, (4, 4), 5, 4, mask="soft").tensors(), trained)
    assert "area is `soft`.\n" in slots_section(write_card(trained, []).read_text())


def test_training_settings(trained):
    card = write_card(trained, []).read_text()
    assert dict(rows(card, "Training")) == {
        "steps": "20,000",
        "clips": "1,200",
        "epochs": "5",
        "max steps": "–",
        "batch size": "3",
        "precision": "bf16",
        "learning rate": "0.0005 for 256 clips",
        "processes": "4",
        "seed": "7",
    }
    details = card.split("<details>")[1].split("</details>")[0]
    assert "| `training.epochs` | `5` | passes over all clips |" in details
    assert "| `num_objects` | `3` |" in details
    assert "micro_batch_size" not in details
    assert "| `encoder.drop_path` | `0.1` |" in details


def test_results_with_their_protocols(trained):
    paths = [
        make_result(trained, metrics={"top1_k20": 60.0, "top1_k5": 61.234, "tau": 0.87654}),
        make_result(trained, "probe", protocol="linear-v1", metrics={"top1": None}, samples=10),
    ]
    card = write_card(trained, paths).read_text()
    knn = ["[knn](knn.json)", "`knn-cls-t0.07`", "digits (test)"]
    assert rows(card, "Results") == [
        [*knn, "tau", "0.8765", "1,797"],
        [*knn, "top1_k5", "61.23", "1,797"],
        [*knn, "top1_k20", "60.00", "1,797"],
        ["[probe](probe.json)", "`linear-v1`", "digits (test)", "top1", "–", "10"],
    ]
    assert [row[0] for row in rows(card, "Environment")] == ["train", "knn", "probe"]
    assert "No evaluation yet." not in card


def test_without_results(trained):
    assert "## Results\n\nNo evaluation yet.\n" in write_card(trained, []).read_text()


def test_environment(trained):
    card = write_card(trained, []).read_text()
    assert rows(card, "Environment") == [
        ["train", "0.1.0", "cuda (H200)", "3.11.9", "1.0.1", "2.11.0", "`abc123+changes`"]
    ]
    assert f"Seed 7; SHA-256 of the configuration `{'c' * 64}`." in card


def test_pictures(trained):
    (trained / "figures").mkdir()
    for number in range(6):
        (trained / "figures" / f"objects-{number}.png").write_bytes(b"")
    card = write_card(trained, []).read_text()
    assert re.findall(r"!\[.*?\]\((.*?)\)", card) == [f"figures/objects-{n}.png" for n in range(4)]


def test_the_same_files_give_the_same_card(trained):
    result = make_result(trained)
    first = write_card(trained, [result]).read_bytes()
    assert write_card(trained, [result]).read_bytes() == first


@pytest.mark.parametrize("encoder", [TINY, {"name": "vit_tiny"}], ids=["class", "name"])
def test_its_lines_load_the_same_network(tmp_path, monkeypatch, encoder):
    make_run(tmp_path / "results" / "random", encoder, "random")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["card", "results/random"]) == 0
    own, hub, timm = blocks((tmp_path / "results" / "random" / "card.md").read_text())
    assert ("timm.create_model" in timm) == (encoder is not TINY)
    side = encoder.get("image_size", 224)
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        names = {"images": images}
        exec(own, names)
        expected = names["features"]
        mean, std = (torch.tensor(values)[:, None, None] for values in _colours())
        names = {"images": (images - mean) / std}
        exec(timm, names)
    torch.testing.assert_close(names["summary"], expected.summary, rtol=1e-4, atol=1e-5)
    assert load_encoder("results/random").state_dict().keys() == names["model"].state_dict().keys()
    assert hub.splitlines()[-1] == (
        'encoder = torch.hub.load(".", "encoder", "results/random", source="local")'
    )


def _colours():
    about = json.loads(Path("results/random/encoder.json").read_text())
    return about["mean"], about["std"]


def test_a_run_without_training(tmp_path):
    card = write_card(make_run(tmp_path / "fresh", method="random"), []).read_text()
    assert "Nothing was trained here" in card
    assert "## Training\n" not in card
    assert "It has seen no data" in card
    assert "learned-from-video" not in card


def test_a_convolutional_network_names_its_weights(tmp_path):
    folder = make_run(tmp_path / "net", {"name": "resnet10t"}, "random")
    about = json.loads((folder / "encoder.json").read_text())
    about["provenance"]["config"]["encoder"]["weights"] = "weights/net.pth"
    write_json(folder / "encoder.json", about)
    card = write_card(folder, []).read_text()
    assert len(blocks(card)) == 2
    assert "timm's `resnet10t` with `body.` before each name" in card
    assert dict(rows(card, "Architecture"))["started from"] == "`weights/net.pth`"
    assert "The weights that it started from, `weights/net.pth`: see their source." in card


def test_our_resnet_is_torchvisions_with_other_strides(tmp_path):
    for padding, more in (("reflect", ", and convolutions pad by reflection."), ("zeros", ".")):
        encoder = {"name": "resnet18_s8", "padding": padding}
        card = write_card(make_run(tmp_path / padding, encoder, "random"), []).read_text()
        assert "those of torchvision's `resnet18` without `fc`" in card
        assert f"`layer3` and `layer4` has stride 1{more}" in card


def test_a_rate_that_is_not_scaled(trained):
    about = json.loads((trained / "encoder.json").read_text())
    about["provenance"]["config"]["training"]["scale_learning_rate"] = False
    write_json(trained / "encoder.json", about)
    assert dict(rows(write_card(trained, []).read_text(), "Training"))["learning rate"] == "0.0005"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"knn\.json is not valid JSON .*; delete it and run its stage again\.$"),
        ("[]", r"knn\.json is no result of an evaluation; leave it out, or make it again\.$"),
        ('{"run": "walk"}', r"knn\.json is no result of an evaluation"),
    ],
)
def test_a_damaged_result_is_one_sentence(trained, capsys, text, message):
    path = trained / "knn.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        write_card(trained, [path])
    assert cli.main(["card", str(trained), str(path)]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"timewalk card: {path} is n")
    assert "Traceback" not in error
    assert not (trained / "card.md").exists()


def test_a_result_of_another_encoder_is_refused(trained):
    path = make_result(trained)
    make_run(trained, {**TINY, "depth": 3})
    with pytest.raises(UserError, match=r"knn\.json was measured with another encoder"):
        write_card(trained, [path])


def test_a_damaged_run_is_one_sentence(trained):
    tensors, about = trained / "encoder.safetensors", trained / "encoder.json"
    tensors.write_bytes(tensors.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"encoder\.safetensors has SHA-256 .* but encoder\.json"):
        write_card(trained, [])
    tensors.unlink()
    with pytest.raises(UserError, match=r"encoder\.safetensors is missing"):
        write_card(trained, [])
    about.write_text('{"kind": "encoder", "provenance": {"run": "walk"}}')
    with pytest.raises(UserError, match=r"encoder\.json does not say how its encoder was made"):
        write_card(trained, [])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet50v2_conv4c", "Keras's `ResNet50V2` up to `conv4_block3_out`"),
        ("resnet50_conv4c", "torchvision's `resnet50` without `layer3.3` and what follows it"),
        ("vgg_m", "VGG-M as TCC has it"),
        ("resnet18_s8", "torchvision's `resnet18` without `fc`"),
        ("test_resnet", "timm's `test_resnet`"),
    ],
)
def test_every_network_is_named(trained, name, words):
    about = json.loads((trained / "encoder.json").read_text())
    network = build_encoder(EncoderConfig(name=name), 0)
    save_encoder(network, trained, about["provenance"])
    assert words in write_card(trained, []).read_text()


def test_an_embedder_and_how_to_use_it(trained, monkeypatch):
    embedder = ConvEmbedder(24, size=8, layers=[(16, 3, True)], fc=[(16, True)])
    about = {"objective": {"name": "tcc"}, "image_size": 32, "context": 2, "context_step": 3}
    save_head(embedder_tensors(embedder, {}, about), trained)
    monkeypatch.chdir(trained.parent)
    card = write_card(Path("walk"), []).read_text()
    section = card.split("\n## Embedder: `head.safetensors`\n")[1]
    assert "8 numbers for each frame of a video, from the maps of 2 frames, 3 apart" in section
    encoder, frames = load_encoder("walk"), torch.rand(5, 3, 32, 32)
    names = {"timewalk": timewalk, "encoder": encoder, "frames": frames}
    exec(next(text for text in blocks(card) if "load_embedder" in text), names)
    with torch.no_grad():
        maps = encoder.dense(frames)
        last = embedder.eval()(torch.stack([maps[1], maps[4]])[None, None])
    assert names["embeddings"].shape == (5, 8)
    torch.testing.assert_close(names["embeddings"][4], last[0, 0])


def test_secrets_of_addresses_are_not_on_it(trained):
    path = trained / "encoder.json"
    about = json.loads(path.read_text())
    weights = "https://me:hunter2@host/x.pth?token=abcdef"
    about["provenance"]["config"]["encoder"]["weights"] = weights
    path.write_text(json.dumps(about))
    card = write_card(trained, []).read_text()
    assert "https://host/x.pth" in card
    assert "hunter2" not in card
    assert "abcdef" not in card
