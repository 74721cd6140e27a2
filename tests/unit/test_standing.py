"""Which backends get requests: rauta.standing."""

from __future__ import annotations

from typing import Any

import pytest

from rauta.config import Config
from rauta.standing import Standing

WEIGHTS = {"a": 3, "b": 1, "idle": 0}


def config(**clusters: dict[str, Any]) -> Config:
    """A cluster for each, of the backends of WEIGHTS or of those it names."""
    return Config.model_validate(
        {
            "version": 1,
            "encapsulation": {"source": "198.19.0.0/24"},
            "vips": [],
            "clusters": [
                {
                    "name": name,
                    "health": said.get("health"),
                    "backends": [
                        {"name": one, "address": f"198.18.0.{11 + number}", "port": 8080, "weight": weight}
                        for number, (one, weight) in enumerate(said.get("weights", WEIGHTS).items())
                    ],
                }
                for name, said in clusters.items()
            ],
        }
    )


def checked(all_fail: str) -> dict[str, Any]:
    return {"health": {"all_fail": all_fail}}


@pytest.mark.parametrize(
    ("all_fail", "standing", "weights"),
    [
        ("keep", Standing(), {"a": 3, "b": 1, "idle": 0}),
        ("keep", Standing(unhealthy=frozenset({"a"})), {"a": 0, "b": 1, "idle": 0}),
        ("keep", Standing(unhealthy=frozenset({"a", "b"})), {"a": 3, "b": 1, "idle": 0}),
        ("keep", Standing(unhealthy=frozenset({"a"}), down=frozenset({"b"})), {"a": 3, "b": 1, "idle": 0}),
        ("keep", Standing(unhealthy=frozenset({"idle"})), {"a": 3, "b": 1, "idle": 0}),
        ("keep", Standing(unhealthy=frozenset({"another cluster's"})), {"a": 3, "b": 1, "idle": 0}),
        ("keep", Standing(drained=frozenset({"a"})), {"a": 0, "b": 1, "idle": 0}),
        ("keep", Standing(drained=frozenset({"a"}), unhealthy=frozenset({"b"})), {"a": 0, "b": 1, "idle": 0}),
        ("keep", Standing(drained=frozenset({"a", "b"})), {"a": 0, "b": 0, "idle": 0}),
        ("refuse", Standing(unhealthy=frozenset({"a"})), {"a": 0, "b": 1, "idle": 0}),
        ("refuse", Standing(unhealthy=frozenset({"a"}), down=frozenset({"b"})), {"a": 0, "b": 0, "idle": 0}),
    ],
)
def test_weights(all_fail: str, standing: Standing, weights: dict[str, int]) -> None:
    assert standing.config(config(web=checked(all_fail))).clusters[0].weights() == weights


def test_a_cluster_without_checks_does_not_care_for_health_but_for_who_is_said_to_be_down() -> None:
    one = config(web={})
    assert Standing(unhealthy=frozenset({"a"})).config(one).clusters[0].weights() == WEIGHTS
    assert Standing(down=frozenset({"a"})).config(one).clusters[0].weights() == WEIGHTS | {"a": 0}
    assert Standing(down=frozenset({"a", "b"})).config(one).clusters[0].weights() == WEIGHTS | {"a": 0, "b": 0}


def test_who_is_down_loses_connections_only_where_no_cluster_keeps_it() -> None:
    both = config(web=checked("keep"), api=checked("refuse") | {"weights": {"c": 1, "d": 1}})
    assert Standing(down=frozenset({"a"})).down_in(both) == {"a"}
    assert Standing(down=frozenset({"a"}), unhealthy=frozenset({"b"})).down_in(both) == set()
    assert Standing(down=frozenset({"c"}), unhealthy=frozenset({"d"})).down_in(both) == {"c"}
    assert Standing(down=frozenset({"nobody"})).down_in(both) == set()
    shared = config(web=checked("keep"), small=checked("keep") | {"weights": {"a": 1}})
    assert Standing(down=frozenset({"a"})).down_in(shared) == set()  # `small` keeps it
