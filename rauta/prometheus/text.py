"""Prometheus' text format, and no more of a client library than a process needs that counts elsewhere: in BPF maps.

A `Family` is a metric: its name, what it says, its labels. What it has to say is written in one of two ways:

    family.text({("shop", "ok"): 3})        few series: labels and values together
    table = Table(family, labels)           many: labels are written once, `table.text(values)` puts the values in

The second is one pass over the values in C, a fifth of a microsecond a series; prometheus_client takes six. It also
takes 1.8 MB of memory, of the 50 MB that a router may have. So its parser reads all of this in the tests, and nothing
imports it here. Format: https://prometheus.io/docs/instrumenting/exposition_formats/, version 0.0.4.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, TypeAlias

from rauta.latency import Histogram

__all__ = ["CONTENT_TYPE", "Family", "Labels", "Table", "otel_to_prometheus", "resource_labels"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Kind: TypeAlias = Literal["counter", "gauge", "histogram"]
Labels: TypeAlias = tuple[str, ...]
"""The values of a family's labels, in its order."""
Number: TypeAlias = int | float

_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
_NO_LABEL = re.compile(r"[^a-zA-Z0-9_]")


@dataclass(frozen=True)
class Family:
    """A metric. `help` says what it is and is sent along; `series` says how many there can be, for the reference."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    series: str = "1"

    @property
    def head(self) -> str:
        """What stands before its series."""
        return f"# HELP {self.name} {_escaped_help(self.help)}\n# TYPE {self.name} {self.kind}\n"

    def text(self, series: Mapping[Labels, Number]) -> str:
        """The whole family, of counters or gauges."""
        return self.head + "".join(f"{self.begin(labels)} {_number(value)}\n" for labels, value in series.items())

    def one(self, value: Number) -> str:
        """The whole family, if it has no labels."""
        return self.text({(): value})

    def histograms(self, series: Mapping[Labels, Histogram]) -> str:
        """The whole family, of histograms."""
        return self.head + "".join(self.histogram(labels, one) for labels, one in series.items())

    def histogram(self, labels: Labels, times: Histogram) -> str:
        """One series of a histogram: how many were not longer than each bound, their sum, and how many there are."""
        pairs = _pairs(self.labels, labels)
        before = f"{self.name}_bucket{{{pairs}{',' if pairs else ''}le="
        buckets = zip(times.bounds, accumulate(times.counts), strict=True)
        text = "".join(f'{before}"{_bound(bound)}"}} {total}\n' for bound, total in buckets)
        braced = f"{{{pairs}}}" if pairs else ""
        return f"{text}{self.name}_sum{braced} {_number(times.sum)}\n{self.name}_count{braced} {times.count}\n"

    def begin(self, labels: Labels) -> str:
        """A series' name and labels. ValueError unless there is a value for each label."""
        pairs = _pairs(self.labels, labels)
        return f"{self.name}{{{pairs}}}" if pairs else self.name


class Table:
    """The series of a family with these labels, one for each value that `text` will be given."""

    def __init__(self, family: Family, labels: Iterable[Labels]) -> None:
        lines = (f"{family.begin(one).replace('%', '%%')} %s\n" for one in labels)
        self._template = family.head.replace("%", "%%") + "".join(lines)

    def text(self, values: Sequence[Number]) -> str:
        """The whole family. TypeError unless there are as many values as series."""
        return self._template % tuple(values)


def otel_to_prometheus(name: str) -> str:
    """The label that an attribute of OpenTelemetry's becomes: `k8s.pod.name` is `k8s_pod_name`.

    As its compatibility specification says (OTLP metric points to Prometheus, metric attributes): what no label may
    have becomes `_`, several on end one; a name that begins with a digit gets one in front.
    """
    label = re.sub("_+", "_", _NO_LABEL.sub("_", name))
    return f"_{label}" if label[:1].isdecimal() else label


def resource_labels(attributes: str | None = None) -> dict[str, str]:
    """The labels of `target_info`, from OTEL_RESOURCE_ATTRIBUTES: `key=value,...`, values percent-encoded.

    As OpenTelemetry's SDKs read it: what is no such list counts as nothing at all. Values of attributes that become
    one label are joined with `;`, in the order of the attributes' names.
    """
    from urllib.parse import unquote

    text = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "") if attributes is None else attributes
    given: dict[str, str] = {}
    for pair in filter(None, map(str.strip, text.split(","))):
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            return {}
        given[name.strip()] = unquote(value.strip())
    labels: dict[str, str] = {}
    for name, value in sorted(given.items()):
        label = otel_to_prometheus(name)
        labels[label] = f"{labels[label]};{value}" if label in labels else value
    return labels


def _pairs(names: Sequence[str], values: Sequence[str]) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True))


def _escaped(value: str) -> str:
    return value.translate(_ESCAPES)


def _escaped_help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _number(value: Number) -> str:
    return "+Inf" if value == math.inf else repr(value)


def _bound(value: float) -> str:
    """Without what powers of ten leave behind in a float: a bound is a label, and to be found under its name."""
    return "+Inf" if value == math.inf else f"{value:.12g}"
