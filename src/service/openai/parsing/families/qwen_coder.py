"""Arguments as plain text in `<parameter=...>` marks, as Qwen3-Coder and Qwen3.5 write them."""

import json

from src.service.openai.parsing.call_writer import CallWriter
from src.service.openai.parsing.deltas import Content
from src.service.openai.parsing.reader import Parse, Reader

_CALL, _CALL_END = "<tool_call>", "</tool_call>"
_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"


def read_answer(reader: Reader, writer: CallWriter) -> Parse[None]:
    """Read an answer of this family; a model may leave out the outer marks."""
    while mark := (yield from reader.until(_CALL, _FUNCTION, make=Content)):
        if mark.endswith(_CALL):
            if (yield from reader.peek()) == "<":
                mark += reader.take_space()
            if not (yield from reader.begins_with(_FUNCTION)):
                yield Content(mark)
                continue
            mark += _FUNCTION
        yield from _read_call(reader, writer, before=mark)
        yield from reader.next_character()
        yield from reader.begins_with(_CALL_END)
        yield from reader.next_character()


def _read_call(reader: Reader, writer: CallWriter, *, before: str) -> Parse[None]:
    name, end = yield from reader.take_until(">")
    if not end:
        yield Content(before + name)
        return
    yield writer.start(name)
    separator = "{"
    while True:
        _, mark = yield from reader.take_until(_PARAMETER, _FUNCTION_END)
        if mark != _PARAMETER:
            break
        key, _ = yield from reader.take_until(">")
        value, _ = yield from reader.take_until(_PARAMETER_END)
        value = value.removeprefix("\n").removesuffix("\n")
        yield writer.arguments(f"{separator}{json.dumps(key)}: {writer.typed(name, key, value)}")
        separator = ", "
    yield writer.arguments("{}" if separator == "{" else "}")
