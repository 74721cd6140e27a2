"""Packets through the compiled programs, byte for byte, with BPF_PROG_TEST_RUN.

    oracle   the arithmetic of bpf/contract.h, written again from its text: cookies, hashes, Maglev, map contents
    frames   a client's segments, and every answer that the router may give to them, made with scapy
    bench    the programs, loaded, with the world they route in; each run checks code, bytes and counters

What a program must output is never computed by the program's own code, nor by rauta's, and never recorded from it.
The modules test_*.py are named after the rules: look there for the case of a rule.
"""

import pytest

pytest.register_assert_rewrite("packets.bench")  # so that its assertions show what differs
