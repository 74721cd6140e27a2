"""`rauta doctor`: see rauta.doctor."""

from __future__ import annotations

import time

from rauta.config import Config
from rauta.doctor.command import command
from rauta.keys import CookieKeys
from rauta.secrets import load_schedule

__all__ = ["doctor"]


def _keys(config: Config) -> CookieKeys | None:
    """Those of now, by the configuration's file of secrets."""
    if config.secrets is None:
        return None
    return load_schedule(config.secrets.file, config.secrets.rotate).keys_at(time.time()).cookies


doctor = command(_keys)
