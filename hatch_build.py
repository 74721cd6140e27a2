"""What a wheel and an sdist need that hatchling does not make: the compiled BPF programs.

They are compiled before (`make bpf`), not here: a build must not install a compiler. An editable install, by which
`make setup` begins, has them when they are there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompiledPrograms(BuildHookInterface):  # type: ignore[type-arg]
    """Refuses to build what would have no programs in it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """`version` is "editable" or "standard"."""
        root = Path(self.root)
        objects = [root / "rauta/objects" / f"{source.stem}.o" for source in sorted((root / "bpf").glob("*.bpf.c"))]
        missing = [str(one.relative_to(root)) for one in objects if not one.exists()]
        if missing and version != "editable":
            self.app.abort(
                f"{', '.join(missing)}: not compiled. Compile first: make bpf (it takes clang-19 and libbpf-dev)"
            )
