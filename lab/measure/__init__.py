"""What can be measured, by layer: the program alone (bpf), and requests of real clients to real servers (http)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lab.measure.program import Program
from lab.measure.wrk import Wrk

__all__ = ["Measure", "Program", "Wrk"]

Measure = Annotated[Program | Wrk, Field(discriminator="layer")]
