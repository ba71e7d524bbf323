"""Forms of a model's inputs, made from its schema."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from src.service.http.problem import Problem

LONG_TEXTS = ("prompt", "system_prompt", "validation_prompt", "prompt_template")


@dataclass(frozen=True)
class Field:
    """One input, as the form shows it."""

    name: str
    help: str
    kind: str
    """integer, number, boolean, choice, text or long text."""
    value: str
    """What the user wrote, or the default."""
    limits: str
    choices: tuple[str, ...] = ()
    error: str = ""


def make_fields(
    schema: Mapping[str, Any],
    name: str,
    written: Mapping[str, str] | None = None,
    faults: Mapping[str, str] | None = None,
    *,
    only: Collection[str] | None = None,
) -> list[Field]:
    """Return the fields of `name` (Input or TrainingInput) in order, with their faults beside."""
    properties = sorted(_properties(schema, name), key=lambda pair: pair[1]["x-order"])
    return [
        Field(
            name=field,
            help=spec["description"],
            kind=_kind(field, spec),
            value=(written or {}).get(field, "")
            if written is not None
            else _text(spec.get("default")),
            limits=_limits(spec),
            choices=tuple(map(str, spec.get("enum", ()))),
            error=(faults or {}).get(field, ""),
        )
        for field, spec in properties
        if spec.get("format") != "uri" and (only is None or field in only)
    ]


def read_fields(
    schema: Mapping[str, Any], name: str, form: Mapping[str, Any], *, only: Collection[str] | None
) -> tuple[dict[str, str], dict[str, Any]]:
    """Return what the user wrote, and the inputs that differ from their defaults.

    A text that is not of its input's type stays as it is: the check of the inputs names it.
    """
    written: dict[str, str] = {}
    inputs: dict[str, Any] = {}
    for field, spec in _properties(schema, name):
        if spec.get("format") == "uri" or (only is not None and field not in only):
            continue
        # A browser ends lines with \r\n, and sends nothing for a box that is not ticked.
        text = written[field] = str(form.get(field, "")).replace("\r\n", "\n")
        value = field in form if spec["type"] == "boolean" else _value(text, spec["type"])
        if value is not None and value != spec.get("default"):
            inputs[field] = value
    return written, inputs


def faults_of(problem: Problem) -> tuple[dict[str, str], str]:
    """Return what is wrong by field, and the sentence for what is of no field."""
    faults, rest = {}, []
    for fault in problem.invalid_fields:
        field = fault["field"].removeprefix("input.")
        if fault["type"] == "required":
            field = fault["description"].partition(" ")[0]
        faults[field] = fault["description"]
    if not faults:
        rest.append(problem.detail)
    return faults, " ".join(rest)


def _properties(schema: Mapping[str, Any], name: str) -> list[tuple[str, dict[str, Any]]]:
    schemas = schema["components"]["schemas"]
    return [
        (field, {**spec, **schemas[field]} if "allOf" in spec else spec)
        for field, spec in schemas[name]["properties"].items()
    ]


def _kind(field: str, spec: Mapping[str, Any]) -> str:
    if "enum" in spec:
        return "choice"
    if field in LONG_TEXTS:
        return "long text"
    return "text" if spec["type"] == "string" else spec["type"]


def _limits(spec: Mapping[str, Any]) -> str:
    least, most = spec.get("minimum"), spec.get("maximum")
    if least is not None and most is not None:
        return f"{least} to {most}"
    return "" if least is None else f"at least {least}"


def _text(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else ""
    return "" if default is None else str(default)


def _value(text: str, kind: str) -> Any:
    if not text.strip():
        return None
    try:
        return {"integer": int, "number": float}.get(kind, str)(text)
    except ValueError:
        return text
