"""The header `traceparent` (W3C Trace Context, level 1): what is one, and what is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rauta.tracing.traceparent import Parent, of_head, parse

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VALUE = f"00-{TRACE}-{SPAN}-01"
PARENT = Parent(int(TRACE, 16), int(SPAN, 16), sampled=True)


def test_the_recommendations_own_example() -> None:
    assert parse(VALUE.encode()) == PARENT


@pytest.mark.parametrize(("flags", "sampled"), [("00", False), ("01", True), ("02", False), ("03", True), ("ff", True)])
def test_one_flag_says_whether_it_is_recorded_and_the_others_nothing(flags: str, sampled: bool) -> None:
    parent = parse(f"00-{TRACE}-{SPAN}-{flags}".encode())
    assert parent is not None
    assert parent.sampled is sampled


@pytest.mark.parametrize("more", ["", "-", "-what-comes-next"])
def test_of_a_later_version_what_it_has_in_common_counts(more: str) -> None:
    assert parse(f"cc-{TRACE}-{SPAN}-01{more}".encode()) == PARENT


INVALID = {
    "nothing": "",
    "no dashes": f"00{TRACE}{SPAN}01",
    "forbidden version": f"ff-{TRACE}-{SPAN}-01",
    "short version": f"0-{TRACE}-{SPAN}-01",
    "long version": f"000-{TRACE}-{SPAN}-01",
    "version that is no number": f".0-{TRACE}-{SPAN}-01",
    "more than version 00 has": f"{VALUE}-what-comes-next",
    "a dash too many": f"{VALUE}-",
    "later version without a dash": f"cc-{TRACE}-{SPAN}-01.what",
    "trace in capitals": f"00-{TRACE.upper()}-{SPAN}-01",
    "span in capitals": f"00-{TRACE}-{SPAN.upper()}-01",
    "flags in capitals": f"00-{TRACE}-{SPAN}-0B",
    "no trace": f"00-{'0' * 32}-{SPAN}-01",
    "no span": f"00-{TRACE}-{'0' * 16}-01",
    "short trace": f"00-{TRACE[1:]}-{SPAN}-01",
    "long trace": f"00-{TRACE}0-{SPAN}-01",
    "short span": f"00-{TRACE}-{SPAN[1:]}-01",
    "no flags": f"00-{TRACE}-{SPAN}",
    "short flags": f"00-{TRACE}-{SPAN}-1",
    "not hexadecimal": f"00-{'g' * 32}-{SPAN}-01",
    "spaces inside": f"00 - {TRACE} - {SPAN} - 01",
    "two in one line": f"{VALUE}, {VALUE}",
    "a line's end": f"{VALUE}\n",
    "digits of other scripts": f"00-{'٣' * 32}-{SPAN}-01",
}


@pytest.mark.parametrize("value", INVALID.values(), ids=INVALID)
def test_what_is_not_exactly_one_is_none(value: str) -> None:
    assert parse(value.encode()) is None


@given(st.binary(max_size=80) | st.from_regex(r"[0-9a-fA-F-]{0,60}").map(str.encode))
def test_whatever_it_is_nothing_goes_wrong(value: bytes) -> None:
    """And what is read says what it was read from."""
    parent = parse(value)
    if parent is not None:
        assert value[3:52] == b"%032x-%016x" % (parent.trace_id, parent.span_id)


# ---- in a request ---------------------------------------------------------------------------------------


def head(*lines: str) -> bytes:
    return "\r\n".join(["GET / HTTP/1.1", "Host: shop.test", *lines, "", ""]).encode("latin-1")


FOUND = {
    "alone": head(f"traceparent: {VALUE}"),
    "among others": head("A: b", f"traceparent: {VALUE}", "tracestate: rojo=1"),
    "in capitals": head(f"TRACEPARENT: {VALUE}"),
    "no space": head(f"Traceparent:{VALUE}"),
    "spaces around": head(f"traceparent: \t {VALUE} \t"),
    "a body that says something else": head(f"traceparent: {VALUE}") + head(f"traceparent: {VALUE}"),
    "cut behind it": head(f"traceparent: {VALUE}", "X: y")[:-5],
}


@pytest.mark.parametrize("text", FOUND.values(), ids=FOUND)
def test_a_request_says_which_trace_it_is_part_of(text: bytes) -> None:
    assert of_head(text) == PARENT


NONE = {
    "no such line": head("tracestate: rojo=1"),
    "twice": head(f"traceparent: {VALUE}", f"traceparent: {VALUE}"),
    "once more, invalid": head(f"traceparent: {VALUE}", "Traceparent: 00"),
    "invalid": head("traceparent: 00-1-2-03"),
    "another name": head(f"x-traceparent: {VALUE}"),
    "a name with a space": head(f"traceparent : {VALUE}"),
    "in the first line": f"traceparent: {VALUE}\r\n\r\n".encode(),
    "in the body": head() + f"traceparent: {VALUE}\r\n\r\n".encode(),
    "cut": head(f"traceparent: {VALUE}")[:-8],
    "nothing": b"",
}


@pytest.mark.parametrize("text", NONE.values(), ids=NONE)
def test_or_it_does_not(text: bytes) -> None:
    assert of_head(text) is None
