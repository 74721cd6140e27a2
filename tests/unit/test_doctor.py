"""What the doctor reads, line by line; what a check says of itself; and that docs/doctor.md is what the code says."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, get_args

import pytest

from rauta.doctor import examine, reference
from rauta.doctor.findings import CHECKS, Check, Finding, Group, Said, Subject, checks_of, fine
from rauta.doctor.firewall import in_iptables, in_nftables
from rauta.doctor.host import names_in_btf
from rauta.doctor.listeners import Listener, listeners
from rauta.doctor.places import Service
from rauta.errors import RautaError

ROOT = Path(__file__).parents[2]


# ---- findings -------------------------------------------------------------------------------------------


def made(error: Exception) -> list[Finding]:
    """What a check says that meets an error after its first finding."""

    def probe(subject: Subject) -> Iterator[Said]:
        yield fine("one", "seen")
        raise error

    return list(Check("a.check", "host", "meaning", probe).findings(Subject()))


@pytest.mark.parametrize(
    ("error", "seen", "remedy"),
    [
        (PermissionError(1, "Operation not permitted"), "Operation not permitted", "Run as root."),
        (OSError(2, "No such file"), "[Errno 2] No such file", "Look at it by hand."),
        (RautaError("looking", "nothing", "Look there."), "looking: nothing", "Look there."),
        (RautaError("looking"), "looking", "Look at it by hand."),
    ],
)
def test_what_cannot_be_looked_at_is_a_finding(error: Exception, seen: str, remedy: str) -> None:
    assert made(error) == [
        Finding("a.check", "one", "ok", "seen"),
        Finding("a.check", "", "unknown", seen, remedy),
    ]


def test_a_mistake_in_a_check_is_none() -> None:
    with pytest.raises(ZeroDivisionError):
        made(ZeroDivisionError())


def test_checks_are_in_the_order_of_what_depends_on_what() -> None:
    groups = [check.group for check in checks_of(set(get_args(Group)))]
    assert len(groups) == len(CHECKS) >= 25
    assert groups == sorted(groups, key=get_args(Group).index)
    assert {check.name.partition(".")[0] for check in checks_of({"between"})} == {"backend"}


def test_names_are_names() -> None:
    for name, check in CHECKS.items():
        assert name.replace(".", "").replace("-", "").isalnum()
        assert name == name.lower()
        assert check.meaning.endswith((".", ".)"))


# ---- the page -------------------------------------------------------------------------------------------


def test_the_page_is_what_the_code_says() -> None:
    page = (ROOT / "docs/doctor.md").read_text()
    assert reference.written(page) == page, "python -m rauta.doctor.reference writes it anew"
    assert all(f"| `{name}` |" in page for name in CHECKS)


def test_writing_it_keeps_the_rest() -> None:
    text = reference.written("before\n<!-- checks -->\nold\n<!-- /checks -->\nafter\n")
    assert text.startswith("before\n<!-- checks -->\n## Every host\n")
    assert text.endswith("|\n<!-- /checks -->\nafter\n")
    assert "old" not in text.splitlines()


# ---- firewalls ------------------------------------------------------------------------------------------


def ruleset(*statements: Any) -> dict[str, Any]:
    rule = {"family": "inet", "table": "filter", "chain": "input", "handle": 5, "expr": list(statements)}
    chain = {"family": "inet", "table": "filter", "name": "input", "hook": "input", "policy": "drop"}
    return {"nftables": [{"metainfo": {"json_schema_version": 1}}, {"chain": chain}, {"rule": rule}]}


def state(right: Any, op: str = "in") -> dict[str, Any]:
    return {"match": {"op": op, "left": {"ct": {"key": "state"}}, "right": right}}


def verdicts(*pairs: Any) -> dict[str, Any]:
    return {"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [list(pair) for pair in pairs]}}}


DROP, ACCEPT, REJECT = {"drop": None}, {"accept": None}, {"reject": {"type": "tcp reset"}}
DROPPING = {
    "drop": (state("invalid"), DROP),
    "counted": (state("invalid"), {"counter": {"packets": 0, "bytes": 0}}, {"log": None}, DROP),
    "rejected": (state("invalid"), REJECT),
    "one of several": (state(["new", "invalid"]), DROP),
    "a set": (state({"set": ["invalid", "untracked"]}, "=="), DROP),
    "on an interface": (
        {"match": {"op": "==", "left": {"meta": {"key": "iif"}}, "right": "eth0"}},
        state("invalid"),
        DROP,
    ),
    "a map": (verdicts(("established", ACCEPT), ("invalid", DROP)),),
}
OTHERS = {
    "accepted": (state("invalid"), ACCEPT),
    "others": (state(["established", "related"]), DROP),
    "all but these": (state("invalid", "!="), DROP),
    "a map that lets it pass": (verdicts(("invalid", ACCEPT), ("new", DROP)),),
    "a named map": ({"vmap": {"key": {"ct": {"key": "state"}}, "data": "@verdicts"}},),
    "of the mark": ({"match": {"op": "==", "left": {"ct": {"key": "mark"}}, "right": "invalid"}}, DROP),
    "a drop before": (DROP, state("invalid")),
    "iptables' own": ({"xt": None}, DROP),
}


@pytest.mark.parametrize("statements", DROPPING.values(), ids=DROPPING)
def test_rules_of_nftables_that_drop_invalid_packets(statements: tuple[Any, ...]) -> None:
    assert list(in_nftables(ruleset(*statements))) == ["nft inet filter input"]


@pytest.mark.parametrize("statements", OTHERS.values(), ids=OTHERS)
def test_rules_that_do_not(statements: tuple[Any, ...]) -> None:
    assert list(in_nftables(ruleset(*statements))) == []


def test_no_rules_at_all() -> None:
    assert list(in_nftables({})) == list(in_nftables({"nftables": []})) == list(in_iptables("")) == []


def test_rules_of_iptables() -> None:
    dropping = [
        "-A INPUT -m conntrack --ctstate INVALID -j DROP",
        "-A INPUT -i eth0 -p tcp -m state --state INVALID,UNTRACKED -j REJECT --reject-with tcp-reset",
    ]
    others = [
        "*filter",
        ":INPUT DROP [0:0]",
        "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A INPUT -m conntrack ! --ctstate INVALID -j DROP",
        "-A INPUT -m conntrack --ctstate INVALID -j LOG",
        "-A INPUT -m conntrack --ctstate NEW -j DROP",
        "COMMIT",
    ]
    assert list(in_iptables("\n".join([*others, *dropping]))) == [f"iptables {rule}" for rule in dropping]


# ---- listeners ------------------------------------------------------------------------------------------


def listener(address: str, *, v4: bool = True) -> Listener:
    parsed = IPv4Address(address) if "." in address and ":" not in address else IPv6Address(address)
    return Listener(parsed, 8080, 0, v4, False, 131072)


@pytest.mark.parametrize(
    ("one", "takes"),
    [
        (listener("0.0.0.0"), True),
        (listener("198.18.0.11"), True),
        (listener("127.0.0.1"), False),
        (listener("198.18.0.12"), False),
        (listener("::"), True),
        (listener("::", v4=False), False),
        (listener("::ffff:198.18.0.11"), True),
        (listener("::ffff:198.18.0.12"), False),
        (listener("2001:db8::1"), False),
    ],
    ids=str,
)
def test_whose_connections_a_listener_takes(one: Listener, takes: bool) -> None:
    assert one.takes(Service("shop", IPv4Address("198.18.0.11"), 8080).address) is takes


@pytest.mark.parametrize(
    ("family", "protocol", "only", "text", "v4"),
    [
        (socket.AF_INET, 0, None, "127.0.0.1:{}", True),
        (socket.AF_INET6, 0, 0, "[::]:{}", True),
        (socket.AF_INET6, 0, 1, "[::]:{}", False),
        (socket.AF_INET, 262, None, "127.0.0.1:{}", True),
    ],
)
@pytest.mark.skipif(os.geteuid() != 0, reason="who speaks MPTCP is told to root only")
def test_real_listeners_are_found(
    family: socket.AddressFamily, protocol: int, only: int | None, text: str, v4: bool
) -> None:
    with socket.socket(family, socket.SOCK_STREAM, protocol) as sock:
        if only is not None:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 50_000)
        sock.bind(("127.0.0.1" if family == socket.AF_INET else "::", 0))
        port = sock.getsockname()[1]
        assert port not in {one.port for one in listeners()}
        sock.listen()
        (found,) = [one for one in listeners() if one.port == port]
    assert (str(found), found.v4, found.mptcp) == (text.format(port), v4, protocol == 262)
    assert found.receive_buffer == 100_000
    assert found.everywhere == (family == socket.AF_INET6)


# ---- the kernel -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 1, 100, (1 << 20) - 3, 1 << 20, (1 << 20) + 1])
def test_a_name_is_found_wherever_it_stands(tmp_path: Path, at: int) -> None:
    """The file is read in pieces of a megabyte."""
    file = tmp_path / "btf"
    file.write_bytes(b"\1" * at + b"\0wanted\0" + b"\1" * 10)
    assert names_in_btf(file, "wanted")
    assert not names_in_btf(file, "wante")
    assert not names_in_btf(file, "anted")


def test_without_root_what_takes_it_is_unknown_or_wrong_and_says_so() -> None:
    """In a child that has given its rights up."""
    code = (
        "import os\n"
        "from rauta.doctor import examine\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "for one in examine(None, interfaces=['lo']): print(one.check, one.status, one.remedy)\n"
    )
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True
    )
    assert "kernel.btf ok" in done.stdout
    assert "kernel.bpf error Run as root" in done.stdout
    assert "interface.up ok" in done.stdout


def test_importing_it_is_cheap() -> None:
    """The daemon does: no rich, no typer."""
    code = "import sys, rauta.doctor; print({'rich', 'numpy', 'pyroute2', 'typer'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True
    )
    assert done.stdout.strip() == "set()"


def test_the_loopback_is_up() -> None:
    (found,) = [one for one in examine(None, interfaces=["lo"]) if one.check == "interface.mtu"]
    assert (found.status, found.subject) == ("ok", "lo")
