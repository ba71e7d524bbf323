"""Arguments as plain text in pairs of `<arg_key>` and `<arg_value>`, as GLM 4.5 writes them."""

import json

from src.service.openai.parsing.call_writer import CallWriter
from src.service.openai.parsing.deltas import Content
from src.service.openai.parsing.reader import Parse, Reader

_CALL, _CALL_END = "<tool_call>", "</tool_call>"
_KEY, _KEY_END = "<arg_key>", "</arg_key>"
_VALUE, _VALUE_END = "<arg_value>", "</arg_value>"


def read_answer(reader: Reader, writer: CallWriter) -> Parse[None]:
    """Read an answer of this family."""
    while opening := (yield from reader.until(_CALL, make=Content)):
        name, mark = yield from reader.take_until(_KEY, _CALL_END)
        if not mark:
            yield Content(opening + name)
            return
        name, separator = name.strip(), "{"
        yield writer.start(name)
        while mark == _KEY:
            key, _ = yield from reader.take_until(_KEY_END)
            yield from reader.take_until(_VALUE)
            value, _ = yield from reader.take_until(_VALUE_END)
            value = writer.typed(name, key.strip(), value)
            yield writer.arguments(f"{separator}{json.dumps(key.strip())}: {value}")
            separator = ", "
            _, mark = yield from reader.take_until(_KEY, _CALL_END)
        yield writer.arguments("{}" if separator == "{" else "}")
        yield from reader.next_character()
