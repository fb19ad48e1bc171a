"""What the five methods that learn from phases share: network, data, L2 term, refused keys."""

import pytest
import torch
from pydantic import ValidationError

from tests.methods.batches import clip, generator, step
from tests.training.processes import as_clip, train
from timewalk.data.views import normalise
from timewalk.encoders import save_encoder, save_head
from timewalk.encoders.embedders import load_embedder
from timewalk.errors import UserError
from timewalk.methods.tcc import TCC, TCCConfig
from timewalk.ops.objectives import build_objective

RESNET = {"name": "resnet18_s8"}
GRU = {"kind": "convgru", "size": 8, "gru": [8], "layers": [[16, 3, True]]}


def config(**keys):
    return TCCConfig.model_validate({**TCCConfig.miniature(), **keys})


def published(**keys):
    return TCCConfig.model_validate({"method": "tcc", "dataset": "pouring", **keys})


def sample(method, seed=0):
    shape = method.clip_shape()
    frames = clip(shape.frames, seed=seed)
    return method.sample(as_clip(frames, shape.sampler, seed), generator(seed))


def batch(method, count=2):
    samples = [sample(method, seed) for seed in range(count)]
    return {key: torch.stack([one[key] for one in samples]) for key in samples[0]}


class TestConfig:
    def test_defaults_are_the_published_ones(self):
        found = published()
        assert found.encoder.name == "resnet50v2_conv4c"
        assert (found.train_base, found.l2_weight, found.image_size) == ("only_bn", 1e-5, 224)
        assert (found.frames_per_clip, found.sampling, found.offset) == (20, "offset_uniform", 1)
        assert (found.context, found.context_step, found.stride) == (2, 15, 16)
        embedder = found.embedder
        assert (embedder.kind, embedder.size, embedder.flatten) == ("conv", 128, "max")
        assert embedder.layers == [(512, 3, True)] * 2
        assert embedder.fc_layers == [(512, True)] * 2
        assert (embedder.base_dropout, embedder.fc_dropout) == (0, 0.1)
        training = found.training
        assert (training.batch_size, training.max_steps) == (2, 150_000)
        assert (training.optimizer, training.epsilon) == ("adam", 1e-7)
        assert (training.learning_rate, training.schedule) == (1e-4, "constant")
        assert (training.weight_decay, training.weight_decay_end) == (0, 0)
        augmentation = found.augmentation
        assert (augmentation.flip, augmentation.crop) == (True, False)
        assert augmentation.brightness == 32 / 255
        assert augmentation.contrast == (0.5, 1.5)
        assert (augmentation.hue, augmentation.saturation) == (0, None)

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            (
                {"embedder": GRU},
                "context is 2, but an embedder of kind convgru .* set context to 1",
            ),
            (
                {"embedder": {**GRU, "gru": [16]}, "context": 1},
                r"embedder.gru is \[16\], but .* end it with embedder.size 8",
            ),
            ({"training": {"micro_batch_size": 1}}, "micro_batch_size is set, .* leave it out"),
            ({"image_size": 36}, "image_size is 36; make it a multiple of encoder.patch_size 8"),
            (
                {"augmentation": {"contrast": [1.5, 0.5]}},
                r"augmentation.contrast is \[1.5, 0.5\]; put the smaller number first",
            ),
            ({"training": {"augment": "worker"}}, "device"),
            ({"frames_per_clip": 1}, "greater than or equal to 2"),
            ({"dataset_fraction": 0}, "greater than 0"),
            ({"embedder": {"layers": []}}, "at least 1 item"),
        ],
    )
    def test_what_cannot_be_is_refused(self, keys, message):
        with pytest.raises(ValidationError, match=message):
            config(**keys)


class TestData:
    def test_a_sample(self):
        method = TCC(config())
        found = sample(method)
        assert found["images"].shape == (12, 3, 32, 32)
        assert found["images"].dtype == torch.uint8
        assert found["steps"].shape == (6,)
        assert found["length"] == 40
        assert found.keys() == {"images", "colours", "steps", "length", "seed"}

    def test_the_shape_of_a_clip(self):
        shape = TCC(config(context=3, offset=2, dataset_fraction=0.5)).clip_shape()
        assert (shape.frames, shape.fraction) == (18, 0.5)
        assert (shape.sampler.context, shape.sampler.offset) == (3, 2)
        assert shape.sampler.positive_window is None

    def test_without_colours_the_device_only_normalises(self):
        quiet = {"brightness": 0, "contrast": None}
        method = TCC(config(augmentation=quiet))
        data = batch(method)
        found = method.device_views(data)["images"]
        expected = normalise(data["images"], method.encoder.mean, method.encoder.std)
        torch.testing.assert_close(found, expected)

    def test_colours_are_one_draw_for_all_frames(self):
        method = TCC(config(augmentation={"contrast": None}))
        data = batch(method)
        data["images"] = torch.full_like(data["images"], 100)
        found = method.device_views(data)["images"]
        assert torch.equal(found, found[:, :1, :, :1, :1].expand_as(found))
        assert not torch.equal(found[0], found[1])


class TestBase:
    def gradients(self, mode, encoder=RESNET):
        method = TCC(config(train_base=mode, encoder=encoder))
        method.train()
        before = {key: x.clone() for key, x in method.encoder.named_buffers()}
        method.loss(batch(method), step()).total.backward()
        moved = [
            key for key, x in method.encoder.named_buffers() if not torch.equal(x, before[key])
        ]
        with_gradient = {k for k, p in method.encoder.named_parameters() if p.grad is not None}
        return method, with_gradient, moved

    def test_frozen(self):
        method, found, moved = self.gradients("frozen")
        assert not found
        assert not moved
        assert not method.encoder.training
        assert method.embedder.training
        assert not any(parameter.requires_grad for parameter in method.encoder.parameters())

    def test_only_the_normalisations(self):
        method, found, moved = self.gradients("only_bn")
        assert found
        assert all("bn" in key or "downsample.1" in key for key in found)
        assert any("running_mean" in key for key in moved)
        behind = {key for key, _ in method.encoder.named_parameters() if key.startswith("layer4")}
        learning = {k for k, p in method.encoder.named_parameters() if p.requires_grad}
        assert learning - behind == found

    def test_only_the_layer_norms_of_a_vit(self):
        encoder = TCCConfig.miniature()["encoder"]
        _, found, _ = self.gradients("only_bn", encoder)
        assert found
        assert all("norm" in key for key in found)

    def test_the_published_number_of_what_learns(self):
        method = TCC(config(train_base="only_bn", encoder={"name": "resnet50v2_conv4c"}))
        learning = [p for p in method.encoder.parameters() if p.requires_grad]
        assert sum(parameter.numel() for parameter in learning) == 15_744
        assert not method.unused_parameters

    def test_everything(self):
        _, found, moved = self.gradients("train_all")
        assert {"conv1.weight", "layer3.0.conv1.weight", "bn1.bias"} <= found
        assert any("running_mean" in key for key in moved)

    def test_the_mode_survives(self):
        method = TCC(config(train_base="frozen", encoder=RESNET))
        for mode in (True, False, True):
            method.train(mode)
            assert not method.encoder.training
            assert method.embedder.training == mode


class TestEmbeddings:
    def test_a_context_frame_counts_for_its_frame_alone(self):
        method = TCC(config()).eval()
        images = method.device_views(batch(method))["images"]
        changed = images.clone()
        changed[1, 4] += 1
        difference = (method.embed(images) - method.embed(changed)).abs().amax(dim=-1)
        assert (difference > 1e-6).nonzero().tolist() == [[1, 2]]

    def test_dropout_is_each_clip_s_own(self):
        embedder = {**TCCConfig.miniature()["embedder"], "batch_norm": False, "fc_dropout": 0.5}
        method = TCC(config(embedder=embedder))
        data = batch(method, 3)
        images, seeds = method.device_views(data)["images"], data["seed"].tolist()
        together = method.embed(images, seeds)
        alone = method.embed(images[2:], seeds[2:])
        torch.testing.assert_close(together[2:], alone)
        assert not torch.equal(method.embed(images, seeds[::-1]), together)

    def test_a_recurrent_embedder_learns_too(self):
        method = TCC(config(embedder=GRU, context=1))
        method.loss(batch(method), step()).total.backward()
        assert all(parameter.grad.any() for parameter in method.embedder.parameters())

    def test_the_head_holds_what_it_takes_to_embed(self, tmp_path):
        method = TCC(config(frames_per_clip=7)).eval()
        save_encoder(method.encoder, tmp_path, {})
        save_head(method.heads(), tmp_path)
        found = load_embedder(tmp_path)
        images = method.device_views(batch(method))["images"]
        maps = method.encoder.dense(images.flatten(0, 1)).unflatten(0, (2, 7, 2))
        assert torch.equal(found.embedder(maps), method.embed(images))
        assert (found.about["image_size"], found.about["context"]) == (32, 2)
        assert found.about["context_step"] == 1
        assert found.about["sampling"]["frames"] == 7
        again = build_objective(found.about["objective"], 8)
        again.load_state_dict(found.objective)


class TestLoss:
    def test_the_l2_term_is_the_mean_over_kernels_and_biases(self):
        method = TCC(config(l2_weight=0.5))
        counted = [
            *method.embedder.convolutions[0][0].parameters(),
            *method.embedder.dense[0].parameters(),
            *method.embedder.embedding.parameters(),
        ]
        expected = 0.5 * sum(float(x.detach().square().sum()) for x in counted) / 6
        assert method.l2_term().item() == pytest.approx(expected)
        result = method.loss(batch(method), step())
        assert result.terms["l2"].item() == pytest.approx(expected)
        assert result.total.item() == pytest.approx(result.terms["objective"].item() + expected)

    def test_pictures_leave_no_trace(self):
        method = TCC(config())
        before = {key: x.clone() for key, x in method.state_dict().items()}
        picture = method.visualise(clip(12))["self_similarity"]
        assert picture.shape == (32 * 7, 32 * 6, 3)
        # No frame differs from itself: white on the diagonal.
        assert (picture[32:48, :32] == 255).all()
        assert method.training
        assert all(torch.equal(x, before[key]) for key, x in method.state_dict().items())

    def test_a_training_with_batch_norm_in_the_base(self, tmp_path):
        keys = config(encoder=RESNET, train_base="only_bn", training={"batch_size": 3, "epochs": 1})
        trainer = train(keys, tmp_path, clips=6)
        start = TCC(keys).encoder.state_dict()
        moved = {
            key
            for key, x in trainer.method.encoder.state_dict().items()
            if not torch.equal(x, start[key])
        }
        assert "bn1.weight" in moved
        assert "bn1.running_mean" in moved
        assert "conv1.weight" not in moved


def test_the_moving_statistics_of_all_batch_norms():
    def momenta(**keys):
        encoder = {"name": "resnet50v2_conv4c"}
        method = TCC(config(encoder=encoder, image_size=32, **keys))
        parts = (method.encoder, method.embedder)
        norms = torch.nn.modules.batchnorm._BatchNorm
        return [{m.momentum for m in part.modules() if isinstance(m, norms)} for part in parts]

    assert momenta() == [{0.01}, {0.01}]
    assert momenta(batch_norm_momentum=0.5) == [{0.5}, {0.5}]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"embedder": {**GRU, "fc_dropout": 0.1}, "context": 1},
            "embedder.fc_dropout means nothing for an embedder of kind convgru; leave it out",
        ),
        (
            {"tcc": {"stochastic_matching": True, "fraction": 0.01}},
            "tcc.fraction is 0.01, which makes no cycle of the 12 .* set it to 0.0833 or more",
        ),
    ],
)
def test_further_refusals(keys, message):
    with pytest.raises(ValidationError, match=message):
        config(**keys)


def test_maps_whose_size_is_rounded_down():
    keys = {"encoder": {"name": "convnext_atto"}, "image_size": 50}
    method = TCC(
        config(**keys, embedder={"size": 8, "layers": [[8, 3, True]], "flatten": "flatten"})
    )
    assert method.embedder.spec["map_size"] == [3, 3]
    assert torch.isfinite(method.loss(batch(method), step()).total)


def test_a_network_that_takes_one_size_alone():
    with pytest.raises(
        UserError, match=r"image_size is 32, which encoder\.name deit_tiny_patch16_224"
    ):
        TCC(config(encoder={"name": "deit_tiny_patch16_224"}))


def test_published_schedules():
    def training(**keys):
        return config(training={"max_steps": 10, **keys}).training

    assert training(schedule="exponential").gamma == 0.97
    assert training(schedule="exponential", gamma=0.5).gamma == 0.5
    manual = training(schedule="step")
    assert (manual.milestone_steps, manual.gamma) == ([5000, 10000], 0.1)
    assert training(schedule="step", milestone_steps=[7]).milestone_steps == [7]
    assert training(schedule="step", milestones=[2]).milestone_steps == []
    assert (training().milestone_steps, training().gamma) == ([], 0.1)
