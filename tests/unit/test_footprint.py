"""What a daemon leaves out of memory, and that everything is there for those who ask for it later."""

from __future__ import annotations

import subprocess
import sys

IMPORTED = """
import sys
from rauta.processes import footprint
footprint.hide_optional_modules()
import asyncio
import rauta.processes.daemon, rauta.processes.agentd, rauta.processes.logs
footprint.show_optional_modules()
print(*sorted(sys.modules))
"""
HEAVY = {"ssl", "_ssl", "_hashlib", "rich", "numpy", "pyroute2", "requests", "opentelemetry", "http.client"}


def said(code: str) -> str:
    """By an interpreter of its own."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout


def test_daemons_import_nothing_heavy() -> None:
    imported = set(said(IMPORTED).split())
    assert {"asyncio", "structlog", "pydantic"} <= imported
    assert imported & HEAVY == set()


def test_keys_are_as_good_without_openssl() -> None:
    code = "import hashlib, hmac; print(hashlib.blake2b(b'x', key=b'k').hexdigest(), hmac.compare_digest(b'a', b'b'))"
    hidden = "from rauta.processes import footprint\nfootprint.hide_optional_modules()\n"
    assert said(hidden + code) == said(code)


def test_what_is_imported_later_has_everything() -> None:
    later = "import ssl, _hashlib, rich\nprint(ssl.create_default_context().verify_mode.name)"
    assert said(IMPORTED.replace("print(*sorted(sys.modules))", later)).strip() == "CERT_REQUIRED"
