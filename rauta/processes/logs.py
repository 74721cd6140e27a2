"""What the daemons say: structured, by structlog, as text for people or as a JSON object a line.

Modules log through the standard library, with what belongs to an event in `extra`; only this module knows structlog.
"""

from __future__ import annotations

import logging
import sys

import structlog

from rauta.errors import RautaError

__all__ = ["configure"]

_EXTRA = structlog.stdlib.ExtraAdder()


def configure(form: str) -> None:
    """Logs to stderr from now on, in the form "text" or "json". RautaError if it is another."""
    renderers = {"json": structlog.processors.JSONRenderer, "text": structlog.processors.LogfmtRenderer}
    if form not in renderers:
        raise RautaError(f"logging as {form!r}", "there is no such form", "There are: text, json.")
    shared: list[structlog.typing.Processor] = [
        _EXTRA,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.format_exc_info,
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderers[form]()],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
