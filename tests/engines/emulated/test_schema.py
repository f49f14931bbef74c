"""The first instance of a schema fits it and depends on nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from conserve_server.engines.emulated.schema import SchemaError, first_instance


@pytest.mark.parametrize(
    ("schema", "instance"),
    [
        ({"const": 7}, 7),
        ({"type": "string", "enum": ["red", "blue"], "default": "blue"}, "red"),
        ({"type": "string", "default": "blue"}, "blue"),
        ({"type": "string", "examples": ["green"]}, "green"),
        ({"type": "string"}, "emulated"),
        ({"type": "string", "minLength": 10}, "emulated.."),
        ({"type": "string", "maxLength": 2}, "em"),
        ({"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}$"}, "2000-01-01"),
        ({"type": "integer"}, 1),
        ({"type": "integer", "minimum": 5}, 5),
        ({"type": "integer", "exclusiveMinimum": 5}, 6),
        ({"type": "integer", "minimum": 4, "multipleOf": 3}, 6),
        ({"type": "integer", "maximum": -2}, -2),
        ({"type": "number", "exclusiveMaximum": 0}, -1),
        ({"type": "boolean"}, True),
        ({"type": ["null", "string"]}, None),
        ({"type": "array", "items": {"type": "integer"}}, []),
        ({"type": "array", "minItems": 2, "items": {"type": "integer"}}, [1, 1]),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, 1),
        ({"allOf": [{"properties": {"a": {"const": 1}}}, {"type": "object"}]}, {"a": 1}),
        ({"$ref": "#/$defs/n", "$defs": {"n": {"type": "integer"}}}, 1),
        ({"properties": {"a": {"type": "integer"}, "b": {}}, "required": ["a"]}, {"a": 1, "b": "emulated"}),
    ],
)
def test_the_first_instance_is_the_plainest(schema: dict[str, Any], instance: object) -> None:
    assert first_instance(schema) == instance


def test_an_optional_part_that_never_ends_is_left_out() -> None:
    node = {"type": "object", "properties": {"value": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}}}
    assert first_instance({"$ref": "#/$defs/node", "$defs": {"node": node}}) == {"value": 1}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^xyz{7}$"},
        {"$ref": "#/$defs/missing"},
        {"$ref": "https://example.com/schema"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {"type": "tuple"},
    ],
)
def test_a_schema_without_an_instance_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(SchemaError):
        first_instance(schema)
