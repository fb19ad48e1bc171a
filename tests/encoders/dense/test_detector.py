"""Detection networks: both heads on every family of encoder, and that they learn."""

import pytest
import torch
from torchvision.ops import box_iou

from tests.encoders.dense.families import FAMILIES, encoder
from tests.evaluation.pasting import paste
from timewalk.encoders.dense import load_network, save_network
from timewalk.encoders.dense.cascade import CascadeHeads
from timewalk.encoders.dense.detector import Detector

HEADS = ("mask_rcnn", "cascade")
STAGES = [f"stage{i}_{part}" for i in (1, 2, 3) for part in ("class", "box", "mask")]
LOSSES = {"mask_rcnn": ["class", "box", "mask"], "cascade": STAGES}


def detector(head="cascade", name="vit/16", samples=32, channels=8):
    """A small one, whose heads learn from few regions: nothing else of them takes time."""
    torch.manual_seed(0)
    network = Detector(encoder(name), 3, head, fpn_channels=channels).train()
    heads = network.heads
    for part in heads.stages if isinstance(heads, CascadeHeads) else [heads.heads]:
        sampler = part.sampler if hasattr(part, "sampler") else part.fg_bg_sampler
        sampler.batch_size_per_image = samples
    return network


def scene(network, height=64, width=64):
    """Two images, the second smaller and without objects."""
    sizes = torch.tensor([[height, width], [height - 20, width - 9]])
    images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
    masks = torch.zeros(2, height, width, dtype=torch.uint8)
    masks[0, 8:40, 8:40] = masks[1, 30:60, 20:50] = 1
    boxes = torch.tensor([[8, 8, 40, 40], [20, 30, 50, 60.0]])
    targets = [
        {"boxes": boxes, "labels": torch.tensor([1, 3]), "masks": masks},
        {
            "boxes": torch.zeros(0, 4),
            "labels": torch.zeros(0, dtype=torch.long),
            "masks": torch.zeros(0, height, width, dtype=torch.uint8),
        },
    ]
    return network.normalise(images, sizes), sizes, targets


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_encoder_learns_and_detects(name, head):
    network = detector(head, name)
    assert network.multiple == (28 if name == "vit/14" else 32)
    images, sizes, targets = scene(network)
    losses = network(images, sizes, targets)
    assert list(losses) == ["proposal_class", "proposal_box", *LOSSES[head]]
    sum(losses.values()).backward()
    outside = [(n, p) for n, p in network.named_parameters() if not n.startswith("encoder.")]
    assert [n for n, p in outside if p.grad is None or not p.grad.isfinite().all()] == []
    assert any(p.grad is not None and p.grad.any() for p in network.encoder.parameters())
    found = network.eval()(images, sizes)
    assert len(found) == 2
    for image, (height, width) in zip(found, sizes.tolist(), strict=True):
        assert image["boxes"][:, 2].le(width).all()
        assert image["boxes"][:, 3].le(height).all()
        assert image["masks"].shape == (len(image["boxes"]), 28, 28)


@pytest.mark.parametrize("head", HEADS)
def test_the_gradient_reaches_every_part(head):
    network = detector(head)
    images, sizes, targets = scene(network)
    # A class has a box and a mask of its own: all classes are needed.
    targets[1] = {name: x[:1] for name, x in targets[0].items()} | {"labels": torch.tensor([2])}
    sum(network(images, sizes, targets).values()).backward()
    still = [n for n, p in network.named_parameters() if not p.grad.any()]
    assert still == []


@pytest.mark.parametrize("head", HEADS)
def test_images_without_objects_teach_the_background(head):
    network = detector(head)
    images, sizes, targets = scene(network)
    losses = network(images, sizes, [targets[1], targets[1]])
    assert all(x.isfinite() for x in losses.values())
    assert {n for n, x in losses.items() if x == 0} == {
        n for n in losses if n.endswith(("box", "mask"))
    }
    sum(losses.values()).backward()
    # All processes of a training wait for all gradients.
    assert [n for n, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("head", HEADS)
def test_losses_and_detections_are_float32_in_bf16(head):
    network = detector(head)
    images, sizes, targets = scene(network)
    torch.manual_seed(1)
    exact = network(images, sizes, targets)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        losses = network(images, sizes, targets)
        found = network.eval()(images, sizes)
    assert {x.dtype for x in losses.values()} == {torch.float32}
    first = "class" if head == "mask_rcnn" else "stage1_class"
    torch.testing.assert_close(losses[first], exact[first], rtol=0.05, atol=0)
    kinds = {name: x.dtype for name, x in found[0].items()}
    assert kinds.pop("labels") == torch.int64
    assert set(kinds.values()) == {torch.float32}


@pytest.mark.parametrize("head", HEADS)
def test_without_candidates_nothing_is_detected(head):
    network = detector(head).eval()
    heads = network.heads
    for part in heads.stages if head == "cascade" else [heads.heads]:
        part.box_predictor.cls_score.bias.data[0] = 50.0
    images, sizes, _ = scene(network)
    for image in network(images, sizes):
        assert image["boxes"].shape == (0, 4)
        assert image["scores"].shape == image["labels"].shape == (0,)
        assert image["masks"].shape == (0, 28, 28)


def test_what_lies_around_an_image_counts_nothing():
    network = detector().eval()
    image = torch.randint(0, 256, (1, 3, 50, 40), dtype=torch.uint8)
    sizes = torch.tensor([[50, 40]])
    larger = torch.full((1, 3, 64, 64), 99, dtype=torch.uint8)
    larger[:, :, :50, :40] = image
    alone = network(network.normalise(image, sizes), sizes)[0]
    padded = network(network.normalise(larger, sizes), sizes)[0]
    assert len(alone["boxes"]) > 0
    for name, x in alone.items():
        torch.testing.assert_close(padded[name], x)


def test_normalised_images():
    network = detector()
    network.encoder.normalise_by((0.5, 0.25, 0.0), (0.5, 0.5, 0.1))
    images = torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)
    found = network.normalise(images, torch.tensor([[3, 2]]))
    torch.testing.assert_close(found[0, :, 0, 0], torch.tensor([1, 1.5, 10]))
    assert found[0].count_nonzero() == 3 * 3 * 2


@pytest.mark.parametrize("norm", [True, False])
def test_the_final_norm_is_applied_if_asked(norm):
    torch.manual_seed(0)
    network = Detector(encoder("vit/16"), 3, "mask_rcnn", out_norm=norm, fpn_channels=8).eval()
    images, _, _ = scene(network)
    found = network._maps(images)
    for given in (norm, not norm):
        maps = network.pyramid(network.encoder.taps(images, norm=given))
        expected = network.fpn({str(i): x for i, x in enumerate(maps)})
        assert all(torch.equal(found[key], expected[key]) for key in found) == (given == norm)


def test_training_needs_targets():
    network = detector()
    images, sizes, _ = scene(network)
    with pytest.raises(ValueError, match="needs targets"):
        network(images, sizes)


@pytest.mark.parametrize("head", HEADS)
def test_a_saved_detector_is_the_same(head, tmp_path):
    original = detector(head).eval()
    save_network(original, tmp_path, {"title": "cascade-1x", "classes": ["a", "b", "c"]})
    loaded, about = load_network(tmp_path, "detector")
    assert about["architecture"]["kind"] == "detector"
    assert loaded.spec == original.spec
    images, sizes, _ = scene(original)
    for ours, theirs in zip(original(images, sizes), loaded(images, sizes), strict=True):
        assert all(torch.equal(x, theirs[name]) for name, x in ours.items())


@pytest.mark.parametrize("head", HEADS)
def test_learns_to_find_an_object(head):
    network = detector(head, samples=128, channels=16)
    images = torch.randint(0, 60, (1, 3, 64, 64), dtype=torch.uint8)
    images[:, 0, 8:40, 8:40] += 150
    masks = torch.zeros(1, 64, 64, dtype=torch.uint8)
    masks[:, 8:40, 8:40] = 1
    box = torch.tensor([[8, 8, 40, 40.0]])
    sizes = torch.tensor([[64, 64]])
    batch = network.normalise(images, sizes)
    targets = [{"boxes": box, "labels": torch.tensor([2]), "masks": masks}]
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    totals = []
    for _ in range(40):
        total = sum(network(batch, sizes, targets).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < totals[0] / 3
    (found,) = network.eval()(batch, sizes)
    assert found["labels"][0] == 1
    assert found["scores"][0] > 0.5
    assert box_iou(found["boxes"][:1], box) > 0.7
    mask = next(paste(found["masks"][:1], found["boxes"][:1], (64, 64)))
    truth = masks[0].bool()
    assert (mask & truth).sum() / (mask | truth).sum() > 0.7
