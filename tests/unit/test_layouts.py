"""rauta.bpf.layout: whether two layouts are the same, and what differs."""

from __future__ import annotations

import dataclasses

import pytest

from rauta.bpf.layout import (
    ArrayLayout,
    BytesLayout,
    IntLayout,
    Layout,
    Member,
    StructLayout,
    describe_difference,
    same_layout,
)

U16, U32 = IntLayout("__u16", 2), IntLayout("__u32", 4)
TUPLE = StructLayout("struct tuple", 8, {"client": Member(0, U32), "server": Member(4, U32)})
MAC = BytesLayout("__u8[6]", 6)
FLOW = StructLayout(
    "struct flow",
    24,
    {"tuple": Member(0, TUPLE), "mac": Member(8, MAC), "backend": Member(14, U16), "n": Member(16, U32)},
)
SETS = StructLayout(
    "struct flow_set", 52, {"lock": Member(0, U32), "flow": Member(4, ArrayLayout("struct flow[2]", 48, FLOW, 2))}
)


def flow(size: int = 24, **members: Member | None) -> StructLayout:
    """struct flow with other members; None takes one out."""
    changed = {name: member for name, member in {**FLOW.members, **members}.items() if member is not None}
    return StructLayout("struct flow", size, changed)


def test_layouts_are_the_same_whatever_their_types_are_called() -> None:
    renamed = dataclasses.replace(FLOW, name="struct connection")
    typed = flow(n=Member(16, IntLayout("enum kind", 4)))
    for other in (FLOW, renamed, typed):
        assert same_layout(FLOW, other)
        assert describe_difference(FLOW, other) == ""


@pytest.mark.parametrize(
    ("new", "difference"),
    [
        (flow(backend=Member(20, U16)), "struct flow.backend: offset 14 became 20"),
        (flow(backend=None), "struct flow.backend: is gone"),
        (flow(more=Member(20, U32)), "struct flow.more: is new"),
        (flow(size=32), "struct flow: 24 bytes became 32"),
        (flow(n=Member(16, U16)), "struct flow.n: 4 bytes became 2"),
        (flow(n=Member(16, IntLayout("int", 4, signed=True))), "struct flow.n: __u32 became int"),
        (flow(mac=Member(8, BytesLayout("__u8[5]", 5))), "struct flow.mac: 6 bytes became 5"),
        (flow(mac=Member(8, ArrayLayout("__u16[3]", 6, U16, 3))), "struct flow.mac: __u8[6] became __u16[3]"),
        (
            flow(
                tuple=Member(0, StructLayout("struct tuple", 8, {"client": Member(0, U32), "server": Member(6, U16)}))
            ),
            "struct flow.tuple.server: offset 4 became 6",
        ),
        (flow(n=Member(12, U32), backend=None), "struct flow.backend: is gone"),
    ],
)
def test_the_first_difference_in_memory_is_named(new: Layout, difference: str) -> None:
    assert describe_difference(FLOW, new) == difference
    assert not same_layout(FLOW, new)


def test_differences_inside_arrays_are_found() -> None:
    longer = ArrayLayout("struct flow[4]", 96, FLOW, 4)
    wider = ArrayLayout("struct flow[2]", 48, flow(backend=Member(20, U16)), 2)
    for array, difference in (
        (longer, "struct flow_set.flow: 2 elements became 4"),
        (wider, "struct flow_set.flow[].backend: offset 14 became 20"),
    ):
        new = StructLayout("struct flow_set", 4 + array.size, {**SETS.members, "flow": Member(4, array)})
        assert describe_difference(SETS, new) == difference
    assert describe_difference(ArrayLayout("__u16[2]", 4, U16, 2), ArrayLayout("__u32[2]", 8, U32, 2)) == (
        "__u32[2][]: 2 bytes became 4"
    )
