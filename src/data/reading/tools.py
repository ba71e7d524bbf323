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
    call = _nested(call, where)
    function = call["function"]
    if function.keys() > {"name"} and "arguments" not in function:
        raise BadValueError(
            f'"{where}": expected the key "arguments", found only {show_keys(function)}'
        )
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
    return {**call, "function": {**function, "arguments": arguments}}


def read_tools(tools: Any, where: str) -> tuple[Record, ...]:
    """Return the tools of a conversation in OpenAI's form."""
    if isinstance(tools, str) and tools:
        tools = _parse(tools, where, "a JSON list of tools")
    if not tools:
        return ()
    if not isinstance(tools, list):
        raise BadValueError(f'"{where}": expected a list of tools, found {describe(tools)}')
    return tuple(_nested(tool, f"{where}[{number}]") for number, tool in enumerate(tools))


def _nested(tool: Any, where: str) -> Record:
    """Return a tool or a call with its function nested, which some clients leave flat."""
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        found = f"only {show_keys(tool)}" if isinstance(tool, dict) else describe(tool)
        raise BadValueError(
            f'"{where}": expected {{"type": "function", "function": {{"name", ...}}}}, '
            f"found {found}"
        )
    check_unicode(json.dumps(tool, ensure_ascii=False), f'"{where}"')
    if "function" in tool:
        return {"type": "function", **tool}
    outside = {key: tool[key] for key in ("type", "id") if key in tool}
    function = {key: value for key, value in tool.items() if key not in outside}
    return {"type": "function", **outside, "function": function}


def read_call_text(content: str, where: str) -> list[Record]:
    """Return the calls that a text holds as JSON, as ShareGPT's function_call does."""
    calls = _parse(content, where, "a function call as JSON")
    return read_tool_calls(calls if isinstance(calls, list) else [calls], where)


def _parse(text: str, where: str, expected: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadValueError(f'"{where}": expected {expected}, found {excerpt(text)}') from None
