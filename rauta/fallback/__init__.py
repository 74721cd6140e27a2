"""The fallback: an ordinary proxy on the router's own host, to which XDP hands connections that it does not route.

    file = Path("/run/rauta/nginx.conf")
    write(file, configuration(config, "nginx", address=own_address(config, "eth0"), folder=file.parent))
    subprocess.Popen(command("nginx", file))

It must be running before the router is attached (rauta.router), which brings connections to its ports by an agent on
the router's own interfaces. It routes as the router does; docs/fallback.md says how, and where the two differ.
"""

from __future__ import annotations

import grp
import pwd
from ipaddress import IPv4Address
from pathlib import Path
from typing import Literal

from rauta import loading
from rauta.config import Config
from rauta.errors import RautaError
from rauta.fallback import haproxy, nginx
from rauta.network import neighbours

__all__ = ["KINDS", "Kind", "command", "configuration", "own_address", "write"]

Kind = Literal["nginx", "haproxy"]
KINDS: tuple[Kind, ...] = ("nginx", "haproxy")
_USER = "nobody"


def own_address(config: Config, interface: str) -> IPv4Address:
    """Where the proxy must listen, if that is the first interface that the router will be attached to.

    It is looked up in the calling thread's network namespace. RautaError if this host has no address.
    """
    backends = config.backends().values()
    return neighbours.own_address(loading.interface_index(interface), (backend.address for backend in backends))


def configuration(config: Config, kind: Kind = "nginx", *, address: IPv4Address, folder: Path) -> str:
    """The whole configuration of a proxy that listens on that address, the router host's own, as `config` says.

    `folder`: an existing one for its few files (nginx). Bytes that are no UTF-8 are in the text as surrogate escapes:
    `write` undoes that. RautaError if the configuration has no fallback, or routes that this proxy cannot tell apart.
    """
    if config.fallback is None:
        advice = "Add `fallback: {port: 8000}`, or another port."
        raise RautaError("writing the fallback's configuration", "the router's has no `fallback`", advice)
    group = grp.getgrgid(pwd.getpwnam(_USER).pw_gid).gr_name
    if kind == "nginx":
        return nginx.configuration(config, address, folder, f"{_USER} {group}")
    return haproxy.configuration(config, address, _USER, group)


def write(file: Path, text: str) -> None:
    """Writes a configuration, byte for byte as it is meant."""
    file.write_bytes(text.encode(errors="surrogateescape"))


def command(kind: Kind, file: Path) -> list[str]:
    """How to start the proxy with the configuration in a file: it stays in the foreground, and says what is wrong."""
    if kind == "nginx":
        return ["nginx", "-p", str(file.parent), "-c", str(file), "-e", "stderr"]
    return ["haproxy", "-db", "-f", str(file)]
