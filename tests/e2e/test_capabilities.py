"""`rauta run` by a user that is not root, with no more than the capabilities that docs/running.md names.

What root prepares for that user is prepared in a mount namespace of its own: the folder /run/rauta, in it a bpffs, and
ways to the interpreter and to this clone, which may be in somebody's home.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from e2e.bench import Bench, bench, eventually
from lab.contenders.service import START_SECONDS, RunningService
from lab.process import Process
from rauta.errors import RautaError
from rauta.processes import control
from rauta.processes.daemon import Daemon
from rauta.processes.service import Service

NOBODY = 65534
NAME = "unprivileged"
RUN = Path("/run/rauta")
ROOT = Path(__file__).parents[2]

PREPARE = f"""
set -e
mount -t tmpfs -o mode=0700,uid={NOBODY},gid={NOBODY} tmpfs {RUN}
for folder in {RUN}/{NAME} {RUN}/{NAME}/bpf; do mkdir $folder; chown {NOBODY}:{NOBODY} $folder; done
mount -t bpf -o mode=0700,uid={NOBODY},gid={NOBODY} bpf {RUN}/{NAME}/bpf
"""


def closed_folder(path: Path) -> Path | None:
    """The first folder on the way that only its owner may enter."""
    return next((one for one in reversed(path.parents) if not one.stat().st_mode & 0o001), None)


def preparation() -> str:
    """The script: what lies in closed folders is bound elsewhere, then these are hidden, then it is bound back."""
    script = PREPARE + "mount -t tmpfs tmpfs /tmp\n"
    paths = dict.fromkeys(path.resolve() for path in (Path(sys.base_prefix), Path(sys.prefix), ROOT))
    ways = [(path, closed) for path in paths if (closed := closed_folder(path)) is not None]
    for number, (path, _) in enumerate(ways):
        script += f"mkdir /tmp/way-{number}; mount --bind {path} /tmp/way-{number}\n"
    for closed in dict.fromkeys(closed for _, closed in ways):
        script += f"mount -t tmpfs -o mode=0755 tmpfs {closed}\n"
    for number, (path, _) in enumerate(ways):
        script += f"mkdir -p {path}; mount --bind /tmp/way-{number} {path}\n"
    return script + "echo prepared; exec sleep 600\n"


@dataclass
class Unprivileged:
    """The router's host, and the mount namespace in which the user nobody finds what he needs."""

    bench: Bench
    holder: Process
    process: Process | None = None

    @property
    def root(self) -> Path:
        """The namespace's root folder, as seen from here."""
        return Path(f"/proc/{self.holder.pid}/root")

    def argv(self, *capabilities: str) -> list[str]:
        """What starts the router with these, and none else."""
        names = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in capabilities)
        sets = [f"--{kind}-caps=-all,{names}" for kind in ("inh", "ambient")] + [f"--bounding-set=-all,{names}"]
        (host,) = self.bench.network.routers
        interfaces = [word for one in self.bench.network.interfaces(host) for word in ("-i", one)]
        user = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", *sets, "--no-new-privs"]
        python = ["env", f"PYTHONPATH={ROOT}", "PYTHONDONTWRITEBYTECODE=1", sys.executable, "-m", "rauta", "run"]
        options = ["-c", str(RUN / "rauta.yaml"), *interfaces, "--name", NAME, "--mode", "native", "--log", "json"]
        return ["nsenter", f"--mount=/proc/{self.holder.pid}/ns/mnt", *user, *python, *options]

    def start(self) -> None:
        """And wait until packets are its."""
        (host,) = self.bench.network.routers
        process = host.start(self.argv(*Daemon.needs), name=NAME)
        process.wait_ready(lambda: '"started"' in process.output(), START_SECONDS)
        self.process = process

    def be_removed_by_root(self) -> None:
        """Who may take away what is another user's."""
        (host,) = self.bench.network.routers
        assert self.process is not None
        self.process.stop()
        python = ["env", f"PYTHONPATH={ROOT}", "PYTHONDONTWRITEBYTECODE=1", sys.executable, "-m", "rauta", "down"]
        argv = ["nsenter", f"--mount=/proc/{self.holder.pid}/ns/mnt", *python, "--name", NAME]
        assert "1 programs taken off" in host.run(argv, timeout=START_SECONDS).stdout
        assert not (self.root / RUN.relative_to("/") / NAME).exists()

    def ask(self, command: str, **arguments: str) -> object:
        """Of rautactl's commands."""
        return control.ask(self.root / RUN.relative_to("/") / NAME / "control.sock", command, **arguments)


@pytest.fixture
def unprivileged(tmp_path: Path) -> Iterator[Unprivileged]:
    with bench("rauta-run", tmp_path) as one:
        assert isinstance(one.running, RunningService)
        one.running.routers[0].remove()
        (host,) = one.network.routers
        holder = host.start(["unshare", "--mount", "sh", "-c", preparation()], name="holder")
        holder.wait_ready(lambda: "prepared" in holder.output(), START_SECONDS)
        found = Unprivileged(one, holder)
        folder = found.root / RUN.relative_to("/")
        content = json.loads(one.running.file.read_text())
        shutil.copy(content["secrets"]["file"], folder / "secrets.yaml")
        content["secrets"]["file"] = str(RUN / "secrets.yaml")
        (folder / "rauta.yaml").write_text(json.dumps(content))
        for name in ("secrets.yaml", "rauta.yaml"):
            os.chown(folder / name, NOBODY, NOBODY)
        yield found


def test_a_user_with_capabilities_routes_reloads_and_takes_over(unprivileged: Unprivileged) -> None:
    unprivileged.start()
    process = unprivileged.process
    assert process is not None
    text = Path(f"/proc/{process.pid}/status").read_text()
    lines = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    assert lines["Uid"].split() == [str(NOBODY)] * 4
    assert bin(int(lines["CapEff"], 16)).count("1") == len(Daemon.needs)
    with unprivileged.bench.connected() as conversation:
        assert conversation.ask("/web").status == 200
        assert unprivileged.ask("reload") == {"generation": 1}
        assert unprivileged.ask("drain", backend="web-1") == {"drained": ["web-1"]}
        assert unprivileged.ask("undrain", backend="web-1") == {"drained": []}
        assert conversation.ask("/web").status == 200
        os.kill(process.pid, 9)
        eventually(lambda: process.poll() is not None, "it to be gone")
        assert conversation.ask("/web").status == 200
        unprivileged.start()
        assert conversation.ask("/web").status == 200
    status = unprivileged.ask("status")
    assert isinstance(status, dict)
    assert status["generation"] == 1
    with unprivileged.bench.connected() as conversation:
        assert conversation.ask("/api").status == 200
    unprivileged.be_removed_by_root()


def test_a_capability_that_is_missing_is_named_before_anything_is_done(unprivileged: Unprivileged) -> None:
    (host,) = unprivileged.bench.network.routers
    for name in Daemon.needs:
        others = [one for one in Daemon.needs if one != name]
        if name in ("CAP_BPF", "CAP_PERFMON"):  # a part of SYS_ADMIN's
            others.remove("CAP_SYS_ADMIN")
        done = host.run(unprivileged.argv(*others), timeout=START_SECONDS, check=False)
        assert done.returncode == 2
        assert f"this process does not have {name}" in done.stderr
    assert not (unprivileged.root / RUN.relative_to("/") / NAME / "lock").exists()
    with pytest.raises(RautaError, match="no router listens there"):
        unprivileged.ask("status")


def test_routers_need_what_every_service_does_and_raw_sockets() -> None:
    assert set(Daemon.needs) == {*Service.needs, "CAP_NET_RAW"}


def test_what_the_units_leave_to_root_suffices(tmp_path: Path) -> None:
    units = ROOT / "deploy/systemd"
    with bench("rauta-run", tmp_path) as one:
        service = one.running
        assert isinstance(service, RunningService)
        parts = {"rauta.service": service.routers, "rauta-agent@.service": list(service.agents.values())}
        for unit, running in parts.items():
            (line,) = (t for t in (units / unit).read_text().splitlines() if t.startswith("CapabilityBoundingSet="))
            names = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in line.partition("=")[2].split())
            for part in running:
                part.kill()
                part.argv = ["setpriv", f"--bounding-set=-all,{names}", "--no-new-privs", *part.argv]
                part.start()
        with one.connected() as conversation:
            for path in ("/web", "/api", "/web"):
                assert conversation.ask(path).status == 200
        assert service.reload(service.config) == 1
        assert service.ask("drain", backend="web-2") == {"drained": ["web-2"]}
        with one.connected() as conversation:
            assert conversation.ask("/web").headers["x-backend"] == "web-1"


def test_the_service_manager_is_told_what_goes_on(tmp_path: Path) -> None:
    address = tmp_path / "notify.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(START_SECONDS)
        with bench("rauta-run", tmp_path) as one:
            service = one.running
            assert isinstance(service, RunningService)
            (router,) = service.routers
            router.kill()
            router.argv = ["env", f"NOTIFY_SOCKET={address}", *router.argv]
            router.start()
            assert manager.recv(100) == b"READY=1"
            service.ask("reload")
            assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=[0-9]+", manager.recv(100))
            assert manager.recv(100) == b"READY=1"
            router.stop()
            assert manager.recv(100) == b"STOPPING=1"
