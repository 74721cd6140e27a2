"""Every mutant still applies, and a few of them are tried: `make mutants` tries all."""

from collections import Counter

import pytest

from mutants import workshop
from mutants.catalogue import ROOT, Mutant, all_mutants
from mutants.workshop import KILLED, REJECTED, SURVIVED, fate

MUTANTS = all_mutants()


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_every_mutant_still_applies(mutant: Mutant) -> None:
    mutant.applied_to((ROOT / "bpf" / mutant.file).read_text())
    assert all((ROOT / "tests/packets" / name).exists() for name in mutant.first.split())
    assert bool(mutant.first) != bool(mutant.survives)


def test_they_are_many_and_everywhere() -> None:
    assert len(MUTANTS) >= 100
    by_file = Counter(mutant.file for mutant in MUTANTS)
    mere_declarations = {"contract.h", "verdict.h", "hash.h", "maglev.h"}
    files = {file.name for file in (ROOT / "bpf").iterdir()} - mere_declarations
    assert files - set(by_file) == set()


def test_no_two_are_the_same() -> None:
    assert len({(mutant.file, mutant.was, mutant.becomes) for mutant in MUTANTS}) == len(MUTANTS)
    assert len({str(mutant) for mutant in MUTANTS}) == len(MUTANTS)


def named(words: str) -> Mutant:
    (found,) = (mutant for mutant in MUTANTS if words in mutant.breaks)
    return found


@pytest.mark.parametrize("words", ["a VIP is found by the client's port", "nothing leaves"])
def test_a_mistake_is_noticed(words: str) -> None:
    mutant = named(words)
    came = fate(mutant, tests=())
    assert came.kind == KILLED
    assert came.by.split("::")[0] in mutant.first


def test_what_does_not_load_is_not_counted() -> None:
    """An unbounded access, which the verifier does not take; and what is no C."""
    unbounded = Mutant("packet.h", "if ((void *)(ip + 1) > end)", "if (0)", "bounds", "test_ways_out.py")
    assert fate(unbounded, tests=()) == workshop.Fate(REJECTED, "the verifier")
    no_c = Mutant("kernel.h", "#define TCP_FIN 0x01", "#define TCP_FIN :", "C", "test_ways_out.py")
    assert fate(no_c, tests=()) == workshop.Fate(REJECTED, "the compiler")


def test_what_changes_nothing_survives() -> None:
    comment = Mutant("fields.h", "/* header lines */", "/* lines */", "nothing", "test_ways_out.py")
    assert fate(comment, tests=()).kind == SURVIVED
