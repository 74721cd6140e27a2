"""The steps by which cookie keys change: a key that is in use is never written."""

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from rauta.keys import CookieKeys
from rauta.keyslots import steps

KEYS = [(number, number + 100) for number in range(4)]
COOKIES = st.builds(CookieKeys, st.tuples(*[st.sampled_from(KEYS)] * 2), st.sampled_from([0, 1]))
A, B, C, D = KEYS


@given(before=COOKIES, after=COOKIES)
@example(before=CookieKeys((A, B)), after=CookieKeys((C, D)))
def test_each_step_writes_the_spare_key_or_the_epoch(before: CookieKeys, after: CookieKeys) -> None:
    way = [before, *steps(before, after)]
    assert way[-1] == after
    for one, other in pairwise(way):
        changed = [epoch for epoch in (0, 1) if one.by_epoch[epoch] != other.by_epoch[epoch]]
        if one.epoch == other.epoch:
            assert changed == [1 - one.epoch]
        else:
            assert not changed


def test_a_change_by_the_schedule_is_one_step() -> None:
    first = CookieKeys((A, B), epoch=1)  # in the first half of a period
    second = CookieKeys((C, B), epoch=1)  # in its second half
    third = CookieKeys((C, B), epoch=0)  # in the next one
    assert list(steps(first, second)) == [second]
    assert list(steps(second, third)) == [third]


def test_a_half_that_was_missed_is_two() -> None:
    before, after = CookieKeys((A, B), epoch=1), CookieKeys((C, B), epoch=0)
    assert list(steps(before, after)) == [CookieKeys((C, B), epoch=1), after]


def test_where_nothing_changes_nothing_is_written() -> None:
    assert not list(steps(CookieKeys((A, B)), CookieKeys((A, B))))


def test_another_key_in_the_used_ones_place_takes_a_detour() -> None:
    before, after = CookieKeys((A, B)), CookieKeys((C, D))
    assert list(steps(before, after)) == [
        CookieKeys((A, D)),
        CookieKeys((A, D), epoch=1),
        CookieKeys((C, D), epoch=1),
        after,
    ]
