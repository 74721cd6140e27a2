"""Clients and servers that know nothing of moves: each kind of client alternates between routes on connections that it
keeps, to servers of all kinds, and what it is told is what it asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from string import Template

import aiohttp
import pytest

from e2e.bench import HOST, SECONDS, Bench
from lab.clients import Answer, http_client
from lab.topology import Host

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root")

LONG = bool(os.environ.get("RAUTA_LONG"))
"""`make test-long`: with the client that takes longest to install, too"""
PORT = 8080
"""of the servers"""
POOL_PORT = 9080
"""of a proxy on the client's host"""
TURNS = 40
PATHS = ["/web", "/api/x"] * (TURNS // 2)
WRK_SECONDS = 2
GRACE = 10.0


def cluster_of(path: str) -> str:
    return path.split("/")[1]


def is_of(routed: Bench, backend: str, path: str) -> bool:
    """Whether a backend is one that the path's route names."""
    return backend in routed.network.clusters[cluster_of(path)]


def moved_on_one_connection(routed: Bench, turns: int = TURNS) -> Callable[[], None]:
    """To be called at the end: all of so many alternating requests have gone over one connection."""
    grown = routed.growth()

    def check() -> None:
        assert (grown["ROUTED_FIRST"], grown["ROUTED_MOVED"]) == (1, turns - 1), grown
        assert (grown["AGENT_ADOPTED"], grown["requests_routed"]) == (turns - 1, turns), grown

    return check


# ---- clients --------------------------------------------------------------------------------------------


def test_curl_alternates_on_one_connection(routed: Bench) -> None:
    address, port = routed.vip("shop")
    check = moved_on_one_connection(routed)
    urls = "".join(f'url = "http://{HOST}{path}"\noutput = "/dev/null"\n' for path in PATHS)
    argv = ["curl", "-sS", "--max-time", f"{SECONDS:g}", "--connect-to", f"::{address}:{port}", "--config", "-"]
    said = routed.client.run(
        [*argv, "-w", "%{http_code} %{num_connects} %header{x-backend}\n"], timeout=2 * SECONDS, input=urls
    ).stdout
    answers = [line.split() for line in said.splitlines()]
    assert [status for status, _, _ in answers] == ["200"] * TURNS
    assert [connects for _, connects, _ in answers] == ["1"] + ["0"] * (TURNS - 1)
    assert all(is_of(routed, backend, path) for (_, _, backend), path in zip(answers, PATHS, strict=True))
    check()


def test_curl_uploads_here_and_downloads_there(routed: Bench, tmp_path: Path) -> None:
    """With --next, each with options of its own: 100-continue before a body, then a HEAD, then a large answer."""
    address, port = routed.vip("shop")
    upload, down = tmp_path / "upload", tmp_path / "down"
    upload.write_bytes(bytes(2_000_000))
    common = ["-sS", "--max-time", f"{SECONDS:g}", "--connect-to", f"::{address}:{port}"]
    common += ["-w", "%{http_code} %{num_connects} %header{x-backend} %header{x-received}\n", "-o"]
    check = moved_on_one_connection(routed, 4)
    said = routed.client.run(
        [
            *("curl", *common, "/dev/null", "-H", "Expect: 100-continue", "-T", str(upload), f"http://{HOST}/web/up"),
            *("--next", *common, str(down), f"http://{HOST}/api/download"),
            *("--next", *common, "/dev/null", "-I", f"http://{HOST}/web"),
            *("--next", *common, "/dev/null", "--data-binary", f"@{upload}", f"http://{HOST}/api/form"),
        ],
        timeout=2 * SECONDS,
    ).stdout.splitlines()
    assert [line.split()[:2] for line in said] == [["200", "1"], ["200", "0"], ["200", "0"], ["200", "0"]]
    assert [line.split()[3:] for line in said] == [["2000000"], [], [], ["2000000"]]
    assert down.stat().st_size == 5_000_000
    check()


def test_http_client_alternates_on_one_connection(routed: Bench) -> None:
    check = moved_on_one_connection(routed)
    with http_client.connected(routed.client, routed.to("shop", PATHS[0])) as connection:
        for path in PATHS:
            answer = connection.ask(routed.to("shop", path))
            assert answer.status == 200
            assert is_of(routed, answer.backend, path)
    check()


def test_aiohttp_alternates_on_connections_of_its_pool(routed: Bench) -> None:
    address, port = routed.vip("shop")
    connections = 4

    async def ask(session: aiohttp.ClientSession, path: str) -> None:
        data = b"x" * 3000 if cluster_of(path) == "web" else None
        method = "POST" if data else "GET"
        async with session.request(method, f"http://{address}:{port}{path}", headers={"Host": HOST}, data=data) as got:
            await got.read()
            assert got.status == 200
            assert is_of(routed, got.headers["x-backend"], path)
            assert got.headers.get("x-received") == (str(len(data)) if data else None)

    async def ask_all() -> None:
        limits = aiohttp.ClientTimeout(total=SECONDS)
        connector = aiohttp.TCPConnector(limit=connections)
        async with aiohttp.ClientSession(connector=connector, timeout=limits) as session:
            await asyncio.gather(*(ask(session, path) for path in PATHS * 5))

    grown = routed.growth()
    with routed.client.entered():
        asyncio.run(ask_all())
    assert grown["ROUTED_FIRST"] == connections, grown
    assert grown["requests_routed"] == 5 * TURNS, grown
    assert grown["ROUTED_MOVED"] > TURNS, grown


NODE_SCRIPT = """\
const dns = require("dns");
dns.lookup = (name, options, done) => options.all ? done(null, [{address: "ADDRESS", family: 4}])
                                                  : done(null, "ADDRESS", 4);
(async () => {
  const said = [];
  for (const path of PATHS) {
    const body = path.startsWith("/web") ? "x".repeat(3000) : undefined;
    const answer = await fetch("http://HOST:PORT" + path, {method: body ? "POST" : "GET", body});
    await answer.text();
    said.push([answer.status, answer.headers.get("x-backend"), answer.headers.get("x-received")]);
    await new Promise(done => setTimeout(done, 3)); // its connection is free a moment later
  }
  console.log(JSON.stringify(said));
  process.exit(0);
})();
"""


def test_nodes_fetch_alternates_on_one_connection(routed: Bench, tmp_path: Path) -> None:
    address, port = routed.vip("shop")
    script = tmp_path / "alternate.js"
    text = NODE_SCRIPT.replace("ADDRESS", str(address)).replace("HOST:PORT", f"{HOST}:{port}")
    script.write_text(text.replace("PATHS", json.dumps(PATHS)))
    check = moved_on_one_connection(routed)
    said = json.loads(routed.client.run(["node", str(script)], timeout=SECONDS + GRACE).stdout)
    assert [status for status, _, _ in said] == [200] * TURNS
    assert all(is_of(routed, backend, path) for (_, backend, _), path in zip(said, PATHS, strict=True))
    assert [received for _, _, received in said] == ["3000", None] * (TURNS // 2)
    check()


CHROMIUM = (
    *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--virtual-time-budget=20000", "--dump-dom"),
)
CHROMIUM_PAGE = """\
<body>asking<script>
(async () => {
  let answered = 0;
  for (const path of PATHS) {
    const answer = await fetch("http://HOST:PORT" + path + "?" + Math.random(), {mode: "no-cors"});
    if (answer.type === "opaque") answered++;
  }
  document.body.textContent = "answered " + answered;
})();
</script></body>
"""
CHROMIUM_SECONDS = 60.0


if LONG:

    def test_chromium_alternates_on_its_connections(routed: Bench, tmp_path: Path) -> None:
        """A page from elsewhere gets no answer's bytes to see, but the browser reads them; the counters say how."""
        address, port = routed.vip("shop")
        file = tmp_path / "page.html"
        file.write_text(CHROMIUM_PAGE.replace("HOST:PORT", f"{HOST}:{port}").replace("PATHS", json.dumps(PATHS)))
        grown = routed.growth()
        rules = f"--host-resolver-rules=MAP {HOST} {address}"
        argv = [*CHROMIUM, rules, f"--user-data-dir={tmp_path / 'profile'}", f"file://{file}"]
        said = routed.client.run(argv, timeout=CHROMIUM_SECONDS).stdout
        assert f"answered {TURNS}" in said, said
        assert grown["requests_routed"] >= TURNS, grown
        assert grown["ROUTED_MOVED"] >= TURNS - 4, grown
        assert (grown["TX_RESET_UNMOVED"], grown["AGENT_UNMOVABLE"]) == (0, 0), grown


WRK_SCRIPT = """\
local turn, threads = 0, {}
wrong, heard = 0, 0
function setup(thread)
  if #threads == 0 then thread:set("heard", 1) end -- wrk tries the first thread's request(), and sends nothing
  table.insert(threads, thread)
end
function request()
  turn = turn + 1
  return wrk.format("GET", turn % 2 == 1 and "/web" or "/api/x")
end
function response(status, headers, body)
  heard = heard + 1
  local expected = heard % 2 == 1 and "^web%-" or "^api%-"
  local backend
  for name, value in pairs(headers) do
    if name:lower() == "x-backend" then backend = value end
  end
  if status ~= 200 or not backend or not backend:find(expected) then wrong = wrong + 1 end
end
function done(summary, latency, requests)
  local total = 0
  for _, thread in ipairs(threads) do total = total + thread:get("wrong") end
  io.write(string.format("asked %d wrong %d\\n", summary.requests, total))
end
"""


def test_wrk_alternates_as_fast_as_it_can(routed: Bench, tmp_path: Path) -> None:
    """A connection to a thread, so that answers come in the order of the requests."""
    address, port = routed.vip("shop")
    script = tmp_path / "alternate.lua"
    script.write_text(WRK_SCRIPT)
    grown = routed.growth()
    argv = ["wrk", "-t4", "-c4", f"-d{WRK_SECONDS}s", "-s", str(script), "-H", f"Host: {HOST}"]
    said = routed.client.run([*argv, f"http://{address}:{port}/web"], timeout=WRK_SECONDS + GRACE).stdout
    assert not re.search("Socket errors|Non-2xx", said), said
    asked, wrong = map(int, re.findall(r"^asked (\d+) wrong (\d+)", said, re.MULTILINE)[0])
    assert wrong == 0, said
    assert asked > 100, said
    assert grown["ROUTED_MOVED"] > asked - 10, (grown, said)
    print(f"{asked} requests, {grown['ROUTED_MOVED']} moves")


# ---- proxies as clients ---------------------------------------------------------------------------------

NGINX_POOL = Template("""\
daemon off;
user root;
worker_processes 1;
pid $scratch/pool.pid;
error_log stderr warn;
events { worker_connections 1024; }
http {
    access_log off;
    client_body_temp_path $scratch/bodies;
    proxy_temp_path $scratch/proxied;
    fastcgi_temp_path $scratch/fastcgi;
    uwsgi_temp_path $scratch/uwsgi;
    scgi_temp_path $scratch/scgi;
    upstream routed { server $address:$port; keepalive 4; }
    server {
        listen $own:$pool_port;
        location / {
            proxy_pass http://routed;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_next_upstream off;
        }
    }
}
""")

HAPROXY_POOL = Template("""\
global
    maxconn 1000
    nbthread 1
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    retries 0
    http-reuse always
frontend own
    bind $own:$pool_port
    default_backend routed
backend routed
    server routed $address:$port
""")


def start_nginx_pool(host: Host, scratch: Path, names: dict[str, object]) -> list[str]:
    file = scratch / "pool.conf"
    file.write_text(NGINX_POOL.substitute(names, scratch=scratch))
    return ["nginx", "-p", str(scratch), "-c", str(file), "-e", "stderr"]


def start_haproxy_pool(host: Host, scratch: Path, names: dict[str, object]) -> list[str]:
    file = scratch / "pool.cfg"
    file.write_text(HAPROXY_POOL.substitute(names))
    return ["haproxy", "-db", "-f", str(file)]


@contextlib.contextmanager
def pooling(routed: Bench, kind: str, scratch: Path) -> Iterator[None]:
    """A proxy on the client's host, whose upstream is the VIP."""
    address, port = routed.vip("shop")
    names: dict[str, object] = {"address": address, "port": port, "host": HOST}
    names |= {"own": routed.client.address, "pool_port": POOL_PORT}
    argv = {"nginx": start_nginx_pool, "haproxy": start_haproxy_pool}[kind](routed.client, scratch, names)
    process = routed.client.start(argv, name=f"{kind}-pool", ready=lambda: accepts(routed.client, POOL_PORT))
    try:
        yield
    finally:
        process.stop()


def accepts(host: Host, port: int) -> bool:
    try:
        socket.create_connection((str(host.address), port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("kind", ["nginx", "haproxy"])
def test_a_proxys_pool_alternates(routed: Bench, tmp_path: Path, kind: str) -> None:
    """Requests of several clients take turns on its connections."""
    grown = routed.growth()
    with pooling(routed, kind, tmp_path), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(routed.connected((routed.client.address, POOL_PORT))) for _ in range(3)]
        for turn, path in enumerate(PATHS):
            body = b"y" * 5000 if turn % 3 == 0 else b""
            answer = clients[turn % 3].ask(path, method="POST" if body else "GET", body=body)
            assert answer.status == 200
            assert is_of(routed, answer.backend, path)
            assert answer.headers.get("x-received") == (str(len(body)) if body else None)
    assert grown["requests_routed"] == TURNS, grown
    assert grown["ROUTED_MOVED"] > TURNS / 2, grown
    assert grown["ROUTED_FIRST"] <= 3, grown


# ---- servers --------------------------------------------------------------------------------------------

UVICORN_APPLICATION = """\
import os


async def application(scope, receive, send):
    assert scope["type"] == "http"
    length, more = 0, True
    while more:
        message = await receive()
        length += len(message.get("body", b""))
        more = message.get("more_body", False)
    body = os.environ["NAME"].encode()
    sizes = {b"x-received": length, b"content-length": len(body)}
    headers = [(b"x-backend", body), *((name, str(size).encode()) for name, size in sizes.items())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""

HAPROXY_SERVER = Template("""\
global
    maxconn 1000
    nbthread 1
defaults
    mode http
    timeout client 60s
    timeout http-keep-alive 60s
frontend own
    bind $address:$port
    option http-buffer-request
    http-request return status 200 content-type text/plain hdr X-Backend $name string $name
""")


def uvicorn(host: Host, scratch: Path, loop: str) -> list[str]:
    (scratch / "signing_application.py").write_text(UVICORN_APPLICATION)
    argv = [
        sys.executable,
        "-m",
        "uvicorn",
        "--app-dir",
        str(scratch),
        "--host",
        str(host.address),
        "--port",
        str(PORT),
    ]
    argv += ["--http", loop, "--log-level", "warning", "--no-access-log", "signing_application:application"]
    return ["env", f"NAME={host.name}", *argv]


def haproxy(host: Host, scratch: Path) -> list[str]:
    file = scratch / "haproxy.cfg"
    file.write_text(HAPROXY_SERVER.substitute(address=host.address, port=PORT, name=host.name))
    return ["haproxy", "-db", "-f", str(file)]


def http_server(host: Host, scratch: Path) -> list[str]:
    """It serves a folder; what it serves is its name."""
    (scratch / "api").mkdir()
    (scratch / "api" / "x").write_text(host.name)
    argv = [sys.executable, "-m", "http.server", "--protocol", "HTTP/1.1", "--bind", str(host.address)]
    return [*argv, "--directory", str(scratch), str(PORT)]


SERVERS: dict[str, Callable[[Host, Path], list[str]]] = {
    "uvicorn with h11": lambda host, scratch: uvicorn(host, scratch, "h11"),
    "uvicorn with httptools": lambda host, scratch: uvicorn(host, scratch, "httptools"),
    "haproxy": haproxy,
    "http.server": http_server,
}


@pytest.fixture(params=SERVERS)
def served(routed: Bench, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """Another server than nginx on the cluster `api`: which."""
    (host,) = routed.network.servers("api")
    host.stop_all()
    argv = SERVERS[request.param](host, tmp_path)
    host.start(argv, name=re.sub(r"\W+", "-", request.param), ready=lambda: accepts(host, PORT))
    yield request.param
    host.stop_all()
    routed.restart_server("api")


def named(answer: Answer) -> str:
    """Who has answered, by a header or else by the body."""
    return answer.backend or answer.body.decode()


def test_connections_move_to_and_from_servers_of_all_kinds(routed: Bench, served: str) -> None:
    check = moved_on_one_connection(routed)
    with routed.connected() as connection:
        for path in PATHS:
            answer = connection.ask(path)
            assert answer.status == 200
            assert is_of(routed, named(answer), path)
        port = connection.port
    check()
    for backend in ("api-1", *routed.network.clusters["web"]):
        routed.wait_until_gone(backend, port)


def test_and_so_do_those_with_heads_and_bodies(routed: Bench, served: str) -> None:
    """http.server has no POST: its 501 ends the connection, as an ordinary close."""
    if served == "http.server":
        with routed.connected() as connection:
            assert connection.ask("/web").status == 200
            assert connection.ask("/api/x", method="POST", body=b"x").status == 501
            assert connection.ended()
        return
    check = moved_on_one_connection(routed)
    with routed.connected() as connection:
        for turn, path in enumerate(PATHS):
            method, body = [("HEAD", b""), ("POST", b"z" * 10_000), ("PUT", b"z")][turn // 2 % 3]
            answer = connection.ask(path, method=method, body=body)
            assert answer.status == 200
            assert is_of(routed, answer.backend, path)
    check()


def test_a_servers_own_end_of_an_idle_connection_is_an_ordinary_close(routed: Bench, tmp_path: Path) -> None:
    """uvicorn's, after a second without a request: the server to which the connection has moved ends it."""
    (host,) = routed.network.servers("api")
    host.stop_all()
    host.start(
        [*uvicorn(host, tmp_path, "h11"), "--timeout-keep-alive", "1"],
        name="uvicorn-idle",
        ready=lambda: accepts(host, PORT),
    )
    try:
        with routed.connected() as connection:
            for path in PATHS[:6]:
                assert is_of(routed, connection.ask(path).backend, path)
            assert connection.ended()
    finally:
        host.stop_all()
        routed.restart_server("api")
