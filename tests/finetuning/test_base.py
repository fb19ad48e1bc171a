import pytest
import torch
from torch import nn

from tests.encoders.dense.families import FAMILIES
from tests.finetuning.toy import Colour, tiny_vit
from timewalk.config import EncoderConfig
from timewalk.encoders import build_encoder
from timewalk.errors import UserError
from timewalk.finetuning import get_task, task_names
from timewalk.finetuning.base import FinetuningConfig, freeze_unread, marks, rebuilt

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
    """iBOT's fine-tuning: depth + 2 layers, factor rate^(layers - 1 - layer)."""
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
    assert marks(changed, published, names) == "-drop_path0-lr0.01-m8x11-seed3"


def test_a_weight_decay_stays_unless_its_end_is_given():
    training = config(training={"weight_decay": "0.1"}).training
    assert training.weight_decay == training.weight_decay_end == 0.1
    assert config(training={"weight_decay_end": None}).training.weight_decay_end == 0.05
    falling = config(training={"weight_decay": 0.1, "weight_decay_end": 0.01}).training
    assert (falling.weight_decay, falling.weight_decay_end) == (0.1, 0.01)
    assert type(falling).model_validate(falling.model_dump(mode="json")) == falling


@pytest.mark.parametrize(
    ("training", "name"),
    [
        ({"weight_decay": 0.1}, "-wd0.1"),
        ({"weight_decay_end": 0.1}, "-wdend0.1"),
        ({"weight_decay": 0.1, "weight_decay_end": 0.05}, "-wd0.1-wdend0.05"),
        ({"weight_decay_end": 0.05}, ""),
    ],
)
def test_a_weight_decay_is_named_once(training, name):
    names = {"training.weight_decay": "wd", "training.weight_decay_end": "wdend"}
    assert marks(config(training=training), config(), names) == name


def test_batch_normalisations_that_learn_are_known():
    class Normalised(Colour):
        def build(self, encoder, about):
            network = super().build(encoder, about)
            network.norm = nn.BatchNorm1d(3).requires_grad_(self.config.seed == 0)
            return network

    assert not Colour(config(), tiny_vit(), {}).batch_statistics
    assert Normalised(config(), tiny_vit(), {}).batch_statistics
    assert not Normalised(config(seed=1), tiny_vit(), {}).batch_statistics


@pytest.mark.parametrize("name", [*FAMILIES, "tf_efficientnet_lite0"])
def test_what_no_map_depends_on_does_not_learn(name):
    keys = FAMILIES.get(name, {"name": name})
    network = build_encoder(EncoderConfig(**keys), seed=0)
    before = {key: x.clone() for key, x in network.state_dict().items()}
    freeze_unread(network, norm=True)
    still = {key.split(".")[-2] for key, x in network.named_parameters() if not x.requires_grad}
    expected = {"test_convnext": {"norm"}, "tf_efficientnet_lite0": {"conv_head", "bn2"}}
    assert still == expected.get(name, set())
    assert network.training
    assert all(torch.equal(x, before[key]) for key, x in network.state_dict().items())


def test_a_norm_that_is_not_applied_does_not_learn():
    vit = tiny_vit()
    freeze_unread(vit, norm=False)
    still = {name for name, x in vit.named_parameters() if not x.requires_grad}
    assert still == {"norm.weight", "norm.bias"}


def test_an_unknown_task_is_named_with_the_nearest():
    assert task_names() == ["detection", "semantic_segmentation"]
    with pytest.raises(UserError, match="unknown task 'detektion'; did you mean 'detection'"):
        get_task("detektion")
