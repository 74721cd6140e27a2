"""YAML files that remember their lines: whatever is wrong in one is reported with file, line and field, all at once.

RAUTA's configuration and the lab's scenarios are both documents. YAML is 1.2 (ruamel.yaml), so `off` and `no` are text.

JSON is YAML, too, and what programs write: read as such, a file with 65,536 routes takes seconds instead of half a
minute. Its lines are found only if somebody asks for them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar
from ruamel.yaml.constructor import ConstructorError, DuplicateKeyError, RoundTripConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from rauta.errors import RautaError
from rauta.mistakes import Location, Mistake, explain

__all__ = ["Document", "DocumentError", "load_document", "read_document"]

Model = TypeVar("Model", bound=BaseModel)


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
    _source: list[Any] = field(repr=False)
    """the same with lines, once it was parsed for them"""

    def line(self, path: Location) -> int:
        """The line, from 1, of what a path of keys and indices leads to, or of the nearest place above that exists."""
        if not self._source:
            self._source.append(_parser().load(self._text))
        node, line = self._source[0], 1
        for step in path:
            found = _position(node, step)
            if found is None:
                break
            line, node = found, node[step]
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
        source = _parser().load(text)
    except DuplicateKeyError as error:
        raise DocumentError(path, [_syntax(error, "each key once in a mapping")]) from None
    except YAMLError as error:
        raise DocumentError(path, [_syntax(error, _remedy(error))]) from None
    if not isinstance(source, CommentedMap):
        raise DocumentError(path, [(1, Mistake((), "the file is no mapping of fields", "`field: value` lines"))])
    return Document(path, _plain(source), text, [source])


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


class _Constructor(RoundTripConstructor):
    """Gives a line to values that are no values, such as the date 2001-99-99."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except ValueError as error:
            raise ConstructorError(None, None, str(error), node.start_mark) from error


def _parser() -> YAML:
    parser = YAML(typ="rt")
    parser.Constructor = _Constructor
    return parser


def _position(node: Any, step: int | str) -> int | None:
    """The line of a key or index; None if it is not there, or came by a merge key and has no line of its own."""
    if isinstance(node, CommentedMap):
        there = step in node
    else:
        there = isinstance(node, CommentedSeq) and isinstance(step, int) and step < len(node)
    position = node.lc.data.get(step) if there else None
    return position[0] + 1 if position else None


def _plain(node: Any) -> Any:
    """ruamel's containers and scalars, which know their formatting, as what they say."""
    if isinstance(node, CommentedMap):
        return {_plain(key): _plain(value) for key, value in node.items()}
    if isinstance(node, CommentedSeq):
        return [_plain(item) for item in node]
    if isinstance(node, TaggedScalar):
        return _plain(node.value)
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


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
