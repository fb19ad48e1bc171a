"""SaL beyond the battery: its keys and its head."""

import math

import pytest
from pydantic import ValidationError

from tests.methods.batches import step
from tests.methods.test_phases import batch
from timewalk.methods.base import Step
from timewalk.methods.sal import SaL, SaLConfig
from timewalk.ops.objectives import build_objective


def config(**keys):
    return SaLConfig.model_validate({**SaLConfig.miniature(), **keys})


def test_defaults_are_those_of_the_objective():
    spec = SaLConfig(method="sal", dataset="pouring").objective()
    assert build_objective(spec, 128).spec == build_objective({"name": "sal"}, 128).spec


def test_at_the_start_order_is_a_guess():
    method = SaL(config())
    found = method.loss(batch(method, 4), step()).terms["objective"].item()
    assert found == pytest.approx(math.log(2), abs=0.35)


def test_triplets_are_drawn_anew_in_each_step():
    method = SaL(config()).eval()
    data = batch(method)
    first = method.loss(data, Step(0, 0, 10, 10, 1)).total
    again = method.loss(data, Step(0, 0, 10, 10, 1)).total
    other = method.loss(data, Step(1, 0, 10, 10, 1)).total
    assert first == again
    assert first != other


def test_the_l2_term_counts_the_head():
    method = SaL(config())
    assert len(method.objective.regularised()) == 6
    assert len(method.embedder.regularised()) == 6
    sums = [
        float(x.detach().square().sum())
        for x in (*method.embedder.regularised(), *method.objective.regularised())
    ]
    assert method.l2_term().item() == pytest.approx(1e-5 * sum(sums) / 12)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"frames_per_clip": 4}, "frames_per_clip is 4, but a shuffled triplet .* set 5 or more"),
        ({"sal": {"layers": [[8, True]]}}, "sal.layers must end with 2 outputs"),
        ({"sal": {"layers": [[2, True]]}}, "sal.layers must end with 2 outputs"),
        ({"sal": {"dropout": 1.0}}, "less than 1"),
    ],
)
def test_what_cannot_be_is_refused(keys, message):
    with pytest.raises(ValidationError, match=message):
        config(**keys)
