"""Frames of a clip for learning from phases: offset, strides, positives, context, clamping."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from timewalk.data.phase_sampling import PhaseSampler

DRAWS = st.one_of(st.none(), st.integers(0, 99))


def rng(seed=0):
    return None if seed is None else torch.Generator().manual_seed(seed)


@settings(max_examples=200)
@given(st.integers(1, 80), st.integers(1, 25), st.integers(0, 4), DRAWS)
def test_offset_uniform(length, frames, offset, seed):
    sampler = PhaseSampler(frames, offset=offset, context=1)
    if length < sampler.shortest:
        return
    drawn = sampler.draw(length, rng(seed))
    if frames > length - offset:
        assert drawn.steps == list(range(frames)), "as published, not clamped"
        assert drawn.frames == [min(step, length - 1) for step in range(frames)]
        return
    assert len(set(drawn.steps)) == frames
    assert drawn.steps == sorted(drawn.steps) == drawn.frames
    assert offset <= drawn.steps[0]
    assert drawn.steps[-1] < length


def test_the_shortest_video():
    assert PhaseSampler(offset=3).shortest == 3
    assert PhaseSampler(offset=0).shortest == 1
    assert PhaseSampler(strategy="stride", offset=3).shortest == 1
    assert PhaseSampler(4, offset=3, context=1).draw(3, rng()) == ([0, 1, 2, 2], [0, 1, 2, 3])


@settings(max_examples=200)
@given(st.integers(1, 200), st.integers(1, 12), st.integers(1, 16), DRAWS)
def test_stride(length, frames, stride, seed):
    steps = PhaseSampler(frames, "stride", stride=stride).draw(length, rng(seed)).steps
    assert 0 <= steps[0] < max(1, length - stride * frames)
    assert steps == [min(length - 1, steps[0] + stride * place) for place in range(frames)]


def test_every_offset_of_a_stride_is_drawn():
    sampler = PhaseSampler(3, "stride", stride=4, context=1)
    starts = {sampler.draw(16, rng(seed)).steps[0] for seed in range(60)}
    assert starts == {0, 1, 2, 3}
    assert sampler.draw(16, None).steps == [2, 6, 10]
    assert sampler.draw(5, rng()).steps == [0, 4, 4], "a short video shows its last frame again"


@settings(max_examples=200)
@given(st.integers(2, 60), st.integers(1, 9), st.integers(1, 7), DRAWS)
def test_each_positive_lies_before_its_frame(length, frames, positive_window, seed):
    sampler = PhaseSampler(frames, context=1, positive_window=positive_window)
    drawn = sampler.draw(length, rng(seed))
    assert len(drawn.steps) == 2 * frames
    gaps = {
        step - positive for positive, step in zip(drawn.steps[::2], drawn.steps[1::2], strict=True)
    }
    assert gaps <= set(range(1, positive_window + 1))
    assert drawn.frames == [min(max(step, 0), length - 1) for step in drawn.steps]


def test_all_gaps_of_positives_are_drawn_and_some_lie_before_the_video():
    sampler = PhaseSampler(4, context=1, positive_window=5)
    steps = [sampler.draw(8, rng(seed)).steps for seed in range(60)]
    pairs = [pair for drawn in steps for pair in zip(drawn[::2], drawn[1::2], strict=True)]
    assert {later - earlier for earlier, later in pairs} == {1, 2, 3, 4, 5}
    assert min(earlier for earlier, _ in pairs) < 0


def test_positives_leave_the_drawn_frames_as_they_are():
    plain = PhaseSampler(6).draw(50, rng(3)).steps
    assert PhaseSampler(6, positive_window=5).draw(50, rng(3)).steps[1::2] == plain


@settings(max_examples=100)
@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 20), DRAWS)
def test_the_context_ends_with_the_frame_itself(length, context, context_step, seed):
    sampler = PhaseSampler(5, context=context, context_step=context_step, positive_window=3)
    drawn = sampler.draw(length, rng(seed))
    assert len(drawn.frames) == len(drawn.steps) * context
    for place, step in enumerate(drawn.steps):
        wanted = [step - context_step * back for back in reversed(range(context))]
        got = drawn.frames[place * context : (place + 1) * context]
        assert got == [min(max(frame, 0), length - 1) for frame in wanted]


def test_published_context():
    drawn = PhaseSampler(3, "stride", stride=10).draw(31, None)
    assert drawn.steps == [0, 10, 20]
    assert drawn.frames == [0, 0, 0, 10, 5, 20]


def test_frame_zero_is_never_drawn_and_all_others_equally_often():
    sampler = PhaseSampler(4, context=1)
    drawn = [step for seed in range(900) for step in sampler.draw(10, rng(seed)).steps]
    assert set(drawn) == set(range(1, 10))
    assert all(300 < drawn.count(step) < 500 for step in range(1, 10))


def test_without_a_generator_frames_are_spread_evenly():
    assert PhaseSampler(4, context=1).draw(41, None).steps == [6, 16, 26, 36]
    positives = PhaseSampler(2, context=1, positive_window=5).draw(41, None).steps
    assert positives == [8, 11, 28, 31]
