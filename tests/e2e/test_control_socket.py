"""The control socket, and what whoever can open it may send: the router says no, and goes on.

It is root's alone (tests/e2e/test_rautactl.py); but a script with a mistake is root's, too.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from e2e.bench import FILE, Bench, bench, eventually
from e2e.test_rautactl import instance_of
from rauta.bpf import Map
from rauta.bpf.layout import StructLayout
from rauta.errors import RautaError
from rauta.processes import control
from rauta.processes.answers import Answers
from rauta.upgrade import pins

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root"),
    pytest.mark.usefixtures("may_repeat"),
]

COMMANDS = sorted(set(Answers.handlers(Answers.__new__(Answers))) - {"doctor"})
STREAMS = {"watch", "events", "follow"}
NAMES = ["client", "backend", "state", "limit", "top", "vip", "cluster", "unused", "request", "headers", "interval",
         "verdict"]  # fmt: skip
SECONDS = 20.0
FLOWS = 131072
FAST = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """At the end: it has never said a word about a mistake of its own."""
    folder = tmp_path_factory.mktemp("scenario")
    for file in (FILE, FILE.with_name("routing.yaml")):
        (folder / file.name).write_text(file.read_text().replace("flows: 8192", f"flows: {FLOWS}"))
    with bench("rauta-run", tmp_path_factory.mktemp("logs"), folder / FILE.name) as one:
        yield one
        said = one.running.routers[0].process.output()
        assert "Traceback" not in said, said
        assert '"level": "error"' not in said, said


def opened(shop: Bench) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(SECONDS)
    sock.connect(str(instance_of(shop).control))
    return sock


def reply_to(shop: Bench, line: bytes) -> dict[str, Any]:
    """The first line of the answer, to what is sent before hanging up on writing."""
    with opened(shop) as sock:
        sock.sendall(line)
        with sock.makefile("rb") as file:
            answer: dict[str, Any] = json.loads(file.readline())
            return answer


def refused(shop: Bench, line: bytes) -> str:
    answer = reply_to(shop, line)
    assert set(answer) == {"error"}, answer
    assert set(answer["error"]) == {"tried", "happened", "advice"}
    assert "mistake of RAUTA's own" not in answer["error"]["happened"], answer
    return str(answer["error"]["happened"])


# ---- one thing at a time ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"nothing\n",
        b"[]\n",
        b"7\n",
        b'"status"\n',
        b"{}\n",
        b'{"command": 7}\n',
        b'{"command": ["status"]}\n',
        b'{"command": "no such"}\n',
        b'{"command": "\\ud800"}\n',
        b"\xff\xfe\n",
        b"[" * 60_000 + b"\n",
        b'{"command": ' + b"9" * 60_000 + b"}\n",
        b'{"command": "status", "odd": 1}\n',
        b'{"command": "flows", "limit": 1e300}\n',
        b'{"command": "flows", "limit": -1}\n',
        b'{"command": "flows", "limit": true}\n',
        b'{"command": "flows", "top": 1000000}\n',
        b'{"command": "flows", "client": {"a": 1}}\n',
        b'{"command": "watch", "interval": 0}\n',
        b'{"command": "watch", "interval": NaN}\n',
        b'{"command": "watch", "interval": 1' + b"0" * 400 + b"}\n",
        b'{"command": "explain"}\n',
        b'{"command": "explain", "request": "GET http://a:' + b"9" * 4090 + b'/"}\n',
        b'{"command": "explain", "request": "\\ud800", "vip": "shop"}\n',
        b'{"command": "explain", "request": "GET /", "headers": [1]}\n',
        b'{"command": "drain"}\n',
        b'{"command": "drain", "backend": []}\n',
        b'{"command": "follow"}\n',
        b'{"command": "follow", "client": "198.18.0.1:65536"}\n',
        b'{"command": "follow", "client": "198.18.0.1:\\u0663"}\n',
    ],
    ids=lambda line: line[:40].decode("ascii", "backslashreplace").strip(),
)
def test_what_is_no_command_is_refused(shop: Bench, line: bytes) -> None:
    refused(shop, line)


def test_a_line_without_an_end_is_refused_when_it_is_too_long(shop: Bench) -> None:
    assert refused(shop, b'{"command": "' + b"x" * 70_000) == "it is longer than 65536 bytes"


def test_who_hangs_up_without_a_word_is_no_error(shop: Bench) -> None:
    with opened(shop):
        pass
    with opened(shop) as sock:
        sock.sendall(b'{"command": "sta')
    assert shop.running.ask("metrics")


# ---- anything ---------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=50),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)
PLAUSIBLE = st.sampled_from(
    ["198.18.0.1", "198.18.0.1:7", "shop", "web", "web-1", "GET /", "GET http://shop.test/web", "open", "live", "DROP"]
)
REQUESTS = st.fixed_dictionaries(
    {"command": st.sampled_from(COMMANDS)},
    optional={name: JSON | PLAUSIBLE | st.integers(-2, 2000) | st.lists(PLAUSIBLE, max_size=3) for name in NAMES},
)


@FAST
@given(request=REQUESTS)
def test_any_arguments_are_answered_or_refused(shop: Bench, request: dict[str, Any]) -> None:
    """Never by a mistake of the router's own, never not at all."""
    answer = reply_to(shop, json.dumps(request).encode() + b"\n")
    assert set(answer) in ({"ok"}, {"error"}, {"ok", "stream"}), answer
    assert "mistake of RAUTA's own" not in str(answer)
    if request["command"] == "drain" and "ok" in answer:
        shop.running.ask("undrain", backend=request["backend"])


@FAST
@given(line=st.binary(max_size=300).map(lambda data: data.replace(b"\n", b"") + b"\n"))
def test_any_bytes_are_refused(shop: Bench, line: bytes) -> None:
    refused(shop, line)


# ---- too much of it ---------------------------------------------------------------------------------------


def test_no_more_than_so_many_are_answered_at_a_time(shop: Bench) -> None:
    with ExitStack() as stack:
        for _ in range(control.MOST_AT_ONCE):
            sock = stack.enter_context(opened(shop))
            sock.sendall(b'{"command": "watch", "interval": 3600}\n')
            assert sock.recv(100)
        assert "it answers 32 commands already" in refused(shop, b'{"command": "metrics"}\n')
    eventually(lambda: "ok" in reply_to(shop, b'{"command": "metrics"}\n'), "room again", SECONDS)


def test_who_does_not_read_keeps_nobody_waiting(shop: Bench) -> None:
    with opened(shop) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(b'{"command": "events"}\n')
        for _ in range(20):
            with shop.connected() as connection:
                assert connection.ask("/web").status == 200
        assert shop.running.ask("metrics")["packets_processed"]


def test_reading_a_full_table_keeps_nobody_waiting(shop: Bench) -> None:
    """What is asked meanwhile is answered first: the event loop does not wait for the table."""
    with Map.from_pin(pins.folder(instance_of(shop).name) / "router" / "flows") as flows:
        assert 8 * flows.max_entries == FLOWS
        fill(flows)
        answered: list[str] = []

        def read() -> None:
            answer = shop.running.ask("flows", top=10)
            assert sum(answer["states"].values()) == 8 * flows.max_entries
            assert answer["top"][0]["flows"] == 8
            answered.append("flows")

        reader = threading.Thread(target=read)
        reader.start()
        while reader.is_alive():
            shop.running.ask("metrics")
            answered.append("metrics")
        reader.join()
        flows.clear()
    assert answered.index("flows") > 0


def fill(flows: Map) -> None:
    """Every way of every set: eight connections of each client."""
    layout = flows.value_layout
    assert isinstance(layout, StructLayout)
    entry = {"server": 1, "client_port": 2, "server_port": 3}
    values = bytearray()
    for number in range(flows.max_entries):
        ways = [{"tuple": {"client": number + 1, **entry}, "state": 1}] * 8
        values += layout.pack({"tag": [1] * 8, "flow": ways})
    flows.write_array(bytes(values))


def test_several_streams_at_once_each_get_everything(shop: Bench) -> None:
    path = instance_of(shop).control
    with ExitStack() as stack:
        streams = [control.stream(path, "events", verdict="ROUTED_FIRST") for _ in range(3)]
        heard: list[list[Any]] = [[] for _ in streams]

        def listen(number: int) -> None:
            for item in streams[number]:
                heard[number].append(item)
                if len(heard[number]) >= 3:
                    streams[number].close()
                    return

        threads = [threading.Thread(target=listen, args=(number,)) for number in range(len(streams))]
        for thread in threads:
            thread.start()
            stack.callback(thread.join)

        def all_heard() -> bool:
            with shop.connected() as connection:
                connection.ask("/web")
            return all(len(one) >= 3 for one in heard)

        eventually(all_heard, "three events each", SECONDS)


def test_an_answer_of_many_pieces_is_whole(tmp_path: Path) -> None:
    """A list is written in pieces."""
    import asyncio

    items = [{"number": number, "text": "ä\n"} for number in range(5000)]

    async def many(_: Any) -> Any:
        return items

    async def converse() -> Any:
        server = await control.serve(tmp_path / "socket", {"many": many, "none": empty})
        try:
            whole = await asyncio.to_thread(control.ask, tmp_path / "socket", "many")
            nothing = await asyncio.to_thread(control.ask, tmp_path / "socket", "none")
        finally:
            await server.close()
        return whole, nothing

    async def empty(_: Any) -> Any:
        return []

    assert asyncio.run(converse()) == (items, [])


def test_a_mistake_in_a_command_is_an_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And in the log; the next command is answered."""
    import asyncio

    async def mistaken(_: Any) -> Any:
        return {}["nothing"]

    async def fine(_: Any) -> Any:
        return 7

    async def converse() -> Any:
        server = await control.serve(tmp_path / "socket", {"mistaken": mistaken, "fine": fine})
        try:
            with pytest.raises(RautaError, match=r"a mistake of RAUTA's own \(KeyError"):
                await asyncio.to_thread(control.ask, tmp_path / "socket", "mistaken")
            return await asyncio.to_thread(control.ask, tmp_path / "socket", "fine")
        finally:
            await server.close()

    assert asyncio.run(converse()) == 7
    assert "command failed" in caplog.text
