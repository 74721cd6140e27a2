"""What pydantic found wrong, in the words of the person who wrote the file.

pydantic names a place by a location such as ("checks", 0, "get", "cluster"), in which "get" may be a key of the file
or the tag of a union's member, and it says what failed but not always what would have been right. `explain` walks
location, model and data together: the result is the path as it stands in the file, the problem, and what is allowed
there.

Models can also report several mistakes of their own, each with its place: see `together`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, Discriminator, Tag, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

__all__ = ["Location", "Mistake", "explain", "together"]

Location: TypeAlias = tuple[int | str, ...]
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Mistake:
    """One mistake. `path` leads to it through the file's mappings and lists; `allowed` may be empty."""

    path: Location
    problem: str
    allowed: str = ""

    @property
    def field(self) -> str:
        """The path as text: vips[0].routes[1].prefix."""
        text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.path)
        return text.removeprefix(".")

    def __str__(self) -> str:
        text = f"{self.field}: {self.problem}" if self.path else self.problem
        return f"{text} (allowed: {self.allowed})" if self.allowed else text


def together(handler: Callable[[Any], Model], data: Any, found: Iterable[Mistake]) -> Model:
    """Validates, and raises the mistakes that a model found by itself together with pydantic's own.

    For a model's `@model_validator(mode="wrap")`, which passes its `handler` and its raw `data` on. An "after"
    validator would never run on a model with a mistyped field, and could report one mistake only. Paths are relative
    to the model.
    """
    extra = [
        InitErrorDetails(
            type=PydanticCustomError("mistake", _literal(m.problem), {"allowed": m.allowed}), loc=m.path, input=data
        )
        for m in found
    ]
    try:
        model = handler(data)
    except ValidationError as error:
        details = error.errors(include_url=False)
        raise ValidationError.from_exception_data(error.title, [*map(_again, details), *extra]) from None
    if extra:
        raise ValidationError.from_exception_data(type(model).__name__, extra)
    return model


def _again(error: ErrorDetails) -> InitErrorDetails:
    """The same error, ready to be raised once more."""
    kind = PydanticCustomError(_literal(error["type"]), _literal(error["msg"]), error.get("ctx"))
    return InitErrorDetails(type=kind, loc=error["loc"], input=error["input"])


def _literal(text: str) -> Any:
    """pydantic_core types its messages as LiteralString, to keep data out of templates: ours fill nothing in."""
    return text


# ---- explaining ---------------------------------------------------------------------------------------


def explain(model: type[BaseModel], data: Any, error: ValidationError) -> Iterator[Mistake]:
    """Every error of a validation of `data` (plain dicts and lists) by `model`, in pydantic's order."""
    for details in error.errors(include_url=False):
        place = _trace(model, data, details["loc"])
        yield Mistake(place.path, _problem(details, place), _allowed(details, place))


@dataclass(frozen=True, slots=True)
class _Type:
    """An expected type without its Annotated and `| None`, and what those said."""

    bare: Any
    metadata: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a location leads: a path in the data, the type expected there, and the model whose field it is."""

    path: Location
    expected: _Type
    owner: type[BaseModel] | None


def _trace(model: type[BaseModel], data: Any, location: Location) -> _Place:
    path: list[int | str] = []
    expected, owner = _Type(model), None
    for number, step in enumerate(location):
        last = number == len(location) - 1
        if _is_union(expected.bare):  # the step names a member of the union, not a place in the file
            expected = _member(expected, step)
            continue
        inside, value = _follow(data, step)
        if not inside and not last:  # a label that pydantic gives to a validator, such as "function-wrap[...]"
            continue
        if step == "[key]":
            continue
        owner = expected.bare if _is_model(expected.bare) else None
        expected, data = _child(expected, step), value
        path.append(step)
    return _Place(tuple(path), expected, owner)


def _follow(data: Any, step: int | str) -> tuple[bool, Any]:
    """Whether the data has such a key or index, and what is there."""
    if isinstance(data, Mapping) and step in data:
        return True, data[step]
    if isinstance(data, Sequence) and isinstance(step, int) and step < len(data):
        return True, data[step]
    return False, None


def _child(parent: _Type, step: int | str) -> _Type:
    """The type expected one step below a model, mapping or list."""
    if _is_model(parent.bare):
        for name, field in parent.bare.model_fields.items():
            if step in (name, field.alias):
                return _unwrapped(field.annotation, tuple(field.metadata), field.discriminator)
        return _Type(Any)
    arguments = [argument for argument in get_args(parent.bare) if argument is not ...]
    if not arguments:
        return _Type(Any)
    if isinstance(step, int) and get_origin(parent.bare) is tuple and step < len(arguments):
        return _unwrapped(arguments[step])
    return _unwrapped(arguments[-1])


def _unwrapped(annotation: Any, metadata: tuple[Any, ...] = (), discriminator: Any = None) -> _Type:
    if discriminator is not None:
        metadata = (*metadata, discriminator)
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *more = get_args(annotation)
            metadata = (*metadata, *_flat(more))
        elif _is_union(annotation) and len(members := _members(annotation)) == 1:
            annotation = members[0]
        else:
            return _Type(annotation, metadata)


def _flat(metadata: Iterable[Any]) -> Iterator[Any]:
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from item.metadata
            if item.discriminator is not None:
                yield item.discriminator
        else:
            yield item


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, UnionType)


def _members(union: Any) -> list[Any]:
    return [member for member in get_args(union) if member is not NoneType]


def _member(union: _Type, tag: int | str) -> _Type:
    """The member of a union that pydantic calls `tag`."""
    for member in _members(union.bare):
        if tag in _tags(member, union.metadata):
            return _unwrapped(member)
    return _Type(Any)


def _tags(member: Any, union_metadata: tuple[Any, ...]) -> list[Any]:
    """What pydantic may call a member: its Tag, its discriminator field's values, or its class's name."""
    bare = _unwrapped(member)
    tags = [item.tag for item in bare.metadata if isinstance(item, Tag)]
    if not _is_model(bare.bare):
        return [*tags, getattr(bare.bare, "__name__", "")]
    for item in union_metadata:
        name = item.discriminator if isinstance(item, Discriminator) else item
        field = bare.bare.model_fields.get(name) if isinstance(name, str) else None
        if field is not None and get_origin(field.annotation) is Literal:
            tags.extend(get_args(field.annotation))
    return [*tags, bare.bare.__name__]


# ---- wording ------------------------------------------------------------------------------------------

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "string": "text",
    "bool": "true or false",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping of fields",
    "model": "a mapping of fields",
    "ip_v4_address": "an IPv4 address",
    "ip_v4_network": "an IPv4 prefix",
}
_EXAMPLES = {
    "ip_v4_address": "an IPv4 address such as 198.18.0.11",
    "ip_v4_network": "an IPv4 prefix such as 198.19.0.0/24",
}
_BOUNDS = (("ge", "at least"), ("gt", "more than"), ("le", "at most"), ("lt", "less than"))
_OUT_OF_BOUNDS = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}


def _problem(error: ErrorDetails, place: _Place) -> str:
    kind = error["type"]
    shown = _shown(error["input"])
    if kind == "extra_forbidden":
        return "unknown field" + _closest(place)
    if kind == "missing":
        return "is missing"
    if kind in ("literal_error", "enum"):
        return f"{shown} is not one of the values"
    if kind == "union_tag_invalid":
        return f"{_context(error)['tag']!r} is not one of the kinds"
    if kind == "string_pattern_mismatch":
        return f"{shown} does not fit"
    if kind == "union_tag_not_found":
        return "does not say which kind it is"
    if kind in _OUT_OF_BOUNDS:
        return f"{shown} is out of range"
    if noun := _KINDS.get(_stem(kind)):
        return f"{shown} is not {noun}"
    return error["msg"].removeprefix("Value error, ")


def _allowed(error: ErrorDetails, place: _Place) -> str:
    kind, context = error["type"], _context(error)
    if kind == "extra_forbidden":
        return ", ".join(_field_names(place.owner))
    if kind in ("literal_error", "enum"):
        return str(context["expected"])
    if kind == "union_tag_invalid":
        return str(context["expected_tags"])
    if kind == "union_tag_not_found":
        return ", ".join(str(tags[0]) for member in _members(place.expected.bare) if (tags := _tags(member, ())))
    if kind == "string_pattern_mismatch":
        return f"text that matches {context['pattern']}"
    if kind in _OUT_OF_BOUNDS or _stem(kind) in ("int", "float"):
        return _range(place.expected)
    return _EXAMPLES.get(kind, str(context.get("allowed", "")))


def _context(error: ErrorDetails) -> dict[str, Any]:
    return error.get("ctx") or {}


def _stem(kind: str) -> str:
    """The key of _KINDS that an error of the wrong type is about: "int" for int_type, int_parsing, int_from_float."""
    return re.sub(r"_(type|parsing|from_float)$", "", kind)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    return "nothing" if value is None else repr(value)


def _field_names(owner: type[BaseModel] | None) -> list[str]:
    return [field.alias or name for name, field in owner.model_fields.items()] if owner else []


def _closest(place: _Place) -> str:
    matches = difflib.get_close_matches(str(place.path[-1]), _field_names(place.owner), n=1)
    return f", did you mean {matches[0]!r}?" if matches else ""


def _range(expected: _Type) -> str:
    """The bounds that annotated_types' Ge, Gt, Le and Lt put on a number: "1 to 65535"."""
    bounds = {name: getattr(item, name) for item in expected.metadata for name, _ in _BOUNDS if hasattr(item, name)}
    if bounds.keys() == {"ge", "le"}:
        return f"{bounds['ge']} to {bounds['le']}"
    return ", ".join(f"{words} {bounds[name]}" for name, words in _BOUNDS if name in bounds)
