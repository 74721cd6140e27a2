"""An interrupted run goes on only where its first rounds were made, and then with all that they had found."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from kept_runs import MACHINE, latency, record

from lab import results
from lab.errors import NotComparable, UsageError
from lab.results import Record
from lab.verdict import Exit


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runs are kept; it is empty."""
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    return tmp_path


@pytest.fixture
def interrupted(folder: Path) -> Record:
    """A run of which two rounds were finished, and a third had begun."""
    made = record("one", [{"latency": {"rauta": [latency(250), latency(260), latency(270)]}}])
    made.order = made.order[:2]
    made.folder.mkdir()
    made.save(Exit.INTERRUPTED)
    return made


def again(**changes: Any) -> Record:
    return record("one", [{}], **changes)


def test_finished_rounds_are_taken_over(interrupted: Record) -> None:
    resumed = again()
    resumed.restore()
    assert resumed.rounds_done == 2
    assert [one.value for one in resumed.samples(0, "latency")["rauta"]] == [250.0, 260.0]
    before, now = ([taken.sample.histogram for taken in one.taken][:2] for one in (interrupted, resumed))
    assert [one and one.counts() for one in now] == [one and one.counts() for one in before]
    assert len(resumed.taken) == 2


@pytest.mark.parametrize(
    ("path", "value"), [("git.revision", "another"), ("kernel.release", "6.12.0"), ("tools.wrk", "5")], ids=str
)
def test_on_another_machine_or_revision_it_is_refused(interrupted: Record, path: str, value: str) -> None:
    other = deepcopy(MACHINE)
    part, name = path.split(".")
    other[part][name] = value
    with pytest.raises(NotComparable, match=rf"resuming one(.|\n)*{path} differs"):
        again(environment=other).restore()


def test_another_scenario_or_seed_is_refused(interrupted: Record) -> None:
    with pytest.raises(UsageError, match="another scenario"):
        again(contenders=["rauta"]).restore()
    reseeded = again()
    reseeded.seed = 8
    with pytest.raises(UsageError, match="another seed"):
        reseeded.restore()
