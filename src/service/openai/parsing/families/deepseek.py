"""Each call between marks of its own, with the name before JSON, as DeepSeek writes."""

from src.service.openai.parsing.call_writer import CallWriter
from src.service.openai.parsing.deltas import Content
from src.service.openai.parsing.reader import Parse, Reader

_CALLS, _CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL, _SEPARATOR, _CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"


def read_answer(reader: Reader, writer: CallWriter) -> Parse[None]:
    """Read an answer of this family."""
    while (yield from reader.until(_CALLS, make=Content)):
        while True:
            _, mark = yield from reader.take_until(_CALL, _CALLS_END)
            if mark != _CALL:
                break
            yield from _read_call(reader, writer)
        yield from reader.next_character()


def _read_call(reader: Reader, writer: CallWriter) -> Parse[None]:
    # Up to R1 it is function<sep>name, a line break and a block of JSON; later name<sep>JSON.
    name, _ = yield from reader.take_until(_SEPARATOR)
    between, mark = yield from reader.take_until("{", _CALL_END)
    name = between.partition("\n")[0].strip() or name.strip()
    yield writer.start(name)
    if mark == "{":
        reader.text = "{" + reader.text
        yield from reader.json_value(writer.arguments)
        yield from reader.take_until(_CALL_END)
    else:
        yield writer.arguments("{}")
