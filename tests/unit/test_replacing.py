"""Programs on interfaces change hands: a later process adopts what an earlier one attached, or replaces it. Needs root.

Where nothing depends on it, the earlier process is this one.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from rauta.bpf import (
    AttachError,
    BpfObject,
    Program,
    TcAttachment,
    XdpAttachment,
    attach_tc,
    attach_xdp,
    attached_xdp_id,
    tc,
)

REPLACEMENTS = 100
BURST = 16  # packets on their way at once, so that no queue overflows
PATIENCE = 5.0  # seconds until a packet counts as lost
GONE = 999999999  # the id of no program


@pytest.fixture
def versions(compiled: Callable[[str], Path]) -> Iterator[tuple[BpfObject, BpfObject]]:
    """The same object twice, as before and after an upgrade: each has its own counters."""
    with BpfObject.open(compiled("sample")) as old, BpfObject.open(compiled("sample")) as new:
        old.load()
        new.load()
        yield old, new


@pytest.fixture(autouse=True)
def nobody_uses_clsact_afterwards() -> Iterator[None]:
    """Tests before may have left some of it to namespaces that are gone, whose numbers others have now."""
    tc._clsacts.clear()
    yield
    assert not tc._clsacts


def clsact(interface: str = "rt0") -> bool:
    shown = subprocess.run(["tc", "qdisc", "show", "dev", interface], check=True, capture_output=True, text=True)
    return "clsact" in shown.stdout


def in_a_process_that_is_killed(script: str, *arguments: object) -> str:
    """What a script printed, in this thread's network namespace, before it killed itself with SIGKILL."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    whole = f"import os, sys\n{script}\nsys.stdout.flush()\nos.kill(os.getpid(), 9)\n"
    command = [sys.executable, "-c", whole, *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == -9, done.stderr
    return done.stdout


# ---- XDP -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_a_new_xdp_program_takes_the_place_of_the_old_one(
    versions: tuple[BpfObject, BpfObject], veth: tuple[int, int], mode: Literal["native", "generic"]
) -> None:
    old, new = (version.programs["pass"] for version in versions)
    earlier = attach_xdp(veth[0], old, mode)
    later = attach_xdp(veth[0], new, "best-effort", replace=old.id)
    assert (later.mode, attached_xdp_id(veth[0])) == (mode, new.id)
    assert earlier.detach() is False
    assert attached_xdp_id(veth[0]) == new.id
    assert later.detach() is True
    assert attached_xdp_id(veth[0]) is None


def test_another_xdp_program_than_the_named_one_stays(
    versions: tuple[BpfObject, BpfObject], veth: tuple[int, int]
) -> None:
    old, new = versions
    foreign = old.programs["pass"]
    with pytest.raises(AttachError, match="no program is attached there"):
        attach_xdp(veth[0], new.programs["pass"], "native", replace=foreign)
    with attach_xdp(veth[0], foreign, "native"):
        for named in (old.programs["grow"], GONE):
            with pytest.raises(AttachError, match=rf"program id {foreign.id} \(pass\) is attached there"):
                attach_xdp(veth[0], new.programs["pass"], "native", replace=named)
        with pytest.raises(AttachError, match="it is attached in native mode"):
            attach_xdp(veth[0], new.programs["pass"], "generic", replace=foreign)
        assert attached_xdp_id(veth[0]) == foreign.id
    assert attached_xdp_id(veth[0]) is None


def test_what_a_killed_process_attached_is_adopted(compiled: Callable[[str], Path], veth: tuple[int, int]) -> None:
    script = """
from rauta.bpf import BpfObject, attach_tc, attach_xdp
sample = BpfObject.open(sys.argv[1])
sample.load()
xdp = attach_xdp(int(sys.argv[2]), sample.programs["pass"], "generic")
tc = [attach_tc(int(sys.argv[2]), sample.programs["accept"], way) for way in ("ingress", "egress")]
print(xdp.program_id, tc[0].program_id, int(tc[1].made_clsact))
"""
    xdp_id, tc_id, made = map(int, in_a_process_that_is_killed(script, compiled("sample"), veth[0]).split())
    xdp = XdpAttachment.adopt(veth[0], xdp_id)
    assert (xdp.mode, xdp.program_id, made) == ("generic", xdp_id, 1)
    ingress = TcAttachment.adopt(veth[0], tc_id, "ingress", made_clsact=bool(made))
    egress = TcAttachment.adopt(veth[0], tc_id, "egress", made_clsact=bool(made))
    assert xdp.detach() is True
    assert attached_xdp_id(veth[0]) is None
    assert ingress.detach() is True
    assert clsact()
    assert egress.made_clsact
    assert egress.detach() is True
    assert not clsact()
    assert not egress.made_clsact


def test_what_is_not_there_is_not_adopted(versions: tuple[BpfObject, BpfObject], veth: tuple[int, int]) -> None:
    old, _ = versions
    with pytest.raises(AttachError, match=rf"adopting XDP program id {GONE} .*: no program is attached there"):
        XdpAttachment.adopt(veth[0], GONE)
    with pytest.raises(AttachError, match=r"adopting tc program id \d+ \(accept\) .*: no program is attached there"):
        TcAttachment.adopt(veth[0], old.programs["accept"], "ingress", made_clsact=True)
    with attach_tc(veth[0], old.programs["remark"], "ingress"):
        with pytest.raises(AttachError, match=r"program id \d+ \(remark\) is attached there"):
            TcAttachment.adopt(veth[0], old.programs["accept"], "ingress", made_clsact=True)
        with pytest.raises(AttachError, match="no program is attached there"):
            TcAttachment.adopt(veth[0], old.programs["remark"], "egress", made_clsact=True)
    assert not clsact()


# ---- tc --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", ["program", "id", "name"])
def test_a_new_tc_program_takes_the_place_of_the_old_one(
    versions: tuple[BpfObject, BpfObject], veth: tuple[int, int], named: str
) -> None:
    old, new = (version.programs["accept"] for version in versions)
    earlier = attach_tc(veth[0], old, "egress", priority=3, handle=5)
    replace: dict[str, Program | int | bool] = {"program": old, "id": old.id, "name": True}
    later = attach_tc(veth[0], new, "egress", priority=3, handle=5, replace=replace[named])
    adopted = TcAttachment.adopt(veth[0], new, "egress", 3, 5, made_clsact=False)
    assert adopted.made_clsact
    assert earlier.detach() is False
    assert later.detach() is True
    assert clsact()
    assert adopted.detach() is False
    assert not clsact()


def test_another_tc_program_than_the_named_one_stays(
    versions: tuple[BpfObject, BpfObject], veth: tuple[int, int]
) -> None:
    old, new = versions
    accept, remark = new.programs["accept"], old.programs["remark"]
    nothing: tuple[Any, ...] = (True, remark, GONE)
    for replace in nothing:
        with pytest.raises(AttachError, match="no program is attached there"):
            attach_tc(veth[0], accept, "ingress", replace=replace)
    assert not clsact()
    with attach_tc(veth[0], remark, "ingress"):
        for replace in (True, old.programs["accept"], GONE):
            with pytest.raises(AttachError, match=rf"program id {remark.id} \(remark\) is attached there"):
                attach_tc(veth[0], accept, "ingress", replace=replace)
        with pytest.raises(AttachError, match="no program is attached there"):
            attach_tc(veth[0], new.programs["remark"], "ingress", priority=2, replace=True)
    assert not clsact()


@pytest.mark.parametrize("made", [True, False])
def test_clsact_goes_with_the_last_replacement_if_it_was_ours(
    compiled: Callable[[str], Path], versions: tuple[BpfObject, BpfObject], veth: tuple[int, int], made: bool
) -> None:
    if not made:
        subprocess.run(["tc", "qdisc", "add", "dev", "rt0", "clsact"], check=True)
    script = """
from rauta.bpf import BpfObject, attach_tc
sample = BpfObject.open(sys.argv[1])
sample.load()
print(int(attach_tc(int(sys.argv[2]), sample.programs["accept"], "ingress").made_clsact))
"""
    said = bool(int(in_a_process_that_is_killed(script, compiled("sample"), veth[0])))
    assert said is made
    later = attach_tc(veth[0], versions[1].programs["accept"], "ingress", replace=True, made_clsact=said)
    assert later.made_clsact is made
    assert later.detach() is True
    assert clsact() is not made


# ---- without a gap ---------------------------------------------------------------------------------------


class Client:
    """Sends UDP over rt1 to rt0, without a pause, and says whether each packet was counted by then."""

    def __init__(self, counted: Callable[[], int]) -> None:
        shown = subprocess.run(["ip", "-br", "link", "show", "rt0"], check=True, capture_output=True, text=True)
        lladdr = next(word for word in shown.stdout.split() if word.count(":") == 5)
        for command in (
            ["ip", "address", "add", "198.18.0.1/30", "dev", "rt1"],
            ["ip", "neigh", "add", "198.18.0.2", "lladdr", lladdr, "dev", "rt1", "nud", "permanent"],
        ):
            subprocess.run(command, check=True)
        self.sent, self.lost = 0, 0
        self._counted = counted
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._send)

    def __enter__(self) -> Client:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._socket.close()

    def await_more(self, packets: int = 3 * BURST) -> None:
        """Until that many more are sent and none of those before is lost."""
        wanted = self.sent + packets
        while self.sent < wanted and not self.lost:
            time.sleep(0)

    def _send(self) -> None:
        while not self._ended.is_set() and not self.lost:
            for _ in range(BURST):
                self._socket.sendto(b"one of many", ("198.18.0.2", 9))
                self.sent += 1
            deadline = time.monotonic() + PATIENCE
            while self._counted() < self.sent and time.monotonic() < deadline:
                pass
            self.lost = self.sent - self._counted()


def test_no_packet_misses_both_xdp_programs(versions: tuple[BpfObject, BpfObject], veth: tuple[int, int]) -> None:
    programs = [version.programs["count_and_drop"] for version in versions]
    counters = [version.maps["counters"] for version in versions]
    present = attach_xdp(veth[0], programs[0], "native")
    with Client(lambda: sum(counter.sum(0) for counter in counters)) as client:
        for turn in range(REPLACEMENTS):
            client.await_more()
            present = attach_xdp(veth[0], programs[(turn + 1) % 2], "best-effort", replace=present.program_id)
        client.await_more()
    assert client.lost == 0
    assert [counter.sum(0) > REPLACEMENTS for counter in counters] == [True, True]
    assert sum(counter.sum(0) for counter in counters) == client.sent > REPLACEMENTS * BURST
    assert present.detach() is True


@pytest.mark.parametrize(("end", "direction"), [(0, "ingress"), (1, "egress")])
def test_no_packet_misses_both_tc_programs(
    versions: tuple[BpfObject, BpfObject], veth: tuple[int, int], end: int, direction: Literal["ingress", "egress"]
) -> None:
    programs = [version.programs["count_and_accept"] for version in versions]
    counters = [version.maps["counters"] for version in versions]
    present = attach_tc(veth[end], programs[0], direction)
    with Client(lambda: sum(counter.sum(2) for counter in counters)) as client:
        for turn in range(REPLACEMENTS):
            client.await_more()
            earlier = present
            present = attach_tc(veth[end], programs[(turn + 1) % 2], direction, replace=earlier.program_id)
            assert earlier.detach() is False
        client.await_more()
    assert client.lost == 0
    assert [counter.sum(2) > REPLACEMENTS for counter in counters] == [True, True]
    assert sum(counter.sum(2) for counter in counters) == client.sent > REPLACEMENTS * BURST
    assert present.detach() is True
