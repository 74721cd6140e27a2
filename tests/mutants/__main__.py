"""Tries all mutants, or those whose description has one of the words given; with --write puts docs/mutants.md right.

    PYTHONPATH=tests python -m mutants [--write] [--jobs N] [--sample N [--seed S]] [WORD...]

Exit: 0 if at least nine of ten were killed, and those that survive are known to; 1 otherwise.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mutants.catalogue import ROOT, Mutant, all_mutants
from mutants.workshop import KILLED, REJECTED, SURVIVED, Fate, copied, fate

DOCUMENT = ROOT / "docs/mutants.md"
BEGIN, END = "<!-- mutants -->", "<!-- /mutants -->"
KILLED_SHARE = 0.9


def main(arguments: Sequence[str]) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m mutants")
    parser.add_argument("--write", action="store_true", help="write docs/mutants.md")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    parser.add_argument("--sample", type=int, help="how many of them, drawn at random")
    parser.add_argument("--seed", type=int, default=7, help="of the draw")
    parser.add_argument("words", nargs="*", help="of the mutants to try; none: all")
    options = parser.parse_args(arguments)
    chosen = [one for one in all_mutants() if not options.words or any(word in str(one) for word in options.words)]
    if options.sample is not None:
        chosen = sorted(random.Random(options.seed).sample(chosen, options.sample), key=str)
    with copied() as root:  # so that nobody's work on the tree meanwhile matters
        without = fate(None, root=root)
        if without.kind != SURVIVED:
            print(f"Without any mutant: {without.kind} by {without.by}. Nothing can be learned.", file=sys.stderr)
            return 1
        fates = tried(chosen, options.jobs, root)
    print(summary(fates))
    if options.write:
        write(chosen, fates)
    return 0 if good(chosen, fates) else 1


def tried(chosen: Sequence[Mutant], jobs: int, root: Path) -> list[Fate]:
    """Their fates, told as they come."""

    def one(mutant: Mutant) -> Fate:
        started = time.monotonic()
        came = fate(mutant, root=root)
        print(f"{came.kind:9} {time.monotonic() - started:4.0f} s  {mutant}  {came.by}", flush=True)
        return came

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, chosen))


def good(chosen: Sequence[Mutant], fates: Sequence[Fate]) -> bool:
    """Whether enough were killed, and no one survived unexpectedly, or was killed though nobody could."""
    expected = all((came.kind == SURVIVED) == bool(one.survives) for one, came in zip(chosen, fates, strict=True))
    counts = Counter(came.kind for came in fates)
    return expected and counts[KILLED] >= KILLED_SHARE * (counts[KILLED] + counts[SURVIVED])


def summary(fates: Sequence[Fate]) -> str:
    """In one sentence."""
    counts = Counter(came.kind for came in fates)
    loaded = counts[KILLED] + counts[SURVIVED]
    share = f"{100 * counts[KILLED] / loaded:.1f} %" if loaded else "none"
    return (
        f"{loaded} mutants that load: {counts[KILLED]} killed ({share}), {counts[SURVIVED]} survive; "
        f"{counts[REJECTED]} more are rejected by the compiler or the verifier."
    )


def write(chosen: Sequence[Mutant], fates: Sequence[Fate]) -> None:
    """Puts the results into docs/mutants.md."""
    text = DOCUMENT.read_text()
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    DOCUMENT.write_text(f"{before}{BEGIN}\n{tables(chosen, fates)}\n{END}{after}")


def tables(chosen: Sequence[Mutant], fates: Sequence[Fate]) -> str:
    """Survivors with their reasons, then all others by file."""
    both = list(zip(chosen, fates, strict=True))
    lines = [summary(fates), "", "| file | what it breaks | why it survives |", "| --- | --- | --- |"]
    lines += [
        f"| {one.file} | {one.breaks} | {one.survives or '**nobody knows**'} |"
        for one, came in both
        if came.kind == SURVIVED
    ]
    lines += ["", "| file | what it breaks | noticed by |", "| --- | --- | --- |"]
    lines += [f"| {one.file} | {one.breaks} | {came.by} |" for one, came in both if came.kind != SURVIVED]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
