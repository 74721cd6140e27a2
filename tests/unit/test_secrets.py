"""The file of secrets and the schedule of cookie keys: who takes whose cookies, what is refused, what is never said."""

from __future__ import annotations

import hashlib
import os
import re
import traceback
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rauta import secrets as subject
from rauta.errors import RautaError
from rauta.keys import Keys
from rauta.secrets import Rotation, Schedule, create, load_schedule

HASH = "00112233445566778899aabbccddeeff"
FIRST = "f1" * 32
SECOND = "e2" * 32
EXCHANGE = datetime(2026, 11, 27, tzinfo=UTC).timestamp()
DAY = 86400.0
PLAIN = f'version: 1\nhash: "{HASH}"\ncookies:\n  - {{secret: "{FIRST}"}}\n'
PLANNED = PLAIN + f'  - {{secret: "{SECOND}", from: 2026-11-27T00:00:00Z}}\n'

SHOWN = re.compile(r"f1f1|e2e2|00112233|abad1dea", re.IGNORECASE)
"""pieces of the secrets in these tests' files"""


def written(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "secrets.yaml"
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("secrets"), PLANNED)


def by_hand(secret: str, number: int) -> tuple[int, int]:
    """The cookie key of a period."""
    raw = hashlib.shake_256(b"rauta cookie key" + bytes.fromhex(secret) + number.to_bytes(8, "little")).digest(16)
    return int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:], "little")


def in_use(keys: Keys) -> tuple[int, tuple[int, int]]:
    """The epoch and the key that new cookies are made with."""
    return keys.cookies.epoch, keys.cookies.by_epoch[keys.cookies.epoch]


def takes(keys: Keys, made: Keys) -> bool:
    """Whether a host with some keys takes the cookies that another one makes."""
    epoch, key = in_use(made)
    return keys.cookies.by_epoch[epoch] == key


# ---- the schedule ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("second", "live", "used"),
    [
        (0, {99, 100}, 100),
        (4.999, {99, 100}, 100),
        (5, {100, 101}, 100),
        (9.999, {100, 101}, 100),
        (10, {100, 101}, 101),
    ],
)
def test_which_keys_are_live_when(tmp_path: Path, second: float, live: set[int], used: int) -> None:
    keys = load_schedule(written(tmp_path, PLAIN), 10.0).keys_at(1000 + second)
    assert in_use(keys) == (used & 1, by_hand(FIRST, used))
    assert {number & 1: by_hand(FIRST, number) for number in live} == dict(enumerate(keys.cookies.by_epoch))


def test_hash_keys_come_of_the_hash_alone(tmp_path: Path) -> None:
    raw = hashlib.shake_256(b"rauta hash keys" + bytes.fromhex(HASH)).digest(32)
    expected = (int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:16], "little"), raw[16:])
    plain, planned = (load_schedule(written(tmp_path, text), DAY) for text in (PLAIN, PLANNED))
    for keys in (plain.keys_at(0), plain.keys_at(1e9), planned.keys_at(EXCHANGE + 2 * DAY)):
        assert (keys.route_key, keys.flow_key, keys.agent_secret) == expected


ROTATE = st.sampled_from([2.0, 2.5, 3.3, 60.0, 3600.0, DAY, 30 * DAY])
TIMES = st.floats(min_value=0, max_value=4e9) | st.floats(min_value=EXCHANGE - 70 * DAY, max_value=EXCHANGE + 70 * DAY)


@given(rotate=ROTATE, when=TIMES, share=st.floats(min_value=-0.999, max_value=0.999))
@example(rotate=2.0, when=EXCHANGE, share=-0.999)
@example(rotate=DAY, when=EXCHANGE - 1, share=0.999)
def test_hosts_half_a_period_apart_take_each_others_new_cookies(
    loaded: Path, rotate: float, when: float, share: float
) -> None:
    """At any time, also around an exchange of secrets."""
    schedule = load_schedule(loaded, rotate)
    one, other = schedule.keys_at(when), schedule.keys_at(max(0.0, when + share * rotate / 2))
    assert takes(other, one)
    assert takes(one, other)


@given(rotate=ROTATE, when=TIMES, age=st.floats(min_value=0, max_value=0.999))
def test_cookies_are_good_for_half_a_period_at_least(loaded: Path, rotate: float, when: float, age: float) -> None:
    schedule = load_schedule(loaded, rotate)
    assert takes(schedule.keys_at(when + age * rotate / 2), schedule.keys_at(when))


@given(rotate=ROTATE, when=TIMES, age=st.floats(min_value=1.501, max_value=1e6))
def test_and_for_one_and_a_half_at_most(loaded: Path, rotate: float, when: float, age: float) -> None:
    schedule = load_schedule(loaded, rotate)
    assert not takes(schedule.keys_at(when + age * rotate), schedule.keys_at(when))


@given(rotate=ROTATE, when=TIMES)
def test_between_changes_nothing_changes_and_at_one_something_does(loaded: Path, rotate: float, when: float) -> None:
    schedule = load_schedule(loaded, rotate)
    change = schedule.next_change(when)
    assert when < change <= when + rotate / 2 + 1e-5
    before = max(when, change - 1e-5)
    assert schedule.keys_at(before) == schedule.keys_at(when) != schedule.keys_at(change)


def test_a_period_goes_by_the_secret_in_force_when_it_starts(tmp_path: Path) -> None:
    """Here the exchange is in the middle of one: the next one is the new secret's first."""
    schedule = load_schedule(written(tmp_path, PLANNED.replace("00:00:00Z", "12:00:00Z")), DAY)
    number = int(EXCHANGE // DAY)
    assert in_use(schedule.keys_at(EXCHANGE + DAY - 1))[1] == by_hand(FIRST, number)
    assert in_use(schedule.keys_at(EXCHANGE + DAY))[1] == by_hand(SECOND, number + 1)


@pytest.mark.parametrize(
    "time",
    ["2026-11-27T00:00:00Z", "2026-11-27T01:00:00+01:00", "2026-11-26 19:00:00 -05:00", '"2026-11-27T00:00:00Z"'],
)
def test_times_have_zones(tmp_path: Path, time: str) -> None:
    schedule = load_schedule(written(tmp_path, PLANNED.replace("2026-11-27T00:00:00Z", time)), 2.0)
    number = int(EXCHANGE // 2)
    assert in_use(schedule.keys_at(EXCHANGE - 1))[1] == by_hand(FIRST, number - 1)
    assert in_use(schedule.keys_at(EXCHANGE))[1] == by_hand(SECOND, number)


def test_a_host_that_has_not_got_the_new_secret_agrees_until_then(tmp_path: Path) -> None:
    old = load_schedule(written(tmp_path, PLAIN), DAY)
    new = load_schedule(written(tmp_path, PLANNED), DAY)
    assert takes(old.keys_at(EXCHANGE - 1), new.keys_at(EXCHANGE - 1))
    assert not takes(old.keys_at(EXCHANGE), new.keys_at(EXCHANGE))


def test_an_old_secret_can_be_taken_out_afterwards(tmp_path: Path) -> None:
    """A period and a half later nothing of it is live; what is now the first has no `from`."""
    new = load_schedule(written(tmp_path, PLANNED), DAY)
    pruned = load_schedule(written(tmp_path, PLAIN.replace(FIRST, SECOND)), DAY)
    assert new.keys_at(EXCHANGE + DAY / 2) == pruned.keys_at(EXCHANGE + DAY / 2)
    assert new.keys_at(EXCHANGE + DAY / 2 - 1) != pruned.keys_at(EXCHANGE + DAY / 2 - 1)


# ---- rotation -------------------------------------------------------------------------------------------


class Program:
    """Something with keys, which may refuse them."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.keys: list[Keys] = []
        self.refuses = refuses

    def set_keys(self, keys: Keys) -> None:
        if self.refuses:
            raise RautaError("giving keys", "it refuses")
        self.keys.append(keys)


def test_a_step_writes_what_is_live_and_says_when_to_come_again(loaded: Path) -> None:
    schedule, times = load_schedule(loaded, 10.0), iter([1004.0, 1004.5, 1005.25, 1005.25])
    programs = [Program(), Program()]
    rotation = Rotation(schedule, programs, clock=lambda: next(times))
    assert (rotation.step(), rotation.step()) == (pytest.approx(0.5), pytest.approx(4.75))
    for program in programs:
        assert program.keys == [schedule.keys_at(1004.0), schedule.keys_at(1005.25)]


def test_a_step_that_took_too_long_is_due_again_at_once(loaded: Path) -> None:
    times = iter([1004.0, 1007.0])
    assert Rotation(load_schedule(loaded, 10.0), [], clock=lambda: next(times)).step() == 0


def test_who_refuses_keeps_nobody_else_from_new_keys(loaded: Path) -> None:
    programs = [Program(refuses=True), Program()]
    with pytest.raises(RautaError, match="it refuses"):
        Rotation(load_schedule(loaded, 10.0), programs).step()
    assert len(programs[1].keys) == 1


# ---- the file -------------------------------------------------------------------------------------------


def test_a_fresh_file_is_its_owners_alone_and_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "secrets.yaml"
    before = os.umask(0)
    try:
        create(path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]
    create(tmp_path / "other.yaml")
    one, other = (load_schedule(file, DAY).keys_at(0) for file in (path, tmp_path / "other.yaml"))
    assert one != other
    assert one.flow_key != other.flow_key
    assert one.cookies != other.cookies


def test_digits_that_look_like_a_number_are_read_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One in a million hashes has no letter, or just one `e`: YAML would take it for a number."""
    monkeypatch.setattr(subject.secrets, "token_hex", lambda size: ("12e4" * size)[: 2 * size])
    create(tmp_path / "secrets.yaml")
    load_schedule(tmp_path / "secrets.yaml", DAY)


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    path = written(tmp_path, PLAIN)
    with pytest.raises(RautaError, match="there is one already"):
        create(path)
    assert path.read_text() == PLAIN
    assert list(tmp_path.iterdir()) == [path]


def test_no_directory_no_file(tmp_path: Path) -> None:
    with pytest.raises(RautaError, match="No such file or directory"):
        create(tmp_path / "none" / "secrets.yaml")


def test_what_is_not_there_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RautaError, match="No such file or directory"):
        load_schedule(tmp_path / "secrets.yaml", DAY)
    os.mkfifo(tmp_path / "pipe", 0o600)
    for other in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(RautaError, match="it is no file"):
            load_schedule(other, DAY)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o644, 0o777])
def test_a_file_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(RautaError, match=rf"others than its owner may use it \(mode {mode:04o}\)\nchmod 600"):
        load_schedule(written(tmp_path, PLAIN, mode), DAY)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, PLAIN)
    os.chown(path, 12345, 0)
    with pytest.raises(RautaError, match="its owner is the user 12345"):
        load_schedule(path, DAY)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_its_owner_may_do_as_he_likes(tmp_path: Path, mode: int) -> None:
    load_schedule(written(tmp_path, PLAIN, mode), DAY)


# ---- mistakes: each with line and field, none with a value ----------------------------------------------

ENTRY = f'  - {{secret: "{FIRST}"}}\n'
DIGITS = "abad1dea" * 8
MISTAKES = {
    "no version": (PLAIN.replace("version: 1\n", ""), [r":1: version: is missing \(allowed: 1\)"]),
    "another version": (PLAIN.replace("version: 1", f"version: {DIGITS}"), [":1: version: is not what belongs here"]),
    "no hash": (PLAIN.replace("hash", "hush"), [":2: a field that there is not", ":1: hash: is missing"]),
    "short hash": (
        PLAIN.replace(HASH, HASH[1:]),
        [r":2: hash: is not .*\(allowed: 32 hexadecimal digits, in quotes\)"],
    ),
    "long hash": (PLAIN.replace(HASH, HASH + "abad1dea"), [":2: hash: is not what belongs here"]),
    "hash with a line's end": (PLAIN.replace(HASH, HASH + "\\n"), [":2: hash: is not what belongs here"]),
    "a number": (PLAIN.replace(f'"{HASH}"', "00112233" * 4), [":2: hash: is not what belongs here"]),
    "no cookies": (PLAIN.split("cookies")[0], [":1: cookies: is missing"]),
    "empty cookies": (PLAIN.split("cookies")[0] + "cookies: []\n", [":3: cookies: is empty"]),
    "cookies that are text": (PLAIN.split("cookies")[0] + f"cookies: {DIGITS}\n", [":3: cookies: is not what"]),
    "no entries": (PLAIN.replace(ENTRY, f"  - {DIGITS}\n"), [r":4: cookies\[0\]: is not .*allowed: \{secret, from\}"]),
    "no secret": (PLAIN.replace(ENTRY, "  - {}\n"), [r":4: cookies\[0\]\.secret: is missing"]),
    "no colon": (
        PLAIN.replace(ENTRY, f"  - {{secret {DIGITS}}}\n"),
        [r":4: cookies\[0\]: a field that there is not \(allowed: secret, from\)", r"\.secret: is missing"],
    ),
    "no colon on top": (
        PLAIN + f"{DIGITS}: 5\n",
        [r":5: a field that there is not \(allowed: version, hash, cookies\)"],
    ),
    "a secret that is no hexadecimal number": (
        PLAIN.replace(FIRST, "x" + DIGITS[1:]),
        [r"cookies\[0\]\.secret: is not"],
    ),
    "short secret": (PLAIN.replace(FIRST, DIGITS[1:]), [r":4: cookies\[0\]\.secret: is not .*64 hexadecimal digits"]),
    "secret in a list": (PLAIN.replace(f'"{FIRST}"', f"[{DIGITS}]"), [r":4: cookies\[0\]\.secret: is not what"]),
    "no time": (PLAIN + f'  - {{secret: "{SECOND}"}}\n', [r":5: cookies\[1\]\.from: is missing"]),
    "a time for the first": (
        PLAIN.replace('"}', '", from: 2026-11-27T00:00:00Z}'),
        [r":4: cookies\[0\]\.from: the first"],
    ),
    "no zone": (PLANNED.replace("00Z", "00"), [r":5: cookies\[1\]\.from: is not .*a time and its zone"]),
    "no clock": (PLANNED.replace("T00:00:00Z", ""), [r":5: cookies\[1\]\.from: is not what"]),
    "a number for a time": (PLANNED.replace("2026-11-27T00:00:00Z", "1795737600"), [r":5: cookies\[1\]\.from: is not"]),
    "a secret for a time": (PLANNED.replace("2026-11-27T00:00:00Z", DIGITS), [r":5: cookies\[1\]\.from: is not"]),
    "no such day": (PLANNED.replace("11-27", "99-99"), [":5: this is not YAML"]),
    "out of order": (
        PLANNED + f'  - {{secret: "{DIGITS}", from: 2026-11-26T00:00:00Z}}\n',
        [r":6: cookies\[2\]\.from: is not after the time of the secret before it"],
    ),
    "twice at once": (
        PLANNED + f'  - {{secret: "{DIGITS}", from: 2026-11-27T00:00:00Z}}\n',
        [r":6: cookies\[2\]\.from: is not after"],
    ),
    "twice the same": (
        PLANNED.replace(SECOND, FIRST.upper()),
        [r":5: cookies\[1\]\.secret: is one of the secrets before"],
    ),
    "twice a field": (
        PLAIN + f'hash: "{HASH}"\n',
        [r":5: this is not YAML, or the same field twice \(allowed: each key once"],
    ),
    "twice a secret": (PLAIN.replace('"}', f'", secret: {DIGITS}}}'), [":4: this is not YAML"]),
    "an alias": (PLAIN.replace(f'"{FIRST}"', f"*{DIGITS}"), [":4: this is not YAML"]),
    "a bracket": (PLAIN.replace('"}', '"'), ["this is not YAML"]),
    "no mapping": (f"{DIGITS}\n", [":1: this is not YAML"]),
    "nothing": ("", [":1: this is not YAML"]),
}


@pytest.mark.parametrize(("text", "said"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_named_and_no_secret_is(
    tmp_path: Path, text: str, said: list[str], capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    with pytest.raises(RautaError) as caught:
        load_schedule(written(tmp_path, text), DAY)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 + len(said)
    for one in said:
        assert re.search(one, message), message
    printed = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + "".join(capfd.readouterr())
    assert not SHOWN.search(printed), printed
    assert not [warning for warning in recwarn if SHOWN.search(str(warning.message))]
    assert (caught.value.__context__, caught.value.__cause__) == (None, None)


def test_an_anchor_that_is_used_twice_is_not_shown(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """YAML allows it, with a warning that quotes the line."""
    text = PLAIN.replace("version: 1", "version: &a 1").replace(f'"{FIRST}"', f'&a "{FIRST}"')
    load_schedule(written(tmp_path, text), DAY)
    assert not [warning for warning in recwarn if SHOWN.search(str(warning.message))]


def test_bytes_that_are_no_text_are_not_shown(tmp_path: Path) -> None:
    path = written(tmp_path, "")
    path.write_bytes(PLAIN.encode() + b"\xff")
    with pytest.raises(RautaError, match=r":5: this is not YAML") as caught:
        load_schedule(path, DAY)
    assert caught.value.__context__ is None


def test_schedules_and_what_they_are_made_of_do_not_show_themselves(loaded: Path) -> None:
    schedule = load_schedule(loaded, DAY)
    rotation = Rotation(schedule, [])
    keys = schedule.keys_at(EXCHANGE)
    numbers = [*(half for key in keys.cookies.by_epoch for half in key), keys.route_key, keys.flow_key]
    for one in (schedule, rotation, keys, vars(rotation)):
        for shown in (repr(one), str(one), f"{one}"):
            assert not SHOWN.search(shown)
            assert not re.search(r"\\x", shown)
            assert not any(str(number) in shown or f"{number:x}" in shown for number in numbers)
    assert isinstance(schedule, Schedule)
    assert schedule.rotate == DAY
