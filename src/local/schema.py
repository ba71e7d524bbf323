"""The OpenAPI document of train.py and predict.py, in the form that `cog build` writes.

Cog reads the signatures without running them, and quietly drops what is no plain literal; here that
is an error. See https://cog.run/docs for the rules.
"""

import ast
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PREDICTOR = "predict.py:Predictor"
CONCURRENT_PREDICTOR = "predict.py:ConcurrentPredictor"
_TYPES: dict[str, dict[str, Any]] = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "Path": {"type": "string", "format": "uri"},
}
_LIMITS = {
    "ge": "minimum",
    "le": "maximum",
    "min_length": "minLength",
    "max_length": "maxLength",
    "regex": "pattern",
}


@dataclass(frozen=True)
class _Door:
    """One of the two functions that Cog serves."""

    path: str
    title: str
    noun: str
    id_name: str
    prefix: str


_PREDICT = _Door("/predictions", "Predict", "prediction", "prediction_id", "")
_TRAIN = _Door("/trainings", "Train", "training", "training_id", "Training")


def build_schema(
    train_source: Path, predict_source: Path, *, predictor: str = "Predictor"
) -> dict[str, Any]:
    """Return the document for both files; predict is the one of this class.

    Raises ValueError for a signature that Cog would read as something else than it says.
    """
    schema = _door_schema(predict_source, f"{predictor}.predict", _PREDICT)
    train = _door_schema(train_source, "train", _TRAIN)
    schema["paths"] = {**train["paths"], **schema["paths"]}
    for name, component in train["components"]["schemas"].items():
        known = schema["components"]["schemas"].setdefault(name, component)
        if known != component:
            raise ValueError(f"train and predict declare {name!r} differently; Cog keeps one")
    return schema


def write_schema(root: Path) -> Path:
    """Write the document where Cog's server looks for it, for the predictor it will run."""
    predictor = os.environ.get("COG_PREDICT_TYPE_STUB", PREDICTOR).rpartition(":")[2]
    path = root / ".cog" / "openapi_schema.json"
    path.parent.mkdir(exist_ok=True)
    schema = build_schema(root / "train.py", root / "predict.py", predictor=predictor)
    path.write_text(json.dumps(schema))
    return path


def _door_schema(source_path: Path, function_name: str, door: _Door) -> dict[str, Any]:
    source = source_path.read_text()
    tree = ast.parse(source)
    function = _find_function(tree, function_name)
    enums: dict[str, Any] = {}
    properties, required = {}, []
    arguments = [argument for argument in function.args.args if argument.arg != "self"]
    defaults: list[ast.expr | None] = [None] * (len(arguments) - len(function.args.defaults))
    for order, (argument, default) in enumerate(
        zip(arguments, [*defaults, *function.args.defaults], strict=True)
    ):
        field = _Field(source, argument, default)
        properties[argument.arg] = field.schema(order, enums)
        if field.is_required:
            required.append(argument.arg)
    input_schema = {
        "title": f"{door.prefix}Input",
        "type": "object",
        "properties": properties,
        **({"required": required} if required else {}),
    }
    is_streaming = any(ast.unparse(d).split("(")[0] == "streaming" for d in function.decorator_list)
    schemas = {
        f"{door.prefix}Input": input_schema,
        f"{door.prefix}Output": _output_schema(tree, function),
        **enums,
        **_envelope_schemas(door),
    }
    return {
        "openapi": "3.0.2",
        "info": {"title": "Cog", "version": "0.23.1"},
        "paths": _paths(door, is_streaming=is_streaming),
        "components": {"schemas": schemas},
    }


def _find_function(tree: ast.Module, name: str) -> ast.FunctionDef | ast.AsyncFunctionDef:
    class_name, _, function_name = name.rpartition(".")
    parents = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    body = tree.body
    if class_name:
        body = next((node.body for node in parents if node.name == class_name), [])
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == function_name:
            return node
    raise ValueError(f"there is no {name}")


class _Field:
    """One parameter of the signature."""

    def __init__(self, source: str, argument: ast.arg, default: ast.expr | None) -> None:
        self.name = argument.arg
        if argument.annotation is None:
            raise ValueError(f"{self.name}: Cog needs a type")
        annotation = ast.unparse(argument.annotation)
        self.is_nullable = annotation.endswith(" | None")
        self.type = annotation.removesuffix(" | None")
        if self.type not in _TYPES:
            raise ValueError(
                f"{self.name}: expected one of {', '.join(_TYPES)}, found {annotation}"
            )
        self.options: dict[str, Any] = {}
        if isinstance(default, ast.Call) and ast.unparse(default.func) == "Input":
            for keyword in default.keywords:
                if not _is_plain(source, keyword.value):
                    raise ValueError(
                        f"{self.name}: Cog reads {keyword.arg} only as one literal without escapes"
                    )
                self.options[str(keyword.arg)] = ast.literal_eval(keyword.value)
        elif default is not None:
            raise ValueError(f"{self.name}: expected Input(...)")

    @property
    def is_required(self) -> bool:
        return not self.is_nullable and self.options.get("default") is None

    def schema(self, order: int, enums: dict[str, Any]) -> dict[str, Any]:
        schema: dict[str, Any] = {"x-order": order}
        if choices := self.options.get("choices"):
            enums[self.name] = {
                "title": self.name,
                "description": "An enumeration.",
                "enum": choices,
                **_TYPES[self.type],
            }
            schema["allOf"] = [{"$ref": f"#/components/schemas/{self.name}"}]
        else:
            schema |= {"title": _title(self.name), **_TYPES[self.type]}
        if not self.is_required and "default" in self.options:
            schema["default"] = self.options["default"]
        if self.is_nullable:
            schema["nullable"] = True
        if "description" in self.options:
            schema["description"] = self.options["description"]
        for option, keyword in _LIMITS.items():
            if option in self.options:
                schema[keyword] = self.options[option]
        return schema


def _is_plain(source: str, value: ast.expr) -> bool:
    if isinstance(value, ast.List):
        return all(_is_plain(source, item) for item in value.elts)
    text = (ast.get_source_segment(source, value) or "").removeprefix("-")
    if isinstance(value, ast.UnaryOp):
        value = value.operand
    if not isinstance(value, ast.Constant) or "\\" in text or "\n" in text:
        return False
    # Two strings side by side are one constant here, and garbled text in Cog.
    return not isinstance(value.value, str) or (text[0] in "\"'" and text[1:-1] == value.value)


def _title(name: str) -> str:
    return " ".join(part[:1].upper() + part[1:] for part in name.split("_"))


def _output_schema(
    tree: ast.Module, function: ast.FunctionDef | ast.AsyncFunctionDef
) -> dict[str, Any]:
    if function.returns is None:
        raise ValueError(f"{function.name}: Cog needs a return type")
    name = ast.unparse(function.returns)
    if name.removeprefix("Async") == "ConcatenateIterator[str]":
        return {
            "title": "Output",
            "type": "array",
            "items": {"type": "string"},
            "x-cog-array-type": "iterator",
            "x-cog-array-display": "concatenate",
        }
    if name in _TYPES:
        return {**_TYPES[name], "title": "Output"}
    model = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)
    fields = {
        ast.unparse(node.target): {
            **_TYPES[ast.unparse(node.annotation)],
            "title": _title(ast.unparse(node.target)),
        }
        for node in model.body
        if isinstance(node, ast.AnnAssign)
    }
    return {"title": "Output", "type": "object", "properties": fields, "required": [*fields]}


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _envelope_schemas(door: _Door) -> dict[str, Any]:
    name = _title(door.noun)

    def texts(**formats: str | None) -> dict[str, Any]:
        return {
            key: {"title": _title(key), "type": "string", **({"format": kind} if kind else {})}
            for key, kind in formats.items()
        }

    times = texts(created_at="date-time", started_at="date-time", completed_at="date-time")
    location = {"anyOf": [{"type": "string"}, {"type": "integer"}]}
    return {
        f"{name}Request": {
            "title": f"{name}Request",
            "type": "object",
            "properties": {**texts(id=None), "input": _reference(f"{door.prefix}Input")},
        },
        f"{name}Response": {
            "title": f"{name}Response",
            "type": "object",
            "properties": {
                "input": _reference(f"{door.prefix}Input"),
                "output": _reference(f"{door.prefix}Output"),
                **texts(id=None, version=None, status=None, error=None, logs=None),
                **times,
                "metrics": {"title": "Metrics", "type": "object"},
            },
        },
        "Status": {
            "title": "Status",
            "description": "An enumeration.",
            "enum": ["starting", "processing", "succeeded", "canceled", "failed"],
            "type": "string",
        },
        "HTTPValidationError": {
            "title": "HTTPValidationError",
            "type": "object",
            "properties": {
                "detail": {
                    "title": "Detail",
                    "type": "array",
                    "items": _reference("ValidationError"),
                }
            },
        },
        "ValidationError": {
            "title": "ValidationError",
            "required": ["loc", "msg", "type"],
            "type": "object",
            "properties": {
                "loc": {"title": "Location", "type": "array", "items": location},
                "msg": {"title": "Message", "type": "string"},
                "type": {"title": "Error Type", "type": "string"},
            },
        },
    }


def _answer(schema: Mapping[str, Any], description: str = "Successful Response") -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _paths(door: _Door, *, is_streaming: bool) -> dict[str, Any]:
    name = _title(door.noun)
    invalid = _answer(_reference("HTTPValidationError"), "Validation Error")
    verb = door.title.lower()
    post: dict[str, Any] = {
        "summary": door.title,
        "description": f"Run a single {door.noun} on the model",
        "operationId": f"{verb}_{door.noun}s_post",
        "requestBody": {"content": {"application/json": {"schema": _reference(f"{name}Request")}}},
        "responses": {"200": _answer(_reference(f"{name}Response")), "422": invalid},
    }
    if is_streaming:
        post["x-cog-streaming"] = True
    parameter = {
        "required": True,
        "schema": {"title": _title(door.id_name), "type": "string"},
        "name": door.id_name,
        "in": "path",
    }
    return {
        "/": {
            "get": {
                "summary": "Root",
                "operationId": "root__get",
                "responses": {"200": _answer({})},
            }
        },
        "/health-check": {
            "get": {
                "summary": "Healthcheck",
                "operationId": "healthcheck_health_check_get",
                "responses": {"200": _answer({})},
            }
        },
        door.path: {"post": post},
        f"{door.path}/{{{door.id_name}}}/cancel": {
            "post": {
                "summary": "Cancel",
                "operationId": f"cancel_{door.noun}s__{door.id_name}__cancel_post",
                "parameters": [parameter],
                "responses": {"200": _answer({}), "422": invalid},
            }
        },
    }
