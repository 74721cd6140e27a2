"""The lab: builds a network of namespaces, proves that a data plane is correct, then measures it.

A scenario (``scenarios/*.yaml``) is one claim. Its way through this package, from the file to the verdict:

    scenario.py   the file, validated          (changes.py: --set, --profile; matrix.py: cells; agreement.py: what
                  its fields must agree on)
    doctor.py     what this machine lacks for it
    topology.py   namespaces and cables        (links.py: their faults; state.py: nothing is ever left behind)
    servers/      what answers                 (process.py starts, logs and ends every program)
    contenders/   what routes
    checks/       what must be true            (checking.py; capture.py: packets of what was not)
    measure/      what is measured             (rounds.py interleaves; monitor.py watches; background.py: other load;
                  flood.py, memory.py: one kind of it, and what it must not take)
    statistics.py figures with intervals
    verdict.py    what is good enough          (judging.py: a run's; noise.py: what this machine can tell apart)
    results.py    what is kept                 (run.py: the order of all this)

and from there to people: ``lab.load`` (frames.py) for notebooks, compare.py, history.py, export.py, and claims.py,
which writes docs/claims.md.

``import lab`` itself works on any Python since 3.7, and costs nothing: see __main__.py.
"""

from __future__ import annotations

import typing

from lab.columns import described

if typing.TYPE_CHECKING:
    from pandas import DataFrame

    from lab.frames import Runs


def load(runs: Runs = "results/*") -> DataFrame:
    """All samples of runs, tidy: one row for each number of each sample.

    Args:
        runs: a pattern of paths, relative to the working directory or else to the repository; a run's path, its id, a
            part of its id, or ``last``; or several of these. A folder of runs stands for all runs in it.

    Returns:
        a pandas frame; ``frame[frame.valid & (frame["scale"] == 1)]`` is what verdicts rest on. Samples of a round
        that was not finished are left out. Texts that repeat are categories. Its columns:

    Raises:
        UsageError: a run that was named does not exist, or cannot be read. Of those that a pattern finds, unreadable
            ones, and those of another format, are left out with a warning that names them.
    """
    from lab import frames

    return frames.load(runs)


def _documented() -> str:
    before, after = (load.__doc__ or "").split("Its columns:\n", 1)
    note = "\n\n    and for each parameter of the scenarios a column param_NAME, of floats where it is a number.\n"
    return before + "Its columns:\n\n" + described() + note + after


load.__doc__ = _documented()
