import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from timewalk.data.clips import Clip
from timewalk.data.seeds import generator
from timewalk.errors import UserError
from timewalk.training.batches import (
    BatchSampler,
    OneGroupABatch,
    SomeOfEach,
    ViewsDataset,
    clips_of_epoch,
    epoch_size,
)


@given(
    clips=st.integers(1, 40),
    batch=st.integers(1, 10),
    seed=st.integers(0, 9),
    epochs=st.integers(1, 3),
    data=st.data(),
)
def test_every_clip_once_an_epoch_and_any_step_can_be_the_first(clips, batch, seed, epochs, data):
    batch = min(batch, clips)
    per_epoch = clips // batch
    total = per_epoch * epochs
    whole = list(BatchSampler(clips, batch, seed, 0, total))
    assert len(whole) == total
    for epoch in range(epochs):
        part = whole[epoch * per_epoch : (epoch + 1) * per_epoch]
        seen = [index for b in part for e, index in b]
        assert all(e == epoch for b in part for e, _ in b)
        assert len(set(seen)) == len(seen) == per_epoch * batch
    first = data.draw(st.integers(0, total - 1))
    assert list(BatchSampler(clips, batch, seed, first, total)) == whole[first:]


@given(
    counts=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    most=st.integers(1, 8),
    batch=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_some_clips_of_each_video(counts, most, batch, seed):
    some = SomeOfEach(counts, most)
    assert epoch_size(some) == len(some) == sum(min(count, most) for count in counts)
    videos = [video for video, count in enumerate(counts) for _ in range(count)]
    sampler = BatchSampler(some, batch, seed, 0, 2 * (len(some) // batch))
    for epoch in range(2):
        order = sampler.order(epoch).tolist()
        assert len(set(order)) == len(order) == len(some)
        for video, count in enumerate(counts):
            assert sum(videos[index] == video for index in order) == min(count, most)
    steps = list(sampler)
    assert [epoch for part in steps for epoch, _ in part] == sorted(e for p in steps for e, _ in p)
    assert sampler.order(1).tolist() == BatchSampler(some, batch, seed, 0, 1).order(1).tolist()


def test_other_clips_of_a_video_in_each_epoch():
    sampler = BatchSampler(SomeOfEach([1000, 1000], 5), 2, 0, 0, 10)
    drawn = [set(sampler.order(epoch).tolist()) for epoch in range(3)]
    assert not drawn[0] & drawn[1] & drawn[2]
    assert len(set.union(*drawn)) > 20


def test_epochs_and_seeds_differ():
    orders = [BatchSampler(30, 3, seed, 0, 10).order(e).tolist() for seed in (0, 1) for e in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_generators_of_different_keys_differ_and_equal_keys_agree():
    draws = {
        key: torch.rand(1, generator=generator(*key)).item() for key in [(0, 1), (1, 0), (0, 1, 0)]
    }
    assert len(set(draws.values())) == 3
    assert torch.rand(1, generator=generator(0, 1)).item() == draws[0, 1]


class Drawn:
    """Clips whose frames are drawn when asked for."""

    def clip(self, index, rng=None):
        return Clip(torch.rand(3, generator=rng), torch.zeros(3), "drawn", 0)


def test_frames_and_views_come_from_one_generator_of_the_sample():
    dataset = ViewsDataset(
        Drawn(),
        lambda clip, rng: {"clip": clip.frames, "draw": torch.rand((), generator=rng)},
        seed=4,
    )
    for sample in ((0, 0), (0, 1), (1, 0)):
        expected = torch.rand(4, generator=generator(4, *sample))
        found = dataset[sample]
        assert torch.equal(torch.cat([found["clip"], found["draw"][None]]), expected)


@given(
    groups=st.lists(st.integers(0, 2), min_size=1, max_size=40),
    batch=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_a_batch_holds_one_group(groups, batch, seed):
    groups = groups + [number for number in set(groups) for _ in range(batch)]
    clips = OneGroupABatch(groups, batch)
    sampler = BatchSampler(clips, batch, seed, 0, 2 * (len(groups) // batch))
    steps = list(sampler)
    assert len(steps) == len(sampler)
    for part in steps:
        numbers = [number for _, number in part]
        assert len(set(numbers)) == len(numbers) == batch
        assert len({groups[number] for number in numbers}) == 1


def test_groups_have_the_same_chance_and_are_dealt_out_whole():
    groups = [0] * 900 + [1] * 100
    batches = OneGroupABatch(groups, 10).draw(generator(0)).reshape(-1, 10)
    of_one = [batch for batch in batches.tolist() if batch[0] >= 900]
    assert 30 < len(of_one) < 70
    assert len({number for batch in of_one[:10] for number in batch}) == 100


class Actions:
    def __init__(self, *groups):
        self.all = list(groups)

    def __len__(self):
        return len(self.all)

    def groups(self):
        return self.all


def test_one_group_needs_no_order_of_its_own():
    assert clips_of_epoch(Actions(3, 3, 3), None, 2, by_group=True) == 3
    assert clips_of_epoch(Actions(3, 4, 3), None, 2) == 3
    assert isinstance(clips_of_epoch(Actions(3, 4, 3, 4), None, 2, by_group=True), OneGroupABatch)


def test_a_group_smaller_than_a_batch_is_refused():
    with pytest.raises(UserError, match=r"action 4 has 1 videos, less than training\.batch_size 2"):
        clips_of_epoch(Actions(3, 4, 3), None, 2, by_group=True)
