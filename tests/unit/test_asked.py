"""The arguments of commands: types, bounds, and what is said of those that are wrong."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rauta.errors import RautaError
from rauta.processes.asked import Asked, parse_client


def test_what_is_given_is_read() -> None:
    asked = Asked(
        "flows", {"a": "x", "b": 7, "c": 1.5, "d": ["y"], "client": "198.18.0.1:80"}, "a", "b", "c", "d", "client"
    )
    assert asked.text("a") == "x"
    assert asked.whole("b", default=1, least=0, most=7) == 7
    assert asked.number("c", default=1, least=0, most=7) == 1.5
    assert asked.number("b", default=1, least=0, most=7) == 7.0
    assert asked.texts("d") == ["y"]
    assert asked.client() == (IPv4Address("198.18.0.1"), 80)


def test_what_is_not_given_is_the_default() -> None:
    asked = Asked("flows", {"b": None}, "b")
    assert (asked.text("a", "x"), asked.texts("d"), asked.client()) == ("x", [], None)
    assert asked.whole("b", default=5, least=0, most=7) == 5
    assert asked.number("c", default=2.5, least=0, most=7) == 2.5


def test_what_nobody_asked_for_is_an_error() -> None:
    with pytest.raises(RautaError, match=r"reading the arguments of 'flows': it has no argument 'z'\nIt takes: a, b\."):
        Asked("flows", {"z": 1}, "a", "b")
    with pytest.raises(RautaError, match=r"It takes none\."):
        Asked("status", {"z": 1})


@pytest.mark.parametrize("value", [True, 1.0, "1", -1, 8, 10**400, [], float("nan")], ids=repr)
def test_what_is_no_whole_number_within_bounds(value: Any) -> None:
    with pytest.raises(RautaError, match=r"b is wrong\nIt is a whole number, 0 to 7\."):
        Asked("flows", {"b": value}, "b").whole("b", default=1, least=0, most=7)


@pytest.mark.parametrize("value", [True, "1", -0.1, 7.1, 10**400, float("nan"), float("inf")], ids=repr)
def test_what_is_no_number_within_bounds(value: Any) -> None:
    with pytest.raises(RautaError, match=r"It is a number, 0 to 7\."):
        Asked("watch", {"b": value}, "b").number("b", default=1, least=0, most=7)


@pytest.mark.parametrize("value", [7, "x" * 4097, "\ud800", {}, []], ids=lambda value: repr(value)[:20])
def test_what_is_no_text(value: Any) -> None:
    with pytest.raises(RautaError, match="a is wrong"):
        Asked("flows", {"a": value}, "a").text("a")
    with pytest.raises(RautaError, match="a is wrong"):
        Asked("flows", {"a": [value]}, "a").texts("a")


def test_a_text_that_must_be_there() -> None:
    for fields in ({}, {"a": ""}):
        with pytest.raises(RautaError, match=r"a is missing\nSay which\."):
            Asked("drain", fields, "a").needed("a", "Say which.")


def test_bytes_of_a_command_line_that_are_no_text_are_read_all_the_same() -> None:
    assert Asked("explain", {"a": "\udcff"}, "a").text("a") == "\udcff"


@pytest.mark.parametrize(
    "text",
    ["", "x", "198.18.0", "198.18.0.1:", "198.18.0.1:0", "198.18.0.1:65536", "198.18.0.1:+1", "::1", "198.18.0.1:٣"],
)
def test_what_is_no_client(text: str) -> None:
    with pytest.raises(RautaError, match="that is no IPv4 address, with or without a port"):
        parse_client(text)


@given(address=st.ip_addresses(v=4), port=st.integers(1, 65535))
def test_every_client_is_read(address: IPv4Address, port: int) -> None:
    assert parse_client(f"{address}:{port}") == (address, port)
    assert parse_client(str(address)) == (address, 0)


@given(text=st.text(max_size=30))
def test_any_text_is_a_client_or_an_error(text: str) -> None:
    try:
        address, port = parse_client(text)
    except RautaError:
        return
    assert text in (str(address), f"{address}:{port}")
