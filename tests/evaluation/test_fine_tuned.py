import pytest

from timewalk.errors import UserError
from timewalk.evaluation.coco import Config
from timewalk.evaluation.fine_tuned import with_sizes

CARD = {"name": "detect", "sizes": {"short_side": 800, "long_side": 1333}}


def sizes(**keys):
    found = with_sizes(Config(dataset="things", network="detect", **keys), CARD)
    return found.short_side, found.long_side


def test_sizes_are_the_fine_tunings_unless_they_are_given():
    assert sizes() == (800, 1333)
    assert sizes(short_side=400) == (400, 1333)
    assert sizes(short_side=400, long_side=666) == (400, 666)


def test_sizes_that_contradict_the_fine_tunings():
    with pytest.raises(UserError, match=r"an evaluation of detect: .*long_side is 500, below"):
        sizes(long_side=500)


@pytest.mark.parametrize("key", sorted(CARD))
def test_a_card_of_another_version(key):
    card = {name: value for name, value in CARD.items() if name != key}
    with pytest.raises(UserError, match=f"'detect' says nothing of its {key}: .*run its fine-tun"):
        with_sizes(Config(dataset="things", network="detect"), card)
