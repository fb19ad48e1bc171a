import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from timewalk.encoders.dense.regions import RegionPool, level_anchors, proposal_network

CPU = torch.device("cpu")


def test_anchors_go_by_rows_columns_and_ratios():
    anchors = level_anchors(32, 4, (2, 3), CPU)
    assert anchors.shape == (18, 4)
    first = torch.tensor([[-22.6274, -11.3137, 22.6274, 11.3137]])
    torch.testing.assert_close(anchors[:1], first)
    # The square one of row 1, column 2.
    assert anchors[3 * 5 + 1].tolist() == [8 - 16, 4 - 16, 8 + 16, 4 + 16]


@given(st.floats(8, 512), st.floats(1, 64), st.integers(1, 5), st.integers(1, 5))
def test_anchors_share_their_area(side, stride, rows, columns):
    anchors = level_anchors(side, stride, (rows, columns), CPU)
    sides = anchors[:, 2:] - anchors[:, :2]
    torch.testing.assert_close(sides.prod(dim=1).sqrt(), torch.full((len(sides),), side))
    ratios = (sides[:, 1] / sides[:, 0]).view(-1, 3)
    torch.testing.assert_close(
        ratios, torch.tensor([[0.5, 1, 2]]).expand_as(ratios), rtol=1e-4, atol=0
    )


def test_published_numbers_of_proposals():
    network = proposal_network(8, (4, 8, 16, 32, 64))
    assert (network.pre_nms_top_n(), network.post_nms_top_n()) == (2000, 2000)
    network.eval()
    assert (network.pre_nms_top_n(), network.post_nms_top_n()) == (1000, 1000)


@pytest.mark.parametrize(("side", "level"), [(20, 0), (111, 0), (113, 1), (225, 2), (500, 3)])
def test_regions_are_read_from_the_level_of_their_size(side, level):
    maps = {str(i): torch.full((1, 1, 512 >> i, 512 >> i), float(i)) for i in range(4)}
    pooled = RegionPool((1, 2, 4, 8), 7)(maps, [torch.tensor([[0, 0, side, side]]).float()])
    assert pooled.unique().tolist() == [level]


def test_what_is_read_lies_at_the_regions_place():
    columns = (torch.arange(16) + 0.5) * 4
    maps = {"0": columns.expand(2, 3, 16, 16)}
    boxes = [torch.zeros(0, 4), torch.tensor([[8, 8, 22, 22.0]])]
    pooled = RegionPool((4,), 7)(maps, boxes)
    assert pooled.shape == (1, 3, 7, 7)
    torch.testing.assert_close(pooled[0, 0, 0], torch.arange(9, 22, 2).float())


def test_no_regions():
    assert RegionPool((4,), 7)({"0": torch.zeros(1, 3, 4, 4)}, [torch.zeros(0, 4)]).numel() == 0
