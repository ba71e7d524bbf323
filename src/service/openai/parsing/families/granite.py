"""`<|tool_call|>` before a list of JSON objects, as Granite 3 and Phi 4 write."""

from src.service.openai.parsing.call_writer import CallWriter
from src.service.openai.parsing.deltas import Content
from src.service.openai.parsing.json_call import read_json_calls
from src.service.openai.parsing.reader import Parse, Reader

_OPENING, _CLOSING = "<|tool_call|>", "<|/tool_call|>"


def read_answer(reader: Reader, writer: CallWriter) -> Parse[None]:
    """Read an answer of this family."""
    while mark := (yield from reader.until(_OPENING, make=Content)):
        if (yield from read_json_calls(reader, writer, before=mark)):
            yield from reader.next_character()
            yield from reader.begins_with(_CLOSING)
            yield from reader.next_character()
