"""Which tools a model may call, and which it must."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from src.service.openai.errors import bad_request
from src.service.openai.fields import Fields
from src.service.openai.parsing.call_writer import CallWriter
from src.service.openai.parsing.family import Family
from src.service.openai.parsing.json_call import read_json_calls
from src.service.openai.parsing.reader import Parse, Reader

Tool = dict[str, Any]


@dataclass(frozen=True)
class ToolChoice:
    """The tools that the model is told of."""

    tools: tuple[Tool, ...] = ()
    must_call: bool = False
    only: str | None = None
    """The one tool that it must call."""

    @property
    def json_schema(self) -> str | None:
        """The schema that an answer follows which must be a call."""
        functions = [tool["function"] for tool in self.tools]
        if self.only is not None:
            schemas = (_parameters(f) for f in functions if f["name"] == self.only)
            return json.dumps(next(schemas))
        return json.dumps(_any_call(functions)) if self.must_call else None

    def read_by(self, family: Family) -> Family:
        """Return how answers are read: those that must be a call are JSON and nothing else."""
        if self.only is not None:
            return Family(_read_arguments_of(self.only), new_call_id=family.new_call_id)
        if self.must_call:
            return Family(_read_call, new_call_id=family.new_call_id)
        return family


def read_tool_choice(fields: Fields) -> ToolChoice:
    """Return the choice that a request makes; raises ApiError."""
    tools = _read_tools(fields)
    names = [tool["function"]["name"] for tool in tools]
    choice = fields.get("tool_choice")
    match choice:
        case {"type": "allowed_tools", "allowed_tools": dict(allowed)}:
            listed = allowed.get("tools")
            asked = listed if isinstance(listed, list) else []
            allowed_names = [_function_name(tool) for tool in asked]
            if not allowed_names or not set(allowed_names) <= set(names):
                raise fields.refuse("tool_choice", "allowed_tools that are in tools")
            tools = tuple(tool for tool in tools if tool["function"]["name"] in allowed_names)
            choice = allowed.get("mode")
        case {"type": "function"}:
            name = _function_name(choice)
            if name not in names:
                raise fields.refuse("tool_choice", f"a function that is in tools ({names})")
            return ToolChoice(tools, True, name)
    if choice == "none":
        return ToolChoice()
    if choice == "required":
        if not tools:
            raise fields.refuse("tool_choice", "tools beside it")
        return ToolChoice(tools, True)
    if choice not in (None, "auto"):
        raise fields.refuse("tool_choice", "none, auto, required or a function")
    return ToolChoice(tools)


def _read_tools(fields: Fields) -> tuple[Tool, ...]:
    tools = fields.get("tools") or []
    if not isinstance(tools, list):
        raise fields.refuse("tools", "a list of tools")
    for number, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        has_parameters = isinstance(function, dict) and isinstance(
            function.get("parameters", {}), dict | None
        )
        if not has_parameters or not _function_name(tool) or tool.get("type") != "function":
            raise bad_request(
                f"tools[{number}]",
                'expected {"type": "function", "function": {"name", "parameters"}}, found '
                f"{json.dumps(tool, ensure_ascii=False)[:80]}",
            )
    return tuple(tools)


def _function_name(tool: Any) -> str | None:
    function = tool.get("function") if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def _parameters(function: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", **(function.get("parameters") or {})}


def _any_call(functions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the schema of a call of any function.

    What their schemas refer to moves to its root, where the references lead to.
    """
    calls: list[dict[str, Any]] = []
    definitions: dict[str, dict[str, Any]] = {"$defs": {}, "definitions": {}}
    for function in functions:
        parameters = dict(_parameters(function))
        for key, known in definitions.items():
            own = parameters.pop(key, {})
            if any(name in known and known[name] != own[name] for name in own):
                raise bad_request("tools", f"expected {key} that differ by name in all functions")
            known.update(own)
        properties = {"name": {"const": function["name"]}, "arguments": parameters}
        calls.append(
            {
                "type": "object",
                "properties": properties,
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return {"anyOf": calls, **{key: value for key, value in definitions.items() if value}}


def _read_call(reader: Reader, writer: CallWriter) -> Parse[None]:
    yield from read_json_calls(reader, writer, before="")


def _read_arguments_of(name: str) -> Any:
    def read(reader: Reader, writer: CallWriter) -> Parse[None]:
        yield writer.start(name)
        yield from reader.until(make=writer.arguments)

    return read
