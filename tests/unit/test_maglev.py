"""The Maglev table: what its docstring promises, against a second, literal implementation of that docstring."""

from __future__ import annotations

import os
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from hashlib import blake2b
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rauta.contract import MAGLEV_SLOTS, MAX_BACKENDS, NO_BACKEND
from rauta.maglev import Builder, Table, allowance, build_table, replacement

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the kernel builds tables for root only")


def names(count: int) -> list[str]:
    return [f"web-{number}" for number in range(1, count + 1)]


def literal_table(weights: dict[str, int], slots: int = MAGLEV_SLOTS) -> list[str | None]:
    """The docstring of rauta.maglev, step by step and slowly: the name in each slot."""
    backends = sorted((name for name in weights if weights[name] > 0), key=str.encode)
    table: list[str | None] = [None] * slots
    preferences, turns = {}, dict.fromkeys(backends, 0)
    for name in backends:
        d = blake2b(name.encode(), digest_size=16, person=b"rauta maglev").digest()
        offset = int.from_bytes(d[0:8], "little") % slots
        skip = int.from_bytes(d[8:16], "little") % (slots - 1) + 1
        preferences[name] = iter([(offset + j * skip) % slots for j in range(slots)])
    heaviest = max((weights[name] for name in backends), default=0)
    taken = r = 0
    while backends:
        for name in backends:
            if r * weights[name] < turns[name] * heaviest:
                continue
            turns[name] += 1
            table[next(slot for slot in preferences[name] if table[slot] is None)] = name
            taken += 1
            if taken == slots:
                return table
        r += 1
    return table


@pytest.mark.parametrize(
    "weights",
    [
        {"web-1": 1},
        {"web-1": 1, "web-2": 1},
        {"b": 3, "a": 1, "c": 0, "d": 2},
        {"web-1": 100, "web-2": 33, "web-3": 7},
        {"one": 65535, "other": 1},
        {"ä": 1, "z": 2, "A": 3, "\U0001f600": 2, "\uffee": 2},
    ],
    ids=str,
)
def test_the_table_is_what_its_docstring_defines(weights: dict[str, int]) -> None:
    check_definition(weights)


@pytest.mark.parametrize("seed", range(5))
def test_so_it_is_with_any_weights(seed: int) -> None:
    random = Random(seed)
    check_definition({random.randbytes(5).hex(): random.randint(0, 100) for _ in range(random.randint(1, 100))})


def check_definition(weights: dict[str, int]) -> None:
    order = sorted(weights, key=str.encode)
    assert [order[index] for index in build_table(weights)] == literal_table(weights)


@pytest.mark.parametrize("count", [3, 100])
@pytest.mark.parametrize("weight", [lambda _: 1, lambda place: place % 3 + 1], ids=["equal", "1-to-3"])
def test_shares_are_within_one_percent_of_the_weights(count: int, weight: object) -> None:
    assert callable(weight)
    weights = {name: weight(place) for place, name in enumerate(names(count))}
    slots = Counter(build_table(weights))
    for index, name in enumerate(sorted(weights)):
        share = MAGLEV_SLOTS * weights[name] / sum(weights.values())
        assert slots[index] == pytest.approx(share, rel=0.01)


def test_a_backend_that_leaves_takes_few_other_slots_along() -> None:
    before = dict.fromkeys(names(10), 1)
    after = {name: 1 for name in before if name != "web-4"}
    old = [sorted(before)[index] for index in build_table(before)]
    new = [sorted(after)[index] for index in build_table(after)]
    moved = sum(was != now for was, now in zip(old, new, strict=True) if was != "web-4")
    assert moved < MAGLEV_SLOTS * 0.01


def test_a_weight_that_changes_moves_little_more_than_it_must() -> None:
    before = dict.fromkeys(names(10), 10)
    after = before | {"web-4": 5}
    moved = sum(was != now for was, now in zip(build_table(before), build_table(after), strict=True))
    must = MAGLEV_SLOTS * (10 / 100 - 5 / 95)
    assert moved < must + MAGLEV_SLOTS * 0.05


def test_the_order_in_which_backends_are_given_does_not_matter() -> None:
    weights = {"c": 2, "a": 1, "b": 3}
    assert build_table(weights) == build_table(dict(sorted(weights.items())))


def test_a_drained_backend_has_no_slot_and_leaves_the_others_as_if_it_were_not_there() -> None:
    table = build_table({"a": 1, "b": 0, "c": 1})
    assert set(table) == {0, 2}
    assert [index // 2 for index in table] == list(build_table({"a": 1, "c": 1}))


@pytest.mark.parametrize("weights", [{}, {"a": 0}, {"a": 0, "b": 0}], ids=str)
def test_without_weight_no_slot_has_a_backend(weights: dict[str, int]) -> None:
    table = build_table(weights)
    assert len(table) == MAGLEV_SLOTS
    assert set(table) == {NO_BACKEND}


def test_every_weight_above_zero_has_a_slot() -> None:
    assert set(build_table({"a": 65535, "b": 1})) == {0, 1}


def test_negative_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="no weight below 0"):
        build_table({"a": -1})


def test_so_are_more_backends_than_a_router_has() -> None:
    with pytest.raises(ValueError, match="at most 4096 backends"):
        build_table(dict.fromkeys(names(MAX_BACKENDS + 1), 1))


# ---- replacing a table ----------------------------------------------------------------------------------

SPARE = MAGLEV_SLOTS // 100


@pytest.fixture(scope="module")
def builder() -> Iterator[Builder]:
    with Builder() as one:
        yield one


def draw_weights(random: Random, count: int) -> dict[str, int]:
    """For that many backends: equal ones, some up to a hundredfold, or a few that are far heavier than the rest."""
    draw = random.choice([lambda: 10, lambda: random.randint(1, 100), lambda: int(random.paretovariate(0.8))])
    prefix = random.randbytes(3).hex()
    return {f"{prefix}-{number}": min(draw(), 65535) for number in range(count)}


def one_changes(random: Random, weights: dict[str, int]) -> dict[str, int]:
    """One backend comes, goes, is drained, or gets another weight."""
    one, after = random.choice(list(weights)), dict(weights)
    match random.randrange(5):
        case 0:
            after[random.randbytes(4).hex()] = random.choice(list(weights.values()))
        case 1:
            del after[one]
        case 2:
            after[one] = 0
        case 3:
            after[one] = weights[one] // 2
        case _:
            after[one] = min(weights[one] * random.choice([2, 3, 10]) + 1, 65535)
    return after


def many_change(random: Random, weights: dict[str, int]) -> dict[str, int]:
    """Backends come, go and get other weights all at once."""
    kept = {name: random.randint(0, 100) for name in weights if random.random() < 0.9}
    return kept | {random.randbytes(4).hex(): random.randint(1, 100) for _ in range(random.randrange(4))}


def shares(weights: dict[str, int]) -> dict[str, Fraction]:
    return {name: Fraction(weight, sum(weights.values())) for name, weight in weights.items()}


def distance(before: dict[str, int], after: dict[str, int]) -> Fraction:
    """The total variation distance of the shares."""
    old, new = shares(before), shares(after)
    return sum((abs(old.get(name, 0) - new.get(name, 0)) for name in old | new), start=Fraction(0)) / 2


def numbering(*weights: dict[str, int]) -> dict[str, int]:
    return {name: index for index, name in enumerate(sorted(set[str]().union(*weights)))}


def moved(before: Table, after: Table) -> int:
    return sum(was != now for was, now in zip(before, after, strict=True))


def check_shares(table: Table, weights: dict[str, int], indices: dict[str, int]) -> None:
    """Each has its share but for about a slot, or 1 %; who has no weight has none, and nobody else has any."""
    slots = Counter(table)
    for name, share in shares(weights).items():
        exact = share * MAGLEV_SLOTS
        assert abs(slots.pop(indices[name], 0) - exact) <= max(exact / 100, 2 if weights[name] else 0), name
    assert not slots


@pytest.mark.parametrize("change", [one_changes, many_change])
@pytest.mark.parametrize("seed", range(15))
def test_no_change_moves_more_than_it_must_and_one_percent(
    builder: Builder, change: Callable[[Random, dict[str, int]], dict[str, int]], seed: int
) -> None:
    """Of the table that the change before it has left, too."""
    random = Random(seed)
    before = draw_weights(random, random.choice([1, 2, 3, 10, random.randint(2, 96), 96]))
    lived = builder.build(before, numbering(before))
    for _ in range(4):
        after = change(random, before)
        if not any(after.values()):
            continue
        indices = numbering(before, after)
        renamed = {old: indices[name] for name, old in numbering(before).items()}
        lived = array("H", [renamed[index] for index in lived])
        fresh = builder.build(after, indices)
        following = replacement(lived, fresh, allowance(before, after))
        assert moved(lived, following) <= distance(before, after) * MAGLEV_SLOTS + SPARE
        check_shares(following, after, indices)
        assert Counter(following) == Counter(fresh)
        after = {name: weight for name, weight in after.items() if weight} | {
            name: 0 for name, weight in after.items() if not weight and name in before
        }
        back = {indices[name]: index for name, index in numbering(after).items()}
        lived, before = array("H", [back[index] for index in following]), after


@pytest.mark.parametrize("count", [2, 3, 10, 100])
@pytest.mark.parametrize("weight", [lambda _: 1, lambda place: place % 7 + 1], ids=["equal", "1-to-7"])
def test_a_router_that_has_lived_through_single_changes_agrees_with_a_fresh_one(
    builder: Builder, count: int, weight: Callable[[int], int]
) -> None:
    weights = {name: weight(place) for place, name in enumerate(names(count))}
    steps = [{"web-1": 0}, {"web-1": 2}, {"web-2": 5}, {"web-9999": 1}, {"web-2": 0, "web-9999": 1}, {"web-2": 3}]
    indices = numbering(weights, *steps)
    table = builder.build(weights, indices)
    for step in steps:
        before, weights = weights, weights | step
        fresh = builder.build(weights, indices)
        table = replacement(table, fresh, allowance(before, weights))
        assert table == fresh


def test_where_all_weights_change_a_fresh_table_would_move_too_much_and_what_is_repaired_heals(
    builder: Builder,
) -> None:
    random = Random(1)
    before = {name: random.randint(1, 100) for name in names(100)}
    after = {name: random.randint(1, 100) for name in before}
    indices, allowed = numbering(before), allowance(before, after)
    old, fresh = builder.build(before, indices), builder.build(after, indices)
    assert moved(old, fresh) > allowed + 3 * SPARE
    table = replacement(old, fresh, allowed)
    assert moved(old, table) <= allowed
    for _ in range(20):
        healed = replacement(table, fresh, allowance(after, after))
        assert moved(table, healed) <= SPARE
        assert moved(healed, fresh) < moved(table, fresh)
        assert Counter(healed) == Counter(fresh)
        table = healed
        if table == fresh:
            return
    pytest.fail(f"{moved(table, fresh)} slots are not healed")


def test_what_must_move_moves_even_if_it_is_not_allowed() -> None:
    """Shares come first: with more backends than the bound is for, rounding alone may need more."""
    previous, fresh = array("H", [0, 0, 0, 1, 1, 2, 2]), array("H", [1, 0, 2, 1, 1, 0, 2])
    assert replacement(previous, fresh, 0) == array("H", [1, 0, 0, 1, 1, 2, 2])


def test_slots_go_where_the_fresh_table_has_them_if_that_costs_nothing() -> None:
    previous, fresh = array("H", [0, 0, 0, 0, 1, 2]), array("H", [1, 2, 0, 0, 1, 2])
    assert replacement(previous, fresh, 2) == fresh


def test_a_slot_that_must_go_goes_to_anybody_who_lacks_one() -> None:
    previous, fresh = array("H", [0, 0, 1, 1]), array("H", [0, 1, 1, 2])
    assert replacement(previous, fresh, 1) == array("H", [0, 2, 1, 1])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=60), st.integers(0, 40))
def test_any_table_is_brought_nearer_to_any_other(slots: list[tuple[int, int]], allowed: int) -> None:
    previous, fresh = array("H", [was for was, _ in slots]), array("H", [wanted for _, wanted in slots])
    must = (Counter(previous) - Counter(fresh)).total()
    table = replacement(previous, fresh, allowed)
    assert Counter(table) == Counter(fresh)
    assert moved(previous, table) <= max(allowed, must)
    assert moved(table, fresh) <= moved(previous, fresh)
    if moved(previous, fresh) <= allowed:
        assert table == fresh
    assert table == replacement(previous, fresh, allowed)


@pytest.mark.parametrize(
    ("before", "after", "allowed"),
    [
        ({"a": 1, "b": 1}, {"a": 1, "b": 1}, SPARE),
        ({"a": 1, "b": 1}, {"a": 5, "b": 5}, SPARE),
        ({"a": 1, "b": 1}, {"a": 1, "b": 0}, MAGLEV_SLOTS // 2 + SPARE),
        ({"a": 1, "b": 1}, {"a": 1}, MAGLEV_SLOTS // 2 + SPARE),
        ({"a": 3, "b": 1}, {"a": 1, "b": 3}, MAGLEV_SLOTS // 2 + SPARE),
        ({"a": 1}, {"b": 1}, MAGLEV_SLOTS + SPARE),
        ({"a": 0}, {"a": 1}, MAGLEV_SLOTS),
        ({"a": 1}, {"a": 0}, MAGLEV_SLOTS),
        ({}, {"a": 1}, MAGLEV_SLOTS),
    ],
)
def test_the_allowance_is_the_distance_of_the_shares_and_one_percent(
    before: dict[str, int], after: dict[str, int], allowed: int
) -> None:
    assert allowance(before, after) == allowed


# ---- time -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "seconds"),
    [
        (dict.fromkeys(names(3), 1), 0.1),
        (dict.fromkeys(names(100), 1), 0.25),
        (dict.fromkeys(names(4096), 1), 0.5),
        (dict.fromkeys(names(4096), 1) | {"web-7": 65535}, 3),  # as many rounds as there can be
    ],
    ids=["3", "100", "4096", "4096-one-heavy"],
)
def test_a_table_is_built_quickly(builder: Builder, weights: dict[str, int], seconds: float) -> None:
    indices = numbering(weights)
    started = time.process_time()
    builder.build(weights, indices)
    assert time.process_time() - started < seconds
