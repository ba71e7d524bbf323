"""The signature of a function that Cog serves, read from its source as Cog reads it.

Cog quietly drops what is no plain literal; here that is an error.
"""

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.cli.envelope import reference, title

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
class Signature:
    """What one function takes and returns, as schemas."""

    inputs: dict[str, Any]
    output: dict[str, Any]
    enums: dict[str, Any]
    """The choices of inputs that have some."""
    is_streaming: bool


def read_signature(path: Path, name: str) -> Signature:
    """Return the signature of a function or, as `Class.name`, of a method.

    Raises ValueError for one that Cog would read as something else than it says.
    """
    source = path.read_text()
    tree = ast.parse(source)
    function = _find_function(tree, name)
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
    inputs = {
        "type": "object",
        "properties": properties,
        **({"required": required} if required else {}),
    }
    is_streaming = any(ast.unparse(d).split("(")[0] == "streaming" for d in function.decorator_list)
    return Signature(inputs, _output_schema(tree, function), enums, is_streaming)


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
            schema["allOf"] = [reference(self.name)]
        else:
            schema |= {"title": title(self.name), **_TYPES[self.type]}
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
            "title": title(ast.unparse(node.target)),
        }
        for node in model.body
        if isinstance(node, ast.AnnAssign)
    }
    return {"title": "Output", "type": "object", "properties": fields, "required": [*fields]}
