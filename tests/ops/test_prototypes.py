import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from timewalk.ops.prototypes import assign, is_full, own_rows, pushed, scores


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_scores_are_cosines_with_unit_prototypes():
    features, prototypes = drawn(5, 8), F.normalize(drawn(3, 8, seed=1))
    expected = torch.cosine_similarity(features[:, None], prototypes[None], dim=-1)
    torch.testing.assert_close(scores(features, prototypes), expected)
    torch.testing.assert_close(scores(3 * features, prototypes), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = scores(features.bfloat16(), prototypes)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-2)


def test_a_feature_of_zeros_scores_nothing():
    assert not scores(torch.zeros(2, 8), drawn(3, 8)).any()


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(4, 40), older=st.integers(0, 20), count=st.integers(2, 6))
def test_an_assignment_is_balanced_over_all_rows(rows, older, count):
    own = F.normalize(drawn(rows, count))
    rest = F.normalize(drawn(older, count, seed=1)) if older else None
    found = assign(own, rest, epsilon=0.5, iterations=300)
    assert found.shape == (rows, count)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(rows))
    if rest is None:
        torch.testing.assert_close(found.sum(dim=0), torch.full((count,), rows / count))
    else:
        joint = assign(torch.cat([own, rest]), epsilon=0.5, iterations=300)
        torch.testing.assert_close(found, joint[:rows])


def test_one_process_owns_all_rows():
    rows = drawn(6, 2)
    assert torch.equal(own_rows(rows), rows)


def test_a_queue_is_full_once_its_last_row_is_taken():
    queue = torch.zeros(5, 2)
    one, two = drawn(3, 2), drawn(3, 2, seed=1)
    once = pushed(queue, one)
    assert torch.equal(once[:3], one)
    assert not once[3:].any()
    assert not is_full(once)
    twice = pushed(once, two)
    assert torch.equal(twice, torch.cat([two, one[:2]]))
    assert is_full(twice)
    assert torch.equal(pushed(queue, drawn(9, 2)), drawn(9, 2)[:5])
