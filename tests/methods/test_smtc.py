"""SMTC beyond the battery: frozen phase, teacher, what learns, instances, data, refused keys."""

import pytest
import torch
from pydantic import ValidationError

from tests.methods.batches import batch, clip, generator, step
from tests.training.processes import float64, miniature, train, train_in_processes
from timewalk.data.clips import ClipShape, SampledClips
from timewalk.data.views import normalise
from timewalk.encoders import load_encoder
from timewalk.encoders.slots import load_slots
from timewalk.errors import UserError
from timewalk.methods import smtc as module
from timewalk.methods.smtc import SMTC
from timewalk.methods.smtc_config import SMTCConfig
from timewalk.methods.smtc_losses import (
    instance_consistency,
    semantic_consistency,
    separation,
    valid_instances,
)
from timewalk.training.loop import InterruptedTraining, Trainer
from timewalk.training.optimizers import make_optimizer, set_rates
from timewalk.training.run import _export

KEYS, VALUES = slice(24, 48), slice(48, 72)
"""rows of the miniature's qkv"""


def encoder(**keys):
    return {**SMTCConfig.miniature()["encoder"], **keys}


def training(**keys):
    return {**SMTCConfig.miniature()["training"], **keys}


def config(**keys):
    return SMTCConfig.model_validate({**SMTCConfig.miniature(), **keys})


def smtc(**keys):
    return SMTC(config(**keys))


def published(**keys):
    return SMTCConfig.model_validate({"method": "smtc", "dataset": "ytvos", **keys})


def gradients(method, data, index=0):
    torch.manual_seed(0)
    losses = method.loss(data, step(index))
    method.zero_grad()
    losses.total.backward()
    return losses, {n: None if p.grad is None else p.grad.clone() for n, p in method.trainable()}


def copied(network):
    return {key: x.clone() for key, x in network.state_dict().items()}


def learn(method, data, steps=2):
    """Train with the run's own optimiser and rates."""
    settings = method.config.training
    groups = method.parameter_groups()
    optimizer = make_optimizer(groups, settings)
    for index in range(steps):
        set_rates(optimizer, groups, settings, step(index))
        optimizer.zero_grad()
        method.loss(data, step(index)).total.backward()
        optimizer.step()
        method.after_step(step(index), {})
    return optimizer


class TestConfig:
    def test_defaults_are_published(self):
        found = published()
        assert (found.encoder.name, found.encoder.drop_path) == ("vit_small", 0.1)
        assert (found.image_size, found.frames_per_clip, found.step_between_frames) == (256, 4, 4)
        assert (found.slots, found.instances, found.iterations) == (16, 4, 3)
        assert (found.second_stage_mask, found.mask_threshold) == ("logit", 0.3)
        assert (found.area_probability, found.min_area, found.min_similarity) == (0.3, 0.2, 0.5)
        weights = (found.consistency_weight, found.separation_weight, found.instance_weight)
        assert weights == (1, 1, 1)
        assert (found.teacher_momentum, found.teacher_backbone) == (0.999, "frozen")
        assert (found.frozen_steps, found.backbone_lr_scale) == (0, 0.01)

    def test_the_published_schedule(self):
        settings = published().training
        groups = smtc().parameter_groups()
        optimizer = make_optimizer(groups, settings)
        seen = [set_rates(optimizer, groups, settings, step(k, 10_000)) for k in (0, 5000, 9999)]
        rates = [one["learning_rate"] for one in seen]
        assert rates == pytest.approx([2e-5, 1.1e-5, 2e-6], rel=1e-4)
        assert [one["weight_decay"] for one in seen] == pytest.approx([0.1] * 3)
        assert (settings.batch_size, settings.max_steps, settings.precision) == (
            128,
            10_000,
            "fp32",
        )

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({"frames_per_clip": 1}, "greater than or equal to 2"),
            ({"slots": 1}, "greater than or equal to 2"),
            ({"instances": 0}, "greater than or equal to 1"),
            ({"iterations": 0}, "greater than or equal to 1"),
            ({"image_size": 36}, "image_size is 36; make it a multiple of encoder.patch_size 8"),
            (
                {"encoder": {"name": "resnet18_s8"}},
                "encoder.name is 'resnet18_s8', but smtc reads the keys of a ViT's last block; take"
                " one of vit_tiny, vit_small, vit_base",
            ),
            ({"encoder": encoder(width=22)}, "encoder.width 22 is no multiple of encoder.heads 4"),
            ({"encoder": encoder(depth=1)}, "encoder.depth is 1, .* take 2 or more"),
            ({"teacher_backbone": "thawed"}, "'frozen' or 'averaged'"),
            ({"second_stage_mask": "hard"}, "'logit', 'prob' or 'soft'"),
            (
                {"second_stage_mask": "prob", "mask_threshold": 1.0},
                "mask_threshold is 1.0, but .* take 0 or more and less than 1",
            ),
            ({"frozen_steps": -1}, "greater than or equal to 0"),
            ({"min_similarity": 2}, "less than or equal to 1"),
            (
                {"training": {"learning_rate": 1e-6}},
                "min_learning_rate 2e-06 is above training.learning_rate 1e-06; lower it",
            ),
            ({"training": {"augment": "device"}}, "worker"),
        ],
    )
    def test_what_cannot_be_is_refused(self, keys, message):
        with pytest.raises(ValidationError, match=message):
            config(**keys)

    def test_a_logit_threshold_may_be_any_number(self):
        assert config(mask_threshold=-2.5).mask_threshold == -2.5

    def test_micro_batches_are_refused(self, tmp_path):
        with pytest.raises(UserError, match="micro_batch_size 1 would divide a batch"):
            train(config(training=training(micro_batch_size=1)), tmp_path)


class TestData:
    def test_frames_of_a_clip(self):
        shape = smtc(step_between_frames=5, frames_per_clip=4).clip_shape()
        assert shape == ClipShape(4, 5, 8, sampling="window")

    @pytest.mark.parametrize("length", [5, 9, 12, 13, 17, 18, 60])
    def test_short_videos_have_smaller_steps(self, length):
        shape = SMTC(config(frames_per_clip=4, step_between_frames=4)).clip_shape()
        source = SampledClips([], shape.frames, shape.sampling, shape.step, shape.per_video)
        numbers = torch.tensor(source.numbers(length, generator()))
        assert len(numbers) == 4
        assert numbers.min() >= 0
        assert numbers.max() < length
        steps = set(numbers.diff().tolist())
        assert len(steps) == 1
        assert (steps == {4}) == (length >= 18)

    @pytest.mark.parametrize("shape", [(48, 64), (64, 48), (32, 32), (90, 17)])
    def test_two_views_of_frames_of_any_shape(self, shape):
        views = smtc().views(clip(3, *shape), generator(1))
        assert views["images"].shape == (2, 3, 3, 32, 32)
        assert views["images"].dtype == torch.uint8
        assert not torch.equal(views["images"][0], views["images"][1])
        assert views["noise_seed"].dtype == torch.int64
        assert views["noise_seed"].shape == ()

    @pytest.mark.parametrize("compat", ["intended", "published"])
    def test_the_published_blur_is_the_same_in_a_whole_run(self, compat, monkeypatch):
        seen = []
        original = module.photometric_view

        def watched(*arguments, sigma):
            seen.append(sigma)
            return original(*arguments, sigma=sigma)

        monkeypatch.setattr(module, "photometric_view", watched)
        for seed in (1, 2):
            method = smtc(compat=compat, seed=seed)
            for number in range(2):
                method.views(clip(), generator(number))
        if compat == "intended":
            assert seen == [None] * 4
        else:
            assert seen[0] == seen[1] != seen[2] == seen[3]
            assert all(0.1 <= sigma <= 2 for sigma in seen)


class TestNoise:
    def test_a_clips_noise_does_not_depend_on_its_company(self):
        method = smtc()
        pair, alone = method._noise([5, 6], 3), method._noise([6], 3)
        assert pair.shape == (2, 2, 3, 3, 2, 24)
        assert torch.equal(pair[:, 1:], alone)
        assert not torch.equal(pair[:, 0], pair[:, 1])
        assert not torch.equal(pair[0], pair[1])
        many = method._noise(list(range(50)), 3)
        assert float(many.mean()) == pytest.approx(0, abs=0.02)
        assert float(many.std()) == pytest.approx(1, abs=0.02)

    def test_it_counts(self):
        method = smtc()
        data = batch(method)
        before = method.loss(data, step()).terms["instance_consistency"]
        data["noise_seed"] += 1
        assert method.loss(data, step()).terms["instance_consistency"] != before


class TestLoss:
    # Semantics count by the logits of the last iteration, which come before its update.
    OF_INSTANCES = ("project_v", "norm_pre_ff", "mlp", "slots_sigma")

    def _of_instances(self, name):
        return name.startswith("student.slots.") and any(x in name for x in self.OF_INSTANCES)

    def test_terms_are_weighted(self):
        method = smtc()
        data = batch(method)
        terms = method.loss(data, step()).terms
        assert set(terms) == {
            "separation",
            "semantic_consistency",
            "instance_consistency",
            "valid_share",
            "slots_used",
        }
        keys = {"consistency_weight": 2.0, "separation_weight": 0.5, "instance_weight": 3.0}
        parts = [terms[k] for k in ("semantic_consistency", "separation", "instance_consistency")]
        expected = sum(w * x for w, x in zip(keys.values(), parts, strict=True))
        torch.testing.assert_close(smtc(**keys).loss(data, step()).total, expected)
        assert 0 < terms["valid_share"] < 1
        assert 0 < terms["slots_used"] <= 1

    @pytest.mark.parametrize(
        "keys",
        [
            {"iterations": 2},
            {"mask_threshold": 0.1},
            {"second_stage_mask": "prob"},
            {"second_stage_mask": "soft"},
            {"area_probability": 0.4},
            {"min_area": 0.6},
            {"min_similarity": 0.7},
            {"instances": 3},
            {"slots": 4},
            {"image_size": 40},
            {"separation_weight": 0.0},
            {"seed": 1},
        ],
    )
    def test_every_option_changes_the_loss(self, keys):
        one, other = smtc(), smtc(**keys)
        data = batch(one, 4)
        after = other.loss(batch(other, 4) if "image_size" in keys else data, step())
        assert after.total.isfinite()
        assert after.total != one.loss(data, step()).total

    def test_uint8_is_normalised_by_the_encoders_statistics(self):
        method = smtc()
        data = batch(method)
        floats = normalise(data["images"], method.encoder.mean, method.encoder.std)
        one = method.loss(data, step()).total
        assert torch.equal(one, method.loss({**data, "images": floats}, step()).total)

    def test_student_and_teacher_see_a_view_each(self):
        method = smtc()
        data = batch(method)
        images = normalise(data["images"], method.encoder.mean, method.encoder.std)
        images.requires_grad_()
        method.loss({**data, "images": images}, step()).total.backward()
        assert images.grad[:, 0].any()
        assert not images.grad[:, 1].any()
        swapped = method.loss({**data, "images": data["images"].flip(1)}, step()).total
        assert swapped != method.loss(data, step()).total

    def test_it_is_the_sum_of_the_losses_of_both_networks(self):
        method = smtc(teacher_momentum=0.5, training=training(learning_rate=0.05)).eval()
        data = batch(method, 3)
        learn(method, data)
        images = normalise(data["images"], method.encoder.mean, method.encoder.std)
        noise = method._noise(data["noise_seed"].tolist(), 3)
        student = method.student(images[:, 0], noise[0], 3)
        teacher = method.teacher(images[:, 1], noise[1], 3)
        valid = [
            valid_instances(slots.semantic_logits, slots.semantic, slots.instance)
            for slots in (student, teacher)
        ]
        assert not torch.equal(*valid)
        expected = (
            separation(student.semantic_logits)
            + semantic_consistency(student.semantic_logits, teacher.semantic_logits, teacher.keys)
            + instance_consistency(
                method.student.slots.projected(student.instance),
                method.teacher.slots.projected(teacher.instance),
                *valid,
            )
        )
        torch.testing.assert_close(method.loss(data, step()).total, expected)

    def test_a_clip_is_not_touched_by_its_company(self):
        """Of what is a mean over clips: instances are divided by the number in the batch."""
        method = smtc().eval()
        data = batch(method, 4)
        parts = [{key: x[k : k + 1] for key, x in data.items()} for k in range(4)]
        whole = method.loss(data, step()).terms
        each = [method.loss(part, step()).terms for part in parts]
        for key in ("separation", "semantic_consistency", "valid_share", "slots_used"):
            mean = torch.stack([terms[key] for terms in each]).mean()
            torch.testing.assert_close(whole[key], mean)
        valid = torch.stack([terms["valid_share"] for terms in each])
        instances = torch.stack([terms["instance_consistency"] for terms in each])
        assert len(set(valid.tolist())) > 1
        weighted = (instances * valid).sum() / valid.sum()
        torch.testing.assert_close(whole["instance_consistency"], weighted)

    def test_processes_divide_by_the_instances_of_all(self, monkeypatch):
        method = smtc().eval()
        data = batch(method, 2)
        whole = method.loss(data, step()).terms["instance_consistency"]
        counts = []
        monkeypatch.setattr(module, "mean_over_processes", lambda x: counts.append(x) or x)
        parts = [{key: x[k : k + 1] for key, x in data.items()} for k in range(2)]
        for part in parts:
            method.loss(part, step())
        assert counts[0] != counts[1]
        mean = sum(counts) / 2
        monkeypatch.setattr(module, "mean_over_processes", lambda x: mean)
        found = [method.loss(part, step()).terms["instance_consistency"] for part in parts]
        torch.testing.assert_close(sum(found) / 2, whole)

    def test_without_valid_instances_the_others_learn(self):
        method = smtc(min_area=1.0)
        losses, found = gradients(method, batch(method))
        assert losses.terms["valid_share"] == 0
        assert losses.terms["instance_consistency"] == 0
        assert losses.total.isfinite()
        for name, gradient in found.items():
            assert gradient.isfinite().all(), name
            assert bool(gradient.any()) != self._of_instances(name), name

    def test_one_instance_a_semantic(self):
        method = smtc(instances=1)
        losses, found = gradients(method, batch(method))
        assert -1 <= losses.terms["instance_consistency"] < 0
        assert all(x.isfinite().all() for x in found.values())
        assert found["student.slots.mlp_slot.0.weight"].any()

    @pytest.mark.parametrize("frozen_steps", [0, 1])
    def test_autocast_leaves_nothing_without_a_gradient(self, frozen_steps):
        method = smtc(frozen_steps=frozen_steps)
        data = batch(method)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            total = method.loss(data, step()).total
        total.backward()
        for name, parameter in method.trainable():
            learns = not frozen_steps or not name.startswith("student.encoder.")
            assert (parameter.grad is not None) == learns, name
            assert parameter.grad is None or parameter.grad.isfinite().all()
        torch.testing.assert_close(total, method.loss(data, step()).total, rtol=0.1, atol=0.05)

    def test_it_changes_nothing(self):
        method = smtc()
        before = copied(method)
        method.loss(batch(method), step())
        assert all(torch.equal(before[key], x) for key, x in method.state_dict().items())


class TestFrozenPhase:
    KEYS = {"encoder": encoder(depth=3, drop_path=0.5), "frozen_steps": 2}

    def test_slots_learn_as_with_the_graph_and_the_encoder_does_not(self):
        method = smtc(**self.KEYS)
        data = batch(method)
        losses, frozen = gradients(method, data, index=1)
        thawed_losses, thawed = gradients(method, data, index=2)
        assert torch.equal(losses.total, thawed_losses.total)
        for name, gradient in thawed.items():
            if name.startswith("student.encoder."):
                assert frozen[name] is None, name
                assert gradient.any(), name
            else:
                torch.testing.assert_close(frozen[name], gradient, rtol=1e-5, atol=1e-8)

    def test_then_the_backbone_learns_at_its_own_rate(self):
        method = smtc(**self.KEYS, training=training(learning_rate=1e-3))
        data = batch(method)
        before = copied(method.student)
        optimizer = learn(method, data, steps=2)
        between = copied(method.student)
        moments = {id(p) for p in optimizer.state}
        for key, parameter in method.student.named_parameters():
            learnt = key.startswith("slots.")
            assert torch.equal(before[key], between[key]) != learnt, key
            assert (id(parameter) in moments) == learnt, key
        learn(method, data, steps=3)
        after = dict(method.student.encoder.named_parameters())
        moved = {k for k, x in after.items() if not torch.equal(x, between[f"encoder.{k}"])}
        assert moved == {key for key, x in after.items() if x.requires_grad}
        # A first step of Adam is as long as the rate: a hundredth of that of the slots.
        most = (after["cls_token"].detach() - between["encoder.cls_token"]).abs().max()
        rate = method.config.training.learning_rate * 0.01
        assert float(most) == pytest.approx(rate * 0.9, rel=0.1)

    def test_only_a_frozen_phase_leaves_parameters_unused(self):
        assert not smtc().unused_parameters
        assert smtc(frozen_steps=1).unused_parameters

    def test_two_processes_freeze_as_one(self, tmp_path):
        keys = miniature("smtc").model_copy(update={"frozen_steps": 2})
        (tmp_path / "two").mkdir()
        with float64():
            expected = train(keys, tmp_path / "one").method.state_dict()
            first, second = train_in_processes(keys, tmp_path / "two", 2)
            start = SMTC(keys).student.encoder.pos_embed
        for key, x in expected.items():
            assert torch.equal(first[key], second[key]), key
            torch.testing.assert_close(first[key], x, rtol=0, atol=1e-6, msg=key)
        assert not torch.equal(first["student.encoder.pos_embed"], start)

    def test_in_two_processes_nothing_decays_either(self, tmp_path):
        keys = miniature("smtc", optimizer="adamw", learning_rate=0.05, weight_decay=1.0)
        keys = keys.model_copy(update={"frozen_steps": 4})
        first, _ = train_in_processes(keys, tmp_path, 2)
        for key, x in SMTC(keys).student.encoder.state_dict().items():
            assert torch.equal(first[f"student.encoder.{key}"], x), key

    @pytest.mark.parametrize("stopped_after", [1, 3])
    def test_a_resume_within_it_and_after_it(self, tmp_path, monkeypatch, stopped_after):
        keys = config(frozen_steps=2, training=training(batch_size=4), teacher_backbone="frozen")
        expected = train(keys, tmp_path / "whole").method.state_dict()
        original = Trainer._step

        def stopping(self, data, step):
            self.stop = step.index + 1 == stopped_after
            return original(self, data, step)

        monkeypatch.setattr(Trainer, "_step", stopping)
        with pytest.raises(InterruptedTraining):
            train(keys, tmp_path / "parts")
        monkeypatch.undo()
        again = train(keys, tmp_path / "parts")
        assert again.first == stopped_after
        found = again.method.state_dict()
        assert all(torch.equal(found[key], x) for key, x in expected.items())


class TestParameters:
    def test_the_published_numbers(self):
        groups = SMTC(published()).parameter_groups()
        # Without what comes after the last keys: 3 matrices and 7 others.
        assert [len(group.parameters) for group in groups] == [51 - 3, 99 - 7, 10, 14]
        numbers = [sum(p.numel() for p in group.parameters) for group in groups]
        after = (384 * 384 + 2 * 384 * 1536, 4 * 384 + 1536 + 2 * 384)
        assert numbers == [21_604_608 - after[0], 61_056 - after[1], 1_437_696, 5_760]
        assert [group.lr_scale for group in groups] == [0.01, 0.01, 1, 1]
        assert [group.weight_decay for group in groups] == [True, False, True, False]

    def test_starts_class_token_and_positions_are_decayed(self):
        method = smtc()
        names = {id(p): name for name, p in method.named_parameters()}
        of_groups = [
            {names[id(p)] for p in group.parameters} for group in method.parameter_groups()
        ]
        assert {"student.encoder.cls_token", "student.encoder.pos_embed"} <= of_groups[0]
        attention = "student.slots.slot_attention."
        assert {attention + "slots_mu", attention + "slots_sigma"} <= of_groups[2]
        assert "student.slots.transport_proj.weight" in of_groups[2]
        assert "student.slots.transport_proj.bias" in of_groups[3]
        assert sum(map(len, of_groups)) == len(list(method.trainable()))

    def test_the_keys_bias_of_the_last_block_learns_and_no_other(self):
        method = smtc()
        _, found = gradients(method, batch(method))
        first, last = (found[f"student.encoder.blocks.{k}.attn.qkv.bias"] for k in (0, 1))
        assert last[KEYS].any()
        assert not last[: KEYS.start].any()
        assert not last[VALUES].any()
        assert not first[KEYS].any()
        assert first[VALUES].any()

    def test_what_comes_after_the_keys_never_changes(self):
        method = smtc(training=training(learning_rate=0.1))
        before = copied(method)
        learn(method, batch(method))
        after = ("blocks.1.attn.proj.", "blocks.1.norm2.", "blocks.1.mlp.", "norm.")
        for network in ("student", "teacher"):
            for key, x in getattr(method, network).encoder.state_dict().items():
                same = torch.equal(x, before[f"{network}.encoder.{key}"])
                assert same == key.startswith(after), key

    def test_the_decay_alone_moves_the_deviations(self):
        method = smtc(training=training(learning_rate=0.1))
        before = method.student.slots.slot_attention.slots_sigma.detach().clone()
        learn(method, batch(method), steps=1)
        found = method.student.slots.slot_attention.slots_sigma
        torch.testing.assert_close(found, before * (1 - 0.1 * 0.1))


class TestTeacher:
    def test_it_begins_as_the_student(self):
        method = smtc()
        teacher = method.teacher.state_dict()
        assert all(torch.equal(teacher[k], x) for k, x in method.student.state_dict().items())
        assert not any(p.requires_grad for p in method.teacher.parameters())

    def test_it_is_always_in_evaluation_mode(self):
        method = smtc()
        assert method.student.training
        assert not any(part.training for part in method.teacher.modules())
        method.eval()
        assert not method.student.training
        method.train()
        assert method.student.training
        assert not any(part.training for part in method.teacher.modules())

    def test_only_the_student_drops_paths(self):
        method = smtc(encoder=encoder(depth=4, drop_path=0.9))
        images = torch.randn(8, 3, 32, 32, generator=generator())
        draws = [network.encoder.keys(images) for network in [method.student, method.teacher] * 2]
        assert not torch.equal(draws[0], draws[2])
        assert torch.equal(draws[1], draws[3])

    @pytest.mark.parametrize("backbone", ["frozen", "averaged"])
    def test_it_follows(self, backbone):
        method = smtc(
            teacher_backbone=backbone,
            teacher_momentum=0.9,
            training=training(learning_rate=0.1),
        )
        before = copied(method.teacher)
        learn(method, batch(method), steps=1)
        student = dict(method.student.named_parameters())
        for key, x in method.teacher.named_parameters():
            if key.startswith("encoder.") and backbone == "frozen":
                assert torch.equal(x, before[key]), key
            else:
                torch.testing.assert_close(x, 0.9 * before[key] + 0.1 * student[key])

    def test_a_frozen_one_is_what_training_began_with_after_a_resume(self):
        method = smtc(teacher_backbone="frozen", training=training(learning_rate=0.1))
        start = copied(method.student.encoder)
        learn(method, batch(method))
        again = smtc(teacher_backbone="frozen", seed=5)
        again.load_state_dict(method.state_dict())
        found = again.teacher.encoder.state_dict()
        assert all(torch.equal(found[key], x) for key, x in start.items())
        assert not torch.equal(again.encoder.pos_embed, start["pos_embed"])


def test_the_student_is_exported_with_its_slots(tmp_path):
    fast = {**SMTCConfig.miniature()["training"], "learning_rate": 0.1}
    method = smtc(second_stage_mask="prob", mask_threshold=0.35, training=fast)
    learn(method, batch(method))
    _export(method, {}, tmp_path, {}, {})
    vit, slots = load_encoder(tmp_path).eval(), load_slots(tmp_path)
    assert (slots.native_grid, slots.instances, slots.mask) == ((4, 4), 2, "prob")
    method.eval()
    images = torch.randn(1, 3, 3, 32, 32, generator=generator())
    noise = method._noise([3], 3)[0]
    with torch.no_grad():
        expected = method.student(images, noise, 3)
        found = slots(vit.keys(images[0]).unsqueeze(0), noise, 3)
        other = method.teacher(images, noise, 3)
    for name in ("semantic_logits", "semantic", "instance", "instance_logits"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
        assert not torch.allclose(getattr(found, name), getattr(other, name), atol=1e-4)


@pytest.mark.parametrize("size", [32, 40])
@pytest.mark.parametrize("mode", [True, False])
def test_pictures_show_frames_and_slots(size, mode):
    method = smtc(image_size=size, slots=5, encoder=encoder(depth=4, drop_path=0.5)).train(mode)
    before = copied(method)
    pictures = method.visualise(clip(5, 30, 50))
    assert pictures.keys() == {"semantics", "instances"}
    for picture in pictures.values():
        assert picture.shape == (2 * size, 5 * size, 3)
        assert len({tuple(colour) for colour in picture[size:].reshape(-1, 3)}) > 5
    again = method.visualise(clip(5, 30, 50))
    assert all((pictures[name] == again[name]).all() for name in pictures)
    assert method.student.training == mode
    assert not method.teacher.training
    assert all(torch.equal(before[key], x) for key, x in method.state_dict().items())
