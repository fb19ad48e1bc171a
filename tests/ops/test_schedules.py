import math

import pytest

from timewalk.ops.schedules import (
    linear_then_constant,
    multistep,
    polynomial,
    warmup_cosine,
    warmup_exponential,
    warmup_linear,
    warmup_multistep,
)


def test_warm_up_includes_its_end_and_the_cosine_starts_there():
    values = [warmup_cosine(i, 10, 2.0, 0.5, warmup_steps=3) for i in range(10)]
    assert values[:4] == [0.0, 1.0, 2.0, 2.0]
    assert values[-1] == pytest.approx(0.5 + 0.75 * (1 + math.cos(math.pi * 6 / 7)))
    assert values[-1] > 0.5


@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_warm_up_of_none_of_one_and_of_all_steps(warmup):
    values = [warmup_cosine(i, 10, 1.0, 0.0, warmup_steps=warmup) for i in range(10)]
    assert values[0] == (1.0 if warmup == 0 else 0.0)
    assert values[9] == pytest.approx(1.0 if warmup == 10 else values[9])


def test_a_step_outside_is_refused():
    with pytest.raises(ValueError, match="outside"):
        warmup_cosine(10, 10, 1.0, 0.0)


def test_teacher_temperature():
    assert [linear_then_constant(e, 1.0, 3.0, 3) for e in range(5)] == [1.0, 2.0, 3.0, 3.0, 3.0]
    assert [linear_then_constant(e, 1.0, 3.0, 1) for e in range(2)] == [1.0, 3.0]
    assert linear_then_constant(0, 1.0, 3.0, 0) == 3.0


def test_stairs_of_a_factor():
    """TCC's released code: INITIAL_LR times rate to the power of the steps' whole thousands."""
    values = [warmup_exponential(i, 2.0, 3, 0.5) for i in range(7)]
    assert values == [2, 2, 2, 1, 1, 1, 0.5]
    assert [warmup_exponential(i, 2.0, 3, 0.5, warmup_steps=3) for i in range(5)] == [0, 1, 2, 1, 1]


def test_linear_to_zero():
    assert [warmup_linear(i, 4, 2.0) for i in range(4)] == [2, 1.5, 1, 0.5]
    assert [warmup_linear(i, 4, 2.0, warmup_steps=2) for i in range(4)] == [0, 2, 1, 0.5]


def test_a_milestone_counts_from_itself_on():
    assert [warmup_multistep(i, 1.0, [2, 3], 0.1) for i in range(4)] == pytest.approx(
        [1, 1, 0.1, 0.01]
    )


def test_a_warm_up_as_a_factor_on_what_falls():
    """iBOT's fine-tuning: the ratio at step 0, the whole of the falling value at its end."""
    plain = [2.0, 1.5, 1.0, 0.5]
    assert [polynomial(i, 4, 2.0) for i in range(4)] == plain
    found = [polynomial(i, 4, 2.0, warmup_steps=2, warmup_ratio=0.2) for i in range(4)]
    assert found == pytest.approx([0.2 * 2.0, 0.6 * 1.5, 1.0, 0.5])
    stairs = [multistep(i, 1.0, [1, 3], 0.1, warmup_steps=2, warmup_ratio=0.5) for i in range(4)]
    assert stairs == pytest.approx([0.5, 0.75 * 0.1, 0.1, 0.01])
