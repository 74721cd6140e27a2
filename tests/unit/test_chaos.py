"""What chaos is judged by: which answers a reload allows, which failures a window excuses, what a check must say."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import TypeAdapter, ValidationError

from lab import scenario
from lab.chaos import Clients, Reload, leading
from lab.checks import Check
from lab.checks.chaos import Chaos, _stale, _within
from lab.errors import LabError
from rauta.config import load_config

TURNS = scenario.FOLDER / "routing" / "turns.yaml"
RELOADS = [("even", (0.0, 0.0)), ("odd", (10.0, 11.0)), ("even", (20.0, 21.0))]


def reload() -> Reload:
    """Two of them, from 10 to 11 and from 20 to 21."""
    one = Reload(cast("Any", SimpleNamespace()), "/live", ("even", "odd"))
    one.loaded[:] = RELOADS
    return one


@pytest.mark.parametrize(
    ("began", "ended", "allowed"),
    [
        (1.0, 2.0, {"even"}),
        (1.0, 10.5, {"even", "odd"}),
        (9.0, 12.0, {"even", "odd"}),
        (10.5, 10.6, {"even", "odd"}),
        (11.0, 11.1, {"odd"}),
        (12.0, 19.0, {"odd"}),
        (12.0, 20.5, {"odd", "even"}),
        (21.5, 22.0, {"even"}),
    ],
)
def test_what_may_have_answered(began: float, ended: float, allowed: set[str]) -> None:
    assert reload().allowed(began, ended) == allowed


def answered(*records: tuple[float, float, str, str]) -> Clients:
    return cast("Clients", SimpleNamespace(records=list(records)))


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([(1, 2, "/live", "even"), (12, 13, "/live", "odd")], ""),
        ([(1, 2, "/live", "even"), (12, 13, "/live", "odd"), (14, 15, "/", "even"), (14, 15, "/live", "")], ""),
        ([(1, 2, "/live", "even"), (2, 3, "/live", "even")], "one of the clusters never answered"),
        (
            [(1, 2, "/live", "even"), (11.25, 12, "/live", "even")],
            "1 of 2 answers came from an older generation, the first one by even to one sent 250.0 ms after the route",
        ),
    ],
    ids=["right", "what else there is does not count", "no reload", "stale"],
)
def test_an_older_generations_answer_is_told(records: Sequence[tuple[float, float, str, str]], said: str) -> None:
    assert _stale(answered(*records), reload(), "/live").startswith(said)
    assert bool(_stale(answered(*records), reload(), "/live")) == bool(said)


@pytest.mark.parametrize(
    ("began", "ended", "inside"), [(1, 2, False), (1, 5, True), (6, 7, True), (9, 20, True), (10.5, 20, False)]
)
def test_a_window_excuses_what_overlaps_it(began: float, ended: float, inside: bool) -> None:
    assert _within(began, ended, [(4.0, 10.0)]) == inside


def test_a_route_leads_elsewhere_and_no_other() -> None:
    config = load_config(TURNS)
    changed = leading(config, "/live", "odd")
    clusters = {route.path: route.cluster for route in changed.vips[0].routes}
    assert clusters == {"/live": "odd", "/odd": "odd", "/": "even"}
    with pytest.raises(LabError, match="/nowhere"):
        leading(config, "/nowhere", "odd")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"chaos": "reload"}, "reload needs `live`"),
        ({"chaos": "reload", "live": "/"}, "two clusters or more"),
        ({"chaos": "flap"}, "flap needs `backend`"),
        ({"chaos": "kill-server", "backend": "web-1"}, "kill-server needs `within`"),
        ({"chaos": "link-down"}, "link-down needs `within`"),
        ({"chaos": "earthquake"}, "kill-router"),
    ],
    ids=str,
)
def test_a_kind_says_what_it_needs(fields: dict[str, Any], said: str) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(Check)
    with pytest.raises(ValidationError, match=said):
        adapter.validate_python({"times": 1, "paths": {"/": "web"}, **fields})


def test_the_key_chaos_names_the_check() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(Check)
    one = adapter.validate_python({"chaos": "kill-router", "times": 3, "paths": {"/": "web"}})
    assert isinstance(one, Chaos)
    assert one.title == "kill-router 3 times, no request fails"
