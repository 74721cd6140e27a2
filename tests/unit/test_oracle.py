"""The lab's oracle: it agrees with the control plane and with the header's text, and has learnt nothing from either."""

from __future__ import annotations

import ast
import struct
import sys
from collections import Counter
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import oracle
from rauta.contract import MAGLEV_SLOTS
from rauta.maglev import build_table

CLIENT, VIP = IPv4Address("198.18.0.1"), IPv4Address("198.18.100.80")

words = st.integers(0, 2**64 - 1)
ports = st.integers(0, 2**16 - 1)
addresses = st.integers(0, 2**32 - 1).map(IPv4Address)


def literal_hash(flow_key: int, client: IPv4Address, client_port: int, vip: IPv4Address, vip_port: int) -> int:
    """contract.h on flow_hash(tuple), with a struct tuple as it lies in memory."""
    lies = client.packed + vip.packed + struct.pack(">HH", client_port, vip_port)
    client_word, server_word, client_half, server_half = struct.unpack("<IIHH", lies)
    h = flow_key
    for w in (client_word | server_word << 32, client_half | server_half << 16):
        h = (h ^ w) * 0x9E3779B97F4A7C15 % 2**64
        h ^= h >> 29
    return h


def test_it_shares_no_code_with_anything_it_judges() -> None:
    tree = ast.parse(Path(oracle.__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names


# ---- the table ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "weights",
    [
        {"api-1": 1},
        {"web-1": 1, "web-2": 1},
        {"web-2": 1, "web-10": 1, "web-1": 1},
        {"a": 3, "b": 1, "c": 0, "d": 2},
        {"one": 65535, "other": 1},
        {"A": 1, "a": 7, "-": 2, "Z9": 5},
    ],
    ids=str,
)
def test_its_table_is_the_control_planes(weights: dict[str, int]) -> None:
    names = sorted(weights)
    assert oracle.table(weights) == [names[index] for index in build_table(weights)]


def test_its_table_has_a_backend_in_each_slot_by_weight() -> None:
    shares = Counter(oracle.table({"light": 1, "heavy": 3, "drained": 0}))
    assert shares.keys() == {"light", "heavy"}
    assert shares["light"] == pytest.approx(MAGLEV_SLOTS / 4, abs=1)
    assert shares["heavy"] == pytest.approx(MAGLEV_SLOTS * 3 / 4, abs=1)


# ---- the hash -------------------------------------------------------------------------------------------


@given(words, addresses, ports, addresses, ports)
def test_its_slot_is_what_the_header_says(
    key: int, client: IPv4Address, client_port: int, vip: IPv4Address, vip_port: int
) -> None:
    expected = (literal_hash(key, client, client_port, vip, vip_port) >> 32) * MAGLEV_SLOTS >> 32
    assert oracle.slot(key, client, client_port, vip, vip_port) == expected


@given(words, addresses, ports, addresses, ports)
def test_its_slot_is_one_of_the_tables(
    key: int, client: IPv4Address, client_port: int, vip: IPv4Address, vip_port: int
) -> None:
    assert 0 <= oracle.slot(key, client, client_port, vip, vip_port) < MAGLEV_SLOTS


def test_a_slot_worked_out_by_hand() -> None:
    """With a key that cancels the addresses the first mix is 0, and the second that of the ports alone: 00 01 00 50."""
    key = int.from_bytes(CLIENT.packed + VIP.packed, "little")
    mixed = 0x5000_0100 * 0x9E37_79B9_7F4A_7C15 & 0xFFFF_FFFF_FFFF_FFFF
    mixed ^= mixed >> 29
    assert oracle.slot(key, CLIENT, 1, VIP, 80) == (mixed >> 32) * 65537 // 2**32


def test_every_part_of_a_connection_counts() -> None:
    base = (1, CLIENT, 40000, VIP, 80)
    others = [(2, *base[1:]), (1, VIP, 40000, VIP, 80), (1, CLIENT, 40001, VIP, 80), (1, CLIENT, 40000, CLIENT, 80)]
    slots = {oracle.slot(*one) for one in (base, *others, (1, CLIENT, 40000, VIP, 81))}
    assert len(slots) == 6


def test_ports_spread_evenly_over_two_backends() -> None:
    table = oracle.table({"web-1": 1, "web-2": 1})
    shares = Counter(table[oracle.slot(0x0123_4567_89AB_CDEF, CLIENT, port, VIP, 80)] for port in range(1024, 65536))
    assert shares["web-1"] == pytest.approx(shares["web-2"], rel=0.05)
