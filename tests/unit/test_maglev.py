"""The Maglev table: what its docstring promises, against a second, literal implementation of that docstring."""

from __future__ import annotations

import time
from collections import Counter
from hashlib import blake2b

import pytest

from rauta.contract import MAGLEV_SLOTS, NO_BACKEND
from rauta.maglev import build_table


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


def test_a_table_for_three_backends_is_built_in_a_fraction_of_a_second() -> None:
    started = time.process_time()
    build_table(dict.fromkeys(names(3), 1))
    assert time.process_time() - started < 0.3
