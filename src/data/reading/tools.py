"""Tools and their calls, in OpenAI's form."""

import json
from typing import Any

from src.data.reading.fields import (
    BadValueError,
    Record,
    check_unicode,
    describe,
    excerpt,
    show_keys,
)


def read_tool_calls(calls: Any, where: str) -> list[Record]:
    """Return the calls of an assistant's message in OpenAI's form, their arguments as objects."""
    if not isinstance(calls, list):
        raise BadValueError(f'"{where}": expected a list of tool calls, found {describe(calls)}')
    return [_tool_call(call, f"{where}[{number}]") for number, call in enumerate(calls)]


def _tool_call(call: Any, where: str) -> Record:
    function = _function(call, where)
    arguments = function.get("arguments", {})
    if arguments in (None, ""):  # as some clients write that there are none
        arguments = {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = None
    if not isinstance(arguments, dict):
        found = describe(function["arguments"])
        raise BadValueError(f'"{where}.arguments": expected a JSON object, found {found}')
    return {**_outside(call), "function": {**function, "arguments": arguments}}


def read_tools(tools: Any, where: str) -> tuple[Record, ...]:
    """Return the tools of a conversation in OpenAI's form."""
    if isinstance(tools, str) and tools:
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            raise BadValueError(
                f'"{where}": expected a JSON list of tools, found {excerpt(tools)}'
            ) from None
    if not tools:
        return ()
    if not isinstance(tools, list):
        raise BadValueError(f'"{where}": expected a list of tools, found {describe(tools)}')
    functions = [_function(tool, f"{where}[{number}]") for number, tool in enumerate(tools)]
    return tuple(
        {**_outside(tool), "function": function}
        for tool, function in zip(tools, functions, strict=True)
    )


def _function(tool: Any, where: str) -> Record:
    """Return what a tool or a call says of its function, with or without a type around it."""
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        found = f"only {show_keys(tool)}" if isinstance(tool, dict) else describe(tool)
        raise BadValueError(
            f'"{where}": expected {{"type": "function", "function": {{"name", ...}}}}, '
            f"found {found}"
        )
    check_unicode(json.dumps(tool, ensure_ascii=False), f'"{where}"')
    return function


def _outside(tool: Record) -> Record:
    return {"type": "function", **(tool if "function" in tool else {})}


def read_call_text(content: str, where: str) -> list[Record]:
    """Return the calls that a text holds as JSON, as ShareGPT's function_call does."""
    try:
        calls = json.loads(content)
    except (ValueError, RecursionError):
        raise BadValueError(
            f'"{where}": expected a function call as JSON, found {excerpt(content)}'
        ) from None
    return read_tool_calls(calls if isinstance(calls, list) else [calls], where)
