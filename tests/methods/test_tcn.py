"""TCN beyond the battery: its pairs of frames."""

import pytest
from pydantic import ValidationError

from tests.methods.batches import step
from tests.methods.test_phases import batch, sample
from timewalk.methods.tcn import TCN, TCNConfig
from timewalk.ops.objectives import build_objective, mixed_up
from timewalk.ops.time_contrast import n_pairs_loss


def config(**keys):
    return TCNConfig.model_validate({**TCNConfig.miniature(), **keys})


def test_defaults_are_those_of_the_objective():
    found = TCNConfig(method="tcn", dataset="pouring")
    assert found.objective() == build_objective({"name": "tcn"}, 128).spec
    assert found.tcn.positive_window == 5


def test_every_frame_comes_with_a_positive_before_it():
    method = TCN(config(tcn={"positive_window": 3}))
    assert method.clip_shape().frames == 24
    steps = sample(method)["steps"]
    assert steps.shape == (12,)
    before = steps[1::2] - steps[0::2]
    assert before.min() >= 1
    assert before.max() <= 3


@pytest.mark.parametrize("compat", ["intended", "published"])
def test_the_loss_is_the_n_pairs_loss(compat):
    method = TCN(config(compat=compat)).eval()
    data = batch(method, 3)
    images = method.device_views(data)["images"]
    embeddings = method.embed(images)
    expected = n_pairs_loss(mixed_up(embeddings) if compat == "published" else embeddings, 0.002)
    found = method.loss({**data, "images": images}, step()).terms["objective"]
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_one_video_is_enough():
    method = TCN(config(training={"batch_size": 1}))
    assert method.loss(batch(method, 1), step()).total.isfinite()


def test_a_window_of_nothing_is_refused():
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        config(tcn={"positive_window": 0})
