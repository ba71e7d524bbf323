"""Calls that a model writes as JSON objects, as most families do."""

import json
import re
from typing import Any

from src.service.openai.parsing.call_writer import CallWriter
from src.service.openai.parsing.deltas import Content
from src.service.openai.parsing.json_value import JsonEnd
from src.service.openai.parsing.reader import Parse, Reader

_BEGINNING = re.compile(
    r'\{\s*"name"\s*:\s*"([^"\\]+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)


def read_json_call(reader: Reader, writer: CallWriter, *, before: str = "") -> Parse[bool]:
    """Read one object with `name` and `arguments`, its arguments as they come.

    An object that is no call becomes content, with what stood `before` it; then it returns False.
    """
    before += reader.take_space()
    end, num_searched = JsonEnd(), 0
    while True:
        if beginning := _BEGINNING.match(reader.text):
            reader.take(beginning.end())
            yield writer.start(beginning[1])
            yield from reader.json_value(writer.arguments)
            yield from reader.json_value(None, depth=1)
            return True
        length = end.find(reader.text[num_searched:])
        if length is not None or reader.is_over:
            break
        num_searched = len(reader.text)
        yield None
    text = reader.take(len(reader.text) if length is None else num_searched + length)
    if (call := _read(text)) is None or not (call[1] or writer.knows(call[0])):
        yield Content(before + text)
        return False
    name, arguments = call
    yield writer.start(name)
    yield writer.arguments(arguments or "{}")
    return True


def read_json_calls(reader: Reader, writer: CallWriter, *, before: str) -> Parse[bool]:
    """Read a call, or a list of calls in brackets; return whether there was one."""
    character = yield from reader.peek()
    if character == "{":
        return (yield from read_json_call(reader, writer, before=before))
    if character != "[":
        yield Content(before)
        return False
    before += reader.take_space() + reader.take(1)
    has_calls = False
    while (character := (yield from reader.peek())) == "{":
        if not (yield from read_json_call(reader, writer, before=before)):
            return has_calls
        has_calls, before = True, ""
        if (yield from reader.next_character()) == ",":
            reader.take(1)
    if character == "]":
        before += reader.take_space() + reader.take(1)
    if not has_calls:
        yield Content(before)
    return has_calls


def _read(text: str) -> tuple[str, str] | None:
    """Return (name, arguments as JSON, "" for none) of a call; None for any other text."""
    try:
        call: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", call.get("parameters"))
    if arguments is None:
        return call["name"], ""
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return call["name"], arguments
