"""YAML files that remember their lines: whatever is wrong in one is reported with file, line and field, all at once.

RAUTA's configuration and the lab's scenarios are both documents. YAML is 1.2 (ruamel.yaml), so `off` and `no` are text.

Values are made while the file is read. Ruamel would make a graph of nodes first, and then containers that can be
written again with every comment: of a thousand routes 5 MB, which a daemon that has read them once keeps for good.
Tags of mappings and sequences mean nothing here.

JSON is YAML, too, and what programs write: read as such, a file with 65,536 routes takes seconds instead of half a
minute. Its lines are found only if somebody asks for them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import TaggedScalar
from ruamel.yaml.composer import Composer
from ruamel.yaml.constructor import ConstructorError, DuplicateKeyError, RoundTripConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import MappingEndEvent, SequenceEndEvent
from ruamel.yaml.nodes import ScalarNode

from rauta.errors import RautaError
from rauta.files.mistakes import Location, Mistake, explain

__all__ = ["Document", "DocumentError", "load_document", "read_document"]

Model = TypeVar("Model", bound=BaseModel)

_MERGE = "tag:yaml.org,2002:merge"
_IN_MAPPING = "while constructing a mapping"


class DocumentError(RautaError):
    """A file that cannot be used. `mistakes` are (line, mistake) pairs in the order of the file; lines count from 1."""

    def __init__(self, path: Path, mistakes: Sequence[tuple[int, Mistake]]) -> None:
        self.path = path
        self.mistakes = sorted(mistakes, key=lambda pair: pair[0])
        count = f"{len(mistakes)} mistakes" if len(mistakes) > 1 else "a mistake"
        lines = "".join(f"\n{path}:{line}: {mistake}" for line, mistake in self.mistakes)
        super().__init__(f"reading {path}", f"it has {count}{lines}")


@dataclass(frozen=True)
class Document:
    """A file's content as plain dicts, lists and scalars, and the lines that they came from."""

    path: Path
    data: Any
    _text: str = field(repr=False)
    _places: list[Any] = field(repr=False)
    """where that begins, once it was read for it"""

    def line(self, path: Location) -> int:
        """The line, from 1, of what a path of keys and indices leads to, or of the nearest place above that exists."""
        if not self._places:
            root = _composed(self._text)
            self._places.append(root.places if root else None)
        places, line = self._places[0], 1
        for step in path:
            found = _place(places, step)
            if found is None:
                break
            line, places = found
        return line

    def validate(self, model: type[Model]) -> Model:
        """The model made from this document; DocumentError with every mistake that pydantic and the model found."""
        try:
            return model.model_validate(self.data)
        except ValidationError as error:
            mistakes = [(self.line(mistake.path), mistake) for mistake in explain(model, self.data, error)]
        raise DocumentError(self.path, mistakes)


def load_document(path: str | Path) -> Document:
    """Reads a YAML file. RautaError if it cannot be read; DocumentError, with the line, if it is no YAML mapping."""
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RautaError(f"reading {path}", str(error.strerror), "Name an existing file that you may read.") from error
    return read_document(path, content)


def read_document(path: Path, content: bytes) -> Document:
    """The document that a file's content is. DocumentError, with the line, if it is no YAML mapping."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DocumentError(path, [(line, Mistake((), "a byte that is not UTF-8", "a file in UTF-8"))]) from error
    data = _json(text)
    if data is not None:
        return Document(path, data, text, [])
    try:
        root = _composed(text)
    except DuplicateKeyError as error:
        raise DocumentError(path, [_syntax(error, "each key once in a mapping")]) from None
    except YAMLError as error:
        raise DocumentError(path, [_syntax(error, _remedy(error))]) from None
    if root is None or not isinstance(root.value, dict):
        raise DocumentError(path, [(1, Mistake((), "the file is no mapping of fields", "`field: value` lines"))])
    return Document(path, root.value, text, [root.places])


class _NoJson(ValueError):
    """Not what JSON and YAML read alike."""


def _json(text: str) -> dict[str, Any] | None:
    """What the text says if it is a JSON object; None if YAML has to say that, or what is wrong."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        data = json.loads(text, object_pairs_hook=_each_once, parse_constant=_refuse)
    except ValueError:
        return None
    return data if isinstance(data, dict) else None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _NoJson("a key twice")
    return found


def _refuse(constant: str) -> Any:
    raise _NoJson(constant)  # NaN is a string in YAML


# ---- values and their places ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Composed:
    """A value, and where what is in it begins.

    `places`: by key or index a line, from 1, and the places within; None if the value is a scalar. What came by a merge
    key has no place. `start_mark` is ruamel's, for its messages; `merges`: it is the merge key.
    """

    value: Any
    places: Any
    start_mark: Any
    merges: bool = False


def _place(places: Any, step: int | str) -> tuple[int, Any] | None:
    """The line of a key or index, and the places within; None if it is not there, or has no line of its own."""
    if isinstance(places, dict):
        found: tuple[int, Any] | None = places.get(step)
        return found
    there = isinstance(places, list) and isinstance(step, int) and step < len(places)
    return places[step] if there else None


class _Constructor(RoundTripConstructor):
    """Gives a line to values that are no values, such as the date 2001-99-99."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except ValueError as error:
            raise ConstructorError(None, None, str(error), node.start_mark) from error


class _Composer(Composer):
    """Makes values where ruamel's makes nodes; what has an anchor can be named once it is complete."""

    def compose_scalar_node(self, anchor: Any) -> Any:
        node: ScalarNode = super().compose_scalar_node(anchor)
        if str(node.tag) == _MERGE:
            return _Composed(node.value, None, node.start_mark, merges=True)
        constructor = self.loader.constructor
        value = _plain(constructor.construct_object(node, deep=True))
        constructor.constructed_objects.clear()
        return self._known(anchor, _Composed(value, None, node.start_mark))

    def compose_sequence_node(self, anchor: Any) -> Any:
        start = self.parser.get_event()
        values: list[Any] = []
        places: list[tuple[int, Any]] = []
        while not self.parser.check_event(SequenceEndEvent):
            line = self.parser.peek_event().start_mark.line + 1
            item = self.compose_node(None, len(values))
            values.append(item.value)
            places.append((line, item.places))
        self.parser.get_event()
        return self._known(anchor, _Composed(values, places, start.start_mark))

    def compose_mapping_node(self, anchor: Any) -> Any:
        start = self.parser.get_event()
        values: dict[Any, Any] = {}
        places: dict[Any, tuple[int, Any]] = {}
        merged: dict[Any, Any] | None = None
        while not self.parser.check_event(MappingEndEvent):
            line = self.parser.peek_event().start_mark.line + 1
            key, value = self.compose_node(None, None), self.compose_node(None, None)
            if key.value in values if not key.merges and _is_key(key, start) else merged is not None:
                problem = f'found duplicate key "{key.value}"'
                raise DuplicateKeyError(_IN_MAPPING, start.start_mark, problem, key.start_mark)
            if key.merges:
                merged = _merged(value, start)
                continue
            name = sys.intern(key.value) if type(key.value) is str else key.value
            values[name], places[name] = value.value, (line, value.places)
        self.parser.get_event()
        return self._known(anchor, _Composed({**(merged or {}), **values}, places, start.start_mark))

    def _known(self, anchor: Any, composed: _Composed) -> _Composed:
        if anchor is not None:
            self.anchors[anchor] = composed
        return composed


def _is_key(key: _Composed, start: Any) -> bool:
    if isinstance(key.value, (dict, list)):
        raise ConstructorError(_IN_MAPPING, start.start_mark, "found a key that is no scalar", key.start_mark)
    return True


def _merged(source: _Composed, start: Any) -> dict[Any, Any]:
    """What a merge key brings: of several mappings, the first one that has a key."""
    sources = source.value if isinstance(source.value, list) else [source.value]
    found: dict[Any, Any] = {}
    for one in reversed(sources):
        if not isinstance(one, dict):
            problem = "expected a mapping or list of mappings for merging"
            raise ConstructorError(_IN_MAPPING, start.start_mark, problem, source.start_mark)
        found |= one
    return found


def _composed(text: str) -> _Composed | None:
    """The content of a text; None if it has none. YAMLError if it is no YAML."""
    parser = YAML(typ="rt")
    parser.Composer, parser.Constructor = _Composer, _Constructor
    parser.get_constructor_parser(text)
    root: _Composed | None = parser.composer.get_single_node()
    return root


def _plain(scalar: Any) -> Any:
    """Ruamel's scalars, which know their formatting, as what they say."""
    if isinstance(scalar, TaggedScalar):
        return _plain(scalar.value)
    for kind in (bool, int, float, str):
        if isinstance(scalar, kind):
            return kind(scalar)
    return scalar


# ---- mistakes -------------------------------------------------------------------------------------------


def _syntax(error: YAMLError, allowed: str) -> tuple[int, Mistake]:
    """A YAML error's line and what it says."""
    if not isinstance(error, MarkedYAMLError):
        return 1, Mistake((), " ".join(str(error).split()), allowed)
    mark = error.problem_mark or error.context_mark
    problem = (error.problem or error.context or "not YAML").splitlines()[0]
    where = f", {error.context}" if error.context and error.problem else ""
    return (mark.line + 1 if mark else 1), Mistake((), f"not YAML: {problem}{where}", allowed)


def _remedy(error: YAMLError) -> str:
    text = str(error)
    if "\\t" in text or "tab" in text:
        return "spaces, no tabs, for indentation"
    if "mapping values are not allowed" in text:
        return "one `key: value` a line, values that hold ': ' in quotes"
    if "found undefined alias" in text:
        return "an alias whose anchor comes before it"
    return "YAML 1.2: fields of one mapping equally indented, brackets and quotes closed"
