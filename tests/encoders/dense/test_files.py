import json

import pytest
import torch

from tests.encoders.dense.families import encoder
from timewalk.encoders.dense import finetuned_title, load_network, save_network
from timewalk.encoders.dense.segmenter import Segmenter
from timewalk.errors import UserError

ABOUT = {"title": "upernet-160k", "classes": ["wall", "sky"]}


def network(name="vit/16", head="upernet", **keys):
    torch.manual_seed(0)
    return Segmenter(encoder(name), 2, head, channels=8, aux_channels=4, **keys).eval()


@pytest.fixture
def saved(tmp_path):
    save_network(network(), tmp_path, ABOUT)
    return tmp_path


def edit(folder, change):
    card = json.loads((folder / "network.json").read_text())
    change(card)
    (folder / "network.json").write_text(json.dumps(card))


@torch.no_grad()
@pytest.mark.parametrize("head", ["linear", "upernet"])
@pytest.mark.parametrize("name", ["vit/16", "resnet18_s8", "test_resnet", "vgg_m"])
def test_a_saved_network_is_the_same(name, head, tmp_path):
    original = network(name, head, out_norm=False)
    original.encoder.normalise_by((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    save_network(original, tmp_path, ABOUT)
    loaded, about = load_network(tmp_path, "segmenter")
    images = torch.randn(1, 3, 40, 64)
    assert torch.equal(loaded(images), original(images))
    assert not loaded.training
    assert loaded.spec == original.spec
    assert loaded.encoder.mean == (0.1, 0.2, 0.3)
    assert finetuned_title(about) == "upernet-160k"
    assert about["classes"] == ["wall", "sky"]
    assert (about["mean"], about["std"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "network.json",
        "network.safetensors",
    ]


def test_what_the_card_holds_itself_cannot_be_overwritten(tmp_path):
    with pytest.raises(ValueError, match="sha256"):
        save_network(network(), tmp_path, {"sha256": "0"})


@pytest.mark.parametrize("file", ["network.json", "network.safetensors"])
def test_missing_files_are_named(saved, file):
    (saved / file).unlink()
    with pytest.raises(UserError, match=rf"{file} is missing"):
        load_network(saved, "segmenter")


def test_damaged_files_are_named(saved):
    path = saved / "network.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"network.safetensors cannot be read"):
        load_network(saved, "segmenter")
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=r"is not the file that network.json describes"):
        load_network(saved, "segmenter")
    (saved / "network.json").write_text("{")
    with pytest.raises(UserError, match=r"network.json is not valid JSON"):
        load_network(saved, "segmenter")


def test_another_kind_is_refused(saved):
    with pytest.raises(UserError, match="describes a segmenter, but a detector is needed here"):
        load_network(saved, "detector")
    edit(saved, lambda card: card.update(kind="encoder"))
    with pytest.raises(UserError, match="does not describe a fine-tuned network"):
        load_network(saved, "segmenter")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda spec: spec.pop("kind"), r"cannot be built \('kind'\)"),
        (lambda spec: spec.update(scales=3), "cannot be built"),
        (lambda spec: spec.update(channels=16), "does not fit the network"),
        (lambda spec: spec["encoder"].update(depth=2), "tensors are unknown to it"),
        (lambda spec: spec.update(head="linear"), "does not fit the network"),
    ],
)
def test_another_architecture_is_refused(saved, change, message):
    edit(saved, lambda card: change(card["architecture"]))
    with pytest.raises(UserError, match=message):
        load_network(saved, "segmenter")
