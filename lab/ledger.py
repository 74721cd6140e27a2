"""Writes what people read first: docs/claims.md, and the tables in README.md.

Both come from lab/claims.yaml and the runs in results/reference/ alone, so that the same files come out on every
machine, and a test can tell whether they are current.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lab import claims, tables
from lab.claims import Finding, Status
from lab.display import bounds, figure, rounded
from lab.environment import REPOSITORY
from lab.kept import Kept
from lab.matrix import label
from lab.verdict import Verdict

CLAIMS, PAGE, README = Path("lab/claims.yaml"), Path("docs/claims.md"), Path("README.md")
COMPARISON = "comparison"
"""the scenario that README's comparison of contenders is taken from"""


def generated(root: Path = REPOSITORY) -> dict[Path, str]:
    """What the files should say, by their path from the root."""
    runs = [Kept.read(path.parent) for path in sorted((root / "results/reference").glob("*/run.json"))]
    found = claims.findings(claims.read(root / CLAIMS), runs)
    readme = tables.replaced((root / README).read_text(), "claims", _summary(found), str(README))
    readme = tables.replaced(readme, "comparison", _comparison(runs), str(README))
    return {PAGE: _page(found, root), README: readme}


def stale(root: Path = REPOSITORY) -> list[Path]:
    """The files that do not say what they should."""
    found = generated(root).items()
    return [path for path, text in found if not (root / path).is_file() or (root / path).read_text() != text]


def write(root: Path = REPOSITORY) -> list[Path]:
    """Make all files current.

    Returns:
        those that were not.
    """
    texts = generated(root)
    changed = stale(root)
    for path in changed:
        (root / path).write_text(texts[path])
    return changed


def _comparison(runs: Sequence[Kept]) -> str:
    run = claims.newest(COMPARISON, runs)
    return tables.comparison_table(run) if run else f"Not measured yet: `python -m lab run {COMPARISON}`."


def _counts(found: Sequence[Finding]) -> str:
    counts: Mapping[Status, int] = Counter(one.status for one in found)
    order = (Status.CONFIRMED, *(status for status in Status if status is not Status.CONFIRMED))
    return ", ".join(f"{counts[status]} {status}" for status in order if counts[status])


def _summary(found: Sequence[Finding]) -> str:
    rows = [[one.claim.claim, one.claim.asked, _figures(one), f"**{one.status}**"] for one in found]
    table = tables.markdown(("claim", "asked", "found here", "verdict"), rows)
    return f"{len(found)} claims: {_counts(found)}. How each was tested: [{PAGE}]({PAGE}).\n\n{table}"


def _page(found: Sequence[Finding], root: Path) -> str:
    rows = [
        [
            f"[{one.claim.id}](#{one.claim.id})",
            one.claim.claim,
            one.claim.source,
            one.claim.asked,
            _figures(one),
            f"**{one.status}**",
        ]
        for one in found
    ]
    parts = [
        "# Claims",
        "What was claimed, and what this lab found. Written by `python -m lab claims` from `lab/claims.yaml` and the "
        "runs in `results/reference/`; changes made here are lost.",
        f"{len(found)} claims: {_counts(found)}. *Confirmed* means that the whole 95 % interval lies within what was "
        "asked, *refuted* that it lies wholly outside; *inconclusive* that a bound lies within it, or that the machine "
        "was disturbed; *not resolvable here* that two runs of the same thing differ by as much on this machine, or "
        "that it lacks what the claim needs.",
        tables.markdown(("", "claim", "from", "asked", "found", "verdict"), rows),
        *(_section(one, root) for one in found),
        "## Runs",
        "\n".join(_runs(found)) or "None yet.",
    ]
    return "\n\n".join(parts) + "\n"


def _section(finding: Finding, root: Path) -> str:
    claim = finding.claim
    file = Path("scenarios") / f"{claim.scenario}.yaml"
    link = f"[{claim.scenario}](../{file})" if (root / file).is_file() else f"{claim.scenario} (not written yet)"
    lines = [f"### {claim.id}", "", f"{claim.claim} **{finding.status}**.", ""]
    lines += [
        f"- Tested by {link}: `python -m lab run {claim.scenario}`" + (f", {_run(finding)}" if finding.run else "")
    ]
    lines += [f"- {_verdict(verdict)}" for verdict in finding.verdicts]
    lines += [f"- Needs {claim.needs}, which this machine lacks."] if claim.needs else []
    lines += [f"- {claim.note}"] if claim.note else []
    return "\n".join(lines)


def _run(finding: Finding) -> str:
    assert finding.run is not None
    return f"run {finding.run.id} ({finding.run.content['validity']['state']})"


def _verdict(verdict: Verdict) -> str:
    asked = bounds({"minimum": verdict.minimum, "maximum": verdict.maximum, "unit": verdict.unit})
    where = f" ({label(verdict.cell)})" if verdict.cell else ""
    parts = [f"`{verdict.metric}`{where}, {verdict.terms}: {_measured(verdict)}"]
    parts += [f"asked {asked}"] if asked else []
    if verdict.own is not None and verdict.baseline is not None:
        own, baseline = (rounded(value) for value in (verdict.own, verdict.baseline))
        parts += [f"from {own} and {baseline} {verdict.figures_unit}"]
    parts += [f"A/A floor {figure(verdict.floor, verdict.unit)}"] if verdict.floor is not None else []
    parts += [f"{verdict.rounds} rounds"] if verdict.rounds else []
    return ", ".join(parts) + f": {verdict.outcome}" + (f" ({verdict.reason})" if verdict.reason else "")


def _measured(verdict: Verdict) -> str:
    if verdict.measured is None:
        return "nothing"
    return tables.interval(verdict.measured, verdict.low, verdict.high, verdict.unit)


def _figures(finding: Finding) -> str:
    """What was found, a line for each verdict that has a figure."""
    several = len(finding.verdicts) > 1
    return "<br>".join(
        _measured(one) + (f" ({one.metric.partition('.')[0]}{_where(one)})" if several else "")
        for one in finding.verdicts
        if one.measured is not None
    )


def _where(verdict: Verdict) -> str:
    return f", {label(verdict.cell)}" if verdict.cell else ""


def _runs(found: Sequence[Finding]) -> Iterator[str]:
    runs = {one.run.id: one.run for one in found if one.run is not None}
    for name, run in sorted(runs.items()):
        environment, git = run.environment, run.environment["git"]
        revision = git["revision"][:12] + (" with changes" if git["dirty"] else "")
        yield (
            f"- {name}: {run.content['validity']['state']}, {run.content['rounds']['done']} rounds, revision "
            f"{revision}, Linux {environment['kernel']['release']}, {environment['cpu']['online']} CPUs "
            f"({environment['cpu']['model']})"
        )
