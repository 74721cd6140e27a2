"""A hundred thousand moves over cables that lose, double and reorder frames: who has answered, and what was executed.

The client is wrk, for its speed: a connection to a thread, so that each answer is known to be the last request's. Every
request has a number of its own, and nginx writes down what it executes. (What answers say besides, and bodies, and what
comes later than a network brings it: test_moves_lossy.py.)

    RAUTA_MANY=n   so many requests, or some more
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.bench import HOST, Bench, bench
from lab.servers.nginx import LOG

FILE = Path(__file__).parent / "data" / "lossy-fast.yaml"
MANY = int(os.environ.get("RAUTA_MANY", 100_000))
CONNECTIONS = 96
SLICE_SECONDS = 8
"""wrk counts whole seconds, not requests: as many runs as it takes"""
SLOWEST = 1000
"""requests a second, at least: a retransmission takes 200 ms, and one in twenty requests waits for one"""
GRACE = 20.0
SCRIPT = """\
local threads, count = {}, 0
wrong, heard = 0, 0
function setup(thread)
  table.insert(threads, thread)
  thread:set("name", "SLICE-" .. #threads)
  if #threads == 1 then thread:set("heard", 1) end -- wrk tries the first thread's request(), and sends nothing
end
function request()
  count = count + 1
  return wrk.format("GET", (count % 2 == 1 and "/web/" or "/api/") .. name .. "-" .. count)
end
function response(status, headers, body)
  heard = heard + 1
  local expected, backend = heard % 2 == 1 and "web-1" or "api-1", nil
  for header, value in pairs(headers) do
    if header:lower() == "x-backend" then backend = value end
  end
  if status ~= 200 or backend ~= expected or #body ~= 100 then wrong = wrong + 1 end
end
function done(summary, latency, requests)
  local total = 0
  for _, thread in ipairs(threads) do total = total + thread:get("wrong") end
  io.write(string.format("asked %d wrong %d longest %d\\n", summary.requests, total, latency.max))
end
"""

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root"),
    pytest.mark.timeout(60 + 2 * MANY / SLOWEST),
]


@pytest.fixture(scope="module")
def lossy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench("rauta", tmp_path_factory.mktemp("logs"), FILE) as one:
        yield one


def executed(lossy: Bench) -> Counter[str]:
    """What the servers have executed, by method and path, and how often."""
    logs = list(lossy.network.run.scratch.glob(f"*/{LOG}"))
    assert len(logs) == 2
    return Counter(line.partition(" ")[2] for log in logs for line in log.read_text().splitlines())


def test_none_is_answered_by_the_wrong_backend_and_none_executed_twice(lossy: Bench, tmp_path: Path) -> None:
    address, port = lossy.vip("shop")
    grown = lossy.growth()
    asked = longest = slices = 0
    while asked < MANY:
        slices += 1
        script = tmp_path / "many.lua"
        script.write_text(SCRIPT.replace("SLICE", str(slices)))
        argv = ["wrk", f"-t{CONNECTIONS}", f"-c{CONNECTIONS}", f"-d{SLICE_SECONDS}s", "-s", str(script)]
        argv += ["-H", f"Host: {HOST}", f"http://{address}:{port}/web/0"]
        said = lossy.client.run(argv, timeout=SLICE_SECONDS + GRACE).stdout
        errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+)", said)
        assert errors is None or errors.groups() == ("0", "0", "0"), said
        more, wrong, slowest = map(int, re.findall(r"^asked (\d+) wrong (\d+) longest (\d+)", said, re.MULTILINE)[0])
        assert wrong == 0, said
        asked, longest = asked + more, max(longest, slowest)
    done = executed(lossy)
    lost = sum(faults.counters()["lost"] for faults in lossy.network.faults.values())
    print(
        f"{asked} requests, {grown['ROUTED_MOVED']} moves, {lost} frames lost, slowest {longest / 1e6:.1f} s; {grown}"
    )
    assert not [what for what, times in done.items() if times > 1]
    assert asked <= done.total() <= asked + slices * CONNECTIONS  # the last of each connection has no answer in time
    assert grown["ROUTED_MOVED"] > 0.95 * asked, grown
    assert lost > asked / 50
