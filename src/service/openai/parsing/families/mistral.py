"""`[TOOL_CALLS]` before a list of JSON objects, or before `name[ARGS]{...}`, as Mistral writes."""

from src.service.openai.parsing.call_writer import CallWriter
from src.service.openai.parsing.deltas import Content
from src.service.openai.parsing.json_call import read_json_calls
from src.service.openai.parsing.reader import Parse, Reader

_CALLS, _ID, _ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"


def read_answer(reader: Reader, writer: CallWriter) -> Parse[None]:
    """Read an answer of this family."""
    while mark := (yield from reader.until(_CALLS, make=Content)):
        is_list = (yield from reader.peek()) in ("[", "{")
        read = read_json_calls if is_list else _read_named
        if (yield from read(reader, writer, before=mark)):
            yield from reader.next_character()


def _read_named(reader: Reader, writer: CallWriter, *, before: str) -> Parse[bool]:
    name, mark = yield from reader.take_until(_ID, _ARGUMENTS, "{")
    between = ""
    if mark == _ID:
        between, mark = yield from reader.take_until(_ARGUMENTS, "{")
        between = _ID + between
    if mark == "{":
        reader.text = "{" + reader.text
    elif not mark or (yield from reader.peek()) != "{":
        yield Content(before + name + between + mark)
        return False
    yield from reader.next_character()
    yield writer.start(name.strip())
    yield from reader.json_value(writer.arguments)
    return True
