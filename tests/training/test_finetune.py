"""A fine-tuning from a run's encoder to its files, on a toy task."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.finetuning.toy import Colour, Network, Normalised, tiny_vit
from timewalk import finetuning
from timewalk.artefacts import write_json
from timewalk.encoders import save_encoder
from timewalk.encoders.dense import files
from timewalk.errors import UserError
from timewalk.finetuning.base import FinetuningConfig
from timewalk.training.checkpoint import checkpoints
from timewalk.training.finetune import finetune
from timewalk.training.loop import InterruptedTraining, Machine

MACHINE = Machine(torch.device("cpu"))
TRAINING = {
    "epochs": 3,
    "batch_size": 4,
    "learning_rate": 0.01,
    "warmup_steps": 1,
    "precision": "fp32",
}


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Return a fine-tuning of a saved encoder into a folder."""
    monkeypatch.setitem(finetuning._TASKS, "colour", "tests.finetuning.toy:Colour")
    monkeypatch.setattr(Network, "spec", {"kind": "colour"}, raising=False)
    save_encoder(tiny_vit(), tmp_path / "run", {})
    manifest = tmp_path / "manifest.json"
    write_json(manifest, {"classes": ["red", "green", "blue"]})
    keys = {"task": "colour", "dataset": "colours", "layer_decay": 0.9}

    def run(output: str, drop_path: float = 0.1, **training: object) -> Path:
        own = {"drop_path": drop_path, "training": {**TRAINING, **training}}
        config = FinetuningConfig.model_validate({**keys, **own})
        finetune("colours", config, tmp_path / "run", manifest, tmp_path / output, MACHINE)
        return tmp_path / output

    return run


def test_the_network_its_card_and_its_curve(call):
    output = call("out")
    card = json.loads((output / files.CARD).read_text())
    assert card["kind"] == "network"
    assert (card["name"], card["task"], card["title"]) == ("colours", "colour", "colour")
    assert card["classes"] == ["red", "green", "blue"]
    assert (card["images"], card["steps"]) == (8, 6)
    assert card["provenance"]["config"]["layer_decay"] == 0.9
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0]
    tensors = load_file(output / files.TENSORS)
    assert "encoder.blocks.0.attn.qkv.weight" in tensors


def test_the_encoder_learns_slower_than_the_head(call):
    before = tiny_vit().state_dict()
    tensors = load_file(call("out") / files.TENSORS)
    moved = {
        name: float((tensors[f"encoder.{name}"] - before[name]).abs().max())
        for name in ("patch_embed.proj.weight", "norm.weight")
    }
    assert 0 < moved["patch_embed.proj.weight"] < moved["norm.weight"]


def test_an_interrupted_fine_tuning_ends_where_an_undisturbed_one_does(call, monkeypatch):
    whole = call("whole")
    sample, seen = Colour.sample, []

    def stopping(self, clip, rng):
        seen.append(clip)
        if len(seen) == 10:
            raise InterruptedTraining("stopped")
        return sample(self, clip, rng)

    with monkeypatch.context() as patch:
        patch.setattr(Colour, "sample", stopping)
        with pytest.raises(InterruptedTraining):
            call("parts", checkpoint_minutes=1e-6)
    assert not (whole.parent / "parts" / files.TENSORS).exists()
    parts = call("parts", checkpoint_minutes=1e-6)
    one, two = (load_file(folder / files.TENSORS) for folder in (whole, parts))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_another_configuration_is_refused(call):
    call("out")
    with pytest.raises(UserError, match=r"training\.learning_rate was 0\.01 and is 0\.02"):
        call("out", learning_rate=0.02)


def test_a_changed_encoder_is_fine_tuned_anew_and_the_first_is_not_lost(call, tmp_path, caplog):
    caplog.set_level("INFO")
    first = (call("out") / files.TENSORS).read_bytes()
    whole = checkpoints(tmp_path / "out" / "checkpoints")
    encoder = tiny_vit()
    torch.nn.init.ones_(encoder.norm.bias)
    save_encoder(encoder, tmp_path / "run", {})
    assert (call("out") / files.TENSORS).read_bytes() != first
    assert "going on" not in caplog.text
    [aside] = (tmp_path / "out").glob("checkpoints-*")
    assert f"older checkpoints go to {aside}" in caplog.text
    assert [path.name for path in checkpoints(aside)] == [path.name for path in whole]
    # The first encoder again: its network is there without a step.
    save_encoder(tiny_vit(), tmp_path / "run", {})
    assert (call("out") / files.TENSORS).read_bytes() == first
    assert "going on from step 6 of 6" in caplog.text


@pytest.mark.parametrize("moved", range(6))
def test_killed_while_checkpoints_move_it_loses_none(call, tmp_path, moved, monkeypatch):
    folder = tmp_path / "out" / "checkpoints"
    first = (call("out") / files.TENSORS).read_bytes()
    kept = sorted(path.name for path in folder.iterdir())
    encoder = tiny_vit()
    torch.nn.init.ones_(encoder.norm.bias)
    save_encoder(encoder, tmp_path / "run", {})
    call("out")
    save_encoder(tiny_vit(), tmp_path / "run", {})
    replaced, count = Path.replace, iter(range(100))

    def killed_in_between(path, target):
        # The one that ran is moved aside first, file by file, then the first one comes back.
        if "checkpoints" in str(path) and next(count) == moved:
            raise KeyboardInterrupt
        return replaced(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed_in_between)
        with pytest.raises(KeyboardInterrupt):
            call("out")
    assert (call("out") / files.TENSORS).read_bytes() == first
    assert sorted(path.name for path in folder.iterdir()) == kept


def test_a_changed_labelled_set_is_learned_anew(call, tmp_path):
    call("out")
    write_json(tmp_path / "manifest.json", {"classes": ["red", "green", "blue"], "images": 9})
    call("out")
    [aside] = (tmp_path / "out").glob("checkpoints-*")
    assert len(checkpoints(aside)) == len(checkpoints(tmp_path / "out" / "checkpoints")) == 2


@pytest.fixture
def normalised(call, monkeypatch):
    """Return the fine-tuning of a network with a batch normalisation."""
    monkeypatch.setattr(Colour, "build", lambda self, encoder, about: Normalised(encoder))
    return call


def title(output: Path) -> str:
    return json.loads((output / files.CARD).read_text())["title"]


def test_the_protocol_names_how_many_images_are_normalised_at_once(normalised):
    assert title(normalised("whole")) == "colour"
    assert title(normalised("large", micro_batch_size=4)) == "colour"
    assert title(normalised("parts", micro_batch_size=3)) == "colour-bn2"


def test_micro_batches_are_no_protocol_without_batch_normalisation(call):
    assert title(call("parts", micro_batch_size=2)) == "colour"


def test_a_finished_network_is_not_relabelled(normalised):
    assert title(normalised("out", micro_batch_size=2)) == "colour-bn2"
    assert title(normalised("out")) == "colour-bn2"


def test_normalisations_see_as_many_images_after_a_resume(normalised, call, monkeypatch):
    sample, seen = Colour.sample, []

    def stopping(self, clip, rng):
        seen.append(clip)
        if len(seen) == 10:
            raise InterruptedTraining("stopped")
        return sample(self, clip, rng)

    with monkeypatch.context() as patch:
        patch.setattr(Colour, "sample", stopping)
        with pytest.raises(InterruptedTraining):
            normalised("out", micro_batch_size=2, checkpoint_minutes=1e-6)
    with pytest.raises(UserError, match="saw 2 images at once and would see 4"):
        normalised("out")
    assert title(normalised("out", micro_batch_size=2)) == "colour-bn2"


def test_parts_of_a_batch_add_up(call):
    one, two = (
        load_file(call(name, 0.0, micro_batch_size=size, optimizer="sgd") / files.TENSORS)
        for name, size in (("whole", None), ("parts", 2))
    )
    close = partial(torch.allclose, rtol=1e-4, atol=1e-6)
    assert all(close(one[name], two[name]) for name in one)
