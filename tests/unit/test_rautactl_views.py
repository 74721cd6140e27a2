"""What rautactl prints, of answers as the router gives them; and what the router's own process does not import."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from typing import Any

import pytest
from rich.console import Console

from rauta import views
from rauta.views import explaining, lines, tables
from rauta.views.watching import screen


def shown(made: Any, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=24, markup=False, highlight=False)
    console.print(made)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def seen(backends: int, clusters: int, drops: int, error: str = "") -> dict[str, Any]:
    """An answer to `watch`."""
    return {
        "time": 1_700_000_000.25,
        "instance": "router",
        "generation": 3,
        "error": error,
        "seconds": 1.0,
        "requests_per_second": 123456.7,
        "packets_per_second": 400000.0,
        "avg_latency_us": 0.3,
        "p99_latency_us": 1.234,
        "clusters": [{"name": f"cluster-{n}", "requests_per_second": float(n)} for n in range(clusters)],
        "backends": [
            {
                "cluster": "a-cluster-whose-name-is-as-long-as-names-may-be-" + "x" * 16,
                "name": f"backend-{n}-" + "y" * 50,
                "state": "down" if n == backends - 1 else "healthy",
                "weight": 100,
                "effective_weight": 0 if n == backends - 1 else 100,
                "requests_per_second": float(n),
            }
            for n in range(backends)
        ],
        "dropped": {f"DROP_{n}": float(n + 1) for n in range(drops)},
        "answered": {},
    }


@pytest.mark.parametrize("error", ["", "reading rauta.yaml: line 7\nis wrong"])
@pytest.mark.parametrize("drops", [0, 3, 40])
@pytest.mark.parametrize("clusters", [1, 3, 100])
@pytest.mark.parametrize("backends", [1, 8, 1000])
def test_the_live_view_fits_a_terminal_of_80_by_24(backends: int, clusters: int, drops: int, error: str) -> None:
    printed = shown(screen(seen(backends, clusters, drops, error), 80, 24))
    assert len(printed) <= 24
    assert max(map(len, printed)) <= 80


def test_what_is_not_well_is_never_left_out() -> None:
    printed = "\n".join(shown(screen(seen(1000, 100, 40), 80, 24)))
    assert "backend-999" in printed
    assert "down" in printed
    assert "0 of 100" in printed
    assert "DROP_39" in printed
    assert "and 35 more reasons to drop" in printed
    assert " more backends" in printed
    assert "123,457 requests/s" in printed
    assert "p99 1.23 µs\n" in printed
    assert "\\n" not in printed


def test_everything_is_shown_where_there_is_room() -> None:
    printed = "\n".join(shown(screen(seen(8, 3, 2), 200, 60), 200))
    assert [n for n in range(8) if f"backend-{n}-" not in printed] == []
    assert "more" not in printed


EVENT = {
    "time": 1_700_000_000.000001,
    "client": "198.18.0.1:40000",
    "server": "198.18.100.80:80",
    "flags": "PSH ACK",
    "length": 312,
    "method": "GET",
    "verdict": "ROUTED_FIRST",
    "route": "* /api",
    "cluster": "web",
    "backend": "api-1",
}


@pytest.mark.parametrize(
    ("changes", "ending"),
    [
        ({}, "GET 312 bytes → ROUTED_FIRST web * /api → api-1"),
        ({"method": None, "route": None}, "PSH ACK 312 bytes → ROUTED_FIRST → api-1"),
        (
            {"method": None, "route": None, "backend": None, "flags": "SYN", "length": 0, "verdict": "TX_SYN_ACK"},
            "SYN → TX_SYN_ACK",
        ),
        (
            {"method": None, "route": None, "backend": None, "flags": "", "length": 0, "verdict": "DROP_FRAGMENT"},
            "no TCP → DROP_FRAGMENT",
        ),
    ],
)
def test_an_event_is_a_line(capsys: pytest.CaptureFixture[str], changes: dict[str, Any], ending: str) -> None:
    lines.Lines().show(EVENT | changes)
    (line,) = capsys.readouterr().out.splitlines()
    clock = time.strftime("%H:%M:%S", time.localtime(EVENT["time"]))
    assert line == f"{clock}.000001  198.18.0.1:40000 → 198.18.100.80:80  {ending}"


def test_what_was_lost_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    lines.Lines().show({"lost": 1234})
    assert capsys.readouterr().out == "... 1,234 packets are missing here: there were too many\n"


def test_what_would_steer_a_terminal_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    assert views.clean("a\x1b[2J\nä") == "a\\x1b[2J\\nä"
    backend = {
        "id": 1, "cluster": "web", "name": "web-1", "address": "198.18.0.11", "port": 80, "weight": 1,
        "effective_weight": 0, "state": "unhealthy", "since": time.time() - 7300, "error": "said \x1b[31m", "flows": 0,
        "requests": 0, "requests_per_second": 0.0,
    }  # fmt: skip
    tables.backends([backend])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "said \\x1b[31m" in out
    assert "0 of 1" in out
    assert "2 h" in out


def test_what_the_doctor_says(capsys: pytest.CaptureFixture[str]) -> None:
    found = [
        {"check": "kernel.kfunc", "subject": "", "status": "ok", "seen": "there", "remedy": ""},
        {"check": "agent.syncookies", "subject": "net.ipv4.tcp_syncookies", "status": "error", "seen": "0",
         "remedy": "sysctl -w net.ipv4.tcp_syncookies=1"},
    ]  # fmt: skip
    tables.doctor(found)
    out = capsys.readouterr().out
    assert "error   agent.syncookies  net.ipv4.tcp_syncookies  0\n         → sysctl -w" in out
    assert out.endswith("1 ok, 1 error\n")


def test_a_refusal_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    answer = {
        "kind": "answer", "verdict": "TX_BAD_REQUEST", "status": 400, "why": "the path has an empty segment",
        "vip": {"id": 1, "name": "shop", "address": "198.18.100.80", "port": 80}, "request": None, "notes": [],
        "host": None, "route": None, "cluster": None, "backends": [], "candidates": [], "candidates_left_out": 0,
        "client": None,
    }  # fmt: skip
    explaining.explain("GET //", answer)
    assert capsys.readouterr().out == (
        "GET // → 400 (TX_BAD_REQUEST): the path has an empty segment\n  VIP: shop (198.18.100.80:80)\n"
    )


def test_the_routers_process_imports_nothing_of_this() -> None:
    script = (
        "import sys, rauta.processes.daemon, rauta.processes.answers, rauta.explanation.live\n"
        "print([name for name in sys.modules if name.split('.')[0] == 'rich' or name.startswith('rauta.views')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"
