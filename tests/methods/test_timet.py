"""TimeT beyond the battery: what learns, what each option changes, teacher, queue, refused keys."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from tests.methods.batches import batch, clip, generator, step
from tests.training.processes import train
from timewalk.data.clips import ClipShape
from timewalk.data.views import normalise
from timewalk.encoders import build_encoder, load_encoder, load_head
from timewalk.encoders.weights.timet import from_ours
from timewalk.errors import UserError
from timewalk.methods.timet import TimeT
from timewalk.methods.timet_config import TimeTConfig
from timewalk.ops.distillation import full
from timewalk.ops.foreground_mask import attention_masks
from timewalk.ops.forwarding import Forwarding, forward_labels
from timewalk.ops.sinkhorn import sinkhorn
from timewalk.training.optimizers import make_optimizer, set_rates
from timewalk.training.run import _export

PLAIN = {"teacher": False, "queue": False}


def config(**keys):
    return TimeTConfig.model_validate({**TimeTConfig.miniature(), **keys})


def plain(**keys):
    return TimeT(config(**PLAIN, **keys))


def published(**keys):
    return TimeTConfig.model_validate({"method": "timet", "dataset": "ytvos", **keys})


def encoder(**keys):
    return {**TimeTConfig.miniature()["encoder"], **keys}


def learn(method, data, index=0, rate=0.05):
    """Take a step of plain gradient descent and return the losses."""
    losses = method.loss(data, step(index))
    method.zero_grad()
    losses.total.backward()
    with torch.no_grad():
        for _, parameter in method.trainable():
            # ResNets have a layer behind the map that is learnt from.
            if parameter.grad is not None:
                parameter -= rate * parameter.grad
    joint = {**losses.means, **losses.rows}
    return losses, method.after_step(step(index), joint)


class TestConfig:
    def test_defaults_are_the_papers(self):
        found = published()
        training = found.training
        assert (found.encoder.name, found.image_size, found.trainable_blocks) == (
            "vit_small",
            224,
            2,
        )
        assert (found.frames_per_clip, found.sampling, found.clips_per_video) == (4, "uniform", 1)
        assert (found.prototypes, found.head_widths) == (200, [1024, 1024, 512, 256])
        assert (found.context, found.radius, found.top_k) == (7, 6, 5)
        assert (found.forward_temperature, found.score_temperature) == (0.1, 0.1)
        assert (found.epsilon, found.sinkhorn_iterations) == (0.05, 10)
        assert (found.teacher, found.queue, found.attention_mask) == (False, False, False)
        assert (training.optimizer, training.schedule) == ("adamw", "cosine")
        assert (training.learning_rate, found.backbone_lr_scale) == (1e-4, 0.1)
        assert (training.weight_decay, training.weight_decay_end) == (0.04, 0.4)
        assert (training.min_learning_rate, training.warmup_epochs, training.clip_grad) == (0, 0, 0)
        assert (training.batch_size, training.epochs) == (128, 100)

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({"frames_per_clip": 1}, "greater than or equal to 2"),
            ({"image_size": 36}, "image_size is 36; make it a multiple of encoder.patch_size 8"),
            ({"trainable_blocks": 4}, "trainable_blocks is 4, but the encoder has 3 blocks"),
            (
                {"encoder": {"name": "resnet18_s8"}},
                "trainable_blocks is 2, but 'resnet18_s8' is no ViT .* set it to all or 0",
            ),
            (
                {
                    "encoder": {"name": "resnet18"},
                    "trainable_blocks": 0,
                    "attention_mask": True,
                    "queue": False,
                },
                "attention_mask needs a class token, and 'resnet18' has none",
            ),
            (
                {"image_size": 24, "attention_mask": True, "queue": False},
                "attention_mask needs 4 x 4 patches; raise image_size to 32",
            ),
            ({"encoder": encoder(drop_path=0.1)}, "encoder.drop_path is 0.1, .*; leave it out"),
            ({"sampling": "full"}, "make no batch; set training.batch_size to 1"),
            ({"head_widths": []}, "at least 1"),
            ({"prototypes": 1}, "greater than or equal to 2"),
            ({"trainable_blocks": True}, "valid integer"),
            ({"queue": True, "attention_mask": True}, "queue and attention_mask do not go toget"),
            ({"queue": "False "}, "boolean"),
            ({"training": {"augment": "device"}}, "worker"),
        ],
    )
    def test_what_cannot_be_is_refused(self, keys, message):
        with pytest.raises(ValidationError, match=message):
            config(**keys)

    def test_booleans_are_booleans(self):
        assert config(queue="false").queue is False

    def test_micro_batches_are_refused(self, tmp_path):
        training = {**TimeTConfig.miniature()["training"], "micro_batch_size": 1}
        with pytest.raises(UserError, match="micro_batch_size 1 would divide a batch"):
            train(config(training=training), tmp_path)


class TestData:
    @pytest.mark.parametrize(
        ("keys", "expected"),
        [
            ({}, ClipShape(3, 1, 8, sampling="uniform")),
            ({"sampling": "dense"}, ClipShape(3, 1, 8, sampling="dense")),
            ({"sampling": "regular"}, ClipShape(3, 3, 8, sampling="regular")),
            (
                {"sampling": "regular", "step_between_frames": 7},
                ClipShape(3, 7, 8, sampling="regular"),
            ),
        ],
    )
    def test_frames_of_a_clip(self, keys, expected):
        assert plain(**keys).clip_shape() == expected

    def test_views_are_bytes_of_any_size(self):
        for size in (32, 40):
            views = plain(image_size=size).views(clip(), generator())
            assert views["images"].shape == (3, 3, size, size)
            assert views["images"].dtype == torch.uint8

    def test_published_clips_are_never_mirrored_and_change_less(self):
        intended, as_published = plain(), plain(compat="published")
        assert as_published._augmentation.flip_prob == 0
        assert as_published._augmentation.last_only
        assert intended._augmentation.flip_prob == 0.5
        assert not intended._augmentation.last_only

    def test_the_published_deviation_of_red(self):
        intended, as_published = plain(), plain(compat="published")
        data = batch(intended)
        found = as_published.loss(data, step()).total
        std = (0.228, 0.224, 0.225)
        floats = {"images": normalise(data["images"], intended.encoder.mean, std)}
        torch.testing.assert_close(found, intended.loss(floats, step()).total)
        assert found != intended.loss(data, step()).total
        assert as_published.encoder.std == (0.229, 0.224, 0.225)


def reference(method, images):
    """Return the loss by one whole pass with a graph, and the features of all frames."""
    config = method.config
    maps = method.encoder(images.flatten(0, 1)).patches.unflatten(0, images.shape[:2])
    rows = maps.flatten(3).mT
    if rows.requires_grad:
        rows.retain_grad()
    scores = F.normalize(method.head(rows), dim=-1) @ method.prototypes.T
    shown = images.shape[1] if config.sinkhorn_scope == "all_frames" else 1
    joint = scores[:, :shown].flatten(0, 2).detach()
    assigned = sinkhorn(joint[None], config.epsilon, config.sinkhorn_iterations)[0]
    first = assigned.unflatten(0, (len(images), shown, -1))[:, 0]
    settings = Forwarding(config.context, config.radius, config.top_k, config.forward_temperature)
    labels = first.mT.unflatten(-1, maps.shape[-2:])
    target = forward_labels(maps.detach(), labels, settings)[:, -1].argmax(dim=1).flatten(1)
    logits = scores[:, -1].mT / config.score_temperature
    losses = [F.cross_entropy(one[None], t[None]) for one, t in zip(logits, target, strict=True)]
    return sum(losses) / len(losses), rows


class TestLoss:
    @pytest.mark.parametrize(
        "keys",
        [
            {},
            {"sinkhorn_scope": "all_frames"},
            {"trainable_blocks": 1},
            {"trainable_blocks": 3},
            {"trainable_blocks": "all"},
            {"trainable_blocks": 0},
            {"use_head": False},
            {"image_size": 48},
            {"encoder": {"name": "resnet18_s8"}, "trainable_blocks": "all", "image_size": 64},
            {"encoder": {"name": "resnet18"}, "trainable_blocks": "all", "image_size": 64},
        ],
    )
    def test_loss_and_gradients_are_those_of_a_whole_pass(self, keys):
        method = plain(**keys).double()
        images = normalise(batch(method)["images"], (0.5,) * 3, (0.5,) * 3).double()
        losses = method.loss({"images": images}, step())
        losses.total.backward()
        found = {name: p.grad for name, p in method.named_parameters()}
        method.zero_grad()
        expected, rows = reference(method, images)
        expected.backward()
        torch.testing.assert_close(losses.total, expected)
        # Of the features of other frames the loss knows nothing: not only little.
        if method.blocks != 0:
            assert not rows.grad[:, :-1].any()
            assert rows.grad[:, -1].any()
        for name, parameter in method.named_parameters():
            if parameter.grad is None:
                assert found[name] is None or not found[name].any(), name
            else:
                torch.testing.assert_close(found[name], parameter.grad, msg=name)

    def test_a_clip_of_many_frames_learns_from_the_last(self):
        method = plain(frames_per_clip=5, trainable_blocks="all")
        images = normalise(batch(method, frames=5)["images"], (0.5,) * 3, (0.5,) * 3)
        images.requires_grad_()
        method.loss({"images": images}, step()).total.backward()
        assert not images.grad[:, :-1].any()
        assert images.grad[:, -1].any()

    def test_a_fresh_loss_is_finite_and_terms_are_shares(self):
        method = plain()
        losses = method.loss(batch(method), step())
        assert 0 < losses.total < 3 * math.log(12) + 10
        assert losses.terms.keys() == {"agreement", "label_weight", "prototypes_used"}
        assert all(0 <= float(value) <= 1 for value in losses.terms.values())
        assert not losses.rows

    @pytest.mark.parametrize(
        "keys",
        [
            {"image_size": 40},
            {"context": 0},
            {"radius": 1},
            {"radius": 0},
            {"top_k": 2},
            {"forward_temperature": 1.0},
            {"epsilon": 0.5},
            {"sinkhorn_iterations": 1},
            {"sinkhorn_scope": "all_frames"},
            {"score_temperature": 0.2},
            {"attention_mask": True},
            {"compat": "published"},
        ],
    )
    def test_every_option_changes_the_loss(self, keys):
        one, other = plain(frames_per_clip=4), plain(frames_per_clip=4, **keys)
        data = batch(one, 4, 4)
        before = one.loss(data, step())
        after = other.loss(batch(other, 4, 4) if "image_size" in keys else data, step())
        assert before.total != after.total

    def test_options_of_shape(self):
        found = plain(prototypes=13, head_widths=[32, 32, 8])
        assert found.prototypes.shape == (13, 8)
        layers = [tuple(layer.weight.shape) for layer in found.head if hasattr(layer, "weight")]
        assert layers == [(32, 24), (32, 32), (8, 32)]
        bare = plain(use_head=False)
        assert bare.prototypes.shape == (12, 24)
        assert [name for name, _ in bare.trainable()] == ["prototypes"]
        assert not torch.equal(plain(seed=3).prototypes, plain().prototypes)

    def test_autocast_leaves_no_parameter_without_a_gradient(self):
        method = plain()
        data = batch(method)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = method.loss(data, step())
        losses.total.backward()
        assert all(p.grad is not None and p.grad.any() for _, p in method.trainable())
        torch.testing.assert_close(
            losses.total, method.loss(data, step()).total, rtol=0.1, atol=0.05
        )

    def test_prototypes_used(self):
        method = plain(prototypes=20)
        maps = torch.randn(2, 3, 24, 4, 4, generator=generator())
        features = F.normalize(method.prototypes.detach())[[0, 3, 7] * 5 + [7]].expand(2, 1, 16, 16)
        losses = method.objective(features[:, 0], features, maps, step())
        assert 0 < losses.terms["prototypes_used"] <= 3 / 20

    def test_loss_changes_nothing(self):
        method = TimeT(config(queue_size=10))
        before = {key: x.clone() for key, x in method.state_dict().items()}
        method.loss(batch(method), step())
        assert all(torch.equal(before[key], x) for key, x in method.state_dict().items())


class TestMask:
    def test_masked_patches_neither_learn_nor_score(self):
        method = plain(attention_mask=True)
        images = normalise(batch(method)["images"], (0.5,) * 3, (0.5,) * 3)
        seen = {}
        original = method.objective

        def watched(last, assigned, maps, step, masks):
            last.retain_grad()
            seen.update(last=last, masks=masks)
            return original(last, assigned, maps, step, masks)

        method.objective = watched
        method.loss({"images": images}, step()).total.backward()
        attention = method.encoder.cls_attention(images.flatten(0, 1)).mean(dim=1)
        expected = attention_masks(attention.detach()).unflatten(0, (2, 3)).flatten(2)
        assert torch.equal(seen["masks"], expected)
        assert 0 < expected.float().mean() < 1
        gradient = seen["last"].grad.abs().sum(dim=-1)
        assert torch.equal(gradient > 0, expected[:, -1])

    def test_the_loss_is_a_mean_over_all_patches(self):
        method = plain()
        maps = torch.randn(2, 3, 24, 4, 4, generator=generator())
        features = torch.randn(2, 3, 16, 16, generator=generator(1))
        masks = torch.ones(2, 3, 16, dtype=torch.bool)
        last, first = features[:, -1], features[:, :1]
        whole = method.objective(last, first, maps, step())
        same = method.objective(last, first, maps, step(), masks)
        torch.testing.assert_close(same.total, whole.total)
        masks[:, -1, 8:] = False
        half = method.objective(last, first, maps, step(), masks)
        assert half.total < whole.total


class TestParameters:
    @pytest.mark.parametrize(
        ("keys", "learning"),
        [
            ({}, {"blocks.1", "blocks.2"}),
            ({"trainable_blocks": 1}, {"blocks.2"}),
            ({"trainable_blocks": 0}, set()),
            ({"use_head": False}, set()),
        ],
    )
    def test_what_learns(self, keys, learning):
        method = plain(**keys)
        names = {name for name, _ in method.trainable()}
        blocks = {".".join(n.split(".")[1:3]) for n in names if n.startswith("encoder.")}
        assert blocks == learning
        assert "prototypes" in names
        assert ("head.0.weight" in names) == method.config.use_head

    def test_all_of_any_network(self):
        assert all(p.requires_grad for p in plain(trainable_blocks="all").parameters())
        keys = {"encoder": {"name": "resnet18_s8"}, "trainable_blocks": "all", "image_size": 64}
        method = plain(**keys)
        assert all(p.requires_grad for p in method.parameters())
        assert method.unused_parameters
        before = {k: x.clone() for k, x in method.named_buffers()}
        learn(method, batch(method))
        assert before
        assert all(torch.equal(before[k], x) for k, x in method.named_buffers())

    def test_the_published_number(self):
        method = TimeT(published())
        assert sum(p.numel() for _, p in method.trainable()) == 5_700_096

    def test_six_groups(self):
        method = TimeT(config())
        groups = method.parameter_groups()
        names = {id(p): name for name, p in method.named_parameters()}
        of_groups = [[names[id(p)] for p in group.parameters] for group in groups]
        assert of_groups[0] == ["prototypes"]
        assert of_groups[1] == []
        assert of_groups[2] == ["head.0.weight", "head.2.weight"]
        assert of_groups[3] == ["head.0.bias", "head.2.bias"]
        assert len(of_groups[4]) == 2 * 4
        assert "encoder.blocks.2.attn.qkv.weight" in of_groups[4]
        assert "encoder.blocks.1.norm1.weight" in of_groups[5]
        assert "encoder.blocks.1.attn.qkv.bias" in of_groups[5]
        assert [group.lr_scale for group in groups] == [1, 1, 1, 1, 0.1, 0.1]
        assert [group.weight_decay for group in groups] == [True, False] * 3
        assert sum(map(len, of_groups)) == len(list(method.trainable()))

    @pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "lars"])
    def test_any_optimiser_takes_the_groups(self, optimizer):
        training = {**TimeTConfig.miniature()["training"], "optimizer": optimizer}
        method = plain(training=training, backbone_lr_scale=0.25)
        groups = method.parameter_groups()
        chosen = make_optimizer(groups, method.config.training)
        set_rates(chosen, groups, method.config.training, step())
        assert [group["lr"] for group in chosen.param_groups] == [1e-4] * 4 + [2.5e-5] * 2
        before = method.prototypes.detach().clone()
        method.loss(batch(method), step()).total.backward()
        chosen.step()
        assert not torch.equal(before, method.prototypes)

    def test_prototypes_keep_length_1(self):
        method = plain()
        torch.testing.assert_close(method.prototypes.norm(dim=1), torch.ones(12))
        before = method.prototypes.detach().clone()
        learn(method, batch(method), rate=5.0)
        torch.testing.assert_close(method.prototypes.norm(dim=1), torch.ones(12))
        assert not torch.equal(before, method.prototypes)


class TestTeacher:
    def follow(self, **keys):
        method = TimeT(config(queue=False, ema_momentum=0.9, **keys))
        before = {name: p.clone() for name, p in method.teacher.named_parameters()}
        _, terms = learn(method, batch(method), index=2)
        return method, before, terms["teacher_momentum"]

    @pytest.mark.parametrize("compat", ["intended", "published"])
    def test_it_follows(self, compat):
        method, before, momentum = self.follow(compat=compat)
        assert momentum == pytest.approx(1 - 0.05 * (1 + math.cos(math.pi * 3 / 10)))
        kept = momentum if compat == "intended" else 1 - momentum
        student = dict(method.named_parameters())
        names = {"head": "head", "end.": "encoder.blocks."}
        for name, parameter in method.teacher.named_parameters():
            if name == "prototypes":
                mixed = kept * before[name] + (1 - kept) * student[name]
                torch.testing.assert_close(parameter, F.normalize(mixed))
                continue
            start = next(key for key in names if name.startswith(key))
            own = student[names[start] + name.removeprefix(start)]
            torch.testing.assert_close(parameter, kept * before[name] + (1 - kept) * own)

    def test_the_last_step_has_a_momentum_too(self):
        method = TimeT(config(queue=False))
        after = method.after_step(step(9), {})
        assert 0.995 < after["teacher_momentum"] < 1

    def test_it_begins_as_the_student_and_then_assigns(self):
        data = batch(plain())
        method = TimeT(config(queue=False))
        torch.testing.assert_close(
            method.loss(data, step()).total, plain().loss(data, step()).total
        )
        with torch.no_grad():
            method.teacher.prototypes.copy_(method.teacher.prototypes.flip(0))
        assert method.loss(data, step()).total != plain().loss(data, step()).total
        assert not any(p.requires_grad for p in method.teacher.parameters())

    @pytest.mark.parametrize(
        "keys",
        [
            {"sinkhorn_scope": "all_frames"},
            {"trainable_blocks": "all"},
            {"trainable_blocks": 0},
            {"use_head": False},
            {"attention_mask": True},
            {"encoder": {"name": "resnet18_s8"}, "trainable_blocks": "all", "image_size": 64},
        ],
    )
    def test_with_every_other_option_it_starts_equal(self, keys):
        method = TimeT(config(queue=False, **keys))
        data = batch(method)
        torch.testing.assert_close(
            method.loss(data, step()).total, plain(**keys).loss(data, step()).total
        )
        learn(method, data)
        assert method.loss(data, step(1)).total.isfinite()


class TestQueue:
    def test_rows_of_first_frames_fill_it_and_then_it_counts(self):
        keys = {"teacher": False, "queue_size": 50}
        method, without = TimeT(config(**keys, queue=True)), plain()
        data = batch(method)
        for index in range(2):
            losses, _ = learn(method, data, index, rate=0.0)
            assert losses.rows["first"].shape == (2, 16, 16)
            assert not losses.rows["first"].requires_grad
            torch.testing.assert_close(losses.total, without.loss(data, step(index)).total)
            assert int(method.queue.any(dim=1).sum()) == 20 * (index + 1)
        rows = losses.rows["first"].flatten(0, 1)
        picks = step(1).rng().permutation(32)[:20]
        assert torch.equal(method.queue[:20], rows[picks])
        # The push of the third step fills it, before that step's scores.
        assert method.loss(data, step(2)).total != without.loss(data, step(2)).total

    def test_a_queue_smaller_than_a_push_counts_at_once(self):
        method, without = TimeT(config(teacher=False, queue_size=7)), plain()
        data = batch(method)
        # Targets are the largest of the labels, which seven rows need not change.
        found, expected = (x.loss(data, step()).terms["label_weight"] for x in (method, without))
        assert found != expected
        learn(method, data)
        assert method.queue.shape == (7, 16)
        assert method.queue.any(dim=1).all()

    def test_it_is_saved(self):
        assert "queue" in TimeT(config()).state_dict()
        assert "queue" not in plain().state_dict()

    def test_it_holds_the_teachers_features(self):
        method = TimeT(config(queue_size=20))
        with torch.no_grad():
            method.teacher.head[0].bias += 1
        losses = method.loss(batch(method), step())
        with torch.no_grad():
            method.teacher.head[0].bias -= 1
        assert not torch.equal(
            losses.rows["first"], method.loss(batch(method), step()).rows["first"]
        )


def test_encoders_stay_in_evaluation_mode():
    method = TimeT(config())
    assert not method.encoder.training
    method.train()
    assert method.training
    assert not method.encoder.training
    assert not method.teacher.training


def test_it_starts_from_given_weights_and_exports_an_encoder(tmp_path):
    """A DINO checkpoint and a TimeT one alike."""
    vit = build_encoder(config().encoder, 5)
    state = {key: x + 0.01 for key, x in vit.state_dict().items()}
    torch.save(
        {"teacher": {f"module.backbone.{k}": x for k, x in state.items()}}, tmp_path / "d.pth"
    )
    whole = from_ours(state) | {"prototypes": torch.zeros(4, 16)}
    torch.save({"model": whole, "epoch": 3}, tmp_path / "t.pth")
    for name in ("d.pth", "t.pth"):
        keys = {"encoder": encoder(weights=str(tmp_path / name)), "teacher": True}
        method = TimeT(config(**keys))
        found = method.encoder.state_dict()
        assert all(torch.equal(found[key], x) for key, x in state.items())
        own = dict(method.teacher.end.named_parameters())
        assert torch.equal(own["1.mlp.fc1.weight"], state["blocks.1.mlp.fc1.weight"])
    learn(method, batch(method), rate=1.0)
    _export(method, {}, tmp_path / "run", {}, {})
    exported = load_encoder(tmp_path / "run").state_dict()
    changed = {key.split(".")[1] for key, x in exported.items() if not torch.equal(x, state[key])}
    assert changed == {"1", "2"}
    head = load_head(tmp_path / "run")
    assert {key: tuple(x.shape) for key, x in head.items()} == {
        "prototypes": (12, 16),
        "head.0.weight": (32, 24),
        "head.0.bias": (32,),
        "head.2.weight": (16, 32),
        "head.2.bias": (16,),
    }
    torch.testing.assert_close(full(head["prototypes"]), method.prototypes.detach())


@pytest.mark.parametrize("keys", [{}, {"use_head": False}, {"image_size": 40}])
def test_pictures_show_frames_and_labels(keys):
    method = TimeT(config(**keys))
    before = {key: x.clone() for key, x in method.state_dict().items()}
    size = method.config.image_size
    picture = method.visualise(clip(5))["labels"]
    assert picture.shape == (2 * size, 5 * size, 3)
    assert len({tuple(colour) for colour in picture[size:].reshape(-1, 3)}) > 10
    assert all(torch.equal(before[key], x) for key, x in method.state_dict().items())
