import pytest
import torch

from timewalk.encoders.base import IMAGENET_MEAN, IMAGENET_STD
from timewalk.methods import get_method
from timewalk.methods.base import Step
from timewalk.methods.distillation import answer_means, answer_terms, centre_square

METHODS = ("dino", "dora")


def build(name, **changes):
    method = get_method(name)
    return method(method.Config.model_validate({**method.Config.miniature(), **changes}))


def step(index=0, epoch=0, total=10):
    return Step(index, epoch, total, 5, 2)


def batch(method):
    frames = method.clip_shape().frames
    rng = torch.Generator().manual_seed(0)
    clips = torch.randint(0, 256, (2, frames, 3, 40, 50), dtype=torch.uint8, generator=rng)
    views = [method.views(clip, torch.Generator().manual_seed(i)) for i, clip in enumerate(clips)]
    return {key: torch.stack([view[key] for view in views]) for key in views[0]}


@pytest.fixture(params=METHODS)
def name(request):
    return request.param


def test_teacher_starts_as_the_student_and_follows_it(name):
    method = build(name)
    for s, t in zip(method.student.parameters(), method.teacher.parameters(), strict=True):
        assert torch.equal(s, t)
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter += 1
    before = [p.clone() for p in method.teacher.parameters()]
    after = method.after_step(step(index=0), answer_means(torch.zeros(2, 32)))
    assert after["teacher_momentum"] == pytest.approx(0.996)
    for old, new in zip(before, method.teacher.parameters(), strict=True):
        torch.testing.assert_close(new - old, torch.full_like(old, 0.004), rtol=0, atol=1e-6)


def test_the_centre_follows_the_joint_mean_and_waits_for_it(name):
    method = build(name)
    losses = method.loss(batch(method), step())
    assert not method.centre.any()
    method.after_step(step(), losses.means)
    torch.testing.assert_close(method.centre, 0.1 * losses.means["centre"])


def test_exported_backbone(name):
    method = build(name)
    assert method.encoder is method.teacher.backbone
    student = build(name, export="student")
    assert student.encoder is student.student.backbone
    assert not any(key.startswith("encoder") for key in method.state_dict())


def test_only_the_student_drops_paths(name):
    encoder = {**get_method(name).Config.miniature()["encoder"], "drop_path": 0.9}
    method = build(name, encoder=encoder)
    assert method.student.training
    assert method.teacher.training
    images = torch.randn(64, 3, 32, 32)
    one, two = (method.teacher.logits(images) for _ in range(2))
    assert torch.equal(one, two)
    one, two = (method.student.logits(images) for _ in range(2))
    assert not torch.equal(one, two)


def test_last_layer_is_frozen_for_the_first_epochs(name):
    method = build(name, freeze_last_layer_epochs=1, norm_last_layer=False)
    for epoch, frozen in ((0, True), (1, False)):
        method.zero_grad()
        method.loss(batch(method), step(epoch=epoch)).total.backward()
        method.after_backward(step(epoch=epoch))
        grads = [p.grad is None for p in method.student.head.last_layer.parameters()]
        assert grads == [frozen, frozen]
        assert method.student.head.mlp[0].weight.grad is not None


def test_colours_on_the_device_are_those_of_the_workers(name):
    training = get_method(name).Config.miniature()["training"]
    worker = build(name)
    device = build(name, training={**training, "augment": "device"})
    views = batch(device)
    assert any(key.startswith("draws") for key in views)
    found, expected = device.device_views(views), worker.device_views(batch(worker))
    assert found.keys() == expected.keys()
    for key in expected:
        assert found[key].dtype == torch.uint8
        difference = (found[key].int() - expected[key].int()).abs().float()
        assert difference.mean() < 1
        assert difference.quantile(0.99) <= 3
        assert (views[key].int() - expected[key].int()).abs().float().mean() > 5
    assert device.loss(found, step()).total.isfinite()


def test_temperature_of_the_teacher_by_epoch(name):
    method = build(name, teacher_temperature=0.07, warmup_teacher_temperature_epochs=4)
    found = [method.temperature(step(epoch=epoch)) for epoch in range(6)]
    assert found == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07, 0.07])


def test_logits_of_several_sizes_come_in_order(name):
    student = build(name).student.eval()
    large, small = torch.randn(2, 3, 32, 32), torch.randn(3, 3, 16, 16)
    together = student(large, small, large)
    assert [len(x) for x in together] == [2, 3, 2]
    assert torch.equal(torch.cat(together), student.logits(large, small, large))
    torch.testing.assert_close(together[1], student.logits(small), rtol=0, atol=1e-6)
    torch.testing.assert_close(together[0], together[2], rtol=0, atol=1e-6)


def test_bytes_are_normalised_and_floats_are_not(name):
    method = build(name)
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    found = method.normalised(pixels)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(found, (pixels / 255 - mean) / std)
    assert method.normalised(found) is found


def test_terms_of_an_answer():
    uniform = torch.full((4, 8), 1 / 8)
    terms = answer_terms(uniform, torch.tensor(3.0))
    entropy = torch.tensor(8.0).log()
    torch.testing.assert_close(terms["target_entropy"], entropy)
    torch.testing.assert_close(terms["kl"], 3 - entropy)


def test_spread_of_the_answers_is_that_of_the_whole_batch(name):
    method = build(name)
    logits = torch.arange(4.0)[:, None].expand(4, 32)
    halves = [answer_means(part) for part in logits.split(2)]
    joint = {key: (halves[0][key] + halves[1][key]) / 2 for key in halves[0]}
    after = method.after_step(step(index=0), joint)
    torch.testing.assert_close(after["teacher_std"], torch.tensor(1.25).sqrt())


def test_centre_square():
    clip = torch.zeros(2, 3, 20, 40, dtype=torch.uint8)
    clip[..., 10:30] = 200
    assert (centre_square(clip, 10) == 200).all()
    assert centre_square(clip, 10).shape == (2, 3, 10, 10)
