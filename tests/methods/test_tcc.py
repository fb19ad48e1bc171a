"""TCC beyond the battery: its keys and its loss."""

import numpy as np
import pytest
from pydantic import ValidationError

from tests.methods.batches import step
from tests.methods.test_phases import batch
from timewalk.methods.tcc import TCC, TCCConfig
from timewalk.ops.alignment import compute_alignment_loss
from timewalk.ops.objectives import build_objective


def config(**keys):
    return TCCConfig.model_validate({**TCCConfig.miniature(), **keys})


def test_defaults_are_those_of_the_objective():
    found = TCCConfig(method="tcc", dataset="pouring").objective()
    assert found == build_objective({"name": "tcc"}, 128).spec


def test_the_loss_is_the_published_one_of_the_embeddings():
    method = TCC(config(tcc={"loss_type": "regression_mse", "temperature": 0.5})).eval()
    data = batch(method, 3)
    images = method.device_views(data)["images"]
    found = method.loss({**data, "images": images}, step())
    expected = compute_alignment_loss(
        method.embed(images),
        3,
        data["steps"],
        data["length"],
        loss_type="regression_mse",
        temperature=0.5,
    )
    assert found.terms["objective"].item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(("compat", "published"), [("published", True), ("intended", False)])
def test_published_cycles(compat, published):
    found = config(compat=compat, tcc={"stochastic_matching": True})
    assert found.objective()["published_cycles"] is published
    method = TCC(found)
    assert np.isfinite(method.loss(batch(method), step()).total.item())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"training": {"batch_size": 1}},
            "batch_size is 1, but tcc compares 2 videos .* 2 or more",
        ),
        (
            {"tcc": {"stochastic_matching": True, "cycle_length": 3}},
            "batch_size is 2, but tcc compares 3 videos with each other; make it 3 or more",
        ),
        ({"tcc": {"loss_type": "regression"}}, "regression_mse_var"),
        ({"tcc": {"similarity_type": "dot"}}, "cosine"),
        ({"tcc": {"temperature": 0}}, "greater than 0"),
    ],
)
def test_what_cannot_be_is_refused(keys, message):
    with pytest.raises(ValidationError, match=message):
        config(**keys)
