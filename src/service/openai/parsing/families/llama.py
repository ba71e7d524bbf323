"""A JSON object in place of an answer, as Llama 3 writes it, also behind `<|python_tag|>`."""

from src.service.openai.parsing.call_writer import CallWriter
from src.service.openai.parsing.deltas import Content
from src.service.openai.parsing.json_call import read_json_call
from src.service.openai.parsing.reader import Parse, Reader

_TAG = "<|python_tag|>"
_SEPARATORS = (";", ",")


def read_answer(reader: Reader, writer: CallWriter) -> Parse[None]:
    """Read an answer of this family."""
    if (yield from reader.peek()) == "{":
        yield from _read_calls(reader, writer, before="")
    while tag := (yield from reader.until(_TAG, make=Content)):
        if (yield from reader.peek()) == "{":
            yield from _read_calls(reader, writer, before=tag)
        else:
            yield Content(tag)


def _read_calls(reader: Reader, writer: CallWriter, *, before: str) -> Parse[None]:
    while (yield from read_json_call(reader, writer, before=before)):
        before, character = "", (yield from reader.next_character())
        if character in _SEPARATORS:
            before = reader.take(1)
            character = yield from reader.next_character()
        if character != "{":
            if before and character:
                yield Content(before)
            return
