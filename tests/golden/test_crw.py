"""CRW against arrays of the published code: see data/crw/README.md for names and tolerances."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from timewalk.config import EncoderConfig
from timewalk.encoders import build_encoder
from timewalk.ops.cycles import affinities, cycles, palindromes, transitions

VALUE = {"rtol": 1e-5, "atol": 1e-7}
# Probabilities of float32: what is left of 1 counts.
MATRIX = {"rtol": 1e-5, "atol": 1e-6}
CASES = {
    "base": {"temperature": 0.05},
    "t07": {"temperature": 0.07},
    "flip": {"temperature": 0.05, "flip": True},
    "drop10": {"temperature": 0.05, "rate": 0.1},
    "drop40": {"temperature": 0.05, "rate": 0.4},
}
SEEN = {"enc.x", "q", "q_raw", "u_fwd", "u_bwd"}


@pytest.fixture
def arrays(golden):
    return golden("crw", "crw.npz")


def tensor(array):
    return torch.from_numpy(np.array(array))


def assert_gradient(found, expected):
    """Compare to 1e-4 of the largest entry."""
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def walk(raw_BCTN, uniforms=None, *, temperature, rate=0.0, flip=False):
    """Return everything between raw embeddings and loss, and both leaves."""
    raw = tensor(raw_BCTN).requires_grad_()
    q = F.normalize(raw, dim=1)
    q.retain_grad()
    edges = affinities(q.permute(0, 2, 3, 1))
    there, back = transitions(edges, temperature, rate, uniforms, shared_drops=True)
    walks = palindromes(there, back, flip=flip)
    result = cycles(walks)
    result.loss.backward()
    return raw, q, edges, there, back, walks, result


@pytest.mark.parametrize("case", CASES)
def test_walks_losses_and_gradients(arrays, case):
    draws = torch.stack([tensor(arrays[key]).transpose(0, 1) for key in ("u_fwd", "u_bwd")], dim=1)
    raw, q, edges, there, back, walks, result = walk(arrays["q_raw"], draws, **CASES[case])
    np.testing.assert_allclose(q.detach(), arrays["q"], **VALUE)
    for found, name in (
        (edges, "affinity"),
        (there, "A_fwd"),
        (back, "A_bwd"),
        (walks, "walks"),
    ):
        np.testing.assert_allclose(found.detach(), arrays[f"{case}.{name}"], **MATRIX)
    np.testing.assert_allclose(result.xent.detach(), arrays[f"{case}.xent"], **VALUE)
    np.testing.assert_allclose(result.accuracy, arrays[f"{case}.acc"], **VALUE)
    np.testing.assert_allclose(result.loss.detach(), arrays[f"{case}.loss"], **VALUE)
    assert_gradient(raw.grad, arrays[f"{case}.grad_q_raw"])
    assert_gradient(q.grad, arrays[f"{case}.grad_q"])


def test_three_frames_make_one_cycle(arrays):
    raw, *_, result = walk(arrays["q_raw"][:, :, :3], temperature=0.05)
    np.testing.assert_allclose(result.xent.detach(), arrays["T3.xent"], **VALUE)
    np.testing.assert_allclose(result.accuracy, arrays["T3.acc"], **VALUE)
    np.testing.assert_allclose(result.loss.detach(), arrays["T3.loss"], **VALUE)
    assert_gradient(raw.grad, arrays["T3.grad_q_raw"])


def drawn_encoder(padding):
    """Return a ResNet-18 with the README's weights."""
    encoder = build_encoder(EncoderConfig(name="resnet18_s8", padding=padding), 0).eval()
    rng = np.random.RandomState(20242)
    state = encoder.state_dict()
    for key in sorted(state):
        value = state[key]
        if value.ndim == 4:
            scale = np.sqrt(np.prod(value.shape[1:]))
            state[key] = tensor((rng.standard_normal(value.shape) / scale).astype(np.float32))
        elif not key.endswith("num_batches_tracked"):
            state[key] = torch.full_like(value, float(key.endswith(("weight", "running_var"))))
    encoder.load_state_dict(state)
    return encoder


@pytest.mark.parametrize("kind", ["scratch", "scratch_zeropad"])
@torch.no_grad()
def test_encoder(arrays, kind):
    encoder = drawn_encoder("reflect" if kind == "scratch" else "zeros")
    images_TCHW = tensor(arrays["enc.x"])[0].transpose(0, 1)
    parameters = {key: x.numel() for key, x in encoder.named_parameters()}
    shallow = sum(count for key, count in parameters.items() if not key.startswith("layer4"))
    for part, run, every, count in (
        ("full", encoder.deepest, 32, sum(parameters.values())),
        ("nolayer4", encoder.dense, 16, shallow),
    ):
        name = f"enc.{kind}.{part}"
        maps = run(images_TCHW)
        np.testing.assert_allclose(
            maps.transpose(0, 1)[None, ::every], arrays[f"{name}.out"], rtol=1e-4, atol=1e-5
        )
        stats = [maps.mean(), maps.std()]
        np.testing.assert_allclose(stats, arrays[f"{name}.stats"], rtol=1e-5)
        assert count == arrays[f"{name}.params"]


def test_every_array_is_compared(arrays):
    cases = [
        f"{case}.{what}"
        for case in CASES
        for what in (
            "affinity",
            "A_fwd",
            "A_bwd",
            "walks",
            "xent",
            "acc",
            "loss",
            "grad_q_raw",
            "grad_q",
        )
    ]
    short = [f"T3.{what}" for what in ("xent", "acc", "loss", "grad_q_raw")]
    encoders = [
        f"enc.{kind}.{part}.{what}"
        for kind in ("scratch", "scratch_zeropad")
        for part in ("full", "nolayer4")
        for what in ("out", "stats", "params")
    ]
    assert arrays.keys() == {*SEEN, *cases, *short, *encoders}
