"""A collector of traces: takes OTLP over HTTP as the specification has it, and writes down what it has understood.

    python collector.py FILE [STATUS [PORT]]

It prints its port. What comes is decoded with OpenTelemetry's own protobuf classes, and becomes a line of JSON for each
request, with its spans. With a STATUS it refuses everything so, after writing it down.

The same module has the tests' side of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

PATH = "/v1/traces"
TYPE = "application/x-protobuf"

# ---- the collector --------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """One request with spans."""

    protocol_version = "HTTP/1.1"
    file = Path()
    status = 200

    def do_POST(self) -> None:
        """Written down, and answered."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert (self.path, self.headers["Content-Type"]) == (PATH, TYPE)
        with self.file.open("a") as file:
            file.write(json.dumps(understood(ExportTraceServiceRequest.FromString(body))) + "\n")
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_response(self.status)
        self.send_header("Content-Type", TYPE)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


def understood(request: ExportTraceServiceRequest) -> list[dict[str, Any]]:
    """Each span, with what its resource and its scope say."""
    return [
        {
            "resource": plain(resource.resource.attributes),
            "scope": scope.scope.name,
            "name": span.name,
            "kind": Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
            "trace": span.trace_id.hex(),
            "span": span.span_id.hex(),
            "parent": span.parent_span_id.hex(),
            "start": span.start_time_unix_nano,
            "end": span.end_time_unix_nano,
            "attributes": plain(span.attributes),
            "status": Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
        }
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def plain(attributes: Any) -> dict[str, str | int]:
    """Names and values; JSON has 64-bit integers as text."""
    values = {one.key: MessageToDict(one.value) for one in attributes}
    return {name: int(one["intValue"]) if "intValue" in one else one["stringValue"] for name, one in values.items()}


def main(file: str, status: str = "200", port: str = "0") -> None:
    """Serves until it is ended."""
    Handler.file, Handler.status = Path(file), int(status)
    with ThreadingHTTPServer(("127.0.0.1", int(port)), Handler) as server:
        print(server.server_port, flush=True)
        server.serve_forever()


# ---- the tests' side ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Collector:
    """A collector that runs as a process of its own."""

    port: int
    file: Path

    @property
    def endpoint(self) -> str:
        """Where it takes spans."""
        return f"http://127.0.0.1:{self.port}{PATH}"

    def requests(self) -> list[list[dict[str, Any]]]:
        """The spans of each request so far."""
        return [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.exists() else []

    def spans(self) -> list[dict[str, Any]]:
        """All so far."""
        return [span for request in self.requests() for span in request]


@contextmanager
def collecting(folder: Path, status: int = 200, port: int = 0) -> Iterator[Collector]:
    """A collector on the loopback, of the calling thread's network namespace; port 0 is any."""
    file = folder / "spans.jsonl"
    argv = [sys.executable, __file__, str(file), str(status), str(port)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Collector(int(process.stdout.readline()), file)
        finally:
            process.terminate()


if __name__ == "__main__":
    main(*sys.argv[1:])
