"""YAML as it is read for its values and lines: anchors, merge keys, and what they are abused for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rauta.files.document import Document, DocumentError, read_document

NAME = Path("some.yaml")


def read(text: str) -> Document:
    return read_document(NAME, text.encode())


def mistake(text: str) -> str:
    with pytest.raises(DocumentError) as caught:
        read(text)
    ((line, told),) = caught.value.mistakes
    return f"{line}: {told}"


SCALARS = [
    ("1_000", 1000),
    ("0x10", 16),
    ("1e3", 1000.0),
    ("true", True),
    ("off", "off"),
    ("~", None),
    ("'1'", "1"),
    ("!mine x", "x"),
    ("!mine {b: 1}", {"b": 1}),
    ("|\n  two\n  lines\n", "two\nlines\n"),
]


@pytest.mark.parametrize(("text", "value"), SCALARS, ids=[text for text, _ in SCALARS])
def test_values_are_pythons_own(text: str, value: Any) -> None:
    found = read(f"a: {text}").data["a"]
    assert found == value
    assert type(found) is type(value)


MERGES = [
    ("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}", {"x": 1, "y": 3}),
    ("a: &a {x: 1, y: 2}\nb: {y: 3, <<: *a}", {"x": 1, "y": 3}),
    ("a: [&a {x: 1}, &b {x: 2, y: 3}]\nb: {<<: [*a, *b]}", {"x": 1, "y": 3}),
    ("a: &a {x: 1}\nb: {'<<': *a}", {"<<": {"x": 1}}),
]


@pytest.mark.parametrize(("text", "value"), MERGES, ids=[text for text, _ in MERGES])
def test_a_merge_key_brings_what_is_not_said(text: str, value: Any) -> None:
    assert read(text).data["b"] == value


def test_an_alias_has_the_line_where_it_stands_and_within_that_of_its_anchor() -> None:
    document = read("a: &a\n  x: 1\nb:\n  - 0\n  - *a\n")
    assert document.data["b"] == [0, {"x": 1}]
    assert document.line(("b", 1)) == 5
    assert document.line(("b", 1, "x")) == 2
    assert document.line(("b", 7)) == 3


ABUSED = [
    ("a: 1\nb: {x: 1,\n x: 2}", '3: not YAML: found duplicate key "x", while constructing a mapping'),
    ("a: &a {x: 1}\nb:\n  <<: *a\n  <<: *a", '4: not YAML: found duplicate key "<<", while constructing a mapping'),
    ("a: {<<: 1}", "1: not YAML: expected a mapping or list of mappings for merging, while constructing a mapping"),
    ("a: 1\n? [b, c]\n: 2", "2: not YAML: found a key that is no scalar, while constructing a mapping"),
    ("a: &a [1, *a]", "1: not YAML: found undefined alias 'a'"),
]


@pytest.mark.parametrize(("text", "said"), ABUSED, ids=[text for text, _ in ABUSED])
def test_what_has_no_value_is_a_mistake_with_its_line(text: str, said: str) -> None:
    assert mistake(text).startswith(said)


def test_aliases_of_aliases_take_no_more_room_than_they_are_long() -> None:
    levels = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 40)]
    data = read("\n".join(levels)).data
    assert data["l39"][9] is data["l38"]
