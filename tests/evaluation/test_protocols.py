"""Protocols: the numbers of the publications, sizes, and names that tell what was changed."""

import math
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from timewalk.encoders.base import IMAGENET_MEAN, IMAGENET_STD
from timewalk.errors import UserError
from timewalk.evaluation.protocols import PropagationConfig, input_size, make_protocol


class Network:
    """What a protocol asks of an encoder."""

    def __init__(self, stride=8, multiple=1, mean=IMAGENET_MEAN, std=IMAGENET_STD):
        self.stride, self.multiple, self.mean, self.std = stride, multiple, mean, std


def make(name, stride=8, network=None, *, own_context=None, size=None, **keys):
    config = PropagationConfig(kind="davis", dataset="d", **keys)
    return make_protocol(name, config, network or Network(stride), context=own_context, size=size)


def title(name, stride=8, **keys):
    return make(name, stride, **keys).title


def test_published_settings():
    crw = asdict(make("crw").propagation)
    assert crw == {
        "context": 20,
        "top_k": 10,
        "temperature": 0.05,
        "radius": 12,
        "window": "disc",
        "fill": True,
        "keep_ties": False,
        "long_term": (0,),
        "normalise": False,
    }
    dino = asdict(make("dino").propagation)
    changed = {"context": 7, "top_k": 5, "temperature": 0.1, "window": "square"}
    assert dino == crw | changed | {"fill": False, "keep_ties": True}
    assert asdict(make("smtc", 16).propagation) == crw | {
        "top_k": 7,
        "radius": 7,
        "temperature": 0.2,
    }


@pytest.mark.parametrize(
    ("stride", "upsample", "top_k", "radius"),
    [(16, 1, 7, 7), (32, 1, 7, 7), (16, 2, 28, 35), (8, 1, 28, 35), (14, 1, 28, 35), (32, 2, 7, 7)],
)
def test_smtc_by_stride(stride, upsample, top_k, radius):
    found = make("smtc", stride, upsample=upsample).propagation
    assert (found.top_k, found.radius, found.context, found.temperature) == (top_k, radius, 20, 0.2)


def test_steps_beside_propagation():
    crw, dino, smtc = (make(name) for name in ("crw", "dino", "smtc"))
    assert [one.hard_labels for one in (crw, dino, smtc)] == [False, True, False]
    assert [one.minmax for one in (crw, dino, smtc)] == [False, True, False]
    assert [one.before_norm for one in (crw, dino, smtc)] == [False, False, True]
    assert [one.size for one in (crw, dino, smtc)] == ["native", "dino", "native"]
    assert [one.std for one in (crw, dino, smtc)] == [None, (0.228, 0.224, 0.225), None]
    assert make("crw", size=320).size == 320
    other = Network(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert make("dino", network=other).std is None


@pytest.mark.parametrize(
    ("keys", "mark"),
    [
        ({"context": 4}, "-n4"),
        ({"top_k": 3}, "-k3"),
        ({"radius": 5.5}, "-r5.5"),
        ({"temperature": 0.07}, "-t0.07"),
        ({"long_term": [0, 3]}, "-l0_3"),
        ({"norm_mask": True}, "-norm"),
        ({"size": 320}, "-320px"),
        ({"context": 4, "radius": 5}, "-n4-r5"),
    ],
)
def test_what_is_changed_stands_in_the_name(keys, mark):
    assert title("crw", **keys) == f"crw-s8{mark}"


def test_names():
    assert [title(name) for name in ("crw", "dino", "smtc")] == ["crw-s8", "dino-s8", "smtc-s8"]
    assert title("smtc", 16, upsample=2) == "smtc-s8-x2"
    assert title("dino", 16, upsample=2) == "dino-s8-x2"
    assert title("crw", 7, upsample=2) == "crw-s3.5-x2"


def test_the_published_value_is_no_change():
    keys = {"context": 20, "top_k": 10, "radius": 12, "temperature": 0.05, "long_term": [0]}
    assert title("crw", **keys) == "crw-s8"
    assert title("smtc", 16, top_k=7) == "smtc-s16"
    assert title("smtc", 16, top_k=28) == "smtc-s16-k28"


@pytest.mark.parametrize("name", ["crw", "dino", "smtc"])
def test_a_radius_of_0_is_none(name):
    found = make(name, radius=0)
    assert (found.propagation.radius, found.title) == (math.inf, f"{name}-s8-r0")


def test_a_sets_own_context():
    found = make("crw", own_context=7)
    assert (found.propagation.context, found.title) == (7, "crw-s8")
    assert make("crw", own_context=7, context=7).title == "crw-s8"
    found = make("crw", own_context=7, context=20, size=320)
    assert (found.propagation.context, found.title) == (20, "crw-s8-n20-320px")


@pytest.mark.parametrize("keys", [{"long_term": [0, 2]}, {"norm_mask": True}])
def test_steps_that_dino_has_not(keys):
    with pytest.raises(UserError, match=rf"^{next(iter(keys))}: protocol dino has no such step;"):
        make("dino", **keys)


@pytest.mark.parametrize(
    "keys",
    [
        {"context": 0},
        {"top_k": 0},
        {"radius": -1},
        {"radius": math.inf},
        {"temperature": 0},
        {"upsample": 3},
        {"long_term": [-1]},
        {"topk": 5},
    ],
)
def test_keys_that_are_refused(keys):
    with pytest.raises(ValidationError, match=next(iter(keys))):
        make("crw", **keys)


@pytest.mark.parametrize("name", ["crw", "dino", "smtc"])
def test_no_long_term_frame(name):
    with pytest.raises(UserError, match=r"^long_term: is empty; name a frame at least, such as 0"):
        make(name, long_term=[])


@pytest.mark.parametrize(
    ("name", "multiple", "size", "expected"),
    [
        ("dino", 16, (480, 854), (480, 832)),
        ("dino", 8, (480, 854), (480, 832)),
        ("dino", 16, (854, 480), (832, 480)),
        ("dino", 16, (1080, 1920), (480, 832)),
        ("dino", 16, (480, 910), (480, 896)),
        ("dino", 1, (480, 854), (480, 832)),
        # As in the original, a square is brought to a multiple of 64 in one direction.
        ("dino", 16, (480, 480), (480, 448)),
        ("dino", 14, (480, 854), (476, 826)),
        ("smtc", 16, (480, 854), (480, 848)),
        ("smtc", 16, (854, 480), (848, 480)),
        ("smtc", 8, (480, 854), (480, 848)),
        ("crw", 1, (480, 854), (480, 854)),
        ("crw", 1, (479, 853), (479, 853)),
        ("crw", 16, (480, 854), (480, 848)),
    ],
)
def test_input_sizes(name, multiple, size, expected):
    assert input_size(make(name), size, multiple) == expected


def test_squares():
    assert input_size(make("crw", size=320), (240, 320), 1) == (320, 320)
    assert input_size(make("crw", size=320), (240, 320), 14) == (308, 308)


@given(st.integers(64, 2000), st.integers(64, 2000), st.sampled_from([1, 8, 14, 16]))
def test_sizes_are_multiples_and_symmetrical(height, width, multiple):
    for name in ("crw", "dino", "smtc"):
        found = input_size(make(name), (height, width), multiple)
        assert all(side % multiple == 0 and side > 0 for side in found)
        if height != width:
            assert input_size(make(name), (width, height), multiple) == found[::-1]


def test_frames_that_are_too_small():
    with pytest.raises(UserError, match=r"^frames of 12x40 pixels become 12x40, of which nothing"):
        input_size(make("smtc", 16), (40, 12), 16)
