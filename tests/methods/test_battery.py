"""What every method must do; a method gets these tests by being registered.

Each method's ``Config.miniature()`` gives the keys of a run that takes seconds on a CPU.
"""

import json
import math

import pytest
import torch

from tests.training.processes import as_clip, float64, miniature, moments, train_in_processes
from tests.training.processes import train as train_run
from timewalk.encoders import load_encoder, save_encoder
from timewalk.methods import get_method, method_names
from timewalk.methods.base import Step
from timewalk.training.loop import InterruptedTraining, Trainer

TRAINED = [name for name in method_names() if get_method(name).trains]
DECAY_ALONE = {"smtc": {"student.slots.slot_attention.slots_sigma"}}
"""parameters whose gradient is zero by design, so that only the weight decay moves them"""

DRAWS_BY_PLACE = {"sal", "tcc_sal_tcn"}
"""methods that draw for each clip by its place in the batch: its order counts"""


@pytest.fixture
def build(tmp_path):
    """Return a builder of miniatures: name and changed keys to method."""

    def call(name, **changes):
        method = get_method(name)
        keys = {**method.Config.miniature(), **changes}
        if name == "pretrained":
            encoder = keys["encoder"]
            fresh = get_method("random").Config(method="random", encoder=encoder)
            save_encoder(get_method("random")(fresh).encoder, tmp_path, {})
            keys["encoder"] = {**encoder, "weights": str(tmp_path / "encoder.safetensors")}
        return method(method.Config.model_validate(keys))

    return call


def clips(method, count=2, seed=0):
    """Return smooth random clips: something to learn from, unlike noise."""
    frames, sampler = method.clip_shape().frames, method.clip_shape().sampler
    rng = torch.Generator().manual_seed(seed)
    small = torch.rand(count * frames, 3, 6, 8, generator=rng)
    large = torch.nn.functional.interpolate(small, size=(48, 64), mode="bilinear")
    data = (large * 255).to(torch.uint8).unflatten(0, (count, frames))
    return [as_clip(clip, sampler, number) for number, clip in enumerate(data)]


def batch(method, seed=0):
    views = []
    for number, clip in enumerate(clips(method, seed=seed)):
        views.append(method.sample(clip, torch.Generator().manual_seed(number)))
    return {key: torch.stack([view[key] for view in views]) for key in views[0]}


def step(index, total=100, epoch=0):
    return Step(index, epoch, total, total, 1, seed=0)


def train(method, data, steps):
    parameters = [p for group in method.parameter_groups() for p in group.parameters]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
    losses = []
    for index in range(steps):
        result = method.loss(data, step(index))
        optimizer.zero_grad()
        result.total.backward()
        method.after_backward(step(index))
        optimizer.step()
        after = method.after_step(step(index), {**result.means, **result.rows})
        terms = {**result.terms, **after}
        assert all(torch.isfinite(torch.as_tensor(value)) for value in terms.values()), terms
        losses.append(result.total.item())
    return losses


@pytest.mark.parametrize("name", method_names())
def test_construction_is_deterministic_and_leaves_the_global_generator(build, name):
    before = torch.get_rng_state()
    one, two = build(name).state_dict(), build(name).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("name", [n for n in method_names() if n != "pretrained"])
def test_the_seed_counts(build, name):
    one, two = build(name, seed=1).state_dict(), build(name, seed=2).state_dict()
    assert any(not torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("name", method_names())
def test_the_encoder_survives_saving(build, name, tmp_path):
    encoder = build(name).encoder.eval()
    save_encoder(encoder, tmp_path / "saved", {})
    images = torch.randn(2, 3, 32, 32)
    found, expected = load_encoder(tmp_path / "saved")(images), encoder(images)
    assert torch.equal(found.summary, expected.summary)
    assert torch.equal(found.patches, expected.patches)
    assert expected.summary.shape == (2, encoder.width)


@pytest.mark.parametrize("name", TRAINED)
def test_views_depend_on_the_generator_alone(build, name):
    method = build(name)
    clip = clips(method)[0]
    one, two, other = (method.sample(clip, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", TRAINED)
def test_the_loss_is_finite_and_falls(build, name):
    method = build(name)
    data, buffers = batch(method), {key: x.clone() for key, x in method.named_buffers()}
    losses = train(method, data, steps=12)
    assert all(math.isfinite(loss) for loss in losses)
    # A queue that has filled with this very batch makes the task harder than it was at first.
    for key, buffer in method.named_buffers():
        buffer.copy_(buffers[key])
    (after,) = train(method, data, steps=1)
    assert after < losses[0]


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_reach_what_learns_and_nothing_else(build, name):
    method = build(name)
    method.loss(batch(method), step(0)).total.backward()
    grouped = [p for group in method.parameter_groups() for p in group.parameters]
    assert len({id(p) for p in grouped}) == len(grouped)
    for key, parameter in method.named_parameters():
        learns = any(parameter is p for p in grouped)
        assert learns == parameter.requires_grad, key
        assert (parameter.grad is not None) == learns, key
        if learns:
            assert parameter.grad.isfinite().all(), key
            moves = key not in DECAY_ALONE.get(name, ())
            assert bool(parameter.grad.any()) == moves, f"{key} gets no gradient, or one too many"


@pytest.mark.parametrize("name", TRAINED)
def test_a_saved_method_goes_on_as_if_nothing_happened(build, name, tmp_path):
    method = build(name)
    data = batch(method)
    train(method, data, steps=2)
    torch.save({"method": method.state_dict(), "extra": method.state()}, tmp_path / "state.pt")
    again = build(name, seed=7)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    again.load_state_dict(saved["method"])
    again.load_state(saved["extra"])
    torch.manual_seed(0)
    expected = train(method, data, steps=2)
    torch.manual_seed(0)
    assert train(again, data, steps=2) == expected


@pytest.mark.parametrize("name", [n for n in TRAINED if n not in DRAWS_BY_PLACE])
def test_the_order_of_clips_does_not_matter(build, name):
    method = build(name)
    # Each image draws its own drop path, so evaluation mode.
    method.eval()
    data = batch(method)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    one = method.loss(data, step(0)).total
    method.load_state_dict(before)
    other = method.loss({key: value.flip(0) for key, value in data.items()}, step(0)).total
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", TRAINED)
def test_bfloat16_autocast(build, name):
    method = build(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = method.loss(batch(method), step(0))
    assert result.total.dtype == torch.float32
    assert result.total.isfinite()
    result.total.backward()


@pytest.mark.parametrize("name", TRAINED)
def test_pictures_are_pictures(build, name):
    method = build(name)
    before = torch.get_rng_state()
    for picture in method.visualise(clips(method)[0].frames).values():
        assert picture.dtype.name == "uint8"
        assert picture.ndim == 3
        assert picture.shape[2] == 3
    assert torch.equal(torch.get_rng_state(), before)


def curve(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    machine = ("time", "data_s", "step_s", "clips_per_s", "peak_memory_mb")
    return [{k: v for k, v in line.items() if k not in machine} for line in lines]


def assert_near(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(
            torch.as_tensor(found[key]),
            torch.as_tensor(value),
            rtol=0,
            atol=tolerance,
            msg=lambda text, key=key: f"{key}: {text}",
        )


@pytest.mark.parametrize("name", TRAINED)
def test_two_processes_train_as_one(tmp_path, name):
    config = miniature(name)
    (tmp_path / "two").mkdir()
    with float64():
        one = train_run(config, tmp_path / "one")
        start = get_method(name)(config).state_dict()
        first, second = train_in_processes(config, tmp_path / "two", 2)
    expected = one.method.state_dict()
    moved = max(float((expected[k].float() - start[k].float()).abs().max()) for k in start)
    assert moved > 1e-3
    assert_near(second, first, 0)
    assert_near(first, expected, 1e-6)
    assert_near(moments(tmp_path / "two"), moments(tmp_path / "one"), 1e-6)
    for found, line in zip(curve(tmp_path / "two"), curve(tmp_path / "one"), strict=True):
        assert found == pytest.approx(line, rel=2e-5, abs=2e-5)


@pytest.mark.parametrize("name", [n for n in TRAINED if get_method(n).splits])
def test_micro_batches_train_as_the_whole_batch(tmp_path, name):
    with float64():
        expected = train_run(miniature(name), tmp_path / "one").method.state_dict()
        parts = train_run(miniature(name, micro_batch_size=1), tmp_path / "parts")
    assert parts.share.parts == 4
    assert_near(parts.method.state_dict(), expected, 1e-6)


@pytest.mark.parametrize("what", ["cheap", "full"])
@pytest.mark.parametrize("name", TRAINED)
def test_recomputed_activations_train_the_same(tmp_path, name, what):
    expected = train_run(miniature(name), tmp_path / "one").method.state_dict()
    found = train_run(miniature(name, activation_checkpointing=what), tmp_path / "again")
    assert_near(found.method.state_dict(), expected, 1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", TRAINED)
def test_lower_precisions_train(tmp_path, name, precision):
    config = miniature(name, precision=precision)
    method = train_run(config, tmp_path).method
    assert all(p.dtype == torch.float32 for p in method.parameters())
    assert all(bool(value.isfinite().all()) for value in method.state_dict().values())


@pytest.mark.parametrize("name", TRAINED)
def test_an_interrupted_training_ends_as_one_never_stopped(tmp_path, name, monkeypatch):
    config = get_method(name).Config.miniature()
    config["training"] = {**config["training"], "batch_size": 4, "epochs": 3}
    config = get_method(name).Config.model_validate(config)
    whole = train_run(config, tmp_path / "whole")
    original = Trainer._step

    def stopped(self, data, step):
        self.stop = step.index == 2
        return original(self, data, step)

    monkeypatch.setattr(Trainer, "_step", stopped)
    with pytest.raises(InterruptedTraining):
        train_run(config, tmp_path / "parts")
    monkeypatch.undo()
    again = train_run(config, tmp_path / "parts")
    assert again.first == 3
    assert_near(again.method.state_dict(), whole.method.state_dict(), 0)
    assert_near(moments(tmp_path / "parts"), moments(tmp_path / "whole"), 0)
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
