import math

import pytest
import torch
from torch.nn import functional as F

from timewalk.encoders.dense.cascade import (
    STAGES,
    CascadeHeads,
    Samples,
    Stage,
    _box_loss,
    _class_loss,
    mask_targets,
    of_class,
    refine,
    select,
)


@pytest.fixture
def stage():
    torch.manual_seed(0)
    return Stage(STAGES[0], 4, 2)


def target(*boxes, labels=None):
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels or [1] * len(boxes), dtype=torch.long),
        "masks": torch.ones(len(boxes), 32, 32, dtype=torch.uint8),
    }


def test_published_stages():
    assert [x.overlap for x in STAGES] == [0.5, 0.6, 0.7]
    assert [x.weight for x in STAGES] == [1, 0.5, 0.25]


def test_samples_are_objects_from_the_overlap_on(stage):
    # A region of the object's left `share` has that IoU.
    proposals = torch.tensor([[0, 0, 5, 10], [0, 0, 4.9, 10], [20, 20, 30, 30.0]])
    found = stage.sample(proposals, target([0, 0, 10, 10], labels=[2]))
    order = [0, 1, 2, 3]
    assert found.boxes.tolist() == [[0, 0, 10, 10], *proposals.tolist()]
    assert found.labels[order].tolist() == [2, 2, 0, 0]
    assert found.given.tolist() == [True, False, False, False]
    assert found.objects[:2].tolist() == [0, 0]


def test_at_most_a_quarter_are_objects(stage):
    objects = torch.tensor([[0, 0, 10, 10]] * 300, dtype=torch.float32)
    elsewhere = torch.tensor([[50, 50, 60, 60]] * 600, dtype=torch.float32)
    found = stage.sample(torch.cat([objects, elsewhere]), target([0, 0, 10, 10]))
    assert len(found.boxes) == 512
    assert int(found.positive.sum()) == 128


def test_an_image_without_objects_is_all_background(stage):
    found = stage.sample(torch.tensor([[0, 0, 5, 10.0]]), target())
    assert found.labels.tolist() == [0]
    assert not found.given.any()


def test_codes_are_counted_in_deviations(stage):
    codes = torch.zeros(1, 3, 4)
    codes[0, 1] = torch.tensor([1.0, 0, 0, 0])
    codes[0, 2] = torch.tensor([0, 0, math.log(2) / 0.2, 0])
    decoded = stage.decode(codes, torch.tensor([[0, 0, 10, 20.0]]))
    expected = torch.tensor([[0, 0, 10, 20], [1, 0, 11, 20], [-5, 0, 15, 20.0]])
    torch.testing.assert_close(decoded[0], expected)


def test_box_loss_is_giou_of_the_objects_by_all_regions(stage):
    truth = target([0, 0, 10, 10])
    boxes = torch.tensor([[0, 0, 10, 10], [5, 0, 15, 10], [40, 40, 50, 50.0]])
    samples = Samples(
        boxes, torch.tensor([1, 1, 0]), torch.tensor([0, 0, 0]), torch.zeros(3, dtype=torch.bool)
    )
    # The second: IoU 50/150, and its hull of 150 is filled.
    loss = _box_loss(stage, torch.zeros(3, 3, 4), [samples], [truth])
    torch.testing.assert_close(loss, torch.tensor((1 - 1 / 3) / 3))


def test_class_loss_is_a_mean_over_regions():
    labels = torch.tensor([0, 2])
    samples = Samples(torch.zeros(2, 4), labels, labels, labels > 5)
    scores = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(_class_loss(scores, [samples]), F.cross_entropy(scores, labels))


def test_refined_boxes_are_those_of_the_label_or_of_the_likeliest_class(stage):
    boxes = [torch.tensor([[0, 0, 10, 10.0], [0, 0, 10, 10]])]
    codes = torch.zeros(2, 3, 4)
    codes[:, 1, 0], codes[:, 2, 0] = 1, 2
    scores = torch.tensor([[9, 0, 1.0], [9, 0, 1.0]])
    (tested,) = refine(stage, scores, codes, boxes, [(32, 32)])
    assert tested[:, 0].tolist() == [2, 2]
    (learnt,) = refine(stage, scores, codes, boxes, [(32, 32)], torch.tensor([1, 0]))
    assert learnt[:, 0].tolist() == [1, 2]
    (cut,) = refine(stage, scores, codes, boxes, [(32, 11)])
    assert cut[:, 2].tolist() == [11, 11]


def test_mask_targets_are_what_lies_inside_the_region():
    masks = torch.zeros(2, 64, 64, dtype=torch.uint8)
    masks[1, 8:24, 16:40] = 1
    found = mask_targets(masks, torch.tensor([1, 0]), torch.tensor([[4, 8, 32, 36.0]] * 2))
    # A cell is a pixel: columns 16 to 31 of 4 to 31, rows 8 to 23 of 8 to 35.
    expected = torch.zeros(28, 28)
    expected[:16, 12:] = 1
    assert torch.equal(found[0], expected)
    assert not found[1].any()


def test_no_regions_have_no_masks():
    found = mask_targets(torch.zeros(0, 64, 64), torch.zeros(0).long(), torch.zeros(0, 4))
    assert found.shape == (0, 28, 28)


def test_selected_are_apart_within_their_class():
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10.0]])
    decoded = boxes[:, None].expand(3, 3, 4)
    probabilities = torch.tensor([[0.1, 0.7, 0.2], [0.1, 0.8, 0.04], [0.96, 0.04, 0.0]])
    found = select(decoded, probabilities, (32, 32))
    torch.testing.assert_close(found["scores"], torch.tensor([0.8, 0.2]))
    assert found["labels"].tolist() == [1, 2]
    assert found["boxes"].tolist() == [[0, 0, 10, 9], [0, 0, 10, 10]]


def test_at_most_a_hundred_are_selected():
    corners = torch.arange(0, 2000, 10, dtype=torch.float32)
    boxes = torch.stack([corners, corners * 0, corners + 5, corners * 0 + 5], dim=1)
    probabilities = torch.full((200, 2), 0.5)
    probabilities[150:, 1] = 0.6
    found = select(boxes[:, None].expand(200, 2, 4), probabilities, (10, 2000))
    assert len(found["scores"]) == 100
    assert int((found["scores"] > 0.55).sum()) == 50


def test_selected_boxes_have_an_area():
    decoded = torch.tensor([[40, 0, 50, 10], [0, 0, 4, 4.0]])[:, None].expand(2, 2, 4)
    found = select(decoded, torch.tensor([[0.1, 0.9], [0.1, 0.9]]), (32, 32))
    assert found["boxes"].tolist() == [[0, 0, 4, 4]]


@pytest.fixture
def heads():
    """Stages that say of every region what their biases say."""
    torch.manual_seed(0)
    heads = CascadeHeads(4, 2, (4, 8, 16, 32)).eval()
    biases = [[0, 2, 0], [0, 0, 3], [1, 1, 0.5]]
    for stage, bias in zip(heads.stages, biases, strict=True):
        for layer in (stage.box_predictor.cls_score, stage.box_predictor.bbox_pred):
            torch.nn.init.zeros_(layer.weight)
        stage.box_predictor.cls_score.bias.data = torch.tensor(bias, dtype=torch.float32)
    return heads


MAPS = {str(i): torch.randn(1, 4, 32 >> i, 32 >> i) for i in range(4)}


def test_detections_average_the_stages_scores(heads):
    (found,) = heads.detect(MAPS, [torch.tensor([[8, 8, 40, 40.0]])], [(128, 128)])
    expected = torch.tensor([1 / 3, 1, 3.5 / 3]).softmax(0)[1:].flip(0)
    torch.testing.assert_close(found["scores"], expected)
    assert found["labels"].tolist() == [2, 1]
    torch.testing.assert_close(found["boxes"], torch.tensor([[8, 8, 40, 40.0]] * 2))


def test_detections_are_boxes_of_the_last_stage(heads):
    # Each stage shifts the box of its likeliest class by a tenth, a twentieth and a thirtieth.
    for stage, likeliest in zip(heads.stages, (1, 2, 0), strict=True):
        shifts = stage.box_predictor.bbox_pred.bias.data
        shifts[4 * likeliest if likeliest else slice(0, None, 4)] = 1
    (found,) = heads.detect(MAPS, [torch.tensor([[0, 0, 100, 50.0]])], [(128, 128)])
    torch.testing.assert_close(found["boxes"][0], torch.tensor([18.3, 0, 118.3, 50]))


def test_detected_masks_are_a_mean_of_probabilities(heads):
    box = torch.tensor([[8, 8, 40, 40.0]])
    (found,) = heads.detect(MAPS, [box], [(128, 128)])
    regions = heads.mask_pool(MAPS, [box])
    with torch.no_grad():
        each = [stage.mask_head(regions)[0, 2].sigmoid() for stage in heads.stages]
    torch.testing.assert_close(found["masks"][0], torch.stack(each).mean(0))


def test_without_proposals_nothing_is_detected(heads):
    (found,) = heads.detect(MAPS, [torch.zeros(0, 4)], [(128, 128)])
    shapes = {name: tuple(x.shape) for name, x in found.items()}
    assert shapes == {"boxes": (0, 4), "scores": (0,), "labels": (0,), "masks": (0, 28, 28)}


def test_weights_of_the_stages(heads):
    heads.train()
    for stage in heads.stages:
        torch.nn.init.zeros_(stage.box_predictor.cls_score.bias)
    losses = heads.losses(MAPS, [torch.tensor([[60, 60, 80, 80.0]])], [(128, 128)], [target()])
    found = [float(losses[f"stage{number}_class"].detach()) for number in (1, 2, 3)]
    assert found == pytest.approx([math.log(3), math.log(3) / 2, math.log(3) / 4])


def test_an_objects_own_box_starts_no_later_stage(heads, monkeypatch):
    heads.train()
    seen = []
    sample = Stage.sample
    monkeypatch.setattr(Stage, "sample", lambda s, p, t: seen.append(len(p)) or sample(s, p, t))
    proposals = torch.tensor([[60, 60, 80, 80], [0, 0, 20, 20.0]])
    heads.losses(MAPS, [proposals], [(128, 128)], [target([4, 4, 24, 24])])
    assert seen == [2, 2, 2]


def test_while_it_learns_a_stage_passes_on_the_box_of_the_objects_class(heads, monkeypatch):
    heads.train()
    first = heads.stages[0]
    # Its likeliest class is 1; the object is of class 2, whose box shifts by a tenth.
    first.box_predictor.bbox_pred.bias.data[8] = 1
    seen = []
    sample = Stage.sample
    monkeypatch.setattr(Stage, "sample", lambda s, p, t: seen.append(p) or sample(s, p, t))
    proposals = torch.tensor([[10, 10, 50, 50], [80, 80, 100, 100.0]])
    heads.losses(MAPS, [proposals], [(128, 128)], [target([10, 10, 50, 49], labels=[2])])
    assert torch.equal(seen[0], proposals)
    learnt = torch.tensor([[14, 10, 54, 50], [80, 80, 100, 100.0]])
    torch.testing.assert_close(seen[1], learnt)


def test_each_rows_own_class():
    x = torch.arange(12).reshape(2, 3, 2)
    assert of_class(x, torch.tensor([2, 0])).tolist() == [[4, 5], [6, 7]]
