import json

import pytest
import torch
from safetensors.torch import save_file

from timewalk.config import EncoderConfig
from timewalk.encoders import build_encoder, load_encoder, save_encoder
from timewalk.errors import UserError

TINY = EncoderConfig(
    name="vit_tiny", width=24, depth=2, heads=4, patch_size=8, image_size=32, drop_path=0.1
)


@pytest.fixture
def encoder():
    return build_encoder(TINY, seed=0)


@pytest.fixture
def saved(encoder, tmp_path):
    save_encoder(encoder, tmp_path, {"run": "test"})
    return tmp_path


def test_a_saved_encoder_is_the_same(encoder, saved):
    images = torch.randn(2, 3, 32, 24)
    for place in (saved, str(saved), saved / "encoder.json", saved / "encoder.safetensors"):
        loaded = load_encoder(place)
        assert not loaded.training
        assert torch.equal(loaded(images).patches, encoder.eval()(images).patches)
        assert (loaded.stride, loaded.width, loaded.mean) == (8, 24, encoder.mean)
    card = json.loads((saved / "encoder.json").read_text())
    assert card["provenance"] == {"run": "test"}
    assert "drop_path" not in card["architecture"]


def test_a_truncated_file_is_named(saved):
    path = saved / "encoder.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"encoder.safetensors cannot be read"):
        load_encoder(saved)


def test_missing_files_are_named(saved, tmp_path):
    (saved / "encoder.safetensors").unlink()
    with pytest.raises(UserError, match=r"encoder.safetensors is missing"):
        load_encoder(saved)
    with pytest.raises(UserError, match=r"encoder.json is missing"):
        load_encoder(tmp_path / "nowhere")


@pytest.mark.parametrize(("key", "value"), [("width", 32), ("depth", 3), ("image_size", 64)])
def test_another_architecture_is_refused(saved, key, value):
    card = json.loads((saved / "encoder.json").read_text())
    card["architecture"][key] = value
    (saved / "encoder.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="does not fit the encoder"):
        load_encoder(saved)


@pytest.mark.parametrize("card", [[], {"kind": "frames"}, {"kind": "encoder"}])
def test_a_card_of_something_else_is_refused(saved, card):
    (saved / "encoder.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="does not describe an encoder"):
        load_encoder(saved)


def test_an_unknown_architecture_key_is_refused(saved):
    card = json.loads((saved / "encoder.json").read_text())
    card["architecture"]["colour"] = 1
    (saved / "encoder.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="cannot be built"):
        load_encoder(saved)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_given_weights_with_a_head_are_loaded(encoder, tmp_path, suffix):
    state = {**encoder.state_dict(), "head.weight": torch.zeros(3)}
    path = tmp_path / f"weights.{suffix}"
    torch.save(state, path) if suffix == "pth" else save_file(state, path)
    loaded = build_encoder(TINY.model_copy(update={"weights": str(path)}), seed=9)
    assert torch.equal(loaded.pos_embed, encoder.pos_embed)


def test_missing_tensors_are_listed(encoder, tmp_path):
    state = {k: v for k, v in encoder.state_dict().items() if "blocks.1.mlp" not in k}
    torch.save(state, tmp_path / "w.pth")
    config = TINY.model_copy(update={"weights": str(tmp_path / "w.pth")})
    with pytest.raises(UserError, match=r"4 tensors are missing: blocks.1.mlp.fc1.bias"):
        build_encoder(config, seed=0)


def test_a_wrong_digest_is_refused(encoder, tmp_path):
    torch.save(encoder.state_dict(), tmp_path / "w.pth")
    update = {"weights": str(tmp_path / "w.pth"), "sha256": "0" * 64}
    with pytest.raises(UserError, match=r"encoder\.sha256"):
        build_encoder(TINY.model_copy(update=update), seed=0)


class Payload:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize("content", [{"model": {}}, [1], "text", Payload()])
def test_what_is_no_state_dict_is_refused(tmp_path, content, capsys):
    torch.save(content, tmp_path / "w.pth")
    config = TINY.model_copy(update={"weights": str(tmp_path / "w.pth")})
    with pytest.raises(UserError, match=r"w\.pth"):
        build_encoder(config, seed=0)
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["vit_smal", "no_such_network", "resnet51"])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(UserError, match=r"encoder\.name"):
        build_encoder(EncoderConfig(name=name), seed=0)


def test_a_missing_weights_file_is_named():
    for source in ("/nowhere/w.pth", "package:no_such_package/w.pth"):
        with pytest.raises(UserError, match=r"encoder\.weights"):
            build_encoder(TINY.model_copy(update={"weights": source}), seed=0)
