"""curl, a process for each request."""

from __future__ import annotations

from lab.clients.answer import Answer, NoAnswer, Request
from lab.topology import Host

RESET = 56
"""curl's exit code for "failure with receiving network data"; what it says tells a reset from other failures"""
GRACE_SECONDS = 2.0


def ask(host: Host, request: Request) -> Answer:
    """Send a request from a host. NoAnswer if there is none in time."""
    done = host.run(
        [
            *("curl", "--silent", "--show-error", "--include", "--http1.1", "--max-time", f"{request.seconds:g}"),
            *("--request", request.method, "--connect-to", f"::{request.address}:{request.port}", request.url),
        ],
        timeout=request.seconds + GRACE_SECONDS,
        check=False,
    )
    if done.returncode:
        reset = done.returncode == RESET and "reset" in done.stderr
        raise NoAnswer(f"curl: {request}", done.stderr.strip() or f"exit code {done.returncode}", reset=reset)
    head, _, body = done.raw.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    fields = (line.partition(":") for line in lines)
    return Answer(int(status.split()[1]), {name.lower(): value.strip() for name, _, value in fields}, body)
