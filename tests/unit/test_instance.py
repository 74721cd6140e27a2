"""The state of an instance: what is written is read again, and only one process has it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from rauta.errors import RautaError
from rauta.ids import Ids
from rauta.processes import instance
from rauta.processes.instance import Instance, State

STATE = State(
    ids=Ids(
        vips={"shop": 1},
        clusters={"web": 0},
        backends={("web-1", "198.18.0.11"): 3},
        routes={("shop", None, "prefix", "/", None): 7},
    ),
    drained=frozenset({"web-2"}),
    namespace="blue",
    interfaces=("eth0", "eth1"),
    made_clsact=True,
    gro_off=frozenset({"eth1"}),
    generation=4,
    unhealthy={("web-1", "198.18.0.11"): False, ("web-2", "198.18.0.12"): True},
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In the place of /run/rauta."""
    monkeypatch.setattr(instance, "_RUN", tmp_path / "rauta")
    return tmp_path / "rauta"


def test_what_is_written_is_read_again(folder: Path) -> None:
    one = Instance("one")
    assert one.state() == State()
    one.save(STATE)
    assert one.state() == STATE
    assert not list((folder / "one").glob("*.new"))


def test_a_state_from_before_health_was_kept_is_read() -> None:
    fields = json.loads(STATE.to_json())
    del fields["unhealthy"]
    assert State.from_json(json.dumps(fields)).unhealthy == {}


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 2}'])
def test_a_damaged_state_says_how_to_get_rid_of_it(folder: Path, text: str) -> None:
    one = Instance("one")
    one.save(STATE)
    (folder / "one" / "state.json").write_text(text)
    with pytest.raises(RautaError, match="rauta down --name one"):
        one.state()


def test_one_at_a_time_has_it(folder: Path) -> None:
    one = Instance("one")
    with one.locked():
        assert one.process() == os.getpid()
        with pytest.raises(RautaError, match=f"process {os.getpid()} runs it already"), Instance("one").locked():
            pass
    assert one.process() is None
    with one.locked():
        assert one.process() == os.getpid()


def test_a_lock_on_a_file_that_was_removed_meanwhile_is_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`rauta down` removes the file between a start's opening and locking it: the start must take another one."""
    one, lock = Instance("one"), instance._lock
    removed = list[object]()

    def removing(file: object) -> None:
        if not removed:
            removed.append(file)
            (folder / "one" / "lock").unlink()
        lock(file)  # type: ignore[arg-type]

    monkeypatch.setattr(instance, "_lock", removing)
    with one.locked():
        assert (folder / "one" / "lock").read_text() == f"{os.getpid()}\n"
        assert one.process() == os.getpid()
