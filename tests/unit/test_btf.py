"""Layouts read from BTF say what the C compiler laid out, and refuse what does not fit."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rauta.bpf import BpfError, Btf
from rauta.bpf.layout import IntLayout, Member, StructLayout


@pytest.fixture(scope="module")
def btf(compiled: Callable[[str], Path]) -> Btf:
    return Btf.from_object(compiled("sample"))


EVERYTHING: dict[str, Any] = {
    "small": 200,
    "below": -5,
    "large": 1 << 63,
    "truth": True,
    "text": b"rauta\0\0",
    "port": 8080,
    "slots": [1, 2, 65535],
    "colour": 6,
    "pairs": [{"left": 1, "right": 2}, {"left": 3, "right": 4}],
    "either": {"whole": 0x04030201, "bytes": b"\1\2\3\4"},
    "number": 9,
    "pointer": 9,
}


def test_struct_packs_as_the_compiler_lays_it_out(btf: Btf) -> None:
    layout = btf.struct("everything")
    expected = struct.pack(
        "=B3xiQ?7sH3HIIIII4BQ", 200, -5, 1 << 63, True, b"rauta", 8080, 1, 2, 65535, 6, 1, 2, 3, 4, 1, 2, 3, 4, 9
    )
    assert layout.name == "struct everything"
    assert layout.size == len(expected)
    assert layout.pack(EVERYTHING) == expected


def test_unpacking_gives_back_what_was_packed(btf: Btf) -> None:
    layout = btf.struct("everything")
    assert layout.unpack(layout.pack(EVERYTHING)) == EVERYTHING


def test_members_left_out_are_zero(btf: Btf) -> None:
    layout = btf.struct("everything")
    assert layout.pack({}) == bytes(layout.size)
    assert layout.unpack(layout.pack({"port": 1})) | {"port": 0} == layout.unpack(bytes(layout.size))


def test_short_bytes_are_padded_and_lists_of_bytes_taken(btf: Btf) -> None:
    layout = btf.struct("everything")
    assert layout.unpack(layout.pack({"text": b"ab"}))["text"] == b"ab\0\0\0\0\0"
    assert layout.unpack(layout.pack({"text": [1, 2, 3]}))["text"] == b"\1\2\3\0\0\0\0"


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ({"small": 256}, r"struct everything\.small: 256 does not fit unsigned char \(0 to 255\)"),
        ({"small": -1}, r"struct everything\.small: -1 does not fit"),
        ({"below": 1 << 31}, r"struct everything\.below: 2147483648 does not fit int"),
        ({"large": 1 << 64}, r"struct everything\.large: "),
        ({"truth": 2}, r"struct everything\.truth: 2 does not fit _Bool \(0 to 1\)"),
        ({"text": b"too long"}, r"struct everything\.text: 8 bytes do not fit char\[7\]"),
        ({"text": "text"}, r"struct everything\.text: 'text' is not bytes"),
        ({"slots": [1, 70000, 2]}, r"struct everything\.slots\[1\]: 70000 does not fit"),
        ({"slots": [1, 2]}, r"struct everything\.slots: \[1, 2\] is not a list of 3 elements"),
        ({"slots": 3}, r"struct everything\.slots: 3 is not a list"),
        ({"pairs": [{}, {"left": -1}]}, r"struct everything\.pairs\[1\]\.left: -1 does not fit"),
        (
            {"pairs": [{}, {"middle": 1}]},
            r"struct everything\.pairs\[1\]: has no member 'middle'; its members are left, right",
        ),
        ({"port": "http"}, r"struct everything\.port: 'http' is not an integer"),
        ({"port": 1.5}, r"struct everything\.port: 1\.5 is not an integer"),
        ({"either": {"whole": 1, "bytes": b"\2"}}, r"struct everything\.either\.whole: contradicts another member"),
        (7, r"struct everything: 7 is not a dict of its members"),
    ],
)
def test_what_does_not_fit_is_named(btf: Btf, value: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        btf.struct("everything").pack(value)


def test_unpacking_needs_exactly_the_size(btf: Btf) -> None:
    with pytest.raises(ValueError, match="struct pair: is 8 bytes, not 7"):
        btf.struct("pair").unpack(bytes(7))


def test_typedefs_and_qualifiers_are_followed(btf: Btf) -> None:
    layout = btf.struct("quiet_u16")
    assert (layout.size, layout.pack(258)) == (2, struct.pack("=H", 258))


def test_enums_of_both_widths_and_signs(btf: Btf) -> None:
    assert btf.enum("colour") == {"RED": 0, "GREEN": 5, "BLUE": 6}
    assert btf.enum("temperature") == {"COLD": -40, "WARM": 20}
    assert btf.enum("huge") == {"TINY": 1, "ENORMOUS": 0x123456789ABCDEF0}
    assert btf.enum("deep") == {"ABYSS": -0x123456789ABCDEF0}


def test_variables_of_a_section_have_distinct_places(btf: Btf) -> None:
    variables = btf.variables(".rodata")
    assert {"answer", "constants", "greeting", "paint"} <= variables.keys()
    assert variables["greeting"][1].size == 8
    places = sorted((offset, offset + layout.size) for offset, layout in variables.values())
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(places))
    assert btf.variables(".nowhere") == {}


def test_enum_variables_keep_their_sign(btf: Btf) -> None:
    layout = btf.variables(".rodata")["temperature"][1]
    assert layout.unpack(layout.pack(-40)) == -40


@pytest.mark.parametrize(
    ("name", "complaint"), [("with_bitfield", "'narrow' is a bitfield"), ("with_float", "a FLOAT has no layout")]
)
def test_what_python_could_not_pack_is_refused(btf: Btf, name: str, complaint: str) -> None:
    with pytest.raises(BpfError, match=complaint):
        btf.struct(name)


def test_unknown_names_are_refused(btf: Btf) -> None:
    with pytest.raises(BpfError, match="looking for struct nonsense"):
        btf.struct("nonsense")
    with pytest.raises(BpfError, match="looking for enum pair"):
        btf.enum("pair")
    with pytest.raises(BpfError, match="no such type"):
        btf.layout(1 << 20)


def test_layouts_are_frozen(btf: Btf) -> None:
    with pytest.raises(AttributeError):
        btf.struct("pair").size = 1  # type: ignore[misc]


def test_a_file_that_is_no_object_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.bpf.o"
    text.write_text("not an object")
    with pytest.raises(BpfError, match=r"opening BPF object .*text\.bpf\.o"):
        Btf.from_object(text)
    with pytest.raises(BpfError, match=r"opening BPF object .*missing\.bpf\.o: No such file"):
        Btf.from_object(tmp_path / "missing.bpf.o")
    with pytest.raises(BpfError, match="there is none"):
        Btf(b"neither", "nothing")


@pytest.mark.skipif(not Path("/sys/kernel/btf/vmlinux").exists(), reason="the kernel offers no BTF")
def test_the_kernels_own_types_are_read() -> None:
    kernel = Btf.from_kernel()
    assert kernel.struct("ethhdr").size == 14
    assert kernel.struct("xdp_md").size == 24
    assert kernel.enum("xdp_action")["XDP_TX"] == 3
    assert kernel.enum("bpf_map_type")["BPF_MAP_TYPE_LRU_HASH"] == 9


def test_flat_structs_with_padding_take_the_fast_way_and_agree() -> None:
    byte, word = IntLayout("__u8", 1), IntLayout("__s64", 8, signed=True)
    layout = StructLayout("struct gaps", 24, {"a": Member(0, byte), "b": Member(8, word), "c": Member(16, byte)})
    value = {"a": 1, "b": -2, "c": 3}
    assert layout.codec is not None
    assert layout.unpack(layout.pack(value)) == value
    assert layout.pack(value) == struct.pack("=B7xqB7x", 1, -2, 3)


def test_integers_of_sixteen_bytes() -> None:
    layout = IntLayout("__int128", 16, signed=True)
    assert layout.unpack(layout.pack(-(1 << 127))) == -(1 << 127)
    with pytest.raises(ValueError, match="does not fit"):
        layout.pack(1 << 127)
