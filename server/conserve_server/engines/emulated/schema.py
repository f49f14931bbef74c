"""The first valid instance of a JSON schema, for answers that must fit one."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, Final

_FORMATS: Final = {
    "date": "2000-01-01",
    "date-time": "2000-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "email": "emulated@example.com",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-0000-0000-000000000000",
}
_CANDIDATES: Final = ("emulated", "Emulated", "e", "E", "0", "1", "00", "0000", *_FORMATS.values())
_TYPE_OF_KEY: Final = {"properties": "object", "items": "array", "prefixItems": "array"}


class SchemaError(ValueError):
    """No instance can be made; the message names the part and the fix."""


def first_instance(schema: dict[str, Any]) -> object:
    """A valid instance that depends on nothing but the schema. Raises SchemaError where none is found."""
    return _instance(schema, schema, ())


def _instance(schema: object, root: dict[str, Any], refs: tuple[str, ...]) -> object:
    if schema is True or schema == {}:
        return "emulated"
    if not isinstance(schema, dict):
        raise SchemaError(f"a schema of {schema!r} has no instance")
    if "$ref" in schema:
        return _referred(schema["$ref"], root, refs)
    for given in _given(schema):
        return given
    if "allOf" in schema:
        return _instance(_merged(schema, root), root, refs)
    for key in ("anyOf", "oneOf"):
        if schema.get(key):
            return _first_branch(schema[key], root, refs)
    return _typed(schema, root, refs)


def _given(schema: dict[str, Any]) -> Iterator[object]:
    """The instances that the schema names itself, the most binding first."""
    if "const" in schema:
        yield schema["const"]
    yield from schema.get("enum", ())
    if "default" in schema:
        yield schema["default"]
    yield from schema.get("examples", ())


def _referred(ref: str, root: dict[str, Any], refs: tuple[str, ...]) -> object:
    if ref in refs:
        raise SchemaError(f"{ref} refers to itself without an end: give it an optional or null branch")
    return _instance(_resolve(ref, root), root, (*refs, ref))


def _resolve(ref: str, root: dict[str, Any]) -> object:
    found: Any = root
    for part in ref.removeprefix("#").split("/")[1:]:
        found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    if found is None or not ref.startswith("#"):
        raise SchemaError(f"{ref} is not defined in the schema: only #/… references can be followed")
    return found


def _merged(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    merged = {key: value for key, value in schema.items() if key != "allOf"}
    for part in schema["allOf"]:
        resolved: Any = _resolve(part["$ref"], root) if "$ref" in part else part
        properties = {**merged.get("properties", {}), **resolved.get("properties", {})}
        merged |= resolved
        if properties:
            merged["properties"] = properties
    return merged


def _first_branch(branches: list[object], root: dict[str, Any], refs: tuple[str, ...]) -> object:
    for branch in branches:
        try:
            return _instance(branch, root, refs)
        except SchemaError as error:
            problem = error
    raise problem


def _typed(schema: dict[str, Any], root: dict[str, Any], refs: tuple[str, ...]) -> object:
    named = schema.get("type", next((t for key, t in _TYPE_OF_KEY.items() if key in schema), "string"))
    match named[0] if isinstance(named, list) else named:
        case "object":
            return _object(schema, root, refs)
        case "array":
            return _array(schema, root, refs)
        case "string":
            return _string(schema)
        case "integer":
            return int(_number(schema))
        case "number":
            return _number(schema)
        case "boolean":
            return True
        case "null":
            return None
        case other:
            raise SchemaError(f"{other!r} is not a JSON type")


def _object(schema: dict[str, Any], root: dict[str, Any], refs: tuple[str, ...]) -> dict[str, object]:
    made: dict[str, object] = {}
    required = schema.get("required", ())
    for name, part in schema.get("properties", {}).items():
        try:
            made[name] = _instance(part, root, refs)
        except SchemaError:
            if name in required:
                raise
    return made


def _array(schema: dict[str, Any], root: dict[str, Any], refs: tuple[str, ...]) -> list[object]:
    first: list[object] = [_instance(part, root, refs) for part in schema.get("prefixItems", ())]
    missing = max(0, schema.get("minItems", 0) - len(first))
    return first + [_instance(schema.get("items", True), root, refs) for _ in range(missing)]


def _number(schema: dict[str, Any]) -> float:
    """The least allowed number on its grid, 1 step without a lower bound, less where that is too much."""
    step: float = schema.get("multipleOf", 1)
    least: float | None = schema.get("minimum")
    above: float | None = schema.get("exclusiveMinimum")
    if least is not None or above is not None:
        steps = math.ceil((least if least is not None else above or 0) / step)
        return (steps + 1 if above is not None and steps * step <= above else steps) * step
    most: float = schema.get("maximum", math.inf)
    below: float = schema.get("exclusiveMaximum", math.inf)
    if step <= most and step < below:
        return step
    steps = math.floor(min(most, below) / step)
    return (steps - 1 if steps * step >= below else steps) * step


def _string(schema: dict[str, Any]) -> str:
    text = _FORMATS.get(schema.get("format", ""), "emulated")
    if (pattern := schema.get("pattern")) is not None:
        text = _matching(pattern)
    text = text.ljust(schema.get("minLength", 0), ".")
    return text[: schema.get("maxLength", len(text))]


def _matching(pattern: str) -> str:
    for candidate in _CANDIDATES:
        if re.search(pattern, candidate):
            return candidate
    raise SchemaError(f"no string for the pattern {pattern!r}: answer with a script rule instead")
