"""DoRA against arrays of the published code: see data/dora/README.md for names and tolerances.

Sizes are read from the arrays. Rows of the published code are frame-major, ours clip-major.
"""

import re

import numpy as np
import pytest
import torch

from timewalk.data.views import normalise
from timewalk.methods.base import Step
from timewalk.methods.dora import (
    DoRA,
    DoraConfig,
    discover,
    dora_loss,
    mask_images,
    object_weights,
    threshold,
    track,
)
from timewalk.ops.clipping import clip_each_
from timewalk.ops.distillation import teacher_probabilities, update_centre_
from timewalk.ops.schedules import linear_then_constant, warmup_cosine
from timewalk.ops.sinkhorn import sinkhorn, sinkhorn_published, underflows

LOSS = {"rtol": 1e-5, "atol": 0}
CENTRE = {"rtol": 0, "atol": 1e-6}
MAP = {"rtol": 0, "atol": 2e-5}


def tensor(array):
    return torch.from_numpy(np.array(array))


def numbers(arrays, pattern):
    """Return the sorted numbers that fill the pattern's group in the arrays' names."""
    found = {int(m[1]) for name in arrays if (m := re.fullmatch(pattern, name))}
    assert found, f"no array is named like {pattern}"
    return sorted(found)


class TestSinkhorn:
    @pytest.fixture
    def arrays(self, golden):
        return golden("dora", "sinkhorn.npz")

    @staticmethod
    def cases(arrays):
        return [name.removeprefix("logits_") for name in arrays if name.startswith("logits_")]

    def test_log_domain_gives_the_float64_arrays(self, arrays):
        epsilon, iterations = float(arrays["epsilon"]), int(arrays["num_iters"])
        for case in self.cases(arrays):
            logits = tensor(arrays[f"logits_{case}"]).double()
            found = sinkhorn(logits, epsilon, iterations)
            np.testing.assert_allclose(found, arrays[f"assign64_{case}"], rtol=0, atol=1e-12)

    def test_log_domain_in_float32_is_close_and_always_finite(self, arrays):
        epsilon, iterations = float(arrays["epsilon"]), int(arrays["num_iters"])
        for case in self.cases(arrays):
            found = sinkhorn(tensor(arrays[f"logits_{case}"]), epsilon, iterations)
            np.testing.assert_allclose(found, arrays[f"assign64_{case}"], **MAP)

    def test_published_domain_gives_the_float32_arrays_and_their_nan(self, arrays):
        epsilon, iterations = float(arrays["epsilon"]), int(arrays["num_iters"])
        for case in self.cases(arrays):
            logits, expected = tensor(arrays[f"logits_{case}"]), arrays[f"assign_{case}"]
            found = sinkhorn_published(logits, epsilon, iterations)
            np.testing.assert_allclose(found, expected, **MAP)
            lost = np.isnan(expected).any(axis=(1, 2))
            np.testing.assert_array_equal(underflows(logits, epsilon), lost)
            if not lost.any():
                np.testing.assert_allclose(sinkhorn(logits, epsilon, iterations), expected, **MAP)

    def test_other_numbers_of_iterations(self, arrays):
        found = [m for name in arrays if (m := re.fullmatch(r"assign_(\w+)_(\d+)iters", name))]
        assert found
        for match in found:
            logits = tensor(arrays[f"logits_{match[1]}"])
            for function in (sinkhorn, sinkhorn_published):
                assignment = function(logits, float(arrays["epsilon"]), int(match[2]))
                np.testing.assert_allclose(assignment, arrays[match[0]], **MAP)


@pytest.mark.parametrize("name", ["mot_b1.npz", "mot_b2.npz"])
def test_multi_object_tracking(golden, name):
    arrays = golden("dora", name)
    heads = arrays["heads"].tolist()

    def joined(name):  # (F, B, H, 1 + N, E) to (F, B, N, d)
        return tensor(arrays[name])[:, :, :, 1:].transpose(2, 3).flatten(3)

    objects = discover(
        joined("query")[0],
        tensor(arrays["attn"])[0, :, :, 0, 1:][:, heads],
        tensor(arrays["patches"])[0],
        epsilon=0.05,
        iterations=30,
        compat="published",
    )
    # Sums of some hundred products: their float32 order matters in the sixth digit.
    for found, expected in (
        (objects.prototypes, "prototypes"),
        (objects.scores, "assignment_logits"),
        (objects.refined, "refined"),
    ):
        np.testing.assert_allclose(found, arrays[expected], rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(objects.assignment, arrays["assignment"], **MAP)
    logged = sinkhorn(objects.scores, 0.05, 30)
    np.testing.assert_allclose(logged, arrays["assignment"], **MAP)

    maps_BFKN = track(objects.refined, joined("key").transpose(0, 1))
    np.testing.assert_allclose(maps_BFKN.permute(1, 0, 2, 3), arrays["maps"], **MAP)

    masks = threshold(maps_BFKN, "published")
    images, patch = tensor(arrays["images"]), int(arrays["patch_size"])
    pixels = mask_images(torch.ones_like(images), masks, patch)
    assert np.array_equal(pixels[:, :, :, 0].to(torch.uint8), arrays["masks"])
    assert np.array_equal(mask_images(images, masks, patch), arrays["masked"])


class TestLoss:
    @pytest.fixture
    def arrays(self, golden):
        return golden("dora", "loss.npz")

    def test_losses_and_gradients(self, arrays):
        teacher_FBD, centre = tensor(arrays["teacher"]), tensor(arrays["center_before"])
        frames, clips = teacher_FBD.shape[:2]
        objects = numbers(arrays, r"student_obj(\d+)")
        for epoch in numbers(arrays, r"loss_ep(\d+)"):
            temperature = float(arrays["teacher_temp_schedule"][epoch])
            names = ["student_local", *(f"student_obj{k}" for k in objects)]
            local, *masked = (tensor(arrays[name]).requires_grad_() for name in names)
            views = local.unflatten(1, (-1, clips)).transpose(0, 1).flatten(1, 2)
            parts = dora_loss(
                torch.stack(masked).flatten(1, 2),
                views[1:],
                teacher_probabilities(teacher_FBD, centre, temperature).flatten(0, 1),
                object_weights(len(objects), frames, "published"),
            )
            parts.total.backward()
            np.testing.assert_allclose(parts.total.item(), arrays[f"loss_ep{epoch}"], **LOSS)
            for name, leaf in zip(names, (local, *masked), strict=True):
                expected = arrays[f"grad_{name.removeprefix('student_')}_ep{epoch}"]
                np.testing.assert_allclose(leaf.grad, expected, rtol=1e-5, atol=1e-6)

    def test_teacher_temperatures(self, arrays):
        for epoch, expected in enumerate(arrays["teacher_temp_schedule"]):
            assert linear_then_constant(epoch, 0.04, 0.07, 30) == pytest.approx(expected, abs=1e-12)

    def test_centre(self, arrays):
        centre = tensor(arrays["center_before"])
        for teacher, expected in (("teacher", "center_after"), ("teacher2", "center_after2")):
            update_centre_(centre, tensor(arrays[teacher]), 0.9)
            np.testing.assert_allclose(centre, arrays[expected], **CENTRE)


def test_schedules(golden):
    arrays = golden("dora", "schedules.npz")
    per_epoch, warm = int(arrays["iters_per_epoch"]), int(arrays["warmup_epochs"])
    total = int(arrays["epochs"]) * per_epoch
    cosines = {
        "lr": (0.0005 * 48 / 256, 1e-5, warm * per_epoch),
        "wd": (0.04, 0.4, 0),
        "momentum": (0.996, 1.0, 0),
        "lr_nowarm": (0.0005 * 128 / 256, 1e-6, 0),
    }
    for name, (base, end, steps) in cosines.items():
        found = [warmup_cosine(i, total, base, end, warmup_steps=steps) for i in range(total)]
        np.testing.assert_allclose(found, arrays[name], rtol=1e-12, atol=1e-18)
    for name, end in (("teacher_temp_warm", 0.07), ("teacher_temp_default", 0.04)):
        epochs = len(arrays[name])
        found = [linear_then_constant(epoch, 0.04, end, 30) for epoch in range(epochs)]
        np.testing.assert_allclose(found, arrays[name], rtol=1e-12)


class TestTinyStep:
    """Three steps of the published loop, through the class that is trained with."""

    @pytest.fixture
    def arrays(self, golden):
        return golden("dora", "tiny_step.npz")

    @pytest.fixture
    def method(self, arrays):
        method = DoRA(self.config(arrays))
        for network in ("student", "teacher"):
            getattr(method, network).load_state_dict(self.state(arrays, f"{network}0."))
        return method

    @staticmethod
    def state(arrays, prefix):
        found = {
            k.removeprefix(prefix): tensor(v) for k, v in arrays.items() if k.startswith(prefix)
        }
        assert found
        return found

    def config(self, arrays):
        state = self.state(arrays, "student0.")
        width, _, patch, _ = state["backbone.patch_embed.proj.weight"].shape
        _, frames, _, size, _ = arrays["global"].shape
        local = numbers(arrays, r"local(\d+)")
        encoder = {
            "name": "vit_tiny",
            "width": width,
            "depth": 1 + max(numbers(state, r"backbone\.blocks\.(\d+)\.norm1\.weight")),
            "heads": arrays["cls_attn_0"].shape[2],
            "patch_size": patch,
            "image_size": size,
            "drop_path": 0.0,
        }
        return DoraConfig.model_validate(
            {
                "method": "dora",
                "dataset": "golden",
                "encoder": encoder,
                "compat": "published",
                "frames_per_clip": frames,
                "global_size": size,
                "local_size": arrays["local0"].shape[-1],
                "local_crops": len(local),
                "num_objects": len(arrays["heads_0"]),
                "out_dim": len(state["head.last_layer.weight_g"]),
                "head_hidden": len(state["head.mlp.0.bias"]),
                "head_bottleneck": len(state["head.mlp.4.bias"]),
                "norm_last_layer": False,
                "freeze_last_layer_epochs": 1,
                "warmup_teacher_temperature": 0.04,
                "teacher_temperature": 0.07,
                "warmup_teacher_temperature_epochs": 1,
                "momentum_teacher": float(arrays["momentum"][0]),
            }
        )

    @staticmethod
    def batch(arrays):
        local = [arrays[f"local{i}"] for i in numbers(arrays, r"local(\d+)")]
        return {"global": tensor(arrays["global"]), "local": tensor(np.stack(local, axis=1))}

    def test_first_forward_pass(self, arrays, method):
        batch = self.batch(arrays)
        clips, frames = batch["global"].shape[:2]
        images = batch["global"].transpose(0, 1).flatten(0, 1)
        backbone = method.teacher.backbone
        with torch.no_grad():
            tokens = backbone.tokens(images, cls_attention=slice(None))
            row = backbone.last_attention(images)[:, :, 0]
            logits, _, masks = method.look(batch["global"], arrays["heads_0"].tolist())
            masked = mask_images(batch["global"], masks, method.config.encoder.patch_size)
            local = batch["local"].transpose(0, 1)
            seen = method.student(masked.flatten(0, 2), local.flatten(0, 2))

        def check(found, name):
            np.testing.assert_allclose(found, arrays[name], **MAP)

        check(tokens.patches.unflatten(0, (frames, clips)), "teacher_patches_0")
        check(row.unflatten(0, (frames, clips)), "cls_attn_0")
        # Training takes only the patches' part of the row.
        assert torch.allclose(tokens.cls_attention, row[..., 1:], atol=1e-6)
        check(logits.unflatten(0, (clips, frames)).transpose(0, 1), "teacher_out_0")
        for k, found in enumerate(seen[0].unflatten(0, (-1, clips, frames))):
            check(found.transpose(0, 1), f"student_obj{k}_0")
        by_view = seen[1].unflatten(0, (-1, clips, frames))
        check(by_view.permute(2, 0, 1, 3).flatten(1, 2), "student_local_0")

    def test_regularised_parameters(self, arrays, method):
        groups = [g for g in method.parameter_groups() if g.weight_decay]
        chosen = {id(p) for group in groups for p in group.parameters}
        names = {n for n, p in method.student.named_parameters() if id(p) in chosen}
        assert names == set(arrays["regularised"].tolist())

    def test_three_steps(self, arrays, method):
        batch = self.batch(arrays)
        steps = numbers(arrays, r"loss_(\d+)")
        total = len(arrays["lr"])
        groups = method.parameter_groups()
        optimizer = torch.optim.AdamW([{"params": group.parameters} for group in groups])
        names = [name for name, _ in method.student.named_parameters()]
        assert names == arrays["param_order"].tolist()
        for index in steps:
            step = Step(index, index, total, 1, total)
            heads = arrays[f"heads_{index}"].tolist()
            method.choose_heads = lambda step, heads=heads: heads
            for group, target in zip(groups, optimizer.param_groups, strict=True):
                target["lr"] = float(arrays["lr"][index])
                target["weight_decay"] = float(arrays["wd"][index]) if group.weight_decay else 0.0
            _, _, masks = method.look(batch["global"], heads)
            ones = torch.ones_like(batch["global"])
            pixels = mask_images(ones, masks, method.config.encoder.patch_size)
            assert np.array_equal(pixels[:, :, :, 0].to(torch.uint8), arrays[f"mask_{index}"])

            losses = method.loss(batch, step)
            loss = losses.total
            np.testing.assert_allclose(loss.item(), arrays[f"loss_{index}"], **LOSS)
            optimizer.zero_grad()
            loss.backward()
            norms = clip_each_(method.student.parameters(), float(arrays[f"clip_{index}"]))
            # No tolerance is named: float32 sums, and after Adam's first steps a little drift.
            expected = arrays[f"grad_norms_{index}"]
            np.testing.assert_allclose(
                norms, expected, rtol=1e-4 if index == 0 else 5e-3, atol=1e-6
            )
            method.after_backward(step)
            optimizer.step()
            momentum = method.after_step(step, losses.means)["teacher_momentum"]
            assert momentum == pytest.approx(float(arrays["momentum"][index]), abs=1e-12)
            np.testing.assert_allclose(method.centre, arrays[f"center_{index}"], **CENTRE)
        last = len(steps)
        self.compare(method.student, self.state(arrays, f"student{last}."), 5e-3, 1e-4)
        self.compare(method.teacher, self.state(arrays, f"teacher{last}."), 5e-4, 1e-5)

    @staticmethod
    def compare(network, expected, at_most, nearly_all):
        found = network.state_dict()
        assert found.keys() == expected.keys()
        difference = torch.cat([(found[k] - expected[k]).abs().flatten() for k in expected])
        assert difference.max() <= at_most
        assert difference.quantile(0.99) <= nearly_all


def test_crop_shapes(golden):
    value = golden("dora", "crop_shapes.json")
    (frames, *_), *locals_ = value["crops"]
    config = DoraConfig.model_validate(
        {
            "method": "dora",
            "dataset": "golden",
            "encoder": {"name": "vit_tiny", "depth": 1, "width": 24},
            "out_dim": 32,
            "frames_per_clip": frames,
            "global_size": value["crops"][0][-1],
            "local_size": locals_[0][-1],
            "local_crops": len(locals_),
        }
    )
    clip = torch.randint(0, 256, (frames, 3, 90, 160), dtype=torch.uint8)
    views = DoRA(config).views(clip, torch.Generator().manual_seed(0))
    crops = [normalise(x, (0.5,) * 3, (0.5,) * 3) for x in (views["global"], *views["local"])]
    assert [list(crop.shape) for crop in crops] == value["crops"]
    assert {str(crop.dtype) for crop in crops} == {value["dtype"]}
