"""Kept runs as Markdown: the README's comparison of contenders, and what is common to generated tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lab import statistics
from lab.display import figure, rounded
from lab.errors import UsageError
from lab.histogram import Histogram
from lab.kept import Kept
from lab.matrix import label
from lab.samples import QUANTILES, Quantity, Sample
from lab.statistics import Estimate
from rauta.units import SECONDS

CONFIDENCE = 0.95
JUDGED = "rauta"
"""whom the others are compared with"""
SHOWN = ("", "cpu", "loss")
"""which numbers of a measure are worth a row: its own, and these; of one with latencies instead ..."""
SHOWN_QUANTILES = ("p50", "p99")
LAYERS: Mapping[str, str] = {
    "bpf": "the program alone",
    "veth": "frames over real links",
    "http": "real clients and servers",
}


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; bars inside cells are escaped."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def replaced(text: str, name: str, block: str, where: str) -> str:
    """A text with another block between ``<!-- name -->`` and ``<!-- /name -->``.

    Raises:
        UsageError: the text, called ``where``, has no such markers, or more than one pair.
    """
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        advice = f"Put <!-- {name} --> and <!-- /{name} --> on lines of their own where the table belongs."
        raise UsageError(f"updating {where}", f"it has not one pair of markers for {name}", advice)
    return pattern.sub(lambda match: f"{match[1]}{block}\n{match[2]}", text)


def interval(value: float, low: float | None, high: float | None, unit: str) -> str:
    """A figure with its interval: "67,912 [66,100, 69,003] requests/s", or "0.791 [0.786, 0.82]" without a unit."""
    if low is None or high is None:
        return f"{_number(value, unit)} {unit}".rstrip()
    return f"{_number(value, unit)} [{_number(low, unit)}, {_number(high, unit)}] {unit}".rstrip()


def _number(value: float, unit: str) -> str:
    return rounded(value) if unit else figure(value, "")


def comparison_table(run: Kept) -> str:
    """All contenders of a run, over all layers: each figure with its interval, and RAUTA compared with it.

    A row for each metric and cell. Below a figure stands what RAUTA is of it, paired by round: the difference in layer
    bpf, whose figures include the replayer, and the ratio elsewhere.

    Raises:
        UsageError: there are no figures.
    """
    if not run.measures:
        raise UsageError(f"making a table of {run.id}", "it has no finished round", "`python -m lab list` shows all.")
    contenders = _contenders(run)
    rows: list[list[str]] = []
    for layer, title in LAYERS.items():
        metrics = [key for key, described in run.measures.items() if described.layer == layer]
        if metrics:
            rows.append([f"**{title}** ({layer})", "", *([""] * len(contenders))])
            rows += [row for cell, name in metrics for row in _rows(run, cell, name, contenders)]
    return f"{markdown(['', 'unit', *contenders], rows)}\n\n{_legend(run)}"


def _contenders(run: Kept) -> list[str]:
    """In the order of the scenario, references behind; the one that is judged comes first."""
    chosen = list(run.cells[0]["contenders"])
    seen = dict.fromkeys(one.contender for one in run.taken)
    order = [JUDGED, *chosen, *seen]
    return [name for name in dict.fromkeys(order) if name in seen]


def _legend(run: Kept) -> str:
    content, environment = run.content, run.environment
    state, cpu = content["validity"]["state"], environment["cpu"]
    return (
        f"Medians of {content['rounds']['done']} interleaved rounds with 95 % intervals; below, RAUTA against that "
        f"contender: after × their ratio, else their difference, paired by round. Run {run.id} ({state}), "
        f"Linux {environment['kernel']['release']}, {cpu['online']} CPUs ({cpu['model']})."
    )


def _rows(run: Kept, cell: int, measure: str, contenders: Sequence[str]) -> list[list[str]]:
    described = run.measures[cell, measure]
    samples = run.samples(cell, measure)
    where = f" ({label(run.content['cells'][cell])})" if run.content["cells"][cell] else ""
    if any(one.histogram for several in samples.values() for one in several):
        unit = described.quantities[""].unit
        quantiles = [
            (name, [_quantile_cell(samples, one, name, unit) for one in contenders]) for name in SHOWN_QUANTILES
        ]
        return [[f"{measure} {name}{where}", unit, *cells] for name, cells in quantiles]
    found = []
    for quantity in (name for name in SHOWN if name in described.quantities):
        meaning = described.quantities[quantity]
        cells = [_cell(samples, name, quantity, meaning, described.layer) for name in contenders]
        found.append([" ".join(filter(None, (measure, quantity))) + where, meaning.unit, *cells])
    return found


def _cell(samples: Mapping[str, Sequence[Sample]], name: str, quantity: str, meaning: Quantity, layer: str) -> str:
    own = _values(samples.get(name, ()), quantity)
    if not own:
        return "–"
    text = _estimate(statistics.single(own, confidence=CONFIDENCE), meaning.unit)
    judged = _values(samples.get(JUDGED, ()), quantity)
    if name == JUDGED or not judged:
        return text
    rounds = min(len(own), len(judged))
    if layer == "bpf":
        found = statistics.difference(judged[:rounds], own[:rounds], confidence=CONFIDENCE)
        return f"{text}<br>{'+' if found.value > 0 else ''}{_estimate(found, meaning.unit)}"
    if not all(own):
        return text
    return f"{text}<br>× {_estimate(statistics.ratio(judged[:rounds], own[:rounds], confidence=CONFIDENCE), '')}"


def _quantile_cell(samples: Mapping[str, Sequence[Sample]], name: str, quantile: str, unit: str) -> str:
    """Of all latencies of all rounds."""
    share, scale = QUANTILES[quantile], SECONDS["ns"] / SECONDS[unit]
    own, judged = (_histograms(samples.get(one, ())) for one in (name, JUDGED))
    if not own:
        return "–"
    text = _estimate(statistics.quantile(own, share, confidence=CONFIDENCE).scaled(scale), unit)
    rounds = min(len(own), len(judged))
    if name == JUDGED or not rounds:
        return text
    found = statistics.quantile_difference(judged[:rounds], own[:rounds], share, confidence=CONFIDENCE, ratio=True)
    return f"{text}<br>× {_estimate(found, '')}"


def _histograms(samples: Sequence[Sample]) -> list[Histogram]:
    """Of samples that are all valid."""
    return [one.histogram for one in samples if one.histogram] if all(one.valid for one in samples) else []


def _estimate(found: Estimate, unit: str) -> str:
    """Without the unit, which the row says."""
    return interval(found.value, found.low, found.high, unit).removesuffix(unit).rstrip()


def _values(samples: Sequence[Sample], quantity: str) -> list[float]:
    """Of samples that are valid; a figure with an invalid one among them is no figure."""
    if not all(sample.valid for sample in samples):
        return []
    values: list[Any] = [sample.quantities.get(quantity) if quantity else sample.value for sample in samples]
    return [value for value in values if value is not None]
