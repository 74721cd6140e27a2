"""The file of secrets, and the cookie keys that follow from it and from the time: nobody has to hand keys round.

    version: 1
    hash: "<32 hexadecimal digits>"
    cookies:
      - {secret: "<64 hexadecimal digits>"}                                # the first one has no `from`
      - {secret: "<64 hexadecimal digits>", from: 2026-11-27T00:00:00Z}    # in force from then on

All routers and agents have the same file (and the same `rotate` in their configuration), and work out the same keys by
their clocks. Time is cut into periods of `rotate` seconds, numbered from the epoch of Unix. The cookie key of period n
is SHAKE-256 of a label, the secret in force when it starts, and n; its slot (the epoch in a cookie) is n & 1. New
cookies are made with n. Live are, in the first half of period n, n and n - 1, in the second half n and n + 1. So
everybody knows a key half a period before it is used, and half a period after: hosts whose clocks differ by less than
that take each other's cookies, at any time. docs/secrets.md is the essay.

No message has a value of the file in it: where pydantic or YAML would quote one, only its place is said.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import secrets
import stat
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from rauta.errors import RautaError
from rauta.files.document import Document, DocumentError, read_document
from rauta.files.mistakes import Location, Mistake
from rauta.keys import COOKIE_KEY_BYTES, STABLE_BYTES, CookieKeys, Keys, SipHashKey, siphash_key

__all__ = ["Rotation", "Schedule", "Target", "create", "load_schedule"]

_HASH_DIGITS = 32
_SECRET_DIGITS = 64
_COOKIE_LABEL = b"rauta cookie key"
_STABLE_LABEL = b"rauta hash keys"
_NUMBER_BYTES = 8  # of a period's number in what is hashed: little-endian, signed
_NANOSECONDS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class _Secret:
    """In force for the periods that start at `since` (Unix time, nanoseconds) or later; None: from the beginning."""

    secret: bytes = field(repr=False)
    since: int | None = None


@dataclass(frozen=True, slots=True)
class Schedule:
    """Which keys are live when. Made by `load_schedule`."""

    _stable: bytes = field(repr=False)
    _secrets: tuple[_Secret, ...] = field(repr=False)
    _period: int  # nanoseconds

    @property
    def rotate(self) -> float:
        """How long a period is, in seconds."""
        return self._period / _NANOSECONDS

    def keys_at(self, unix_time: float) -> Keys:
        """The keys of a host whose clock says so; seconds since 1970."""
        half = self._half(unix_time)
        number, second = divmod(half, 2)
        other = number + 1 if second else number - 1
        key, spare = self._cookie_key(number), self._cookie_key(other)
        return Keys.of(CookieKeys((spare, key) if number & 1 else (key, spare), epoch=number & 1), self._stable)

    def next_change(self, unix_time: float) -> float:
        """When, after that time, other keys are live, or another one makes cookies: half a period's end."""
        boundary = (self._half(unix_time) + 1) * self._period
        change = boundary / (2 * _NANOSECONDS)
        while self._half(change) <= self._half(unix_time):  # a float may lie just before what it stands for
            change = math.nextafter(change, math.inf)
        return change

    def _half(self, unix_time: float) -> int:
        """How many half periods have passed since 1970."""
        return 2 * math.floor(unix_time * _NANOSECONDS) // self._period

    def _cookie_key(self, number: int) -> SipHashKey:
        start = number * self._period
        secret = next(one.secret for one in reversed(self._secrets) if one.since is None or one.since <= start)
        numbered = number.to_bytes(_NUMBER_BYTES, "little", signed=True)
        return siphash_key(hashlib.shake_256(_COOKIE_LABEL + secret + numbered).digest(COOKIE_KEY_BYTES))


class Target(Protocol):
    """What has cookie keys that change: a router, an agent."""

    def set_keys(self, keys: Keys) -> None:
        """Gives it these."""


class Rotation:
    """Keeps the keys of programs what the schedule says, for a loop that calls `step`, waits, and calls it again."""

    def __init__(self, schedule: Schedule, targets: Sequence[Target], clock: Callable[[], float] = time.time) -> None:
        """`clock` gives Unix time. `schedule` may be replaced between two steps, when the file has changed."""
        self.schedule = schedule
        self._targets = tuple(targets)
        self._clock = clock

    def step(self) -> float:
        """Writes what is due, in all targets; returns the seconds until more is.

        Wait no longer than some seconds at a time: the clock may be set. RautaError if a target refuses; the others
        have their keys nevertheless, and the next step tries again.
        """
        now = self._clock()
        keys = self.schedule.keys_at(now)
        refused: list[RautaError] = []
        for target in self._targets:
            try:
                target.set_keys(keys)
            except RautaError as error:
                refused.append(error)
        if refused:
            raise refused[0]
        return max(0.0, self.schedule.next_change(now) - self._clock())


# ---- the file -------------------------------------------------------------------------------------------


def create(path: str | Path) -> None:
    """Makes a file with fresh secrets, complete or not at all, that nobody but its owner can read.

    RautaError if there is one already, or it cannot be made.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    tried = f"making {path}"
    try:
        try:
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                os.fchmod(file.fileno(), 0o600)  # whatever the umask takes away
                file.write(_fresh())
                file.flush()
                os.fsync(file.fileno())
            os.link(draft, path)  # which never replaces what is there
        finally:
            with contextlib.suppress(FileNotFoundError):
                draft.unlink()
    except FileExistsError:
        advice = "Move it away first. Connections whose cookies it has made are refused then."
        raise RautaError(tried, "there is one already", advice) from None
    except OSError as error:
        raise RautaError(tried, str(error.strerror), "Name a file in a directory that you may write to.") from error


def _fresh() -> str:
    return (
        "version: 1\n"
        "# Never changes while connections live.\n"
        f'hash: "{secrets.token_hex(_HASH_DIGITS // 2)}"\n'
        "# A planned exchange: a second line with another secret, and from: a time; on every host before that time.\n"
        "cookies:\n"
        f'  - {{secret: "{secrets.token_hex(_SECRET_DIGITS // 2)}"}}\n'
    )


def load_schedule(path: str | Path, rotate: float) -> Schedule:
    """Reads a file of secrets, for periods of `rotate` seconds.

    RautaError if there is none, somebody else than its owner may read it, or its owner is neither root nor the caller;
    DocumentError with every mistake, its line and its field, but no value.
    """
    document = _document(Path(path), _read(Path(path)))
    try:
        file = _File.model_validate(document.data)
    except ValidationError as error:
        found = [_mistake(document, details["loc"], details["type"]) for details in error.errors(include_input=False)]
    else:
        found = [(document.line(place), Mistake(place, problem, allowed)) for place, problem, allowed in _order(file)]
        if not found:
            return _schedule(file, rotate)
    raise DocumentError(document.path, found)


def _schedule(file: _File, rotate: float) -> Schedule:
    stable = hashlib.shake_256(_STABLE_LABEL + bytes.fromhex(file.hash)).digest(STABLE_BYTES)
    some = (_Secret(bytes.fromhex(one.secret), None if one.since is None else _unix(one.since)) for one in file.cookies)
    return Schedule(stable, tuple(some), round(rotate * _NANOSECONDS))


def _unix(moment: datetime) -> int:
    return math.floor(moment.timestamp()) * _NANOSECONDS + moment.microsecond * 1000


def _read(path: Path) -> bytes:
    """What is in the file, if it is the caller's or root's alone. What is judged is what is read: the open file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe must not hold it up
        try:
            _require_private(path, os.fstat(descriptor))
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                return file.read()
        finally:
            os.close(descriptor)
    except OSError as error:
        advice = "Make one, on one host, and copy it to the others: rauta.secrets.create."
        raise RautaError(f"reading {path}", str(error.strerror), advice) from error


def _require_private(path: Path, status: os.stat_result) -> None:
    tried = f"reading {path}"
    if not stat.S_ISREG(status.st_mode):
        raise RautaError(tried, "it is no file", "Name a file of secrets.")
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        happened = f"others than its owner may use it (mode {stat.S_IMODE(status.st_mode):04o})"
        raise RautaError(tried, happened, f"chmod 600 {path}. If somebody has read it, exchange the secrets.")
    if status.st_uid not in (0, os.geteuid()):
        happened = f"its owner is the user {status.st_uid}, neither root nor the one that reads it"
        raise RautaError(tried, happened, f"Give it to root: chown root {path}")


# ---- mistakes, without values ---------------------------------------------------------------------------


def _document(path: Path, content: bytes) -> Document:
    """What is no YAML is said by its line alone: YAML's own words quote what they are about."""
    try:
        with warnings.catch_warnings():  # of an anchor that is there twice: they quote, too
            warnings.simplefilter("ignore")
            return read_document(path, content)
    except DocumentError as error:
        problem = "this is not YAML, or the same field twice"
        found = [(line, Mistake((), problem, one.allowed)) for line, one in error.mistakes]
    raise DocumentError(path, found)


def _no_number(value: Any) -> Any:
    """Pydantic would take a number for a time, in seconds or in milliseconds as it sees fit."""
    if isinstance(value, (int, float)):
        raise ValueError
    return value


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class _Cookie(_Model):
    secret: Annotated[str, Field(strict=True, pattern=f"^[0-9A-Fa-f]{{{_SECRET_DIGITS}}}$", repr=False)]
    since: Annotated[AwareDatetime, BeforeValidator(_no_number)] | None = Field(None, alias="from")


class _File(_Model):
    version: Literal[1]
    hash: Annotated[str, Field(strict=True, pattern=f"^[0-9A-Fa-f]{{{_HASH_DIGITS}}}$", repr=False)]
    cookies: Annotated[tuple[_Cookie, ...], Field(repr=False)]


_WANTED = {
    "version": "1",
    "hash": f"{_HASH_DIGITS} hexadecimal digits, in quotes",
    "cookies": "a list of one or more secrets",
    "secret": f"{_SECRET_DIGITS} hexadecimal digits, in quotes",
    "from": "a time and its zone, such as 2026-11-27T00:00:00Z",
}
_SECRET_FIELDS = "secret, from"


def _mistake(document: Document, place: Location, kind: str) -> tuple[int, Mistake]:
    """A mistake of pydantic's, with its line. A field that does not exist is not called by its name: a secret that lost
    its colon is one."""
    known = tuple(step for step in place if isinstance(step, int) or step in _WANTED)
    line = document.line(place)
    if kind == "extra_forbidden":
        return line, Mistake(known, "a field that there is not", _SECRET_FIELDS if known else "version, hash, cookies")
    last = known[-1] if known else "cookies"
    allowed = f"{{{_SECRET_FIELDS}}}" if isinstance(last, int) else _WANTED[last]
    return line, Mistake(known, "is missing" if kind == "missing" else "is not what belongs here", allowed)


def _order(file: _File) -> Iterator[tuple[Location, str, str]]:
    """What is wrong between secrets that are right by themselves: places, problems, and what is allowed."""
    if not file.cookies:
        yield ("cookies",), "is empty", _WANTED["cookies"]
    times = [one.since for one in file.cookies]
    for number, since in enumerate(times):
        place: Location = ("cookies", number, "from")
        if number == 0 and since is not None:
            yield place, "the first secret has no such time", "nothing: it is in force until the next one is"
        elif number and since is None:
            yield place, "is missing", _WANTED["from"]
        elif number > 1 and (before := times[number - 1]) is not None and since is not None and since <= before:
            yield place, "is not after the time of the secret before it", "times in ascending order"
    secret = [one.secret.lower() for one in file.cookies]
    for number, one in enumerate(secret):
        if one in secret[:number]:
            yield ("cookies", number, "secret"), "is one of the secrets before it", "a fresh one: openssl rand -hex 32"
