import torch
from hypothesis import given
from hypothesis import strategies as st

from timewalk.data.seeds import generator
from timewalk.training.batches import BatchSampler


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


def test_epochs_and_seeds_differ():
    orders = [BatchSampler(30, 3, seed, 0, 10).order(e).tolist() for seed in (0, 1) for e in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_generators_of_different_keys_differ_and_equal_keys_agree():
    draws = {
        key: torch.rand(1, generator=generator(*key)).item() for key in [(0, 1), (1, 0), (0, 1, 0)]
    }
    assert len(set(draws.values())) == 3
    assert torch.rand(1, generator=generator(0, 1)).item() == draws[0, 1]
