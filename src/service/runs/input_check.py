"""A run's inputs against the schema of its model, before anything runs."""

import json
from typing import Any

from src.service.http.problem import Problem

Fault = dict[str, str]


def check_inputs(
    inputs: object, schema: dict[str, Any], name: str, *, only_known: bool = False
) -> dict[str, Any]:
    """Return the inputs; raises Problem that lists what is wrong with them.

    `name` is Input or TrainingInput. Nulls count for nothing. Inputs that the model does not know
    are refused where `only_known`.
    """
    if not isinstance(inputs, dict):
        raise _problem([_fault("invalid_type", "input", f"expected an object, {_found(inputs)}")])
    schemas = schema["components"]["schemas"]
    known, required = schemas[name]["properties"], schemas[name]["required"]
    faults = []
    for field in required:
        if inputs.get(field) is None:
            faults.append(_fault("required", "input", f"{field} is required"))
    for field, value in inputs.items():
        if field not in known:
            if only_known:
                kind = "additional_property_not_allowed"
                reason = f"Additional property {field[:100]} is not allowed"
                faults.append(_fault(kind, f"input.{field[:100]}", reason))
        elif value is not None:
            faults += _value_faults(f"input.{field}", value, _resolved(known[field], schemas))
    if faults:
        raise _problem(faults)
    return inputs


def _resolved(field: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    if "allOf" not in field:
        return field
    return {**field, **schemas[field["allOf"][0]["$ref"].rpartition("/")[2]]}


def _value_faults(path: str, value: Any, field: dict[str, Any]) -> list[Fault]:
    expected = field.get("type")
    if not _has_type(value, expected):
        return [_fault("invalid_type", path, f"expected {_article(expected)}, {_found(value)}")]
    if isinstance(value, str) and "\0" in value:
        return [_fault("pattern", path, "expected a text without NUL characters")]
    if "enum" in field and value not in field["enum"]:
        choices = ", ".join(json.dumps(choice) for choice in field["enum"])
        return [_fault("enum", path, f"expected one of {choices}, {_found(value)}")]
    if "minimum" in field and value < field["minimum"]:
        least = f"expected at least {field['minimum']}, {_found(value)}"
        return [_fault("number_gte", path, least)]
    if "maximum" in field and value > field["maximum"]:
        return [_fault("number_lte", path, f"expected at most {field['maximum']}, {_found(value)}")]
    return []


def _has_type(value: Any, expected: str | None) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    match expected:
        case "integer":
            return is_number and value % 1 == 0
        case "number":
            return is_number
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
    return True


def _article(kind: str | None) -> str:
    names = {"integer": "a whole number", "number": "a number", "string": "a text"}
    return names.get(kind or "", "true or false")


def _found(value: object) -> str:
    return f"found {json.dumps(value)[:80]}"


def _fault(kind: str, field: str, description: str) -> Fault:
    return {"type": kind, "field": field, "description": description}


def _problem(faults: list[Fault]) -> Problem:
    detail = "".join(f"- {fault['field']}: {fault['description']}\n" for fault in faults)
    return Problem(422, detail, title="Input validation failed", invalid_fields=faults)
