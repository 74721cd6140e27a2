"""The mistakes of mutants.toml."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILE = Path(__file__).with_name("mutants.toml")


@dataclass(frozen=True)
class Mutant:
    """One replacement in one file of bpf/. `first`: the test files that should notice, separated by spaces."""

    file: str
    was: str
    becomes: str
    breaks: str
    first: str = ""
    survives: str = ""

    def __str__(self) -> str:
        return f"{self.file}: {self.breaks}"

    def applied_to(self, source: str) -> str:
        """ValueError unless the original text stands there once, and is changed."""
        if (found := source.count(self.was)) != 1 or self.was == self.becomes:
            raise ValueError(f"{self}: its original text is found {found} times in bpf/{self.file}: {self.was!r}")
        return source.replace(self.was, self.becomes)


def all_mutants() -> list[Mutant]:
    """In the order of the file."""
    with FILE.open("rb") as file:
        return [Mutant(**fields) for fields in tomllib.load(file)["mutant"]]
