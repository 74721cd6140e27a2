"""The configuration's JSON Schema: it is current, says what each field is for, and takes what the models take."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel
from ruamel.yaml import YAML

from rauta import config as config_module
from rauta.config import Config
from rauta.files import schema
from rauta.files.document import DocumentError, load_document

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "docs/rauta.schema.json"
REFERENCE = ROOT / "docs/configuration.md"
EXAMPLES = sorted((ROOT / "scenarios/routing").glob("*.yaml"))


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    published = json.loads(PUBLISHED.read_text())
    jsonschema.Draft202012Validator.check_schema(published)
    return jsonschema.Draft202012Validator(published)


def models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A model and all that its fields lead to."""
    yield model
    for field in model.model_fields.values():
        for inner in schema.SECTIONS:
            if inner is not model and inner.__name__ in repr(field.annotation):
                yield from models(inner)


def example(**changes: Any) -> dict[str, Any]:
    """The one at the top of rauta.config, which says everything."""
    data: dict[str, Any] = YAML(typ="safe").load((config_module.__doc__ or "").split("\n\n")[1])
    return data | changes


def test_the_published_schema_is_current() -> None:
    assert PUBLISHED.read_text() == json.dumps(schema.json_schema(), indent=2) + "\n", "run `rauta schema`"


def test_the_published_reference_is_current() -> None:
    assert schema.reference() in REFERENCE.read_text(), "run `rauta schema --reference`"


def test_each_field_of_each_model_is_described_and_nothing_else() -> None:
    assert set(models(Config)) == set(schema.FIELDS) == set(schema.SECTIONS)
    for model, fields in schema.FIELDS.items():
        assert list(fields) == list(model.model_fields)


def test_each_description_is_in_the_schema() -> None:
    published = json.loads(PUBLISHED.read_text())
    definitions = published["$defs"] | {"Config": published}
    for model, fields in schema.FIELDS.items():
        properties = definitions[model.__name__]["properties"]
        assert {name: properties[name]["description"] for name in fields} == {
            n: text for n, (text, _) in fields.items()
        }
        assert definitions[model.__name__]["additionalProperties"] is False


def value_of(name: str, text: str) -> Any:
    return YAML(typ="safe").load(f"{name}: {text}")[name]


@pytest.mark.parametrize(
    ("model", "name"),
    [(model, name) for model, fields in schema.FIELDS.items() for name in fields if model is not Config],
)
def test_each_example_is_what_its_field_takes(model: type[BaseModel], name: str) -> None:
    """In a mapping with nothing else but what must be there."""
    value = value_of(name, schema.FIELDS[model][name][1])
    needed = {
        other: value_of(other, schema.FIELDS[model][other][1])
        for other, field in model.model_fields.items()
        if field.is_required()
    }
    made = model.model_validate(needed | {name: value})
    assert name in made.model_fields_set


@pytest.mark.parametrize("model", schema.SECTIONS, ids=lambda model: model.__name__)
def test_each_default_is_what_its_field_takes_and_has(model: type[BaseModel]) -> None:
    published = json.loads(PUBLISHED.read_text())
    properties = (published["$defs"] | {"Config": published})[model.__name__]["properties"]
    defaults = {name: one["default"] for name, one in properties.items() if "default" in one}
    assert set(defaults) == {name for name, field in model.model_fields.items() if not field.is_required()}
    for name, default in defaults.items():
        jsonschema.validate(default, properties[name] | {"$defs": published["$defs"]})
    needed = {
        name: value_of(name, schema.FIELDS[model][name][1])
        for name, field in model.model_fields.items()
        if field.is_required()
    }
    if model is Config:
        needed = {name: value for name, value in example().items() if name in needed}
    assert model.model_validate(needed | defaults) == model.model_validate(needed)


@pytest.mark.parametrize("file", EXAMPLES, ids=[file.stem for file in EXAMPLES])
def test_it_takes_the_configurations_of_the_scenarios(validator: jsonschema.Draft202012Validator, file: Path) -> None:
    validator.validate(load_document(file).data)


def test_it_takes_the_example_that_says_everything(validator: jsonschema.Draft202012Validator) -> None:
    assert set(example()) == set(Config.model_fields)
    validator.validate(example())
    Config.model_validate(example())


def with_route(**route: Any) -> dict[str, Any]:
    vip = example()["vips"][0]
    return {"vips": [vip | {"routes": [route]}]}


WRONG: dict[str, dict[str, Any]] = {
    "another version": {"version": 2},
    "a version that is text": {"version": "1"},
    "an unknown field": {"flow": 4096},
    "too few flows": {"flows": 1023},
    "a mode that is none": {"mode": "offload"},
    "one interface": {"interfaces": "eth0"},
    "a duration without unit": {"secrets": {"file": "x", "rotate": "24"}},
    "no file": {"secrets": {"rotate": "24h"}},
    "a port alone": {"metrics": {"listen": "9477"}},
    "another protocol": {"traces": {"endpoint": "udp://127.0.0.1:4318/"}},
    "no VIPs": {"vips": None},
    "an unknown answer": {"vips": [example()["vips"][0] | {"no_route": 403}]},
    "a route with two paths": with_route(exact="/", prefix="/", cluster="web"),
    "a route with none": with_route(host="shop.test", cluster="web"),
    "a route with an unknown method": with_route(prefix="/", method="get", cluster="web"),
    "a port that is too high": {"fallback": {"port": 65536}},
}


@pytest.mark.parametrize("changes", WRONG.values(), ids=list(WRONG))
def test_it_refuses_what_the_models_refuse(validator: jsonschema.Draft202012Validator, changes: dict[str, Any]) -> None:
    assert not validator.is_valid(example(**changes))
    with pytest.raises(ValueError, match="validation error"):
        Config.model_validate(example(**changes))


def test_a_path_that_is_nothing_is_no_path_for_both(validator: jsonschema.Draft202012Validator) -> None:
    whole = example(**with_route(exact=None, prefix="/", cluster="web"))
    validator.validate(whole)
    Config.model_validate(whole)


def test_the_reference_shows_the_file_that_says_everything(tmp_path: Path) -> None:
    text = REFERENCE.read_text().split("```yaml\n")[1].partition("```")[0]
    file = tmp_path / "example.yaml"
    file.write_text(text)
    try:
        assert load_document(file).validate(Config).version == 1
    except DocumentError as error:
        pytest.fail(str(error))
