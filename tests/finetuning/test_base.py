import pytest
import torch

from tests.finetuning.toy import Colour, tiny_vit
from timewalk.config import EncoderConfig
from timewalk.encoders import build_encoder
from timewalk.errors import UserError
from timewalk.finetuning import get_task, task_names
from timewalk.finetuning.base import FinetuningConfig, marks, rebuilt

KEYS = {"task": "semantic_segmentation", "dataset": "scenes"}


def config(**keys: object) -> FinetuningConfig:
    return FinetuningConfig.model_validate({**KEYS, **keys})


def rates_of(task: Colour) -> dict[str, tuple[float, bool]]:
    """Return factor and decay of each parameter by its name in the network."""
    names = {parameter: name for name, parameter in task.network.named_parameters()}
    return {
        names[parameter]: (group.lr_scale, group.weight_decay)
        for group in task.parameter_groups()
        for parameter in group.parameters
    }


def test_the_learning_rate_falls_from_the_head_to_the_patches():
    """Sheet section 1: depth + 2 layers, factor rate^(layers - 1 - layer)."""
    found = rates_of(Colour(config(layer_decay=0.5), tiny_vit(depth=3), {}))
    assert found["encoder.pos_embed"] == (0.5**4, False)
    assert found["encoder.patch_embed.proj.weight"] == (0.5**4, True)
    assert found["encoder.blocks.0.attn.qkv.weight"] == (0.5**3, True)
    assert found["encoder.blocks.2.attn.qkv.bias"] == (0.5, False)
    assert found["encoder.norm.weight"] == (1.0, False)
    assert found["colour.weight"] == (1.0, True)
    assert found["colour.bias"] == (1.0, False)


def test_all_parameters_are_in_one_group_each():
    task = Colour(config(layer_decay=0.9), tiny_vit(), {})
    grouped = [parameter for group in task.parameter_groups() for parameter in group.parameters]
    assert len(grouped) == len(set(grouped)) == len(list(task.network.parameters()))


def test_published_runs_decayed_positions_too():
    found = rates_of(Colour(config(compat="published"), tiny_vit(), {}))
    assert found["encoder.pos_embed"] == (1.0, True)
    assert found["encoder.cls_token"] == (1.0, True)
    assert found["encoder.norm.weight"] == (1.0, False)


def test_a_frozen_encoder_has_no_group():
    task = Colour(config(), tiny_vit(), {})
    task.network.encoder.requires_grad_(False)
    assert set(rates_of(task)) == {"colour.weight", "colour.bias"}


def test_drop_path_reaches_a_saved_vit_and_changes_no_weight():
    saved = tiny_vit(depth=3)
    encoder = rebuilt(saved, 0.2, None)
    assert [block.drop_path1.drop_prob for block in encoder.blocks[1:]] == [
        pytest.approx(0.1),
        pytest.approx(0.2),
    ]
    for name, tensor in saved.state_dict().items():
        assert torch.equal(tensor, encoder.state_dict()[name])
    assert encoder.spec == saved.spec


def test_positions_are_brought_to_the_grid_that_is_learnt_on():
    saved = tiny_vit()
    encoder = rebuilt(saved, 0.0, 32)
    assert encoder.pos_embed.shape == (1, 1 + 4 * 4, 16)
    assert encoder.spec["image_size"] == 32
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(encoder(image).patches, saved(image).patches)


def test_networks_without_drop_path_stay_what_they_are():
    resnet = build_encoder(EncoderConfig(name="resnet18_s8"), 0)
    assert rebuilt(resnet, 0.2, 64) is resnet


def test_the_heads_weights_are_of_the_seed():
    first, same, other = (Colour(config(seed=seed), tiny_vit(), {}) for seed in (1, 1, 2))
    assert torch.equal(first.network.colour.weight, same.network.colour.weight)
    assert not torch.equal(first.network.colour.weight, other.network.colour.weight)


def test_every_key_that_changes_results_marks_the_protocol():
    published = config()
    names = {"training.learning_rate": "lr", "training.milestones": "m"}
    assert marks(published, published, names) == ""
    training = {"learning_rate": 0.01, "milestones": [8, 11], "micro_batch_size": 2}
    changed = config(training=training, seed=3, nodes=2, drop_path=0.0)
    assert marks(changed, published, names) == "-drop_path0-lr0.01-m8x11-micro_batch_size2-seed3"


def test_an_unknown_task_is_named_with_the_nearest():
    assert task_names() == ["detection", "semantic_segmentation"]
    with pytest.raises(UserError, match="unknown task 'detektion'; did you mean 'detection'"):
        get_task("detektion")
