"""The combination of TCC, SaL and TCN beyond the battery: weights, and what they leave out."""

import pytest
from pydantic import ValidationError

from tests.methods.batches import step
from tests.methods.test_phases import batch
from timewalk.methods.tcc_sal_tcn import CombinationConfig, TCCSaLTCN
from timewalk.ops.objectives import build_objective


def config(**keys):
    return CombinationConfig.model_validate({**CombinationConfig.miniature(), **keys})


def test_defaults_are_those_of_the_objective():
    spec = CombinationConfig(method="tcc_sal_tcn", dataset="pouring").objective()
    found = build_objective(spec, 128)
    assert found.spec == build_objective({"name": "tcc_sal_tcn"}, 128).spec
    assert found.weights == pytest.approx({"tcc": 0.33, "sal": 0.33, "tcn": 0.34})


def test_all_three_are_logged_and_weighted():
    method = TCCSaLTCN(config(alignment_weight=0.5, sal_weight=0.25))
    terms = method.loss(batch(method), step()).terms
    expected = 0.5 * terms["tcc"] + 0.25 * terms["sal"] + 0.25 * terms["tcn"]
    assert terms["objective"].item() == pytest.approx(expected.item())


def test_a_loss_without_weight_is_left_out():
    method = TCCSaLTCN(config(alignment_weight=0.5, sal_weight=0.0, frames_per_clip=3))
    terms = method.loss(batch(method), step()).terms
    assert terms.keys() == {"objective", "l2", "tcc", "tcn"}
    assert not list(method.objective.parameters())


def test_without_tcc_one_video_is_enough():
    keys = {"alignment_weight": 0.0, "training": {"batch_size": 1}}
    method = TCCSaLTCN(config(**keys))
    assert method.loss(batch(method, 1), step()).total.isfinite()


def test_published_cycles_are_tcc_s():
    spec = config(compat="published").objective()
    assert spec["tcc"]["published_cycles"]
    assert spec["published_order"]
    assert not config().objective()["published_order"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"alignment_weight": 0.7, "sal_weight": 0.4},
            "alignment_weight 0.7 and sal_weight 0.4 leave no weight .* their sum 1 or less",
        ),
        ({"sal_weight": -0.1}, "greater than or equal to 0"),
        ({"frames_per_clip": 4}, "frames_per_clip is 4, but a shuffled triplet"),
        ({"training": {"batch_size": 1}}, "tcc_sal_tcn compares 2 videos with each other"),
    ],
)
def test_what_cannot_be_is_refused(keys, message):
    with pytest.raises(ValidationError, match=message):
        config(**keys)
