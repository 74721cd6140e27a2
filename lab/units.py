"""Sizes, durations and rates as people write them in scenarios: ``13B``, ``5MB``, ``300ms``, ``200ns``, ``1M``.

``Size``, ``PerSecond`` and ``Limit`` are types, as those of rauta.units, for pydantic models; a ``Quantity`` keeps its
unit, because a target's ``10us`` must be compared with a measure in ns, and ``1M`` with one in requests/s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from rauta.units import SECONDS, Share, split

SIZES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
BITRATES = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_SHARE = TypeAdapter(Share)
COUNTS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}


def _one_of(units: dict[str, Any]) -> str:
    return ", ".join(unit for unit in units if unit)


def _parse_size(value: object) -> int:
    number, unit = split(value)
    if unit not in SIZES or number < 0:
        raise ValueError(f"{value!r} is not a size (allowed: a number with {_one_of(SIZES)})")
    return round(number * SIZES[unit])


def _parse_limit(value: object) -> float:
    try:
        return _SHARE.validate_python(value.strip().removeprefix("<") if isinstance(value, str) else value)
    except ValueError:
        raise ValueError(f"{value!r} is not a limit (allowed: a share such as < 5%)") from None


Size = Annotated[
    int,
    BeforeValidator(_parse_size),
    WithJsonSchema({"type": "string", "pattern": "^[0-9]+(\\.[0-9]+)?(B|kB|MB|GB|KiB|MiB|GiB)$", "examples": ["5MB"]}),
]
"""Bytes, written as ``13B`` or ``5MB``."""


def _parse_bitrate(value: object) -> float:
    number, unit = split(value)
    if unit not in BITRATES or number <= 0:
        raise ValueError(f"{value!r} is not a rate (allowed: a number with {_one_of(BITRATES)})")
    return number * BITRATES[unit]


Bitrate = Annotated[
    float,
    BeforeValidator(_parse_bitrate),
    WithJsonSchema({"type": "string", "pattern": "^[0-9]+(\\.[0-9]+)?(kbit|mbit|gbit)$", "examples": ["1gbit"]}),
]
"""Bits a second, written as ``100mbit``."""


def _parse_per_second(value: object) -> float:
    try:
        figure = Quantity.parse(value)
    except ValueError:
        figure = Quantity(0, "")
    if figure.unit or figure.value <= 0:
        raise ValueError(f"{value!r} is not so many a second (allowed: a number such as 500, 20k or 1M)")
    return figure.value


PerSecond = Annotated[
    float,
    BeforeValidator(_parse_per_second),
    WithJsonSchema({"type": ["string", "number"], "examples": ["500k"]}),
]
"""So many a second, written as ``500k``."""

Limit = Annotated[float, BeforeValidator(_parse_limit), WithJsonSchema({"type": "string", "examples": ["< 5%"]})]
"""A share that must not be reached, written as ``< 5%``."""


@dataclass(frozen=True)
class Quantity:
    """A number with its unit as written: ``10us`` is (10, "us"), ``1M`` is (1000000, "")."""

    value: float
    unit: str

    @classmethod
    def parse(cls, text: object) -> Quantity:
        """Raises ValueError when it is no number, or has a unit that is neither a time nor k, M, G."""
        if isinstance(text, Quantity):
            return text
        number, unit = split(text)
        if unit in COUNTS:
            return cls(number * COUNTS[unit], "")
        if unit in SECONDS:
            return cls(number, unit)
        raise ValueError(f"{text!r} has an unknown unit (allowed: none, {_one_of(COUNTS)}, {_one_of(SECONDS)})")

    def in_unit(self, unit: str) -> float:
        """Its value in a measure's unit.

        Raises:
            ValueError: one is a time and the other is not.
        """
        if (self.unit in SECONDS) != (unit in SECONDS):
            raise ValueError(f"{self} cannot be compared with a measure in {unit}")
        return self.value if unit not in SECONDS else self.value * SECONDS[self.unit] / SECONDS[unit]

    def __str__(self) -> str:
        return f"{self.value:g}{' ' if self.unit else ''}{self.unit}"

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, _core: CoreSchema, _handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": ["string", "number"], "examples": ["200ns", "1M", 0.75]}
