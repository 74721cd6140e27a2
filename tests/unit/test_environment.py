"""What is noted of a machine, and what of it keeps figures from being compared."""

from __future__ import annotations

import copy
import inspect
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from lab import comparable, environment
from lab.errors import NotComparable

FIELDS = {
    "kernel": {"release", "version", "machine"},
    "cpu": {"model", "online", "smt", "hypervisor", "governor"},
    "clock": {"MHz", "source", "tsc"},
    "memory": {"total"},
    "bpf": {"jit", "jit_harden", "stats", "libbpf"},
    "sysctls": {name.replace("/", ".") for name in environment.SYSCTLS},
    "tools": set(environment.TOOLS),
    "libraries": set(environment.LIBRARIES),
    "git": {"revision", "dirty"},
}
OFFLOADS_ON = dict.fromkeys(environment.OFFLOADS, "on")
INTERFACE = {"kind": "veth", "mtu": 1500, "queues": {"rx": 2, "tx": 2}, "xdp": "none", "offloads": OFFLOADS_ON}


@pytest.fixture(scope="module")
def here() -> dict[str, Any]:
    return environment.collect()


# ---- what is noted ----------------------------------------------------------------------------------------------


def test_every_documented_field_is_there_and_no_other(here: dict[str, Any]) -> None:
    documented = inspect.getdoc(environment.collect)
    assert documented is not None
    named = re.search(r"Fields: ([a-z, \n]+)\.", documented)
    assert named is not None
    assert here.keys() == set(re.split(r",\s+", named[1]))
    assert {name: set(here[name]) for name in FIELDS} == FIELDS


def test_it_survives_json(here: dict[str, Any]) -> None:
    assert json.loads(json.dumps(here, allow_nan=False)) == here


def test_it_is_this_machine(here: dict[str, Any]) -> None:
    assert here["kernel"]["release"] == platform.release()
    assert here["cpu"]["online"] == os.cpu_count()
    assert here["libraries"]["numpy"] == metadata.version("numpy")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=environment.REPOSITORY, capture_output=True, text=True)
    if head.returncode == 0:
        assert here["git"]["revision"] == head.stdout.strip()
    assert re.fullmatch(r"\d+ kB", here["memory"]["total"])


def test_the_values_of_sysctls_are_the_kernels(here: dict[str, Any]) -> None:
    for name in ("net.ipv4.tcp_congestion_control", "net.ipv4.tcp_syncookies"):
        assert here["sysctls"][name] == (Path("/proc/sys") / name.replace(".", "/")).read_text().strip()


def test_tools_say_their_versions(here: dict[str, Any]) -> None:
    assert here["tools"]["clang"].startswith("19.")
    assert "unknown" not in here["tools"].values()
    assert re.fullmatch(r"v?\d+\.\d+.*", here["bpf"]["libbpf"])


def test_what_cannot_be_told_is_unknown_and_no_error() -> None:
    """A machine without tools, git, or most of /proc and /sys: a bare root with nothing but Python in it."""
    code = """
import json, os, pathlib
os.environ["PATH"] = "/nowhere"
real = pathlib.Path.read_text
def read_text(self, *args, **kwargs):
    if str(self).startswith(("/proc", "/sys")):
        raise PermissionError(13, "not for you", str(self))
    return real(self, *args, **kwargs)
pathlib.Path.read_text = read_text
from lab import environment
environment.LIBRARIES = (*environment.LIBRARIES, "no-such-library")
print(json.dumps(environment.collect()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=environment.REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {found["cpu"][name] for name in ("model", "governor", "smt", "hypervisor")} == {"unknown"}
    assert set(found["sysctls"].values()) == {"unknown"}
    assert found["memory"]["total"] == "unknown"
    assert found["git"] == {"revision": "unknown", "dirty": None}
    assert found["tools"]["nginx"] == "missing"
    assert found["libraries"]["no-such-library"] == "missing"


def test_a_path_of_this_repository_is_portable() -> None:
    assert (
        environment.portable(str(environment.REPOSITORY / "scenarios/quickstart.yaml")) == "scenarios/quickstart.yaml"
    )
    assert environment.portable("/etc/hosts") == "/etc/hosts"


# ---- what keeps figures from being compared -------------------------------------------------------------------------


def changed(environment: Mapping[str, Any], path: str, value: object) -> dict[str, Any]:
    """A copy with another value at a dotted path; a name with dots is the last step."""
    found = copy.deepcopy(dict(environment))
    first, _, rest = path.partition(".")
    found[first][rest] = value
    return found


def run(environment: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {"id": name, "environment": environment}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("kernel.release", "6.12.0"),
        ("cpu.model", "another"),
        ("cpu.online", 96),
        ("cpu.hypervisor", "maybe"),
        ("cpu.governor", "powersave"),
        ("bpf.jit", "off"),
        ("bpf.jit_harden", "2"),
        ("mitigations.spectre_v2", "Vulnerable, all of it"),
        ("tools.wrk", "3.0"),
        ("tools.nginx", "missing"),
        ("sysctls.net.ipv4.tcp_congestion_control", "vegas"),
    ],
)
def test_another_machine_is_refused_and_the_field_named(here: dict[str, Any], path: str, value: object) -> None:
    other = changed(here, path, value)
    (found,) = comparable.differences(here, other)
    assert found.field == path
    assert found.second == value
    with pytest.raises(NotComparable, match=f"{re.escape(path)} differs .*{re.escape(str(value))}"):
        comparable.refuse(run(here, "a"), run(other, "b"))


@pytest.mark.parametrize(
    ("path", "value"),
    [("git.revision", "0" * 40), ("git.dirty", "perhaps"), ("clock.MHz", "1"), ("memory.total", "1 kB")],
)
def test_what_is_the_question_or_changes_by_itself_does_not_matter(
    here: dict[str, Any], path: str, value: object
) -> None:
    other = changed(here, path, value)
    assert other != here
    comparable.refuse(run(here, "a"), run(other, "b"))


def test_all_that_differs_is_named(here: dict[str, Any]) -> None:
    other = changed(changed(here, "kernel.release", "6.12.0"), "bpf.jit", "off")
    with pytest.raises(NotComparable, match=r"kernel\.release differs .*; bpf\.jit differs"):
        comparable.refuse(run(here, "a"), run(other, "b"))


def with_interfaces(here: Mapping[str, Any], **interfaces: Mapping[str, Any]) -> dict[str, Any]:
    return {**here, "interfaces": interfaces}


def test_offloads_of_a_host_keep_figures_from_being_compared(here: dict[str, Any]) -> None:
    first = with_interfaces(here, rauta={"client": INTERFACE, "router": INTERFACE})
    second = json.loads(json.dumps(first))
    second["interfaces"]["rauta"]["client"]["offloads"]["tso"] = "off"
    second["interfaces"]["rauta"]["router"]["xdp"] = "generic"
    assert [str(one) for one in comparable.differences(first, second)] == [
        "interfaces.rauta.client.offloads.tso differs (on and off)",
        "interfaces.rauta.router.xdp differs (none and generic)",
    ]


def test_contenders_and_hosts_that_only_one_run_had_do_not(here: dict[str, Any]) -> None:
    first = with_interfaces(here, rauta={"client": INTERFACE, "web-1": INTERFACE}, nginx={"client": INTERFACE})
    second = with_interfaces(here, rauta={"client": INTERFACE, "web-2": INTERFACE}, direct={"client": INTERFACE})
    assert comparable.differences(first, second) == []
    assert comparable.differences(first, here) == []
