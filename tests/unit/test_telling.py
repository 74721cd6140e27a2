"""Listeners of events: what they want, and what becomes of those that do not keep up."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address
from typing import Any

from rauta.events import Event
from rauta.processes.answers import event_fields, heard
from rauta.processes.telling import Listener

ROOM, AT_ONCE = 1024, 128


def event(number: int, *, sampled: bool = True, followed: bool = False) -> Event:
    address = IPv4Address("198.18.0.1")
    return Event(
        time_ns=number, client=address, client_port=40000, server=address, server_port=80, verdict="TX_SYN_ACK",
        vip="shop", route=None, backend=None, cpu=0, seq=number, length=0, flags=0x12, method=None, sampled=sampled,
        followed=followed,
    )  # fmt: skip


def test_only_what_is_wanted_is_kept() -> None:
    listener = Listener(lambda event: event.followed)
    listener.offer(event(1))
    listener.offer(event(2, followed=True))
    assert [one.seq for one in asyncio.run(listener.some(0))] == [2]


def test_nothing_comes_of_nothing() -> None:
    assert asyncio.run(Listener(lambda _: True).some(0.01)) == []


def test_who_waits_gets_what_comes() -> None:
    async def waiting() -> list[Event]:
        listener = Listener(lambda _: True)
        asyncio.get_running_loop().call_later(0.01, listener.offer, event(7))
        return await listener.some(30)

    assert [one.seq for one in asyncio.run(waiting())] == [7]


def test_the_oldest_have_to_go_and_are_counted() -> None:
    listener = Listener(lambda _: True)
    for number in range(ROOM + 10):
        listener.offer(event(number))
    assert listener.lost == 10
    handed = [one.seq for _ in range(ROOM // AT_ONCE) for one in asyncio.run(listener.some(0))]
    assert handed == list(range(10, ROOM + 10))


def test_they_are_handed_out_a_few_at_a_time() -> None:
    listener = Listener(lambda _: True)
    for number in range(ROOM):
        listener.offer(event(number))
    assert len(asyncio.run(listener.some(0))) == AT_ONCE


def test_how_many_are_missing_is_said_once() -> None:
    async def items() -> list[Any]:
        listener, lost = Listener(lambda _: True), [0]
        coming = heard(listener, lambda: lost[0])
        listener.offer(event(1))
        first = await anext(coming)
        lost[0] = 5
        listener.offer(event(2))
        second = await anext(coming)
        listener.offer(event(3))
        lost[0] = 7
        third = await anext(coming)
        lost[0] = 9
        fourth = await anext(coming)  # nothing else comes
        await coming.aclose()
        return [first, second, third, fourth]

    first, second, third, fourth = asyncio.run(items())
    assert [item["seq"] for item in first] == [1]
    assert [item.get("seq") for item in second] == [2, None]
    assert (second[1], third[1], fourth) == ({"lost": 5}, {"lost": 2}, [{"lost": 2}])


def test_flags_have_names() -> None:
    assert event_fields(event(1))["flags"] == "SYN ACK"
