"""What load generators are told: rates and shares of capacities, and how clients divide the work."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lab.errors import LabError
from lab.histogram import Histogram
from lab.interfaces import Watch
from lab.measure import Download, FirstSeconds, OpenLoop, Search, Wrk
from lab.measure.load import on_all, shares
from lab.measure.open_loop import resolved_rate
from lab.measure.search import SearchInstrument
from lab.samples import Sample

CAPACITIES = {"rps": {"direct": 80_000.0, "rauta": 60_000.0, "nginx": 30_000.0}}


def open_loop(**fields: object) -> OpenLoop:
    return OpenLoop.model_validate({"layer": "http", "tool": "open-loop", "cluster": "web", **fields})


# ---- rates ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("written", "rate"), [("20k", 20_000.0), (500, 500.0), ("1.5M", 1.5e6)])
def test_a_rate_is_requests_a_second(written: object, rate: float) -> None:
    model = open_loop(rate=written)
    assert model.depends_on == ()
    assert resolved_rate(model.rate, {}) == rate


@pytest.mark.parametrize(
    ("written", "rate"),
    [("50% of slowest rps", 15_000), ("80% of direct rps", 64_000), ("12.5% of rauta rps", 7_500)],
)
def test_a_rate_may_be_a_share_of_a_capacity(written: str, rate: float) -> None:
    model = open_loop(rate=written)
    assert model.depends_on == ("rps",)
    assert resolved_rate(model.rate, CAPACITIES) == rate


@pytest.mark.parametrize("written", [0, -5, "20ms", "fast", "50%", "50% of rps", "50 of slowest rps", None])
def test_what_is_no_rate_is_refused(written: object) -> None:
    with pytest.raises(ValidationError, match="is no rate"):
        open_loop(rate=written)


def test_a_share_of_somebody_who_was_not_measured_is_refused() -> None:
    with pytest.raises(LabError, match=r"(?s)envoy was not measured.*direct, rauta, nginx"):
        resolved_rate("50% of envoy rps", CAPACITIES)


def test_a_share_of_nothing_is_refused() -> None:
    with pytest.raises(LabError, match="rps was 0"):
        resolved_rate("50% of slowest rps", {"rps": {"direct": 80_000.0, "broken": 0.0}})


# ---- models -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [("path", "no-slash"), ("connections", 0), ("arrivals", "uniform"), ("body", -1), ("duration", "1"), ("pace", 1)],
)
def test_fields_are_checked(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        open_loop(rate=1000, **{field: value})


def test_references_that_answer_no_requests_are_not_asked() -> None:
    asked = ["direct", "rauta", "xdp-tx", "xdp-drop"]
    wrk = Wrk(layer="http", tool="wrk", cluster="web")
    assert [list(model.subjects(asked)) for model in (wrk, open_loop(rate=1))] == [["direct", "rauta"]] * 2


def test_the_generators_say_which_version_they_are() -> None:
    assert open_loop(rate=1).instrument.startswith("open_loop ")
    assert Wrk(layer="http", tool="wrk", cluster="web").instrument.startswith("wrk ")


def test_every_download_has_a_connection_of_its_own_and_all_the_time_that_losses_take() -> None:
    fields = {"layer": "http", "tool": "download", "cluster": "web", "rate": 10}
    model = Download.model_validate(fields)
    assert model.close
    assert model.patience > 7  # a SYN that is lost three times
    assert open_loop(rate=10).patience is None
    assert {"resent", "probes", "timeouts", "needless", "late"} <= model.quantities.keys()
    assert model.has_histogram
    with pytest.raises(ValidationError, match="close"):
        Download.model_validate({**fields, "close": False})


def test_the_first_seconds_have_no_warm_up() -> None:
    model = FirstSeconds(layer="http", tool="first-seconds", cluster="web", duration="3s")
    assert model.seconds(warmup=1) == 3
    assert model.quantities.keys() == {"mark", "resent", "probes", "timeouts", "needless"}


# ---- clients ----------------------------------------------------------------------------------------------


@given(st.integers(1, 60_000), st.integers(1, 64))
def test_connections_are_divided_evenly(total: int, clients: int) -> None:
    parts = shares(total, clients)
    assert len(parts) == clients
    assert sum(parts) == max(total, clients)
    assert max(parts) - min(parts) <= 1
    assert min(parts) >= 1


def test_all_clients_work_at_the_same_time_and_answer_in_order() -> None:
    together = threading.Barrier(3, timeout=5)

    def work(number: int, client: Any) -> tuple[int, str]:
        together.wait()
        return number, client

    clients: list[Any] = ["a", "b", "c"]
    assert on_all(clients, work) == [(0, "a"), (1, "b"), (2, "c")]


@pytest.mark.parametrize("clients", [1, 3])
def test_what_goes_wrong_at_one_client_is_raised(clients: int) -> None:
    def work(number: int, _client: Any) -> None:
        if number == clients - 1:
            raise LabError("asking", "nobody answered")

    some: list[Any] = [Path(str(number)) for number in range(clients)]
    with pytest.raises(LabError, match="nobody answered"):
        on_all(some, work)


# ---- what the search says of its generator -----------------------------------------------------------------


class Generator:
    """As if a server bore ``capacity``, and the generator said something of rates from ``flagged`` on."""

    def __init__(self, capacity: float, flagged: float) -> None:
        self.capacity, self.flagged = capacity, flagged

    def at(self, rate: float, _subject: str, _running: object, _watch: Watch, *, scale: int = 1) -> Sample:
        latency = 1_000_000 if rate <= self.capacity else 1_000_000_000
        flags = ("the generator was busy",) if rate >= self.flagged else ()
        details = {"intended": 1000 * scale, "answered": 1000 * scale}
        return Sample(latency / 1e3, histogram=Histogram({latency: 1000}), flags=flags, details=details)


def found(capacity: float, flagged: float) -> Sample:
    model = Search.model_validate(
        {"layer": "http", "tool": "search", "cluster": "web", "p99": "< 10ms", "rate": 1000, "resolution": "5%"}
    )
    generator: Any = Generator(capacity, flagged)
    return SearchInstrument(model, generator).sample("direct", None, threading.Lock())


@pytest.mark.parametrize(
    ("flagged", "flags"),
    [
        (1e9, ()),
        (10_000, ()),
        (5_001, ("the generator was busy",)),
        (4_000, 3 * ("the generator was busy",)),
    ],
    ids=["never", "far above", "where it failed", "where it held"],
)
def test_a_search_that_ends_where_the_generator_does_is_flagged(flagged: float, flags: tuple[str, ...]) -> None:
    sample = found(5_000, flagged)
    assert 4_750 <= sample.value <= 5_000
    assert sample.flags == flags
